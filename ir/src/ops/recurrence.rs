//! How the products of a recurrence are blocked for a machine: recurrence weights in panels, each for units whose
//! gates' sums are in registers, and sequences in blocks that a panel is multiplied by together.

use super::recurrent_kernels;
use super::recurrent_steps::{RecurrentSteps, products};
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

    /// The formulas of the panels of recurrence weights, which take the weights' place as operands of the rounds: for each
    /// product of a step, of L units what makes G of their gates, `[P, H, G*L]`, gate after gate, and of the last units
    /// the same. A step reads a panel from end to end.
    pub fn panels(&self, sum_bytes: usize) -> Vec<Nest> {
        let rows = &self.ins[Self::WEIGHTS];
        let size = rows.shape()[1];
        let mut nests = Vec::new();
        let mut first_gate = 0;
        for (&gates, panels) in products(&self.op.cell).iter().zip(self.all_panels(sum_bytes)) {
            for Panels { first, lanes, count } in panels {
                let mut b = NestBuilder::new(&[count, size, gates * lanes]);
                let weights = b.operand(rows.dtype, &rows.shape());
                let [panel, k, column]: [Index; 3] = b.domain().try_into().expect("three variables");
                let gate = column.div(lanes as i64).add_const(first_gate as i64);
                let unit = panel.mul(lanes as i64).add(&column.rem(lanes as i64)).add_const(first as i64);
                let value = b.load(weights, &[gate.mul(size as i64).add(&unit), k]);
                nests.push(b.finish(&[value]));
            }
            first_gate += gates;
        }
        nests
    }

    /// Its kernels for a machine whose registers hold so many bytes of sums, with the panels in the place of the weights.
    /// Bits do not depend on that.
    pub fn rounds(&self, sum_bytes: usize) -> Rounds {
        recurrent_kernels::rounds(&self.op, &self.ins, &self.all_panels(sum_bytes), sum_bytes)
    }

    /// The panels of each product.
    fn all_panels(&self, sum_bytes: usize) -> Vec<Vec<Panels>> {
        let (size, dtype) = (self.ins[Self::WEIGHTS].shape()[1], self.ins[0].dtype);
        // Where several sequences are multiplied by a panel, two have their sums in registers.
        let most = if self.ins[0].shape()[1] > 1 { sum_bytes / 2 } else { SUM_BYTES };
        let of = |&gates: &usize| Panels::of(size, gates * dtype.size(), most.min(SUM_BYTES));
        products(&self.op.cell).iter().map(of).collect()
    }
}

/// Panels of units that are neighbours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Panels {
    /// The first unit.
    pub first: usize,
    /// The units of a panel.
    pub lanes: usize,
    /// How many panels there are.
    pub count: usize,
}

impl Panels {
    /// The panels of so many units, of which each has sums of so many bytes: as many to a panel as have `most_bytes` at
    /// most, a power of two, whole vectors if that can be; and one of those that are left.
    fn of(size: usize, unit_bytes: usize, most_bytes: usize) -> Vec<Panels> {
        let fits = |lanes: &usize| *lanes <= size && unit_bytes * lanes <= most_bytes;
        let mut fitting = [64, 32, 16, 8, 4, 2].into_iter().filter(fits);
        let largest = fitting.clone().next().unwrap_or(1);
        let whole = |lanes: &usize| (unit_bytes * lanes).is_multiple_of(VECTOR_BYTES);
        let lanes = fitting.find(whole).unwrap_or(largest);
        let (count, left) = (size / lanes, size % lanes);
        let mut panels = vec![Panels { first: 0, lanes, count }];
        panels.extend((left > 0).then_some(Panels { first: size - left, lanes: left, count: 1 }));
        panels
    }
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
            for size in [64, 100, 256, 300, 512] {
                let panels = Panels::of(size, 4 * gates, most);
                let bytes = 4 * gates * panels[0].lanes;
                assert!(bytes.is_multiple_of(VECTOR_BYTES) && bytes <= most, "{gates} gates: {bytes}");
                assert_eq!(panels.iter().map(|panels| panels.count * panels.lanes).sum::<usize>(), size);
            }
        }
        let panels = |first, lanes, count| Panels { first, lanes, count };
        assert_eq!(Panels::of(20, 16, 256), [panels(0, 16, 1), panels(16, 4, 1)]);
        assert_eq!(Panels::of(7, 24, 256), [panels(0, 4, 1), panels(4, 3, 1)]);
        assert_eq!(Panels::of(1, 8, 256), [panels(0, 1, 1)]);
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
