//! The coordinator: who belongs to it, and how they get their certificates. It decides and remembers;
//! it never sees what a session carries.

pub mod api;
pub mod authority;
pub mod authority_store;
pub mod balancer;
pub mod drain;
pub mod files;
pub mod membership;
mod newcomers;
pub mod own;
pub mod public_url;
mod rate;
pub mod registry;
pub mod rendezvous;
mod replays;
pub mod rotation;
mod rules;
pub mod server;
pub mod store;
mod stream;
mod upgrade;

pub use registry::Registry;
pub use store::Store;
