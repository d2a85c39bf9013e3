//! Argument vectors with typed placeholders: `{name}` stands for a property of the tool's schema.
//!
//! A value fills the place its template gives it and can do nothing else: no shell reads it, it never becomes two
//! arguments, and it does not become an option unless the owner allowed that.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::wire::{Refusal, RefusalCode};

/// Bytes of one argument. Linux takes 128 KiB with the final NUL.
pub const MAX_ARGUMENT: usize = 128 * 1024 - 1;

/// Bytes of all arguments together: within what every system takes beside the environment (macOS: 1 MiB).
pub const MAX_ARGV: usize = 512 * 1024;

/// Arguments of one call.
pub const MAX_ARGUMENTS: usize = 4096;

/// A parsed argument vector.
#[derive(Debug, Clone)]
pub struct Template {
    elements: Vec<Element>,
}

#[derive(Debug, Clone)]
struct Element {
    segments: Vec<Segment>,
    /// A `--` stands before it, so that nothing here can be read as an option.
    guarded: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Segment {
    Text(String),
    Value(Placeholder),
}

#[derive(Debug, Clone, PartialEq)]
struct Placeholder {
    name: String,
    optional: bool,
    allow_dash: bool,
}

impl Template {
    /// Parses `argv` against the `properties` and `required` of an object schema.
    ///
    /// # Errors
    /// A sentence for the owner: an unknown or unused property, a type that cannot be an argument, a stray brace.
    pub fn new(argv: &[String], schema: &Value) -> Result<Template, String> {
        let empty = Map::new();
        let properties = match schema.get("properties") {
            None => &empty,
            Some(Value::Object(map)) => map,
            Some(_) => return Err("`properties` of the schema must be a mapping".into()),
        };
        let (program, _) = argv.split_first().ok_or("`argv` is empty. hint: its first element is the program")?;
        let mut used = BTreeSet::new();
        let mut elements = Vec::with_capacity(argv.len());
        let mut guarded = false;
        for text in argv {
            let mut segments = segments(text)?;
            let whole = segments.len() == 1;
            for segment in &mut segments {
                let Segment::Value(placeholder) = segment else { continue };
                bind(placeholder, text, whole, schema, properties)?;
                used.insert(placeholder.name.clone());
            }
            elements.push(Element { segments, guarded });
            guarded |= text == "--";
        }
        if elements[0].segments.iter().any(|s| matches!(s, Segment::Value(_))) {
            return Err(format!("the program `{program}` contains a placeholder. hint: name the program itself"));
        }
        if let Some(name) = properties.keys().find(|name| !used.contains(*name)) {
            return Err(format!(
                "property `{name}` of the schema is never used. hint: put `{{{name}}}` into argv, or remove it"
            ));
        }
        let literal = elements[0].literal();
        if literal.is_empty() || (literal.contains('/') && !literal.starts_with('/')) {
            return Err(format!("the program `{program}` must be a bare name or an absolute path"));
        }
        Ok(Template { elements })
    }

    /// The program, as declared.
    pub fn program(&self) -> String {
        self.elements[0].literal()
    }

    /// The arguments that `values`, already validated against the schema and with its defaults, make.
    pub fn fill(&self, values: &Map<String, Value>) -> Result<Vec<String>, Refusal> {
        let mut argv = Vec::with_capacity(self.elements.len());
        for element in &self.elements {
            element.fill(values, &mut argv)?;
        }
        let total: usize = argv.iter().map(|a| a.len() + 1).sum();
        if total > MAX_ARGV || argv.len() > MAX_ARGUMENTS {
            return Err(too_large(format!(
                "the arguments are {} with {total} bytes; {MAX_ARGUMENTS} with {MAX_ARGV} are allowed",
                argv.len()
            )));
        }
        Ok(argv)
    }
}

impl Element {
    fn literal(&self) -> String {
        self.segments.iter().map(|s| if let Segment::Text(t) = s { t } else { "" }).collect()
    }

    fn fill(&self, values: &Map<String, Value>, argv: &mut Vec<String>) -> Result<(), Refusal> {
        if let [Segment::Value(placeholder)] = &self.segments[..] {
            return match values.get(&placeholder.name) {
                None | Some(Value::Null) => Ok(()),
                Some(Value::Array(items)) => items.iter().try_for_each(|item| {
                    let text = scalar(&placeholder.name, item)?;
                    argv.push(self.checked(text)?);
                    Ok(())
                }),
                Some(value) => {
                    let text = scalar(&placeholder.name, value)?;
                    argv.push(self.checked(text)?);
                    Ok(())
                }
            };
        }
        let mut text = String::new();
        for segment in &self.segments {
            match segment {
                Segment::Text(t) => text.push_str(t),
                Segment::Value(placeholder) => match values.get(&placeholder.name) {
                    None | Some(Value::Null) => return Ok(()),
                    Some(value) => text.push_str(&scalar(&placeholder.name, value)?),
                },
            }
        }
        argv.push(self.checked(text)?);
        Ok(())
    }

    fn checked(&self, text: String) -> Result<String, Refusal> {
        if text.len() > MAX_ARGUMENT {
            return Err(too_large(format!("an argument has {} bytes; {MAX_ARGUMENT} are allowed", text.len())));
        }
        if let Some(Segment::Value(first)) = self.segments.first()
            && text.starts_with('-')
            && !self.guarded
            && !self.segments.iter().all(|s| matches!(s, Segment::Value(p) if p.allow_dash))
        {
            let message = format!(
                "`{name}` may not begin with `-`: the program could take it for an option. hint: if it cannot, the \
                 laptop's owner can put `--` before `{{{name}}}` in argv, or `x-allow-dash: true` into its schema",
                name = first.name
            );
            return Err(Refusal::new(RefusalCode::InvalidArguments, message));
        }
        Ok(text)
    }
}

fn too_large(message: String) -> Refusal {
    Refusal::new(RefusalCode::TooLarge, format!("{message}. hint: pass long input on standard input"))
}

fn scalar(name: &str, value: &Value) -> Result<String, Refusal> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            let message = format!("`{name}` must be a text, a number or a boolean here");
            return Err(Refusal::new(RefusalCode::InvalidArguments, message));
        }
    };
    if text.contains('\0') {
        let message = format!("`{name}` contains a NUL byte, which no argument can");
        return Err(Refusal::new(RefusalCode::InvalidArguments, message));
    }
    Ok(text)
}

fn bind(
    placeholder: &mut Placeholder,
    element: &str,
    whole: bool,
    schema: &Value,
    properties: &Map<String, Value>,
) -> Result<(), String> {
    let name = &placeholder.name;
    let property = properties.get(name).ok_or_else(|| {
        format!(
            "`{{{name}}}` in argv has no property in the schema. hint: declare `{name}` under `schema.properties`, or \
             write `{{{{` for a brace"
        )
    })?;
    let array = is_array(name, property)?;
    if array && !whole {
        return Err(format!("`{name}` is an array, so it must be a whole element of argv, not a part of `{element}`"));
    }
    let required = schema.get("required").and_then(Value::as_array);
    let required = required.is_some_and(|r| r.iter().any(|r| r == name)) || property.get("default").is_some();
    if !required && !placeholder.optional && !whole {
        return Err(format!(
            "`{element}` needs `{name}`, which is not required. hint: make it required, give it a default, or write \
             `{{{name}?}}` to leave the whole element out without it"
        ));
    }
    placeholder.allow_dash = match property.get("x-allow-dash") {
        None => false,
        Some(Value::Bool(allow)) => *allow,
        Some(_) => return Err(format!("`x-allow-dash` of `{name}` must be true or false")),
    };
    Ok(())
}

/// Whether a property is an array of scalars; refuses what is neither that nor a scalar.
fn is_array(name: &str, property: &Value) -> Result<bool, String> {
    let types = types(property);
    if types.is_empty() {
        return Err(format!("property `{name}` has no `type`. hint: string, integer, number, boolean or array"));
    }
    for kind in &types {
        match *kind {
            "string" | "integer" | "number" | "boolean" | "null" => {}
            "array" if types.len() == 1 => {
                let items = property.get("items").map(self::types).unwrap_or_default();
                if items.is_empty() || items.iter().any(|t| !matches!(*t, "string" | "integer" | "number" | "boolean"))
                {
                    return Err(format!(
                        "the `items` of array `{name}` must have a type: string, integer, number or boolean"
                    ));
                }
                return Ok(true);
            }
            "array" => return Err(format!("property `{name}` is an array or something else. hint: decide for one")),
            other => return Err(format!("property `{name}` is of type `{other}`, which cannot be an argument")),
        }
    }
    Ok(false)
}

fn types(schema: &Value) -> Vec<&str> {
    let of_value = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    match (schema.get("type"), schema.get("enum"), schema.get("const")) {
        (Some(Value::String(kind)), _, _) => vec![kind],
        (Some(Value::Array(kinds)), _, _) => kinds.iter().map(|k| k.as_str().unwrap_or("?")).collect(),
        (None, Some(Value::Array(values)), _) => values.iter().map(of_value).collect(),
        (None, None, Some(value)) => vec![of_value(value)],
        _ => Vec::new(),
    }
}

fn segments(text: &str) -> Result<Vec<Segment>, String> {
    let mut segments = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        literal.push_str(&rest[..at]);
        let brace = &rest[at..at + 1];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            literal.push_str(brace);
            rest = after;
            continue;
        }
        let stray = || format!("stray `{brace}` in `{text}`. hint: write `{brace}{brace}` for a brace");
        let end = rest.find('}').filter(|_| brace == "{").ok_or_else(stray)?;
        let (name, optional) = match rest[..end].strip_suffix('?') {
            Some(name) => (name, true),
            None => (&rest[..end], false),
        };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
            return Err(stray());
        }
        if !literal.is_empty() {
            segments.push(Segment::Text(std::mem::take(&mut literal)));
        }
        segments.push(Segment::Value(Placeholder { name: name.to_owned(), optional, allow_dash: false }));
        rest = &rest[end + 1..];
    }
    literal.push_str(rest);
    if !literal.is_empty() || segments.is_empty() {
        segments.push(Segment::Text(literal));
    }
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn template(argv: &[&str], schema: Value) -> Result<Template, String> {
        Template::new(&argv.iter().map(|s| s.to_string()).collect::<Vec<_>>(), &schema)
    }

    fn fill(argv: &[&str], schema: Value, values: Value) -> Result<Vec<String>, RefusalCode> {
        template(argv, schema).unwrap().fill(values.as_object().unwrap()).map_err(|r| r.code)
    }

    #[test]
    fn placeholders_are_filled() {
        let schema = json!({
            "properties": {
                "n": {"type": "integer"}, "path": {"type": "array", "items": {"type": "string"}},
                "all": {"type": "boolean"}, "q": {"type": "string"},
            },
            "required": ["n"],
        });
        let argv = ["/bin/x", "-n{n}", "--all={all?}", "{q}", "{{n}}", "--", "{path}"];
        let full = json!({"n": -5, "all": true, "q": "a b", "path": ["-x", "y"]});
        assert_eq!(
            fill(&argv, schema.clone(), full).unwrap(),
            ["/bin/x", "-n-5", "--all=true", "a b", "{n}", "--", "-x", "y"]
        );
        assert_eq!(fill(&argv, schema, json!({"n": 1})).unwrap(), ["/bin/x", "-n1", "{n}", "--"]);
    }

    #[test]
    fn a_value_does_not_become_an_option() {
        let schema = json!({"properties": {"a": {"type": "string"}, "b": {"type": ["string", "number"]}},
                            "required": ["a", "b"]});
        let x = || json!({"a": "", "b": "-rf"});
        for argv in [&["rm", "{a}", "{b}"][..], &["rm", "{a}{b}"], &["rm", "{b}{a}"], &["rm", "{b}.txt", "--", "{a}"]] {
            assert_eq!(fill(argv, schema.clone(), x()), Err(RefusalCode::InvalidArguments), "{argv:?}");
        }
        assert!(fill(&["rm", "{b}", "{a}"], schema.clone(), json!({"a": "", "b": -5})).is_err());
        assert!(fill(&["rm", "--", "{a}", "{b}"], schema.clone(), x()).is_ok());
        assert!(fill(&["rm", "--x={b}", "{a}"], schema, x()).is_ok());
        let schema = json!({"properties": {"b": {"type": "string", "x-allow-dash": true}}});
        assert_eq!(fill(&["rm", "{b}"], schema, json!({"b": "-rf"})).unwrap(), ["rm", "-rf"]);
        let schema = json!({"properties": {"l": {"type": "array", "items": {"type": "string"}}}});
        assert!(fill(&["rm", "{l}"], schema, json!({"l": ["ok", "-rf"]})).is_err());
    }

    #[test]
    fn what_cannot_be_an_argument_is_refused() {
        let schema = || json!({"properties": {"a": {"type": "string"}}});
        for (value, code) in [
            (json!("a\0b"), RefusalCode::InvalidArguments),
            (json!({"x": 1}), RefusalCode::InvalidArguments),
            (json!([["x"]]), RefusalCode::InvalidArguments),
            (json!("x".repeat(MAX_ARGUMENT + 1)), RefusalCode::TooLarge),
            (json!(vec!["x".repeat(100_000); 6]), RefusalCode::TooLarge),
            (json!(vec!["x"; MAX_ARGUMENTS]), RefusalCode::TooLarge),
        ] {
            assert_eq!(fill(&["x", "{a}"], schema(), json!({"a": value})), Err(code));
        }
    }

    #[test]
    fn mistakes_are_found_when_loading() {
        let text = |kind: Value| json!({"properties": {"a": kind}});
        for (argv, schema, says) in [
            (&[][..], json!({}), "empty"),
            (&["x", "{b}"], json!({}), "no property"),
            (&["x"], text(json!({"type": "string"})), "never used"),
            (&["{a}"], text(json!({"type": "string"})), "program"),
            (&["./x"], json!({}), "absolute"),
            (&["x", "{a"], json!({}), "stray"),
            (&["x", "a}"], json!({}), "stray"),
            (&["awk", "{print $1}"], json!({}), "stray"),
            (&["x", "{a}"], text(json!({"type": "object"})), "cannot be"),
            (&["x", "{a}"], text(json!({})), "no `type`"),
            (&["x", "{a}"], text(json!({"type": "array"})), "items"),
            (&["x", "{a}"], text(json!({"type": "array", "items": {"type": "object"}})), "items"),
            (&["x", "-{a}"], text(json!({"type": "array", "items": {"type": "string"}})), "whole"),
            (&["x", "-{a}"], text(json!({"type": "string"})), "not required"),
            (&["x", "{a}"], text(json!({"type": "string", "x-allow-dash": "yes"})), "x-allow-dash"),
            (&["x"], json!({"properties": []}), "mapping"),
        ] {
            let error = template(argv, schema).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_value_never_changes_the_number_of_arguments(a: String, b: String, list: Vec<String>) {
            let schema = json!({
                "properties": {
                    "a": {"type": "string"}, "b": {"type": "string", "x-allow-dash": true},
                    "list": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["a", "b", "list"],
            });
            let template = template(&["x", "pre{a}post", "{b}", "--", "{list}", "{a}"], schema).unwrap();
            let values = json!({"a": a, "b": b, "list": list});
            if let Ok(argv) = template.fill(values.as_object().unwrap()) {
                prop_assert_eq!(argv.len(), 5 + list.len());
                prop_assert_eq!(&argv[1], &format!("pre{a}post"));
                prop_assert_eq!(&argv[2], &b);
                prop_assert_eq!(&argv[4..4 + list.len()], &list[..]);
            } else {
                prop_assert!(values.to_string().contains("\\u0000"));
            }
        }

        #[test]
        fn any_element_parses_or_is_refused(text: String) {
            let _ = segments(&text);
        }
    }
}
