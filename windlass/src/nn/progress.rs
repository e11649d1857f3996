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
        // A bar that cannot be drawn stops nothing.
        let _ = write!(io::stderr(), "\r\x1b[K{}", line(at, epochs, self.begun.elapsed()));
    }

    pub(super) fn clear(&mut self) {
        if self.drawn.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// What is drawn after so much of an epoch's time.
fn line(at: &StepEnd, epochs: usize, time: Duration) -> String {
    let done = at.step + 1;
    let marks = done * WIDTH / at.steps.max(1);
    let left = time.as_secs_f64() / done as f64 * at.steps.saturating_sub(done) as f64;
    let bar = format!("{}{}", "#".repeat(marks), "-".repeat(WIDTH - marks));
    let (epoch, steps, loss) = (at.epoch + 1, at.steps, at.loss);
    format!("epoch {epoch}/{epochs} [{bar}] {done}/{steps} loss {loss:.4}, {left:.0} s left")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_is_a_third_of_the_bar() {
        let at = StepEnd { epoch: 1, step: 9, steps: 30, loss: 0.25 };
        assert_eq!(
            line(&at, 5, Duration::from_secs(4)),
            "epoch 2/5 [##########--------------------] 10/30 loss 0.2500, 8 s left"
        );
    }
}
