//! Floods over a veth: what a packet costs the receiver.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    Bench,
    figures::{Comparison, MOST_NOISE, Measured, Part, Results, noise},
    filters::{Filter, Installed, Library},
    generator::{Generator, Transport},
    lists::{Family, List, ListId, Shape, outside},
    rig::{Flood, Rig},
};
use crate::{
    foreign::Place,
    lab::{OLLAMA, SERVER},
    listener::Listener,
    lock::MachineLock,
    product::Attach,
};

/// `XDP_DROP` and `XDP_PASS`, `TC_ACT_SHOT` and `TCX_NEXT` of `include/uapi/linux`.
pub const XDP_DROP: i32 = 1;
pub const XDP_PASS: i32 = 2;
pub const TCX_DROP: i32 = 2;
pub const TCX_NEXT: i32 = -1;

/// What all others are compared with.
pub const BARE: &str = "bare XDP_DROP";

/// What looks for no more than the port. A bare program never touches a packet, whose bytes lie in the sender's cache: to fetch
/// them is what any filter pays.
pub const BARE_PORT: &str = "bare XDP, drops the port";

/// A share of packets that may be others: neighbours that look for each other.
const LEAKAGE: f64 = 0.01;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    pub family: Family,
    pub transport: Transport,
    pub sources: usize,
}

pub const ONE: Traffic = Traffic { family: Family::V4, transport: Transport::Syn, sources: 1 };
pub const MANY: Traffic = Traffic { sources: 1 << 16, ..ONE };
pub const MILLION: Traffic = Traffic { sources: 1 << 20, ..ONE };
pub const ONE_V6: Traffic = Traffic { family: Family::V6, ..ONE };
pub const MANY_V6: Traffic = Traffic { family: Family::V6, ..MANY };
pub const ONE_UDP: Traffic = Traffic { transport: Transport::Udp, ..ONE };

/// In the order in which they are shown.
pub const ALL_TRAFFIC: [Traffic; 6] = [ONE, MANY, MILLION, ONE_V6, MANY_V6, ONE_UDP];

impl Traffic {
    #[must_use]
    pub fn name(self) -> String {
        let sources = match self.sources {
            1 => "one source".to_owned(),
            sources if sources < 1 << 20 => format!("{}k sources", sources >> 10),
            sources => format!("{}M sources", sources >> 20),
        };
        let transport = match self.transport {
            Transport::Syn => "TCP SYN",
            Transport::Ack => "TCP ACK",
            Transport::Udp => "UDP",
        };
        format!("{} {transport}, {sources}", self.family)
    }
}

/// A filter, and what it meets.
struct Scene {
    name: String,
    filter: Filter,
    list: Option<ListId>,
    traffic: Vec<Traffic>,
    /// Whether somebody listens at the port: at a socket nothing is judged without one.
    is_served: bool,
}

impl Scene {
    /// Whether nothing of what is sent may reach TCP, or all of it must; at a socket TCP has it before it is judged.
    fn drops(&self, traffic: Traffic) -> Option<bool> {
        if traffic.transport == Transport::Udp || self.is_served {
            return None;
        }
        Some(match self.filter {
            Filter::Nothing => false,
            Filter::Bare(_, answer) => {
                ![XDP_PASS, TCX_NEXT].contains(&answer) || self.filter == TCX
            }
            Filter::Guard(_, lines) => lines != OBSERVE,
            _ => true,
        })
    }
}

const OBSERVE: &str = "mode = \"observe\"";
/// `TC_ACT_SHOT` is the number of `XDP_PASS`.
const TCX: Filter = Filter::Bare(Place::Tcx, TCX_DROP);

#[must_use]
pub const fn v4(shape: Shape, size: usize) -> ListId {
    ListId { family: Family::V4, shape, size }
}

#[must_use]
pub const fn v6(size: usize) -> ListId {
    ListId { family: Family::V6, shape: Shape::Mixed, size }
}

fn scene(name: &str, filter: Filter, list: Option<ListId>, traffic: &[Traffic]) -> Scene {
    let name = list.map_or_else(|| name.to_owned(), |list| format!("{name}, {list}"));
    Scene { name, filter, list, traffic: traffic.to_vec(), is_served: false }
}

const NATIVE: Filter = Filter::Guard(Attach::Native, "");

fn scenes(is_quick: bool) -> Vec<Scene> {
    use Shape::{Dense, Mixed, Spread};
    const TEN_K: usize = 10_000;
    let ten_k = Some(v4(Dense, TEN_K));
    let both = [ONE, MANY];
    let mut scenes = vec![
        scene("no filter", Filter::Nothing, None, &[ONE, MANY, ONE_V6, ONE_UDP]),
        scene(BARE, Filter::Bare(Place::XdpNative, XDP_DROP), None, &ALL_TRAFFIC),
        scene(BARE_PORT, Filter::BarePort, None, &both),
        scene("bare XDP_PASS", Filter::Bare(Place::XdpNative, XDP_PASS), None, &both),
        scene("bare XDP_DROP, generic", Filter::Bare(Place::XdpGeneric, XDP_DROP), None, &both),
        scene("bare TCX drop", Filter::Bare(Place::Tcx, TCX_DROP), None, &both),
        scene("xdp-filter, the port for all", Filter::XdpFilter, None, &both),
        scene("guard XDP", NATIVE, Some(v4(Spread, 10)), &[ONE, MANY, MILLION]),
        scene("guard XDP", NATIVE, ten_k, &[ONE, MANY]),
        scene("guard XDP", NATIVE, Some(v4(Spread, TEN_K)), &[ONE, MANY, MILLION]),
        scene("guard XDP", NATIVE, Some(v6(TEN_K)), &[ONE_V6, MANY_V6]),
        scene("guard XDP observe", Filter::Guard(Attach::Native, OBSERVE), ten_k, &both),
        scene("guard XDP reject", Filter::Guard(Attach::Native, "reject = true"), ten_k, &both),
        scene(
            "guard XDP",
            Filter::Guard(Attach::Native, "ports = [\"udp/11434\"]"),
            ten_k,
            &[ONE_UDP],
        ),
        scene("guard generic XDP", Filter::Guard(Attach::Generic, ""), ten_k, &both),
        scene("guard TCX", Filter::Guard(Attach::Tcx, ""), ten_k, &both),
        scene("nft netdev ingress", Filter::NftIngress, ten_k, &both),
        scene(
            "nft netdev ingress",
            Filter::NftIngress,
            Some(v4(Spread, TEN_K)),
            &[ONE, MANY, MILLION],
        ),
        scene("nft netdev ingress", Filter::NftIngress, Some(v6(TEN_K)), &[ONE_V6, MANY_V6]),
        scene("nft inet raw", Filter::NftPrerouting, ten_k, &both),
        scene("nft inet input", Filter::NftInput, ten_k, &both),
        scene("iptables raw + ipset", Filter::Ipset, ten_k, &both),
        Scene { is_served: true, ..scene("no filter, served", Filter::Nothing, None, &both) },
        Scene {
            is_served: true,
            ..scene("guard cgroup, served", Filter::Guard(Attach::Socket, ""), ten_k, &both)
        },
    ];
    if is_quick {
        return scenes;
    }
    for size in [100_000, 1_000_000] {
        for shape in [Dense, Spread, Mixed] {
            scenes.push(scene("guard XDP", NATIVE, Some(v4(shape, size)), &[ONE, MANY, MILLION]));
        }
        scenes.push(scene("guard XDP", NATIVE, Some(v6(size)), &[ONE_V6, MANY_V6]));
        let list = Some(v4(Dense, size));
        scenes.push(scene("nft netdev ingress", Filter::NftIngress, list, &[ONE, MANY]));
        scenes.push(scene("iptables raw + ipset", Filter::Ipset, list, &[ONE, MANY]));
        scenes.push(scene("guard TCX", Filter::Guard(Attach::Tcx, ""), list, &both));
    }
    scenes.push(scene("guard XDP", NATIVE, Some(v4(Mixed, TEN_K)), &[ONE, MANY, MILLION]));
    scenes.push(scene("iptables raw + ipset", Filter::Ipset, Some(v4(Spread, TEN_K)), &both));
    scenes
}

/// The lists that the floods need.
#[must_use]
pub fn lists(is_quick: bool) -> Vec<ListId> {
    scenes(is_quick).into_iter().filter_map(|scene| scene.list).collect()
}

/// Generators by the sources that they have: each is outside all lists.
struct Generators {
    spread: Generator,
    dense: Generator,
    v6: Generator,
}

impl Generators {
    fn load(lists: &[List], is_quick: bool) -> Result<Self> {
        let most = if is_quick { MANY.sources } else { MILLION.sources };
        let load =
            |family, shape, count| Generator::load(family, &outside(lists, family, shape, count));
        Ok(Self {
            spread: load(Family::V4, Shape::Spread, most)?,
            dense: load(Family::V4, Shape::Dense, MANY.sources)?,
            v6: load(Family::V6, Shape::Mixed, MANY.sources)?,
        })
    }

    /// Those whose sources lie where the list's prefixes do.
    fn get(&mut self, traffic: Traffic, list: Option<ListId>) -> &mut Generator {
        let is_dense = list.is_some_and(|list| list.shape == Shape::Dense);
        match traffic.family {
            Family::V4 if is_dense && traffic.sources <= MANY.sources => &mut self.dense,
            Family::V4 => &mut self.spread,
            Family::V6 => &mut self.v6,
        }
    }
}

/// A scene that is set.
struct Stage<'rig> {
    scene: &'rig Scene,
    rig: &'rig Rig,
    // Both end before the lab of the rig.
    _installed: Installed<'rig>,
    _listener: Option<Listener>,
}

impl Stage<'_> {
    /// Floods it, and looks whether it has let through what it should.
    fn flood(
        &self,
        generator: &mut Generator,
        traffic: Traffic,
        length: Duration,
    ) -> Result<Flood> {
        let to: SocketAddr = match traffic.family {
            Family::V4 => SERVER.v4_at(OLLAMA),
            Family::V6 => SERVER.v6_at(OLLAMA),
        };
        generator.order(to, traffic.transport, traffic.sources, self.rig.client_index())?;
        let what = || format!("{}: {}", self.scene.name, traffic.name());
        let flood = self.rig.flood(generator, length).with_context(what)?;
        let is_as_meant = match self.scene.drops(traffic) {
            Some(true) => flood.passed < LEAKAGE,
            Some(false) => flood.passed > 1.0 - LEAKAGE,
            None => true,
        };
        ensure!(is_as_meant, "{}: {:.3} of the packets reached TCP", what(), flood.passed);
        Ok(flood)
    }
}

/// A scene under one kind of traffic.
struct Case<'rig> {
    stage: &'rig Stage<'rig>,
    traffic: Traffic,
    values: Vec<f64>,
    /// The bare program's, right before.
    beside: Vec<f64>,
}

impl<'rig> Case<'rig> {
    fn new(stage: &'rig Stage<'rig>, traffic: Traffic) -> Self {
        Self { stage, traffic, values: Vec::new(), beside: Vec::new() }
    }
}

/// # Errors
/// When the machine can't generate, or a filter that is installed can't be used.
pub fn run(
    bench: &Bench,
    machine: &MachineLock,
    library: &Library,
    results: &mut Results,
) -> Result<()> {
    let mut generators = Generators::load(library.lists(), bench.is_quick)?;
    let mut scenes = scenes(bench.is_quick);
    if bench.is_quick {
        scenes.iter_mut().for_each(|scene| scene.traffic.retain(|traffic| *traffic != MILLION));
    }
    scenes.retain(|scene| scene.name == BARE || bench.is_wanted(&scene.name));
    scenes.retain(|scene| bench.can(scene.filter.missing(), &scene.name, results));
    let mut rigs = Vec::new();
    for number in 0..scenes.len() {
        rigs.push(Rig::new(machine, &format!("bench live {number}"))?);
    }
    let mut stages = Vec::new();
    for (scene, rig) in scenes.iter().zip(&rigs) {
        bench.say(Part::Live, &format!("setting up {}", scene.name));
        let listener = scene.is_served.then(|| rig.lab.serve());
        let installed = scene
            .filter
            .install(&rig.lab, library, scene.list)
            .with_context(|| scene.name.clone())?;
        stages.push(Stage { scene, rig, _installed: installed, _listener: listener });
    }

    let bare = stages.iter().find(|stage| stage.scene.name == BARE).context("nothing is bare")?;
    let mut cases: Vec<Case<'_>> = stages
        .iter()
        .flat_map(|stage| stage.scene.traffic.iter().map(move |traffic| Case::new(stage, *traffic)))
        .collect();
    let length = Duration::from_millis(if bench.is_quick { 40 } else { 300 });
    for round in 0..bench.rounds {
        bench.say(
            Part::Live,
            &format!("{} floods, round {} of {}", cases.len(), round + 1, bench.rounds),
        );
        for case in forward_and_back(&mut cases, round) {
            let generator = generators.get(case.traffic, case.stage.scene.list);
            // What the machine does by itself changes from one moment to the next: the bare program stands right beside.
            let beside = bare.flood(generator, case.traffic, length / 3)?;
            let flood = case.stage.flood(generator, case.traffic, length)?;
            case.beside.push(beside.cost);
            case.values.push(flood.cost);
        }
    }

    for traffic in ALL_TRAFFIC {
        for Case { stage, values, beside, .. } in
            cases.iter().filter(|case| case.traffic == traffic)
        {
            let name = &stage.scene.name;
            if name == BARE && noise(values) > MOST_NOISE {
                let noise = noise(values);
                results.noisy.push(format!("{BARE} varied by {noise:.1}: {}", traffic.name()));
            }
            let case =
                Measured::new(Part::Live, &traffic.name(), name, "ns/packet", values.clone());
            results.measured.push(case.against(BARE, Comparison::Ratio, beside.clone()));
        }
    }
    Ok(())
}

/// Every other round goes backward, so that what drifts meets all alike.
pub fn forward_and_back<T>(cases: &mut [T], round: usize) -> impl Iterator<Item = &mut T> {
    let count = cases.len();
    let mut cases: Vec<Option<&mut T>> = cases.iter_mut().map(Some).collect();
    let order = (0..count)
        .map(move |place| if round.is_multiple_of(2) { place } else { count - 1 - place });
    order.filter_map(move |place| cases[place].take())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_second_round_goes_backward() {
        let mut cases = ["a", "b", "c"];
        let order = |cases: &mut [&'static str; 3], round| {
            forward_and_back(cases, round).map(|case| *case).collect::<String>()
        };
        assert_eq!(order(&mut cases, 0), "abc");
        assert_eq!(order(&mut cases, 1), "cba");
        assert_eq!(order(&mut cases, 2), "abc");
    }

    #[test]
    fn no_case_has_the_name_of_another() {
        for is_quick in [true, false] {
            let mut names = BTreeSet::new();
            for scene in scenes(is_quick) {
                for traffic in &scene.traffic {
                    let name = (scene.name.clone(), traffic.name());
                    assert!(names.insert(name.clone()), "{name:?}");
                }
            }
        }
    }

    #[test]
    fn everything_has_a_bare_program_beside_it() {
        let bare = |scene: &Scene| scene.name == BARE && scene.traffic == ALL_TRAFFIC;
        assert!(scenes(true).iter().any(bare));
    }
}
