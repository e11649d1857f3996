//! How the products of a recurrence are blocked for a machine: recurrence weights in panels, each for units whose
//! gates' sums are in registers, and sequences in blocks that a panel is multiplied by together.

use super::recurrent_kernels;
use super::recurrent_steps::{RecurrentSteps, products};
use crate::dtype::DType;
use crate::loops::{Index, Nest, NestBuilder, Rounds};
use crate::types::TensorType;

/// A recurrence over operands of known types, of which none is empty.
#[derive(Clone, Debug)]
pub struct Recurrence {
    pub(super) op: RecurrentSteps,
    pub(super) ins: Vec<TensorType>,
}

/// The sums of one sequence take this many bytes at most.
const SUM_BYTES: usize = 256;

/// The bytes of the largest vectors: sums of a sequence that begin within one are taken out of it lane by lane.
pub(super) const VECTOR_BYTES: usize = 64;

/// More sequences than these are not multiplied by a panel together: their sums would be many instructions.
const MOST_ROWS: usize = 12;

/// So many states are held in registers while a row of a panel goes by.
pub(super) const FEW_ROWS: usize = 3;

impl Recurrence {
    /// The operand that is the recurrence weights.
    pub const WEIGHTS: usize = 1;

    /// The formulas of panels of the recurrence weights, one for each product of a step: for L units, which divides H,
    /// what makes G of their gates, `[H/L, H, G*L]`, gate after gate. A step reads a panel from end to end.
    pub fn panels(&self, sum_bytes: usize) -> Vec<Nest> {
        let rows = &self.ins[Self::WEIGHTS];
        let size = rows.shape()[1];
        let mut first_gate = 0;
        let panel = |&gates: &usize| {
            let lanes = self.lanes(gates, sum_bytes);
            let mut b = NestBuilder::new(&[size / lanes, size, gates * lanes]);
            let weights = b.operand(rows.dtype, &rows.shape());
            let [panel, k, column]: [Index; 3] = b.domain().try_into().expect("three variables");
            let gate = column.div(lanes as i64).add_const(first_gate as i64);
            let unit = panel.mul(lanes as i64).add(&column.rem(lanes as i64));
            let value = b.load(weights, &[gate.mul(size as i64).add(&unit), k]);
            first_gate += gates;
            b.finish(&[value])
        };
        products(&self.op.cell).iter().map(panel).collect()
    }

    /// Its kernels for a machine whose registers hold so many bytes of sums, with the panels in the place of the weights.
    /// Bits do not depend on that.
    pub fn rounds(&self, sum_bytes: usize) -> Rounds {
        let lanes: Vec<usize> =
            products(&self.op.cell).iter().map(|&gates| self.lanes(gates, sum_bytes)).collect();
        recurrent_kernels::rounds(&self.op, &self.ins, &lanes, sum_bytes)
    }

    /// The units of a panel with so many gates.
    fn lanes(&self, gates: usize, sum_bytes: usize) -> usize {
        let (size, dtype) = (self.ins[Self::WEIGHTS].shape()[1], self.ins[0].dtype);
        // Where several sequences are multiplied by a panel, two have their sums in registers.
        let most = if self.ins[0].shape()[1] > 1 { sum_bytes / 2 } else { SUM_BYTES };
        panel_lanes(size, gates, dtype, most.min(SUM_BYTES))
    }
}

/// The units of a panel for states of a size: as many as have sums of so many bytes at most, whole vectors if that can be.
fn panel_lanes(size: usize, gates: usize, dtype: DType, most_bytes: usize) -> usize {
    let bytes = |lanes: usize| gates * lanes * dtype.size();
    let fits = |lanes: &usize| size.is_multiple_of(*lanes) && bytes(*lanes) <= most_bytes;
    let mut fitting = [64, 32, 16, 8, 4, 2].into_iter().filter(fits);
    let largest = fitting.clone().next().unwrap_or(1);
    fitting.find(|&lanes| bytes(lanes).is_multiple_of(VECTOR_BYTES)).unwrap_or(largest)
}

/// The sequences of a batch in blocks that are multiplied by a panel together: first those of `rows`, then those of one
/// less.
pub(super) struct Blocks {
    pub rows: usize,
    pub full: usize,
    pub smaller: usize,
}

impl Blocks {
    /// The blocks of sequences whose sums take so many bytes each, where registers hold `sum_bytes`.
    pub fn new(batch: usize, bytes: usize, sum_bytes: usize) -> Blocks {
        let most = (sum_bytes / bytes).clamp(1, MOST_ROWS);
        let count = batch.div_ceil(most);
        let rows = batch.div_ceil(count.max(1));
        let smaller = rows * count - batch;
        Blocks { rows, full: count - smaller, smaller }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_a_sequence_are_whole_vectors() {
        for (gates, most) in (1..=4).flat_map(|gates| [192, 256].map(|most| (gates, most))) {
            for size in [64, 256, 512] {
                let bytes = 4 * gates * panel_lanes(size, gates, DType::F32, most);
                assert!(bytes.is_multiple_of(VECTOR_BYTES) && bytes <= most, "{gates} gates: {bytes}");
            }
        }
        // Where none are, as many as fit.
        assert_eq!(panel_lanes(20, 4, DType::F32, 192), 4);
        assert_eq!(panel_lanes(7, 3, DType::F64, 256), 1);
    }

    #[test]
    fn blocks_have_all_sequences() {
        for batch in 1..40 {
            for (bytes, most) in [64, 128, 192, 256].into_iter().zip([160, 384, 1536].into_iter().cycle()) {
                let Blocks { rows, full, smaller } = Blocks::new(batch, bytes, most);
                assert_eq!(full * rows + smaller * (rows - 1), batch);
                assert!(rows == 1 || rows * bytes <= most, "{batch} of {bytes}");
                assert!(full > 0, "{batch} of {bytes}");
            }
        }
    }
}
