//! What the suites that go through the command share.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// What `windlass test --json` says of a case.
#[derive(Debug)]
pub struct Report {
    pub case: String,
    pub status: String,
    /// Empty if it passed.
    pub reason: String,
    pub seconds: f64,
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// A folder of test material that `tests/material.sh` makes; `WINDLASS_MATERIAL` names another place.
pub fn material(name: &str) -> PathBuf {
    let base = std::env::var_os("WINDLASS_MATERIAL").map_or_else(|| root().join("target"), PathBuf::from);
    let folder = base.join(name);
    assert!(folder.is_dir(), "{} is missing: tests/material.sh makes it", folder.display());
    folder
}

/// Runs `windlass test` over folders.
pub fn run_cases(folders: &[&Path], arguments: &[&str]) -> Vec<Report> {
    let output = Command::new(env!("CARGO_BIN_EXE_windlass"))
        .args(["test", "--json"])
        .args(arguments)
        .args(folders)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_string();
    let lines = String::from_utf8(output.stdout).unwrap();
    let reports: Vec<Report> = lines
        .lines()
        .map(|line| {
            let value: Value = serde_json::from_str(line).unwrap();
            Report {
                case: text(&value, "case"),
                status: text(&value, "status"),
                reason: text(&value, "reason"),
                seconds: value["seconds"].as_f64().unwrap_or_default(),
            }
        })
        .collect();
    assert!(!reports.is_empty(), "`windlass test` reported nothing: {:?}", output.status);
    reports
}

/// Holds text to the file of that name in `tests/expect`, or rewrites the file if `BLESS` is set.
pub fn hold_to(found: &str, name: &str) {
    let path = root().join("tests/expect").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    let lost: Vec<&str> = found.lines().filter(|line| !expected.lines().any(|e| e == *line)).collect();
    let gained: Vec<&str> = expected.lines().filter(|line| !found.lines().any(|f| f == *line)).collect();
    assert!(
        lost.is_empty() && gained.is_empty(),
        "{} is out of date (BLESS=1 rewrites it).\nNot expected:\n{}\nExpected but not found:\n{}",
        path.display(),
        lost.join("\n"),
        gained.join("\n")
    );
}
