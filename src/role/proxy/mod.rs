//! The laptop's program: keeps the tunnel to a workspace up, forwards ports over it, and serves the workspace's calls
//! from what its owner declared.

pub mod attempt;
pub mod climb;
pub mod config;
pub mod control;
pub mod daemon;
pub mod direct;
pub mod earlier;
pub mod forwards;
pub mod life;
pub mod mend;
pub mod ports;
pub mod profile;
pub mod tunnel;
pub mod tunnel_opener;
pub mod tunnel_state;
