//! `nexus-proxy config check`: says what a configuration declares, or that there is none.

use std::path::Path;

use serde_json::json;

use super::failure::Failure;
use super::home::Home;
use super::output::Output;
use super::proxy::{configured, load};

/// Checks the file that was named, which must be there, or the one at the usual place.
pub fn check(named: Option<&Path>, output: Output) -> Result<u8, Failure> {
    let config = load(named, &Home::find()?)?;
    configured(&config)?;
    let path = &config.path;
    let exists = path.exists();
    let declared = config.declared();
    let tools: Vec<_> = declared.tools.keys().collect();
    let tokens: Vec<_> = declared.tokens.keys().collect();
    let text = if exists {
        let (tools, tokens, files) = (tools.len(), tokens.len(), declared.files.len());
        format!("{} is in order: {tools} tools, {tokens} tokens, {files} files or directories", path.display())
    } else {
        format!("there is no configuration at {}: nothing is declared, and workspaces get nothing", path.display())
    };
    let files = declared.files.len();
    output.plain(&text, &json!({"path": path, "exists": exists, "tools": tools, "tokens": tokens, "files": files}));
    Ok(0)
}
