//! The program `mesh-controller`: the library of the same name, and its allocator.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    mesh_controller::main(std::env::args_os())
}
