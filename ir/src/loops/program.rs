//! A program: the kernels of a compiled graph, the order they run in, and where their buffers are.
//!
//! What depends on constants alone (weights scaled, transposed, packed into tiles) is a program of its
//! own, [`Program::prepare`], which runs once before the first run. So weights are prepared by compiled
//! kernels like everything else, in one pass over them whatever was done to them.
//!
//! Some steps are run several times over, by a [`Repeat`]. Kernels do not see that: in each round they are called
//! with other parts of their buffers.

use std::sync::Arc;

use super::Kernel;
use crate::ops::Op;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// Where a buffer is when the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The caller's input of this index.
    Input(u32),
    /// The caller's output of this index.
    Output(u32),
    /// The constant of this index: those of the program, then those it prepares.
    Constant(u32),
    /// A byte offset into the arena, a multiple of [`Program::ALIGN`].
    Arena(u64),
}

/// What a step runs.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// The kernel of this index; arguments are its parameters in order.
    Kernel(u32),
    /// An op without native code, run by the interpreter; arguments are its operands, then its results.
    Interpret {
        /// The op, its late attributes known.
        op: Box<Op>,
        /// The operands' types, all sizes fixed.
        ins: Vec<TensorType>,
        /// The results' types, all sizes fixed.
        outs: Vec<TensorType>,
    },
}

/// The graph nodes that something came from.
pub type Origin = Vec<Arc<str>>;

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What runs.
    pub work: Work,
    /// Its buffers.
    pub args: Vec<Place>,
    /// The graph nodes it came from, for profiles and dumps.
    pub origin: Origin,
    /// Floating-point operations, counting an fma as two; 0 where unknown.
    pub flops: u64,
}

/// Neighbouring steps that run a number of times over: all of them in each round, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeat {
    /// The first step.
    pub first: usize,
    /// The number of steps, at least 1.
    pub steps: usize,
    /// The number of rounds, at least 1.
    pub times: usize,
    /// The arguments that are not the start of their buffer in every round, each once.
    pub moves: Vec<Move>,
}

impl Repeat {
    /// The steps.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.steps
    }
}

/// An argument that moves in its buffer from round to round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The step.
    pub step: usize,
    /// Which of its arguments.
    pub arg: usize,
    /// Where it is in the first round, in bytes from the start of its buffer.
    pub start: u64,
    /// By how many bytes it moves from round to round.
    pub stride: i64,
    /// After how many rounds it is back at its start; 0 means never.
    pub period: usize,
}

impl Move {
    /// Where the argument is in a round, in bytes from the start of its buffer.
    pub fn at(&self, round: usize) -> i64 {
        let turn = if self.period == 0 { round } else { round % self.period };
        (self.start as i64).wrapping_add(self.stride.wrapping_mul(turn as i64))
    }

    /// The least and the most that [`Self::at`] is in so many rounds.
    pub fn bounds(&self, times: usize) -> (i64, i64) {
        let turns = if self.period == 0 { times } else { times.min(self.period) };
        let reach = self.stride.saturating_mul(turns.saturating_sub(1) as i64);
        let (first, last) = (self.at(0), self.at(0).saturating_add(reach));
        (first.min(last), first.max(last))
    }
}

/// The kernels of a graph and how to run them. All sizes are fixed.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Program {
    /// Distinct kernels; several steps may run the same one.
    pub kernels: Vec<Kernel>,
    /// What runs, in order.
    pub steps: Vec<Step>,
    /// Which of them run several times over: ranges in order that do not overlap.
    pub repeats: Vec<Repeat>,
    /// Tensors that are part of the model.
    pub constants: Vec<Tensor>,
    /// A program without inputs whose outputs are further constants.
    pub prepare: Option<Box<Program>>,
    /// The size of the arena in bytes.
    pub arena_bytes: u64,
    /// The caller's inputs.
    pub inputs: Vec<(String, TensorType)>,
    /// The caller's outputs.
    pub outputs: Vec<(String, TensorType)>,
    /// Inputs in whose memory an output is: (input, output), each in one pair at most. The caller has one buffer for both,
    /// which holds the input before a run and the output afterwards; of an output that is the input no step says anything.
    pub in_place: Vec<(u32, u32)>,
}

impl Program {
    /// The alignment in bytes of every buffer: a cache line, and the widest vector.
    pub const ALIGN: u64 = 64;

    /// The steps in the order they run, each with the number of its round: 0 unless it is repeated.
    pub fn order(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut repeats = self.repeats.iter().peekable();
        let mut next = 0;
        let ranges = std::iter::from_fn(move || {
            let found = repeats.next_if(|repeat| repeat.first <= next);
            let (range, times) = found.map_or((next..next + 1, 1), |r| (next..r.range().end, r.times));
            next = range.end;
            (range.start < self.steps.len()).then_some((range, times))
        });
        ranges.flat_map(|(range, times)| {
            (0..times).flat_map(move |round| range.clone().map(move |step| (step, round)))
        })
    }

    /// The repeat that a step is in.
    pub fn repeat_of(&self, step: usize) -> Option<&Repeat> {
        let next = self.repeats.partition_point(|repeat| repeat.first <= step);
        let before = self.repeats.get(next.checked_sub(1)?);
        before.filter(|repeat| repeat.range().contains(&step))
    }

    /// How often a step runs.
    pub fn times(&self, step: usize) -> usize {
        self.repeat_of(step).map_or(1, |repeat| repeat.times)
    }

    /// For each argument of a step, where it starts in its buffer in a round, in bytes.
    pub fn starts(&self, step: usize, round: usize) -> Vec<i64> {
        let mut starts = vec![0; self.steps[step].args.len()];
        let repeat = self.repeat_of(step);
        for moving in repeat.iter().flat_map(|repeat| &repeat.moves).filter(|moving| moving.step == step) {
            if let Some(start) = starts.get_mut(moving.arg) {
                *start = moving.at(round);
            }
        }
        starts
    }

    /// The types of the constants: those given, then those prepared.
    pub fn constant_types(&self) -> impl Iterator<Item = TensorType> {
        let prepared = self.prepare.iter().flat_map(|p| p.outputs.iter().map(|(_, ty)| ty.clone()));
        self.constants.iter().map(Tensor::ty).chain(prepared)
    }

    /// The constants: those given, then those prepared, for which `run` gives the outputs of [`Self::prepare`].
    pub fn all_constants<E>(
        &self,
        run: impl FnOnce(&Program) -> Result<Vec<Tensor>, E>,
    ) -> Result<Vec<Tensor>, E> {
        let mut constants = self.constants.clone();
        if let Some(prepare) = &self.prepare {
            constants.extend(run(prepare)?);
        }
        Ok(constants)
    }
}
