//! Running what prepares constants, which gives back the memory of the model's file as it goes: weights are not needed
//! there once they are packed.

use std::sync::{Mutex, PoisonError};

use windlass_ir::loops::{Place, Program, Step, Work};
use windlass_runtime::{Pool, Run};

use crate::error::Error;

/// A constant of more bytes than this is packed in parts of this size, of which one at a time is in memory twice. What is
/// less is given back when it comes to as much.
const PART: usize = 1 << 20;

/// A program that prepares constants.
pub(super) struct Preparing<'p> {
    program: &'p Program,
    /// Of each step, the constants that no later one reads.
    read_last: Vec<Vec<usize>>,
    /// What nothing reads any more, and is not given back yet.
    read: Mutex<Read<'p>>,
}

/// Bytes, and how many they are.
#[derive(Default)]
struct Read<'p> {
    bytes: Vec<&'p [u8]>,
    size: usize,
}

impl<'p> Preparing<'p> {
    pub(super) fn new(program: &'p Program) -> Preparing<'p> {
        let mut last_readers: Vec<Option<usize>> = vec![None; program.constants.len()];
        for (number, step) in program.steps.iter().enumerate() {
            for place in &step.args {
                if let Place::Constant(constant) = place
                    && let Some(last) = last_readers.get_mut(*constant as usize)
                {
                    *last = Some(number);
                }
            }
        }
        let mut read_last = vec![Vec::new(); program.steps.len()];
        for (constant, last) in last_readers.into_iter().enumerate() {
            last.into_iter().for_each(|step| read_last[step].push(constant));
        }
        Preparing { program, read_last, read: Mutex::default() }
    }

    /// Runs the steps that come next, and gives back what no later one reads.
    pub(super) fn step(&self, run: &mut Run<'_>, pool: &Pool) -> Result<(), Error> {
        let Some(steps) = run.next() else { return Ok(()) };
        let passed = self.passed(&self.program.steps[steps.start], steps.start);
        let most = passed.iter().map(|(_, bytes)| PART.div_ceil(*bytes)).min().unwrap_or(usize::MAX);
        let mut given = 0;
        run.step_in_parts(pool, i64::try_from(most).unwrap_or(i64::MAX), &mut |done| {
            let done = usize::try_from(done).unwrap_or(0);
            for &(constant, bytes) in &passed {
                let all = self.program.constants[constant].raw_bytes();
                let [from, to] = [given, done].map(|done| done.saturating_mul(bytes).min(all.len()));
                self.give_back(&all[from..to], PART);
            }
            given = done;
        })?;
        for &constant in steps.flat_map(|step| &self.read_last[step]) {
            let all = self.program.constants[constant].raw_bytes();
            let bytes = passed.iter().find(|(passed, _)| *passed == constant).map_or(0, |(_, bytes)| *bytes);
            self.give_back(&all[given.saturating_mul(bytes).min(all.len())..], PART);
        }
        if run.next().is_none() {
            self.give_back(&[], 0);
        }
        Ok(())
    }

    /// Gives back bytes, and those before, if together they are as many as `least`.
    fn give_back(&self, bytes: &'p [u8], least: usize) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.bytes.push(bytes);
        read.size += bytes.len();
        if read.size >= least {
            windlass_runtime::unload(&std::mem::take(&mut *read).bytes);
        }
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
            .filter(|(constant, ..)| self.read_last[number].contains(constant))
            .filter(|(constant, ..)| self.program.constants[*constant].raw_bytes().len() > PART)
            .map(|(constant, buffer, size)| (constant, kernel.leaves_behind(buffer) * size))
            .filter(|(_, bytes)| *bytes > 0)
            .collect()
    }
}
