//! The program `mesh-proxy`: the library of the same name, and the allocator that it is measured with.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    mesh_proxy::main(std::env::args_os())
}
