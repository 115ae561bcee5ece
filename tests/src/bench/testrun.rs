//! Single programs, by `BPF_PROG_TEST_RUN`: everything they need lies in the cache, so that this is the least that they cost.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use anyhow::{Context, Result, ensure};
use guard_common::abi::{EXPLAIN_MARK, program};

use super::{
    Bench,
    figures::{Comparison, MOST_NOISE, Measured, Part, Results, noise},
    filters::{Filter, Installed, Library},
    generator::{Run, Transport, frame},
    lists::{Family, List, ListId, Shape, outside},
    live::{TCX_NEXT, XDP_DROP, XDP_PASS, forward_and_back, v4, v6},
    rig::{pin, processors},
};
use crate::{
    foreign::{Foreign, Place, guard_program},
    lab::{Lab, OLLAMA, SERVER},
    lock::MachineLock,
    machine::Machine,
    product::Attach,
};

/// A port that nobody guards.
const OTHER: u16 = 5_201;

/// `LOOPBACK_IFINDEX` of `include/net/flow.h`: from there come packets that guard is asked about, and does not count.
const LOOPBACK: u32 = 1;

/// What a socket's program answers.
const CGROUP_PASS: i32 = 1;

pub const OTHER_PORT: &str = "a packet to an unguarded port";
pub const ALLOWED: &str = "an allowed source";
pub const FLOW: &str = "a flow of an allowed source";
pub const DROPPED: &str = "a source that is not allowed";

/// Which of guard's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Xdp,
    Tcx,
    Edge,
    Cgroup,
}

impl Hook {
    const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "XDP",
            Self::Tcx => "TCX",
            Self::Edge => "edge",
            Self::Cgroup => "cgroup",
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Xdp => program::XDP,
            Self::Tcx => program::TCX_ETHERNET,
            Self::Edge => program::EDGE_ETHERNET,
            Self::Cgroup => program::CGROUP,
        }
    }

    const fn place(self) -> Place {
        match self {
            Self::Xdp => Place::XdpNative,
            Self::Tcx | Self::Edge => Place::Tcx,
            Self::Cgroup => Place::Cgroup,
        }
    }

    const fn pass(self) -> i32 {
        match self {
            Self::Xdp => XDP_PASS,
            Self::Tcx | Self::Edge => TCX_NEXT,
            Self::Cgroup => CGROUP_PASS,
        }
    }
}

/// A guard to ask, and the questions.
struct Subject {
    attach: Attach,
    list: ListId,
    questions: Vec<Question>,
}

#[derive(Clone, Copy)]
struct Question {
    group: &'static str,
    hook: Hook,
    /// The first of the list, or one outside of it.
    is_allowed: bool,
    port: u16,
    transport: Transport,
    /// Whether guard takes it for a packet; asked only, it neither counts nor reports, but writes its answer down.
    is_counted: bool,
    answer: i32,
}

impl Question {
    const fn passes(group: &'static str, hook: Hook, port: u16) -> Self {
        Self {
            group,
            hook,
            is_allowed: port == OLLAMA,
            port,
            transport: Transport::Syn,
            is_counted: true,
            answer: hook.pass(),
        }
    }

    const fn drops() -> Self {
        let (hook, port, answer) = (Hook::Xdp, OLLAMA, XDP_DROP);
        let transport = Transport::Syn;
        Self { group: DROPPED, hook, is_allowed: false, port, transport, is_counted: true, answer }
    }

    fn case(&self, list: ListId) -> String {
        let asked = if self.is_counted { "" } else { ", asked only" };
        format!("guard {}, {list}{asked}", self.hook.name())
    }

    /// What it is compared with.
    fn bare(&self) -> (&'static str, i32) {
        match (self.hook, self.answer) {
            (Hook::Xdp, XDP_DROP) => ("bare XDP_DROP", XDP_DROP),
            (Hook::Xdp, _) => ("bare XDP_PASS", XDP_PASS),
            (Hook::Tcx | Hook::Edge, _) => ("bare TCX pass", TCX_NEXT),
            (Hook::Cgroup, _) => ("bare cgroup pass", CGROUP_PASS),
        }
    }
}

fn subjects(is_quick: bool) -> Vec<Subject> {
    use Shape::{Dense, Mixed, Spread};
    let ten_k = v4(Dense, 10_000);
    let of = |attach, list, questions: &[Question]| Subject {
        attach,
        list,
        questions: questions.to_vec(),
    };
    let allowed = Question::passes(ALLOWED, Hook::Xdp, OLLAMA);
    let dropped = Question::drops();
    let flow = Question { group: FLOW, transport: Transport::Ack, ..allowed };
    let xdp = [allowed, flow, dropped];
    let other = |hook| Question::passes(OTHER_PORT, hook, OTHER);
    let mut subjects = vec![
        of(
            Attach::Native,
            ten_k,
            &[
                other(Hook::Xdp),
                other(Hook::Edge),
                other(Hook::Cgroup),
                allowed,
                flow,
                dropped,
                Question { is_counted: false, ..dropped },
            ],
        ),
        of(Attach::Tcx, ten_k, &[other(Hook::Tcx), Question::passes(ALLOWED, Hook::Tcx, OLLAMA)]),
        of(Attach::Native, v4(Spread, 10), &xdp),
        of(Attach::Native, v6(10_000), &[other(Hook::Xdp), allowed, flow, dropped]),
    ];
    if !is_quick {
        for size in [100_000, 1_000_000] {
            for shape in [Dense, Spread, Mixed] {
                subjects.push(of(Attach::Native, v4(shape, size), &xdp));
            }
            subjects.push(of(Attach::Native, v6(size), &xdp));
        }
    }
    subjects
}

/// The lists that these need.
#[must_use]
pub fn lists(is_quick: bool) -> Vec<ListId> {
    subjects(is_quick).into_iter().map(|subject| subject.list).collect()
}

/// A question that is ready to be asked.
struct Case<'lab> {
    group: &'static str,
    name: String,
    base: &'static str,
    machine: &'lab Machine,
    program: OwnedFd,
    bare: Foreign,
    frame: Vec<u8>,
    context: Vec<u8>,
    answer: i32,
    values: Vec<f64>,
    base_values: Vec<f64>,
}

/// # Errors
/// When a program can't be run, or answers what it should not.
pub fn run(
    bench: &Bench,
    machine: &MachineLock,
    library: &Library,
    results: &mut Results,
) -> Result<()> {
    let mut subjects = subjects(bench.is_quick);
    for subject in &mut subjects {
        let list = subject.list;
        subject.questions.retain(|question| bench.is_wanted(&question.case(list)));
    }
    subjects.retain(|subject| !subject.questions.is_empty());
    subjects.retain(|subject| {
        let filter = Filter::Guard(subject.attach, "");
        bench.can(filter.missing(), &format!("guard with {}", subject.attach), results)
    });
    let labs: Vec<Lab> = (0..subjects.len())
        .map(|number| Lab::on(machine, &format!("bench testrun {number}")))
        .collect();
    let mut guards = Vec::new();
    let mut cases = Vec::new();
    for (subject, lab) in subjects.iter().zip(&labs) {
        bench.say(Part::Testrun, &format!("guard {}, {}", subject.attach, subject.list));
        // The edge has a place where the host has guests.
        let _container = lab.add_container();
        let installed =
            Filter::Guard(subject.attach, "").install(lab, library, Some(subject.list))?;
        guards.push(installed);
        let list = library.list(subject.list)?;
        for question in &subject.questions {
            cases.push(prepare(lab, list, question)?);
        }
    }

    let runs = if bench.is_quick { 20_000 } else { 200_000 };
    let (_, processor) = processors();
    for round in 0..bench.rounds {
        bench.say(
            Part::Testrun,
            &format!("{} programs, round {} of {}", cases.len(), round + 1, bench.rounds),
        );
        for case in forward_and_back(&mut cases, round) {
            let (base, value) = case.machine.inside(|| {
                pin(None, processor)?;
                anyhow::Ok((
                    time(case.bare.program(), &case.frame, None, runs)?.0,
                    time(case.program.as_fd(), &case.frame, Some(&case.context), runs)?,
                ))
            })?;
            let (value, answer) = value;
            ensure!(answer == case.answer, "{}: {}: it answered {answer}", case.group, case.name);
            case.base_values.push(base);
            case.values.push(value);
        }
    }
    for case in cases {
        let noise = noise(&case.base_values);
        if case.base == "bare XDP_DROP" && noise > MOST_NOISE {
            results.noisy.push(format!("{} varied by {noise:.1} beside {}", case.base, case.name));
        }
        let measured = Measured::new(Part::Testrun, case.group, &case.name, "ns", case.values);
        results.measured.push(measured.against(
            case.base,
            Comparison::Difference,
            case.base_values,
        ));
    }
    drop::<Vec<Installed<'_>>>(guards);
    Ok(())
}

fn prepare<'lab>(lab: &'lab Lab, list: &List, question: &Question) -> Result<Case<'lab>> {
    let hook = question.hook;
    let program = guard_program(&lab.pins(), hook.program())
        .with_context(|| format!("{} is not attached", hook.program()))?;
    let source: IpAddr = if question.is_allowed {
        list.prefixes.first().context("the list is empty")?.addr()
    } else {
        outside([list], list.id.family, list.id.shape, 1)[0]
    };
    let to: SocketAddr = match list.id.family {
        Family::V4 => SERVER.v4_at(question.port),
        Family::V6 => SERVER.v6_at(question.port),
    };
    let frame = frame(source, to, question.transport)?;
    let index = if question.is_counted { lab.server.index_of("eth0") } else { LOOPBACK };
    let context = match hook {
        Hook::Xdp => xdp_context(&frame, index),
        Hook::Tcx => skb_context(index, index, 0),
        // Out by the bridge, having come in by the link to the client.
        Hook::Edge => skb_context(lab.server.index_of("br0"), index, 0),
        // The stand-in for a socket has no protocol: without the mark nothing would be looked at.
        Hook::Cgroup => skb_context(index, index, EXPLAIN_MARK),
    };
    let (base, answer) = question.bare();
    let bare = Foreign::unattached(hook.place(), answer).context("a bare program")?;
    Ok(Case {
        group: question.group,
        name: question.case(list.id),
        base,
        machine: &lab.server,
        program,
        bare,
        frame,
        context,
        answer: question.answer,
        values: Vec::new(),
        base_values: Vec::new(),
    })
}

/// `struct xdp_md` of `include/uapi/linux/bpf.h`: where the data begins and ends, its metadata, and how it came in.
fn xdp_context(frame: &[u8], ingress_ifindex: u32) -> Vec<u8> {
    let words = [0, frame.len() as u32, 0, ingress_ifindex, 0, 0];
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// The beginning of `struct __sk_buff` of `include/uapi/linux/bpf.h`; what is not given is zero.
fn skb_context(ifindex: u32, ingress_ifindex: u32, mark: u32) -> Vec<u8> {
    let mut words = [0; 11];
    words[2] = mark;
    words[9] = ingress_ifindex;
    words[10] = ifindex;
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// Nanoseconds that a run takes, and what it answers. The kernel gives way to others at ticks, so the thread's own clock is read.
fn time(
    program: BorrowedFd<'_>,
    frame: &[u8],
    context: Option<&[u8]>,
    runs: u32,
) -> Result<(f64, i32)> {
    let run = |repeat| Run { data: frame, context, repeat, is_live: false }.on(program);
    run(runs / 20)?;
    let before = thread_ns();
    let answer = run(runs)?;
    let spent = thread_ns() - before;
    Ok((spent as f64 / f64::from(runs), answer.cast_signed()))
}

/// What this thread has run so far.
fn thread_ns() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_case_has_the_name_of_another() {
        let mut names = BTreeSet::new();
        for subject in subjects(false) {
            for question in &subject.questions {
                let name = (question.group, question.case(subject.list));
                assert!(names.insert(name.clone()), "{name:?}");
            }
        }
    }

    #[test]
    fn a_context_says_where_the_packet_came_in() {
        let context = xdp_context(&[0; 60], 7);
        assert_eq!(context[4..8], 60_u32.to_ne_bytes());
        assert_eq!(context[12..16], 7_u32.to_ne_bytes());
        let context = skb_context(1, 2, 3);
        assert_eq!(context[8..12], 3_u32.to_ne_bytes());
        assert_eq!(context[36..44], [2, 1].map(u32::to_ne_bytes).concat());
    }
}
