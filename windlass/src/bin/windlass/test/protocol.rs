//! What the command and its workers say to each other: one JSON object a line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A case to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Its place among all cases.
    pub index: usize,
    /// What it is called.
    pub case: String,
    /// Its folder.
    pub dir: PathBuf,
    /// Where its results go.
    pub out: Option<PathBuf>,
}

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Every result is as expected.
    Pass,
    /// There was nothing to compare with; the results were written.
    Ran,
    /// A result is not as expected.
    Wrong,
    /// The model needs something that is not supported.
    Unsupported,
    /// Anything else: a broken file, a crash, a limit.
    Error,
}

impl Status {
    /// Every status, in the order summaries list them.
    pub const ALL: [Status; 5] =
        [Status::Pass, Status::Ran, Status::Wrong, Status::Unsupported, Status::Error];

    /// Its spelling.
    pub fn word(self) -> &'static str {
        match self {
            Status::Pass => "pass",
            Status::Ran => "ran",
            Status::Wrong => "wrong",
            Status::Unsupported => "unsupported",
            Status::Error => "error",
        }
    }
}

/// What came of a case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CaseReport {
    /// Its place among all cases.
    pub index: usize,
    /// What it is called.
    pub case: String,
    /// How it ended.
    pub status: Status,
    /// Why, unless it passed.
    pub reason: Option<String>,
    /// The largest difference of a float from its expected value; null where it is not a number.
    pub difference: Option<f64>,
    /// Nodes run as native code.
    pub compiled: usize,
    /// Nodes run by calling a library routine.
    pub called: usize,
    /// Nodes run by the interpreter.
    pub interpreted: usize,
    /// How long the case took.
    pub seconds: f64,
}

impl CaseReport {
    /// A report of a case that ended without results.
    pub fn failed(job: &Job, status: Status, reason: String) -> CaseReport {
        CaseReport {
            index: job.index,
            case: job.case.clone(),
            status,
            reason: Some(reason),
            difference: None,
            compiled: 0,
            called: 0,
            interpreted: 0,
            seconds: 0.0,
        }
    }
}
