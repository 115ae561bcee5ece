//! From the ring's bytes to attempts that people and programs read.

use std::{
    collections::VecDeque,
    mem::offset_of,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use guard_common::{
    abi::Event,
    packet::{AddressBytes, Family, Protocol},
    reader::Reader,
    verdict::{Hook, Reason, Verdict},
};
use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize, Serializer};
use tokio::sync::broadcast;

use crate::{
    control::SinkStatus,
    sinks::SinkState,
    store::{HistoryStatus, HourLine},
};

/// Attempts that are kept for those who ask later.
pub const BACKLOG: usize = 1_000;

/// Attempts that a follower may lag behind before it loses some.
const FOLLOWER_ROOM: usize = 8_192;

/// One attempt: a packet, or a run of packets from one source, that got `drop` or `would-drop`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Written with microseconds, always six digits.
    #[serde(serialize_with = "with_microseconds")]
    pub time: Timestamp,
    pub verdict: String,
    pub reason: String,
    pub hook: String,
    /// `None` where the packet was seen at a socket, whose namespace may be another.
    pub interface: Option<String>,
    pub source: IpAddr,
    /// `None` where the ports could not be read.
    pub source_port: Option<u16>,
    pub destination: IpAddr,
    pub port: Option<u16>,
    pub protocol: String,
    /// `SYN`, `SYN|ACK`, … ; empty for UDP.
    pub tcp_flags: String,
    /// Everything from this source since its last line.
    pub packets: u64,
    /// From the IP header on.
    pub bytes: u64,
    /// Packets and bytes are about so many: in a flood some packets stand for others.
    #[serde(default)]
    pub sampled: bool,
    #[serde(flatten)]
    pub facts: SourceFacts,
}

/// What this host's own network and local files tell of a source. What nothing tells is absent from JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFacts {
    /// What kind of machine it seems to be, such as `container` or `public`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// ISO 3166-1, two letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub city: Option<String>,
    /// The number of the autonomous system that announces it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asn: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_name: Option<String>,
    /// Who is known to send from there, and what the packet looks like.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

fn with_microseconds<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.6}"))
}

/// Turns the kernel's boot time into wall clock time.
///
/// A sample goes stale when the wall clock is stepped: sample again then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootClock {
    /// What the wall clock shows, as time since 1970, minus the time since boot (suspend included).
    pub wall_minus_boot: SignedDuration,
}

impl BootClock {
    /// Reads both clocks.
    #[must_use]
    pub fn sample() -> Self {
        let boot = clock_gettime(ClockId::Boottime);
        let wall = Timestamp::now();
        let boot = SignedDuration::from_secs(boot.tv_sec)
            .saturating_add(SignedDuration::from_nanos(boot.tv_nsec));
        Self { wall_minus_boot: wall.as_duration().saturating_sub(boot) }
    }

    /// The wall clock time of a boot time in nanoseconds, cut to microseconds. `None` when no calendar holds it.
    #[must_use]
    pub fn wall(&self, boot_ns: u64) -> Option<Timestamp> {
        let boot = SignedDuration::try_from(Duration::from_nanos(boot_ns)).ok()?;
        let wall = self.wall_minus_boot.checked_add(boot)?;
        Timestamp::from_microsecond(i64::try_from(wall.as_micros()).ok()?).ok()
    }
}

/// Reads one record of the event ring.
///
/// `name_of` gives an interface's name for its index; one that has gone by now is shown as `#` and its index. `None` for
/// bytes that are not an attempt of this layout: the caller counts them.
pub fn decode(
    bytes: &[u8],
    clock: &BootClock,
    name_of: impl FnOnce(u32) -> Option<String>,
) -> Option<Attempt> {
    if bytes.len() != size_of::<Event>() {
        return None;
    }
    let verdict = match Verdict::from_number(number_u8(bytes, offset_of!(Event, verdict))?)? {
        Verdict::Pass => return None,
        verdict @ (Verdict::Drop | Verdict::WouldDrop) => verdict,
    };
    let family = Family::from_number(number_u8(bytes, offset_of!(Event, family))?)?;
    let protocol = Protocol::from_number(number_u8(bytes, offset_of!(Event, protocol))?)?;
    let ifindex = u32::from_ne_bytes(bytes.read(offset_of!(Event, ifindex))?);
    Some(Attempt {
        time: clock.wall(number_u64(bytes, offset_of!(Event, time_ns))?)?,
        verdict: verdict.name().to_owned(),
        reason: Reason::from_number(number_u8(bytes, offset_of!(Event, reason))?)?
            .name()
            .to_owned(),
        hook: Hook::from_number(number_u8(bytes, offset_of!(Event, hook))?)?.name().to_owned(),
        interface: (ifindex != 0)
            .then(|| name_of(ifindex).unwrap_or_else(|| format!("#{ifindex}"))),
        source: address(family, bytes.read(offset_of!(Event, source))?),
        source_port: known_port(bytes, offset_of!(Event, source_port))?,
        destination: address(family, bytes.read(offset_of!(Event, destination))?),
        port: known_port(bytes, offset_of!(Event, port))?,
        protocol: protocol.name().to_owned(),
        tcp_flags: tcp_flags(number_u8(bytes, offset_of!(Event, tcp_flags))?),
        packets: number_u64(bytes, offset_of!(Event, packets))?,
        bytes: number_u64(bytes, offset_of!(Event, bytes))?,
        sampled: number_u8(bytes, offset_of!(Event, is_sampled))? != 0,
        facts: SourceFacts::default(),
    })
}

fn number_u8(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

fn number_u64(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.read(offset).map(u64::from_ne_bytes)
}

/// A port, or `Some(None)` where the kernel could not read it and stored 0.
#[expect(clippy::option_option, reason = "the outer says whether the record has the field at all")]
fn known_port(bytes: &[u8], offset: usize) -> Option<Option<u16>> {
    let port = bytes.read(offset).map(u16::from_ne_bytes)?;
    Some((port != 0).then_some(port))
}

fn address(family: Family, bytes: AddressBytes) -> IpAddr {
    match family {
        Family::V4 => {
            let [a, b, c, d, ..] = bytes;
            Ipv4Addr::new(a, b, c, d).into()
        }
        Family::V6 => Ipv6Addr::from(bytes).into(),
    }
}

/// The names of the set flags of RFC 9293 section 3.1 and RFC 3168 section 6.1, from the lowest bit on.
fn tcp_flags(flags: u8) -> String {
    const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set: Vec<&str> = NAMES
        .into_iter()
        .enumerate()
        .filter(|(bit, _)| flags & (1 << bit) != 0)
        .map(|(_, name)| name)
        .collect();
    set.join("|")
}

/// Where attempts go: the newest are kept, and followers hear of each at once.
///
/// A follower that is too slow loses attempts and is told how many; it never holds up anyone else.
#[derive(Debug)]
pub struct Hub {
    backlog: Mutex<VecDeque<Arc<Attempt>>>,
    followers: broadcast::Sender<Arc<Attempt>>,
    sinks: Mutex<Vec<Arc<SinkState>>>,
    history: Mutex<Option<HistoryStatus>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl Hub {
    #[must_use]
    pub fn new() -> Self {
        Self {
            backlog: Mutex::new(VecDeque::with_capacity(BACKLOG)),
            followers: broadcast::Sender::new(FOLLOWER_ROOM),
            sinks: Mutex::default(),
            history: Mutex::default(),
        }
    }

    /// Keeps an attempt and tells the followers.
    pub fn publish(&self, attempt: Attempt) {
        let attempt = Arc::new(attempt);
        let mut backlog = self.lock();
        if backlog.len() == BACKLOG {
            backlog.pop_front();
        }
        backlog.push_back(Arc::clone(&attempt));
        // Sent under the lock, so that a new follower finds each attempt either in the backlog or in its queue. The
        // only error is that nobody follows.
        let _ = self.followers.send(attempt);
    }

    /// The attempts kept, and all that come.
    #[must_use]
    pub fn follow(&self) -> (Vec<Arc<Attempt>>, Follower) {
        let backlog = self.lock();
        (backlog.iter().cloned().collect(), Follower(self.followers.subscribe()))
    }

    /// Begins a sink, which is among [`Hub::sinks`] until this is dropped.
    #[must_use]
    pub fn open_sink(&self, name: &'static str) -> OpenSink<'_> {
        let state = Arc::new(SinkState::new(name));
        self.lock_sinks().push(Arc::clone(&state));
        OpenSink { hub: self, state }
    }

    /// How the sinks fare.
    #[must_use]
    pub fn sinks(&self) -> Vec<SinkStatus> {
        self.lock_sinks().iter().map(|state| state.status()).collect()
    }

    /// How the history of attempts fares; `None` where none is kept.
    #[must_use]
    pub fn history(&self) -> Option<HistoryStatus> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers how the history fares.
    pub fn note_history(&self, status: Option<HistoryStatus>) {
        *self.history.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    fn lock_sinks(&self) -> MutexGuard<'_, Vec<Arc<SinkState>>> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing that holds the lock can leave the backlog half changed.
    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Attempt>>> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sink under way.
#[derive(Debug)]
pub struct OpenSink<'a> {
    hub: &'a Hub,
    state: Arc<SinkState>,
}

impl OpenSink<'_> {
    #[must_use]
    pub fn state(&self) -> &SinkState {
        &self.state
    }

    /// For another thread.
    #[must_use]
    pub fn share(&self) -> Arc<SinkState> {
        Arc::clone(&self.state)
    }
}

impl Drop for OpenSink<'_> {
    fn drop(&mut self) {
        self.hub.lock_sinks().retain(|state| !Arc::ptr_eq(state, &self.state));
    }
}

/// Hears of attempts as they come.
#[derive(Debug)]
pub struct Follower(broadcast::Receiver<Arc<Attempt>>);

impl Follower {
    /// The next attempt, or how many were lost before it; `None` when the hub has gone.
    pub async fn next(&mut self) -> Option<Line> {
        match self.0.recv().await {
            Ok(attempt) => Some(Line::Attempt(attempt)),
            Err(broadcast::error::RecvError::Lagged(lagged)) => Some(Line::Lagged { lagged }),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    /// As [`Self::next`], where it need not be waited for.
    pub fn at_once(&mut self) -> Option<Line> {
        match self.0.try_recv() {
            Ok(attempt) => Some(Line::Attempt(attempt)),
            Err(broadcast::error::TryRecvError::Lagged(lagged)) => Some(Line::Lagged { lagged }),
            Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => {
                None
            }
        }
    }
}

/// One line of `GET /v1/events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    Attempt(Arc<Attempt>),
    /// So many attempts were lost to this follower, which was too slow. Written `{"lagged":12}`.
    Lagged {
        lagged: u64,
    },
    /// Older attempts, which the history has folded.
    Hour(Box<HourLine>),
    /// So many lines of the history are older still, and not shown. Written `{"left_out":12}`.
    LeftOut {
        left_out: u64,
    },
}

/// What a line looks like in JSON. Each is told by a member that no other has.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WrittenLine<A, H> {
    Lagged { lagged: u64 },
    LeftOut { left_out: u64 },
    Hour(H),
    Attempt(A),
}

impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = match self {
            Self::Attempt(attempt) => WrittenLine::Attempt(attempt.as_ref()),
            Self::Lagged { lagged } => WrittenLine::Lagged { lagged: *lagged },
            Self::Hour(hour) => WrittenLine::Hour(hour.as_ref()),
            Self::LeftOut { left_out } => WrittenLine::LeftOut { left_out: *left_out },
        };
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        WrittenLine::<Attempt, HourLine>::deserialize(deserializer).map(|line| match line {
            WrittenLine::Attempt(attempt) => Self::Attempt(Arc::new(attempt)),
            WrittenLine::Lagged { lagged } => Self::Lagged { lagged },
            WrittenLine::Hour(hour) => Self::Hour(Box::new(hour)),
            WrittenLine::LeftOut { left_out } => Self::LeftOut { left_out },
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The attempt of the documentation.
    pub(crate) fn example() -> Attempt {
        Attempt {
            time: "2026-11-25T01:02:03.123456Z".parse().unwrap(),
            verdict: "drop".into(),
            reason: "no-rule".into(),
            hook: "xdp".into(),
            interface: Some("eth0".into()),
            source: "203.0.113.9".parse().unwrap(),
            source_port: Some(51234),
            destination: "198.51.100.4".parse().unwrap(),
            port: Some(11434),
            protocol: "tcp".into(),
            tcp_flags: "SYN".into(),
            packets: 1,
            bytes: 60,
            sampled: false,
            facts: SourceFacts::default(),
        }
    }

    const CLOCK: BootClock =
        BootClock { wall_minus_boot: SignedDuration::from_secs(1_800_000_000) };

    fn event() -> Event {
        let mut event = Event {
            time_ns: 5_000_001_999,
            packets: 3,
            bytes: 180,
            ifindex: 2,
            source_port: 51234,
            port: 11434,
            hook: Hook::Tcx as u8,
            verdict: Verdict::WouldDrop as u8,
            reason: Reason::Denied as u8,
            family: Family::V4 as u8,
            protocol: Protocol::Tcp as u8,
            tcp_flags: 0b1_0010,
            ..Event::default()
        };
        event.source[..4].copy_from_slice(&[203, 0, 113, 9]);
        event.destination[..4].copy_from_slice(&[198, 51, 100, 4]);
        event
    }

    /// The record as it stands in the ring, field after field.
    fn bytes_of(event: &Event) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(event.time_ns.to_ne_bytes());
        bytes.extend(event.packets.to_ne_bytes());
        bytes.extend(event.bytes.to_ne_bytes());
        bytes.extend(event.source);
        bytes.extend(event.destination);
        bytes.extend(event.ifindex.to_ne_bytes());
        bytes.extend(event.source_port.to_ne_bytes());
        bytes.extend(event.port.to_ne_bytes());
        bytes.extend([event.hook, event.verdict, event.reason]);
        bytes.extend([event.family, event.protocol, event.tcp_flags]);
        bytes.extend([event.is_sampled, event.reserved]);
        bytes.extend(event.reserved_ids.map(u64::to_ne_bytes).concat());
        bytes
    }

    fn name_of(index: u32) -> Option<String> {
        (index == 2).then(|| "eth0".to_owned())
    }

    fn decoded(event: &Event) -> Option<Attempt> {
        decode(&bytes_of(event), &CLOCK, name_of)
    }

    #[test]
    fn a_record_becomes_an_attempt() {
        let expected = Attempt {
            time: Timestamp::from_microsecond(1_800_000_005_000_001).unwrap(),
            verdict: "would-drop".into(),
            reason: "denied".into(),
            hook: "tcx".into(),
            tcp_flags: "SYN|ACK".into(),
            packets: 3,
            bytes: 180,
            ..example()
        };
        assert_eq!(decoded(&event()), Some(expected));
    }

    #[test]
    fn what_stands_for_others_says_so() {
        let sampled = decoded(&Event { is_sampled: 1, ..event() }).unwrap();
        assert_eq!(sampled, Attempt { sampled: true, ..decoded(&event()).unwrap() });
    }

    #[test]
    fn a_record_is_read_wherever_it_stands_in_memory() {
        let mut shifted = vec![0];
        shifted.extend(bytes_of(&event()));
        assert_eq!(decode(&shifted[1..], &CLOCK, name_of), decoded(&event()));
    }

    #[test]
    fn an_ipv6_source_stays_one_even_when_it_maps_ipv4() {
        let mapped: Ipv6Addr = "::ffff:192.0.2.1".parse().unwrap();
        let event = Event { family: 6, source: mapped.octets(), ..event() };
        assert_eq!(decoded(&event).unwrap().source, IpAddr::V6(mapped));
    }

    #[test]
    fn what_the_kernel_could_not_read_is_absent() {
        let event = Event { ifindex: 0, source_port: 0, port: 0, tcp_flags: 0, ..event() };
        let attempt = decoded(&event).unwrap();
        assert_eq!(attempt.interface, None);
        assert_eq!(attempt.source_port, None);
        assert_eq!(attempt.port, None);
        assert_eq!(attempt.tcp_flags, "");
    }

    #[test]
    fn an_interface_that_has_gone_is_shown_by_its_index() {
        let event = Event { ifindex: 7, ..event() };
        assert_eq!(decoded(&event).unwrap().interface.as_deref(), Some("#7"));
    }

    #[test]
    fn foreign_records_are_no_attempts() {
        let foreign = [
            Event { hook: 9, ..event() },
            Event { verdict: 9, ..event() },
            Event { verdict: Verdict::Pass as u8, ..event() },
            Event { reason: 99, ..event() },
            Event { family: 5, ..event() },
            Event { protocol: 1, ..event() },
        ];
        for event in foreign {
            assert_eq!(decoded(&event), None, "{event:?}");
        }
        let bytes = bytes_of(&event());
        let longer = [bytes.as_slice(), &[0]].concat();
        for wrong in [&bytes[..bytes.len() - 1], longer.as_slice(), &[]] {
            assert_eq!(decode(wrong, &CLOCK, name_of), None, "{} bytes", wrong.len());
        }
    }

    #[test]
    fn a_time_no_calendar_holds_is_refused_and_not_wrapped() {
        let clock = BootClock { wall_minus_boot: SignedDuration::MAX };
        assert_eq!(clock.wall(u64::MAX), None);
        let before = BootClock { wall_minus_boot: SignedDuration::from_secs(-10) };
        assert_eq!(before.wall(0), Timestamp::from_second(-10).ok());
    }

    #[test]
    fn a_sample_of_the_clocks_gives_the_time_of_day() {
        let boot = clock_gettime(ClockId::Boottime);
        let boot_ns = u64::try_from(boot.tv_sec * 1_000_000_000 + boot.tv_nsec).unwrap();
        let shown = BootClock::sample().wall(boot_ns).unwrap();
        let difference = Timestamp::now().duration_since(shown).abs();
        assert!(difference < SignedDuration::from_secs(60), "{difference:?}");
    }

    #[test]
    fn flags_are_named_from_the_lowest_bit_on() {
        for (flags, text) in [
            (0x02, "SYN"),
            (0x12, "SYN|ACK"),
            (0x19, "FIN|PSH|ACK"),
            (0xff, "FIN|SYN|RST|PSH|ACK|URG|ECE|CWR"),
            (0x00, ""),
        ] {
            assert_eq!(tcp_flags(flags), text);
        }
    }

    #[test]
    fn json_is_the_documented_one() {
        let text = serde_json::to_string(&example()).unwrap();
        assert_eq!(
            text,
            r#"{"time":"2026-11-25T01:02:03.123456Z","verdict":"drop","reason":"no-rule","hook":"xdp","interface":"eth0","source":"203.0.113.9","source_port":51234,"destination":"198.51.100.4","port":11434,"protocol":"tcp","tcp_flags":"SYN","packets":1,"bytes":60,"sampled":false}"#
        );
        assert_eq!(serde_json::from_str::<Attempt>(&text).unwrap(), example());
    }

    #[test]
    fn what_is_known_of_a_source_stands_beside_the_rest() {
        let facts = SourceFacts {
            country: Some("FR".into()),
            asn: Some(64_500),
            as_name: Some("EXAMPLE".into()),
            labels: vec!["censys".into()],
            ..SourceFacts::default()
        };
        let attempt = Attempt { facts, ..example() };
        let text = serde_json::to_string(&attempt).unwrap();
        let end = r#","sampled":false,"country":"FR","asn":64500,"as_name":"EXAMPLE","labels":["censys"]}"#;
        assert!(text.ends_with(end), "{text}");
        assert_eq!(serde_json::from_str::<Attempt>(&text).unwrap(), attempt);
    }

    #[test]
    fn the_published_schema_has_every_member() {
        let schema: serde_json::Value =
            serde_json::from_str(include_str!("../../docs/attempt.schema.json")).unwrap();
        let keys = |attempt: &Attempt| {
            let json = serde_json::to_value(attempt).unwrap();
            json.as_object().unwrap().keys().cloned().collect::<BTreeSet<String>>()
        };
        let required: BTreeSet<String> =
            serde_json::from_value(schema["required"].clone()).unwrap();
        assert_eq!(keys(&example()), required);
        let text = || Some("x".to_owned());
        let facts = SourceFacts {
            class: text(),
            country: text(),
            city: text(),
            asn: Some(1),
            as_name: text(),
            labels: vec!["x".into()],
        };
        let all: BTreeSet<String> =
            schema["properties"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys(&Attempt { facts, ..example() }), all);
    }

    #[test]
    fn json_says_null_for_what_is_absent_and_always_six_digits() {
        let attempt = Attempt {
            time: "2026-11-25T01:02:03Z".parse().unwrap(),
            interface: None,
            source_port: None,
            port: None,
            ..example()
        };
        let json = serde_json::to_value(&attempt).unwrap();
        assert_eq!(json["time"], "2026-11-25T01:02:03.000000Z");
        assert!(json["interface"].is_null());
        assert!(json["source_port"].is_null());
        assert!(json["port"].is_null());
    }

    #[test]
    fn every_kind_of_line_survives_json() {
        for line in [
            Line::Attempt(Arc::new(example())),
            Line::Lagged { lagged: 12 },
            Line::Hour(Box::new(crate::store::tests::example_hour())),
            Line::LeftOut { left_out: 12 },
        ] {
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line, "{text}");
        }
        assert_eq!(
            serde_json::to_string(&Line::Lagged { lagged: 12 }).unwrap(),
            r#"{"lagged":12}"#
        );
    }

    fn numbered(packets: u64) -> Attempt {
        let second = i64::try_from(packets).unwrap();
        Attempt { time: Timestamp::from_second(second).unwrap(), packets, ..example() }
    }

    #[test]
    fn the_backlog_keeps_the_newest() {
        let hub = Hub::new();
        for number in 0..BACKLOG as u64 + 5 {
            hub.publish(numbered(number));
        }
        let (all, _) = hub.follow();
        assert_eq!(all.len(), BACKLOG);
        assert_eq!(all.first().unwrap().packets, 5);
        assert_eq!(all.last().unwrap().packets, BACKLOG as u64 + 4);
    }

    #[tokio::test]
    async fn a_follower_gets_what_is_kept_and_hears_what_comes() {
        let hub = Hub::new();
        hub.publish(numbered(1));
        let (kept, mut follower) = hub.follow();
        assert_eq!(kept, [Arc::new(numbered(1))]);
        hub.publish(numbered(2));
        assert_eq!(follower.next().await, Some(Line::Attempt(Arc::new(numbered(2)))));
        drop(hub);
        assert_eq!(follower.next().await, None);
    }

    #[tokio::test]
    async fn a_slow_follower_is_told_how_many_it_lost_and_goes_on() {
        let hub = Hub::new();
        let (_, mut follower) = hub.follow();
        for number in 0..FOLLOWER_ROOM as u64 + 7 {
            hub.publish(numbered(number));
        }
        assert_eq!(follower.next().await, Some(Line::Lagged { lagged: 7 }));
        assert_eq!(follower.next().await, Some(Line::Attempt(Arc::new(numbered(7)))));
    }
}
