//! The workspace's program: parks connections at the coordinator, serves the sessions of the laptops that it was
//! created for, and gives the programs of the workspace a socket to call their laptop through.

pub mod devices;
pub mod direct;
pub mod gateway;
pub mod laptops;
pub mod orphans;
pub mod run;
pub mod session;
pub mod state;
