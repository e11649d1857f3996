//! `winograd`: convolutions that are 3x3 and of stride 1 along their last two dimensions as products of transformed tiles,
//! where that is less work.
//!
//! Of floats it computes the same function with other roundings, of the size of those of a long sum. Where an input is
//! infinite, more than its own neighbourhood of the result may be no number. Of integers it computes the same, where
//! the transforms are known to fit 16 bits and the results 26.

use windlass_ir::graph::Values;
use windlass_ir::ops::{MatMul, Winograd};
use windlass_ir::{DType, Graph, Op, Value};

use crate::cx::PassCx;
use crate::error::Error;
use crate::known::is_known;
use crate::manager::Pass;
use crate::range::{range, sums_of_products};
use crate::reason::Reason;
use crate::rewrite::rewrite;

/// The pass.
pub const PASS: Pass =
    Pass { name: "winograd", help: "3x3 convolutions as products of transformed tiles", run };

const RULE: &str = "winograd";

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    if !cx.options.winograd {
        return Ok(None);
    }
    rewrite(graph, cx, |edit, node, cx| {
        let data = graph.node(node);
        let Op::Conv(op) = &*data.op else { return Ok(None) };
        let (x, w, y) = (graph.ty(data.ins[0]), graph.ty(data.ins[1]), graph.ty(data.outs[0]));
        let (Some(_), Some(kernel), Some(result)) = (x.as_shape(), w.as_shape(), y.as_shape()) else {
            return Ok(None);
        };
        let Some((kernel, &[from, to])) = kernel.split_last_chunk() else { return Ok(None) };
        let Some(input) = Winograd::input_of(op, kernel) else { return Ok(None) };
        if !has_channels(x.dtype, from, to) || !is_known(graph, data.ins[1]) {
            return Ok(None);
        }
        let shape = &result[..result.len() - 1];
        let work =
            Work { shape, taps: kernel[..kernel.len() - 2].iter().product::<usize>() as u64, from, to };
        let (direct, transformed) = (work.direct(), work.transformed());
        if transformed >= direct {
            cx.blocked(
                RULE,
                || graph.describe(node),
                || Reason::Cost { found: transformed, present: direct },
            );
            return Ok(None);
        }
        let is_int = x.dtype == DType::I32;
        if is_int && let Err(reason) = fits(graph, data.ins[0], data.ins[1]) {
            cx.blocked(RULE, || graph.describe(node), || reason);
            return Ok(None);
        }
        if !cx.fire(RULE, || graph.describe(node)) {
            return Ok(None);
        }
        let ins = edit.map_all(&data.ins);
        let b = edit.builder();
        let [mut tiles, mut weights] = [ins[0], ins[1]];
        if is_int {
            [tiles, weights] = [b.cast(tiles, DType::I16)?, b.cast(weights, DType::I16)?];
        }
        tiles = b.push1(input, &[tiles])?;
        weights = b.push1(Winograd::weight(), &[weights])?;
        if is_int {
            [tiles, weights] = [b.cast(tiles, DType::I32)?, b.cast(weights, DType::I32)?];
        }
        let sums = b.push1(MatMul { trans_a: false, trans_b: false }, &[tiles, weights])?;
        let operands: Values = std::iter::once(sums).chain(ins[2..].iter().copied()).collect();
        Ok(Some(Values::from_slice(&[b.push1(Winograd::output(shape), &operands)?])))
    })
}

/// Whether the form of a convolution of integers gives the same results, or why that is not known.
fn fits(graph: &Graph, x: Value, w: Value) -> Result<(), Reason> {
    let limit = i16::MAX as u64;
    for (value, growth) in [w, x].into_iter().zip(Winograd::GROWTH) {
        let (least, greatest) = range(graph, value);
        let found = (growth * greatest.max(-least)) as u64;
        if found > limit {
            return Err(Reason::Limit { what: "as the largest transformed operand", found, limit });
        }
    }
    let (least, greatest) = sums_of_products(graph, x, w, graph.ty(w).rank() - 1);
    match Winograd::holds(DType::I32, least, greatest) {
        true => Ok(()),
        false => {
            let (found, limit) = (greatest.max(-least) as u64, i32::MAX as u64 / 64);
            Err(Reason::Limit { what: "as the largest sum", found, limit })
        }
    }
}

/// Whether there are channels enough, of a type that has the form.
fn has_channels(dtype: DType, from: usize, to: usize) -> bool {
    let of_type = dtype == DType::F32 || dtype == DType::I32 && from.is_multiple_of(2);
    of_type && from.min(to) >= LEAST_CHANNELS && from.max(to) >= 4 * LEAST_CHANNELS
}

/// With fewer channels the transforms are most of the work.
const LEAST_CHANNELS: usize = 8;

/// Multiplications that reading one weight from memory takes as long as, if it is used for few of them.
const PER_WEIGHT: u64 = 12;

/// Multiplications of a tile's channel that transforming it takes as long as.
const PER_TILE: u64 = 400;

/// Tiles that share a weight in registers; the last group may be smaller.
const GROUP: u64 = 6;

/// What the work of a convolution, in multiplications, depends on.
struct Work<'s> {
    /// Images and spatial sizes of the result.
    shape: &'s [usize],
    /// Of the dimensions but the last two.
    taps: u64,
    from: usize,
    to: usize,
}

impl Work<'_> {
    /// Products of so many matrices, of which each has a row for each of so many results.
    fn products(&self, matrices: u64, results: u64) -> u64 {
        let rows = results.next_multiple_of(GROUP) + PER_WEIGHT;
        [matrices, rows, self.taps, self.from as u64, self.to as u64].into_iter().fold(1, u64::saturating_mul)
    }

    /// As it is.
    fn direct(&self) -> u64 {
        self.products(9, self.shape.iter().product::<usize>() as u64)
    }

    /// In its other form.
    fn transformed(&self) -> u64 {
        let tiles = Winograd::tiles(self.shape) as u64;
        let channels = self.taps.saturating_mul(self.from as u64).saturating_add(self.to as u64);
        let transforms = (PER_TILE * tiles).saturating_mul(channels);
        self.products(36, tiles).saturating_add(transforms)
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use windlass_ir::ops::{Conv, QuantizeLinear, Transpose};
    use windlass_ir::{Builder, Tensor, TensorType, Value, interpret};

    use super::*;
    use crate::testing::{after, blocked, graph, ops, seeded, weights};

    fn conv(b: &mut Builder, x: Value, to: usize, op: Conv) -> Value {
        let from = b.ty(x).dims[3].as_fixed().unwrap();
        let (w, bias) = (weights(b, &[3, 3, from, to], 3), weights(b, &[to], 4));
        b.push1(Conv { channels_last: true, ..op }, &[x, w, bias]).unwrap()
    }

    #[test]
    fn a_convolution_of_many_channels() {
        let g = graph(&[&[1, 12, 10, 32]], |b, x| {
            Ok(smallvec![conv(b, x[0], 64, Conv { pads: vec![1; 4], ..Conv::plain() })])
        });
        let (after, _) = after(&g, &["winograd"]);
        assert_eq!(ops(&after), "matmul 1, winograd_input 1, winograd_output 1, winograd_weight 1");
    }

    #[test]
    fn a_convolution_over_time_too() {
        let g = graph(&[&[1, 5, 12, 10, 32]], |b, x| {
            let conv =
                Conv { channels_last: true, strides: vec![2, 1, 1], pads: vec![1; 6], ..Conv::plain() };
            let w = weights(b, &[3, 3, 3, 32, 64], 3);
            Ok(smallvec![b.push1(conv, &[x[0], w])?])
        });
        let (changed, _) = after(&g, &["winograd"]);
        assert_eq!(ops(&changed), "matmul 1, winograd_input 1, winograd_output 1, winograd_weight 1");
        let x = seeded(&TensorType::fixed(DType::F32, &[1, 5, 12, 10, 32]), 9);
        let [expected, found] = [&g, &changed].map(|g| interpret(g, std::slice::from_ref(&x)).unwrap());
        for (found, expected) in found[0].to_f64s().iter().zip(expected[0].to_f64s()) {
            assert!((found - expected).abs() < 1e-3 * (1.0 + expected.abs()), "{found}, {expected}");
        }
    }

    /// A convolution of integers that are quantized from a float.
    fn integers(b: &mut Builder, x: Value, shape: &[usize], to: DType) -> Value {
        let scale = b.constant(Tensor::scalar(0.01f32));
        let x = b.push1(QuantizeLinear { axis: 1, block_size: 0, to }, &[x, scale]).unwrap();
        let x = b.cast(x, DType::I32).unwrap();
        let w = b.constant(Tensor::from_fn::<i8>(shape, |i| (i * 37 % 251) as i8));
        let w = b.push1(Transpose { perm: vec![2, 3, 1, 0] }, &[w]).unwrap();
        let w = b.cast(w, DType::I32).unwrap();
        let conv = Conv { pads: vec![1, 0, 1, 2], channels_last: true, ..Conv::plain() };
        b.push1(conv, &[x, w]).unwrap()
    }

    #[test]
    fn a_convolution_of_bytes_gives_the_same_integers() {
        let g =
            graph(&[&[1, 12, 10, 32]], |b, x| Ok(smallvec![integers(b, x[0], &[64, 32, 3, 3], DType::U8)]));
        let (changed, _) = after(&g, &["winograd"]);
        assert!(ops(&changed).contains("winograd_input 1"), "{}", ops(&changed));
        let x = seeded(&TensorType::fixed(DType::F32, &[1, 12, 10, 32]), 9);
        let [expected, found] = [&g, &changed].map(|g| interpret(g, std::slice::from_ref(&x)).unwrap());
        assert_eq!(found[0].to_ints(), expected[0].to_ints());
    }

    #[test]
    fn integers_that_may_be_too_large_block() {
        for (shape, to) in [([64, 512, 3, 3], DType::U8), ([64, 32, 3, 3], DType::I16)] {
            let g = graph(&[&[1, 12, 10, shape[1]]], |b, x| Ok(smallvec![integers(b, x[0], &shape, to)]));
            let (_, records) = after(&g, &["winograd"]);
            assert!(matches!(blocked(&records, RULE), Some(Reason::Limit { .. })));
        }
    }

    #[test]
    fn few_tiles_block() {
        let g = graph(&[&[1, 6, 6, 64]], |b, x| Ok(smallvec![conv(b, x[0], 64, Conv::plain())]));
        let (_, records) = after(&g, &["winograd"]);
        assert!(matches!(blocked(&records, RULE), Some(Reason::Cost { .. })));
    }

    #[test]
    fn strides_and_few_channels_are_left_alone() {
        let g = graph(&[&[1, 20, 20, 32]], |b, x| {
            let strided = Conv { strides: vec![2, 2], ..Conv::plain() };
            Ok(smallvec![conv(b, x[0], 64, strided), conv(b, x[0], 4, Conv::plain())])
        });
        assert_eq!(ops(&after(&g, &["winograd"]).0), "conv 2");
    }
}
