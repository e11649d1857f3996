//! Rows of the generator's table for the parts of a Winograd convolution.

use windlass_ir::DType;
use windlass_ir::ops::Winograd;

use super::propose::Set;
use super::values::Values;
use super::{Growing, Precision, Proposal, Wanted};

impl Growing<'_> {
    /// `winograd_weight`, `winograd_input` or `winograd_output`.
    pub(super) fn winograd(&mut self, name: &str) -> Option<Proposal> {
        let dtype = self.dtype(|d| matches!(d, DType::F32 | DType::F64 | DType::I16 | DType::I32));
        let (most, precision) =
            if dtype.is_int() { (1e4, Precision::Exact) } else { (2.0, Precision::Approximate) };
        let of = |shape: Vec<usize>| Wanted::New(dtype, shape, Values::Within(-most, most));
        // A tile has 36 elements, and each one's error is found by moving it alone: one tile of two channels, or two.
        let channels = 1 + self.rng.below(2);
        let [images, height, width] = [1, 1 + self.rng.below(4), 1 + self.rng.below(6 - channels)];
        let (sets, wanted) = match name {
            "winograd_weight" => (vec![], vec![of(vec![3, 3, channels, 1 + self.rng.below(4)])]),
            "winograd_input" => {
                let pads = [(); 4].map(|()| self.rng.below(2) as i64 + 1);
                (vec![("pads", Set::Ints(pads.to_vec()))], vec![of(vec![images, height, width, channels])])
            }
            _ => {
                let shape = [images, height, width];
                let sums = of(vec![36, Winograd::tiles(shape), channels]);
                let bias = self.rng.flag().then(|| of(vec![channels]));
                let sizes = shape.iter().map(|&n| n as i64).collect();
                (vec![("shape", Set::Ints(sizes))], std::iter::once(sums).chain(bias).collect())
            }
        };
        let op = self.op(name, sets);
        Some(Proposal { op, wanted, precision, jumps: false })
    }
}
