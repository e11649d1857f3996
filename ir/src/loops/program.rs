//! A program: the kernels of a compiled graph, the order they run in, and where their buffers are.
//!
//! What depends on constants alone (weights scaled, transposed, packed into tiles) is a program of its
//! own, [`Program::prepare`], which runs once before the first run. So weights are prepared by compiled
//! kernels like everything else, in one pass over them whatever was done to them.

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
    /// A program without inputs whose outputs are further constants.
    pub prepare: Option<Box<Program>>,
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

    /// The types of the constants: those given, then those prepared.
    pub fn constant_types(&self) -> impl Iterator<Item = TensorType> {
        let prepared = self.prepare.iter().flat_map(|p| p.outputs.iter().map(|(_, ty)| ty.clone()));
        self.constants.iter().map(Tensor::ty).chain(prepared)
    }

    /// The same program with its constants prepared: `run` gives the outputs of [`Self::prepare`].
    pub fn prepared<E>(
        &self,
        run: impl FnOnce(&Program) -> Result<Vec<Tensor>, E>,
    ) -> Result<std::borrow::Cow<'_, Program>, E> {
        let Some(prepare) = &self.prepare else { return Ok(std::borrow::Cow::Borrowed(self)) };
        let mut constants = self.constants.clone();
        constants.extend(run(prepare)?);
        let (kernels, steps) = (self.kernels.clone(), self.steps.clone());
        let (inputs, outputs) = (self.inputs.clone(), self.outputs.clone());
        let arena_bytes = self.arena_bytes;
        let prepare = None;
        Ok(std::borrow::Cow::Owned(Program {
            kernels,
            steps,
            constants,
            prepare,
            arena_bytes,
            inputs,
            outputs,
        }))
    }
}
