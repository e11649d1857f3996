//! A small thread pool for parallel loops. One of the files with unsafe code: it lends a closure on
//! the caller's stack to the workers for the time of one call.
//!
//! A job is a range cut into chunks at fixed places. Threads claim chunks by a compare-and-swap on
//! one word, `epoch | chunks | next`, the calling thread among them, and the call returns when every
//! chunk is done. Starting a job costs two stores and, for each worker that sleeps, one wake-up; a
//! worker looks for the next job for [`SPIN`] rounds before it sleeps, since the kernels of one run
//! follow each other closely. An idle pool uses no processor time.

use std::cell::UnsafeCell;
use std::hint;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, Thread};

/// How many times a worker looks for another job before it sleeps: some 20 microseconds.
const SPIN: u32 = 2_000;

/// The most chunks of one job: what fits the word's field.
const MAX_CHUNKS: u64 = 0xffff;

/// What runs a part of a range: `job(begin, end)`.
type Job<'a> = dyn Fn(i64, i64) + Sync + 'a;

/// The job in hand. Written by the caller of [`Pool::run`] while no chunk can be claimed.
#[derive(Clone, Copy)]
struct Lent {
    job: *const Job<'static>,
    extent: i64,
    chunks: i64,
}

struct Shared {
    /// `epoch << 32 | chunks << 16 | next`; there is work while `next < chunks`.
    state: AtomicU64,
    lent: UnsafeCell<Lent>,
    done: AtomicU32,
    stop: AtomicBool,
    asleep: Vec<AtomicBool>,
}

// SAFETY: `lent` is written only by the holder of `Pool::caller` while `next == chunks`, and read only
// after a claim, which happens after the store to `state` that published it; a job's caller does not
// return, so does not write `lent` again, before every claimed chunk is done.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `lent` is to a `Sync` closure.
unsafe impl Send for Shared {}

impl Shared {
    /// Claims and runs chunks until none is left.
    fn work(&self) {
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

    fn has_work(&self) -> bool {
        let state = self.state.load(Ordering::SeqCst);
        state & 0xffff < state >> 16 & MAX_CHUNKS
    }

    fn worker(&self, index: usize) {
        loop {
            self.work();
            let mut rounds = 0;
            while !self.has_work() && rounds < SPIN {
                hint::spin_loop();
                rounds += 1;
            }
            if self.has_work() {
                continue;
            }
            // Either this sees the work published after the flag was set, or the publisher sees the flag.
            self.asleep[index].store(true, Ordering::SeqCst);
            while !self.has_work() && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            self.asleep[index].store(false, Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
        }
    }
}

/// Ends the process if a job panics: chunks of it still run on other threads and use what unwinding
/// would free.
struct AbortOnDrop;

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// The bounds of one of `chunks` nearly equal parts of `0..extent`.
fn chunk(extent: i64, chunks: i64, index: i64) -> (i64, i64) {
    let (size, rest) = (extent / chunks, extent % chunks);
    let begin = index * size + index.min(rest);
    (begin, begin + size + i64::from(index < rest))
}

/// Threads that run the chunks of parallel loops; the calling thread is one of them.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    /// Held by the one caller whose job is in hand; others run theirs alone.
    caller: Mutex<()>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Pool {
    /// A pool of this many threads, the caller's included; it starts one fewer. If the system refuses
    /// to start some, the pool is smaller.
    pub fn new(threads: usize) -> Pool {
        let workers = threads.saturating_sub(1).min(1023);
        let idle: &'static Job<'static> = &|_, _| {};
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            lent: UnsafeCell::new(Lent { job: idle, extent: 0, chunks: 1 }),
            done: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            asleep: (0..workers).map(|_| AtomicBool::new(false)).collect(),
        });
        let start = |index: usize| {
            let shared = shared.clone();
            let name = format!("windlass-{}", index + 1);
            let handle = thread::Builder::new().name(name).spawn(move || shared.worker(index)).ok()?;
            Some((handle.thread().clone(), Some(handle)))
        };
        let workers = (0..workers).map_while(start).collect();
        Pool { shared, caller: Mutex::new(()), workers }
    }

    /// The number of threads that work on a job.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job` over `0..extent` cut into at most `chunks` contiguous parts, and returns when all are
    /// done. While another caller's job is in hand, or with one thread, the job runs on this thread.
    pub fn run(&self, extent: i64, chunks: usize, job: &Job<'_>) {
        if extent <= 0 {
            return;
        }
        let chunks = (chunks as i64).min(extent).min(MAX_CHUNKS as i64);
        if self.workers.is_empty() || chunks <= 1 {
            return job(0, extent);
        }
        let Ok(_held) = self.caller.try_lock() else { return job(0, extent) };
        let shared = &*self.shared;
        let job: *const Job<'_> = job;
        // SAFETY: only the lifetime changes. No thread uses the pointer after this call returns: it is
        // read after a claim only, and this call waits for every claimed chunk.
        let job: *const Job<'static> = unsafe { std::mem::transmute(job) };
        // SAFETY: this thread holds `caller` and the job before is done, so nothing can be claimed.
        unsafe { *shared.lent.get() = Lent { job, extent, chunks } };
        shared.done.store(0, Ordering::Relaxed);
        let epoch = (shared.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        shared.state.store(epoch << 32 | (chunks as u64) << 16, Ordering::SeqCst);
        let wanted = self.workers.len().min(chunks as usize - 1);
        for (asleep, (thread, _)) in shared.asleep.iter().zip(&self.workers).take(wanted) {
            if asleep.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        shared.work();
        let mut rounds = 0u32;
        while shared.done.load(Ordering::Acquire) < chunks as u32 {
            rounds += 1;
            if rounds.is_multiple_of(4096) { thread::yield_now() } else { hint::spin_loop() }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (thread, handle) in &mut self.workers {
            thread.unpark();
            if let Some(handle) = handle.take() {
                // A worker that panicked has already reported it.
                let _ = handle.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
