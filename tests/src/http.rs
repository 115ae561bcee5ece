//! As much HTTP as the lab speaks: one fixed answer over TCP, and raw requests to a Unix socket.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use crate::wait::PATIENCE;

/// What the listener answers, as an Ollama server does to `GET /`.
pub const BODY: &str = "Ollama is running";

/// What a client asks.
pub const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: server\r\n\r\n";

/// Asks over an open connection, and reads to the end of the listener's answer.
///
/// # Errors
/// Of kind `WouldBlock` when nothing comes back within the stream's time limit.
pub fn ask(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(REQUEST)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    while !answer.ends_with(BODY.as_bytes()) {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&buffer[..length]);
    }
    Ok(())
}

/// Opens a connection and asks.
///
/// # Errors
/// When nobody answers.
pub fn get(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    ask(&mut stream)
}

/// An answer of the control API.
#[derive(Debug)]
pub struct ApiAnswer {
    pub code: u16,
    pub body: String,
}

impl ApiAnswer {
    /// The body, which must be JSON.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| {
            panic!("the API answered something else than JSON ({error}): {self:?}")
        })
    }
}

/// Sends a request with this body to the control API.
#[must_use]
#[track_caller]
pub fn ask_api(socket: &Path, method: &str, target: &str, body: &str) -> ApiAnswer {
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: guard\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    send_to_api(socket, request.as_bytes())
        .unwrap_or_else(|error| panic!("the API did not answer {method} {target}: {error}"))
}

/// Sends bytes to the control API, and reads its answer to the end.
///
/// # Errors
/// When the socket can't be reached, or what comes back is not an HTTP answer.
pub fn send_to_api(socket: &Path, request: &[u8]) -> io::Result<ApiAnswer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    // The API may refuse a request, answer and close before it has read all of it.
    let written = stream.write_all(request);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if answer.is_empty() => return Err(error),
        _ if answer.is_empty() => written?,
        _ => {}
    }
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code = code.ok_or_else(|| io::Error::other(format!("not an HTTP answer: {answer:?}")))?;
    Ok(ApiAnswer { code, body: body.to_owned() })
}
