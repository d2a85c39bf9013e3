//! The workspace's program: parks connections at the coordinator, serves the sessions of the laptops that it was
//! created for, and gives the programs of the workspace a socket to call their laptop through. It hands over to another
//! process of the workspace and breaks nothing.

pub mod call;
pub mod devices;
pub mod direct;
pub mod earlier;
pub mod gateway;
pub mod hand_over;
pub mod laptops;
pub mod link;
pub mod local;
pub mod orphans;
pub mod run;
pub mod session;
pub mod sessions;
pub mod state;
pub mod status;
