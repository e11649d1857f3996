//! Golden files: a command, its input and the exact output expected, in one file.
//!
//! ```text
//! // opt --pass fold
//! graph @main(..) { .. }
//! ----
//! graph @main(..) { .. }
//! ```
//!
//! The first line names the command and its options, the input follows up to the line `----`, and the
//! rest is what the command must print. `BLESS=1 cargo test` writes what it does print instead, and
//! then the diff under version control is what to review. An area is a folder of `golden/` and the
//! test that runs it with its own commands; subfolders are only for order.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The line between input and expected output.
const SEPARATOR: &str = "----";

/// A golden file's first line: a command with its options.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// The command.
    pub name: String,
    /// What follows it, split at blanks.
    pub args: Vec<String>,
}

impl Command {
    fn parse(line: &str) -> Option<Command> {
        let mut words = line.strip_prefix("//")?.split_whitespace().map(str::to_string);
        Some(Command { name: words.next()?, args: words.collect() })
    }

    /// Whether a flag such as `--time` is given.
    pub fn flag(&self, flag: &str) -> bool {
        self.args.iter().any(|arg| arg == flag)
    }

    /// The value after each occurrence of an option such as `--pass`, in order.
    pub fn options(&self, option: &str) -> Vec<&str> {
        let pairs = self.args.windows(2).filter(|pair| pair[0] == option);
        pairs.map(|pair| pair[1].as_str()).collect()
    }
}

/// Runs every file of an area, and fails with every difference.
///
/// `run` gets the command and the input and returns what is to be printed; an error is printed as one.
///
/// # Panics
/// If outputs differ from what is expected, a file has no command, or the area has no files.
pub fn check(area: &str, run: impl Fn(&Command, &str) -> Result<String, String>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(area);
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    assert!(!files.is_empty(), "there are no golden files in {area}");
    let bless = std::env::var_os("BLESS").is_some();
    let mut failures = String::new();
    let mut failed = 0;
    for path in &files {
        let name = path.strip_prefix(&root).unwrap_or(path).display();
        match check_file(path, bless, &run) {
            Ok(()) => {}
            Err(message) => {
                failed += 1;
                let _ = writeln!(failures, "== {area}/{name}\n{message}");
            }
        }
    }
    assert!(
        failed == 0,
        "{failed} of {} golden files differ (BLESS=1 rewrites them)\n{failures}",
        files.len()
    );
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => collect(&path, files),
            false => files.push(path),
        }
    }
}

fn check_file(
    path: &Path,
    bless: bool,
    run: &impl Fn(&Command, &str) -> Result<String, String>,
) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let command = Command::parse(first).ok_or("the first line is not `// command`")?;
    let (input, expected) = split(rest);
    let mut found = run(&command, input).unwrap_or_else(|error| format!("error: {error}"));
    if !found.ends_with('\n') && !found.is_empty() {
        found.push('\n');
    }
    if found == expected {
        return Ok(());
    }
    if bless {
        let end = if input.ends_with('\n') || input.is_empty() { "" } else { "\n" };
        let blessed = format!("{first}\n{input}{end}{SEPARATOR}\n{found}");
        return fs::write(path, blessed).map_err(|error| error.to_string());
    }
    Err(difference(expected, &found))
}

/// Input and expected output.
fn split(text: &str) -> (&str, &str) {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let after = at + line.len();
        if line.trim_end() == SEPARATOR {
            return (&text[..at], &text[after..]);
        }
        at = after;
    }
    (text, "")
}

/// The lines that differ, marked `-` (expected) and `+` (found), with those around them.
fn difference(expected: &str, found: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let tail = |lines: &[&str]| lines.len() - same;
    let end = old.iter().rev().zip(new.iter().rev()).take_while(|(a, b)| a == b).count();
    let end = end.min(tail(&old)).min(tail(&new));
    let mut text = String::new();
    let mut add = |mark: char, lines: &[&str]| {
        for line in lines {
            let _ = writeln!(text, "{mark} {line}");
        }
    };
    add(' ', &old[same.saturating_sub(2)..same]);
    add('-', &old[same..old.len() - end]);
    add('+', &new[same..new.len() - end]);
    add(' ', &old[old.len() - end..(old.len() - end + 2).min(old.len())]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_three_parts() {
        let command = Command::parse("// opt --pass fold --pass cse --time").unwrap();
        assert_eq!(command.name, "opt");
        assert_eq!(command.options("--pass"), ["fold", "cse"]);
        assert!(command.flag("--time"));
        assert_eq!(split("a\n----\nb\n"), ("a\n", "b\n"));
        assert_eq!(split("a\n"), ("a\n", ""));
    }

    #[test]
    fn differences_are_local() {
        assert_eq!(difference("a\nb\nc\n", "a\nx\nc\n"), "  a\n- b\n+ x\n  c\n");
        assert_eq!(difference("", "x\n"), "+ x\n");
        assert_eq!(difference("a\na\n", "a\n"), "  a\n- a\n");
    }
}
