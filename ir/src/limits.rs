//! Limits on what a model may ask for. Models are data from strangers: size is checked before memory
//! or time is spent on it.

use crate::error::Error;
use crate::types::TensorType;

/// The limits, each with a default that real models stay well below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a model file, external data included.
    pub file_bytes: u64,
    /// Nodes in a graph.
    pub nodes: u64,
    /// Nesting depth of graphs, functions and text.
    pub depth: u64,
    /// Elements in one tensor.
    pub elements: u64,
    /// Dimensions of one tensor.
    pub rank: u64,
    /// Bytes of one tensor, and of the arena of a compiled model.
    pub memory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            file_bytes: 64 << 30,
            nodes: 1_000_000,
            depth: 64,
            elements: 1 << 33,
            rank: 16,
            memory_bytes: 64 << 30,
        }
    }
}

impl Limits {
    /// Fails if `found` exceeds `limit`.
    pub fn check(
        subject: impl FnOnce() -> String,
        what: &'static str,
        found: u64,
        limit: u64,
    ) -> Result<(), Error> {
        match found <= limit {
            true => Ok(()),
            false => Err(Error::Limit { subject: subject(), what, limit, found }),
        }
    }

    /// Checks a node about to be added after `nodes` others, with results of these types.
    pub fn check_node(
        &self,
        nodes: usize,
        outs: &[TensorType],
        subject: impl Fn() -> String,
    ) -> Result<(), Error> {
        Limits::check(&subject, "nodes", nodes as u64 + 1, self.nodes)?;
        for ty in outs {
            self.check_type(ty, &subject)?;
        }
        Ok(())
    }

    /// Checks a tensor type: its rank, elements and bytes. Unknown sizes count as 1.
    pub fn check_type(&self, ty: &TensorType, subject: impl Fn() -> String) -> Result<(), Error> {
        Limits::check(&subject, "dimensions", ty.rank() as u64, self.rank)?;
        // Zero sizes do not hide an overflow of the others: strides are computed from all of them.
        let sizes = ty.dims.iter().filter_map(|d| d.as_fixed()).map(|n| n.max(1) as u64);
        let elements = sizes.fold(1u64, u64::saturating_mul);
        Limits::check(&subject, "elements", elements, self.elements)?;
        let bytes = elements.saturating_mul(ty.dtype.size() as u64);
        Limits::check(&subject, "bytes", bytes, self.memory_bytes)
    }
}
