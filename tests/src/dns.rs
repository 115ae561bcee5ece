//! A resolver on a lab's machine that answers as it is told.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use simple_dns::{
    CLASS, Packet, QTYPE, RCODE, ResourceRecord, TYPE,
    rdata::{A, AAAA, RData},
};

use crate::machine::Machine;

/// Where it listens; `127.0.0.1` is the machine's own.
const ADDRESS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 53);

/// What it says of a name.
#[derive(Clone, Debug)]
pub enum Says {
    /// These, of either family, and how many seconds they live.
    Addresses(Vec<IpAddr>, u32),
    /// There is no such name.
    NoSuchName,
    /// It fails.
    Failure,
    /// These, but to a question that nobody asked.
    Misleading(Vec<IpAddr>),
    Silence,
}

/// A running resolver. It ends when this is dropped.
#[derive(Debug)]
pub struct Resolver {
    says: Arc<Mutex<BTreeMap<String, Says>>>,
    asked: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl Resolver {
    /// Starts it on a machine.
    #[must_use]
    #[track_caller]
    pub fn start(machine: &Machine) -> Self {
        let socket = machine
            .inside(|| UdpSocket::bind(SocketAddr::from(ADDRESS)))
            .unwrap_or_else(|error| panic!("the resolver can't be bound: {error}"));
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap_or_else(|error| panic!("the resolver can't be bounded: {error}"));
        let mut resolver = Self {
            says: Arc::default(),
            asked: Arc::default(),
            is_over: Arc::default(),
            worker: None,
        };
        let (says, asked, is_over) =
            (resolver.says.clone(), resolver.asked.clone(), resolver.is_over.clone());
        let worker = thread::spawn(move || {
            let mut buffer = [0; 1500];
            while !is_over.load(Ordering::Relaxed) {
                let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
                for answer in answers(&buffer[..length], &says) {
                    let _ = socket.send_to(&answer, peer);
                }
                asked.fetch_add(1, Ordering::Relaxed);
            }
        });
        resolver.worker = Some(worker);
        resolver
    }

    /// From here on it says this of a name.
    pub fn say(&self, name: &str, says: Says) {
        let mut all = self.says.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(name.to_owned(), says);
    }

    /// How many questions it has met.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

fn answers(question: &[u8], says: &Mutex<BTreeMap<String, Says>>) -> Vec<Vec<u8>> {
    let Ok(packet) = Packet::parse(question) else { return Vec::new() };
    let Some(asked) = packet.questions.first() else { return Vec::new() };
    let name = asked.qname.to_string();
    let said = says.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
    let reply = |number: u16, addresses: &[IpAddr], ttl: u32| {
        let mut reply = Packet::new_reply(number);
        reply.questions = packet.questions.clone();
        reply.answers = addresses
            .iter()
            .filter_map(|address| match (address, asked.qtype) {
                (IpAddr::V4(v4), QTYPE::TYPE(TYPE::A)) => {
                    Some(RData::A(A { address: u32::from(*v4) }))
                }
                (IpAddr::V6(v6), QTYPE::TYPE(TYPE::AAAA)) => {
                    Some(RData::AAAA(AAAA { address: u128::from(*v6) }))
                }
                _ => None,
            })
            .map(|data| ResourceRecord::new(asked.qname.clone(), CLASS::IN, ttl, data))
            .collect();
        reply
    };
    let written = |reply: Packet<'_>| reply.build_bytes_vec_compressed().into_iter().collect();
    let refused = |rcode: RCODE| {
        let mut reply = reply(packet.id(), &[], 0);
        *reply.rcode_mut() = rcode;
        written(reply)
    };
    match said {
        Some(Says::Addresses(addresses, ttl)) => written(reply(packet.id(), &addresses, ttl)),
        Some(Says::NoSuchName) => refused(RCODE::NameError),
        Some(Says::Failure) | None => refused(RCODE::ServerFailure),
        Some(Says::Misleading(addresses)) => {
            let other_number = reply(packet.id().wrapping_add(1), &addresses, 5);
            let mut other_name = reply(packet.id(), &addresses, 5);
            if let Ok(other) = simple_dns::Name::new("other.example.org") {
                other_name.questions[0].qname = other;
            }
            [other_number, other_name]
                .into_iter()
                .filter_map(|reply| reply.build_bytes_vec_compressed().ok())
                .chain([vec![0; 3], question.to_vec()])
                .collect()
        }
        Some(Says::Silence) => Vec::new(),
    }
}
