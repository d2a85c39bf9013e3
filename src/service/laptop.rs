//! Everything the laptop's owner has declared, and the way a call finds its part of it.
//!
//! Refuses what is not declared, with the lines that would declare it: the owner decides, the sentence only says how.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::service::call::output::Output;
use crate::service::config_value::ConfigValues;
use crate::service::file::{self, FileRoot, ReadRequest};
use crate::service::keychain::Keychain;
use crate::service::token::Token;
use crate::service::tool::Tool;
use crate::wire::call::Request;
use crate::wire::limits::MAX_CALLS;
use crate::wire::name::WorkspaceName;
use crate::wire::{Refusal, RefusalCode};

/// Tools that run at a time. Each is a process, or many, on a machine that its owner works on.
pub const MAX_TOOLS: usize = 32;

/// What is declared. Empty, it refuses every call.
pub struct Laptop {
    /// Tools by name.
    pub tools: BTreeMap<String, Arc<Tool>>,
    /// Tokens by service.
    pub tokens: BTreeMap<String, Arc<Token>>,
    /// Values and files for `config.get`.
    pub config: ConfigValues,
    /// Files and directories for `file.read`.
    pub files: Vec<FileRoot>,
    /// The owner's home directory: what `~` stands for.
    pub home: PathBuf,
    /// The configuration file, as sentences name it.
    pub config_path: String,
    /// Where tokens of kind keychain are.
    pub keychain: Keychain,
    permits: Mutex<BTreeMap<WorkspaceName, Arc<Semaphore>>>,
    running: Semaphore,
}

#[derive(Deserialize)]
struct ExecuteParams {
    name: String,
    #[serde(default)]
    arguments: Value,
    #[serde(default)]
    stdin: Option<String>,
}

#[derive(Deserialize)]
struct TokenParams {
    service: String,
}

#[derive(Deserialize, Default)]
struct ConfigParams {
    #[serde(default)]
    key: String,
}

impl Laptop {
    /// A laptop with nothing declared.
    pub fn new(home: &Path, config_path: impl Into<String>, keychain: Keychain) -> Laptop {
        Laptop {
            tools: BTreeMap::new(),
            tokens: BTreeMap::new(),
            config: ConfigValues::default(),
            files: Vec::new(),
            home: home.to_owned(),
            config_path: config_path.into(),
            keychain,
            permits: Mutex::default(),
            running: Semaphore::new(MAX_TOOLS),
        }
    }

    /// Room for one more call of this workspace, held until dropped.
    ///
    /// # Errors
    /// `Busy` while [`MAX_CALLS`] of its calls are running.
    pub fn permit(&self, workspace: &WorkspaceName) -> Result<OwnedSemaphorePermit, Refusal> {
        let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        let permits = permits.entry(workspace.clone()).or_insert_with(|| Arc::new(Semaphore::new(MAX_CALLS)));
        Arc::clone(permits).try_acquire_owned().map_err(|_| {
            let message = format!("{MAX_CALLS} calls of this workspace are running already. hint: try again later");
            Refusal::new(RefusalCode::Busy, message)
        })
    }

    /// Serves one request. What it streams goes to `output`.
    pub async fn dispatch(&self, request: Request, output: Output) -> Result<Value, Refusal> {
        match request.method.as_str() {
            "tool.list" => Ok(json!({"tools": self.tools.values().map(|t| t.describe()).collect::<Vec<_>>()})),
            "tool.execute" => {
                let call: ExecuteParams = params(request.params)?;
                let tool = self.tools.get(&call.name).ok_or_else(|| {
                    let lines = format!("tools:\n  {:?}:\n    argv: [\"program\", \"argument\"]", call.name);
                    self.not_declared("tool", &call.name, &lines, "`tool.list` shows what there is; ")
                })?;
                let _running = self.running.try_acquire().map_err(|_| {
                    let message = format!("{MAX_TOOLS} tools are running already. hint: wait for some to finish");
                    Refusal::new(RefusalCode::Busy, message)
                })?;
                tool.execute(call.arguments, call.stdin, &self.home, &output).await
            }
            "config.get" => {
                let asked: ConfigParams =
                    if request.params.is_null() { <_>::default() } else { params(request.params)? };
                until_cancelled(&output, self.config.answer(&asked.key, &self.config_path)).await
            }
            "auth.getToken" => {
                let asked: TokenParams = params(request.params)?;
                let token = self.tokens.get(&asked.service).ok_or_else(|| {
                    let lines = format!("tokens:\n  {:?}:\n    env: NAME_OF_VARIABLE\n    expose: true", asked.service);
                    self.not_declared("token", &asked.service, &lines, "")
                })?;
                until_cancelled(&output, token.answer(&self.keychain, &self.config_path)).await
            }
            "file.read" => {
                let asked: ReadRequest = params(request.params)?;
                file::read(&self.files, &self.home, &self.config_path, asked, output).await
            }
            other => {
                let methods = crate::wire::call::METHODS.join(", ");
                let message = format!("there is no method {other:?}. hint: there are {methods}");
                Err(Refusal::new(RefusalCode::Unsupported, message))
            }
        }
    }

    fn not_declared(&self, kind: &str, name: &str, lines: &str, first: &str) -> Refusal {
        let message = format!(
            "no {kind} {name:?} is declared on the laptop. hint: {first}its owner can add it to {}:\n{lines}",
            self.config_path
        );
        Refusal::new(RefusalCode::NotDeclared, message)
    }
}

/// What a request is about, for the audit log.
pub fn resource(request: &Request) -> &str {
    let field = match request.method.as_str() {
        "tool.execute" => "name",
        "config.get" => "key",
        "auth.getToken" => "service",
        "file.read" => "path",
        _ => return "",
    };
    request.params.get(field).and_then(Value::as_str).unwrap_or("")
}

fn params<T: DeserializeOwned>(params: Value) -> Result<T, Refusal> {
    serde_json::from_value(params).map_err(|e| {
        let what: String = e.to_string().chars().take(200).collect();
        Refusal::new(RefusalCode::InvalidArguments, format!("the params do not fit the method: {what}"))
    })
}

async fn until_cancelled(
    output: &Output,
    work: impl Future<Output = Result<Value, Refusal>>,
) -> Result<Value, Refusal> {
    tokio::select! {
        outcome = work => outcome,
        () = output.cancelled() => Err(crate::service::call::output::cancelled()),
    }
}
