//! The most memory a process held: its peak resident set, in bytes, whole pages of program and libraries included.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wait4::Wait4;

/// Of this process so far.
pub fn own_peak() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kibibytes = line.trim().strip_suffix(" kB").context("VmHWM is not in kB")?;
    Ok(kibibytes.trim().parse::<u64>()? * 1024)
}

/// Runs a command to its end and prints its peak. Linux takes what the process that started a child held for the
/// child's first peak: 7 MiB of this program, but all the libraries of a Python that would start it.
pub fn of_command(command: &[String]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no command")?;
    let child = Command::new(program).args(arguments).spawn();
    let used = child.with_context(|| format!("cannot run {program}"))?.wait4()?;
    ensure!(used.status.success(), "{program}: {}", used.status);
    println!("{}", json!({ "peak_bytes": used.rusage.maxrss }));
    Ok(())
}
