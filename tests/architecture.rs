//! Holds the source to the layers that `src/lib.rs` and `ARCHITECTURE.md` describe.
//!
//! Reads text, not types: comments and literals are blanked, what is left is cut into tokens, and paths that begin at
//! `crate`, `nexus_proxy`, `self` or `super` are resolved to the module they name. Knows nothing of macros or of
//! re-exports; the rules are meant to catch drift, not malice.

use std::fs;
use std::path::{Path, PathBuf};

/// The layers with their height. A file may name modules of its own height and below.
const LAYERS: [(&str, u8); 9] = [
    ("wire", 0),
    ("identity", 0),
    ("transport", 1),
    ("lifeline", 2),
    ("session", 3),
    ("service", 4),
    ("role", 5),
    ("cli", 6),
    ("bin", 7),
];

/// Programs that never import each other; `cli` composes them.
const ROLES: [&str; 3] = ["proxy", "stub", "coordinator"];

/// Most lines of a file before its tests. A longer one has a second duty that wants a room of its own.
const MAX_LINES: usize = 500;

/// The one file that may name the other multiplexer, which ours is tested against.
const MUX: &str = "src/session/mux/interop_tests.rs";

/// Files that may call `tokio::spawn` outside their tests, each with the reason why no `JoinSet` or `TaskTracker` owns the task.
const BARE_SPAWN: [(&str, &str); 0] = [];

/// What `wire` does not touch: no runtime, no socket, no clock, no file. Sequences of tokens.
const NOT_IN_WIRE: [&[&str]; 14] = [
    &["tokio"],
    &["tokio_util"],
    &["tokio_tungstenite"],
    &["TcpStream"],
    &["TcpListener"],
    &["UdpSocket"],
    &["UnixStream"],
    &["UnixListener"],
    &["UnixDatagram"],
    &["Instant"],
    &["SystemTime", "::", "now"],
    &["now_utc"],
    &["std", "::", "fs"],
    &["std", "::", "env"],
];

/// Rooms that decide: times come in, and nothing goes out but what is returned. A simulation runs them with a clock of its own.
const PURE: [&str; 8] = [
    "src/lifeline/core/",
    "src/lifeline/path/",
    "src/lifeline/replay.rs",
    "src/lifeline/key.rs",
    "src/role/backoff.rs",
    "src/role/proxy/climb.rs",
    "src/session/mux/schedule.rs",
    "src/session/mux/window.rs",
];

/// What they do not touch.
const NOT_IN_PURE: [&[&str]; 6] = [
    &["tokio"],
    &["Instant", "::", "now"],
    &["SystemTime", "::", "now"],
    &["now_utc"],
    &["std", "::", "fs"],
    &["std", "::", "env"],
];

#[test]
fn the_source_keeps_to_the_architecture() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&root.join("src"), &mut files);
    files.sort();
    assert!(files.len() > 10, "found only {} source files below {}", files.len(), root.display());
    let mut faults = Vec::new();
    for file in files {
        let name = file.strip_prefix(root).expect("below the root").to_string_lossy().replace('\\', "/");
        let source = fs::read_to_string(&file).expect("source is readable text");
        faults.extend(check(&name, &source));
    }
    for (name, reason) in BARE_SPAWN {
        assert!(!reason.is_empty(), "{name} is on the list of bare spawns without a reason");
        let source = fs::read_to_string(root.join(name)).unwrap_or_default();
        if !spawns(&tokens(&code_only(before_tests(&source)))) {
            faults.push(format!("{name}: on the list of bare spawns, but has none"));
        }
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the source") {
        let path = entry.expect("an entry of the source").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// Every fault of one file, each a line that says what to do.
fn check(file: &str, source: &str) -> Vec<String> {
    let code = code_only(source);
    let all = tokens(&code);
    let proper = if is_tests(file) { "" } else { before_tests(source) };
    let body = tokens(&code_only(proper));
    let module = module_of(file);
    let mut faults = Vec::new();
    // Of a binary the compiler asks for it (`missing_docs`).
    if !file.starts_with("src/bin/") && !source.starts_with("//!") {
        faults.push(format!("{file}: open with `//!`: what this module does, and what it refuses to do"));
    }
    let lines = proper.lines().count();
    if lines > MAX_LINES {
        faults.push(format!("{file}: {lines} lines before its tests; at most {MAX_LINES}. Look for the second duty"));
    }
    if file != MUX && all.iter().any(|t| t == "yamux") {
        faults.push(format!("{file}: names `yamux`; only {MUX} may"));
    }
    if module.first().is_some_and(|m| m == "wire") {
        for banned in NOT_IN_WIRE {
            if all.windows(banned.len()).any(|w| w == banned) {
                faults.push(format!("{file}: `{}` in wire, which has no runtime, I/O or clock", banned.concat()));
            }
        }
    }
    if PURE.iter().any(|room| file.starts_with(room)) {
        for banned in NOT_IN_PURE {
            if body.windows(banned.len()).any(|w| w == banned) {
                faults.push(format!("{file}: `{}` where only decisions are made; times come in", banned.concat()));
            }
        }
    }
    if !BARE_SPAWN.iter().any(|(name, _)| *name == file) && spawns(&body) {
        faults.push(format!("{file}: bare `tokio::spawn`; use a JoinSet or TaskTracker that a shutdown waits for"));
    }
    if file != "src/lib.rs" {
        faults.extend(paths(&module, &all).iter().filter_map(|path| misplaced(file, &module, path)));
    }
    faults
}

/// Why a file of `module` may not name `path`, when it may not.
fn misplaced(file: &str, module: &[String], path: &[String]) -> Option<String> {
    let height = |name: &str| LAYERS.iter().find(|(layer, _)| *layer == name).map(|(_, height)| *height);
    let named = path.first()?;
    let own = module.first().map_or("", String::as_str);
    let spelled = path.join("::");
    let Some(own_height) = height(own) else {
        return Some(format!("{file}: `{own}` has no layer; give it one in tests/architecture.rs"));
    };
    let Some(named_height) = height(named) else {
        return Some(format!("{file}: names `{spelled}`, which belongs to no layer"));
    };
    if own == "bin" && named != "cli" && named != "bin" {
        return Some(format!("{file}: names `{spelled}`; a binary may name only `cli`"));
    }
    if named_height > own_height || (own == "wire" && named == "identity") {
        return Some(format!("{file}: `{own}` names `{spelled}`; imports point down only"));
    }
    if own == "role" && named == "role" {
        let role = path.get(1)?.as_str();
        if ROLES.contains(&role) && module.get(1).map(String::as_str) != Some(role) {
            return Some(format!("{file}: names `{spelled}`; roles never import each other"));
        }
    }
    None
}

/// `src/role/proxy/run.rs` is `role::proxy::run`; `mod.rs` is its folder; a binary is below `bin`.
fn module_of(file: &str) -> Vec<String> {
    let inner = file.trim_start_matches("src/").trim_end_matches(".rs");
    let mut module: Vec<String> = inner.split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|m| m == "mod" || m == "lib") {
        module.pop();
    }
    module
}

/// Files that are tests as a whole, by their name; the module that declares them has the `#[cfg(test)]`.
fn is_tests(file: &str) -> bool {
    file.ends_with("_tests.rs") || file.ends_with("/tests.rs") || file.ends_with("/testing.rs")
}

/// The source before its `mod tests`, which stands last.
fn before_tests(source: &str) -> &str {
    let tests = |text: &str| text.lines().skip(1).find(|line| !line.starts_with("#[")).is_some_and(is_test_module);
    let start = source.match_indices("#[cfg(test)]\n").find(|(at, _)| tests(&source[*at..]));
    start.map_or(source, |(at, _)| &source[..at])
}

fn is_test_module(line: &str) -> bool {
    line.starts_with("mod tests {") || line.starts_with("mod tests;")
}

fn spawns(tokens: &[String]) -> bool {
    tokens.windows(3).any(|w| w == ["tokio", "::", "spawn"])
        || tokens.windows(5).any(|w| w == ["tokio", "::", "task", "::", "spawn"])
}

/// Every path of this crate that the tokens name, from the crate's root.
fn paths(module: &[String], tokens: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    // The inline modules around the cursor, each with the depth of braces it began at.
    let mut inline: Vec<(usize, String)> = Vec::new();
    let mut depth = 0;
    let mut i = 0;
    while i < tokens.len() {
        let follows = |text: &str| tokens.get(i + 1).is_some_and(|t| t == text);
        match tokens[i].as_str() {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inline.retain(|(at, _)| *at < depth + 1);
            }
            "mod" if tokens.get(i + 2).is_some_and(|t| t == "{") => inline.push((depth + 1, tokens[i + 1].clone())),
            "crate" | "nexus_proxy" if follows("::") => i = names(tokens, i + 2, Vec::new(), &mut found) - 1,
            "self" | "super" if follows("::") => {
                let mut base: Vec<String> = module.to_vec();
                base.extend(inline.iter().map(|(_, name)| name.clone()));
                while tokens.get(i + 1).is_some_and(|t| t == "::") && matches!(tokens[i].as_str(), "self" | "super") {
                    if tokens[i] == "super" {
                        base.pop();
                    }
                    i += 2;
                }
                i = names(tokens, i, base, &mut found) - 1;
            }
            _ => {}
        }
        i += 1;
    }
    found
}

/// Reads `a::b`, `a::{b, c::d}` or `*` from `i` on; adds each full path; says where it ends.
fn names(tokens: &[String], mut i: usize, mut base: Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    loop {
        match tokens.get(i).map(String::as_str) {
            Some("{") => {
                i += 1;
                while tokens.get(i).is_some_and(|t| t != "}") {
                    if tokens[i] == "," {
                        i += 1;
                    } else {
                        i = names(tokens, i, base.clone(), found).max(i + 1);
                    }
                }
                return i + 1;
            }
            Some(name) if is_word(name) => {
                if name != "self" {
                    base.push(name.to_owned());
                }
                i += 1;
                if tokens.get(i).is_none_or(|t| t != "::") {
                    found.push(base);
                    if tokens.get(i).is_some_and(|t| t == "as") {
                        i += 2;
                    }
                    return i;
                }
                i += 1;
            }
            // A glob, a turbofish, the end of the text: what was named so far is what is named.
            _ => {
                found.push(base);
                return i + usize::from(tokens.get(i).is_some_and(|t| t == "*"));
            }
        }
    }
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Words, `::`, and every other sign by itself.
fn tokens(code: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let len = if first.is_alphanumeric() || first == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        tokens.push(rest[..len].to_owned());
        rest = rest[len..].trim_start();
    }
    tokens
}

/// The source with comments and literals of text left out.
fn code_only(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    let mut after_word = false;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if first == '"' {
            quoted(rest)
        } else if !after_word && (rest.starts_with("r\"") || rest.starts_with("r#")) {
            raw_string(rest)
        } else if !after_word && (rest.starts_with("br\"") || rest.starts_with("br#")) {
            1 + raw_string(&rest[1..])
        } else if first == '\'' {
            character(rest)
        } else {
            0
        };
        let taken = if skipped > 0 {
            code.push(' ');
            skipped
        } else {
            code.push(first);
            first.len_utf8()
        };
        after_word = skipped == 0 && (first.is_alphanumeric() || first == '_');
        rest = &rest[taken..];
    }
    code
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut i) = (0, 0);
    while i < text.len() {
        if text[i..].starts_with("/*") {
            depth += 1;
            i += 2;
        } else if text[i..].starts_with("*/") {
            depth -= 1;
            i += 2;
            if depth == 0 {
                return i;
            }
        } else {
            i += text[i..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return i + 1,
            _ => {}
        }
    }
    text.len()
}

/// Of `r"…"` and `r#"…"#`; 0 for a raw identifier such as `r#type`.
fn raw_string(text: &str) -> usize {
    let hashes = text[1..].len() - text[1..].trim_start_matches('#').len();
    if !text[1 + hashes..].starts_with('"') {
        return 0;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    let body = 1 + hashes + 1;
    text[body..].find(&close).map_or(text.len(), |at| body + at + close.len())
}

/// Of `'x'` and `'\n'`; 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), _) => text[3..].find('\'').map_or(0, |at| 3 + at + 1),
        (Some(_), Some((i, '\''))) => i + 1,
        _ => 0,
    }
}

mod on_made_up_sources {
    //! The checker itself: that it sees what it should see, and nothing else.

    use super::{MAX_LINES, check, code_only};

    fn faults(file: &str, body: &str) -> Vec<String> {
        check(file, &format!("//! Made up.\n{body}"))
    }

    #[track_caller]
    fn fails(file: &str, body: &str, because: &str) {
        let faults = faults(file, body);
        assert!(faults.iter().any(|f| f.contains(because)), "{file}: {body}\ngave {faults:?}");
    }

    #[track_caller]
    fn passes(file: &str, body: &str) {
        assert_eq!(faults(file, body), Vec::<String>::new(), "{file}: {body}");
    }

    #[test]
    fn imports_point_down() {
        passes("src/session/tls.rs", "use crate::wire::limits; use crate::identity::pin::Pin; use super::framed;");
        passes("src/service/mod.rs", "use crate::{session::{self, framed::Frame}, wire::*};");
        fails("src/wire/open.rs", "use crate::session::framed::Frame;", "`wire` names `session::framed::Frame`");
        fails("src/wire/open.rs", "use crate::identity::Pin;", "point down only");
        passes("src/identity/pin.rs", "use crate::wire::name::DeviceName;");
        fails("src/transport/dial.rs", "fn f() { crate::cli::say() }", "`cli::say`");
        fails("src/transport/dial.rs", "use crate::{wire::limits, service::{forward as f, rpc}};", "`service::rpc`");
        fails("src/transport/dial.rs", "use crate::{service::{forward as f, rpc}};", "`service::forward`");
        fails("src/lifeline/mod.rs", "use super::session::mux;", "point down only");
        fails("src/lifeline/buffer.rs", "use super::super::role::proxy;", "point down only");
        fails("src/lifeline/buffer.rs", "use crate::helpers::x;", "belongs to no layer");
        fails("src/helpers.rs", "use crate::wire::x;", "has no layer");
        fails("src/session/mux/mod.rs", "macro_rules! m { () => { $crate::service::x() } }", "`service::x`");
    }

    #[test]
    fn modules_inside_a_file_count_for_super() {
        passes(
            "src/wire/frame.rs",
            "mod tests { use super::super::limits; use super::*; fn f() {} } use super::limits;",
        );
        fails("src/wire/frame.rs", "mod tests { use super::super::super::cli::x; }", "point down only");
        fails("src/wire/frame.rs", "mod tests { fn f() { {} } } use super::super::cli::x;", "point down only");
    }

    #[test]
    fn roles_do_not_know_each_other() {
        passes("src/role/stub/run.rs", "use crate::role::stub::x; use super::control; use crate::service::rpc;");
        fails("src/role/stub/run.rs", "use crate::role::proxy::x;", "roles never import each other");
        fails("src/role/stub/run.rs", "use super::super::coordinator::store;", "roles never import each other");
        fails("src/role/mod.rs", "pub use self::proxy::Thing;", "roles never import each other");
        passes("src/cli/up.rs", "use crate::role::{coordinator, proxy, stub};");
    }

    #[test]
    fn binaries_only_name_the_cli() {
        passes("src/bin/nexus-stub.rs", "fn main() -> std::process::ExitCode { nexus_proxy::cli::stub::main() }");
        fails("src/bin/nexus-stub.rs", "use nexus_proxy::role::stub;", "only `cli`");
        fails("src/bin/nexus-stub.rs", "use nexus_proxy::wire;", "only `cli`");
    }

    #[test]
    fn modules_say_what_they_are() {
        assert_eq!(check("src/wire/x.rs", "use super::limits;").len(), 1);
        assert!(check("src/bin/x.rs", "fn main() {}").is_empty());
    }

    #[test]
    fn crates_stay_where_they_belong() {
        passes("src/session/mux/interop_tests.rs", "use yamux::Connection;");
        passes("src/session/tls.rs", "/// Below `yamux`.\nconst A: &str = \"yamux\";");
        fails("src/session/tls.rs", "use yamux::Connection;", "names `yamux`");
        fails("src/wire/x.rs", "async fn f() { tokio::time::sleep(d).await }", "`tokio` in wire");
        fails("src/wire/x.rs", "use std::net::{IpAddr, TcpStream};", "`TcpStream` in wire");
        fails("src/wire/x.rs", "use std::time::Instant;", "`Instant` in wire");
        fails("src/wire/x.rs", "fn f() { SystemTime::now(); }", "`SystemTime::now` in wire");
        passes("src/wire/x.rs", "use std::net::IpAddr; use std::time::Duration;");
    }

    #[test]
    fn long_files_are_seen() {
        let line = "const A: u8 = 0;\n";
        passes("src/wire/x.rs", &line.repeat(MAX_LINES - 1));
        fails("src/wire/x.rs", &line.repeat(MAX_LINES), "second duty");
        let tests = format!("{}#[cfg(test)]\nmod tests {{\n{}}}", line.repeat(10), line.repeat(MAX_LINES));
        passes("src/wire/x.rs", &tests);
        passes("src/wire/x_tests.rs", &line.repeat(MAX_LINES));
        let elsewhere = format!("{}#[cfg(test)]\n#[path = \"x_tests.rs\"]\nmod tests;", line.repeat(MAX_LINES - 1));
        passes("src/wire/x.rs", &elsewhere);
        let hidden = format!("#[cfg(test)]\nmod testing;\n{}", line.repeat(MAX_LINES));
        fails("src/wire/x.rs", &hidden, "second duty");
    }

    #[test]
    fn tasks_have_owners() {
        fails("src/cli/up.rs", "fn f() { tokio::spawn(async {}); }", "bare `tokio::spawn`");
        fails("src/cli/up.rs", "use tokio::task::spawn;", "bare `tokio::spawn`");
        passes("src/cli/up.rs", "fn f() { set.spawn(async {}); tokio::task::spawn_blocking(g); }");
        passes("src/cli/up.rs", "#[cfg(test)]\nmod tests { fn f() { tokio::spawn(async {}); } }");
        let clock = "fn f() { let now = Instant::now(); }";
        fails("src/lifeline/core/x.rs", clock, "only decisions are made");
        passes("src/lifeline/x.rs", clock);
        passes("src/lifeline/core/x.rs", &format!("#[cfg(test)]\nmod tests {{ {clock} }}"));
    }

    #[test]
    fn text_is_not_code() {
        let source = r####"a /* x /* y */ z */ b // c
            "d \" e" 'f' '\'' '"' r#"g " h"# br"i" &'life j r#type b"k""####;
        let kept: String = code_only(source).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(kept, "a b &'life j r#type b");
    }
}
