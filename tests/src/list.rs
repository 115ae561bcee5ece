//! Lists of prefixes as long as a file may hold.

use std::{fs, net::Ipv4Addr, path::Path};

use crate::lab::CLIENT;

/// The most that a file may hold.
pub const MILLION: usize = 1_000_000;

/// The networks of a million prefixes of a length, scattered over all of IPv4 but the client's network.
pub fn scattered(length: u32) -> impl Iterator<Item = Ipv4Addr> {
    // An odd factor leaves no two numbers the same below a power of two.
    let scattered = move |number: u32| number.wrapping_mul(0x9e37_79b1) << (32 - length);
    let network = u32::from(CLIENT.v4) >> 16;
    let apart = (0..).map(scattered).filter(move |address| address >> 16 != network);
    apart.map(Ipv4Addr::from).take(MILLION - 1)
}

/// Writes a file of them. It holds the client, too, and nobody else of its network.
#[track_caller]
pub fn write_million(path: &Path, length: u32) {
    let lines = scattered(length).map(|network| format!("{network}/{length}\n"));
    let text: String = lines.chain([format!("{}\n", CLIENT.v4)]).collect();
    fs::write(path, text)
        .unwrap_or_else(|error| panic!("{} can't be written: {error}", path.display()));
}
