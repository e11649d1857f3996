//! Loops that follow each other, shared by threads that meet between them. One of the files with unsafe code: it lends
//! closures on the caller's stack to other threads for the time of one call.
//!
//! A job is a number of turns, each a range cut into parts. A thread claims a part of the turn in hand and runs it;
//! who is done with a turn's last part starts the next. Nobody waits for a thread that might not come: a thread waits
//! only while others run parts that they have claimed, so that one thread alone, or one that another lends in the
//! midst of it, ends the job. To go from turn to turn costs some transfers of cache lines between processors, a tenth
//! of what it costs to start a job.
//!
//! A thread looks first for the part that it had in the turn before, whose data its processor's caches have.

use std::cell::UnsafeCell;
use std::hint;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use crate::pool::{AbortOnDrop, chunk};

/// What starts a turn, and says how many iterations it has and into how many parts they are cut.
pub(crate) type Next<'a> = dyn Fn(usize) -> (i64, usize) + Sync + 'a;

/// What runs a part of a turn: `job(turn, begin, end)`.
pub(crate) type TurnJob<'a> = dyn Fn(usize, i64, i64) + Sync + 'a;

/// The parts of a turn, in its word.
const PARTS: u64 = 0xffff;

/// The job in hand.
#[derive(Clone, Copy)]
struct Lent {
    next: *const Next<'static>,
    job: *const TurnJob<'static>,
    turns: usize,
    at: usize,
    extent: i64,
    parts: usize,
}

/// Cache lines of its own, as many as processors fetch at a time.
#[repr(align(128))]
struct Apart<T>(T);

/// What the threads of a pool share for jobs of turns.
pub(crate) struct Turns {
    in_hand: Apart<InHand>,
    /// The parts of the turn in hand that are done.
    done: Apart<AtomicU32>,
    /// For each part, the last turn in which somebody claimed it.
    claims: Box<[Apart<AtomicU64>]>,
    /// The threads that have come to the job.
    joined: AtomicUsize,
}

/// What threads wait for, and what they then need to know.
struct InHand {
    /// The turn: `number << 16 | parts`, without parts while there is no job. Numbers only grow.
    turn: AtomicU64,
    lent: UnsafeCell<Lent>,
}

// SAFETY: `lent` is written by the one caller of `run` while there is no turn, and by the thread that was done with a
// turn's last part, when no part of it can be claimed; it is read only by threads that have claimed a part of the turn
// in hand which is not done.
unsafe impl Sync for Turns {}
// SAFETY: as above; the pointers in `lent` are to `Sync` closures.
unsafe impl Send for Turns {}

impl Turns {
    /// For so many threads.
    pub(crate) fn new(threads: usize) -> Turns {
        let next: &'static Next<'static> = &|_| (0, 1);
        let job: &'static TurnJob<'static> = &|_, _, _| {};
        Turns {
            in_hand: Apart(InHand {
                turn: AtomicU64::new(0),
                lent: UnsafeCell::new(Lent { next, job, turns: 0, at: 0, extent: 0, parts: 1 }),
            }),
            done: Apart(AtomicU32::new(0)),
            claims: (0..threads.min(PARTS as usize)).map(|_| Apart(AtomicU64::new(0))).collect(),
            joined: AtomicUsize::new(0),
        }
    }

    /// Whether there is a job.
    pub(crate) fn has_work(&self) -> bool {
        self.in_hand.0.turn.load(Ordering::SeqCst) & PARTS != 0
    }

    /// Takes part in the job in hand to its end, if there is one.
    pub(crate) fn work(&self) {
        if self.has_work() {
            self.take_part(self.joined.fetch_add(1, Ordering::Relaxed));
        }
    }

    /// Starts a job, calls `launch`, takes part, and returns when all turns are done, also if `launch` panics.
    ///
    /// # Safety
    /// One thread calls this at a time, and not before another's call has returned.
    pub(crate) unsafe fn run(
        &self,
        turns: usize,
        next: &Next<'_>,
        job: &TurnJob<'_>,
        launch: impl FnOnce(usize),
    ) {
        if turns == 0 {
            return;
        }
        let (extent, parts) = self.start(next, 0);
        let next: *const Next<'_> = next;
        let job: *const TurnJob<'_> = job;
        // SAFETY: only the lifetimes change. The pointers are used by threads that have claimed a part which is not
        // done, and by the one that ends a turn, and this call returns after the last turn has ended.
        let (next, job) = unsafe {
            (
                std::mem::transmute::<*const Next<'_>, *const Next<'static>>(next),
                std::mem::transmute::<*const TurnJob<'_>, *const TurnJob<'static>>(job),
            )
        };
        // SAFETY: there is no turn, so nobody reads it, and there is no other caller.
        unsafe { *self.in_hand.0.lent.get() = Lent { next, job, turns, at: 0, extent, parts } };
        self.done.0.store(0, Ordering::Relaxed);
        self.joined.store(1, Ordering::Relaxed);
        let number = (self.in_hand.0.turn.load(Ordering::Relaxed) >> 16) + 1;
        let finish = FinishOnDrop(self);
        self.in_hand.0.turn.store(number << 16 | parts as u64, Ordering::SeqCst);
        launch(self.claims.len() - 1);
        drop(finish);
    }

    /// Starts a turn.
    fn start(&self, next: &Next<'_>, at: usize) -> (i64, usize) {
        let (extent, parts) = next(at);
        let most = self.claims.len().min(usize::try_from(extent).unwrap_or(1));
        (extent, parts.clamp(1, most.max(1)))
    }

    /// Runs parts, that of this thread first, until all turns are done.
    fn take_part(&self, home: usize) {
        loop {
            let turn = self.in_hand.0.turn.load(Ordering::Acquire);
            let parts = (turn & PARTS) as usize;
            if parts == 0 {
                return;
            }
            let claim = |&part: &usize| {
                let last = self.claims[part].0.load(Ordering::Relaxed);
                // A turn that is over has all its parts claimed, in it or since.
                last < turn
                    && self.claims[part]
                        .0
                        .compare_exchange(last, turn, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok()
            };
            if let Some(part) = (0..parts).map(|i| (home + i) % parts).find(claim) {
                self.run_part(turn, part);
                continue;
            }
            let mut rounds = 0u32;
            while self.in_hand.0.turn.load(Ordering::Acquire) == turn {
                rounds += 1;
                if rounds.is_multiple_of(4096) { thread::yield_now() } else { hint::spin_loop() }
            }
        }
    }

    /// Runs a part that this thread has claimed, and starts the next turn if it was the last.
    fn run_part(&self, turn: u64, part: usize) {
        // SAFETY: this part is claimed and not done, so the turn is not over: `lent` is not written and the caller,
        // whose closures they are, waits.
        let (lent, next, job) = unsafe {
            let lent = *self.in_hand.0.lent.get();
            (lent, &*lent.next, &*lent.job)
        };
        let unwinding = AbortOnDrop;
        let (begin, end) = chunk(lent.extent, lent.parts as i64, part as i64);
        if begin < end {
            job(lent.at, begin, end);
        }
        if self.done.0.fetch_add(1, Ordering::AcqRel) + 1 == lent.parts as u32 {
            let at = lent.at + 1;
            let number = ((turn >> 16) + 1) << 16;
            self.done.0.store(0, Ordering::Relaxed);
            if at == lent.turns {
                self.in_hand.0.turn.store(number, Ordering::Release);
            } else {
                let (extent, parts) = self.start(next, at);
                // SAFETY: all parts of the turn are done, and nobody claims one of the next before it is announced.
                unsafe { *self.in_hand.0.lent.get() = Lent { at, extent, parts, ..lent } };
                self.in_hand.0.turn.store(number | parts as u64, Ordering::Release);
            }
        }
        std::mem::forget(unwinding);
    }
}

/// Ends a job even when the executor that was asked for threads panics: the closures are alive until then.
struct FinishOnDrop<'a>(&'a Turns);

impl Drop for FinishOnDrop<'_> {
    fn drop(&mut self) {
        self.0.take_part(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Pool;
    use crate::executor::testing::{Launch, Odd};

    /// Sums in which each turn needs all of the one before: who starts too early, or runs a part twice, shows.
    fn check_with(pool: &Pool) {
        let extents = [40i64, 1, 0, 17, 64];
        let turns = 200;
        let begun = AtomicU64::new(0);
        let cells: Vec<AtomicU64> = (0..64).map(|_| AtomicU64::new(0)).collect();
        let expected = |turn: usize| (0..=turn).map(|t| extents[t % extents.len()] as u64).sum::<u64>();
        let sum = || cells.iter().map(|cell| cell.load(Ordering::Relaxed)).sum::<u64>();
        let next = |turn: usize| {
            assert_eq!(begun.fetch_add(1, Ordering::Relaxed), turn as u64);
            assert_eq!(sum(), turn.checked_sub(1).map_or(0, expected));
            (extents[turn % extents.len()], 3)
        };
        pool.run_turns(turns, &next, &|_, begin, end| {
            for i in begin..end {
                cells[i as usize].fetch_add(1, Ordering::Relaxed);
            }
        });
        assert_eq!(begun.into_inner(), turns as u64);
        assert_eq!(sum(), expected(turns - 1));
    }

    #[test]
    fn turns_follow_each_other() {
        for threads in [1, 2, 3, 5] {
            let pool = Pool::new(threads);
            (0..20).for_each(|_| check_with(&pool));
            pool.run_turns(0, &|_| unreachable!("there is no turn"), &|_, _, _| {});
            pool.run(10, 4, &|begin, end| assert!(begin < end));
        }
    }

    #[test]
    fn callers_share_a_pool() {
        let pool = Pool::new(3);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..20).for_each(|_| check_with(&pool)));
            }
        });
    }

    #[test]
    fn no_executor_is_waited_for() {
        let executors: [Launch; 4] = [
            |_, _| {},
            // All of it before the caller comes to it.
            |_, helper| helper.help(),
            |wanted, helper| {
                thread::scope(|scope| {
                    (0..wanted).for_each(|_| {
                        scope.spawn(|| helper.help());
                    });
                });
            },
            // Whenever it pleases.
            |wanted, helper| {
                for _ in 0..2 * wanted {
                    let helper = helper.clone();
                    thread::spawn(move || {
                        thread::yield_now();
                        helper.help();
                    });
                }
            },
        ];
        for launch in executors {
            let pool = Pool::with_executor(Arc::new(Odd(launch)));
            (0..20).for_each(|_| check_with(&pool));
        }
    }

    #[test]
    fn turns_end_before_their_executors_panic_goes_on() {
        let launch: Launch = |_, helper| {
            let helper = helper.clone();
            thread::spawn(move || helper.help());
            panic!("no threads today");
        };
        let pool = Pool::with_executor(Arc::new(Odd(launch)));
        for _ in 0..20 {
            let done = AtomicU32::new(0);
            let run = || {
                pool.run_turns(9, &|_| (6, 3), &|_, begin, end| {
                    done.fetch_add((end - begin) as u32, Ordering::Relaxed);
                });
            };
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
            assert_eq!(done.into_inner(), 54);
        }
    }
}
