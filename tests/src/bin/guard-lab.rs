//! The service that the end-to-end tests guard: `guard-lab SERVICE ADDRESS CGROUP JOURNAL`.
//!
//! Under the name of a container engine's forwarder it takes that one's command line, and relays TCP.
//!
//! It joins the cgroup, binds, says `ready`, writes a line to the journal for each connection or datagram, and ends
//! with its standard input, so that it never outlives the test that started it.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::{self, Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};
use guard_tests::http;
use socket2::{Domain, Socket, Type};

fn main() -> Result<()> {
    let mut arguments = std::env::args();
    let own_path = arguments.next().unwrap_or_default();
    let arguments: Vec<String> = arguments.collect();
    match Path::new(&own_path).file_name().and_then(|name| name.to_str()) {
        Some("guard-lab") | None => {}
        Some("rootlessport") => return forward_as_told(),
        Some(_) => return forward_as_docker_proxy(&arguments),
    }
    let [service, address, cgroup, journal] = arguments.as_slice() else {
        bail!("usage: guard-lab http|http-transparent|echo ADDRESS CGROUP JOURNAL");
    };
    let address = address.parse().with_context(|| format!("{address} is not an address"))?;
    let cgroup = Path::new(cgroup).join("cgroup.procs");
    fs::write(&cgroup, process::id().to_string())
        .with_context(|| format!("{} can't be written", cgroup.display()))?;
    let journal = Journal::new(Path::new(journal))?;
    end_with_standard_input();
    match service.as_str() {
        "http" => serve_http(&bind_http(address, false)?, &journal),
        "http-transparent" => serve_http(&bind_http(address, true)?, &journal),
        "echo" => serve_echo(&UdpSocket::bind(address)?, &journal),
        other => bail!("{other} is no service: it is http, http-transparent or echo"),
    }
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

fn bind_http(address: SocketAddr, transparent: bool) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if transparent {
        socket.set_ip_transparent_v4(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("{address} can't be bound"))?;
    socket.listen(1024)?;
    Ok(socket.into())
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

fn serve_echo(socket: &UdpSocket, journal: &Journal) -> Result<()> {
    say_ready()?;
    let mut buffer = [0; 1024];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer)?;
        journal.write(peer)?;
        // A datagram's sender may be spoofed, and unreachable.
        let _ = socket.send_to(&buffer[..length], peer);
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
        (&self.file).write_all(format!("{peer}\n").as_bytes())
    }
}
