//! What products and windows over space want.

use windlass_ir::ops::MaxPoolGrad;
use windlass_ir::{DType, Op, eval_op};

use super::choices::Set::{Bool, Int, Ints};
use super::{is_float, is_number};
use crate::generate::Precision::{Approximate, Exact, Sums};
use crate::generate::Wanted::New;
use crate::generate::values::Values;
use crate::generate::{Growing, MOST_ELEMENTS, Proposal, Wanted};

impl Growing<'_> {
    pub(super) fn conv(&mut self, name: &str) -> Option<Proposal> {
        let dtype = self.dtype(is_number);
        let (group, per_in) = (1 + self.rng.below(3), 1 + self.rng.below(4));
        let per_out = *self.rng.choose(&[1, 2, 2, 5]);
        let (spatial, [kernel, strides, dilations, pads]) = self.window();
        let transposed = name == "conv_transpose";
        let last = !transposed && self.rng.flag();
        let (channels, features) = (group * per_in, group * per_out);
        let batch = self.rng.below(3);
        let (x, w) = match last {
            true => (
                [vec![batch], spatial.clone(), vec![channels]].concat(),
                [kernel, vec![per_in, features]].concat(),
            ),
            false => (
                [vec![batch, channels], spatial.clone()].concat(),
                [if transposed { vec![channels, per_out] } else { vec![features, per_in] }, kernel].concat(),
            ),
        };
        let out = if last { w.len() - 1 } else { 0 };
        let mut wanted = match transposed {
            true => [x, w].map(|shape| New(dtype, shape, Values::Any)).into(),
            false => self.factors(dtype, [x, w], out),
        };
        if self.rng.flag() {
            wanted.push(New(dtype, vec![features], Values::Any));
        }
        let ints = |sizes: Vec<usize>| Ints(sizes.into_iter().map(|n| n as i64).collect());
        let mut sets = vec![
            ("strides", ints(strides)),
            ("pads", ints(pads)),
            ("dilations", ints(dilations)),
            ("group", Int(group as i64)),
        ];
        if !transposed {
            sets.push(("channels_last", Bool(last)));
        }
        Some(Proposal { op: self.op(name, sets), wanted, precision: Sums, jumps: false })
    }

    /// The factors of a product, now and then dequantized: the weight with scales for `out`, its dimension that the
    /// product keeps.
    pub(super) fn factors(&mut self, dtype: DType, [x, w]: [Vec<usize>; 2], out: usize) -> Vec<Wanted> {
        if dtype != DType::F32 || self.rng.flag() {
            return vec![New(dtype, x, Values::Any), New(dtype, w, Values::Any)];
        }
        vec![Wanted::Dequantized(x, None), Wanted::Dequantized(w, Some(out))]
    }

    /// A product of few rows with a quantized weight that is large enough to stay so.
    pub(super) fn few_rows(&mut self) -> Option<Proposal> {
        let rows = 1 + self.rng.below(5);
        let (steps, block) = *self.rng.choose(&[(32, 32), (32, 16), (48, 16), (24, 8), (33, 11), (30, 16)]);
        let columns = 1 + self.rng.below(MOST_ELEMENTS / steps);
        let transposed = self.rng.flag();
        let shape = if transposed { vec![columns, steps] } else { vec![steps, columns] };
        let weight = match self.rng.one_in(3) {
            true => Wanted::Dequantized(shape, Some(usize::from(!transposed))),
            false => Wanted::InBlocks(shape, usize::from(transposed), block),
        };
        let wanted = vec![New(DType::F32, vec![rows, steps], Values::Any), weight];
        let op = self.op("matmul", vec![("trans_b", Bool(transposed))]);
        Some(Proposal { op, wanted, precision: Sums, jumps: false })
    }

    pub(super) fn pool(&mut self, name: &str) -> Option<Proposal> {
        let jumps = name == "max_pool_indices";
        let dtype = self.dtype(if matches!(name, "average_pool" | "lp_pool") { is_float } else { is_number });
        let (spatial, [kernel, strides, dilations, mut pads]) = self.window();
        // Padding beyond the kernel makes windows of nothing.
        for (i, pad) in pads.iter_mut().enumerate() {
            *pad = (*pad).min(kernel[i % kernel.len().max(1)] - 1);
        }
        let leading = vec![1 + self.rng.below(2), 1 + self.rng.below(3)];
        let ints = |sizes: Vec<usize>| Ints(sizes.into_iter().map(|n| n as i64).collect());
        let mut sets = vec![
            ("kernel_shape", ints(kernel)),
            ("strides", ints(strides)),
            ("pads", ints(pads)),
            ("dilations", ints(dilations)),
        ];
        let mut shape = [leading, spatial].concat();
        if !jumps {
            let last = self.rng.flag();
            sets.push(("channels_last", Bool(last)));
            if last {
                let channels = shape.remove(1);
                shape.push(channels);
            }
        }
        if name == "lp_pool" {
            sets.push(("p", Int(self.rng.between(1, 2))));
        }
        let precision = if name == "max_pool" { Exact } else { Approximate };
        let wanted = vec![New(dtype, shape, Values::Any)];
        Some(Proposal { op: self.op(name, sets), wanted, precision, jumps })
    }

    /// What flows back through max pooling of some image.
    pub(super) fn pool_grad(&mut self) -> Option<Proposal> {
        let Proposal { op: Op::Pool(pool), wanted, .. } = self.pool("max_pool")? else { return None };
        let New(_, shape, values) = &wanted[0] else { return None };
        let dtype = self.dtype(is_float);
        let x = values.sample(&mut self.rng, dtype, shape);
        let y = eval_op(&Op::from(pool.clone()), std::slice::from_ref(&x)).ok()?.remove(0);
        let pooled = y.shape().to_vec();
        let wanted = vec![
            New(dtype, shape.clone(), Values::Exactly(x.to_f64s())),
            New(dtype, pooled.clone(), Values::Exactly(y.to_f64s())),
            New(dtype, pooled, Values::Any),
        ];
        Some(Proposal { op: MaxPoolGrad { pool }.into(), wanted, precision: Sums, jumps: true })
    }

    /// Spatial sizes, and kernel, strides, dilations and pads that suit them.
    pub(super) fn window(&mut self) -> (Vec<usize>, [Vec<usize>; 4]) {
        let rank = 1 + self.rng.below(3);
        let mut pick = |sizes: &[usize], count: usize| -> Vec<usize> {
            (0..count).map(|_| *self.rng.choose(sizes)).collect()
        };
        let spatial = pick(&[3, 4, 5, 7], rank);
        let window = [
            pick(&[1, 2, 3], rank),
            pick(&[1, 1, 2, 3], rank),
            pick(&[1, 1, 2], rank),
            pick(&[0, 0, 1, 2], 2 * rank),
        ];
        (spatial, window)
    }
}
