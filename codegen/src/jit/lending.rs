//! The threads that make code, lent to the loops that prepare constants while they have nothing else to do.
//!
//! A pool of its own would work beside a thread that runs the model, on the same processors.

use std::hint;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use windlass_runtime::{Executor, Helper};

/// How long a thread looks for work before it sleeps: to wake it takes the system 10 to 40 microseconds, and the next
/// part of a loop may come sooner.
const PATIENCE: Duration = Duration::from_micros(50);

/// Rounds between looks at the clock.
const ROUNDS: u32 = 64;

/// Where threads wait for a change of what they share, and what they do meanwhile.
pub(super) struct Lending {
    threads: usize,
    helper: OnceLock<Helper>,
    changed: Condvar,
    /// How many threads sleep until that, or are about to.
    asleep: AtomicUsize,
    /// The number of changes so far.
    changes: AtomicU64,
}

impl Lending {
    /// Of so many threads in all.
    pub(super) fn new(threads: usize) -> Arc<Lending> {
        Arc::new(Lending {
            threads,
            helper: OnceLock::new(),
            changed: Condvar::new(),
            asleep: AtomicUsize::new(0),
            changes: AtomicU64::new(0),
        })
    }

    /// Notes a change; whoever makes one holds the lock of what is changed. [`Self::tell`] comes after it is let go.
    pub(super) fn change(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Wakes those who wait.
    pub(super) fn tell(&self) {
        // It is a call of the system, also where nobody does.
        if self.asleep.load(Ordering::Acquire) > 0 {
            self.changed.notify_all();
        }
    }

    /// Helps with loops until there has been a change.
    pub(super) fn wait<'s, T>(
        &self,
        lock: impl Fn() -> MutexGuard<'s, T>,
        held: MutexGuard<'s, T>,
    ) -> MutexGuard<'s, T> {
        let seen = self.changes.load(Ordering::Acquire);
        drop(held);
        let is_new = || self.changes.load(Ordering::Acquire) != seen;
        let end = Instant::now() + PATIENCE;
        let late = |rounds: u32| rounds.is_multiple_of(ROUNDS) && Instant::now() >= end;
        let mut rounds = 0u32;
        while !is_new() && !late(rounds) {
            rounds += 1;
            self.helper.get().inspect(|helper| helper.help());
            hint::spin_loop();
        }
        let held = lock();
        match is_new() {
            true => held,
            // Told of a loop as well as of changes. Whoever makes a change after this has seen the number: by the lock.
            false => {
                self.asleep.fetch_add(1, Ordering::Release);
                let held = self.changed.wait(held).unwrap_or_else(PoisonError::into_inner);
                self.asleep.fetch_sub(1, Ordering::Release);
                held
            }
        }
    }
}

impl Executor for Lending {
    fn threads(&self) -> usize {
        self.threads
    }

    fn launch(&self, _wanted: usize, helper: &Helper) {
        self.helper.get_or_init(|| helper.clone());
        // Who is about to wait may miss this: then the loop has one thread fewer.
        self.tell();
    }
}
