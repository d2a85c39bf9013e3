//! Tools: programs on the laptop that its owner has declared for a workspace to run.
//!
//! A workspace chooses a tool and the values its schema asks for. It never chooses a program, an option, an
//! environment or a directory, and no shell is involved.

pub mod argv;
pub mod run;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::service::call::output::Output;
use crate::service::secret::Secret;
use crate::wire::refusal::printable;
use crate::wire::{Refusal, RefusalCode};
use argv::Template;

/// How long a tool may run when its declaration does not say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes a tool may print when its declaration does not say: more than any agent reads.
pub const DEFAULT_MAX_OUTPUT: u64 = 10 * 1024 * 1024;

/// Characters of a tool's name: what MCP clients take.
pub const MAX_TOOL_NAME: usize = 64;

/// What every tool gets of the laptop's environment: enough to find programs and to print in the right language,
/// and nothing that identifies or unlocks.
const DEFAULT_ENV: [&str; 8] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR", "TERM"];

/// A tool as declared.
#[derive(Debug, Clone)]
pub struct ToolSpec {
    /// What the workspace calls it by.
    pub name: String,
    /// What an agent reads to decide whether to use it.
    pub description: String,
    /// Program and arguments, with placeholders; see [`argv`].
    pub argv: Vec<String>,
    /// JSON Schema of an object.
    pub schema: Value,
    /// Where it runs; the home directory when absent.
    pub cwd: Option<PathBuf>,
    /// Added to its environment. May hold secrets: a workspace that may run the tool sees what the tool prints.
    pub env: BTreeMap<String, Secret>,
    /// Names to pass on from the laptop's environment.
    pub inherit_env: Vec<String>,
    /// How long it may run.
    pub timeout: Duration,
    /// Bytes it may print.
    pub max_output: u64,
    /// Whether a call may bring standard input.
    pub stdin: bool,
}

/// A tool, checked and ready to run.
pub struct Tool {
    spec: ToolSpec,
    template: Template,
    validator: jsonschema::Validator,
    defaults: Map<String, Value>,
}

impl ToolSpec {
    /// A tool without arguments and with every default.
    pub fn new(name: &str, argv: Vec<String>) -> ToolSpec {
        ToolSpec {
            name: name.to_owned(),
            description: String::new(),
            argv,
            schema: json!({"type": "object"}),
            cwd: None,
            env: BTreeMap::new(),
            inherit_env: Vec::new(),
            timeout: DEFAULT_TIMEOUT,
            max_output: DEFAULT_MAX_OUTPUT,
            stdin: false,
        }
    }
}

impl Tool {
    /// Checks a declaration.
    ///
    /// # Errors
    /// A sentence for the owner.
    pub fn new(mut spec: ToolSpec) -> Result<Tool, String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if spec.name.is_empty() || spec.name.len() > MAX_TOOL_NAME || !spec.name.chars().all(fits) {
            return Err(format!("a tool's name is letters, digits, `_`, `-` and `.`, at most {MAX_TOOL_NAME}"));
        }
        let schema = spec.schema.as_object_mut().ok_or("the schema must be a mapping")?;
        match schema.get("type") {
            None => drop(schema.insert("type".into(), "object".into())),
            Some(kind) if kind == "object" => {}
            Some(_) => return Err("the schema's `type` must be `object`: arguments have names".into()),
        }
        schema.entry("additionalProperties").or_insert(Value::Bool(false));
        let template = Template::new(&spec.argv, &spec.schema)?;
        let validator =
            jsonschema::validator_for(&spec.schema).map_err(|e| format!("the schema is not a JSON Schema: {e}"))?;
        let properties = spec.schema.get("properties").and_then(Value::as_object);
        let default = |(name, property): (&String, &Value)| Some((name.clone(), property.get("default")?.clone()));
        let defaults = properties.into_iter().flatten().filter_map(default).collect();
        let tool = Tool { spec, template, validator, defaults };
        if let Some((name, _)) = tool.defaults.iter().find(|(name, value)| {
            let property = &tool.spec.schema["properties"][name.as_str()];
            !jsonschema::validator_for(property).is_ok_and(|v| v.is_valid(value))
        }) {
            return Err(format!("the default of `{name}` does not fit its own schema"));
        }
        Ok(tool)
    }

    /// The declaration.
    pub fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    /// The entry in `tool.list`, in MCP's shape.
    pub fn describe(&self) -> Value {
        json!({
            "name": self.spec.name,
            "description": self.spec.description,
            "inputSchema": self.spec.schema,
            "timeout_ms": self.spec.timeout.as_millis() as u64,
            "stdin": self.spec.stdin,
        })
    }

    /// The argument vector that a call's arguments make.
    pub fn argv(&self, arguments: Value) -> Result<Vec<String>, Refusal> {
        let mut values = match arguments {
            Value::Object(values) => values,
            Value::Null => Map::new(),
            _ => return Err(self.unfit("arguments are passed by name, as an object")),
        };
        for (name, value) in &self.defaults {
            values.entry(name.as_str()).or_insert_with(|| value.clone());
        }
        let values = Value::Object(values);
        // The first error only: a workspace could make millions of them.
        if let Err(error) = self.validator.validate(&values) {
            let place = error.instance_path().to_string();
            let place = if place.is_empty() { "the arguments".to_owned() } else { format!("`{place}`") };
            return Err(self.unfit(&format!("{place}: {error}")));
        }
        match &values {
            Value::Object(values) => self.template.fill(values),
            _ => Ok(Vec::new()),
        }
    }

    /// Runs it. `home` is the directory of a tool that declares none.
    pub async fn execute(
        &self,
        arguments: Value,
        stdin: Option<String>,
        home: &Path,
        output: &Output,
    ) -> Result<Value, Refusal> {
        if stdin.is_some() && !self.spec.stdin {
            return Err(self.unfit("it takes no standard input; its owner can declare `stdin: true`"));
        }
        let invocation = run::Invocation {
            argv: self.argv(arguments)?,
            cwd: self.spec.cwd.clone().unwrap_or_else(|| home.to_owned()),
            env: self.environment(),
            stdin: stdin.map(String::into_bytes),
            timeout: self.spec.timeout,
            max_output: self.spec.max_output,
        };
        run::run(&self.spec.name, invocation, output).await
    }

    fn environment(&self) -> BTreeMap<String, Secret> {
        let inherited = DEFAULT_ENV.iter().copied().chain(self.spec.inherit_env.iter().map(String::as_str));
        let inherited = inherited.filter_map(|name| Some((name.to_owned(), Secret::new(std::env::var(name).ok()?))));
        inherited.chain(self.spec.env.clone()).collect()
    }

    fn unfit(&self, what: &str) -> Refusal {
        let what = printable(what).chars().take(400).collect::<String>();
        let message = format!(
            "tool `{}` was not run: {what}. hint: `tool.list` shows the schema of its arguments",
            self.spec.name
        );
        Refusal::new(RefusalCode::InvalidArguments, message)
    }
}

impl fmt::Debug for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tool").field("spec", &self.spec).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(schema: Value) -> Result<Tool, String> {
        let argv = ["git", "log", "-n{count}", "--", "{path?}"].map(String::from).to_vec();
        Tool::new(ToolSpec { schema, ..ToolSpec::new("git-log", argv) })
    }

    fn schema() -> Value {
        json!({"properties": {
            "count": {"type": "integer", "minimum": 1, "maximum": 100, "default": 10},
            "path": {"type": "string"},
        }})
    }

    #[test]
    fn arguments_are_validated_and_defaults_filled() {
        let tool = tool(schema()).unwrap();
        assert_eq!(tool.argv(Value::Null).unwrap(), ["git", "log", "-n10", "--"]);
        assert_eq!(tool.argv(json!({"count": 3, "path": "-x"})).unwrap(), ["git", "log", "-n3", "--", "-x"]);
        for bad in [
            json!({"count": 0}),
            json!({"count": "3"}),
            json!({"count": {}}),
            json!({"path": ["a"]}),
            json!({"other": 1}),
            json!([1]),
            json!("x"),
        ] {
            let refusal = tool.argv(bad).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::InvalidArguments);
            assert!(refusal.message.contains("git-log") && refusal.message.contains("hint:"), "{refusal}");
        }
    }

    #[test]
    fn the_list_speaks_mcp() {
        let entry = tool(schema()).unwrap().describe();
        assert_eq!(entry["name"], "git-log");
        assert_eq!(entry["inputSchema"]["type"], "object");
        assert_eq!(entry["inputSchema"]["additionalProperties"], false);
        assert_eq!(entry["timeout_ms"], 60_000);
    }

    #[test]
    fn bad_declarations_are_refused() {
        for bad in [
            json!(1),
            json!({"type": "array"}),
            json!({"properties": {"count": {"type": "integer", "default": "x"}, "path": {"type": "string"}}}),
            json!({"properties": {"count": {"type": "integer", "default": 1, "minimum": "x"}, "path": {"type": "string"}}}),
            json!({"properties": {"count": {"type": "object", "default": {}}, "path": {"type": "string"}}}),
        ] {
            assert!(tool(bad.clone()).is_err(), "{bad}");
        }
        for name in ["", "a b", "ä", "../x", &"x".repeat(65)] {
            assert!(Tool::new(ToolSpec::new(name, vec!["true".into()])).is_err());
        }
    }

    #[test]
    fn the_environment_does_not_print() {
        let mut spec = ToolSpec::new("t", vec!["true".into()]);
        spec.env.insert("API_KEY".into(), Secret::new("hunter2".into()));
        assert!(!format!("{:?}", Tool::new(spec).unwrap()).contains("hunter2"));
    }
}
