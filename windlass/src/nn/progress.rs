//! How far an epoch is, on a terminal.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use super::fit::StepEnd;

/// Marks of a full bar.
const WIDTH: usize = 30;

/// How often it is drawn at most.
const EVERY: Duration = Duration::from_millis(50);

/// A bar on stderr, which is drawn over by what follows it. Where stderr is no terminal nothing is drawn.
pub(super) struct Progress {
    shown: bool,
    begun: Instant,
    drawn: Option<Instant>,
}

impl Progress {
    pub(super) fn new(wanted: bool) -> Progress {
        Progress { shown: wanted && io::stderr().is_terminal(), begun: Instant::now(), drawn: None }
    }

    pub(super) fn show(&mut self, at: &StepEnd, epochs: usize) {
        if !self.shown || self.drawn.is_some_and(|drawn| drawn.elapsed() < EVERY) {
            return;
        }
        self.drawn = Some(Instant::now());
        let done = at.step + 1;
        let marks = done * WIDTH / at.steps.max(1);
        let left = self.begun.elapsed().as_secs_f64() / done as f64 * (at.steps - done) as f64;
        let bar = format!("{}{}", "#".repeat(marks), "-".repeat(WIDTH - marks));
        let epoch = at.epoch + 1;
        let line = format!(
            "epoch {epoch}/{epochs} [{bar}] {done}/{} loss {:.4}, {left:.0} s left",
            at.steps, at.loss
        );
        // A bar that cannot be drawn stops nothing.
        let _ = write!(io::stderr(), "\r\x1b[K{line}");
    }

    pub(super) fn clear(&mut self) {
        if self.drawn.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
