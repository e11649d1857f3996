//! What is seen of training while it runs, what is kept of it, and how it is interrupted.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use windlass::Error;
use windlass::nn::{Callback, Checkpoint, Control, Epoch, Model, StepEnd};

use crate::failure::INTERRUPTED;

/// Counts interrupts from the keyboard. The second one ends the process at once.
pub struct Interrupts(Arc<AtomicUsize>);

impl Interrupts {
    /// Begins to count.
    pub fn watch() -> Interrupts {
        let count = Arc::new(AtomicUsize::new(0));
        let own = count.clone();
        // Without a handler the first interrupt ends the process, which leaves whole files too.
        let _ = ctrlc::set_handler(move || {
            if own.fetch_add(1, Ordering::SeqCst) > 0 {
                std::process::exit(INTERRUPTED.into());
            }
        });
        Interrupts(count)
    }

    fn any(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }
}

/// Shows a bar on a terminal and a line an epoch, and writes checkpoints.
pub struct Progress<'a> {
    done: Checkpoint,
    epochs: usize,
    checkpoint: Option<&'a Path>,
    interrupts: &'a Interrupts,
    bar: ProgressBar,
}

impl<'a> Progress<'a> {
    /// Of so many epochs, some of which are done.
    pub fn new(
        done: Checkpoint,
        epochs: usize,
        checkpoint: Option<&'a Path>,
        interrupts: &'a Interrupts,
    ) -> Progress<'a> {
        let bar = match std::io::stderr().is_terminal() {
            true => ProgressBar::new(0),
            false => ProgressBar::hidden(),
        };
        let style = ProgressStyle::with_template("{prefix} [{bar:32}] {pos}/{len} steps, {msg}, {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        Progress { done, epochs, checkpoint, interrupts, bar }
    }

    /// What is done at the end.
    pub fn finish(self) -> Checkpoint {
        self.bar.finish_and_clear();
        self.done
    }
}

impl Callback for Progress<'_> {
    fn on_epoch_end(&mut self, epoch: &Epoch, model: &mut Model) -> Result<Control, Error> {
        self.done.epochs = epoch.number + 1;
        self.done.history.push(epoch);
        if let Some(path) = self.checkpoint {
            model.save_checkpoint(path, &self.done)?;
        }
        self.bar.suspend(|| eprintln!("{}", epoch.summary(self.epochs)));
        Ok(if self.interrupts.any() { Control::Stop } else { Control::Continue })
    }

    fn on_step_end(&mut self, step: &StepEnd) -> Control {
        if step.step == 0 {
            self.bar.reset();
            self.bar.set_length(step.steps as u64);
            self.bar.set_prefix(format!("epoch {}/{}", step.epoch + 1, self.epochs));
        }
        self.bar.set_position(step.step as u64 + 1);
        self.bar.set_message(format!("loss {:.4}", step.loss));
        if self.interrupts.any() { Control::Stop } else { Control::Continue }
    }
}
