//! Tensor data outside the model file: read only from inside the model's own folder.
//!
//! A model is data from a stranger, and `location` is a path in it. It must be relative, may not
//! climb with `..`, and after following symbolic links must name a regular file below the folder.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use prost::bytes::Bytes;
use windlass_ir::Limits;

use super::problem::{Problem, invalid, unsupported};
use super::proto::StringStringEntryProto;
use super::{MAPPED_BYTES, MapFile};
use crate::error::Error;

/// Where a model's external data may come from, and how much of it.
pub(crate) struct Source<'a> {
    /// The model's folder; `None` for a model from memory, which can have no external data.
    folder: Option<PathBuf>,
    limits: Limits,
    /// Bytes read so far, the model file included.
    used: Cell<u64>,
    map: Option<MapFile<'a>>,
    /// Files mapped so far.
    mapped: RefCell<BTreeMap<PathBuf, Bytes>>,
}

impl<'a> Source<'a> {
    /// A source for a model from memory of so many bytes.
    pub fn memory(limits: &Limits, bytes: u64) -> Source<'a> {
        Source::new(None, limits, bytes, None)
    }

    fn new(folder: Option<PathBuf>, limits: &Limits, bytes: u64, map: Option<MapFile<'a>>) -> Source<'a> {
        Source { folder, limits: limits.clone(), used: Cell::new(bytes), map, mapped: RefCell::default() }
    }

    /// A source for a model file of so many bytes.
    pub fn beside(model: &Path, limits: &Limits, bytes: u64, map: Option<MapFile<'a>>) -> Source<'a> {
        let folder = match model.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        Source::new(Some(folder), limits, bytes, map)
    }

    /// What a model may ask for.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The `expected` bytes that a tensor's external data entries name.
    pub fn read(&self, entries: &[StringStringEntryProto], expected: usize) -> Result<Bytes, Problem> {
        let entry = |key: &str| entries.iter().find(|e| e.key() == key).map(|e| e.value());
        let number = |key: &str| match entry(key).map(|text| text.trim().parse::<u64>()) {
            None => Ok(None),
            Some(Ok(n)) => Ok(Some(n)),
            Some(Err(_)) => Err(Problem::Invalid(format!("external data: `{key}` is not a number"))),
        };
        let known = ["location", "offset", "length", "checksum", "basepath"];
        if let Some(odd) = entries.iter().find(|e| !known.contains(&e.key())) {
            unsupported!("external data: entry `{}`", odd.key());
        }
        if entry("basepath").is_some() {
            unsupported!("external data: entry `basepath`");
        }
        let Some(location) = entry("location") else {
            invalid!("external data: no `location`");
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        if length.is_some_and(|n| n != expected as u64) {
            invalid!("external data: `length` is {}, the tensor has {expected} bytes", length.unwrap_or(0));
        }
        let path = self.resolve(location)?;
        let mut file = File::open(&path).map_err(unreadable(location))?;
        let size = file.metadata().map_err(unreadable(location))?.len();
        if offset.checked_add(expected as u64).is_none_or(|end| end > size) {
            invalid!("external data: {expected} bytes at {offset} of `{location}`, which has {size}");
        }
        let used = self.used.get().saturating_add(expected as u64);
        Limits::check(|| format!("`{location}`"), "bytes", used, self.limits.file_bytes)?;
        self.used.set(used);
        if let Some(map) = self.map
            && size >= MAPPED_BYTES
        {
            let mut mapped = self.mapped.borrow_mut();
            let bytes = match mapped.get(&path) {
                Some(bytes) => bytes.clone(),
                None => {
                    mapped.entry(path.clone()).or_insert(map(&file).map_err(unreadable(location))?).clone()
                }
            };
            let end = offset as usize + expected;
            if end > bytes.len() {
                invalid!("external data: `{location}` became shorter while it was read");
            }
            return Ok(bytes.slice(offset as usize..end));
        }
        let mut bytes = vec![0; expected];
        file.seek(SeekFrom::Start(offset)).map_err(unreadable(location))?;
        file.read_exact(&mut bytes).map_err(unreadable(location))?;
        Ok(bytes.into())
    }

    /// The file a location names, if it is a regular one inside the folder.
    fn resolve(&self, location: &str) -> Result<PathBuf, Problem> {
        let Some(folder) = &self.folder else {
            invalid!("external data in a model that was not read from a file");
        };
        let relative = Path::new(location);
        let inside = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
        if location.is_empty() || location.contains(['\\', '\0']) || !relative.components().all(inside) {
            invalid!("external data: location `{location}` is not a path inside the model's folder");
        }
        let folder = folder.canonicalize().map_err(Error::file(folder))?;
        let joined = folder.join(relative);
        let path = joined.canonicalize().map_err(unreadable(location))?;
        if !path.starts_with(&folder) {
            invalid!("external data: location `{location}` leads outside the model's folder");
        }
        if !path.is_file() {
            invalid!("external data: location `{location}` is not a regular file");
        }
        Ok(path)
    }
}

/// A file that the system does not give, named as the model names it; whoever knows the tensor adds that.
fn unreadable(location: &str) -> impl FnOnce(io::Error) -> Problem + use<'_> {
    move |error| Problem::Invalid(format!("external data: `{location}`: {error}"))
}
