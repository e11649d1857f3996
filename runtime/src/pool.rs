//! Parallel loops. One of the files with unsafe code: it lends a closure on the caller's stack to other
//! threads for the time of one call.
//!
//! A job is a range cut into chunks at fixed places. Threads claim chunks by a compare-and-swap on
//! one word, `epoch | chunks | next`, the calling thread among them, and the call returns when every
//! chunk is done. Where the other threads come from is the [`Executor`]'s business; it is asked for them at
//! each job, and whatever it does, each chunk runs once. Starting a job costs two stores and that question.

use std::cell::UnsafeCell;
use std::fmt;
use std::hint;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread;

use crate::executor::{Executor, Helper, Workers};
use crate::turns::Turns;

/// The most chunks of one job: what fits the word's field.
const MAX_CHUNKS: u64 = 0xffff;

/// The most threads of a pool.
const MAX_THREADS: usize = 1024;

/// What runs a part of a range: `job(begin, end)`.
type Job<'a> = dyn Fn(i64, i64) + Sync + 'a;

/// The job in hand. Written by the caller of [`Pool::run`] while no chunk can be claimed.
#[derive(Clone, Copy)]
struct Lent {
    job: *const Job<'static>,
    extent: i64,
    chunks: i64,
}

/// What the threads of a pool share.
pub(crate) struct Shared {
    /// `epoch << 32 | chunks << 16 | next`; there is work while `next < chunks`.
    state: AtomicU64,
    lent: UnsafeCell<Lent>,
    done: AtomicU32,
    /// Jobs of many turns; there is one of either kind at a time.
    turns: Turns,
}

// SAFETY: `lent` is written only by the holder of `Pool::caller` while `next == chunks`, and read only
// after a claim, which happens after the store to `state` that published it; a job's caller does not
// leave `Pool::run`, so does not write `lent` again, before every claimed chunk is done.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `lent` is to a `Sync` closure.
unsafe impl Send for Shared {}

impl Shared {
    fn new(threads: usize) -> Shared {
        let idle: &'static Job<'static> = &|_, _| {};
        Shared {
            state: AtomicU64::new(0),
            lent: UnsafeCell::new(Lent { job: idle, extent: 0, chunks: 1 }),
            done: AtomicU32::new(0),
            turns: Turns::new(threads),
        }
    }

    /// Takes part in the job in hand until there is nothing left to do.
    pub(crate) fn work(&self) {
        self.work_on_chunks();
        self.turns.work();
    }

    /// Claims and runs chunks until none is left.
    fn work_on_chunks(&self) {
        loop {
            let state = self.state.load(Ordering::Acquire);
            let (chunks, next) = (state >> 16 & MAX_CHUNKS, state & 0xffff);
            if next >= chunks {
                return;
            }
            if self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            // SAFETY: this chunk is claimed and not done, so the caller is still in `run`: `lent` is not
            // written and the closure it points to is alive.
            let (lent, job) = unsafe {
                let lent = *self.lent.get();
                (lent, &*lent.job)
            };
            let (begin, end) = chunk(lent.extent, lent.chunks, next as i64);
            let unwinding = AbortOnDrop;
            job(begin, end);
            std::mem::forget(unwinding);
            self.done.fetch_add(1, Ordering::Release);
        }
    }

    /// Whether a chunk waits to be claimed, or there are turns to take part in.
    pub(crate) fn has_work(&self) -> bool {
        let state = self.state.load(Ordering::SeqCst);
        state & 0xffff < state >> 16 & MAX_CHUNKS || self.turns.has_work()
    }

    /// Runs what nobody has claimed, and waits for what others have.
    fn finish(&self, chunks: i64) {
        self.work_on_chunks();
        let mut rounds = 0u32;
        while self.done.load(Ordering::Acquire) < chunks as u32 {
            rounds += 1;
            if rounds.is_multiple_of(4096) { thread::yield_now() } else { hint::spin_loop() }
        }
    }
}

/// Ends a job even when the executor that was asked for threads panics: the closure is alive until then.
struct FinishOnDrop<'a> {
    shared: &'a Shared,
    chunks: i64,
}

impl Drop for FinishOnDrop<'_> {
    fn drop(&mut self) {
        self.shared.finish(self.chunks);
    }
}

/// Ends the process if a job panics: chunks of it still run on other threads and use what unwinding
/// would free.
pub(crate) struct AbortOnDrop;

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// The bounds of one of `chunks` nearly equal parts of `0..extent`.
pub(crate) fn chunk(extent: i64, chunks: i64, index: i64) -> (i64, i64) {
    let (size, rest) = (extent / chunks, extent % chunks);
    let begin = index * size + index.min(rest);
    (begin, begin + size + i64::from(index < rest))
}

/// Runs the chunks of parallel loops on several threads; the calling thread is one of them.
pub struct Pool {
    helper: Helper,
    /// Held by the one caller whose job is in hand; others run theirs alone.
    caller: Mutex<()>,
    executor: Arc<dyn Executor>,
    threads: usize,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Pool {
    /// A pool of this many threads, the caller's included; it starts one fewer. If the system refuses
    /// to start some, the pool is smaller. Its threads use no processor time while there is nothing to do.
    pub fn new(threads: usize) -> Pool {
        let threads = threads.clamp(1, MAX_THREADS);
        let helper = Helper(Arc::new(Shared::new(threads)));
        let workers = Workers::start(threads - 1, &helper);
        Pool::of(helper, Arc::new(workers))
    }

    /// A pool that starts no threads and asks this executor for them.
    pub fn with_executor(executor: Arc<dyn Executor>) -> Pool {
        let threads = executor.threads().clamp(1, MAX_THREADS);
        Pool::of(Helper(Arc::new(Shared::new(threads))), executor)
    }

    fn of(helper: Helper, executor: Arc<dyn Executor>) -> Pool {
        let threads = executor.threads().clamp(1, MAX_THREADS);
        Pool { helper, caller: Mutex::new(()), executor, threads }
    }

    /// The number of threads that work on a job, the caller's included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `job` over `0..extent` cut into at most `chunks` contiguous parts, and returns when all are
    /// done. While another caller's job is in hand, or with one thread, the job runs on this thread.
    ///
    /// # Panics
    /// If the executor does, when the job is done. If the job panics while several threads run it, the
    /// process ends.
    pub fn run(&self, extent: i64, chunks: usize, job: &Job<'_>) {
        if extent <= 0 {
            return;
        }
        let chunks = (chunks as i64).min(extent).min(MAX_CHUNKS as i64);
        if self.threads == 1 || chunks <= 1 {
            return job(0, extent);
        }
        let _held = match self.caller.try_lock() {
            Ok(held) => held,
            // An executor panicked; its job was finished.
            Err(TryLockError::Poisoned(held)) => held.into_inner(),
            Err(TryLockError::WouldBlock) => return job(0, extent),
        };
        let shared = &*self.helper.0;
        let job: *const Job<'_> = job;
        // SAFETY: only the lifetime changes. No thread uses the pointer after this call ends: it is
        // read after a claim only, and `FinishOnDrop` waits for every claimed chunk.
        let job: *const Job<'static> = unsafe { std::mem::transmute(job) };
        // SAFETY: this thread holds `caller` and the job before is done, so nothing can be claimed.
        unsafe { *shared.lent.get() = Lent { job, extent, chunks } };
        shared.done.store(0, Ordering::Relaxed);
        let epoch = (shared.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        let finish = FinishOnDrop { shared, chunks };
        shared.state.store(epoch << 32 | (chunks as u64) << 16, Ordering::SeqCst);
        self.executor.launch((self.threads - 1).min(chunks as usize - 1), &self.helper);
        drop(finish);
    }

    /// Runs so many loops one after another. `next(turn)` is called when all before is done, by one thread alone, and
    /// gives the turn's iterations and into how many parts they may be cut; `job(turn, begin, end)` runs a part. While
    /// another caller's job is in hand, or with one thread, this thread runs all.
    ///
    /// # Panics
    /// As [`Self::run`].
    pub fn run_turns(
        &self,
        turns: usize,
        next: &(dyn Fn(usize) -> (i64, usize) + Sync),
        job: &(dyn Fn(usize, i64, i64) + Sync),
    ) {
        let alone = || {
            for turn in 0..turns {
                let (extent, _) = next(turn);
                if extent > 0 {
                    job(turn, 0, extent);
                }
            }
        };
        if self.threads == 1 {
            return alone();
        }
        let _held = match self.caller.try_lock() {
            Ok(held) => held,
            // An executor panicked; its job was finished.
            Err(TryLockError::Poisoned(held)) => held.into_inner(),
            Err(TryLockError::WouldBlock) => return alone(),
        };
        let launch = |wanted: usize| self.executor.launch(wanted.min(self.threads - 1), &self.helper);
        // SAFETY: this thread holds `caller`, so there is no other call.
        unsafe { self.helper.0.turns.run(turns, next, job, launch) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;
    use std::sync::atomic::AtomicI64;

    use super::*;
    use crate::executor::testing::{Launch, Odd};

    #[test]
    fn every_index_runs_once_and_jobs_follow_each_other() {
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads);
            for extent in [0i64, 1, 2, 7, 100, 1000] {
                for _ in 0..50 {
                    let hits: Vec<AtomicU32> = (0..extent).map(|_| AtomicU32::new(0)).collect();
                    pool.run(extent, 5, &|begin, end| {
                        for i in begin..end {
                            hits[i as usize].fetch_add(1, Ordering::Relaxed);
                        }
                    });
                    assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    fn sum_with(pool: &Pool) -> i64 {
        let sum = AtomicI64::new(0);
        pool.run(1000, 7, &|begin, end| {
            sum.fetch_add((begin..end).sum::<i64>(), Ordering::Relaxed);
        });
        sum.into_inner()
    }

    #[test]
    fn every_executor_gives_every_part_once() {
        let executors: [Launch; 5] = [
            |_, _| {},
            |_, helper| helper.help(),
            |wanted, helper| (0..10 * wanted).for_each(|_| helper.help()),
            |wanted, helper| {
                thread::scope(|scope| {
                    (0..wanted).for_each(|_| {
                        scope.spawn(|| helper.help());
                    });
                });
            },
            // Whenever it pleases, often after the loop.
            |wanted, helper| {
                for _ in 0..wanted {
                    let helper = helper.clone();
                    thread::spawn(move || {
                        thread::yield_now();
                        helper.help();
                        helper.help();
                    });
                }
            },
        ];
        for launch in executors {
            let pool = Pool::with_executor(Arc::new(Odd(launch)));
            assert!((0..50).all(|_| sum_with(&pool) == 499_500));
        }
    }

    #[test]
    fn a_job_ends_before_its_executors_panic_goes_on() {
        let launch: Launch = |wanted, helper| {
            for _ in 0..wanted {
                let helper = helper.clone();
                thread::spawn(move || helper.help());
            }
            panic!("no threads today");
        };
        let pool = Pool::with_executor(Arc::new(Odd(launch)));
        for _ in 0..20 {
            let done = AtomicU32::new(0);
            let run = || {
                pool.run(60, 6, &|_, _| {
                    thread::yield_now();
                    done.fetch_add(1, Ordering::Relaxed);
                });
            };
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
            assert_eq!(done.into_inner(), 6);
        }
    }

    #[test]
    fn an_executor_may_use_the_pool_it_serves() {
        struct Within(OnceLock<Arc<Pool>>);
        impl Executor for Within {
            fn threads(&self) -> usize {
                2
            }

            fn launch(&self, _: usize, helper: &Helper) {
                let pool = self.0.get().expect("it is set before the first job");
                assert_eq!(sum_with(pool), 499_500);
                helper.help();
            }
        }
        let executor = Arc::new(Within(OnceLock::new()));
        let pool = Arc::new(Pool::with_executor(executor.clone()));
        assert!(executor.0.set(pool.clone()).is_ok());
        assert_eq!(sum_with(&pool), 499_500);
    }

    #[test]
    fn callers_share_a_pool() {
        let pool = Pool::new(2);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicU64::new(0);
                        pool.run(100, 4, &|begin, end| {
                            sum.fetch_add((begin..end).sum::<i64>() as u64, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 4950);
                    }
                });
            }
        });
    }

    #[test]
    fn chunks_cover_the_range_in_order() {
        for (extent, chunks) in [(10, 3), (7, 7), (1000, 16)] {
            let mut at = 0;
            for i in 0..chunks {
                let (begin, end) = chunk(extent, chunks, i);
                assert_eq!(begin, at);
                assert!(end > begin);
                at = end;
            }
            assert_eq!(at, extent);
        }
    }
}
