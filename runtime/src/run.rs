//! A run of a model in progress, step by step.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::executable::{Instance, call};
use crate::{Error, Executable, Pool};

/// A run of a model in progress, which holds the caller's buffers until it is dropped.
pub struct Run<'r> {
    executable: &'r Executable,
    /// There until the run is dropped.
    instance: Option<Instance>,
    /// The next step, and the next repeat.
    position: usize,
    repeat: usize,
    buffers: PhantomData<&'r mut [u8]>,
}

impl fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("position", &self.position).finish_non_exhaustive()
    }
}

impl<'r> Run<'r> {
    /// A run whose buffers the instance points to, for as long as the run lives.
    pub(crate) fn new(executable: &'r Executable, instance: Instance) -> Run<'r> {
        Run { executable, instance: Some(instance), position: 0, repeat: 0, buffers: PhantomData }
    }

    /// The steps that come next: one, or those of a repeat; none when all are done.
    pub fn next(&self) -> Option<Range<usize>> {
        let parts = &self.executable.parts;
        match parts.repeats.get(self.repeat) {
            Some(repeat) if repeat.steps.start == self.position => Some(repeat.steps.clone()),
            _ => (self.position < parts.steps.len()).then_some(self.position..self.position + 1),
        }
    }

    /// Runs the steps that come next, if there are any; a repeat with all its rounds.
    pub fn step(&mut self, pool: &Pool) -> Result<(), Error> {
        self.advance(pool, None)
    }

    /// The same, telling how long each step took.
    pub(crate) fn advance(
        &mut self,
        pool: &Pool,
        observe: Option<&mut dyn FnMut(usize, Duration)>,
    ) -> Result<(), Error> {
        let Executable { parts, firsts, .. } = self.executable;
        let (Some(step), Some(instance)) = (parts.steps.get(self.position), &mut self.instance) else {
            return Ok(());
        };
        match parts.repeats.get(self.repeat) {
            Some(repeat) if repeat.steps.start == self.position => {
                self.executable.run_repeat(repeat, instance, pool, observe)?;
                self.position = repeat.steps.end;
                self.repeat += 1;
            }
            _ => {
                let args = &instance.table[firsts[self.position]..][..step.args.len()];
                let start = observe.is_some().then(Instant::now);
                call(step, args, pool)?;
                if let (Some(observe), Some(start)) = (observe, start) {
                    observe(self.position, start.elapsed());
                }
                self.position += 1;
            }
        }
        Ok(())
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let mut idle = self.executable.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.extend(self.instance.take());
    }
}
