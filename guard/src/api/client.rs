//! The command line's side of the control API. It blocks.

use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, runtime::Runtime, time::timeout};

use super::{Presence, presence};
use crate::{
    control::{
        AddRules, Change, Control, Explain, Explanation, Failure, FailureKind, Reload, RemoveRules,
        RuleView, SetMode, Status,
    },
    events::Line,
    history::{History, Requester},
    progress::Loading,
    rates::RatesView,
};

/// How long an answer is waited for.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// The largest answer that is read: some 200,000 rules.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// The longest line of an event stream.
const MAX_LINE_BYTES: usize = 64 << 10;

/// Speaks to a daemon. Must not be used within a runtime: it has its own, and blocks.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// A client of the daemon at this socket; `None` when no daemon is there.
    ///
    /// # Errors
    /// When the caller may not open the socket, or the system refuses.
    pub fn connect(socket: &Path) -> Result<Option<Self>, Failure> {
        match presence(socket).map_err(|error| cannot_connect(socket, &error))? {
            Presence::Listening => {}
            Presence::Nobody => return Ok(None),
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(
            |error| {
                Failure::failed(
                    format!("the client could not be started: {error}"),
                    "Look for limits on processes and open files (ulimit -a).",
                )
            },
        )?;
        Ok(Some(Self { socket: socket.to_owned(), runtime }))
    }

    /// Gives each line of the event stream to `take`, until that breaks off or the stream ends.
    ///
    /// With `follow`, attempts come as they happen, and the stream ends with the daemon. `since` asks for those of the last
    /// so many seconds first; without it, all that are kept come, or none when following.
    ///
    /// # Errors
    /// When the daemon refuses, does not begin its answer in time, or breaks the stream.
    pub fn events(
        &self,
        follow: bool,
        since: Option<u64>,
        mut take: impl FnMut(Line) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let path = match since {
            Some(seconds) => format!("/v1/events?follow={follow}&since={seconds}"),
            None => format!("/v1/events?follow={follow}"),
        };
        self.runtime.block_on(async {
            let response = in_time(send(&self.socket, Method::GET, &path, Bytes::new())).await?;
            if !response.status().is_success() {
                let status = response.status();
                return Err(failure_in(status, &in_time(read_whole(response)).await?));
            }
            let mut body = response.into_body();
            let mut lines = Lines::default();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(broken_off)?;
                let Some(data) = frame.data_ref() else { continue };
                if lines.push(data, &mut take)?.is_break() {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Asks, and reads the answer.
    fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, Failure> {
        self.runtime.block_on(in_time(async {
            let response = send(&self.socket, method, path, body).await?;
            let status = response.status();
            let body = read_whole(response).await?;
            if !status.is_success() {
                return Err(failure_in(status, &body));
            }
            serde_json::from_slice(&body).map_err(|error| not_understood(&error))
        }))
    }

    fn ask_with<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        request: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(request).map_err(|error| {
            Failure::failed(
                format!("the request can't be written as JSON: {error}"),
                "Report this as an error of guard.",
            )
        })?;
        self.ask(method, path, body.into())
    }
}

impl Control for Client {
    fn status(&self) -> Result<Status, Failure> {
        self.ask(Method::GET, "/v1/status", Bytes::new())
    }

    fn rules(&self) -> Result<Vec<RuleView>, Failure> {
        self.ask(Method::GET, "/v1/rules", Bytes::new())
    }

    fn add_rules(&self, request: &AddRules, _: &Requester) -> Result<Change, Failure> {
        self.ask_with(Method::POST, "/v1/rules", request)
    }

    fn remove_rules(&self, request: &RemoveRules, _: &Requester) -> Result<Change, Failure> {
        self.ask_with(Method::DELETE, "/v1/rules", request)
    }

    fn set_mode(&self, request: &SetMode, _: &Requester) -> Result<Change, Failure> {
        self.ask_with(Method::POST, "/v1/mode", request)
    }

    fn explain(&self, request: &Explain) -> Result<Explanation, Failure> {
        self.ask_with(Method::POST, "/v1/explain", request)
    }

    fn reload(&self, request: &Reload, _: &Requester) -> Result<Change, Failure> {
        self.ask_with(Method::POST, "/v1/reload", request)
    }

    fn down(&self, _: &Requester) -> Result<Vec<String>, Failure> {
        self.ask(Method::POST, "/v1/down", Bytes::new())
    }

    fn confirm(&self, _: &Requester) -> Result<Change, Failure> {
        self.ask(Method::POST, "/v1/confirm", Bytes::new())
    }

    fn rollback(&self, _: &Requester) -> Result<Change, Failure> {
        self.ask(Method::POST, "/v1/rollback", Bytes::new())
    }

    fn loading(&self) -> Result<Option<Loading>, Failure> {
        self.ask(Method::GET, "/v1/loading", Bytes::new())
    }

    fn rates(&self) -> Result<RatesView, Failure> {
        self.ask(Method::GET, "/v1/rates", Bytes::new())
    }

    fn history(&self, since_seconds: Option<u64>) -> Result<History, Failure> {
        let path = match since_seconds {
            Some(seconds) => format!("/v1/history?since={seconds}"),
            None => "/v1/history".to_owned(),
        };
        self.ask(Method::GET, &path, Bytes::new())
    }
}

fn cannot_connect(socket: &Path, error: &io::Error) -> Failure {
    let socket = socket.display();
    if error.kind() == io::ErrorKind::PermissionDenied {
        return Failure {
            kind: FailureKind::Forbidden,
            what: format!("the daemon's socket {socket} needs root or the group guard"),
            fix: Some("Run the command as root, with sudo for example.".to_owned()),
        };
    }
    Failure::failed(
        format!("the daemon's socket {socket} can't be opened: {error}"),
        "Look whether the daemon is well, and whether the path is right ([paths] socket).",
    )
}

async fn send(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Response<Incoming>, Failure> {
    let stream =
        UnixStream::connect(socket).await.map_err(|error| cannot_connect(socket, &error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(broken_off)?;
    // Its error, if any, comes out of the request as well.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "guard")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| {
            Failure::failed(
                format!("the request can't be written: {error}"),
                "Report this as an error of guard.",
            )
        })?;
    sender.send_request(request).await.map_err(broken_off)
}

async fn read_whole(response: Response<Incoming>) -> Result<Bytes, Failure> {
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
    Ok(body.map_err(broken_off)?.to_bytes())
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(ANSWER_TIME, answer).await.unwrap_or_else(|_| {
        Err(Failure::failed(
            format!("the daemon did not answer within {} seconds", ANSWER_TIME.as_secs()),
            "Try again; if it stays so, restart the daemon: the kernel goes on enforcing meanwhile.",
        ))
    })
}

fn broken_off(error: impl std::fmt::Display) -> Failure {
    Failure::failed(
        format!("the daemon broke off its answer: {error}"),
        "Look at its log, and ask again (guard status).",
    )
}

fn not_understood(error: &serde_json::Error) -> Failure {
    Failure::failed(
        format!("the daemon's answer was not understood: {error}"),
        "Restart the daemon: it may be of another version (guard --version).",
    )
}

/// The failure that an answer with an error's status holds.
fn failure_in(status: hyper::StatusCode, body: &[u8]) -> Failure {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        Failure::failed(
            format!("the daemon answered with HTTP status {status}"),
            "Restart the daemon: it may be of another version (guard --version).",
        )
    })
}

/// Puts lines together again from the pieces they arrive in.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn push(
        &mut self,
        data: &[u8],
        take: &mut impl FnMut(Line) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Failure> {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            if self.rest.len() + piece.len() > MAX_LINE_BYTES {
                return Err(broken_off(format_args!(
                    "a line is longer than {MAX_LINE_BYTES} bytes"
                )));
            }
            self.rest.extend_from_slice(piece);
            if !piece.ends_with(b"\n") {
                break;
            }
            let line =
                serde_json::from_slice(&self.rest).map_err(|error| not_understood(&error))?;
            self.rest.clear();
            if take(line).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(pieces: &[&[u8]]) -> Result<Vec<Line>, Failure> {
        let mut lines = Lines::default();
        let mut taken = Vec::new();
        for piece in pieces {
            let _ = lines.push(piece, &mut |line| {
                taken.push(line);
                ControlFlow::Continue(())
            })?;
        }
        Ok(taken)
    }

    #[test]
    fn lines_are_put_together_from_any_pieces() {
        let lagged = |lagged| Line::Lagged { lagged };
        let whole: &[u8] = b"{\"lagged\":1}\n{\"lagged\":2}\n";
        for cut in 0..=whole.len() {
            let (head, tail) = whole.split_at(cut);
            assert_eq!(lines_of(&[head, tail]).unwrap(), [lagged(1), lagged(2)], "cut at {cut}");
        }
        assert_eq!(lines_of(&[b"{\"lagged\":1}"]).unwrap(), []);
    }

    #[test]
    fn a_line_is_bounded_and_must_be_one() {
        let endless = vec![b' '; MAX_LINE_BYTES + 1];
        assert!(lines_of(&[&endless]).unwrap_err().what.contains("longer than"));
        assert!(lines_of(&[b"nonsense\n"]).unwrap_err().what.contains("not understood"));
    }

    #[test]
    fn a_taker_can_break_off() {
        let mut taken = 0;
        let mut take = |_| {
            taken += 1;
            ControlFlow::Break(())
        };
        let result = Lines::default().push(b"{\"lagged\":1}\n{\"lagged\":2}\n", &mut take).unwrap();
        assert!(result.is_break());
        assert_eq!(taken, 1);
    }

    #[test]
    fn nobody_there_is_no_failure() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("guard.sock");
        assert!(Client::connect(&socket).unwrap().is_none(), "no socket");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(Client::connect(&socket).unwrap().is_none(), "a socket that nobody listens on");
    }

    #[test]
    fn a_closed_door_names_the_key() {
        let error = io::Error::from(io::ErrorKind::PermissionDenied);
        let failure = cannot_connect(Path::new("/run/guard/guard.sock"), &error);
        assert_eq!(failure.kind, FailureKind::Forbidden);
        assert_eq!(
            failure.what,
            "the daemon's socket /run/guard/guard.sock needs root or the group guard"
        );
    }

    #[test]
    fn an_answer_that_is_no_failure_still_becomes_one() {
        let failure = failure_in(hyper::StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(failure.what, "the daemon answered with HTTP status 502 Bad Gateway");
    }
}
