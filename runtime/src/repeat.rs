//! Steps that run in rounds. One of the files with unsafe code: it moves arguments between rounds and calls native
//! kernels with them.
//!
//! The rounds of a repeat are one job of a pool, whose threads meet after each step. Whoever starts a round writes where
//! its arguments are to the table that all read.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::executable::{Instance, Table, call, code_of};
use crate::{Error, Executable, Parts, Pool, Step, Work};

/// Neighbouring steps that run a number of times over, in rounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeat {
    /// The steps.
    pub steps: Range<usize>,
    /// The number of rounds.
    pub times: usize,
    /// The arguments that are another part of their buffer in some round.
    pub moves: Vec<Move>,
}

/// An argument that moves in its buffer from round to round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The step.
    pub step: usize,
    /// Which of its arguments.
    pub arg: usize,
    /// Where it is in the first round, in bytes from its place.
    pub start: u64,
    /// By how many bytes it moves from round to round.
    pub stride: i64,
    /// After how many rounds it is back at its start; 0 means never.
    pub period: usize,
}

impl Move {
    /// Where it is in a round, in bytes from its place, if the numbers are not too large.
    fn checked_at(&self, round: usize) -> Option<i64> {
        let moved = self.stride.checked_mul(self.turn(round) as i64)?;
        i64::try_from(self.start).ok()?.checked_add(moved)
    }

    /// The same where that was checked.
    #[inline]
    fn at(&self, round: usize) -> i64 {
        (self.start as i64).wrapping_add(self.stride.wrapping_mul(self.turn(round) as i64))
    }

    #[inline]
    fn turn(&self, round: usize) -> usize {
        match self.period {
            0 => round,
            // No division, which takes as long as the arithmetic of a small step.
            2 => round & 1,
            period => round % period,
        }
    }

    /// The most that it is from its place in so many rounds, if it is never before it.
    fn most(&self, times: usize) -> Option<usize> {
        let turns = if self.period == 0 { times } else { times.min(self.period) };
        // It moves one way, so one end is the first of these and one the last.
        let (first, last) = (self.checked_at(0)?, self.checked_at(turns.checked_sub(1)?)?);
        usize::try_from(first.min(last)).ok().and(usize::try_from(first.max(last)).ok())
    }
}

impl Executable {
    /// Runs the rounds of a repeat. Threads that share its steps stay from the first round to the last.
    pub(crate) fn run_repeat(
        &self,
        repeat: &Repeat,
        instance: &mut Instance,
        pool: &Pool,
        observe: Option<&mut dyn FnMut(usize, Duration)>,
    ) -> Result<(), Error> {
        let steps = &self.parts.steps[repeat.steps.clone()];
        for step in steps {
            if let Work::Kernel { function, .. } = &step.work {
                code_of(step, function)?;
            }
        }
        for (base, moving) in instance.bases.iter_mut().zip(&repeat.moves) {
            let slot = self.firsts[moving.step] + moving.arg;
            *base = Base { slot, pointer: instance.table[slot] };
        }
        let clock = observe.is_some().then(|| Clock::new(steps.len()));
        let bases = Bases(&instance.bases);
        let table = Table(instance.table.as_mut_ptr());
        let count = steps.len();
        let begin = |turn: usize, round: usize, step: usize| {
            if let Some(clock) = &clock {
                clock.turn(turn);
            }
            if step == 0 {
                for (moving, base) in repeat.moves.iter().zip(bases.get()) {
                    // Checked to be in the argument's buffer when the executable was made.
                    let pointer = base.pointer.wrapping_offset(moving.at(round) as isize);
                    // SAFETY: the slot is in the table; one thread alone begins a turn, while no kernel runs.
                    unsafe { *table.start().add(base.slot) = pointer };
                }
            }
        };
        let args = |step: usize| table.at(self.firsts[repeat.steps.start + step]);
        let parts = |step: &Step| match &step.work {
            Work::Kernel { extent, grain, .. } => pool.threads().min((extent / grain.max(&1)) as usize),
            Work::Host { .. } => 1,
        };
        let are_kernels = steps.iter().all(|step| matches!(step.work, Work::Kernel { .. }));
        let mut result = Ok(());
        if are_kernels && steps.iter().any(|step| parts(step) > 1) {
            let next = |turn: usize| {
                begin(turn, turn / count, turn % count);
                let step = &steps[turn % count];
                match &step.work {
                    Work::Kernel { extent, .. } => (*extent, parts(step)),
                    Work::Host { .. } => (0, 1),
                }
            };
            pool.run_turns(count * repeat.times, &next, &|turn, first, end| {
                let step = turn % count;
                if let Work::Kernel { function, .. } = &steps[step].work
                    && let Some(function) = function.get()
                {
                    // SAFETY: the contract of `Executable::new`; the turn was begun, and its arguments stay till its end.
                    unsafe { function(args(step), first, end) }
                }
            });
        } else {
            let alone = are_kernels || pool.threads() == 1;
            'rounds: for round in 0..repeat.times {
                for (at, step) in steps.iter().enumerate() {
                    begin(round * count + at, round, at);
                    if let (true, Work::Kernel { function, extent, .. }) = (alone, &step.work)
                        && let Some(function) = function.get()
                    {
                        // SAFETY: as above.
                        unsafe { function(args(at), 0, *extent) };
                        continue;
                    }
                    // SAFETY: so many arguments of the step are there in the table, which nobody writes meanwhile.
                    let args = unsafe { std::slice::from_raw_parts(args(at), step.args.len()) };
                    result = call(step, args, pool);
                    if result.is_err() {
                        break 'rounds;
                    }
                }
            }
        }
        if let (Some(clock), Some(observe), Ok(())) = (clock, observe, &result) {
            clock.turn(count * repeat.times);
            for (step, time) in repeat.steps.clone().zip(clock.times) {
                observe(step, Duration::from_nanos(time.into_inner()));
            }
        }
        for base in &instance.bases[..repeat.moves.len()] {
            instance.table[base.slot] = base.pointer;
        }
        result
    }
}

/// Checks the repeats; for each argument that moves, by how many bytes at most.
pub(crate) fn check(parts: &Parts) -> Result<HashMap<(usize, usize), usize>, Error> {
    let mut reach = HashMap::new();
    let mut next = 0;
    for repeat in &parts.repeats {
        let Range { start, end } = repeat.steps;
        if start < next || end <= start || end > parts.steps.len() || repeat.times == 0 {
            return Err(Error::Repeat { first: start, end, rounds: repeat.times });
        }
        next = end;
        for moving in &repeat.moves {
            let is_argument = repeat.steps.contains(&moving.step)
                && moving.arg < parts.steps[moving.step].args.len()
                && !reach.contains_key(&(moving.step, moving.arg));
            let Some(most) = moving.most(repeat.times).filter(|_| is_argument) else {
                return Err(Error::Repeat { first: start, end, rounds: repeat.times });
            };
            reach.insert((moving.step, moving.arg), most);
        }
    }
    Ok(reach)
}

/// The time of each step of a repeat, in nanoseconds.
struct Clock {
    start: Instant,
    last: AtomicU64,
    times: Vec<AtomicU64>,
}

impl Clock {
    fn new(steps: usize) -> Clock {
        let times = (0..steps).map(|_| AtomicU64::new(0)).collect();
        Clock { start: Instant::now(), last: AtomicU64::new(0), times }
    }

    /// A turn begins: what has passed is the time of the one before.
    fn turn(&self, turn: usize) {
        let now = self.start.elapsed().as_nanos() as u64;
        let passed = now.saturating_sub(self.last.swap(now, Ordering::Relaxed));
        if let Some(before) = turn.checked_sub(1) {
            self.times[before % self.times.len()].fetch_add(passed, Ordering::Relaxed);
        }
    }
}

/// An argument that moves: its slot in the table, and what stands there without that.
#[derive(Clone, Copy)]
pub(crate) struct Base {
    slot: usize,
    pointer: *mut u8,
}

impl Base {
    pub(crate) const NONE: Base = Base { slot: 0, pointer: std::ptr::null_mut() };
}

/// What whoever begins a round reads.
struct Bases<'a>(&'a [Base]);

// SAFETY: as for `Instance`.
unsafe impl Sync for Bases<'_> {}

impl<'a> Bases<'a> {
    fn get(&self) -> &'a [Base] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executable::tests::double;
    use std::sync::OnceLock;

    use crate::{HostFn, KernelFn, Place, Port, Profile};

    /// `y[i] = x[i] * 2`, ten bytes at a time: of rows of the input to rows of the output by way of the arena's halves.
    fn repeated(grain: i64) -> Parts {
        let step = |from, to| Step {
            work: Work::Kernel { function: OnceLock::from(double as KernelFn), extent: 10, grain },
            args: vec![(from, 10), (to, 10)],
            name: "double".to_string(),
            origin: "d".to_string(),
            flops: 0,
        };
        let moving = |step, arg, start, stride, period| Move { step, arg, start, stride, period };
        let port = |name: &str| vec![Port { name: name.to_string(), bytes: 100 }];
        Parts {
            steps: vec![step(Place::Input(0), Place::Arena(0)), step(Place::Arena(0), Place::Output(0))],
            repeats: vec![Repeat {
                steps: 0..2,
                times: 10,
                moves: vec![
                    moving(0, 0, 90, -10, 0),
                    moving(0, 1, 0, 10, 2),
                    moving(1, 0, 0, 10, 2),
                    moving(1, 1, 0, 10, 0),
                ],
            }],
            constants: Vec::new(),
            arena_bytes: 20,
            inputs: port("x"),
            outputs: port("y"),
            in_place: Vec::new(),
            code: Box::new(()),
        }
    }

    #[test]
    fn rounds_move_their_arguments() {
        let x: Vec<u8> = (0..50).chain(0..50).collect();
        let expected: Vec<u8> = x.chunks(10).rev().flatten().map(|x| x * 4).collect();
        for (threads, grain) in [(1, 1), (2, 1), (3, 1), (3, 5), (2, 10)] {
            // SAFETY: `double` keeps to its two buffers.
            let executable = unsafe { Executable::new(repeated(grain)) }.unwrap();
            let pool = Pool::new(threads);
            let mut profile = Profile::default();
            for round in 0..20 {
                let mut y = [0u8; 100];
                match round % 2 {
                    0 => executable.run(&pool, &[&x], &mut [&mut y]).unwrap(),
                    _ => executable.run_profiled(&pool, &[&x], &mut [&mut y], &mut profile).unwrap(),
                }
                assert_eq!(y.as_slice(), expected);
            }
            assert!(profile.runs == 10 && profile.steps.iter().all(|time| !time.is_zero()));
        }
    }

    #[test]
    fn a_callback_may_be_repeated_and_may_fail() {
        let mut parts = repeated(1);
        let double: HostFn = Box::new(|ins, outs| {
            outs[0].iter_mut().zip(ins[0]).for_each(|(y, x)| *y = x * 2);
            if ins[0][0] == 98 { Err("no".to_string()) } else { Ok(()) }
        });
        parts.steps[1].work = Work::Host { ins: 1, function: double };
        // SAFETY: `double` keeps to its two buffers.
        let executable = unsafe { Executable::new(parts) }.unwrap();
        let pool = Pool::new(2);
        let (mut x, mut y) = (vec![1u8; 100], [0u8; 100]);
        for _ in 0..2 {
            executable.run(&pool, &[&x], &mut [&mut y]).unwrap();
            assert_eq!(y, [4; 100]);
            x[50] = 49;
            assert!(executable.run(&pool, &[&x], &mut [&mut y]).is_err());
            x[50] = 1;
        }
    }

    #[test]
    fn repeats_that_leave_their_buffers_are_refused() {
        type Change = fn(&mut Repeat);
        let changes: [Change; 7] = [
            |repeat| repeat.times = 11,
            |repeat| repeat.times = 0,
            |repeat| repeat.steps = 0..3,
            |repeat| repeat.steps = 1..1,
            |repeat| repeat.moves[1].period = 3,
            |repeat| repeat.moves[2].step = 2,
            |repeat| repeat.moves[0].stride = i64::MIN,
        ];
        for change in changes {
            let mut parts = repeated(1);
            change(&mut parts.repeats[0]);
            // SAFETY: it is not run.
            assert!(unsafe { Executable::new(parts) }.is_err());
        }
    }
}
