//! Services: what one kind of stream does once it is open.
//!
//! A service knows frames and its own rules. It does not know carriers, sessions or command lines, and it refuses
//! whatever was not declared or asked for on this side. Most of what serves calls exists on the laptop only.

pub mod call;
#[cfg(feature = "proxy")]
pub mod config_value;
#[cfg(feature = "proxy")]
pub mod file;
#[cfg(feature = "proxy")]
pub mod keychain;
#[cfg(feature = "proxy")]
pub mod laptop;
#[cfg(feature = "proxy")]
pub mod plain_file;
#[cfg(feature = "proxy")]
pub mod secret;
#[cfg(feature = "proxy")]
pub mod token;
#[cfg(feature = "proxy")]
pub mod tool;
#[cfg(feature = "proxy")]
pub mod yaml;
