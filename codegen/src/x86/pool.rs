//! Constants that stand behind a function's code.

use rustc_hash::FxHashMap;

/// Constants, each aligned to its size.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    bytes: Vec<u8>,
    known: FxHashMap<Vec<u8>, u32>,
}

impl Pool {
    /// Where a constant is, from the pool's start on.
    pub fn add(&mut self, constant: Vec<u8>) -> u32 {
        if let Some(&at) = self.known.get(&constant) {
            return at;
        }
        let aligned = self.bytes.len().next_multiple_of(constant.len());
        self.bytes.resize(aligned, 0);
        self.bytes.extend_from_slice(&constant);
        self.known.insert(constant, aligned as u32);
        aligned as u32
    }

    /// The constants.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
