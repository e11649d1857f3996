//! Files as memory. One of the files with unsafe code: it maps them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::Mmap;

/// A file's bytes, read from disk as they are touched.
///
/// What another process writes to the file meanwhile may show, and touching bytes that it cut off ends
/// this process, as with every mapped file. Read a file that others may still be writing instead.
#[derive(Debug)]
pub struct Mapping(Arc<Mmap>);

/// The mappings there are, for [`unload`] to find those of bytes that have gone through other hands.
static MAPPINGS: Mutex<Vec<Weak<Mmap>>> = Mutex::new(Vec::new());

impl Mapping {
    /// Maps a whole file.
    pub fn new(file: &File) -> io::Result<Mapping> {
        // SAFETY: the mapping is private and only read. Bytes that change under it are plain data to
        // everything that reads them: whatever they become, it is a valid `[u8]`.
        let map = Arc::new(unsafe { Mmap::map(file) }?);
        let mut mappings = MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner);
        mappings.retain(|map| map.strong_count() > 0);
        mappings.push(Arc::downgrade(&map));
        Ok(Mapping(map))
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Gives back the memory of bytes of mapped files, and of those beside them on the same pages: they come from the file
/// again if they are read again. Bytes that are in no mapped file stay where they are.
pub fn unload(bytes: &[&[u8]]) {
    let maps: Vec<Arc<Mmap>> = {
        let mappings = MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner);
        mappings.iter().filter_map(Weak::upgrade).collect()
    };
    for map in maps {
        let all = map.as_ptr_range();
        let within = bytes.iter().filter(|b| all.contains(&b.as_ptr()) && b.as_ptr_range().end <= all.end);
        let mut blocks: Vec<Range<usize>> = within
            .map(|bytes| {
                let start = bytes.as_ptr().addr() - all.start.addr();
                start / BLOCK * BLOCK..(start + bytes.len()).next_multiple_of(BLOCK).min(map.len())
            })
            .collect();
        blocks.sort_unstable_by_key(|range| range.start);
        // What touches goes in one call: each stops all of the process's threads for a moment.
        let mut blocks = blocks.into_iter().peekable();
        while let Some(mut range) = blocks.next() {
            while let Some(next) = blocks.next_if(|next| next.start <= range.end) {
                range.end = range.end.max(next.end);
            }
            unload_part(&map, range);
        }
    }
}

/// The largest that pages are, and what the system maps at once when one of them is touched.
const BLOCK: usize = 64 << 10;

#[cfg(target_os = "linux")]
fn unload_part(map: &Mmap, range: Range<usize>) {
    // SAFETY: the pages are those of a file and never written, so they hold the same when they are next read.
    let _ =
        unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
}

#[cfg(not(target_os = "linux"))]
fn unload_part(_: &Mmap, _: Range<usize>) {}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    #[test]
    fn what_is_unloaded_is_read_again() {
        let content: Vec<u8> = (0..1 << 20).map(|i| (i * 7 % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        file.rewind().unwrap();
        let mapping = Mapping::new(&file).unwrap();
        assert_eq!(mapping.as_ref(), content);
        let all = mapping.as_ref();
        unload(&[&all[800_000..900_000], &all[100_000..300_000], &[], &all[200_000..500_000], &content]);
        assert_eq!(mapping.as_ref(), content);
    }
}
