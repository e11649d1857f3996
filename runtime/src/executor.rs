//! Where the threads of a pool come from: threads of its own, or the caller's.

use std::fmt;
use std::hint;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::pool::Shared;

/// Lends threads to parallel loops: what a program implements for the thread pool it has already.
///
/// Results do not depend on an executor, and memory is safe with any: which thread does what is settled
/// when a thread asks for work ([`Helper::help`]), and a loop ends when all of it is done, by its caller
/// alone if nobody helps. Helping late, more often than asked, or never costs time at most.
///
/// ```
/// use std::sync::Arc;
/// use windlass_runtime::{Executor, Helper, Pool};
///
/// /// Threads that live as long as one loop.
/// struct Spawn;
///
/// impl Executor for Spawn {
///     fn threads(&self) -> usize {
///         2
///     }
///
///     fn launch(&self, wanted: usize, helper: &Helper) {
///         for _ in 0..wanted {
///             let helper = helper.clone();
///             std::thread::spawn(move || helper.help());
///         }
///     }
/// }
///
/// let pool = Pool::with_executor(Arc::new(Spawn));
/// pool.run(100, 4, &|begin, end| assert!(begin < end));
/// ```
///
/// For a pool of rayon the body of `launch` is the same with `pool.spawn` in place of `std::thread::spawn`.
pub trait Executor: Send + Sync {
    /// How many threads work on one loop, that which calls included: 1 to 1024. It is asked once.
    fn threads(&self) -> usize;

    /// Has [`Helper::help`] called on `wanted` other threads, soon, and returns, without waiting for them if it can.
    ///
    /// It is called at the start of every parallel loop, on the thread whose loop it is; what it costs is paid
    /// each time.
    fn launch(&self, wanted: usize, helper: &Helper);
}

/// A thread's way to take part in the loops of one pool.
#[derive(Clone)]
pub struct Helper(pub(crate) Arc<Shared>);

impl Helper {
    /// Runs parts of the loop in hand until none is left; if there is none, nothing.
    pub fn help(&self) {
        self.0.work();
    }
}

impl fmt::Debug for Helper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Helper").finish_non_exhaustive()
    }
}

/// How long a worker looks for another job before it sleeps: about as long as a kernel takes that is too small to be
/// shared, so that workers are awake for the next one of the same run. To wake one takes the system 10 to 40
/// microseconds (`cargo bench --bench overhead`).
const PATIENCE: Duration = Duration::from_micros(100);

/// Rounds between looks at the clock.
const ROUNDS: u32 = 64;

/// Threads of a pool's own. A worker looks for the next job for a while, its [`PATIENCE`], before it sleeps; of those
/// asleep as many as wanted are woken.
pub(crate) struct Workers {
    signals: Arc<Signals>,
    threads: Vec<(Thread, Option<JoinHandle<()>>)>,
}

struct Signals {
    stop: AtomicBool,
    asleep: Vec<AtomicBool>,
}

impl Workers {
    /// At most `count` threads; fewer if the system refuses.
    pub(crate) fn start(count: usize, helper: &Helper) -> Workers {
        let asleep = (0..count).map(|_| AtomicBool::new(false)).collect();
        let signals = Arc::new(Signals { stop: AtomicBool::new(false), asleep });
        let start = |index: usize| {
            let (helper, signals) = (helper.clone(), signals.clone());
            let builder = thread::Builder::new().name(format!("windlass-{}", index + 1));
            let handle = builder.spawn(move || worker(&helper.0, &signals, index)).ok()?;
            Some((handle.thread().clone(), Some(handle)))
        };
        let threads = (0..count).map_while(start).collect();
        Workers { signals, threads }
    }
}

fn worker(shared: &Shared, signals: &Signals, index: usize) {
    loop {
        shared.work();
        let end = Instant::now() + PATIENCE;
        let mut rounds = 0u32;
        let late = |rounds: u32| rounds.is_multiple_of(ROUNDS) && Instant::now() >= end;
        while !shared.has_work() && !late(rounds) {
            hint::spin_loop();
            rounds += 1;
        }
        if shared.has_work() {
            continue;
        }
        // Either this sees the work published after the flag was set, or the publisher sees the flag.
        signals.asleep[index].store(true, Ordering::SeqCst);
        while !shared.has_work() && !signals.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        signals.asleep[index].store(false, Ordering::SeqCst);
        if signals.stop.load(Ordering::SeqCst) {
            return;
        }
    }
}

impl Executor for Workers {
    fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    fn launch(&self, wanted: usize, _helper: &Helper) {
        for (asleep, (thread, _)) in self.signals.asleep.iter().zip(&self.threads).take(wanted) {
            if asleep.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.signals.stop.store(true, Ordering::SeqCst);
        for (thread, handle) in &mut self.threads {
            thread.unpark();
            if let Some(handle) = handle.take() {
                // A worker that panicked has already reported it.
                let _ = handle.join();
            }
        }
    }
}

/// For tests of pools: executors that are functions.
#[cfg(test)]
pub(crate) mod testing {
    use super::{Executor, Helper};

    /// What an executor does with the threads it is asked for.
    pub(crate) type Launch = fn(usize, &Helper);

    /// An executor of three threads.
    pub(crate) struct Odd(pub Launch);

    impl Executor for Odd {
        fn threads(&self) -> usize {
            3
        }

        fn launch(&self, wanted: usize, helper: &Helper) {
            (self.0)(wanted, helper);
        }
    }
}
