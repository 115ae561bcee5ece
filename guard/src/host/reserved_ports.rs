//! `net.ipv4.ip_local_reserved_ports`: ports the kernel doesn't choose by itself for outgoing connections.
//!
//! The list holds for TCP and UDP of both families, for the network namespace of the calling thread, and
//! only where the kernel chooses: a program may still bind such a port (`Documentation/networking/ip-sysctl.rst`).

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read},
    ops::RangeInclusive,
};

const LIST: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// More than the longest list: every second port, five digits and a comma each.
const LONGEST_BYTES: usize = 256 * 1024;

/// Reserves ports, and answers with those that were not reserved before.
///
/// # Errors
/// When the list can't be read, is not understood, or can't be written.
pub fn reserve(ports: &[u16]) -> io::Result<Vec<u16>> {
    let before = read()?;
    let (after, added) = with(&before, ports);
    if !added.is_empty() {
        write(&after)?;
    }
    Ok(added)
}

/// Takes ports out of the list: those that [`reserve`] answered with.
///
/// # Errors
/// As [`reserve`].
pub fn release(ports: &[u16]) -> io::Result<()> {
    let before = read()?;
    let after = without(&before, ports);
    if after == before { Ok(()) } else { write(&after) }
}

fn with(before: &BTreeSet<u16>, ports: &[u16]) -> (BTreeSet<u16>, Vec<u16>) {
    let mut after = before.clone();
    let added = ports.iter().copied().filter(|port| after.insert(*port)).collect();
    (after, added)
}

fn without(before: &BTreeSet<u16>, ports: &[u16]) -> BTreeSet<u16> {
    let ports: BTreeSet<u16> = ports.iter().copied().collect();
    before - &ports
}

/// Reads the list in one call: the kernel answers a second one, at an offset, as if the list had ended
/// (`proc_do_large_bitmap` in `kernel/sysctl.c`).
fn read() -> io::Result<BTreeSet<u16>> {
    let mut bytes = vec![0; LONGEST_BYTES];
    let length = File::open(LIST)?.read(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes[..length]);
    parse(&text).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{LIST} holds '{}'", text.trim_end()))
    })
}

fn write(ports: &BTreeSet<u16>) -> io::Result<()> {
    // An empty write would leave the list as it is.
    fs::write(LIST, format(ports) + "\n")
}

/// Reads the kernel's form: ports and ranges with commas between them, `1,2,5-9`.
fn parse(text: &str) -> Option<BTreeSet<u16>> {
    let text = text.trim_end();
    if text.is_empty() {
        return Some(BTreeSet::new());
    }
    let mut ports = BTreeSet::new();
    for item in text.split(',') {
        ports.extend(parse_range(item)?);
    }
    Some(ports)
}

fn parse_range(item: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = item.split_once('-').unwrap_or((item, item));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

fn format(ports: &BTreeSet<u16>) -> String {
    let mut text = String::new();
    let mut ports = ports.iter().copied().peekable();
    while let Some(first) = ports.next() {
        let mut last = first;
        while let Some(next) = ports.next_if(|next| last.checked_add(1) == Some(*next)) {
            last = next;
        }
        if !text.is_empty() {
            text.push(',');
        }
        // Writing to a String can't fail.
        let _ =
            if first == last { write!(text, "{first}") } else { write!(text, "{first}-{last}") };
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};
    use rustix::thread::{UnshareFlags, unshare_unsafe};

    use super::*;

    #[test]
    fn kernel_s_form_is_read_and_written() {
        for (text, ports) in [
            ("\n", vec![]),
            ("11434\n", vec![11434]),
            ("1-2,5,7-9,65535\n", vec![1, 2, 5, 7, 8, 9, 65535]),
        ] {
            let ports = BTreeSet::from_iter(ports);
            assert_eq!(parse(text).as_ref(), Some(&ports));
            assert_eq!(format(&ports) + "\n", text);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["1,", ",1", "a", "9-5", "1-", "-1", "65536", "1 2", "1--2"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_stood_there_before_is_not_ours_to_release() {
        let before = BTreeSet::from([11434, 8080]);
        let (after, added) = with(&before, &[11434, 1234, 1234]);
        assert_eq!(added, [1234]);
        assert_eq!(without(&after, &added), before);
    }

    #[test]
    fn the_kernel_s_own_list() {
        crate::host::assert_root();
        let thread = std::thread::spawn(|| {
            // SAFETY: only the network namespace is left; file descriptors stay shared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            let every_second: Vec<u16> = (0..u16::MAX).step_by(2).collect();
            assert_eq!(reserve(&every_second).unwrap(), every_second);
            assert_eq!(read().unwrap(), BTreeSet::from_iter(every_second.clone()));
            assert_eq!(reserve(&[11434, 11435]).unwrap(), [11435]);
            release(&every_second).unwrap();
            assert_eq!(read().unwrap(), BTreeSet::from([11435]));
            release(&[11435]).unwrap();
            assert_eq!(read().unwrap(), BTreeSet::new());
        });
        thread.join().unwrap();
    }

    fn ports() -> impl Strategy<Value = BTreeSet<u16>> {
        let near = collection::btree_set(0u16..200, 0..100);
        prop_oneof![near, collection::btree_set(any::<u16>(), 0..100)]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(ports in ports()) {
            prop_assert_eq!(parse(&format(&ports)), Some(ports));
        }

        #[test]
        fn releasing_what_was_added_restores(before in ports(), wanted in ports()) {
            let wanted = Vec::from_iter(wanted);
            let (after, added) = with(&before, &wanted);
            prop_assert!(wanted.iter().all(|port| after.contains(port)));
            prop_assert_eq!(without(&after, &added), before);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9,-]{0,20}") {
            if let Some(ports) = parse(&text) {
                prop_assert_eq!(parse(&format(&ports)), Some(ports));
            }
        }
    }
}
