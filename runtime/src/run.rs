//! A run of a model in progress, step by step.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::executable::{Instance, call, call_part};
use crate::{Error, Executable, Pool, Repeat, Work};

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

    /// The repeat that comes next, if one does.
    fn repeat(&self) -> Option<&'r Repeat> {
        self.executable.parts.repeats.get(self.repeat).filter(|repeat| repeat.steps.start == self.position)
    }

    /// The steps that come next: one, or those of a repeat; none when all are done.
    pub fn next(&self) -> Option<Range<usize>> {
        match self.repeat() {
            Some(repeat) => Some(repeat.steps.clone()),
            None => (self.position < self.executable.parts.steps.len())
                .then_some(self.position..self.position + 1),
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
        let repeat = self.repeat();
        let (Some(step), Some(instance)) = (parts.steps.get(self.position), &mut self.instance) else {
            return Ok(());
        };
        match repeat {
            Some(repeat) => {
                self.executable.run_repeat(repeat, instance, pool, observe)?;
                self.position = repeat.steps.end;
                self.repeat += 1;
            }
            None => {
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

    /// Runs the step that comes next in parts of at most so many iterations of its parallel loop, telling after each how
    /// many are done. A repeat, or a step on the host, is run as [`Self::step`] does.
    pub fn step_in_parts(&mut self, pool: &Pool, most: i64, told: &mut dyn FnMut(i64)) -> Result<(), Error> {
        let Executable { parts, firsts, .. } = self.executable;
        let repeat = self.repeat();
        let (Some(step), Some(instance), None) = (parts.steps.get(self.position), &mut self.instance, repeat)
        else {
            return self.step(pool);
        };
        let Work::Kernel { extent, .. } = &step.work else { return self.step(pool) };
        let args = &instance.table[firsts[self.position]..][..step.args.len()];
        let mut done = 0;
        while done < *extent {
            let end = done.saturating_add(most.max(1)).min(*extent);
            call_part(step, args, pool, done..end)?;
            done = end;
            told(done);
        }
        self.position += 1;
        Ok(())
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let mut idle = self.executable.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.extend(self.instance.take());
    }
}

#[cfg(test)]
mod tests {
    use crate::executable::tests::parts;
    use crate::{Executable, Pool};

    #[test]
    fn steps_in_parts_are_whole_in_the_end() {
        // SAFETY: the kernel keeps to its two buffers.
        let executable = unsafe { Executable::new(parts()) }.unwrap();
        let (x, mut y, mut told) = ([3u8; 100], [0u8; 100], Vec::new());
        let (inputs, mut outputs): ([&[u8]; 1], [&mut [u8]; 1]) = ([&x], [&mut y]);
        let mut run = executable.start(&inputs, &mut outputs).unwrap();
        while run.next().is_some() {
            run.step_in_parts(&Pool::new(2), 40, &mut |done| told.push(done)).unwrap();
        }
        drop(run);
        assert_eq!((y, told), ([12u8; 100], vec![40, 80, 100, 40, 80, 100]));
    }
}
