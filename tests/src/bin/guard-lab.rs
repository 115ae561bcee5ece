//! The service that the end-to-end tests guard: `guard-lab ADDRESS CGROUP JOURNAL SERVICE`.
//!
//! It joins the cgroup, binds, says `ready`, writes a line to the journal for each connection or datagram, and ends
//! with its standard input, so that it never outlives the test that started it.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::FromRawFd,
    path::Path,
    process,
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
    let arguments: Vec<String> = std::env::args().skip(1).collect();
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
