//! The service that the end-to-end tests guard: `guard-lab SERVICE ADDRESS CGROUP JOURNAL`.
//!
//! It joins the cgroup, binds, says `ready`, writes a line to the journal for each connection or datagram, and ends
//! with its standard input, so that it never outlives the test that started it.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process, thread,
};

use anyhow::{Context, Result, bail};
use guard_tests::http;
use socket2::{Domain, Socket, Type};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
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
    let mut buffer = vec![0; 65536];
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
