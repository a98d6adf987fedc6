//! Every one of them, under a name by which they are left out where there is no cluster.

mod away;
mod chart;
mod guide;
mod memory;
mod mesh;
mod plain;
mod start;
mod wire;
