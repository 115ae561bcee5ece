//! What is known of a DNS name: its last good answer, and when it is asked again. Pure.
//!
//! What a resolver says is hostile until it is checked. What it fails to say changes nothing: the last good answer holds, up to
//! [`LONGEST_KEPT`]. That a name is gone is believed after [`GONE_KEPT`]: resolvers say so for a moment when they are the ones that
//! are broken.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::output::text::list;

/// The most names of a policy.
pub const MAX_NAMES: usize = 256;

/// The most addresses of one family that a name may have. Of an answer with more none is taken.
pub const MAX_ADDRESSES: usize = 64;

/// An answer is not asked for again sooner, however short it says it lives.
pub const TTL_FLOOR: Duration = Duration::from_secs(5);

/// An answer is asked for again by then, however long it says it lives.
pub const TTL_CEILING: Duration = Duration::from_hours(1);

/// After the first failure it is asked again so soon; each further one doubles the time, up to [`RETRY_CEILING`].
const RETRY_FLOOR: Duration = Duration::from_secs(5);
const RETRY_CEILING: Duration = Duration::from_mins(5);

/// How long the last good answer holds while the resolver says that there is no such name, or that it has no address.
const GONE_KEPT: Duration = Duration::from_hours(1);

/// How long the last good answer holds while nobody answers.
const LONGEST_KEPT: Duration = Duration::from_hours(7 * 24);

/// What a resolver says of a name's addresses of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Addresses {
        addresses: Vec<IpAddr>,
        ttl: Duration,
    },
    /// There is no such name, or it has no address of this family.
    Nothing,
    /// Why nobody knows.
    Failed(String),
}

/// What was said of both families.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub v4: Said,
    pub v6: Said,
}

/// A name's addresses of one family, as they were last said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Family {
    /// Sorted, each once.
    addresses: Vec<IpAddr>,
    /// When they were last said.
    said: Option<Timestamp>,
}

/// What is known of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    v4: Family,
    v6: Family,
    /// Since when the resolver says that it is gone.
    gone_since: Option<Timestamp>,
    /// When it is to be asked; `None` for at once.
    #[serde(skip)]
    next: Option<Timestamp>,
    /// How often nobody knew, one time after the other.
    #[serde(skip)]
    failures: u32,
    /// What is wrong with it, in one sentence.
    #[serde(skip)]
    error: Option<String>,
}

impl Known {
    /// Its addresses, as prefixes.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        self.addresses().map(|address| IpNet::from(*address))
    }

    /// Its addresses, IPv4's first.
    pub fn addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.v4.addresses.iter().chain(&self.v6.addresses)
    }

    /// When a good answer was last got.
    #[must_use]
    pub fn refreshed(&self) -> Option<Timestamp> {
        self.v4.said.max(self.v6.said)
    }

    #[must_use]
    pub fn next(&self) -> Option<Timestamp> {
        self.next
    }

    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// How long until it is to be asked. A clock that was set back makes nobody wait longer than the ceiling.
    #[must_use]
    pub fn due_in(&self, now: Timestamp) -> Duration {
        let Some(next) = self.next else { return Duration::ZERO };
        let to_go = Duration::try_from(next.duration_since(now)).unwrap_or_default();
        if to_go > TTL_CEILING { Duration::ZERO } else { to_go }
    }

    /// It is asked at once: the resolver is another one now.
    pub fn ask_now(&mut self) {
        self.next = None;
        self.failures = 0;
    }

    /// The addresses could not be put in force: those before hold.
    pub fn refuse(&mut self, before: &Self, why: &str) {
        self.v4 = before.v4.clone();
        self.v6 = before.v6.clone();
        self.error = Some(format!("its new addresses can't be put in force: {why}"));
    }

    /// Takes what was kept in a file: nothing that no resolver may say, and nothing too old.
    #[must_use]
    pub fn from_file(mut self, now: Timestamp) -> Self {
        for family in [&mut self.v4, &mut self.v6] {
            family.addresses = may_stand_for_a_host(&family.addresses);
            family.addresses.truncate(MAX_ADDRESSES);
            // By a clock that was set back it would never be too old.
            family.said = family.said.map(|said| said.min(now));
        }
        self.v4.addresses.retain(IpAddr::is_ipv4);
        self.v6.addresses.retain(IpAddr::is_ipv6);
        self.let_go(now);
        self
    }

    /// Takes an answer. Returns whether the addresses are others now.
    pub fn take(&mut self, answer: Answer, now: Timestamp) -> bool {
        let before: Vec<IpAddr> = self.addresses().copied().collect();
        let (v4, v4_note) = checked(answer.v4);
        let (v6, v6_note) = checked(answer.v6);
        let said = [&v4, &v6];
        let ttls = said.into_iter().filter_map(|said| match said {
            Said::Addresses { ttl, .. } => Some((*ttl).clamp(TTL_FLOOR, TTL_CEILING)),
            Said::Nothing | Said::Failed(_) => None,
        });
        let ttl = ttls.min();
        let is_gone = said.into_iter().all(|said| *said == Said::Nothing);
        let failure = said.into_iter().find_map(|said| match said {
            Said::Failed(why) => Some(why.clone()),
            _ => None,
        });
        let is_failure = ttl.is_none();
        self.failures = if is_failure { self.failures.saturating_add(1) } else { 0 };
        let retry = RETRY_FLOOR
            .saturating_mul(1 << self.failures.saturating_sub(1).min(16))
            .min(RETRY_CEILING);
        self.next = now.checked_add(ttl.unwrap_or(retry)).ok();
        if ttl.is_some() {
            self.gone_since = None;
            self.v4.take(v4, now);
            self.v6.take(v6, now);
            self.error = failure.or(v4_note).or(v6_note);
        } else if is_gone {
            self.gone_since.get_or_insert(now);
            self.error = Some("the resolver knows no address of it".to_owned());
        } else {
            self.error = failure;
        }
        self.let_go(now);
        let holds = self.addresses().next().is_some();
        if let Some(error) = &mut self.error
            && is_failure
            && holds
        {
            error.push_str("; its last good answer holds");
        }
        !self.addresses().eq(&before)
    }

    /// Lets go of what is too old.
    fn let_go(&mut self, now: Timestamp) {
        let is_over = |since: Option<Timestamp>, kept: Duration| {
            since.is_some_and(|since| {
                now.duration_since(since) >= SignedDuration::try_from(kept).unwrap_or_default()
            })
        };
        let is_gone = is_over(self.gone_since, GONE_KEPT);
        for family in [&mut self.v4, &mut self.v6] {
            if is_gone || is_over(family.said, LONGEST_KEPT) || family.said.is_none() {
                family.addresses.clear();
            }
        }
    }
}

impl Family {
    fn take(&mut self, said: Said, now: Timestamp) {
        match said {
            Said::Addresses { addresses, .. } => self.addresses = addresses,
            Said::Nothing => self.addresses.clear(),
            // Its last good answer holds.
            Said::Failed(_) => return,
        }
        self.said = Some(now);
    }
}

/// What may be taken of an answer, and a sentence about what was left out.
fn checked(said: Said) -> (Said, Option<String>) {
    let Said::Addresses { addresses, ttl } = said else { return (said, None) };
    let taken = may_stand_for_a_host(&addresses);
    if taken.len() > MAX_ADDRESSES {
        let why = format!(
            "its answer holds {} addresses of one family, and at most {MAX_ADDRESSES} are taken",
            taken.len()
        );
        return (Said::Failed(why), None);
    }
    let left_out = addresses.iter().filter(|address| !taken.contains(address)).count();
    let note = (left_out > 0).then(|| match left_out {
        1 => "an address of its answer can't be another host's, and is left out".to_owned(),
        many => format!("{many} addresses of its answer can't be other hosts', and are left out"),
    });
    match (taken.is_empty(), note) {
        (true, Some(note)) => (Said::Failed(note), None),
        (true, None) => (Said::Nothing, None),
        (false, note) => (Said::Addresses { addresses: taken, ttl }, note),
    }
}

/// Those that a packet of another host can come from, sorted, each once.
fn may_stand_for_a_host(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let may = |address: &&IpAddr| match address {
        IpAddr::V4(v4) => is_host_v4(*v4),
        IpAddr::V6(v6) => is_host_v6(*v6),
    };
    let mut taken: Vec<IpAddr> = addresses.iter().filter(may).copied().collect();
    taken.sort_unstable();
    taken.dedup();
    taken
}

fn is_host_v4(v4: Ipv4Addr) -> bool {
    let is_unusable = v4.octets()[0] == 0
        || v4.octets()[0] >= 240
        || v4.is_loopback()
        || v4.is_link_local()
        || v4.is_multicast();
    !is_unusable
}

fn is_host_v6(v6: Ipv6Addr) -> bool {
    // `::/96` and `::ffff:0:0/96` stand for IPv4 addresses (RFC 4291 section 2.5.5), and the former holds `::` and `::1`.
    let is_ipv4 = v6.to_ipv4().is_some();
    !(is_ipv4 || v6.is_unicast_link_local() || v6.is_multicast())
}

/// Its addresses in a sentence: a few, and how many more.
#[must_use]
pub fn few(known: &Known) -> String {
    const MOST: usize = 4;
    let all: Vec<String> = known.addresses().map(ToString::to_string).collect();
    if all.len() <= MOST {
        return if all.is_empty() { "no address".to_owned() } else { list(&all) };
    }
    format!("{} and {} more", all[..MOST].join(", "), all.len() - MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_764_072_000 + seconds).unwrap()
    }

    fn said(addresses: &[&str], ttl_seconds: u64) -> Said {
        Said::Addresses {
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            ttl: Duration::from_secs(ttl_seconds),
        }
    }

    fn v4(addresses: &[&str]) -> Answer {
        Answer { v4: said(addresses, 60), v6: Said::Nothing }
    }

    fn failed() -> Answer {
        Answer { v4: Said::Failed("nobody answers".into()), v6: Said::Failed("nobody".into()) }
    }

    fn gone() -> Answer {
        Answer { v4: Said::Nothing, v6: Said::Nothing }
    }

    fn shown(known: &Known) -> Vec<String> {
        known.addresses().map(ToString::to_string).collect()
    }

    #[test]
    fn an_answer_replaces_the_one_before() {
        let mut known = Known::default();
        assert_eq!(known.due_in(at(0)), Duration::ZERO);
        let both =
            Answer { v4: said(&["192.0.2.2", "192.0.2.1"], 60), v6: said(&["2001:db8::1"], 7) };
        assert!(known.take(both.clone(), at(0)));
        assert_eq!(shown(&known), ["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
        // The shorter of both decides.
        assert_eq!(known.due_in(at(0)), Duration::from_secs(7));
        assert!(!known.take(both, at(7)), "the same again");
        assert!(known.take(v4(&["192.0.2.9"]), at(14)));
        assert_eq!(shown(&known), ["192.0.2.9"]);
        assert_eq!((known.refreshed(), known.error()), (Some(at(14)), None));
    }

    #[test]
    fn times_to_live_have_a_floor_and_a_ceiling() {
        for (ttl, due) in [(0, 5), (4, 5), (60, 60), (86_400, 3_600), (u64::from(u32::MAX), 3_600)]
        {
            let mut known = Known::default();
            known.take(Answer { v4: said(&["192.0.2.1"], ttl), v6: Said::Nothing }, at(0));
            assert_eq!(known.due_in(at(0)), Duration::from_secs(due), "{ttl}");
        }
        let mut known = Known::default();
        known.take(v4(&["192.0.2.1"]), at(100_000));
        assert_eq!(known.due_in(at(0)), Duration::ZERO, "the clock was set back");
    }

    #[test]
    fn failures_are_asked_again_at_growing_distance_and_keep_the_answer() {
        let mut known = Known::default();
        known.take(v4(&["192.0.2.1"]), at(0));
        for (now, due) in (60..).zip([5, 10, 20, 40, 80, 160, 300, 300]) {
            assert!(!known.take(failed(), at(now)));
            assert_eq!(known.due_in(at(now)), Duration::from_secs(due));
        }
        assert_eq!(shown(&known), ["192.0.2.1"]);
        assert_eq!(known.error(), Some("nobody answers; its last good answer holds"));
        let last = 7 * 86_400;
        assert!(!known.take(failed(), at(last - 1)));
        assert!(known.take(failed(), at(last)));
        assert_eq!(shown(&known), [""; 0]);
        assert_eq!(known.error(), Some("nobody answers"));
        assert!(known.take(v4(&["192.0.2.1"]), at(last + 5)));
        assert_eq!(known.due_in(at(last + 5)), Duration::from_mins(1));
    }

    #[test]
    fn one_family_that_fails_keeps_its_own_last_answer() {
        let mut known = Known::default();
        known.take(Answer { v4: said(&["192.0.2.1"], 60), v6: said(&["2001:db8::1"], 60) }, at(0));
        let half = Answer { v4: said(&["192.0.2.2"], 60), v6: Said::Failed("SERVFAIL".into()) };
        assert!(known.take(half, at(60)));
        assert_eq!(shown(&known), ["192.0.2.2", "2001:db8::1"]);
        assert_eq!(known.error(), Some("SERVFAIL"));
        let half = Answer { v4: Said::Failed("SERVFAIL".into()), v6: Said::Nothing };
        assert!(!known.take(half, at(120)), "that one family is empty says nothing of the name");
    }

    #[test]
    fn a_name_that_is_gone_is_let_go_after_an_hour() {
        let mut known = Known::default();
        known.take(v4(&["192.0.2.1"]), at(0));
        assert!(!known.take(gone(), at(60)));
        assert!(!known.take(failed(), at(120)));
        assert!(!known.take(gone(), at(60 + 3_599)));
        assert_eq!(shown(&known), ["192.0.2.1"]);
        assert!(known.take(gone(), at(60 + 3_600)));
        assert_eq!(shown(&known), [""; 0]);
        // It came back in between.
        known.take(v4(&["192.0.2.1"]), at(5_000));
        known.take(gone(), at(6_000));
        known.take(v4(&["192.0.2.1"]), at(7_000));
        known.take(gone(), at(8_000));
        assert!(!known.take(gone(), at(10_000)));
        // A family that is gone while the other is there is gone at once.
        known.take(Answer { v4: said(&["192.0.2.1"], 60), v6: said(&["2001:db8::1"], 60) }, at(0));
        assert!(known.take(v4(&["192.0.2.1"]), at(1)));
    }

    #[test]
    fn what_can_not_be_another_hosts_is_left_out() {
        let hostile = [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.1.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
        ];
        let mut known = Known::default();
        known.take(v4(&["192.0.2.7"]), at(0));
        assert!(!known.take(v4(&hostile), at(60)));
        let error = known.error().unwrap();
        assert!(error.starts_with("8 addresses of its answer"), "{error}");
        let mixed = [&hostile[..], &["10.0.0.1"]].concat();
        assert!(known.take(v4(&mixed), at(120)));
        assert_eq!(shown(&known), ["10.0.0.1"]);
        let hostile =
            ["::", "::1", "::192.0.2.1", "::ffff:192.0.2.1", "fe80::1", "febf::1", "ff02::1"];
        let six = |addresses: &[&str]| Answer { v4: Said::Nothing, v6: said(addresses, 60) };
        assert!(!known.take(six(&hostile), at(180)));
        assert!(known.take(six(&[&hostile[..], &["fd00::1"]].concat()), at(240)));
        assert_eq!(shown(&known), ["fd00::1"]);
    }

    #[test]
    fn of_too_many_addresses_none_is_taken() {
        let many = |number: u32| Answer {
            v4: Said::Addresses {
                addresses: (0..number).map(|n| Ipv4Addr::from(0x0a00_0001 + n).into()).collect(),
                ttl: TTL_FLOOR,
            },
            v6: Said::Nothing,
        };
        let mut known = Known::default();
        assert!(known.take(many(64), at(0)));
        assert!(!known.take(many(65), at(5)));
        assert_eq!(known.addresses().count(), 64);
        assert!(known.error().unwrap().contains("65 addresses"), "{:?}", known.error());
    }

    #[test]
    fn what_a_file_kept_is_checked_like_an_answer() {
        let mut known = Known::default();
        known.take(v4(&["192.0.2.1"]), at(0));
        let text = serde_json::to_string(&known).unwrap();
        let read = |text: &str, now| serde_json::from_str::<Known>(text).unwrap().from_file(now);
        assert_eq!(shown(&read(&text, at(60))), ["192.0.2.1"]);
        assert_eq!(read(&text, at(60)).due_in(at(60)), Duration::ZERO);
        assert_eq!(shown(&read(&text, at(7 * 86_400))), [""; 0]);
        for forged in ["127.0.0.1", "::1", "2001:db8::1"] {
            assert_eq!(
                shown(&read(&text.replace("192.0.2.1", forged), at(60))),
                [""; 0],
                "{forged}"
            );
        }
        let future = read(&text, at(-600));
        assert_eq!(future.refreshed(), Some(at(-600)));
    }
}
