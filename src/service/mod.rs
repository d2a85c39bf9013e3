//! One kind of stream each: what is asked for in an open frame is done here, on either end.
//!
//! A service knows frames and local sockets, processes or names; it does not know how its stream came to be, who is
//! at the other end, or what was permitted: that was settled before it is called.

pub mod copy;
pub mod dial;
pub mod forward;
pub mod forward_spec;
pub mod listen;
pub mod process;
pub mod process_run;
pub mod remote;
pub mod socks;
pub mod stats;
pub mod udp;
pub mod udp_address;
pub mod udp_associate;

#[cfg(test)]
mod testing;
