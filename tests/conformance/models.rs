//! Whole models against onnxruntime's outputs, at one and two threads with identical bits.

use std::path::Path;

use crate::support;

#[test]
fn whole_models_agree_with_onnxruntime_on_any_number_of_threads() {
    let models = support::material("models");
    let folder = tempfile::tempdir().unwrap();
    let outs = ["1", "2"].map(|threads| {
        let out = folder.path().join(threads);
        let arguments = ["--threads", threads, "--jobs", "1", "--case-seconds", "600", "--out"];
        let arguments = [&arguments[..], &[out.to_str().unwrap()]].concat();
        let reports = support::run_cases(&[&models], &arguments);
        for report in &reports {
            println!("{threads} threads: {} {} {:.2} s", report.status, report.case, report.seconds);
        }
        let failed: Vec<String> = reports
            .iter()
            .filter(|report| report.status != "pass")
            .map(|report| format!("{} {}: {}", report.status, report.case, report.reason))
            .collect();
        assert!(failed.is_empty(), "at {threads} threads:\n{}", failed.join("\n"));
        assert!(reports.len() >= 25, "only {} models", reports.len());
        out
    });
    let [one, two] = outs.map(|out| files(&out));
    assert_eq!(one.len(), two.len());
    for ((name, bytes), (other_name, other_bytes)) in one.iter().zip(&two) {
        assert_eq!(name, other_name);
        assert!(bytes == other_bytes, "{name} differs between one and two threads");
    }
}

/// Every file below a folder with its contents, in order of their paths.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(path) = open.pop() {
        for entry in std::fs::read_dir(&path).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => {
                    let name = path.strip_prefix(folder).unwrap().display().to_string();
                    found.push((name, std::fs::read(&path).unwrap()));
                }
            }
        }
    }
    found.sort();
    found
}
