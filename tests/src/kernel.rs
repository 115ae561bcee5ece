//! What this kernel has. A test may leave itself out only where the kernel is older than what it needs.

use std::io::{Write, stderr};

/// The release of this kernel, as two numbers.
#[must_use]
pub fn release() -> (u32, u32) {
    let uname = rustix::system::uname();
    let text = uname.release().to_string_lossy().into_owned();
    parse(&text).unwrap_or_else(|| panic!("{text} is no kernel's release"))
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Kernel 6.6.
#[must_use]
pub fn has_tcx() -> bool {
    release() >= (6, 6)
}

/// Below 5.11 maps count as locked memory.
#[must_use]
pub fn counts_locked_memory() -> bool {
    release() < (5, 11)
}

/// Kernel 5.16 says how many instructions of a program it has verified.
#[must_use]
pub fn counts_verified_instructions() -> bool {
    release() >= (5, 16)
}

/// Says that a test leaves itself out. Not by `eprintln!`: what a passing test says that way is not shown.
pub fn skip(test: &str, missing: &str) {
    tell(&format!("skipped: {test}: {missing}"));
}

/// Says that a test leaves a part of itself out.
pub fn leave_out(part: &str, missing: &str) {
    tell(&format!("left out: {part}: {missing}"));
}

/// Says what was measured, in a test that passes too.
pub fn tell(line: &str) {
    // In one write, so that tests side by side don't mix their lines. That nobody reads it is no failure.
    let _ = stderr().write_all(format!("{line}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(parse("5.10.0-46-cloud-amd64"), Some((5, 10)));
        assert_eq!(parse("6.18"), Some((6, 18)));
        assert_eq!(parse("x"), None);
        assert!(parse("5.10").unwrap_or_default() < (5, 16));
    }
}
