//! `guard run`: puts the policy in force, then stays to follow changes, answer requests and report attempts. What it has put
//! in force stays when it ends, in whatever way.

use std::{collections::HashMap, future::pending, io, path::PathBuf, sync::Arc, time::Duration};

use futures::{Stream, stream};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};

use crate::{
    api,
    config::Config,
    control::{Control, Failure, Reload},
    engine::{self, Engine, Followed, Place},
    enrich::{self, Enrichment},
    events::{self, BootClock, Hub},
    follow,
    history::Requester,
    host::{forwarders::Watch, netlink, resolver, watched::Watched},
    kernel::{KernelError, binds::Binds, lock::Lock, probe, ring::EventRing},
    output::{self, View},
    privileges, sinks, startup,
    state::RunFlags,
    systemd,
};

/// Ends that are to come are looked for at least this often: they are in boot time, which goes on while the machine is suspended,
/// and timers do not.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Before the next attempt to roll back what could not be.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// How often published ports are looked for where something may have changed: how long one may stay open.
const LOOK_FOR_PUBLISHED: Duration = Duration::from_secs(1);

/// How long after a socket was bound one looks for the first time: it is to listen by then, and what it is to be told from is to
/// run.
const AFTER_A_BIND: Duration = Duration::from_millis(50);

/// How often one looks after a socket was bound: an engine may bind it and do much else before it listens.
const LOOKS_AFTER_A_BIND: u32 = 30;

/// How often published ports are looked for where nothing has been bound.
const LOOK_ANYWAY: Duration = Duration::from_mins(1);

/// How often guard looks whether what it has put in force is still there: how long what somebody takes off stays off.
const LOOK_FOR_LAPSES: Duration = Duration::from_secs(2);

/// How often files of sources are looked at where nothing tells that they have changed: on network file systems, or behind a link.
const LOOK_AT_FILES: Duration = Duration::from_secs(15);

/// How long a file that has just been written is left alone.
const WHILE_WRITTEN: Duration = Duration::from_millis(300);

/// How often one looks whether this host has other resolvers now.
const LOOK_AT_RESOLVERS: Duration = Duration::from_secs(5);

/// There is never less time between two looks for what sources are on this host's network.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// There is never less time between two rounds of asking for names.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(200);

/// How long attempts gather once some have been read. The kernel wakes a reader that has read all there is
/// (`bpf_ringbuf_commit` in `kernel/bpf/ringbuf.c`): in a flood that would be with each of them.
const GATHER: Duration = Duration::from_millis(20);

/// Runs until SIGTERM, SIGINT, or `guard down`.
///
/// # Errors
/// When the policy can't be put in force; what was in force before is untouched then.
pub fn run(place: &Place, flags: RunFlags, yes: bool) -> Result<(), Failure> {
    engine::share_one_heap();
    refuse_a_second(place)?;
    privileges::keep_only_needed()
        .map_err(|error| system("privileges could not be given up", &error))?;
    let mut engine = Engine::open(place)?;
    let progress = engine.progress();
    let ask = || progress.now();
    let message = output::with_progress(ask, systemd::teller(), || engine.start(flags, yes))?;
    let ring = EventRing::open(&engine.pins())?;
    let socket = engine.socket();
    let outlives_us = engine.outlives_us();
    // Before attempts are read, so that the first of them is told as the others are.
    learn_network(&engine, &mut None);
    tell_of_files(&engine.learn_files());

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| system("the daemon could not be started", &error))?;
    let ended = runtime.block_on(async {
        let listener = api::server::bind(&socket).map_err(|error| {
            system(&format!("the control socket {} can't be used", socket.display()), &error)
        })?;
        // Only now can the next command that the message names be carried out.
        let view = output::view_of(&io::stdout());
        output::print(&startup::render(&message, &view))?;
        let in_force = startup::headline(&message, &View { colour: false, ..view });
        let engine = Arc::new(engine);
        let binds = engine.follow_binds();
        engine::give_memory_back();
        serve(listener, engine, ring, binds, &in_force).await
    })?;
    match ended {
        Ended::Lifted => log::info!("lifted: nothing is guarded any more"),
        Ended::Stopped if outlives_us => {
            log::info!("stopped: the kernel goes on enforcing; `guard down` lifts it");
        }
        Ended::Stopped => log::warn!("stopped: nothing is enforced any more"),
    }
    Ok(())
}

/// Says so at once where a daemon answers; one that holds the lock and does not answer is met when the lock is taken.
fn refuse_a_second(place: &Place) -> Result<(), Failure> {
    let config = Config::load(&place.config, place.is_named)?;
    match api::client::Client::connect(&config.paths.socket)? {
        Some(_) => {
            let pid = Lock::holder(&config.paths.lock()).unwrap_or_default();
            Err(KernelError::Locked { pid }.into())
        }
        None => Ok(()),
    }
}

enum Ended {
    Stopped,
    Lifted,
}

async fn serve(
    listener: tokio::net::UnixListener,
    engine: Arc<Engine>,
    ring: EventRing,
    binds: Option<Binds>,
    in_force: &str,
) -> Result<Ended, Failure> {
    let cannot = |error: io::Error| system("the daemon could not be started", &error);
    let (stop, mut stopped) = watch::channel(false);
    let hub = Arc::new(Hub::new());
    let mut tasks = JoinSet::new();
    tasks.spawn(api::server::serve(listener, engine.clone(), hub.clone(), stop.clone()));
    // SAFETY: the ring owns its descriptor, which is the same and open as long as it lives.
    let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
        .map_err(|error| cannot(error.into()))?;
    tasks.spawn(report_attempts(ring, hub.clone(), engine.enrichment()));
    let configured = engine.clone();
    let policies = engine.policies();
    tasks.spawn(sinks::json_lines(hub.clone(), move || configured.json_lines(), policies));
    tasks.spawn(sinks::journal(hub));
    tasks.spawn(follow_network(engine.clone()));
    tasks.spawn(follow_sources_network(engine.clone()));
    tasks.spawn(follow_facts(engine.clone()));
    tasks.spawn(cut_at_ends(engine.clone()));
    tasks.spawn(end_trials(engine.clone()));
    let binds = match binds {
        // SAFETY: they own their ring's descriptor, which is the same and open as long as they live.
        Some(binds) => unsafe { AsyncFd::register_with_interest(binds, Interest::READABLE) }
            .map(Some)
            .map_err(|error| cannot(error.into()))?,
        None => None,
    };
    tasks.spawn(follow_published(engine.clone(), binds));
    tasks.spawn(follow_files(engine.clone()));
    tasks.spawn(follow_names(engine.clone()));
    tasks.spawn(systemd::watch(engine.clone()));
    tasks.spawn(reload_on_hangup(engine.clone(), signal(SignalKind::hangup()).map_err(cannot)?));

    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    systemd::ready(in_force);
    let ended = tokio::select! {
        _ = terminate.recv() => Ended::Stopped,
        _ = interrupt.recv() => Ended::Stopped,
        // The API says so after `guard down`.
        _ = stopped.wait_for(|stopped| *stopped) => Ended::Lifted,
    };
    systemd::stopping();
    if matches!(ended, Ended::Stopped)
        && let Err(error) = spawn_blocking(move || engine.keep_time()).await
    {
        log::error!("{error}");
    }
    stop.send_replace(true);
    // The API still sends the answer to what ended it; the others just end.
    let _ = tasks.join_next().await;
    Ok(ended)
}

/// Takes events from the kernel's ring, adds what is known of their sources, and hands them on.
async fn report_attempts(mut ring: AsyncFd<EventRing>, hub: Arc<Hub>, enrichment: Arc<Enrichment>) {
    loop {
        let Ok(mut ready) = ring.readable_mut().await else {
            log::error!("the event ring can't be read any more; attempts are counted all the same");
            return;
        };
        let clock = BootClock::sample();
        let mut unreadable = 0_u64;
        let mut names: HashMap<u32, Option<String>> = HashMap::new();
        let mut name_of =
            |index| names.entry(index).or_insert_with(|| interface_name(index)).clone();
        let enricher = enrichment.enricher();
        ready.get_inner_mut().drain(|bytes| match events::decode(bytes, &clock, &mut name_of) {
            Some(mut attempt) => {
                enricher.enrich(&mut attempt);
                hub.publish(attempt);
            }
            None => unreadable += 1,
        });
        if unreadable > 0 {
            log::warn!("{unreadable} events of an unknown layout were left out");
        }
        drop(enricher);
        ready.clear_ready();
        sleep(GATHER).await;
    }
}

fn interface_name(index: u32) -> Option<String> {
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
            .ok()?;
    rustix::net::netdevice::index_to_name(socket, index).ok()
}

/// Keeps interfaces covered and own addresses known as they come and go.
async fn follow_network(engine: Arc<Engine>) {
    let look = || {
        let engine = engine.clone();
        look_and_tell(move || {
            let followed = engine.follow_network();
            engine.enrichment().network_may_have_changed();
            followed
        })
    };
    let open =
        || netlink::watch().map(|changes| follow::changes_and(changes, lapses(engine.clone())));
    follow::follow(open, look).await;
}

/// Yields when somebody may have taken off what guard has put in force: nothing tells of that.
fn lapses(engine: Arc<Engine>) -> impl Stream<Item = ()> {
    stream::unfold(engine, |engine| async {
        loop {
            sleep(LOOK_FOR_LAPSES).await;
            // Without another thread: it is all that an idle daemon does.
            let has_lapsed = if let Some(has_lapsed) = engine.has_lapsed() {
                has_lapsed
            } else {
                let asked = engine.clone();
                let lapsed = spawn_blocking(move || asked.have_filters_lapsed()).await;
                lapsed.unwrap_or_else(|error| {
                    log::error!("{error}");
                    false
                })
            };
            if has_lapsed {
                return Some(((), engine));
            }
        }
    })
}

/// What should wake somebody.
fn tell_of_problems(followed: &Followed) {
    let Followed { lapses, missing, problems, news: _, is_unfinished: _ } = followed;
    for what in lapses.iter().chain(problems) {
        log::warn!("{what}");
    }
    for what in missing {
        log::warn!("not in force: {what}");
    }
}

/// Ends connections when what let them in has ended in the kernel: an allow, or the time of observing.
async fn cut_at_ends(engine: Arc<Engine>) {
    let mut policies = engine.policies();
    let mut since_ns = probe::boot_ns();
    loop {
        let asked = engine.clone();
        let mut pause = Some(LONGEST_PAUSE);
        match spawn_blocking(move || asked.cut_ended(since_ns)).await {
            Ok(Ok(ended)) => {
                ended.notes.iter().for_each(|note| log::info!("{note}"));
                since_ns = ended.until_ns;
                pause = ended.next_ns.map(|next_ns| {
                    let left_ns = next_ns.saturating_sub(probe::boot_ns());
                    LONGEST_PAUSE.min(Duration::from_nanos(left_ns))
                });
            }
            Ok(Err(failure)) => log::error!("{failure}"),
            Err(error) => log::error!("{error}"),
        }
        tokio::select! {
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
            changed = policies.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// Rolls back what was on trial when its time is over.
async fn end_trials(engine: Arc<Engine>) {
    let mut policies = engine.policies();
    loop {
        let asked = engine.clone();
        let pause = match spawn_blocking(move || asked.end_trial()).await {
            Ok(Ok(left_ns)) => {
                left_ns.map(|left_ns| LONGEST_PAUSE.min(Duration::from_nanos(left_ns)))
            }
            Ok(Err(failure)) => {
                log::error!("what was on trial could not be rolled back: {failure}");
                Some(TRY_AGAIN)
            }
            Err(error) => {
                log::error!("{error}");
                Some(TRY_AGAIN)
            }
        };
        tokio::select! {
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
            changed = policies.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// Keeps published ports guarded as they come and go. Nothing tells of them, so they are looked for: after a socket was bound, or,
/// where nothing tells of that either, all the time.
async fn follow_published(engine: Arc<Engine>, mut binds: Option<AsyncFd<Binds>>) {
    let mut watch = Watch::default();
    let mut looks_to_go = 0_u32;
    loop {
        let engine = engine.clone();
        let looked = spawn_blocking(move || {
            let followed = look_for_published(&mut watch, &engine);
            (watch, followed)
        });
        watch = match looked.await {
            Ok((watch, Ok(notes))) => {
                for note in notes {
                    log::info!("{note}");
                }
                watch
            }
            // A fresh one, which finds the same anew.
            Ok((_, Err(failure))) => {
                log::error!("{failure}; ports published from now on may be open");
                Watch::default()
            }
            Err(error) => {
                log::error!("{error}");
                Watch::default()
            }
        };
        looks_to_go = looks_to_go.saturating_sub(1);
        match &mut binds {
            Some(followed) if looks_to_go == 0 && watch.is_settled() => {
                match timeout(LOOK_ANYWAY, next_bind(followed)).await {
                    Ok(Ok(())) => {
                        looks_to_go = LOOKS_AFTER_A_BIND;
                        sleep(AFTER_A_BIND).await;
                    }
                    Ok(Err(error)) => {
                        log::warn!("published ports are looked for each second: {error}");
                        binds = None;
                    }
                    Err(_) => {}
                }
            }
            _ => sleep(LOOK_FOR_PUBLISHED).await,
        }
    }
}

/// Until a socket has been bound since this was last asked.
async fn next_bind(binds: &mut AsyncFd<Binds>) -> io::Result<()> {
    let mut ready = binds.readable_mut().await?;
    ready.get_inner_mut().forget();
    ready.clear_ready();
    Ok(())
}

fn look_for_published(watch: &mut Watch, engine: &Engine) -> Result<Vec<String>, Failure> {
    let has_changed = watch.look().map_err(|error| {
        Failure::failed(error.to_string(), "`guard reload` looks for published ports anew")
    })?;
    if !has_changed {
        return Ok(Vec::new());
    }
    let followed = engine.follow_network();
    tell_of_problems(&followed);
    Ok(followed.news)
}

/// Takes the files of sources and countries when they change. Where nothing tells of that, they are looked at from time to time.
async fn follow_files(engine: Arc<Engine>) {
    let mut policies = engine.policies();
    let mut watched: Option<AsyncFd<Watched>> = None;
    loop {
        let looked = engine.clone();
        let is_unfinished = look_and_tell(move || looked.follow_files()).await;
        let directories = engine.file_directories();
        if directories.is_empty() {
            watched = None;
            if policies.changed().await.is_err() {
                return;
            }
            continue;
        }
        match &watched {
            Some(watched) => watched.get_ref().watch(&directories),
            None => watched = open_watched(&directories),
        }
        let pause = if is_unfinished { WHILE_WRITTEN } else { LOOK_AT_FILES };
        tokio::select! {
            () = sleep(pause) => {}
            () = next_write(watched.as_ref()), if !is_unfinished => sleep(WHILE_WRITTEN).await,
            changed = policies.changed(), if !is_unfinished => if changed.is_err() {
                return;
            },
        }
    }
}

/// Keeps it known what sources are on this host's network: after changes of the network or the policy, and when one was met whose
/// neighbour is not known.
async fn follow_sources_network(engine: Arc<Engine>) {
    let mut policies = engine.policies();
    let enrichment = engine.enrichment();
    let mut told = None;
    loop {
        tokio::select! {
            () = enrichment.outdated() => {}
            changed = policies.changed() => if changed.is_err() {
                return;
            },
        }
        let learning = engine.clone();
        let learnt = spawn_blocking(move || {
            learn_network(&learning, &mut told);
            told
        });
        told = learnt.await.unwrap_or_default();
        sleep(BETWEEN_LOOKS).await;
    }
}

/// Says what does not work where that was not told before.
fn learn_network(engine: &Engine, told: &mut Option<String>) {
    let problem = engine.learn_network().err().map(|failure| failure.to_string());
    if let Some(problem) = problem.as_ref().filter(|problem| told.as_ref() != Some(problem)) {
        log::warn!("{problem}");
    }
    *told = problem;
}

/// Takes the files of facts about sources when they change.
async fn follow_facts(engine: Arc<Engine>) {
    let mut policies = engine.policies();
    let mut watched: Option<AsyncFd<Watched>> = None;
    loop {
        let learning = engine.clone();
        let learnt = spawn_blocking(move || (learning.learn_files(), learning.fact_directories()));
        let (followed, directories) = learnt.await.unwrap_or_default();
        tell_of_files(&followed);
        match &watched {
            Some(watched) => watched.get_ref().watch(&directories),
            None => watched = open_watched(&directories),
        }
        let pause = if followed.is_unfinished { WHILE_WRITTEN } else { LOOK_AT_FILES };
        tokio::select! {
            () = sleep(pause) => {}
            () = next_write(watched.as_ref()), if !followed.is_unfinished => sleep(WHILE_WRITTEN).await,
            changed = policies.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

fn tell_of_files(followed: &enrich::Followed) {
    followed.news.iter().for_each(|news| log::info!("{}", output::text::escaped(news)));
    followed.problems.iter().for_each(|problem| log::warn!("{}", output::text::escaped(problem)));
}

fn open_watched(directories: &[PathBuf]) -> Option<AsyncFd<Watched>> {
    let opened = Watched::open(directories).and_then(|watched| {
        // SAFETY: it owns its descriptor, which is the same and open as long as it lives.
        let registered = unsafe { AsyncFd::register_with_interest(watched, Interest::READABLE) };
        registered.map_err(io::Error::from)
    });
    opened
        .inspect_err(|error| {
            log::info!(
                "files of sources are looked at every {} seconds: {error}",
                LOOK_AT_FILES.as_secs()
            );
        })
        .ok()
}

/// Until something has changed in a watched directory since this was last asked.
async fn next_write(watched: Option<&AsyncFd<Watched>>) {
    let Some(watched) = watched else { return pending().await };
    match watched.readable().await {
        Ok(mut ready) => {
            ready.get_inner().forget();
            ready.clear_ready();
        }
        Err(_) => pending().await,
    }
}

/// Keeps names resolved: each is asked for again when its answer is over, and all when the host has other resolvers.
async fn follow_names(engine: Arc<Engine>) {
    let mut policies = engine.policies();
    let mut resolvers = resolver::stamp();
    loop {
        let Some(due_in) = engine.next_name_in() else {
            if policies.changed().await.is_err() {
                return;
            }
            continue;
        };
        let now = resolver::stamp();
        if now != resolvers {
            resolvers = now;
            let asking = engine.clone();
            if let Err(error) = spawn_blocking(move || asking.ask_names_now()).await {
                log::error!("{error}");
            }
        } else if due_in.is_zero() {
            let asking = engine.clone();
            look_and_tell(move || asking.follow_names()).await;
            // Whatever went wrong, others get their turn.
            sleep(BETWEEN_ROUNDS).await;
        } else {
            tokio::select! {
                () = sleep(due_in.min(LOOK_AT_RESOLVERS)) => {}
                changed = policies.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }
}

/// Says what has become of what is followed. Returns whether there is more to do.
async fn look_and_tell(follow: impl FnOnce() -> Followed + Send + 'static) -> bool {
    match spawn_blocking(follow).await {
        Ok(followed) => {
            followed.news.iter().for_each(|news| log::info!("{news}"));
            tell_of_problems(&followed);
            followed.is_unfinished
        }
        Err(error) => {
            log::error!("{error}");
            false
        }
    }
}

async fn reload_on_hangup(engine: Arc<Engine>, mut hangup: tokio::signal::unix::Signal) {
    while hangup.recv().await.is_some() {
        systemd::reloading();
        let engine = engine.clone();
        match spawn_blocking(move || engine.reload(&Reload::default(), &Requester::signal())).await
        {
            Ok(Ok(change)) => {
                log::info!("reloaded: {} rules", change.rules.len());
                change.notes.iter().for_each(|note| log::info!("{note}"));
            }
            Ok(Err(failure)) => {
                log::error!("not reloaded, the policy in force is as it was: {failure}");
            }
            Err(error) => log::error!("{error}"),
        }
        systemd::reloaded();
    }
}

fn system(what: &str, error: &io::Error) -> Failure {
    Failure::failed(
        format!("{what}: {error}"),
        "what was put in force stays; `guard status` shows it",
    )
}
