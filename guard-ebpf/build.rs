//! Nothing to build: xtask calls cargo for the BPF target.

fn main() {}
