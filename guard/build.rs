//! Puts the kernel programs, built by `cargo xtask build`, where the crate embeds them.

use std::{env, fs, io, path::Path};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=GUARD_EBPF_OBJECT");
    let out_dir = env::var("OUT_DIR").map_err(io::Error::other)?;
    let embedded = Path::new(&out_dir).join("guard-ebpf");
    match env::var_os("GUARD_EBPF_OBJECT") {
        Some(object) => {
            println!("cargo::rerun-if-changed={}", Path::new(&object).display());
            fs::copy(object, embedded).map(|_| ())
        }
        // Checks, lints and the tests of pure code need no BPF compiler.
        None => fs::write(embedded, b""),
    }
}
