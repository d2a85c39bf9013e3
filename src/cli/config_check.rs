//! `nexus-proxy config check`: says what a configuration declares, or that there is none.

use std::path::Path;

use serde_json::json;

use super::failure::Failure;
use super::home::Home;
use super::output::{Output, count};
use super::proxy::{configured, load};

/// Checks the file that was named, which must be there, or the one at the usual place.
pub fn check(named: Option<&Path>, output: Output) -> Result<u8, Failure> {
    let config = load(named, &Home::find()?)?;
    let forwards = configured(&config)?.len();
    let path = &config.path;
    let exists = path.exists();
    let declared = config.declared();
    let tools: Vec<_> = declared.tools.keys().collect();
    let tokens: Vec<_> = declared.tokens.keys().collect();
    let (config_files, values): (Vec<_>, Vec<_>) = declared.config.keys().partition(|key| declared.config.is_file(key));
    let files = declared.files.len();
    let text = if exists {
        format!(
            "{} is in order: {}, {}, {}, {}, {files} {}, {}",
            path.display(),
            count(tools.len(), "tool"),
            count(tokens.len(), "token"),
            count(values.len(), "value"),
            count(config_files.len(), "configuration file"),
            if files == 1 { "file or directory" } else { "files or directories" },
            count(forwards, "forward"),
        )
    } else {
        format!("there is no configuration at {}: nothing is declared, and workspaces get nothing", path.display())
    };
    let json = json!({
        "path": path, "exists": exists, "tools": tools, "tokens": tokens, "values": values,
        "config_files": config_files, "files": files, "forwards": forwards,
    });
    output.plain(&text, &json);
    Ok(0)
}
