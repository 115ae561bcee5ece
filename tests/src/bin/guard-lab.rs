//! The service that the end-to-end tests guard: `guard-lab ADDRESS CGROUP JOURNAL SERVICE`.
//!
//! Under the name of a container engine's forwarder it takes that one's command line, and relays TCP.
//!
//! It joins the cgroup, binds, says `ready`, writes a line to the journal for each connection or datagram, and ends
//! with its standard input, so that it never outlives the test that started it.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    mem::MaybeUninit,
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::FromRawFd,
    path::Path,
    process::{self, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use guard_tests::{
    http,
    listener::{ENDED, INHERITED, Kind, bind_http},
};
use socket2::{Domain, Protocol, Socket, Type};

/// The pause of a stream after each of its pieces.
const BETWEEN_TOKENS: Duration = Duration::from_millis(5);

fn main() -> Result<()> {
    let mut arguments = std::env::args();
    let own_path = arguments.next().unwrap_or_default();
    let arguments: Vec<String> = arguments.collect();
    match Path::new(&own_path).file_name().and_then(|name| name.to_str()) {
        Some("guard-lab") | None => {}
        Some("rootlessport") => return forward_as_told(),
        Some(_) => return forward_as_docker_proxy(&arguments),
    }
    let [address, cgroup, journal, service, peer @ ..] = arguments.as_slice() else {
        bail!("usage: guard-lab ADDRESS CGROUP JOURNAL SERVICE [PEER]");
    };
    let address = parse(address)?;
    let made_before = match service.as_str() {
        "http-made-before" => Some(bind_http(address, Kind::Ordinary)?),
        "http-inherited" => Some(inherited()),
        _ => None,
    };
    let cgroup = Path::new(cgroup).join("cgroup.procs");
    fs::write(&cgroup, process::id().to_string())
        .with_context(|| format!("{} can't be written", cgroup.display()))?;
    let journal = Journal::new(Path::new(journal))?;
    end_with_standard_input();
    if let Some(listener) = made_before {
        return serve_http(&listener, &journal);
    }
    match (service.as_str(), peer) {
        ("http", []) => serve_http(&bind_http(address, Kind::Ordinary)?, &journal),
        ("http-transparent", []) => serve_http(&bind_http(address, Kind::Transparent)?, &journal),
        ("http-multipath", []) => serve_http(&bind_http(address, Kind::Multipath)?, &journal),
        ("stream", []) => serve_stream(&bind_http(address, Kind::Ordinary)?, journal),
        ("stream-transparent", []) => {
            serve_stream(&bind_http(address, Kind::Transparent)?, journal)
        }
        ("echo", []) => serve_echo(&UdpSocket::bind(address)?, &journal),
        ("echo-to", [peer]) => {
            let socket = UdpSocket::bind(address)?;
            socket.connect(parse(peer)?)?;
            serve_echo(&socket, &journal)
        }
        ("sink", []) => serve_sink(&bind_http(address, Kind::Ordinary)?),
        ("raw", []) => hear_copies(address, &journal),
        (other, _) => bail!("{other} is no service"),
    }
}

fn parse(address: &str) -> Result<SocketAddr> {
    address.parse().with_context(|| format!("{address} is not an address"))
}

fn inherited() -> TcpListener {
    // SAFETY: who starts this service hands over a listening socket there, and nothing else here knows of it.
    unsafe { TcpListener::from_raw_fd(INHERITED) }
}

/// `docker-proxy -host-ip A -host-port P -container-ip A -container-port P`
fn forward_as_docker_proxy(arguments: &[String]) -> Result<()> {
    let value = |flag: &str| {
        let place = arguments.iter().position(|argument| argument == flag);
        let value = place.and_then(|place| arguments.get(place + 1));
        value.with_context(|| format!("{flag} is missing"))
    };
    let address = |ip: &str, port: &str| -> Result<SocketAddr> {
        Ok((value(ip)?.parse::<IpAddr>()?, value(port)?.parse::<u16>()?).into())
    };
    let listens = address("-host-ip", "-host-port")?;
    let to = address("-container-ip", "-container-port")?;
    end_with_standard_input();
    forward(listens, to)
}

/// Standard input says `ADDRESS TO NETNS`, and a child waits in that network namespace.
fn forward_as_told() -> Result<()> {
    let mut orders = String::new();
    io::stdin().read_line(&mut orders)?;
    let words: Vec<&str> = orders.split_whitespace().collect();
    let [listens, to, netns] = words[..] else { bail!("{orders:?} is no order") };
    // `cat` ends with its standard input: with this process, however that ends.
    let mut inside = Command::new("nsenter")
        .args([&format!("--net={netns}"), "cat"])
        .stdin(Stdio::piped())
        .spawn()?;
    let (listens, to) = (listens.parse()?, to.parse()?);
    thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        drop(inside.stdin.take());
        let _ = inside.wait();
        process::exit(0);
    });
    forward(listens, to)
}

/// Relays every connection. An IPv6 socket takes IPv6 only, since another process has the port's IPv4.
fn forward(listens: SocketAddr, to: SocketAddr) -> Result<()> {
    let socket = Socket::new(Domain::for_address(listens), Type::STREAM, None)?;
    if listens.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&listens.into()).with_context(|| format!("{listens} can't be bound"))?;
    socket.listen(1024)?;
    say_ready()?;
    let listener = TcpListener::from(socket);
    loop {
        let (client, _) = listener.accept()?;
        // A connection that ends in the middle is its caller's business.
        thread::spawn(move || relay(&client, &TcpStream::connect(to)?));
    }
}

fn relay(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    thread::scope(|scope| {
        scope.spawn(|| pass_on(server, client));
        pass_on(client, server)
    })
}

fn pass_on(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    io::copy(&mut from, &mut to)?;
    to.shutdown(Shutdown::Write)
}

fn end_with_standard_input() {
    thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        process::exit(0);
    });
}

fn say_ready() -> Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "ready")?;
    Ok(output.flush()?)
}

fn serve_http(listener: &TcpListener, journal: &Journal) -> Result<()> {
    say_ready()?;
    loop {
        let (stream, peer) = listener.accept()?;
        journal.write(peer)?;
        thread::spawn(move || {
            // A connection that ends in the middle is its caller's business.
            let _ = answer(stream);
        });
    }
}

/// Answers every request of a connection.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    let answer =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}", http::BODY.len(), http::BODY);
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..length]);
        if request.ends_with(b"\r\n\r\n") {
            request.clear();
            stream.write_all(answer.as_bytes())?;
        }
    }
}

fn serve_stream(listener: &TcpListener, journal: Journal) -> Result<()> {
    say_ready()?;
    let journal = Arc::new(journal);
    loop {
        let (mut stream, peer) = listener.accept()?;
        journal.write(peer)?;
        let journal = Arc::clone(&journal);
        thread::spawn(move || -> io::Result<()> {
            while stream.write_all(b"token ").is_ok() {
                thread::sleep(BETWEEN_TOKENS);
            }
            journal.write_line(&format!("{ENDED}{peer}"))
        });
    }
}

fn serve_sink(listener: &TcpListener) -> Result<()> {
    say_ready()?;
    loop {
        let (mut stream, _) = listener.accept()?;
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 18];
            while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
        });
    }
}

fn serve_echo(socket: &UdpSocket, journal: &Journal) -> Result<()> {
    say_ready()?;
    let mut buffer = vec![0; 65536];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer)?;
        journal.write(peer)?;
        // A datagram's sender may be spoofed, and unreachable.
        let _ = socket.send_to(&buffer[..length], peer);
    }
}

fn hear_copies(address: SocketAddr, journal: &Journal) -> Result<()> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::TCP))?;
    say_ready()?;
    loop {
        let (_, peer) = socket.recv_from(&mut [MaybeUninit::uninit(); 2048])?;
        journal.write(peer.as_socket().context("a raw packet has no source")?)?;
    }
}

struct Journal {
    file: File,
}

impl Journal {
    fn new(path: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("{} can't be opened", path.display()))?;
        Ok(Self { file })
    }

    /// In one write, before anything is answered: who has an answer finds itself in the journal.
    fn write(&self, peer: SocketAddr) -> io::Result<()> {
        self.write_line(&peer.to_string())
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        (&self.file).write_all(format!("{line}\n").as_bytes())
    }
}
