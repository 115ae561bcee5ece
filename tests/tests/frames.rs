//! Frames of every shape: whatever a packet looks like, it is judged once, or left to the backstop.

use std::{net::SocketAddr, ops::Range};

use guard_common::parse::MAX_EXTENSION_HEADERS;
use guard_tests::{
    lab::{Lab, OLLAMA, SERVER},
    on_each_hook,
    product::Attach,
    rows::{self, Row},
    wire::{
        self,
        Extension::{
            AtomicFragment, Authentication, DestinationOptions, HopByHop, LongDestinationOptions,
            Routing, Segments,
        },
    },
};

on_each_hook!(tags_are_looked_behind, [auto, native, generic, tcx, clsact, socket]);
fn tags_are_looked_behind(attach: Attach) {
    let lab = Lab::new(&format!("tags_are_looked_behind {attach}"));
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let mut rows = Vec::new();
    for to in SERVER.at(OLLAMA) {
        rows.extend([
            Row::plain("no tag", to),
            behind_tags("a priority tag", to, &[0]),
            behind_tags("two priority tags", to, &[0, 0]),
            // More than are walked, behind the one that the kernel takes off before TCX; any host takes such a frame as untagged.
            behind_tags("four priority tags", to, &[0; 4]).at_the_nic(0, 1),
            // For a VLAN that this host is not in.
            behind_tags("a tag", to, &[5]).never_arrives(),
            behind_tags("two tags", to, &[5, 6]).never_arrives(),
            behind_tags("a priority tag and a tag", to, &[0, 5]).never_arrives(),
        ]);
    }
    rows::check(&lab, &guard, attach, &listener, &rows);
}

fn behind_tags(name: &str, to: SocketAddr, tags: &'static [u16]) -> Row {
    Row::new(name, to, |packet| vec![wire::tagged(tags, packet)])
}

on_each_hook!(ipv4_options_are_looked_behind);
fn ipv4_options_are_looked_behind(attach: Attach) {
    let lab = Lab::new(&format!("ipv4_options_are_looked_behind {attach}"));
    for interface in ["all", "eth0"] {
        lab.server.set_sysctl(&format!("net/ipv4/conf/{interface}/accept_source_route"), "1");
    }
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    // RFC 791 section 3.1; router alert is RFC 2113.
    let rows = [
        with_options("one no-operation", &[1, 1, 1, 0]),
        with_options("as many as fit", &[1; 40]),
        with_options("router alert", &[148, 4, 0, 0]),
        with_options("record route", &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        with_options("timestamp", &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        with_options("a loose source route at its end", &[131, 7, 8, 10, 77, 0, 1, 0]),
        with_options("a strict source route at its end", &[137, 7, 8, 10, 77, 0, 1, 0]),
        with_options("a loose source route that goes on here", &[131, 7, 4, 10, 77, 0, 2, 0]),
    ];
    rows::check(&lab, &guard, attach, &listener, &rows);
}

fn with_options(name: &str, options: &'static [u8]) -> Row {
    Row::new(name, SERVER.v4_at(OLLAMA), |packet| {
        vec![wire::plain(&wire::with_options(packet, options))]
    })
}

on_each_hook!(extension_headers_are_walked);
fn extension_headers_are_walked(attach: Attach) {
    const WALKED: usize = MAX_EXTENSION_HEADERS;
    let lab = Lab::new(&format!("extension_headers_are_walked {attach}"));
    for interface in ["all", "eth0"] {
        lab.server.set_sysctl(&format!("net/ipv6/conf/{interface}/seg6_enabled"), "1");
    }
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let rows = [
        behind("hop-by-hop options", &[HopByHop]),
        behind("destination options", &[DestinationOptions]),
        behind("long destination options", &[LongDestinationOptions]),
        behind("a routing header", &[Routing]),
        behind("a segment routing header", &[Segments]),
        behind("a fragment header", &[AtomicFragment]),
        behind(
            "in the RFC's order",
            &[HopByHop, DestinationOptions, Routing, AtomicFragment, DestinationOptions],
        ),
        behind(
            "in another order",
            &[AtomicFragment, DestinationOptions, Routing, DestinationOptions],
        ),
        behind("as many as are walked", &[DestinationOptions; WALKED]),
        behind(
            "as many different ones",
            &[HopByHop, Routing, Segments, DestinationOptions, AtomicFragment, Routing],
        ),
        behind("one more than are walked", &[DestinationOptions; WALKED + 1]).at_the_nic(0, 1),
        behind("many more", &[DestinationOptions; 4 * WALKED]).at_the_nic(0, 1),
        // Without IPsec no kernel takes it.
        behind("authentication", &[Authentication]).never_arrives(),
        behind("authentication behind others", &[HopByHop, Authentication, DestinationOptions])
            .never_arrives(),
        // Only the first header may be one (RFC 8200 section 4.1).
        behind("hop-by-hop options later", &[DestinationOptions, HopByHop]).never_arrives(),
    ];
    rows::check(&lab, &guard, attach, &listener, &rows);
}

fn behind(name: &str, extensions: &'static [wire::Extension]) -> Row {
    Row::new(name, SERVER.v6_at(OLLAMA), |packet| {
        vec![wire::plain(&wire::with_extensions(packet, extensions))]
    })
}

on_each_hook!(nothing_is_put_together_from_fragments);
fn nothing_is_put_together_from_fragments(attach: Attach) {
    let lab = Lab::new(&format!("nothing_is_put_together {attach}"));
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let v4 = SERVER.v4_at(OLLAMA);
    let v6 = SERVER.v6_at(OLLAMA);
    // The first packet's transport header is 32 bytes long. IPv6 wants its first 20 in the first fragment (RFC 8200 section 4.5,
    // `ipv6frag_thdr_truncated` in net/ipv6/reassembly.c).
    let rows = [
        in_fragments("two", v4, &[0..16, 16..END]).at_the_nic(1, 1),
        in_fragments("two", v6, &[0..24, 24..END]).at_the_nic(1, 1),
        in_fragments("a tiny first one", v4, &[0..8, 8..END]).at_the_nic(1, 1),
        in_fragments("a tiny first one", v6, &[0..8, 8..END]).at_the_nic(1, 1).never_arrives(),
        in_fragments("four tiny ones", v4, &[0..8, 8..16, 16..24, 24..END]).at_the_nic(1, 3),
        in_fragments("the later one first", v4, &[16..END, 0..16]).at_the_nic(1, 1),
        in_fragments("the later one first", v6, &[24..END, 0..24]).at_the_nic(1, 1),
        in_fragments("the first one twice", v4, &[0..16, 0..16, 16..END]).at_the_nic(2, 1),
        in_fragments("the first one twice", v6, &[0..24, 0..24, 24..END]).at_the_nic(2, 1),
        in_fragments("the later one twice", v4, &[16..END, 16..END, 0..16]).at_the_nic(1, 2),
        in_fragments("the later one twice", v6, &[24..END, 24..END, 0..24]).at_the_nic(1, 2),
        // A host gives up such a packet (RFC 5722, and `inet_frag_queue_insert` in net/ipv4/inet_fragment.c).
        in_fragments("two that overlap", v4, &[0..24, 16..END]).at_the_nic(1, 1).never_arrives(),
        in_fragments("two that overlap", v6, &[0..24, 16..END]).at_the_nic(1, 1).never_arrives(),
        in_fragments("the first one never", v4, &[8..16, 16..END]).at_the_nic(0, 2).never_arrives(),
        in_fragments("the first one never", v6, &[8..16, 16..END]).at_the_nic(0, 2).never_arrives(),
        in_fragments("the whole in one", v6, &[0..END]),
    ];
    rows::check(&lab, &guard, attach, &listener, &rows);
}

/// Stands for the end of a packet.
const END: usize = usize::MAX;

fn in_fragments(name: &str, to: SocketAddr, parts: &'static [Range<usize>]) -> Row {
    Row::new(format!("fragments: {name}"), to, move |packet| {
        let end = wire::payload(packet).len();
        let fragment = |part: &Range<usize>| {
            wire::plain(&wire::fragment(packet, part.start..part.end.min(end)))
        };
        parts.iter().map(fragment).collect()
    })
}
