//! The laptop's configuration: any text is one or an error with a sentence. And what a call then makes of it: arguments of
//! tools, which are the workspace's.

#![no_main]

use std::path::Path;

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use nexus_proxy::role::proxy::config::Config;
use nexus_proxy::service::tool::argv::{MAX_ARGUMENT, MAX_ARGUMENTS, MAX_ARGV, Template};
use nexus_proxy::service::yaml::{self, Node, Yaml};
use serde_json::{Map, Value, json};

/// Nodes of a document: the bound that the reader states, and the root.
const MAX_NODES: usize = 100_001;

fuzz_target!(|data: &[u8]| {
    let Some((which, rest)) = data.split_first() else { return };
    match which % 4 {
        0 => {
            let Ok(text) = std::str::from_utf8(rest) else { return };
            if let Ok(node) = yaml::parse(text) {
                let (nodes, depth) = measure(&node);
                assert!(nodes <= MAX_NODES && depth <= 65, "{nodes} nodes, {depth} levels");
                let _ = node.to_json();
            }
        }
        1 => {
            let Ok(text) = std::str::from_utf8(rest) else { return };
            configuration(text);
        }
        2 => {
            let Ok(text) = std::str::from_utf8(rest) else { return };
            configuration(&format!("version: 1\n{text}"));
        }
        _ => drop(arguments(&mut Unstructured::new(rest))),
    }
});

fn measure(node: &Node) -> (usize, usize) {
    let inner: Vec<_> = match &node.value {
        Yaml::List(list) => list.iter().map(measure).collect(),
        Yaml::Map(map) => map.iter().map(|(_, node)| measure(node)).collect(),
        _ => Vec::new(),
    };
    (1 + inner.iter().map(|(n, _)| n).sum::<usize>(), 1 + inner.iter().map(|(_, d)| *d).max().unwrap_or(0))
}

fn configuration(text: &str) {
    let (path, home) = (Path::new("/home/u/.nexus/config.yaml"), Path::new("/home/u"));
    match Config::parse(text, path, home) {
        Ok(config) => {
            let laptop = config.declared();
            for (name, tool) in &laptop.tools {
                assert_eq!(&tool.spec().name, name);
                let _ = (tool.describe(), tool.argv(json!({})), format!("{tool:?}"));
            }
        }
        Err(error) => {
            assert!(!error.what.is_empty());
            // To YAML a carriage return alone ends a line, too.
            let lines = text.matches(['\n', '\r']).count() as u64 + 2;
            assert!(error.line.is_none_or(|line| line <= lines), "line {:?} of {lines}", error.line);
        }
    }
}

/// Values of a workspace in a template of the owner: no more arguments than places, no NUL, no option by accident.
fn arguments(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let schema = json!({
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "string", "x-allow-dash": true}, "c": {"type": "integer"}},
    });
    let mut argv = vec!["program".to_owned()];
    for _ in 0..bytes.int_in_range(0..=6)? {
        let pieces = ["{a}", "{b}", "{c}", "--", "-", "x", "{{", "}}", "{a?}", "{b?}", "{", "}", "--o=", " "];
        let mut element = String::new();
        for _ in 0..bytes.int_in_range(1..=3)? {
            element.push_str(bytes.choose(&pieces)?);
        }
        argv.push(element);
    }
    let Ok(template) = Template::new(&argv, &schema) else { return Ok(()) };
    assert_eq!(template.program(), "program");
    let mut values = Map::new();
    for name in ["a", "b"] {
        if bytes.arbitrary()? {
            values.insert(name.into(), Value::String(bytes.arbitrary()?));
        }
    }
    if bytes.arbitrary()? {
        values.insert("c".into(), Value::from(bytes.arbitrary::<i64>()?));
    }
    if let Ok(filled) = template.fill(&values) {
        assert!(filled.len() <= argv.len() && filled.len() <= MAX_ARGUMENTS);
        assert!(filled.iter().all(|argument| !argument.contains('\0') && argument.len() <= MAX_ARGUMENT));
        assert!(filled.iter().map(|argument| argument.len() + 1).sum::<usize>() <= MAX_ARGV);
        assert_eq!(filled[0], "program");
        // With one element for each place, what begins with a dash began with one in the template, stands behind `--`, or
        // was allowed to.
        if filled.len() == argv.len() {
            let guard = argv.iter().position(|element| element == "--").unwrap_or(argv.len());
            for (element, argument) in argv.iter().zip(&filled).take(guard) {
                let allowed = element.starts_with('-') || element == "{b}" || element == "{b?}" || only_b(element);
                assert!(allowed || !argument.starts_with('-'), "{element:?} made {argument:?}");
            }
        }
    }
    Ok(())
}

fn only_b(element: &str) -> bool {
    element.replace("{b}", "").replace("{b?}", "").is_empty()
}
