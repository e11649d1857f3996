//! Running what prepares constants, which gives back the memory of the model's file as it goes: weights are not needed
//! there once they are packed.

use windlass_ir::loops::{Place, Program, Step, Work};
use windlass_runtime::{Pool, Run};

use crate::error::Error;

/// A constant of more bytes than this is packed in parts of this size, of which one at a time is in memory twice.
const PART: usize = 1 << 20;

/// A program that prepares constants.
pub(super) struct Preparing<'p> {
    program: &'p Program,
    /// The last step that reads each constant.
    last_readers: Vec<usize>,
}

impl<'p> Preparing<'p> {
    pub(super) fn new(program: &'p Program) -> Preparing<'p> {
        let mut last_readers = vec![usize::MAX; program.constants.len()];
        for (number, step) in program.steps.iter().enumerate() {
            for place in &step.args {
                if let Place::Constant(constant) = place
                    && let Some(last) = last_readers.get_mut(*constant as usize)
                {
                    *last = number;
                }
            }
        }
        Preparing { program, last_readers }
    }

    /// Runs the steps that come next, and gives back what no later one reads.
    pub(super) fn step(&self, run: &mut Run<'_>, pool: &Pool) -> Result<(), Error> {
        let Some(steps) = run.next() else { return Ok(()) };
        let passed = self.passed(&self.program.steps[steps.start], steps.start);
        let most = passed.iter().map(|(_, bytes)| PART.div_ceil(*bytes)).min().unwrap_or(usize::MAX);
        run.step_in_parts(pool, i64::try_from(most).unwrap_or(i64::MAX), &mut |done| {
            for &(constant, bytes) in &passed {
                let all = self.program.constants[constant].raw_bytes();
                let behind = usize::try_from(done).unwrap_or(0).saturating_mul(bytes);
                windlass_runtime::unload(&all[..behind.min(all.len())]);
            }
        })?;
        for step in steps {
            for (constant, _) in
                self.program.constants.iter().zip(&self.last_readers).filter(|(_, last)| **last == step)
            {
                windlass_runtime::unload(constant.raw_bytes());
            }
        }
        Ok(())
    }

    /// The large constants that a step is the last to read, with the bytes that each iteration leaves behind.
    fn passed(&self, step: &Step, number: usize) -> Vec<(usize, usize)> {
        let Work::Kernel(kernel) = &step.work else { return Vec::new() };
        let kernel = &self.program.kernels[*kernel as usize];
        let large = kernel.params().zip(&step.args).filter_map(|((buffer, data), place)| match place {
            Place::Constant(constant) => Some((*constant as usize, buffer, data.dtype.size())),
            Place::Input(_) | Place::Output(_) | Place::Arena(_) => None,
        });
        large
            .filter(|(constant, ..)| self.last_readers.get(*constant) == Some(&number))
            .filter(|(constant, ..)| self.program.constants[*constant].raw_bytes().len() > PART)
            .map(|(constant, buffer, size)| (constant, kernel.leaves_behind(buffer) * size))
            .filter(|(_, bytes)| *bytes > 0)
            .collect()
    }
}
