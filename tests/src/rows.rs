//! Tables of ways in. Each is tried three times: by an outsider, who must not get through and must be counted; by the same source
//! allowed, who must; and while guard only observes, which lets through what it would have dropped, and counts it.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use crate::{
    lab::{Lab, OLLAMA},
    listener::Listener,
    product::{Attach, Guard},
    wait::PATIENCE,
    wire::{self, CALL_PACKETS, Shape, Wire},
};

/// Packets by hook, verdict and reason. What is not there is zero.
pub type Counts = BTreeMap<(String, String, String), u64>;

/// What is said on a way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Talk {
    Tcp,
    Multipath,
    FastOpen,
    Udp,
}

/// One way in, and what becomes of each packet that takes it.
pub struct Row {
    name: String,
    to: SocketAddr,
    from: Option<IpAddr>,
    talk: Talk,
    shape: Shape,
    judged: u64,
    left: u64,
    arrives: bool,
}

impl Row {
    /// Packets to this address in this shape: each is one frame that the NIC's hook decides.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        to: SocketAddr,
        shape: impl Fn(&[u8]) -> Vec<Vec<u8>> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            to,
            from: None,
            talk: Talk::Tcp,
            shape: Box::new(shape),
            judged: 1,
            left: 0,
            arrives: true,
        }
    }

    /// Ordinary packets.
    #[must_use]
    pub fn plain(name: impl Into<String>, to: SocketAddr) -> Self {
        Self::new(name, to, |packet| vec![wire::plain(packet)])
    }

    /// From this address, to which the server must know the way: by default a stranger's.
    #[must_use]
    pub fn from(mut self, source: IpAddr) -> Self {
        self.from = Some(source);
        self
    }

    /// With datagrams, which the listener sends back.
    #[must_use]
    pub fn udp(mut self) -> Self {
        self.talk = Talk::Udp;
        self
    }

    /// With connections that may have several paths.
    #[must_use]
    pub fn multipath(mut self) -> Self {
        self.talk = Talk::Multipath;
        self
    }

    /// With the question in the first packet.
    #[must_use]
    pub fn fast_open(mut self) -> Self {
        self.talk = Talk::FastOpen;
        self
    }

    /// The NIC's hook decides so many frames of a packet, and leaves so many to the backstop.
    #[must_use]
    pub fn at_the_nic(mut self, judged: u64, left: u64) -> Self {
        self.judged = judged;
        self.left = left;
        self
    }

    /// This kernel takes no such packet to a socket, whoever sends it.
    #[must_use]
    pub fn never_arrives(mut self) -> Self {
        self.arrives = false;
        self
    }

    fn source(&self, number: usize, first_port: u16) -> SocketAddr {
        let number = u16::try_from(number).unwrap_or_else(|error| panic!("too many rows: {error}"));
        let stranger: IpAddr = match self.to {
            SocketAddr::V4(_) => wire::stranger_v4(number + 1).into(),
            SocketAddr::V6(_) => wire::stranger_v6(number + 1).into(),
        };
        (self.from.unwrap_or(stranger), first_port + number).into()
    }

    fn packet(&self, from: SocketAddr) -> Vec<u8> {
        match self.talk {
            Talk::Tcp => wire::opening(from, self.to),
            Talk::Multipath => wire::multipath_opening(from, self.to),
            Talk::FastOpen => wire::fast_opening(from, self.to),
            Talk::Udp => wire::datagram(from, self.to),
        }
    }

    fn call(&self, wire: &Wire, from: SocketAddr) -> bool {
        let first = self.packet(from);
        match self.talk {
            Talk::Tcp | Talk::Multipath => wire.call(&first, from, self.to, &self.shape),
            Talk::FastOpen | Talk::Udp => wire.call_at_once(&first, from, self.to, &self.shape),
        }
    }

    fn packets_of_call(&self) -> u64 {
        match self.talk {
            Talk::Tcp | Talk::Multipath if self.arrives => CALL_PACKETS,
            _ => 1,
        }
    }

    /// What so many packets of this row come to.
    fn expected(&self, attach: Attach, packets: u64, verdict: &str, reason: &str) -> Counts {
        let nic = attach != Attach::Socket;
        let drops_at_nic = nic && self.judged > 0 && verdict == "drop";
        let counts = [
            (attach.hook(), verdict, reason, u64::from(nic) * self.judged * packets),
            (attach.hook(), "pass", "undecidable", u64::from(nic) * self.left * packets),
            ("cgroup", verdict, reason, u64::from(self.arrives && !drops_at_nic) * packets),
        ];
        let named = |(hook, verdict, reason, packets): (&str, &str, &str, u64)| {
            ((hook.to_owned(), verdict.to_owned(), reason.to_owned()), packets)
        };
        counts.into_iter().filter(|count| count.3 > 0).map(named).collect()
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.name, self.to)
    }
}

/// Tries a table on the client's wire: a guard with no rule of its own is in force, and nobody has called the listener yet.
#[track_caller]
pub fn check(lab: &Lab, guard: &Guard<'_>, attach: Attach, listener: &Listener, rows: &[Row]) {
    let wire = lab.wire();
    for (number, row) in rows.iter().enumerate() {
        let from = row.source(number, 4000);
        expect_counts(
            guard,
            row,
            "from an outsider",
            &row.expected(attach, 1, "drop", "no-rule"),
            || {
                wire.send_as(&row.shape, &row.packet(from));
            },
        );
    }
    assert_eq!(listener.reached_by(), [], "an outsider got through");
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0, "an outsider is half through");

    let own: Vec<_> = rows.iter().filter_map(|row| row.from).map(|ip| ip.to_string()).collect();
    let mut sources = vec![STRANGERS_V4, STRANGERS_V6];
    sources.extend(own.iter().map(String::as_str));
    guard.tell(&[&["allow"], &sources[..]].concat());
    call_all(&wire, guard, listener, rows, 5000, "from an allowed source", |row| {
        row.expected(attach, row.packets_of_call(), "pass", "allowed")
    });

    guard.tell(&[&["remove"], &sources[..]].concat());
    guard.tell(&["observe"]);
    call_all(&wire, guard, listener, rows, 6000, "from an outsider who is observed", |row| {
        row.expected(attach, row.packets_of_call(), "would-drop", "no-rule")
    });
}

/// All of [`wire::stranger_v4`].
const STRANGERS_V4: &str = "198.18.0.0/15";
/// All of [`wire::stranger_v6`].
const STRANGERS_V6: &str = "2001:db8::/32";

#[track_caller]
fn call_all(
    wire: &Wire,
    guard: &Guard<'_>,
    listener: &Listener,
    rows: &[Row],
    first_port: u16,
    who: &str,
    expected: impl Fn(&Row) -> Counts,
) {
    for (number, row) in rows.iter().enumerate() {
        let from = row.source(number, first_port);
        expect_counts(guard, row, who, &expected(row), || {
            if row.arrives {
                assert!(row.call(wire, from), "{row:?} {who} is not answered");
                assert!(
                    listener.reached_by().contains(&from),
                    "{row:?} {who} is answered by another"
                );
            } else {
                wire.send_as(&row.shape, &row.packet(from));
            }
        });
    }
}

/// Fails the test unless what is done is counted so, and nothing else is.
#[track_caller]
fn expect_counts(guard: &Guard<'_>, row: &Row, who: &str, expected: &Counts, what: impl FnOnce()) {
    let before = counts(guard);
    what();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let since = difference(&counts(guard), &before);
        if since == *expected {
            return;
        }
        assert!(Instant::now() < deadline, "{row:?} {who}: counted {since:#?}, not {expected:#?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// What has been counted so far, but for what the edge lets through: it judges again what is forwarded to a container.
#[must_use]
#[track_caller]
pub fn counts(guard: &Guard<'_>) -> Counts {
    let mut counts = Counts::new();
    for counter in guard.status().counters {
        let is_again = counter.hook == "edge" && counter.verdict != "drop";
        if counter.packets > 0 && !is_again {
            let key = (counter.hook, counter.verdict, counter.reason);
            *counts.entry(key).or_default() += counter.packets;
        }
    }
    counts
}

fn difference(now: &Counts, before: &Counts) -> Counts {
    let since = |(key, packets): (&(String, String, String), &u64)| {
        (key.clone(), packets - before.get(key).copied().unwrap_or_default())
    };
    now.iter().map(since).filter(|(_, packets)| *packets > 0).collect()
}
