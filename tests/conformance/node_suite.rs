//! ONNX's own test suite, run by `windlass test` and held against `tests/expect/node_suite.txt`.
//!
//! That file lists every case that does not pass, with its status and reason, so that a case lost or
//! gained shows as a difference. `BLESS=1` rewrites it. Wrong results and crashes are never expected.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::support;

/// Of the suite's 2,036 cases at least so many pass.
const FLOOR: usize = 1600;

#[test]
fn the_suite_passes_but_for_the_cases_listed() {
    let suite = support::material("node_suite");
    let reports = support::run_cases(&[&suite], &[]);
    let mut totals: BTreeMap<&str, usize> = BTreeMap::new();
    let mut found = String::new();
    for report in &reports {
        *totals.entry(report.status.as_str()).or_default() += 1;
        if report.status != "pass" {
            writeln!(found, "{} {}: {}", report.status, report.case, shorten(&report.reason)).unwrap();
        }
    }
    println!("{} cases: {totals:?}", reports.len());
    let never = |report: &&support::Report| match report.status.as_str() {
        "wrong" => true,
        "error" => report.reason.starts_with("crashed") || report.reason.starts_with("stopped"),
        _ => false,
    };
    let broken: Vec<String> =
        reports.iter().filter(never).map(|r| format!("{} {}: {}", r.status, r.case, r.reason)).collect();
    assert!(broken.is_empty(), "wrong results or crashes:\n{}", broken.join("\n"));
    assert_eq!(reports.len(), 2036, "the suite of the pinned onnx package");
    support::hold_to(&found, "node_suite.txt");
    let passed = totals.get("pass").copied().unwrap_or(0);
    assert!(passed >= FLOOR, "{passed} cases pass, expected at least {FLOOR}");
}

/// The first line of a reason, with the list it may be followed by cut off.
fn shorten(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default();
    match line.split_once(';') {
        Some((first, _)) => format!("{first}; ..."),
        None => line.to_string(),
    }
}
