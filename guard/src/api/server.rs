//! The daemon's side of the control API.
//!
//! Who may open the socket (root and the group `guard`, by its file mode) may read; only root may change anything. A
//! connection carries one request. How many there are, how long each part of one may take and how large it may be are
//! bounded, so that no peer can keep another from being answered.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{FromRequest, Query, Request, State, rejection::QueryRejection},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Presence, presence};
use crate::{
    control::{
        AddRules, Change, Control, Explain, Failure, FailureKind, Reload, RemoveRules, SetMode,
        Status,
    },
    events::{Follower, Hub, Line},
    history::{Requester, seconds_before},
    metrics,
};

/// Connections served at once; more wait in the socket's queue.
const MAX_CONNECTIONS: usize = 64;
/// Of these, how many users who may only read can have: the others are always there for root.
const MAX_OF_READERS: usize = 40;
/// How many may follow events, and of these how many of such users. The others are always there for requests.
const MAX_FOLLOWERS: usize = 32;
const MAX_FOLLOWING_READERS: usize = 16;
/// The largest request body.
const MAX_BODY_BYTES: usize = 1 << 20;
/// The largest request head.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// In which a request's head must have come, and then its body.
const READ_TIME: Duration = Duration::from_secs(10);
/// How long a connection that does not follow events may last. Longer than any client of guard waits.
const CONNECTION_TIME: Duration = Duration::from_mins(1);
/// How long answers under way are waited for at the end.
const CLOSING_TIME: Duration = Duration::from_secs(5);
/// Before the next attempt when no connection could be accepted (no file descriptor is free, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The group whose members may open the socket.
const GROUP: &str = "guard";

/// What the engine's requests go to. They block.
pub type SharedControl = Arc<dyn Control + Send + Sync>;

/// Binds the socket, for root and the group `guard` (root alone where there is no such group).
///
/// Makes the directory where there is none. A socket that nobody listens on is replaced. Must be called within a
/// runtime.
///
/// # Errors
/// When somebody listens there, something else than a socket has that name, or the system refuses.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    let group = guard_group();
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty())
        && (is_made_for_us(directory) || !directory.exists())
    {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
        // The umask may have taken the group's part away.
        fs::set_permissions(directory, fs::Permissions::from_mode(0o750))?;
        std::os::unix::fs::chown(directory, None, group)?;
    }
    refuse_unless_stale(path)?;
    // It gets its name only when its mode is right, so that nobody else can connect in between.
    let unnamed = with_suffix(path, ".new");
    remove_if_there(&unnamed)?;
    let listener = UnixListener::bind(&unnamed)?;
    std::os::unix::fs::chown(&unnamed, None, group)?;
    fs::set_permissions(&unnamed, fs::Permissions::from_mode(0o660))?;
    fs::rename(&unnamed, path)?;
    Ok(listener)
}

/// Whether systemd has made this directory for this process, as the unit's `RuntimeDirectory=`: it belongs to root's group then.
fn is_made_for_us(directory: &Path) -> bool {
    std::env::var_os("RUNTIME_DIRECTORY").is_some_and(|made| Path::new(&made) == directory)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn refuse_unless_stale(path: &Path) -> io::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "something that is not a socket has this name",
        ));
    }
    match presence(path)? {
        Presence::Listening => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"))
        }
        Presence::Nobody => Ok(()),
    }
}

/// The group's number by `/etc/group`, where the groups of services stand.
fn guard_group() -> Option<u32> {
    group_number(&fs::read_to_string("/etc/group").ok()?, GROUP)
}

/// The number of a group by a text like `/etc/group`: `name:password:number:members` (group(5)).
fn group_number(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// Serves the API until `stop` says true, or until guard was lifted through it: then it makes `stop` say true itself, after
/// the answer has been sent.
pub async fn serve(
    listener: UnixListener,
    control: SharedControl,
    hub: Arc<Hub>,
    stop: watch::Sender<bool>,
) {
    let mut stopped = stop.subscribe();
    let own_uid = rustix::process::geteuid().as_raw();
    let router = router(Shared {
        control,
        hub,
        stop,
        followers: Arc::new(Room::new(MAX_FOLLOWERS, MAX_FOLLOWING_READERS)),
        own_uid,
    });
    let room = Room::new(MAX_CONNECTIONS, MAX_OF_READERS);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = until_stopped(&mut stopped) => break,
            accepted = accept(&listener, &room, own_uid) => accepted,
        };
        match accepted {
            Ok(Some((stream, credentials, place))) => {
                let served = serve_connection(stream, credentials, router.clone());
                connections.spawn(async move {
                    served.await;
                    drop(place);
                });
            }
            Ok(None) => {}
            Err(error) => {
                log::warn!("a connection to the control socket was not accepted: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let answered = async { while connections.join_next().await.is_some() {} };
    if timeout(CLOSING_TIME, answered).await.is_err() {
        log::debug!("some control connections were cut at the end");
    }
}

/// So many of something, of which users who may only read can have a part.
struct Room {
    all: Arc<Semaphore>,
    of_readers: Arc<Semaphore>,
}

/// One of them, as long as it lasts.
struct Place {
    _one: OwnedSemaphorePermit,
    _of_readers: Option<OwnedSemaphorePermit>,
}

impl Room {
    fn new(all: usize, of_readers: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(all)),
            of_readers: Arc::new(Semaphore::new(of_readers)),
        }
    }

    /// `None` where the user may only read, and such users have their part.
    fn place_for(&self, one: OwnedSemaphorePermit, may_change: bool) -> Option<Place> {
        let of_readers = if may_change {
            None
        } else {
            Some(Arc::clone(&self.of_readers).try_acquire_owned().ok()?)
        };
        Some(Place { _one: one, _of_readers: of_readers })
    }

    /// `None` where all are taken.
    fn try_place(&self, may_change: bool) -> Option<Place> {
        self.place_for(Arc::clone(&self.all).try_acquire_owned().ok()?, may_change)
    }
}

/// The next connection, and whose it is; `None` where users who may only read have as many as they can. That one is closed.
async fn accept(
    listener: &UnixListener,
    room: &Room,
    own_uid: u32,
) -> io::Result<Option<(UnixStream, Credentials, Place)>> {
    let slot = Arc::clone(&room.all).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    let peer = stream.peer_cred()?;
    let uid = peer.uid();
    // The kernel says 0 for a process that this one's namespace does not show.
    let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
    let place = room.place_for(slot, may_change(uid, own_uid));
    Ok(place.map(|place| (stream, Credentials { uid, pid }, place)))
}

async fn until_stopped(stopped: &mut watch::Receiver<bool>) {
    // The only error is that nobody can say true any more, which is an end as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Who has connected, as the kernel says (unix(7), `SO_PEERCRED`).
#[derive(Clone, Copy, Debug)]
struct Credentials {
    uid: u32,
    pid: Option<u32>,
}

/// One connection, and what its request is to know of it.
struct Peer {
    uid: u32,
    pid: Option<u32>,
    /// It follows events, and may last.
    follows: AtomicBool,
    /// The answer has been sent, or can't be.
    closed: Notify,
}

impl Peer {
    /// Looks at the process, which may take its time to be looked at: only where one may wait, and only of those who may change
    /// something.
    fn requester(&self) -> Requester {
        Requester::peer(self.uid, self.pid)
    }
}

async fn serve_connection(stream: UnixStream, credentials: Credentials, router: Router) {
    let Credentials { uid, pid } = credentials;
    let peer = Arc::new(Peer { uid, pid, follows: AtomicBool::new(false), closed: Notify::new() });
    let service = TowerToHyperService::new(router.layer(Extension(Arc::clone(&peer))));
    let mut http = http1::Builder::new();
    http.keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIME)
        .max_buf_size(MAX_HEAD_BYTES);
    let served = http.serve_connection(TokioIo::new(stream), service);
    let out_of_time = async {
        sleep(CONNECTION_TIME).await;
        if peer.follows.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        result = served => if let Err(error) = result {
            log::debug!("a control connection of uid {uid} ended early: {error}");
        },
        () = out_of_time => log::debug!("a control connection of uid {uid} took too long"),
    }
    peer.closed.notify_one();
}

/// What every request may use.
#[derive(Clone)]
struct Shared {
    control: SharedControl,
    hub: Arc<Hub>,
    stop: watch::Sender<bool>,
    followers: Arc<Room>,
    own_uid: u32,
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/rules", get(rules).post(add_rules).delete(remove_rules))
        .route("/v1/mode", post(set_mode))
        .route("/v1/explain", post(explain))
        .route("/v1/reload", post(reload))
        .route("/v1/down", post(down))
        .route("/v1/confirm", post(confirm))
        .route("/v1/rollback", post(rollback))
        .route("/v1/history", get(history))
        .route("/v1/loading", get(loading))
        .route("/v1/rates", get(rates))
        .route("/v1/events", get(events))
        .route("/metrics", get(metrics))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(shared.clone(), authorise))
        .with_state(shared)
}

/// Lets a peer read, and lets root (or the daemon's own user) change.
fn is_permitted(method: &Method, path: &str, uid: u32, own_uid: u32) -> bool {
    let reads = matches!(*method, Method::GET | Method::HEAD) || path == "/v1/explain";
    reads || may_change(uid, own_uid)
}

fn may_change(uid: u32, own_uid: u32) -> bool {
    uid == 0 || uid == own_uid
}

async fn authorise(
    State(shared): State<Shared>,
    Extension(peer): Extension<Arc<Peer>>,
    request: Request,
    next: Next,
) -> Response {
    if is_permitted(request.method(), request.uri().path(), peer.uid, shared.own_uid) {
        return next.run(request).await;
    }
    Problem::from(Failure {
        kind: FailureKind::Forbidden,
        what: format!("the user with uid {} may not change what guard does", peer.uid),
        fix: Some("Ask as root: with sudo, for example.".to_owned()),
    })
    .into_response()
}

async fn status(State(shared): State<Shared>) -> Result<Response, Problem> {
    let hub = Arc::clone(&shared.hub);
    ask(&shared, move |control| Ok(with_sinks(control.status()?, &hub))).await
}

/// What the engine says, and what it does not know: how it goes with what the daemon writes attempts to.
fn with_sinks(mut status: Status, hub: &Hub) -> Status {
    status.events.sinks = hub.sinks();
    status
}

/// For Prometheus, which has no part in the API's versions.
async fn metrics(State(shared): State<Shared>) -> Result<Response, Problem> {
    let hub = Arc::clone(&shared.hub);
    let text = blocking(&shared, move |control| {
        metrics::render(&with_sinks(control.status()?, &hub)).map_err(|error| {
            log::error!("the metrics can't be written: {error}");
            Failure::panicked()
        })
    })
    .await?;
    let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

async fn rules(State(shared): State<Shared>) -> Result<Response, Problem> {
    ask(&shared, |control| control.rules()).await
}

async fn add_rules(
    State(shared): State<Shared>,
    Extension(peer): Extension<Arc<Peer>>,
    Json(request): Json<AddRules>,
) -> Result<Response, Problem> {
    change(&shared, &peer, move |control, by| control.add_rules(&request, by)).await
}

async fn remove_rules(
    State(shared): State<Shared>,
    Extension(peer): Extension<Arc<Peer>>,
    Json(request): Json<RemoveRules>,
) -> Result<Response, Problem> {
    change(&shared, &peer, move |control, by| control.remove_rules(&request, by)).await
}

async fn set_mode(
    State(shared): State<Shared>,
    Extension(peer): Extension<Arc<Peer>>,
    Json(request): Json<SetMode>,
) -> Result<Response, Problem> {
    change(&shared, &peer, move |control, by| control.set_mode(&request, by)).await
}

async fn explain(
    State(shared): State<Shared>,
    Json(request): Json<Explain>,
) -> Result<Response, Problem> {
    ask(&shared, move |control| control.explain(&request)).await
}

async fn reload(
    State(shared): State<Shared>,
    Extension(peer): Extension<Arc<Peer>>,
    JsonOrNothing(request): JsonOrNothing<Reload>,
) -> Result<Response, Problem> {
    change(&shared, &peer, move |control, by| control.reload(&request, by)).await
}

async fn confirm(
    State(shared): State<Shared>,
    Extension(peer): Extension<Arc<Peer>>,
) -> Result<Response, Problem> {
    change(&shared, &peer, |control, by| control.confirm(by)).await
}

async fn rollback(
    State(shared): State<Shared>,
    Extension(peer): Extension<Arc<Peer>>,
) -> Result<Response, Problem> {
    change(&shared, &peer, |control, by| control.rollback(by)).await
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HistoryQuery {
    /// Only changes of the last so many seconds.
    since: Option<u64>,
}

async fn history(
    State(shared): State<Shared>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|rejection| {
        Failure::bad_request(
            format!("the query of /v1/history is not right: {}", rejection.body_text()),
            "Give since=SECONDS or nothing.",
        )
    })?;
    ask(&shared, move |control| control.history(query.since)).await
}

async fn loading(State(shared): State<Shared>) -> Result<Response, Problem> {
    ask(&shared, |control| control.loading()).await
}

async fn rates(State(shared): State<Shared>) -> Result<Response, Problem> {
    ask(&shared, |control| control.rates()).await
}

async fn down(
    State(shared): State<Shared>,
    Extension(peer): Extension<Arc<Peer>>,
) -> Result<Response, Problem> {
    let stop = shared.stop.clone();
    let runtime = tokio::runtime::Handle::current();
    ask(&shared, move |control| {
        let lifted = control.down(&peer.requester())?;
        // From here, and not from the request: that ends with its connection, and what is lifted stays lifted.
        runtime.spawn(async move {
            if timeout(CLOSING_TIME, peer.closed.notified()).await.is_err() {
                log::debug!("the answer to a request to lift everything was not taken");
            }
            stop.send_replace(true);
        });
        Ok(lifted)
    })
    .await
}

/// As [`ask`], and what is worth knowing of the change stands in the log, too.
async fn change(
    shared: &Shared,
    peer: &Arc<Peer>,
    make: impl FnOnce(&dyn Control, &Requester) -> Result<Change, Failure> + Send + 'static,
) -> Result<Response, Problem> {
    let peer = Arc::clone(peer);
    ask(shared, move |control| {
        let change = make(control, &peer.requester())?;
        change.notes.iter().for_each(|note| log::info!("{note}"));
        Ok(change)
    })
    .await
}

/// Carries out a request on a thread that may block.
async fn ask<T: Serialize + Send + 'static>(
    shared: &Shared,
    question: impl FnOnce(&dyn Control) -> Result<T, Failure> + Send + 'static,
) -> Result<Response, Problem> {
    Ok(axum::Json(blocking(shared, question).await?).into_response())
}

async fn blocking<T: Send + 'static>(
    shared: &Shared,
    question: impl FnOnce(&dyn Control) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let control = Arc::clone(&shared.control);
    tokio::task::spawn_blocking(move || question(&*control))
        .await
        .map_err(|_| Failure::panicked())?
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    /// Goes on with attempts as they come.
    #[serde(default)]
    follow: bool,
    /// Only attempts of the last so many seconds. Where it is absent: all that are kept, or none when following.
    since: Option<u64>,
}

async fn events(
    State(shared): State<Shared>,
    Extension(peer): Extension<Arc<Peer>>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|rejection| {
        Failure::bad_request(
            format!("the query of /v1/events is not right: {}", rejection.body_text()),
            "Give follow=true, since=SECONDS, or both.",
        )
    })?;
    let oldest = query.since.map(|seconds| seconds_before(Timestamp::now(), seconds));
    let body = if query.follow {
        let may_change = may_change(peer.uid, shared.own_uid);
        let slot = shared.followers.try_place(may_change).ok_or_else(|| Problem {
            status: StatusCode::SERVICE_UNAVAILABLE,
            failure: Failure::failed(
                "as many clients as there is room for follow events already",
                "End one of them, or ask without following.",
            ),
        })?;
        peer.follows.store(true, Ordering::Relaxed);
        let (kept, follower) = shared.hub.follow(oldest);
        let kept = stream::iter(kept.into_iter().map(Line::Attempt));
        let coming = following(follower, shared.stop.subscribe(), slot);
        Body::from_stream(kept.chain(coming).map(|line| json_line(&line)))
    } else {
        let kept = shared.hub.since(oldest).into_iter();
        let lines: Result<Vec<Bytes>, _> =
            kept.map(|attempt| json_line(&Line::Attempt(attempt))).collect();
        let lines = lines.map_err(|error| {
            log::error!("an attempt can't be written as JSON: {error}");
            Failure::panicked()
        })?;
        Body::from(lines.concat())
    };
    let kind = HeaderValue::from_static("application/x-ndjson");
    Ok(([(header::CONTENT_TYPE, kind)], body).into_response())
}

/// What a follower hears, until the daemon ends. Holds the follower's slot.
fn following(
    follower: Follower,
    stopped: watch::Receiver<bool>,
    slot: Place,
) -> impl futures::Stream<Item = Line> {
    stream::unfold((follower, stopped, slot), |(mut follower, mut stopped, slot)| async move {
        let line = tokio::select! {
            () = until_stopped(&mut stopped) => None,
            line = follower.next() => line,
        }?;
        Some((line, (follower, stopped, slot)))
    })
}

fn json_line(line: &Line) -> serde_json::Result<Bytes> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    Ok(text.into())
}

async fn unknown_path(request: Request) -> Problem {
    Problem {
        status: StatusCode::NOT_FOUND,
        failure: Failure::bad_request(
            format!("the control API has no {:?}", request.uri().path()),
            "Its paths are /v1/status, /v1/rules, /v1/mode, /v1/explain, /v1/reload, /v1/confirm, /v1/rollback, /v1/down, /v1/history, /v1/rates and /v1/events.",
        ),
    }
}

async fn wrong_method(request: Request) -> Problem {
    Problem {
        status: StatusCode::METHOD_NOT_ALLOWED,
        failure: Failure::bad_request(
            format!("{} is not for {}", request.method(), request.uri().path()),
            "GET reads status, rules, history, rates and events; POST adds rules or asks for a change; DELETE removes rules.",
        ),
    }
}

/// A failure and its HTTP status.
struct Problem {
    status: StatusCode,
    failure: Failure,
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let status = match failure.kind {
            FailureKind::BadRequest => StatusCode::BAD_REQUEST,
            FailureKind::Forbidden => StatusCode::FORBIDDEN,
            FailureKind::NeedsConfirmation => StatusCode::CONFLICT,
            FailureKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, failure }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, axum::Json(self.failure)).into_response()
    }
}

/// A request's body, read within bounds. No content type is asked for: only JSON is spoken here.
struct Json<T>(T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        Ok(parse_body(&read_body(request).await?).map(Self)?)
    }
}

/// As [`Json`], of a body that may be empty.
struct JsonOrNothing<T>(T);

impl<S: Sync, T: DeserializeOwned + Default> FromRequest<S> for JsonOrNothing<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let body = read_body(request).await?;
        Ok(if body.is_empty() { Self(T::default()) } else { parse_body(&body).map(Self)? })
    }
}

async fn read_body(request: Request) -> Result<Bytes, Problem> {
    let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect();
    let body = timeout(READ_TIME, body).await.map_err(|_| Problem {
        status: StatusCode::REQUEST_TIMEOUT,
        failure: Failure::bad_request(
            format!("the body did not come within {} seconds", READ_TIME.as_secs()),
            "Send the whole request at once.",
        ),
    })?;
    let body = body.map_err(|error| {
        if error.is::<LengthLimitError>() {
            return Problem {
                status: StatusCode::PAYLOAD_TOO_LARGE,
                failure: Failure::bad_request(
                    format!("the body is larger than {MAX_BODY_BYTES} bytes"),
                    "Split it, or name a file of prefixes as a source (@FILE).",
                ),
            };
        }
        Failure::bad_request(
            format!("the body could not be read: {error}"),
            "Send the request again.",
        )
        .into()
    })?;
    Ok(body.to_bytes())
}

/// The request that a body holds.
///
/// # Errors
/// When it is no JSON, something else than is asked for, or more than one object.
pub fn parse_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = error.path().to_string();
        let what = match field.as_str() {
            "." => format!("the body is not right: {}", error.inner()),
            _ => format!("the body's field {field:?} is not right: {}", error.inner()),
        };
        Failure::bad_request(
            what,
            "Send a JSON object with the fields that the control API documents.",
        )
    })?;
    json.end().map_err(|error| {
        Failure::bad_request(
            format!("something follows the body's JSON object: {error}"),
            "Send one JSON object.",
        )
    })?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: u32 = 0;
    const MEMBER: u32 = 1000;

    #[test]
    fn everyone_at_the_socket_may_read_and_only_root_may_change() {
        let reads = [
            (Method::GET, "/v1/status"),
            (Method::HEAD, "/v1/status"),
            (Method::GET, "/v1/rules"),
            (Method::GET, "/v1/events"),
            (Method::GET, "/v1/history"),
            (Method::GET, "/v1/rates"),
            (Method::POST, "/v1/explain"),
        ];
        let changes = [
            (Method::POST, "/v1/rules"),
            (Method::DELETE, "/v1/rules"),
            (Method::POST, "/v1/mode"),
            (Method::POST, "/v1/reload"),
            (Method::POST, "/v1/down"),
            (Method::POST, "/v1/confirm"),
            (Method::POST, "/v1/rollback"),
            (Method::POST, "/v1/explain/"),
        ];
        for (method, path) in &reads {
            assert!(is_permitted(method, path, MEMBER, ROOT), "{method} {path}");
        }
        for (method, path) in &changes {
            assert!(!is_permitted(method, path, MEMBER, ROOT), "{method} {path}");
            assert!(is_permitted(method, path, ROOT, ROOT), "{method} {path}");
            assert!(is_permitted(method, path, MEMBER, MEMBER), "{method} {path}");
        }
    }

    #[tokio::test]
    async fn a_peer_that_is_not_root_is_told_so() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let fake = crate::api::tests::Fake::default();
        let asked = Arc::clone(&fake.asked);
        let (stop, _) = watch::channel(false);
        let router = router(Shared {
            control: Arc::new(fake),
            hub: Arc::new(Hub::new()),
            stop,
            followers: Arc::new(Room::new(1, 1)),
            own_uid: ROOT,
        });
        let (mut client, stream) = UnixStream::pair().unwrap();
        let request = b"POST /v1/down HTTP/1.1\r\nhost: guard\r\ncontent-length: 0\r\n\r\n";
        client.write_all(request).await.unwrap();
        serve_connection(stream, Credentials { uid: MEMBER, pid: None }, router).await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        assert!(
            answer.contains(r#"{"kind":"forbidden","what":"the user with uid 1000"#),
            "{answer}"
        );
        assert!(asked.lock().unwrap().is_empty());
    }

    #[test]
    fn a_groups_number_is_found_by_its_whole_name() {
        let text = "root:x:0:\nguardians:x:7:\nguard:x:987:alice,bob\nbroken:x\n";
        assert_eq!(group_number(text, "guard"), Some(987));
        assert_eq!(group_number(text, "root"), Some(0));
        assert_eq!(group_number(text, "broken"), None);
        assert_eq!(group_number(text, "gua"), None);
        assert_eq!(group_number("", "guard"), None);
    }
}
