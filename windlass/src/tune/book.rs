//! The file that remembers tuned schedules.
//!
//! ```json
//! {"windlass_tuning":1,"machines":{"KEY":{"FINGERPRINT":[6,16384,262144,1]}}}
//! ```
//!
//! A key names a processor, its features and this version of Windlass; a choice is the rows of a tile, bytes of a block of
//! a panel, bytes of a block, and whether to prefetch. The file is replaced as a whole by a rename, and writers take
//! turns by a lock on a file beside it, so it is one of them at every time. Whatever stands in it can only choose between
//! schedules that give the same results.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};
use windlass_passes::lower::schedule::Machine;

use crate::files::write_whole;

/// What a file of ours starts with, and the version of its form.
const START: &str = "{\"windlass_tuning\":";
const FORM: u64 = 1;

/// A file of more bytes is not read.
const MOST_BYTES: u64 = 64 << 20;

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("is not a file of tuned schedules")]
    Foreign,
    #[error("is damaged")]
    Damaged,
}

/// The numbers of a [`Machine`] that tuning chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    tile_rows: usize,
    panel_bytes: usize,
    block_bytes: usize,
    prefetches: bool,
}

impl Choice {
    /// The machine with these numbers, if they are such as tuning finds.
    pub fn apply(self, machine: &Machine) -> Option<Machine> {
        let Choice { tile_rows, panel_bytes, block_bytes, prefetches } = self;
        let near = |found: usize, usual: usize| (usual / 4..=usual * 4).contains(&found);
        let fits = (1..=machine.tile_rows).contains(&tile_rows)
            && near(panel_bytes, machine.panel_bytes)
            && near(block_bytes, machine.block_bytes);
        fits.then_some(Machine { tile_rows, panel_bytes, block_bytes, prefetches, ..*machine })
    }

    fn from_json(value: &Value) -> Option<Choice> {
        let numbers: Option<Vec<usize>> =
            value.as_array()?.iter().map(|n| usize::try_from(n.as_u64()?).ok()).collect();
        let [tile_rows, panel_bytes, block_bytes, prefetches] = *numbers?.as_slice() else { return None };
        Some(Choice { tile_rows, panel_bytes, block_bytes, prefetches: prefetches == 1 })
    }

    fn to_json(self) -> Value {
        json!([self.tile_rows, self.panel_bytes, self.block_bytes, u8::from(self.prefetches)])
    }
}

/// Choices by machine and fingerprint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Book {
    machines: BTreeMap<String, BTreeMap<u64, Choice>>,
}

impl Book {
    pub fn is_empty(&self) -> bool {
        self.machines.is_empty()
    }

    pub fn find(&self, key: &str, fingerprint: u64) -> Option<Choice> {
        self.machines.get(key)?.get(&fingerprint).copied()
    }

    pub fn insert(&mut self, key: &str, fingerprint: u64, machine: &Machine) {
        let &Machine { tile_rows, panel_bytes, block_bytes, prefetches, .. } = machine;
        let choice = Choice { tile_rows, panel_bytes, block_bytes, prefetches };
        self.machines.entry(key.to_string()).or_default().insert(fingerprint, choice);
    }

    /// The book in a file; none that is not there is empty.
    pub fn read(path: &Path) -> Result<Book, Problem> {
        let bytes = match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Book::default()),
            Err(error) => return Err(error.into()),
            Ok(found) if !found.is_file() || found.len() > MOST_BYTES => return Err(Problem::Foreign),
            Ok(_) => std::fs::read(path)?,
        };
        if bytes.is_empty() {
            return Ok(Book::default());
        }
        if !bytes.starts_with(&START.as_bytes()[..START.len().min(bytes.len())]) {
            return Err(Problem::Foreign);
        }
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| Problem::Damaged)?;
        match value["windlass_tuning"].as_u64() {
            Some(FORM) => Book::from_json(&value).ok_or(Problem::Damaged),
            _ => Err(Problem::Foreign),
        }
    }

    fn from_json(value: &Value) -> Option<Book> {
        let mut book = Book::default();
        for (key, choices) in value["machines"].as_object()? {
            let choice = |(fingerprint, choice): (&String, &Value)| {
                Some((u64::from_str_radix(fingerprint, 16).ok()?, Choice::from_json(choice)?))
            };
            let choices: Option<BTreeMap<u64, Choice>> = choices.as_object()?.iter().map(choice).collect();
            book.machines.insert(key.clone(), choices?);
        }
        Some(book)
    }

    fn to_text(&self) -> String {
        let choices = |choices: &BTreeMap<u64, Choice>| -> Value {
            let pairs = choices.iter().map(|(fingerprint, c)| (format!("{fingerprint:016x}"), c.to_json()));
            pairs.collect::<Map<String, Value>>().into()
        };
        let machines: Map<String, Value> =
            self.machines.iter().map(|(key, found)| (key.clone(), choices(found))).collect();
        // Its first member comes first, which is how a file of ours is told from others.
        format!("{START}{FORM},\"machines\":{}}}\n", Value::from(machines))
    }

    /// Adds these choices to those in a file. A file that is not ours stays as it is.
    pub fn merge_into(&self, path: &Path) -> io::Result<()> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(folder)?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(".lock");
        let lock = File::create(Path::new(&beside))?;
        lock.lock()?;
        let mut all = match Book::read(path) {
            Ok(book) => book,
            Err(Problem::Damaged) => Book::default(),
            Err(Problem::Foreign) => return Err(io::Error::other(Problem::Foreign)),
            Err(Problem::Io(error)) => return Err(error),
        };
        for (key, choices) in &self.machines {
            all.machines.entry(key.clone()).or_default().extend(choices);
        }
        write_whole(path, all.to_text().as_bytes())?;
        Ok(())
    }
}

/// What names this machine and this version: the architecture, the processor's name, and a hash of its features.
pub(super) fn machine_key() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |names: &[&str]| {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        let mut found =
            fields.filter(|(name, _)| names.contains(&name.trim())).map(|(_, value)| value.trim());
        found.next().unwrap_or_default().to_string()
    };
    let mut hasher = DefaultHasher::new();
    (field(&["flags", "Features"]), field(&["cpu family", "CPU implementer"]), field(&["model", "CPU part"]))
        .hash(&mut hasher);
    let name = field(&["model name", "Processor", "uarch"]);
    format!("{} {name} {:016x} {}", std::env::consts::ARCH, hasher.finish(), env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(seed: usize) -> Book {
        let mut book = Book::default();
        let machine = Machine { tile_rows: 1 + seed % 6, ..Machine::default() };
        book.insert("one", seed as u64, &machine);
        book.insert(&format!("key {seed}"), 7, &Machine::default());
        book
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join("tuning.json");
        assert_eq!(Book::read(&path).unwrap(), Book::default());
        book(1).merge_into(&path).unwrap();
        assert_eq!(Book::read(&path).unwrap(), book(1));
        book(2).merge_into(&path).unwrap();
        let both = Book::read(&path).unwrap();
        for seed in [1, 2] {
            assert_eq!(both.find("one", seed), book(seed as usize).find("one", seed));
        }
        let machine = Machine::default();
        assert_eq!(both.find("one", 1).unwrap().apply(&machine), Some(Machine { tile_rows: 2, ..machine }));
    }

    /// However much of a file is there, and whatever stands in place of a byte.
    #[test]
    fn torn_files_are_not_used_and_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuning.json");
        let text = book(1).to_text();
        for length in 1..text.len() - 1 {
            std::fs::write(&path, &text[..length]).unwrap();
            assert!(matches!(Book::read(&path), Err(Problem::Damaged)), "{length}");
        }
        book(2).merge_into(&path).unwrap();
        assert_eq!(Book::read(&path).unwrap(), book(2));
        for at in START.len()..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 0x11;
            std::fs::write(&path, bytes).unwrap();
            let _ = Book::read(&path);
        }
    }

    #[test]
    fn foreign_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        for text in ["notes of mine", "{}", "{\"windlass_tuning\":2,\"machines\":{}}"] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(Book::read(&path), Err(Problem::Foreign)), "{text}");
            book(1).merge_into(&path).unwrap_err();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert!(matches!(Book::read(folder.path()), Err(Problem::Foreign)));
    }

    #[test]
    fn choices_that_tuning_never_finds_are_not_used() {
        let machine = Machine::default();
        let usual = Choice {
            tile_rows: machine.tile_rows,
            panel_bytes: machine.panel_bytes,
            block_bytes: machine.block_bytes,
            prefetches: machine.prefetches,
        };
        assert_eq!(usual.apply(&machine), Some(machine));
        for odd in [
            Choice { tile_rows: 0, ..usual },
            Choice { tile_rows: machine.tile_rows + 1, ..usual },
            Choice { panel_bytes: 0, ..usual },
            Choice { block_bytes: usize::MAX, ..usual },
        ] {
            assert_eq!(odd.apply(&machine), None);
        }
    }

    #[test]
    fn writers_at_the_same_time_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuning.json");
        std::thread::scope(|scope| {
            for seed in 0..8 {
                let path = &path;
                scope.spawn(move || book(seed).merge_into(path).unwrap());
            }
        });
        let all = Book::read(&path).unwrap();
        assert!((0..8).all(|seed| all.find("one", seed).is_some()));
    }
}
