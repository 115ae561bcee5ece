//! Asks this host's resolvers for a name's addresses, as `/etc/resolv.conf` and `/etc/hosts` have it at that moment.
//!
//! It blocks, and for a bounded time. Each question goes out from a socket of its own, connected to the resolver, from a port that
//! the kernel chooses, and under a number that nobody can guess; what answers another question is passed over.

use std::{
    fs,
    io::{self, Read, Write},
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket},
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime},
};

use simple_dns::{CLASS, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE, rdata::RData};

use crate::{
    bounded_file,
    policy::names::{Answer, Said},
    rule::DnsName,
};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// Neither file is larger on any sensible host.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// As resolv.conf(5).
const MAX_SERVERS: usize = 3;
const ROUNDS: u32 = 2;
const PORT: u16 = 53;

/// How long one resolver is waited for.
const ONE_TRY: Duration = Duration::from_secs(2);

/// Names asked for side by side.
pub const AT_ONCE: usize = 16;

/// How long what `/etc/hosts` says is taken to hold.
const HOSTS_TTL: Duration = Duration::from_mins(1);

/// What answers a query for addresses is followed through so many aliases.
const MAX_ALIASES: usize = 16;

/// When the files that say whom to ask were last changed.
#[must_use]
pub fn stamp() -> [Option<(SystemTime, u64)>; 2] {
    [RESOLV_CONF, HOSTS].map(|path| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}

/// Asks for these names, at most [`AT_ONCE`] of them, side by side. Ends within `time`.
#[must_use]
pub fn resolve(names: &[DnsName], time: Duration) -> Vec<(DnsName, Answer)> {
    let deadline = Instant::now() + time;
    let hosts = read(HOSTS);
    let servers = &servers(&read(RESOLV_CONF));
    thread::scope(|scope| {
        // All are asked before the first is waited for.
        let asked: Vec<_> = names
            .iter()
            .take(AT_ONCE)
            .map(|name| {
                let of = |kind| scope.spawn(move || ask_all(servers, name, kind, deadline));
                let asked = match in_hosts(&hosts, name) {
                    Some(answer) => Err(answer),
                    None => Ok([of(TYPE::A), of(TYPE::AAAA)]),
                };
                (name, asked)
            })
            .collect();
        let answers = asked.into_iter().map(|(name, asked)| {
            let answer = match asked {
                Ok([v4, v6]) => Answer { v4: joined(v4), v6: joined(v6) },
                Err(answer) => answer,
            };
            (name.clone(), answer)
        });
        answers.collect()
    })
}

fn joined(asked: thread::ScopedJoinHandle<'_, Said>) -> Said {
    let failed =
        |_| Said::Failed("guard met an error of its own while it read the answer".to_owned());
    asked.join().unwrap_or_else(failed)
}

/// A file as text; nothing where it can't be read.
fn read(path: &str) -> String {
    let bytes = bounded_file::read(Path::new(path), MAX_FILE_BYTES).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The resolvers of a text like `/etc/resolv.conf`; this host's own where there is none (resolv.conf(5)).
fn servers(text: &str) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let is_server = words.next() == Some("nameserver");
            words.next().filter(|_| is_server).and_then(server)
        })
        .take(MAX_SERVERS)
        .collect();
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, PORT).into());
    }
    servers
}

/// `192.0.2.53`, `2001:db8::53`, `fe80::1%eth0`.
fn server(word: &str) -> Option<SocketAddr> {
    let Some((address, zone)) = word.split_once('%') else {
        return Some(SocketAddr::new(word.parse().ok()?, PORT));
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let index = if let Ok(index) = zone.parse() {
        index
    } else {
        let family = rustix::net::AddressFamily::INET;
        let socket = rustix::net::socket(family, rustix::net::SocketType::DGRAM, None).ok()?;
        rustix::net::netdevice::name_to_index(socket, zone).ok()?
    };
    Some(SocketAddrV6::new(address, PORT, 0, index).into())
}

/// What a text like `/etc/hosts` says of a name; `None` where it says nothing.
fn in_hosts(text: &str, name: &DnsName) -> Option<Answer> {
    let addresses: Vec<IpAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let address = words.next()?.parse().ok()?;
            let is_it = |word: &str| {
                word.strip_suffix('.').unwrap_or(word).eq_ignore_ascii_case(name.as_str())
            };
            words.any(is_it).then_some(address)
        })
        .collect();
    let of = |is_it: fn(&IpAddr) -> bool| {
        let addresses: Vec<IpAddr> = addresses.iter().filter(|it| is_it(it)).copied().collect();
        if addresses.is_empty() {
            Said::Nothing
        } else {
            Said::Addresses { addresses, ttl: HOSTS_TTL }
        }
    };
    (!addresses.is_empty()).then(|| Answer { v4: of(IpAddr::is_ipv4), v6: of(IpAddr::is_ipv6) })
}

/// Asks one resolver after the other, and all of them again.
fn ask_all(servers: &[SocketAddr], name: &DnsName, kind: TYPE, deadline: Instant) -> Said {
    let mut why = String::new();
    for _ in 0..ROUNDS {
        for server in servers {
            let now = Instant::now();
            if now >= deadline {
                break;
            }
            match ask(*server, name, kind, deadline.min(now + ONE_TRY)) {
                Ok(Said::Failed(failed)) => why = format!("the resolver {} {failed}", server.ip()),
                Ok(said) => return said,
                Err(error) if is_timeout(&error) => {
                    why = format!("the resolver {} does not answer", server.ip());
                }
                Err(error) => why = format!("the resolver {} can't be asked: {error}", server.ip()),
            }
        }
    }
    if why.is_empty() {
        return Said::Failed("no resolver was asked in time".to_owned());
    }
    Said::Failed(why)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

/// Asks a resolver over UDP, and over TCP where its answer does not fit there.
fn ask(server: SocketAddr, name: &DnsName, kind: TYPE, deadline: Instant) -> io::Result<Said> {
    let number = number()?;
    let query = query(number, name, kind)?;
    let socket = UdpSocket::bind(SocketAddr::new(
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() },
        0,
    ))?;
    socket.connect(server)?;
    socket.send(&query)?;
    let mut buffer = [0; 4096];
    loop {
        socket.set_read_timeout(Some(left(deadline)?))?;
        let length = socket.recv(&mut buffer)?;
        match understood(&buffer[..length], number, name, kind) {
            Reply::Other => {}
            Reply::CutShort => return ask_by_tcp(server, &query, number, name, kind, deadline),
            Reply::Said(said) => return Ok(said),
        }
    }
}

fn ask_by_tcp(
    server: SocketAddr,
    query: &[u8],
    number: u16,
    name: &DnsName,
    kind: TYPE,
    deadline: Instant,
) -> io::Result<Said> {
    let mut stream = TcpStream::connect_timeout(&server, left(deadline)?)?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(&[&length.to_be_bytes(), query].concat())?;
    let mut length = [0; 2];
    read_exact(&mut stream, &mut length, deadline)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    read_exact(&mut stream, &mut answer, deadline)?;
    match understood(&answer, number, name, kind) {
        Reply::Said(said) => Ok(said),
        Reply::Other | Reply::CutShort => {
            Ok(Said::Failed("answers another question than was asked".to_owned()))
        }
    }
}

/// As `Read::read_exact`, by a moment: each part that comes would begin the time anew.
fn read_exact(stream: &mut TcpStream, buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut buffer[filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => filled += length,
        }
    }
    Ok(())
}

fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// A number that nobody can guess.
fn number() -> io::Result<u16> {
    let mut bytes = [MaybeUninit::uninit(); 2];
    let (bytes, _) =
        rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
    match bytes {
        [high, low] => Ok(u16::from_be_bytes([*high, *low])),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn query(number: u16, name: &DnsName, kind: TYPE) -> io::Result<Vec<u8>> {
    let name = simple_dns::Name::new(name.as_str()).map_err(io::Error::other)?;
    let mut packet = Packet::new_query(number);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let question = Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false);
    packet.questions.push(question);
    packet.build_bytes_vec().map_err(io::Error::other)
}

/// What a packet from a resolver is.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    /// It answers another question, or is no answer at all.
    Other,
    /// The whole is to be asked for over TCP.
    CutShort,
    Said(Said),
}

fn understood(bytes: &[u8], number: u16, name: &DnsName, kind: TYPE) -> Reply {
    let Ok(packet) = Packet::parse(bytes) else { return Reply::Other };
    let is_name =
        |other: &simple_dns::Name<'_>, name: &str| other.to_string().eq_ignore_ascii_case(name);
    let is_question = matches!(&packet.questions[..], [question]
        if is_name(&question.qname, name.as_str())
            && question.qtype == QTYPE::TYPE(kind)
            && question.qclass == QCLASS::CLASS(CLASS::IN));
    if packet.id() != number || !packet.has_flags(PacketFlag::RESPONSE) || !is_question {
        return Reply::Other;
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Reply::CutShort;
    }
    match packet.rcode() {
        RCODE::NoError => {}
        RCODE::NameError => return Reply::Said(Said::Nothing),
        RCODE::ServerFailure => return failed("fails to find it (SERVFAIL)"),
        RCODE::Refused => return failed("refuses to answer"),
        _ => return failed("does not understand the question"),
    }
    // The name may be another's alias, and that again; only what is said of the last one counts.
    let mut owner = name.as_str().to_owned();
    let mut ttl = u32::MAX;
    for _ in 0..MAX_ALIASES {
        let alias = packet.answers.iter().find_map(|record| match &record.rdata {
            RData::CNAME(alias) if is_name(&record.name, &owner) => {
                Some((alias.0.to_string(), record.ttl))
            }
            _ => None,
        });
        let Some((to, alias_ttl)) = alias else { break };
        owner = to;
        ttl = ttl.min(alias_ttl);
    }
    let mut addresses = Vec::new();
    for record in &packet.answers {
        let address: IpAddr = match &record.rdata {
            RData::A(a) if kind == TYPE::A => Ipv4Addr::from(a.address).into(),
            RData::AAAA(aaaa) if kind == TYPE::AAAA => Ipv6Addr::from(aaaa.address).into(),
            _ => continue,
        };
        if record.class == CLASS::IN && is_name(&record.name, &owner) {
            addresses.push(address);
            ttl = ttl.min(record.ttl);
        }
    }
    if addresses.is_empty() {
        return Reply::Said(Said::Nothing);
    }
    Reply::Said(Said::Addresses { addresses, ttl: Duration::from_secs(ttl.into()) })
}

fn failed(what: &str) -> Reply {
    Reply::Said(Said::Failed(what.to_owned()))
}

#[cfg(test)]
mod tests {
    use simple_dns::{
        Name, ResourceRecord,
        rdata::{A, AAAA, CNAME},
    };

    use super::*;

    fn name() -> DnsName {
        "host.example.org".parse().unwrap()
    }

    fn reply(number: u16, kind: TYPE, records: Vec<ResourceRecord<'_>>) -> Packet<'_> {
        let mut packet = Packet::new_reply(number);
        let question = Question::new(
            Name::new("Host.Example.org").unwrap(),
            QTYPE::TYPE(kind),
            QCLASS::CLASS(CLASS::IN),
            false,
        );
        packet.questions.push(question);
        packet.answers = records;
        packet
    }

    fn a(owner: &str, address: [u8; 4], ttl: u32) -> ResourceRecord<'_> {
        let rdata = RData::A(A { address: u32::from_be_bytes(address) });
        ResourceRecord::new(Name::new(owner).unwrap(), CLASS::IN, ttl, rdata)
    }

    fn alias<'a>(owner: &'a str, to: &'a str, ttl: u32) -> ResourceRecord<'a> {
        let rdata = RData::CNAME(CNAME(Name::new(to).unwrap()));
        ResourceRecord::new(Name::new(owner).unwrap(), CLASS::IN, ttl, rdata)
    }

    fn read_as(packet: &Packet<'_>, kind: TYPE) -> Reply {
        understood(&packet.build_bytes_vec().unwrap(), 7, &name(), kind)
    }

    fn addresses(texts: &[&str], ttl: u64) -> Reply {
        let addresses = texts.iter().map(|text| text.parse().unwrap()).collect();
        Reply::Said(Said::Addresses { addresses, ttl: Duration::from_secs(ttl) })
    }

    #[test]
    fn addresses_come_with_the_shortest_time_to_live() {
        let records = vec![
            a("HOST.example.org", [192, 0, 2, 1], 60),
            a("host.example.org", [192, 0, 2, 2], 7),
        ];
        let packet = reply(7, TYPE::A, records);
        assert_eq!(read_as(&packet, TYPE::A), addresses(&["192.0.2.1", "192.0.2.2"], 7));
        let rdata =
            RData::AAAA(AAAA { address: "2001:db8::1".parse::<Ipv6Addr>().unwrap().into() });
        let owner = Name::new("host.example.org").unwrap();
        let six = ResourceRecord::new(owner, CLASS::IN, 9, rdata);
        let packet = reply(7, TYPE::AAAA, vec![six]);
        assert_eq!(read_as(&packet, TYPE::AAAA), addresses(&["2001:db8::1"], 9));
    }

    #[test]
    fn aliases_are_followed_and_what_is_said_of_others_is_passed_over() {
        let records = vec![
            a("one.example.net", [192, 0, 2, 1], 60),
            alias("two.example.net", "one.example.net", 30),
            alias("host.example.org", "TWO.example.net", 90),
            a("evil.example.net", [198, 51, 100, 1], 60),
            a("host.example.org", [198, 51, 100, 2], 60),
        ];
        let packet = reply(7, TYPE::A, records);
        assert_eq!(read_as(&packet, TYPE::A), addresses(&["192.0.2.1"], 30));
        let circle = vec![
            alias("host.example.org", "two.example.net", 30),
            alias("two.example.net", "host.example.org", 30),
            a("evil.example.net", [198, 51, 100, 1], 60),
        ];
        assert_eq!(read_as(&reply(7, TYPE::A, circle), TYPE::A), Reply::Said(Said::Nothing));
    }

    #[test]
    fn what_answers_another_question_is_passed_over() {
        let good = || vec![a("host.example.org", [192, 0, 2, 1], 60)];
        assert_eq!(read_as(&reply(8, TYPE::A, good()), TYPE::A), Reply::Other);
        assert_eq!(read_as(&reply(7, TYPE::A, good()), TYPE::AAAA), Reply::Other);
        let mut packet = reply(7, TYPE::A, good());
        packet.questions[0].qname = Name::new("other.example.org").unwrap();
        assert_eq!(read_as(&packet, TYPE::A), Reply::Other);
        let mut packet = reply(7, TYPE::A, good());
        packet.remove_flags(PacketFlag::RESPONSE);
        assert_eq!(read_as(&packet, TYPE::A), Reply::Other);
        let mut packet = reply(7, TYPE::A, good());
        packet.questions.clear();
        assert_eq!(read_as(&packet, TYPE::A), Reply::Other);
        let whole = reply(7, TYPE::A, good()).build_bytes_vec().unwrap();
        for length in 0..whole.len() {
            assert_eq!(understood(&whole[..length], 7, &name(), TYPE::A), Reply::Other, "{length}");
        }
    }

    #[test]
    fn failures_are_told_from_names_that_are_not_there() {
        let mut packet = reply(7, TYPE::A, Vec::new());
        assert_eq!(read_as(&packet, TYPE::A), Reply::Said(Said::Nothing));
        *packet.rcode_mut() = RCODE::NameError;
        assert_eq!(read_as(&packet, TYPE::A), Reply::Said(Said::Nothing));
        for rcode in [RCODE::ServerFailure, RCODE::Refused, RCODE::FormatError] {
            *packet.rcode_mut() = rcode;
            assert!(matches!(read_as(&packet, TYPE::A), Reply::Said(Said::Failed(_))), "{rcode:?}");
        }
        packet.set_flags(PacketFlag::TRUNCATION);
        assert_eq!(read_as(&packet, TYPE::A), Reply::CutShort);
    }

    #[test]
    fn the_systems_files_say_whom_to_ask() {
        let text = "# a comment\nsearch example.org\nnameserver 192.0.2.53\n nameserver\t2001:db8::53 x\n\
                    nameserver fe80::1%1\nnameserver nonsense\nnameserver 192.0.2.54\n";
        let expected = ["192.0.2.53:53", "[2001:db8::53]:53", "[fe80::1%1]:53"];
        assert_eq!(servers(text).iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        assert_eq!(servers("options edns0\n"), ["127.0.0.1:53".parse().unwrap()]);

        let text = "127.0.0.1 localhost\n192.0.2.1 other HOST.example.org. # host\n2001:db8::1 host.example.org\n\
                    192.0.2.2 # host.example.org\nx host.example.org\n";
        let answer = in_hosts(text, &name()).unwrap();
        let of =
            |text: &str| Said::Addresses { addresses: vec![text.parse().unwrap()], ttl: HOSTS_TTL };
        assert_eq!(answer, Answer { v4: of("192.0.2.1"), v6: of("2001:db8::1") });
        assert_eq!(in_hosts(text, &"local.example".parse().unwrap()), None);
    }
}
