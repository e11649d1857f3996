//! A program: the kernels of a compiled graph, the order they run in, and where their buffers are.

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
    /// The constant of this index.
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

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What runs.
    pub work: Work,
    /// Its buffers.
    pub args: Vec<Place>,
    /// The graph nodes it came from, for profiles and dumps.
    pub origin: Vec<String>,
    /// Floating-point operations, counting an fma as two; 0 where unknown.
    pub flops: u64,
}

/// The kernels of a graph and how to run them. All sizes are fixed.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Program {
    /// Distinct kernels; several steps may run the same one.
    pub kernels: Vec<Kernel>,
    /// What runs, in order.
    pub steps: Vec<Step>,
    /// Tensors that are part of the model.
    pub constants: Vec<Tensor>,
    /// The size of the arena in bytes.
    pub arena_bytes: u64,
    /// The caller's inputs.
    pub inputs: Vec<(String, TensorType)>,
    /// The caller's outputs.
    pub outputs: Vec<(String, TensorType)>,
}

impl Program {
    /// The alignment in bytes of every buffer: a cache line, and the widest vector.
    pub const ALIGN: u64 = 64;
}
