//! A session: mutual TLS and a multiplexer on a lifeline, and the frames that every stream in it is made of.
//!
//! Who is at the other end is settled here, before the first stream. What a stream does is not known here:
//! that is for `service`.

pub mod establish;
pub mod framed;
pub mod held;
pub mod mux;
pub mod opener;
pub mod way;
