//! The laptop: what its owner has declared, and nothing else, is open to a workspace.

pub mod config;
