//! One kind of stream each: what is asked for in an open frame is done here, on either end.
//!
//! A service knows frames and local sockets, processes or names; it does not know how its stream came to be, who is
//! at the other end, or what was permitted: that was settled before it is called.

pub mod call;
#[cfg(feature = "proxy")]
pub mod config_value;
pub mod copy;
pub mod dial;
#[cfg(feature = "proxy")]
pub mod file;
pub mod forward;
pub mod forward_spec;
#[cfg(feature = "proxy")]
pub mod keychain;
#[cfg(feature = "proxy")]
pub mod laptop;
pub mod listen;
#[cfg(feature = "proxy")]
pub mod plain_file;
pub mod process;
pub mod process_run;
pub mod remote;
#[cfg(feature = "proxy")]
pub mod secret;
pub mod socks;
pub mod stats;
pub mod term;
#[cfg(feature = "proxy")]
pub mod token;
#[cfg(feature = "proxy")]
pub mod tool;
pub mod udp;
pub mod udp_address;
pub mod udp_associate;
#[cfg(feature = "proxy")]
pub mod yaml;

#[cfg(test)]
mod testing;
