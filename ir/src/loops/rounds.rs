//! Several kernels for one op, some of them run a number of times over: what a recurrence is, whose rounds
//! follow each other while the work within one is shared by threads.
//!
//! A kernel knows nothing of rounds. What differs between them is which part of a buffer it is called with: a
//! row of the inputs that is the next one in every round, or a state that is read in one half of a buffer and
//! written in the other, in turns.

use std::sync::Arc;

use super::{Kernel, Move, Origin, Place, Program, Repeat, Step, Work};
use crate::dtype::DType;
use crate::types::TensorType;

/// Kernels that together compute an op's results. Buffers are its operands, then its results, then scratch.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounds {
    /// The kernels.
    pub kernels: Vec<Kernel>,
    /// Types and lengths of buffers that nothing else uses.
    pub scratch: Vec<(DType, usize)>,
    /// What runs, one after another.
    pub stages: Vec<Stage>,
}

/// Calls that run in order, and that a number of times over.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// The number of rounds, at least 1.
    pub times: usize,
    /// What each of them runs.
    pub calls: Vec<Call>,
}

/// A kernel and what it is called with.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The number of the kernel.
    pub kernel: usize,
    /// For each of its parameters, the part of a buffer that it is.
    pub args: Vec<Part>,
    /// The graph nodes it came from; none means the op's.
    pub origin: Origin,
    /// Floating-point operations of one call, an fma counting as two; 0 where unknown.
    pub flops: u64,
}

/// A part of a buffer, as long as the parameter it is passed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which of the buffers.
    pub buffer: usize,
    /// Its first element in the first round.
    pub start: usize,
    /// By how many elements it moves from round to round.
    pub stride: i64,
    /// After how many rounds it is back at its start; 0 means never.
    pub period: usize,
}

impl Part {
    /// The same part in every round, from a buffer's first element on.
    pub fn whole(buffer: usize) -> Part {
        Part { buffer, start: 0, stride: 0, period: 0 }
    }

    /// The rows of a buffer, one in each round; from the last of so many if there is a number.
    pub fn rows(buffer: usize, len: usize, from_last_of: Option<usize>) -> Part {
        match from_last_of {
            None => Part { buffer, start: 0, stride: len as i64, period: 0 },
            Some(rows) => Part { buffer, start: (rows - 1) * len, stride: -(len as i64), period: 0 },
        }
    }

    /// The halves of a buffer in turns, beginning with half 0 or 1: a state as it was and, in the other half, as it will
    /// be.
    pub fn halves(buffer: usize, len: usize, first: usize) -> Part {
        let stride = if first == 0 { len as i64 } else { -(len as i64) };
        Part { buffer, start: first * len, stride, period: 2 }
    }
}

impl Rounds {
    /// The nodes that a kernel's first call came from; none means the op's.
    pub fn origin(&self, kernel: usize) -> &[Arc<str>] {
        let mut calls = self.stages.iter().flat_map(|stage| &stage.calls);
        calls.find(|call| call.kernel == kernel).map_or(&[], |call| &call.origin)
    }

    /// Adds the calls to a program: `kernels` are the numbers of [`Self::kernels`] there, `places` where the
    /// buffers are.
    pub fn add_to(&self, program: &mut Program, kernels: &[u32], places: &[Place], origin: &[Arc<str>]) {
        for stage in &self.stages {
            let first = program.steps.len();
            let mut moves = Vec::new();
            for call in &stage.calls {
                let step = program.steps.len();
                let mut args: Vec<Place> = call.args.iter().map(|part| places[part.buffer]).collect();
                let params = self.kernels[call.kernel].params();
                for (arg, (part, (_, param))) in call.args.iter().zip(params).enumerate() {
                    let size = param.dtype.size();
                    let (start, stride) = ((part.start * size) as u64, part.stride * size as i64);
                    match &mut args[arg] {
                        Place::Arena(at) if stride == 0 && start % Program::ALIGN == 0 => *at += start,
                        _ if (start, stride) == (0, 0) => {}
                        _ => moves.push(Move { step, arg, start, stride, period: part.period }),
                    }
                }
                program.steps.push(Step {
                    work: Work::Kernel(kernels[call.kernel]),
                    args,
                    origin: if call.origin.is_empty() { origin } else { &call.origin }.to_vec(),
                    flops: call.flops,
                });
            }
            if stage.times > 1 || !moves.is_empty() {
                program.repeats.push(Repeat { first, steps: stage.calls.len(), times: stage.times, moves });
            }
        }
    }

    /// A program of these calls alone.
    pub fn to_program(&self, ins: &[TensorType], outs: &[TensorType]) -> Program {
        let ports = |name: &str, types: &[TensorType]| {
            types.iter().enumerate().map(|(i, ty)| (format!("{name}{i}"), ty.clone())).collect()
        };
        let mut program = Program {
            kernels: self.kernels.clone(),
            inputs: ports("in", ins),
            outputs: ports("out", outs),
            ..Program::default()
        };
        let mut places: Vec<Place> = (0..ins.len() as u32).map(Place::Input).collect();
        places.extend((0..outs.len() as u32).map(Place::Output));
        for (dtype, len) in &self.scratch {
            places.push(Place::Arena(program.arena_bytes));
            program.arena_bytes += ((len * dtype.size()) as u64).next_multiple_of(Program::ALIGN);
        }
        let kernels: Vec<u32> = (0..program.kernels.len() as u32).collect();
        self.add_to(&mut program, &kernels, &places, &[]);
        program
    }
}
