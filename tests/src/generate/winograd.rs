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
        // One tile of one channel has a few frames.
        let has_frames = self.rng.below(3) == 0 && channels == 1;
        let frames = if has_frames { vec![1 + self.rng.below(2)] } else { Vec::new() };
        let (sets, wanted) = match name {
            "winograd_weight" => {
                (vec![], vec![of([&*frames, &[3, 3, channels, 1 + self.rng.below(4)]].concat())])
            }
            "winograd_input" => {
                let spatial = frames.len() + 2;
                let pads = (0..2 * spatial).map(|_| self.rng.below(2) as i64 + 1).collect();
                let kernel = frames.iter().map(|_| self.rng.below(3) as i64 + 1).collect();
                let strides = frames.iter().map(|_| self.rng.below(2) as i64 + 1).collect();
                let sets = [("kernel", kernel), ("strides", strides), ("pads", pads)];
                let sets = sets.map(|(name, list)| (name, Set::Ints(list))).into();
                (sets, vec![of([&[images], &*frames, &[height, width, channels]].concat())])
            }
            _ => {
                let shape = [&[images], &*frames, &[height, width]].concat();
                let sums = of(vec![36, Winograd::tiles(&shape), channels]);
                let bias = self.rng.flag().then(|| of(vec![channels]));
                let sizes = shape.iter().map(|&n| n as i64).collect();
                (vec![("shape", Set::Ints(sizes))], std::iter::once(sums).chain(bias).collect())
            }
        };
        let op = self.op(name, sets);
        Some(Proposal { op, wanted, precision, jumps: false })
    }
}
