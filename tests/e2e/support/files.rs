//! Files that programs keep somewhere below a folder of theirs.

use std::path::{Path, PathBuf};

/// Every file below `folder`.
#[track_caller]
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// The file of this name below `folder`.
#[track_caller]
pub fn find_below(folder: &Path, name: &str) -> Option<PathBuf> {
    files_below(folder).into_iter().find(|path| path.ends_with(name))
}
