//! The laptop's configuration file: what its owner declares, read once and checked whole.
//!
//! Refuses unknown keys (naming the nearest known one), files that somebody else can write, and any declaration that
//! could not work. A file that does not exist declares nothing. Errors print like a compiler's.

mod reader;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::service::config_value::{ConfigEntry, ConfigFile, ConfigValues, Format, Pattern};
use crate::service::file::{DEFAULT_MAX_SIZE, FileRoot};
use crate::service::keychain::Keychain;
use crate::service::laptop::Laptop;
use crate::service::plain_file::{self, PlainFileError};
use crate::service::secret::Secret;
use crate::service::token::{DEFAULT_COMMAND_TIMEOUT, DEFAULT_LIFETIME, Token, TokenSource, TokenSpec};
use crate::service::tool::{DEFAULT_MAX_OUTPUT, DEFAULT_TIMEOUT, Tool, ToolSpec};
use crate::service::yaml::{self, MAX_YAML, Node, Yaml};
use reader::{At, Table};

/// Longest time that a declaration may state: a day is no longer a bound on a call.
const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

/// The version of the format.
const VERSION: u64 = 1;

/// Why the configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// Where in it, from 1.
    pub line: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub hint: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.what)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\nhint: {hint}"))
    }
}

/// Forwards to set up, as they are written: `-L`, `-R` and `-D` of ssh without the letter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwards {
    /// Laptop port to workspace service.
    pub local: Vec<String>,
    /// Workspace port to laptop service.
    pub remote: Vec<String>,
    /// SOCKS5 on a laptop port, dialling from the workspace.
    pub dynamic: Vec<String>,
}

/// A configuration that holds together.
pub struct Config {
    /// The file it was read from, whether or not it exists.
    pub path: PathBuf,
    /// What `~` stands for.
    pub home: PathBuf,
    /// Forwards.
    pub forwards: Forwards,
    tools: BTreeMap<String, Arc<Tool>>,
    tokens: Vec<TokenSpec>,
    values: BTreeMap<String, ConfigEntry>,
    files: Vec<FileRoot>,
}

impl Config {
    /// Reads and checks a file. Blocks.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let error = |what: String, hint: &str| ConfigError {
            path: path.to_owned(),
            line: None,
            what,
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
        };
        let home = etcetera::home_dir().map_err(|e| error(format!("no home directory: {e}"), "set HOME"))?;
        let bytes = match plain_file::read(path, MAX_YAML) {
            Ok(bytes) => bytes,
            Err(PlainFileError::Missing) => return Config::parse("", path, &home),
            Err(e) => return Err(error(e.to_string(), "")),
        };
        own(path).map_err(|(what, hint)| error(what, &hint))?;
        let text = String::from_utf8(bytes).map_err(|_| error("it is not UTF-8".into(), "save it as UTF-8"))?;
        Config::parse(&text, path, &home)
    }

    /// Checks a text. `path` is for errors, and for where the keychain's file lies.
    pub fn parse(text: &str, path: &Path, home: &Path) -> Result<Config, ConfigError> {
        let mut config = Config {
            path: path.to_owned(),
            home: home.to_owned(),
            forwards: Forwards::default(),
            tools: BTreeMap::new(),
            tokens: Vec::new(),
            values: BTreeMap::new(),
            files: Vec::new(),
        };
        let outcome = yaml::parse(text)
            .map_err(|e| reader::Wrong { line: e.line, what: e.message, hint: None })
            .and_then(|root| config.read(&root));
        match outcome {
            Ok(()) => Ok(config),
            Err(wrong) => {
                Err(ConfigError { path: path.to_owned(), line: wrong.line, what: wrong.what, hint: wrong.hint })
            }
        }
    }

    /// What is declared, with empty caches.
    pub fn declared(&self) -> Laptop {
        let dir = self.path.parent().unwrap_or(&self.home);
        let shown = match self.path.strip_prefix(&self.home) {
            Ok(inner) => format!("~/{}", inner.display()),
            Err(_) => self.path.display().to_string(),
        };
        let mut laptop = Laptop::new(&self.home, shown, Keychain::new(dir));
        laptop.tools = self.tools.clone();
        laptop.tokens =
            self.tokens.iter().map(|spec| (spec.service.clone(), Arc::new(Token::new(spec.clone())))).collect();
        laptop.config = ConfigValues::new(self.values.clone());
        laptop.files = self.files.clone();
        laptop
    }

    fn read(&mut self, root: &Node) -> Result<(), reader::Wrong> {
        if matches!(root.value, Yaml::Null) {
            return Ok(());
        }
        let known = ["version", "tools", "tokens", "config", "files", "forwards"];
        let table = At::root(root, &self.home).table(&known)?;
        let version = table.required("version", "write `version: 1` at the top")?;
        if version.whole()? != VERSION {
            return Err(version.wrong("the version is not known").hint("this program reads version 1"));
        }
        if let Some(tools) = table.optional("tools") {
            for (name, at) in tools.entries()? {
                let spec = tool(&name, &at)?;
                self.tools.insert(name, Arc::new(Tool::new(spec).map_err(|what| at.split(what))?));
            }
        }
        if let Some(tokens) = table.optional("tokens") {
            self.tokens = tokens.entries()?.iter().map(|(name, at)| token(name, at)).collect::<Result<_, _>>()?;
        }
        if let Some(config) = table.optional("config") {
            self.values = values(&config.table(&["values", "files"])?)?;
        }
        if let Some(files) = table.optional("files") {
            self.files = files.items()?.iter().map(file).collect::<Result<_, _>>()?;
        }
        if let Some(forwards) = table.optional("forwards") {
            let table = forwards.table(&["local", "remote", "dynamic"])?;
            let texts = |key| table.optional(key).map_or(Ok(Vec::new()), |at| at.texts());
            self.forwards = Forwards { local: texts("local")?, remote: texts("remote")?, dynamic: texts("dynamic")? };
        }
        Ok(())
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("path", &self.path).field("tools", &self.tools).finish_non_exhaustive()
    }
}

/// Refuses a file that others can write: whoever writes it runs programs on this laptop.
fn own(path: &Path) -> Result<(), (String, String)> {
    let readable = |e: std::io::Error| (format!("it cannot be read: {e}"), String::new());
    let file = std::fs::metadata(path).map_err(readable)?;
    let name = path.display();
    let us = rustix::process::geteuid().as_raw();
    if file.uid() != us && file.uid() != 0 {
        return Err(("it belongs to another user, who could declare tools".into(), format!("chown it: {name}")));
    }
    if file.permissions().mode() & 0o022 != 0 {
        return Err(("other users can write it, and could declare tools".into(), format!("chmod go-w {name}")));
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = std::fs::metadata(parent).map_err(readable)?;
    let mode = directory.permissions().mode();
    if mode & 0o002 != 0 && mode & 0o1000 == 0 {
        let hint = format!("chmod o-w {}", parent.display());
        return Err(("every user can replace it, because its directory is open to all".into(), hint));
    }
    Ok(())
}

type Read<T> = Result<T, reader::Wrong>;

fn tool(name: &str, at: &At<'_>) -> Read<ToolSpec> {
    let table =
        at.table(&["description", "argv", "schema", "cwd", "env", "inherit_env", "timeout", "max_output", "stdin"])?;
    let argv = table.required("argv", "write `argv: [program, argument]`")?;
    let mut texts = argv.texts()?;
    if let Some(program) = texts.first_mut().filter(|p| p.starts_with('~') || p.starts_with('$')) {
        *program = argv.expand(program)?.to_string_lossy().into_owned();
    }
    let mut spec = ToolSpec::new(name, texts);
    if let Some(at) = table.optional("schema") {
        spec.schema = at.node.to_json();
    }
    for (key, at) in table.optional("env").map_or(Ok(Vec::new()), |at| at.entries())? {
        if key.is_empty() || key.contains(['=', '\0']) {
            return Err(at.wrong("this is not the name of an environment variable"));
        }
        spec.env.insert(key, Secret::new(at.text()?));
    }
    spec.description = table.optional("description").map_or(Ok(String::new()), |at| at.text())?;
    spec.cwd = table.optional("cwd").map(|at| at.path()).transpose()?;
    spec.inherit_env = table.optional("inherit_env").map_or(Ok(Vec::new()), |at| at.texts())?;
    spec.timeout = duration(&table, "timeout", DEFAULT_TIMEOUT)?;
    spec.max_output = table.optional("max_output").map_or(Ok(DEFAULT_MAX_OUTPUT), |at| at.size())?;
    spec.stdin = table.optional("stdin").map_or(Ok(false), |at| at.flag())?;
    Ok(spec)
}

fn duration(table: &Table<'_>, key: &str, default: Duration) -> Read<Duration> {
    let Some(at) = table.optional(key) else { return Ok(default) };
    let duration = at.duration()?;
    if duration.is_zero() || duration > MAX_DURATION {
        return Err(at.wrong("the time must be more than nothing and at most a day"));
    }
    Ok(duration)
}

fn token(name: &str, at: &At<'_>) -> Read<TokenSpec> {
    const SOURCES: [&str; 4] = ["env", "file", "command", "keychain"];
    let table = at.table(&["env", "file", "command", "keychain", "timeout", "lifetime", "expose"])?;
    let given: Vec<_> = SOURCES.into_iter().filter_map(|s| Some((s, table.optional(s)?))).collect();
    let [(kind, source)] = &given[..] else {
        return Err(at.wrong(format!("token `{name}` needs one source")).hint("one of: env, file, command, keychain"));
    };
    if let Some(at) = table.optional("timeout").filter(|_| *kind != "command") {
        return Err(at.wrong("only a `command` has a `timeout`"));
    }
    let source = match *kind {
        "env" => TokenSource::Env(source.text()?),
        "file" => TokenSource::File(source.path()?),
        "command" => {
            let mut argv = source.texts()?;
            let Some(program) = argv.first_mut() else {
                return Err(source.wrong("the command is empty").hint("write `command: [program, argument]`"));
            };
            if program.starts_with('~') || program.starts_with('$') {
                *program = source.expand(program)?.to_string_lossy().into_owned();
            }
            TokenSource::Command { argv, timeout: duration(&table, "timeout", DEFAULT_COMMAND_TIMEOUT)? }
        }
        _ => {
            let inner = source.table(&["service", "account"])?;
            let hint = "write `keychain: {service: …, account: …}`";
            TokenSource::Keychain {
                service: inner.required("service", hint)?.text()?,
                account: inner.required("account", hint)?.text()?,
            }
        }
    };
    Ok(TokenSpec {
        service: name.to_owned(),
        source,
        lifetime: duration(&table, "lifetime", DEFAULT_LIFETIME)?,
        expose: table.optional("expose").map_or(Ok(false), |at| at.flag())?,
    })
}

fn values(table: &Table<'_>) -> Read<BTreeMap<String, ConfigEntry>> {
    let mut entries = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let all = [("values", table.optional("values")), ("files", table.optional("files"))];
    for (section, at) in all.into_iter().filter_map(|(section, at)| Some((section, at?))) {
        for (key, at) in at.entries()? {
            if key.is_empty() || !seen.insert(key.clone()) {
                return Err(at.wrong(format!("`{key}` is empty, or is both a value and a file")));
            }
            let entry = if section == "files" {
                ConfigEntry::File(config_file(&at)?)
            } else {
                ConfigEntry::Value(at.node.to_json())
            };
            entries.insert(key, entry);
        }
    }
    Ok(entries)
}

fn config_file(at: &At<'_>) -> Read<ConfigFile> {
    let table = at.table(&["path", "format", "mask", "mask_defaults"])?;
    let path = table.required("path", "write `path: ~/…`")?.path()?;
    let format = match table.optional("format") {
        Some(at) => match at.text()?.as_str() {
            "json" => Format::Json,
            "yaml" => Format::Yaml,
            "text" => Format::Text,
            other => return Err(at.wrong(format!("format `{other}` is not known")).hint("json, yaml or text")),
        },
        None => match path.extension().and_then(|e| e.to_str()) {
            Some("json") => Format::Json,
            Some("yaml" | "yml") => Format::Yaml,
            _ => Format::Text,
        },
    };
    let mut mask = Vec::new();
    if let Some(at) = table.optional("mask") {
        if format == Format::Text {
            return Err(at
                .wrong("a text has no places to mask")
                .hint("leave `mask` out; lines are masked by their key"));
        }
        for at in at.items()? {
            mask.push(Pattern::parse(&at.text()?).map_err(|what| at.split(what))?);
        }
    }
    let mask_defaults = table.optional("mask_defaults").map_or(Ok(true), |at| at.flag())?;
    Ok(ConfigFile { path, format, mask, mask_defaults })
}

fn file(at: &At<'_>) -> Read<FileRoot> {
    if matches!(at.node.value, Yaml::Text(_)) {
        return Ok(FileRoot { path: at.path()?, max_size: DEFAULT_MAX_SIZE });
    }
    let table = at.table(&["path", "max_size"])?;
    let path = table.required("path", "write `path: ~/…`")?.path()?;
    let max_size = table.optional("max_size").map_or(Ok(DEFAULT_MAX_SIZE), |at| at.size())?;
    Ok(FileRoot { path, max_size })
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
