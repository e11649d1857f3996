//! Code is made, constants are prepared and a program is run at the same time, piece by piece.
//!
//! The pieces are kernels to be made, and the steps that prepare constants. Each has a place in the order in which the
//! steps of the run need them. Every thread takes the piece that is needed first of those that can be done; the
//! calling thread does so while its next step waits for one. Steps that prepare are done one after another, for they
//! share memory; threads that find no piece [help](super::lending) with that in hand.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use windlass_ir::loops::{Place, Program};
use windlass_runtime::{Pool, Run};

use super::First;
use super::lending::Lending;
use super::side::Side;
use super::unload::Preparing;
use crate::compile::{Backend, KERNELS_A_THREAD, Memory, Options, Statistics, statements};
use crate::error::Error;
use crate::isa::SharedIsa;
use crate::x86;

/// As many bytes of constants are worth another thread.
const BYTES_A_THREAD: usize = 2 << 20;

/// How constants are prepared.
pub(super) struct Preparation<'m, 'p> {
    pub(super) side: &'m Side<'p>,
    pub(super) run: Run<'m>,
    /// The bytes that are prepared.
    pub(super) bytes: usize,
}

/// A kernel to be made.
struct Item<'m, 'p> {
    side: &'m Side<'p>,
    is_prepare: bool,
    /// Its position among those of its side that differ.
    at: usize,
    /// Its place in the order of need.
    need: usize,
}

struct Making<'m, 'p> {
    main: &'m Side<'p>,
    prepare: Option<&'m Side<'p>>,
    isa: SharedIsa,
    options: &'m Options,
    backend: Backend,
    known: Arc<x86::Allocations>,
    /// What is to be made, in order.
    items: Vec<Item<'m, 'p>>,
    /// Of each step that prepares: its place in the order of need.
    needs: Vec<usize>,
    preparing: Option<Preparing<'p>>,
    /// For each step of the run, how many of those that prepare must be done.
    before: Vec<usize>,
    pool: Pool,
    state: Mutex<State<'m>>,
    /// Where threads wait for changes of the state, and help with what is prepared.
    lending: Arc<Lending>,
}

struct State<'m> {
    /// The item that is made next.
    next: usize,
    /// Which kernels are made: of the run, and of what prepares.
    made: [Vec<bool>; 2],
    /// How far preparing is; none while a step of it is run, and in the end.
    run: Option<Run<'m>>,
    /// How many of its steps are done.
    prepared: usize,
    error: Option<Error>,
    /// Whether nobody waits for what is left.
    stopped: bool,
    emitting: Duration,
    compiling: Duration,
}

/// What a thread does next.
enum Piece<'m> {
    Make(usize),
    Prepare(Run<'m>),
}

/// Makes the code of a program and prepares its constants. The first run, if there is one, begins meanwhile.
pub(super) fn make<'p>(
    main: &Side<'p>,
    preparation: Option<Preparation<'_, 'p>>,
    isa: &SharedIsa,
    options: &Options,
    first: Option<First<'_, '_, '_>>,
    statistics: &mut Statistics,
) -> Result<(), Error> {
    let making = Making::new(main, preparation, isa, options, first.is_some());
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&making);
        for _ in 1..making.pool.threads() {
            let help = || {
                let _fail = FailOnPanic(&making);
                making.work_until(&mut making.memory(), |making, state| making.is_done(state));
            };
            // Without another thread this one does all.
            let _ = std::thread::Builder::new().spawn_scoped(scope, help);
        }
        making.drive(first, statistics)
    })?;
    let state = making.lock();
    statistics.emit += state.emitting;
    statistics.compile += state.compiling;
    for side in making.prepare.into_iter().chain([main]) {
        side.seal();
        let (bytes, linking) = side.totals();
        statistics.kernels += side.program.kernels.len();
        statistics.distinct += side.distinct.len();
        statistics.code_bytes += bytes;
        statistics.link += linking;
    }
    Ok(())
}

/// Tells the others that nothing more is needed.
struct StopOnDrop<'a, 'm, 'p>(&'a Making<'m, 'p>);

impl Drop for StopOnDrop<'_, '_, '_> {
    fn drop(&mut self) {
        self.0.change(|state| state.stopped = true);
    }
}

/// Tells the calling thread, which may wait for what this one was about to make.
struct FailOnPanic<'a, 'm, 'p>(&'a Making<'m, 'p>);

impl Drop for FailOnPanic<'_, '_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Error::Module("a thread that makes code panicked".to_string()));
        }
    }
}

impl<'m, 'p> Making<'m, 'p> {
    fn new(
        main: &'m Side<'p>,
        preparation: Option<Preparation<'m, 'p>>,
        isa: &SharedIsa,
        options: &'m Options,
        runs: bool,
    ) -> Making<'m, 'p> {
        let prepare = preparation.as_ref().map(|preparation| preparation.side);
        let bytes = preparation.as_ref().map_or(0, |preparation| preparation.bytes);
        let before = match prepare {
            Some(prepare) => steps_before(main.program, prepare.program),
            None => vec![0; main.program.steps.len()],
        };
        let mut items = Vec::new();
        let mut needs = Vec::new();
        let mut planned = [vec![false; main.distinct.len()], Vec::new()];
        planned[1].resize(prepare.map_or(0, |side| side.distinct.len()), false);
        let mut add = |side: &'m Side<'p>, is_prepare: bool, at: usize, need: usize| {
            if !std::mem::replace(&mut planned[usize::from(is_prepare)][at], true) {
                items.push(Item { side, is_prepare, at, need });
            }
        };
        let mut need = 0;
        for step in 0..=main.program.steps.len() {
            if let Some(prepare) = prepare {
                let until = before.get(step).copied().unwrap_or(prepare.program.steps.len());
                while needs.len() < until {
                    prepare.kernel_of(needs.len()).into_iter().for_each(|at| add(prepare, true, at, need));
                    needs.push(need);
                    need += 1;
                }
            }
            if step < main.program.steps.len() {
                main.kernel_of(step).into_iter().for_each(|at| add(main, false, at, need));
                need += 1;
            }
        }
        // What no step calls.
        let sides = prepare.map(|side| (side, true)).into_iter().chain([(main, false)]);
        for (side, is_prepare) in sides {
            (0..side.distinct.len()).for_each(|at| add(side, is_prepare, at, need));
        }
        if !runs {
            // The largest first, so that no thread is left with it in the end; before them what prepares.
            items.sort_by_cached_key(|item| {
                let kernel = &item.side.program.kernels[item.side.distinct[item.at]];
                (!item.is_prepare, std::cmp::Reverse(statements(&kernel.body)))
            });
            items.iter_mut().for_each(|item| item.need = 0);
            needs.fill(0);
        }
        let made = planned.map(|planned| vec![false; planned.len()]);
        let pieces = items.len().div_ceil(KERNELS_A_THREAD).max(bytes.div_ceil(BYTES_A_THREAD));
        let lending = Lending::new(options.threads().min(pieces));
        Making {
            main,
            prepare,
            isa: isa.clone(),
            options,
            backend: Backend::new(&**isa, options.vector_bits),
            known: Arc::default(),
            items,
            needs,
            preparing: prepare.map(|side| Preparing::new(side.program)),
            before,
            pool: Pool::with_executor(lending.clone()),
            state: Mutex::new(State {
                next: 0,
                made,
                run: preparation.map(|preparation| preparation.run),
                prepared: 0,
                error: None,
                stopped: false,
                emitting: Duration::ZERO,
                compiling: Duration::ZERO,
            }),
            lending,
        }
    }

    fn memory(&self) -> Memory {
        Memory::new(self.known.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State<'m>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and tells those who wait.
    fn change(&self, change: impl FnOnce(&mut State<'m>)) {
        let mut state = self.lock();
        change(&mut state);
        self.lending.change();
        drop(state);
        self.lending.tell();
    }

    fn fail(&self, error: Error) {
        self.change(|state| {
            state.error.get_or_insert(error);
        });
    }

    /// What the calling thread does: it runs steps when they can be, if there is a run, and sees to it that all is made.
    fn drive(&self, first: Option<First<'_, '_, '_>>, statistics: &mut Statistics) -> Result<(), Error> {
        let mut memory = self.memory();
        if let Some(First { pool, inputs, outputs }) = first {
            let mut run = self.main.executable.start(inputs, outputs)?;
            while let Some(steps) = run.next() {
                for step in steps {
                    self.obtain(&mut memory, statistics, |making, state| making.can_run(state, step))?;
                    self.main.provide(step)?;
                }
                let start = Instant::now();
                run.step(pool)?;
                statistics.run += start.elapsed();
            }
        }
        self.obtain(&mut memory, statistics, Making::is_done)?;
        (0..self.main.program.steps.len()).try_for_each(|step| self.main.provide(step))
    }

    /// Works until something has come about.
    fn obtain(
        &self,
        memory: &mut Memory,
        statistics: &mut Statistics,
        is_there: impl Fn(&Self, &State<'m>) -> bool,
    ) -> Result<(), Error> {
        statistics.prepare += self.work_until(memory, is_there);
        self.lock().error.take().map_or(Ok(()), Err)
    }

    /// Does pieces of work until something has come about, or an error. The time that constants took: it may be spent
    /// on waiting for another thread.
    fn work_until(&self, memory: &mut Memory, is_there: impl Fn(&Self, &State<'m>) -> bool) -> Duration {
        let mut preparing = Duration::ZERO;
        let mut state = self.lock();
        while state.error.is_none() && !state.stopped && !is_there(self, &state) {
            let start = Instant::now();
            let piece = self.take(&mut state);
            let is_making = matches!(piece, Some(Piece::Make(_)));
            match piece {
                None => state = self.lending.wait(|| self.lock(), state),
                Some(piece) => {
                    drop(state);
                    self.perform(piece, memory);
                    state = self.lock();
                }
            }
            if !is_making && self.prepare.is_some() {
                preparing += start.elapsed();
            }
        }
        preparing
    }

    /// The piece that is needed first, if one can be done.
    fn take(&self, state: &mut State<'m>) -> Option<Piece<'m>> {
        let kernel = self.items.get(state.next).map(|item| item.need);
        let steps = state.run.as_ref().and_then(Run::next);
        let step = steps.is_some_and(|mut steps| steps.all(|step| self.is_made(state, self.prepare, step)));
        if step && kernel.is_none_or(|need| self.needs[state.prepared] <= need) {
            return state.run.take().map(Piece::Prepare);
        }
        kernel.map(|_| {
            state.next += 1;
            Piece::Make(state.next - 1)
        })
    }

    fn perform(&self, piece: Piece<'m>, memory: &mut Memory) {
        match piece {
            Piece::Make(item) => {
                let Item { side, is_prepare, at, .. } = self.items[item];
                let kernel = &side.program.kernels[side.distinct[at]];
                (memory.emitting, memory.compiling) = (Duration::ZERO, Duration::ZERO);
                let code = self.backend.make(kernel, &self.isa, memory);
                let added = code.and_then(|code| self.options.check_limit(side.add(at, code)));
                if let Err(error) = added {
                    return self.fail(error);
                }
                self.change(|state| {
                    state.made[usize::from(is_prepare)][at] = true;
                    state.emitting += memory.emitting;
                    state.compiling += memory.compiling;
                });
            }
            Piece::Prepare(mut run) => {
                let (Some(side), Some(preparing)) = (self.prepare, &self.preparing) else { return };
                let Some(mut steps) = run.next() else { return };
                let count = steps.len();
                let provided = steps.try_for_each(|step| side.provide(step));
                if let Err(error) = provided.and_then(|()| preparing.step(&mut run, &self.pool)) {
                    return self.fail(error);
                }
                let run = run.next().is_some().then_some(run);
                if run.is_none() {
                    side.executable.release();
                }
                self.change(|state| {
                    state.prepared += count;
                    state.run = run;
                });
            }
        }
    }

    /// Whether the code of a step is made.
    fn is_made(&self, state: &State<'m>, side: Option<&Side<'p>>, step: usize) -> bool {
        let is_prepare = side.is_some_and(|side| !std::ptr::eq(side, self.main));
        side.is_some_and(|side| side.kernel_of(step).is_none_or(|at| state.made[usize::from(is_prepare)][at]))
    }

    /// Whether the run's next step has all it needs.
    fn can_run(&self, state: &State<'m>, step: usize) -> bool {
        state.prepared >= self.before[step] && self.is_made(state, Some(self.main), step)
    }

    fn is_done(&self, state: &State<'m>) -> bool {
        state.prepared == self.needs.len() && state.made.iter().flatten().all(|&made| made)
    }
}

/// For each step of a program, how many steps of the one that prepares its constants must be done before.
fn steps_before(program: &Program, prepare: &Program) -> Vec<usize> {
    let mut written = vec![0; prepare.outputs.len()];
    for (number, step) in prepare.steps.iter().enumerate() {
        for place in &step.args {
            if let Place::Output(output) = place {
                written[*output as usize] = number + 1;
            }
        }
    }
    let of = |place: &Place| match place {
        Place::Constant(constant) => (*constant as usize)
            .checked_sub(program.constants.len())
            .and_then(|output| written.get(output).copied()),
        Place::Input(_) | Place::Output(_) | Place::Arena(_) => None,
    };
    program.steps.iter().map(|step| step.args.iter().filter_map(of).max().unwrap_or(0)).collect()
}
