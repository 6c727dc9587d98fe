//! Who is worked on next: first come, first served, a few at a time, nobody twice at once.
//!
//! In place of kube's own Controller, which starts everything that is asked for and then looks at all of it whenever
//! anything happens (a seventh of the operator's CPU with 300 services, a fourth with 1,000), and lets each begin wait
//! for the next millisecond.
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::pin::pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::JoinMap;
use tokio_util::time::{DelayQueue, delay_queue};

/// Worked on at the same time: more only lengthens the API server's queue.
const TURNS: usize = 8;
/// After work that broke down.
const BROKEN: Duration = Duration::from_secs(60);

/// When one is worked on again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// As soon as those who wait have had their turn.
    Now,
    /// After a time, or when it is asked for before.
    After(Duration),
    /// When it is asked for.
    Asked,
}

/// Works on everything that is asked for; `waiting` is told how many wait. Ends at the shutdown, after the work that is
/// under way then. Dropping it ends that work at its next await.
pub async fn run<K, F>(
    asks: impl Stream<Item = K>,
    shutdown: CancellationToken,
    waiting: impl Fn(usize),
    work: impl Fn(K) -> F,
) where
    K: Clone + Eq + Hash + 'static,
    F: Future<Output = Again> + Send + 'static,
{
    let mut asks = pin!(asks.fuse());
    let mut queue = Queue::<K>::default();
    let mut running = JoinMap::new();
    loop {
        let open = !shutdown.is_cancelled();
        while open
            && running.len() < TURNS
            && let Some(key) = queue.next()
        {
            running.spawn(key.clone(), work(key));
        }
        waiting(queue.due.len());
        tokio::select! {
            Some(key) = asks.next(), if open => queue.ask(key, &running),
            Some(expired) = queue.later.next(), if open => {
                let key = expired.into_inner();
                queue.timers.remove(&key);
                queue.ask(key, &running);
            }
            Some((key, outcome)) = running.join_next() => {
                let again = outcome.unwrap_or_else(|error| {
                    tracing::error!(%error, "a reconcile broke down, it is tried again");
                    Again::After(BROKEN)
                });
                queue.done(key, again);
            }
            () = shutdown.cancelled(), if open => {}
            else => return,
        }
    }
}

/// Who waits.
struct Queue<K> {
    /// For a turn, in the order in which they came.
    due: VecDeque<K>,
    /// Those who are due, and those who were asked for while they were worked on.
    asked: HashSet<K>,
    /// For their time.
    later: DelayQueue<K>,
    timers: HashMap<K, delay_queue::Key>,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            due: VecDeque::new(),
            asked: HashSet::new(),
            later: DelayQueue::new(),
            timers: HashMap::new(),
        }
    }
}

impl<K: Clone + Eq + Hash + 'static> Queue<K> {
    fn next(&mut self) -> Option<K> {
        let key = self.due.pop_front()?;
        self.asked.remove(&key);
        Some(key)
    }

    fn ask(&mut self, key: K, running: &JoinMap<K, Again>) {
        if let Some(timer) = self.timers.remove(&key) {
            self.later.remove(&timer);
        }
        // Who is worked on comes when that is done.
        if self.asked.insert(key.clone()) && !running.contains_key(&key) {
            self.due.push_back(key);
        }
    }

    fn done(&mut self, key: K, again: Again) {
        if again == Again::Now {
            self.asked.insert(key.clone());
        }
        if self.asked.contains(&key) {
            self.due.push_back(key);
        } else if let Again::After(wait) = again {
            let timer = self.later.insert(key.clone(), wait);
            self.timers.insert(key, timer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::stream;
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
    use tokio::sync::{Semaphore, watch};
    use tokio::task::JoinHandle;

    use super::*;

    const ALL: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

    /// A running queue, whose work is logged when it begins and ends when the gate lets it.
    struct Run {
        ask: UnboundedSender<&'static str>,
        gate: Arc<Semaphore>,
        begun: watch::Receiver<Vec<&'static str>>,
        waiting: watch::Receiver<usize>,
        shutdown: CancellationToken,
        ended: JoinHandle<()>,
    }

    impl Run {
        /// `again` gets a key and the times that it was worked on.
        fn start(again: fn(&str, usize) -> Again) -> Self {
            let (ask, mut asked) = unbounded_channel();
            let (begin, begun) = watch::channel(Vec::new());
            let (wait, waiting) = watch::channel(0);
            let (begin, gate) = (Arc::new(begin), Arc::new(Semaphore::new(0)));
            let (shutdown, inner) = (CancellationToken::new(), gate.clone());
            let ended = tokio::spawn({
                let stop = shutdown.clone();
                async move {
                    let work = |key: &'static str| {
                        let (begin, gate) = (begin.clone(), inner.clone());
                        async move {
                            begin.send_modify(|begun| begun.push(key));
                            gate.acquire().await.unwrap().forget();
                            let times = begin.borrow().iter().filter(|one| **one == key).count();
                            again(key, times)
                        }
                    };
                    let asks = stream::poll_fn(move |cx| asked.poll_recv(cx));
                    let waiting = |number| {
                        wait.send_replace(number);
                    };
                    run(asks, stop, waiting, work).await;
                }
            });
            Self {
                ask,
                gate,
                begun,
                waiting,
                shutdown,
                ended,
            }
        }

        fn ask(&self, keys: &[&'static str]) {
            keys.iter().for_each(|key| self.ask.send(key).unwrap());
        }

        async fn begun(&mut self, words: &str) {
            let wanted = self.begun.wait_for(|begun| begun.join(" ") == words);
            let found = tokio::time::timeout(Duration::from_secs(10), wanted)
                .await
                .is_ok();
            assert!(found, "{:?} instead of {words}", *self.begun.borrow());
        }
    }

    #[tokio::test]
    async fn first_come_first_served_a_few_at_a_time_nobody_twice_at_once() {
        let mut run = Run::start(|_, _| Again::Asked);
        run.ask(&ALL);
        run.ask(&["a", "i", "i", "j"]);
        run.waiting.wait_for(|waiting| *waiting == 2).await.unwrap();
        run.begun("a b c d e f g h").await;
        run.gate.add_permits(100);
        run.begun("a b c d e f g h i j a").await;
    }

    #[tokio::test]
    async fn again_now_is_behind_those_who_wait() {
        let mut run = Run::start(|key, times| match (key, times) {
            ("a", 1) => Again::Now,
            _ => Again::Asked,
        });
        run.ask(&ALL);
        run.ask(&["i"]);
        run.waiting.wait_for(|waiting| *waiting == 1).await.unwrap();
        run.gate.add_permits(100);
        run.begun("a b c d e f g h i a").await;
    }

    #[tokio::test]
    async fn again_later_comes_by_itself_and_only_once_if_it_is_asked_for_before() {
        let mut run = Run::start(|_, times| match times {
            1 => Again::After(Duration::from_millis(5)),
            _ => Again::After(Duration::from_secs(3600)),
        });
        run.gate.add_permits(100);
        run.ask(&["a"]);
        run.begun("a a").await;
        let mut queue = Queue::default();
        queue.done("a", Again::After(Duration::from_secs(3600)));
        assert_eq!((queue.due.len(), queue.later.len()), (0, 1));
        queue.ask("a", &JoinMap::new());
        assert_eq!(
            (queue.due.len(), queue.later.len(), queue.timers.len()),
            (1, 0, 0)
        );
    }

    #[tokio::test]
    async fn the_shutdown_waits_for_what_runs_and_begins_nothing() {
        let mut run = Run::start(|_, _| Again::Now);
        run.ask(&ALL);
        run.ask(&["i"]);
        run.waiting.wait_for(|waiting| *waiting == 1).await.unwrap();
        run.shutdown.cancel();
        tokio::task::yield_now().await;
        assert!(!run.ended.is_finished());
        run.gate.add_permits(100);
        (&mut run.ended).await.unwrap();
        run.begun("a b c d e f g h").await;
    }

    #[tokio::test]
    async fn work_that_breaks_down_takes_nobody_along() {
        let mut run = Run::start(|key, _| {
            assert_ne!(key, "broken");
            Again::Asked
        });
        run.gate.add_permits(100);
        run.ask(&["broken", "a"]);
        run.begun("broken a").await;
        run.ask(&["broken"]);
        run.begun("broken a broken").await;
    }
}
