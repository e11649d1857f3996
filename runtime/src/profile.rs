//! Counters of where time goes, filled by runs that ask for it.

use std::time::Duration;

/// Time spent in each step of an [`crate::Executable`], over any number of runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// The number of runs.
    pub runs: u64,
    /// For each step, the time of all runs together.
    pub steps: Vec<Duration>,
}

impl Profile {
    /// The time of all steps and runs together.
    pub fn total(&self) -> Duration {
        self.steps.iter().sum()
    }
}
