//! `winograd`: 3x3 convolutions of stride 1 as products of transformed tiles, where that is less work.
//!
//! It computes the same function with other roundings, of the size of those of a long sum. Where an input is
//! infinite, more than its own neighbourhood of the result may be no number.

use windlass_ir::graph::Values;
use windlass_ir::ops::{Conv, MatMul, Winograd};
use windlass_ir::{DType, Graph, Op};

use crate::cx::PassCx;
use crate::error::Error;
use crate::known::is_known;
use crate::manager::Pass;
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
        let Op::Conv(op) = &data.op else { return Ok(None) };
        let (x, w, y) = (graph.ty(data.ins[0]), graph.ty(data.ins[1]), graph.ty(data.outs[0]));
        let (Some(_), Some(kernel), Some(result)) = (x.as_shape(), w.as_shape(), y.as_shape()) else {
            return Ok(None);
        };
        if !has_form(op, x.dtype, &kernel) || !is_known(graph, data.ins[1]) {
            return Ok(None);
        }
        let (shape, [from, to]) = ([result[0], result[1], result[2]], [kernel[2], kernel[3]]);
        let (direct, transformed) = (direct_work(shape, from, to), transformed_work(shape, from, to));
        if transformed >= direct {
            cx.blocked(
                RULE,
                || graph.describe(node),
                || Reason::Cost { found: transformed, present: direct },
            );
            return Ok(None);
        }
        if !cx.fire(RULE, || graph.describe(node)) {
            return Ok(None);
        }
        let ins = edit.map_all(&data.ins);
        let b = edit.builder();
        let tiles = b.push1(Winograd::input(&op.pads), &[ins[0]])?;
        let weights = b.push1(Winograd::weight(), &[ins[1]])?;
        let sums = b.push1(MatMul { trans_a: false, trans_b: false }, &[tiles, weights])?;
        let operands: Values = std::iter::once(sums).chain(ins[2..].iter().copied()).collect();
        Ok(Some(Values::from_slice(&[b.push1(Winograd::output(shape), &operands)?])))
    })
}

/// Whether a convolution is one of f32 with a 3x3 kernel and nothing special.
fn has_form(op: &Conv, dtype: DType, kernel: &[usize]) -> bool {
    let plain = op.group == 1 && op.strides.iter().chain(&op.dilations).all(|&n| n == 1);
    let few = 4 * LEAST_CHANNELS;
    dtype == DType::F32
        && op.channels_last
        && plain
        && kernel.len() == 4
        && kernel[..2] == [3, 3]
        && kernel[2].min(kernel[3]) >= LEAST_CHANNELS
        && kernel[2].max(kernel[3]) >= few
}

/// With fewer channels the transforms are most of the work.
const LEAST_CHANNELS: usize = 8;

/// Multiplications that reading one weight from memory takes as long as, if it is used for few of them.
const PER_WEIGHT: u64 = 12;

/// Multiplications of a tile's channel that transforming it takes as long as.
const PER_TILE: u64 = 400;

/// Tiles that share a weight in registers; the last group may be smaller.
const GROUP: u64 = 6;

/// The work of the convolution as it is, in multiplications.
fn direct_work([n, h, w]: [usize; 3], from: usize, to: usize) -> u64 {
    let pixels = ((n * h * w) as u64).next_multiple_of(GROUP);
    9 * (pixels + PER_WEIGHT) * (from * to) as u64
}

/// The work of its other form.
fn transformed_work(shape: [usize; 3], from: usize, to: usize) -> u64 {
    let tiles = Winograd::tiles(shape) as u64;
    let products = 36 * (tiles.next_multiple_of(GROUP) + PER_WEIGHT) * (from * to) as u64;
    products + PER_TILE * tiles * (from + to) as u64
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use windlass_ir::{Builder, Value};

    use super::*;
    use crate::testing::{after, blocked, graph, ops, weights};

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
