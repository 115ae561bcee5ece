//! When to look at the network: after each burst of changes, and from time to time all the same.

use std::{fmt::Display, future::ready, time::Duration};

use futures::{
    FutureExt, Stream, StreamExt,
    stream::{self, BoxStream},
};
use tokio::time::{sleep, timeout};

/// Bursts of changes shorter than this are taken as one. There is never less time between two looks.
const SETTLE: Duration = Duration::from_millis(200);

/// A notice can be lost, and nobody gives notice of a program that others have detached.
const AT_THE_LATEST: Duration = Duration::from_secs(15);

/// Looks now, after changes, [`AT_THE_LATEST`] after the last look, and soon after one that says it has not finished, for
/// ever. A watch that ends is opened anew; while it can't be opened the clock alone decides.
pub async fn follow<Watch, Error, Look>(
    mut open: impl FnMut() -> Result<Watch, Error>,
    mut look: impl FnMut() -> Look,
) where
    Watch: Stream<Item = ()> + Unpin,
    Error: Display,
    Look: Future<Output = bool>,
{
    let mut watch = None;
    let mut trouble = Trouble::default();
    loop {
        if watch.is_none() {
            match open() {
                Ok(opened) => watch = Some(opened),
                Err(error) => trouble.tell(&format!(
                    "changes of interfaces and addresses are not told ({error}): guard looks for them every {} seconds",
                    AT_THE_LATEST.as_secs()
                )),
            }
        }
        // Behind the opening: what has changed before it was told to nobody.
        let is_unfinished = look().await;
        if !is_unfinished {
            match next_change(watch.as_mut()).await {
                Next::Change => trouble = Trouble::default(),
                Next::Late => {}
                Next::End => {
                    watch = None;
                    trouble
                        .tell("the watch of interfaces and addresses has ended; it is opened anew");
                }
            }
        }
        sleep(SETTLE).await;
        if let Some(changes) = &mut watch {
            // The rest of the burst; an end is met again above.
            let _ = changes.next().now_or_never();
        }
    }
}

/// What changes or is noticed; it ends with the changes.
pub fn changes_and<'a>(
    changes: impl Stream<Item = ()> + Send + 'a,
    noticed: impl Stream<Item = ()> + Send + 'a,
) -> BoxStream<'a, ()> {
    let changes = changes.map(Some).chain(stream::once(async { None }));
    stream::select(changes, noticed.map(Some))
        .take_while(|one| ready(one.is_some()))
        .map(drop)
        .boxed()
}

enum Next {
    Change,
    /// There was none for long enough.
    Late,
    End,
}

async fn next_change(watch: Option<&mut (impl Stream<Item = ()> + Unpin)>) -> Next {
    let Some(changes) = watch else {
        sleep(AT_THE_LATEST).await;
        return Next::Late;
    };
    match timeout(AT_THE_LATEST, changes.next()).await {
        Ok(Some(())) => Next::Change,
        Ok(None) => Next::End,
        Err(_) => Next::Late,
    }
}

/// Says the same once, until a change shows that the watch works.
#[derive(Debug, Default)]
struct Trouble {
    told: Vec<String>,
}

impl Trouble {
    fn tell(&mut self, what: &str) {
        if !self.told.iter().any(|told| told == what) {
            log::warn!("{what}");
            self.told.push(what.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        collections::VecDeque,
        io,
    };

    use futures::{
        channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded},
        future::{Either, pending, select},
    };
    use tokio::time::Instant;

    use super::*;

    type Changes = UnboundedReceiver<()>;

    /// Follows for a while, on a clock that jumps. Returns when it looked, and how many of the watches were opened.
    async fn looks_within(
        span: Duration,
        watches: Vec<Result<Changes, io::Error>>,
        meanwhile: impl Future<Output = ()>,
    ) -> (Vec<Duration>, usize) {
        let start = Instant::now();
        let looks = RefCell::new(Vec::new());
        let opened = Cell::new(0);
        let watches = RefCell::new(VecDeque::from(watches));
        let open = || {
            opened.set(opened.get() + 1);
            watches.borrow_mut().pop_front().unwrap_or_else(|| Err(io::Error::other("no more")))
        };
        let look = || {
            looks.borrow_mut().push(start.elapsed());
            async { false }
        };
        let following = async {
            tokio::join!(follow(open, look), meanwhile);
        };
        assert!(timeout(span, following).await.is_err(), "it never ends");
        (looks.into_inner(), opened.get())
    }

    fn watch() -> (UnboundedSender<()>, Result<Changes, io::Error>) {
        let (sender, receiver) = unbounded();
        (sender, Ok(receiver))
    }

    fn seconds(looks: &[Duration]) -> Vec<f32> {
        looks.iter().map(Duration::as_secs_f32).map(|at| (at * 10.0).round() / 10.0).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn without_changes_the_clock_decides() {
        let (_sender, changes) = watch();
        let (looks, opened) = looks_within(Duration::from_secs(40), vec![changes], async {}).await;
        assert_eq!(seconds(&looks), [0.0, 15.2, 30.4]);
        assert_eq!(opened, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_is_followed_at_a_bounded_rate_and_without_delay() {
        let (sender, changes) = watch();
        let storm = async {
            loop {
                sleep(Duration::from_millis(1)).await;
                sender.unbounded_send(()).unwrap();
            }
        };
        let (looks, _) = looks_within(Duration::from_secs(10), vec![changes], storm).await;
        let pauses = looks.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
        assert!(pauses.clone().all(|pause| pause >= SETTLE), "{looks:?}");
        assert!(pauses.clone().all(|pause| pause < SETTLE * 2), "{looks:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_ends_is_opened_anew() {
        let (first, one) = watch();
        let (second, other) = watch();
        let script = async {
            sleep(Duration::from_secs(1)).await;
            drop(first);
            sleep(Duration::from_secs(1)).await;
            second.unbounded_send(()).unwrap();
            pending::<()>().await;
        };
        let (looks, opened) = looks_within(Duration::from_secs(5), vec![one, other], script).await;
        // At the start, after the end, after the change on the new one.
        assert_eq!(seconds(&looks), [0.0, 1.2, 2.2]);
        assert_eq!(opened, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn where_no_watch_is_to_be_had_the_clock_decides_alone() {
        let none = || Err(io::Error::other("not today"));
        let (looks, opened) =
            looks_within(Duration::from_secs(40), vec![none(), none(), none()], async {}).await;
        assert_eq!(seconds(&looks), [0.0, 15.2, 30.4]);
        assert_eq!(opened, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn watches_that_end_at_once_make_no_busy_loop() {
        let looks = Cell::new(0);
        let open = || Ok::<_, io::Error>(stream::empty());
        let look = || {
            looks.set(looks.get() + 1);
            async { false }
        };
        let following = Box::pin(follow(open, look));
        let Either::Right(_) = select(following, Box::pin(sleep(Duration::from_secs(2)))).await
        else {
            unreachable!("it never ends")
        };
        assert!((5..=11).contains(&looks.get()), "{}", looks.get());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_unfinished_is_gone_on_with() {
        let (_sender, changes) = unbounded::<()>();
        let mut changes = Some(changes);
        let looks = RefCell::new(Vec::new());
        let start = Instant::now();
        let open = || changes.take().ok_or("opened once");
        let look = || {
            looks.borrow_mut().push(start.elapsed());
            let is_unfinished = looks.borrow().len() < 4;
            async move { is_unfinished }
        };
        let followed = timeout(Duration::from_secs(10), follow(open, look)).await;
        assert!(followed.is_err(), "it never ends");
        assert_eq!(seconds(&looks.borrow()), [0.0, 0.2, 0.4, 0.6]);
    }

    #[tokio::test]
    async fn what_is_noticed_comes_among_the_changes_and_ends_with_them() {
        let (sender, changes) = unbounded();
        let (noticing, noticed) = unbounded();
        let mut both = changes_and(changes, noticed);
        assert_eq!(both.next().now_or_never(), None);
        noticing.unbounded_send(()).unwrap();
        assert_eq!(both.next().await, Some(()));
        sender.unbounded_send(()).unwrap();
        assert_eq!(both.next().await, Some(()));
        drop(sender);
        assert_eq!(both.next().await, None);
    }

    #[test]
    fn the_same_trouble_is_told_once() {
        let mut trouble = Trouble::default();
        trouble.tell("one");
        trouble.tell("other");
        trouble.tell("one");
        assert_eq!(trouble.told, ["one", "other"]);
    }
}
