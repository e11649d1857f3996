//! Files as memory. One of the files with unsafe code: it maps them.

use std::fs::File;
use std::io;

/// A file's bytes, read from disk as they are touched.
///
/// What another process writes to the file meanwhile may show, and touching bytes that it cut off ends
/// this process, as with every mapped file. Read a file that others may still be writing instead.
#[derive(Debug)]
pub struct Mapping(memmap2::Mmap);

impl Mapping {
    /// Maps a whole file.
    pub fn new(file: &File) -> io::Result<Mapping> {
        // SAFETY: the mapping is private and only read. Bytes that change under it are plain data to
        // everything that reads them: whatever they become, it is a valid `[u8]`.
        unsafe { memmap2::Mmap::map(file) }.map(Mapping)
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
