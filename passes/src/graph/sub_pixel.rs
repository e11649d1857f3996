//! `sub_pixel`: transposed convolutions as convolutions whose results are interleaved.
//!
//! With stride `s`, the elements of the result at positions `s * q + r` depend, for each phase `r`, on the
//! operand by a convolution of stride 1 with every s-th tap of the kernel, backwards. One convolution computes
//! all phases as channels, after which they change places with pixels ("Is the deconvolution layer the same as a
//! convolutional layer?", Shi et al. 2016). A kernel whose size is no multiple of the stride gets zeros at its
//! end: where an operand is infinite, more than its own window of the result may be no number.

use windlass_ir::attrs::Late;
use windlass_ir::graph::Values;
use windlass_ir::ops::{Broadcast, Conv, ConvTranspose, Pad, PadMode, Reshape, Slice, Transpose};
use windlass_ir::{Builder, Graph, Op, Value};

use crate::cx::PassCx;
use crate::error::Error;
use crate::manager::Pass;
use crate::permutation::Permutation;
use crate::reason::Reason;
use crate::rewrite::rewrite;

/// The pass.
pub const PASS: Pass =
    Pass { name: "sub_pixel", help: "transposed convolutions as interleaved convolutions", run };

const RULE: &str = "sub_pixel";

/// How many times the taps of a kernel may become with the zeros that make it a multiple of the stride.
const GROWTH: u64 = 16;

/// Pads that a convolution does not take.
const WIDE: usize = 1 << 31;

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    rewrite(graph, cx, |edit, node, cx| {
        let data = graph.node(node);
        let Op::ConvTranspose(op) = &*data.op else { return Ok(None) };
        let (x, w, y) = (graph.ty(data.ins[0]), graph.ty(data.ins[1]), graph.ty(data.outs[0]));
        let (Some(x), Some(w), Some(y)) = (x.as_shape(), w.as_shape(), y.as_shape()) else {
            cx.blocked(
                RULE,
                || graph.describe(node),
                || Reason::UnknownSize { what: "an operand or result".into() },
            );
            return Ok(None);
        };
        if x.len() < 3 || [&x, &w, &y].iter().any(|shape| shape.contains(&0)) {
            return Ok(None);
        }
        let Some(sides) = sides(op, &x, &w, &y) else {
            cx.blocked(
                RULE,
                || graph.describe(node),
                || Reason::Form {
                    expected: "no dilation where there is a stride, and a window that fits a convolution"
                        .into(),
                    found: format!(
                        "strides {:?}, dilations {:?}, pads {:?}",
                        op.strides, op.dilations, op.pads
                    ),
                },
            );
            return Ok(None);
        };
        let taps = volume(sides.iter().map(|side| side.taps * side.stride));
        let limit = volume(w[2..].iter().copied()).saturating_mul(GROWTH);
        if taps > limit {
            let what = "taps of the kernel with its zeros";
            cx.blocked(RULE, || graph.describe(node), || Reason::Limit { what, found: taps, limit });
            return Ok(None);
        }
        if !cx.fire(RULE, || graph.describe(node)) {
            return Ok(None);
        }
        let ins = edit.map_all(&data.ins);
        let form = Form {
            group: op.group as usize,
            batch: x[0],
            group_in: x[1] / op.group as usize,
            group_out: w[1],
            sides,
        };
        Ok(Some(Values::from_slice(&[form.build(edit.builder(), &ins)?])))
    })
}

/// The product of sizes, or the largest number.
fn volume(sizes: impl Iterator<Item = usize>) -> u64 {
    sizes.fold(1, |product, size| product.saturating_mul(size as u64))
}

/// One spatial dimension.
struct Side {
    stride: usize,
    dilation: usize,
    kernel: usize,
    /// Taps of each phase.
    taps: usize,
    /// Padding of the convolution, before and after.
    pads: [usize; 2],
    /// Positions the convolution computes.
    positions: usize,
    /// What of the interleaved result is wanted.
    crop: [usize; 2],
}

/// The sides of a transposed convolution; none if one has both a stride and a dilation, or pads beyond any use.
fn sides(op: &ConvTranspose, x: &[usize], w: &[usize], y: &[usize]) -> Option<Vec<Side>> {
    let at = |list: &[i64], d: usize, default: usize| list.get(d).map_or(default, |&n| n as usize);
    (0..x.len() - 2)
        .map(|d| {
            let (stride, dilation) = (at(&op.strides, d, 1), at(&op.dilations, d, 1));
            let (input, kernel, output, begin) = (x[d + 2], w[d + 2], y[d + 2], at(&op.pads, d, 0));
            if stride > 1 && dilation > 1 && kernel > 1 {
                return None;
            }
            let dilation = if stride > 1 { 1 } else { dilation };
            let taps = kernel.div_ceil(stride);
            // Full padding computes every position that a tap reaches, from 0 on.
            let full = (taps - 1) * dilation;
            let before = full.saturating_sub(begin / stride);
            let after = (begin + output).div_ceil(stride).saturating_sub(input);
            if before.max(after) >= WIDE {
                return None;
            }
            let start = begin - stride * (full - before);
            let positions = input + before + after - full;
            Some(Side {
                stride,
                dilation,
                kernel,
                taps,
                pads: [before, after],
                positions,
                crop: [start, start + output],
            })
        })
        .collect()
}

/// A transposed convolution of known sizes.
struct Form {
    group: usize,
    batch: usize,
    group_in: usize,
    group_out: usize,
    sides: Vec<Side>,
}

impl Form {
    fn build(&self, b: &mut Builder, ins: &[Value]) -> Result<Value, Error> {
        let rank = self.sides.len() + 2;
        let to_last = Permutation::to_channels_last(rank);
        let x = b.push1(Transpose::by(to_last.as_slice()), &[ins[0]])?;
        let mut operands = vec![x, self.weight(b, ins[1])?];
        if let Some(&bias) = ins.get(2) {
            operands.push(self.bias(b, bias)?);
        }
        let pads = [0, 1].iter().flat_map(|&end| self.sides.iter().map(move |side| side.pads[end] as i64));
        let conv = Conv {
            pads: pads.collect(),
            dilations: self.sides.iter().map(|side| side.dilation as i64).collect(),
            group: self.group as i64,
            channels_last: true,
            ..Conv::plain()
        };
        let y = b.push1(conv, &operands)?;
        let y = self.interleave(b, y)?;
        Ok(b.push1(Transpose::by(to_last.inverse().as_slice()), &[y])?)
    }

    /// Number of phases: the product of the strides.
    fn phases(&self) -> usize {
        self.sides.iter().map(|side| side.stride).product()
    }

    /// `[C, M/g, kernel..]` to `[taps.., C/g, g * phases * M/g]`, taps backwards.
    fn weight(&self, b: &mut Builder, w: Value) -> Result<Value, Error> {
        let n = self.sides.len();
        let extra: Vec<i64> =
            self.sides.iter().map(|side| (side.taps * side.stride - side.kernel) as i64).collect();
        let mut w = w;
        if extra.iter().any(|&n| n > 0) {
            let zero = b.scalar_like(w, 0.0);
            let pads = [vec![0; n], extra].concat().into();
            let axes = (2..n as i64 + 2).collect::<Vec<_>>().into();
            w = b.push1(Pad { pads, axes, mode: PadMode::Constant }, &[w, zero])?;
        }
        let mut split = vec![self.group, self.group_in, self.group_out];
        split.extend(self.sides.iter().flat_map(|side| [side.taps, side.stride]));
        let w = b.push1(Reshape::to(&split), &[w])?;
        let (taps, strides) = ((0..n).map(|d| 3 + 2 * d), (0..n).map(|d| 4 + 2 * d));
        let backwards = Slice {
            starts: vec![-1; n].into(),
            ends: vec![i64::MIN; n].into(),
            axes: taps.clone().map(|axis| axis as i64).collect::<Vec<_>>().into(),
            steps: vec![-1; n].into(),
        };
        let w = b.push1(backwards, &[w])?;
        let order: Vec<usize> = taps.chain([1, 0]).chain(strides).chain([2]).collect();
        let w = b.push1(Transpose::by(&order), &[w])?;
        let mut shape: Vec<usize> = self.sides.iter().map(|side| side.taps).collect();
        shape.extend([self.group_in, self.group * self.phases() * self.group_out]);
        Ok(b.push1(Reshape::to(&shape), &[w])?)
    }

    /// `[M]` to `[g * phases * M/g]`.
    fn bias(&self, b: &mut Builder, bias: Value) -> Result<Value, Error> {
        let bias = b.push1(Reshape::to(&[self.group, 1, self.group_out]), &[bias])?;
        let shape = [self.group, self.phases(), self.group_out];
        let bias = b.push1(Broadcast::to(&shape), &[bias])?;
        Ok(b.push1(Reshape::to(&[shape.iter().product()]), &[bias])?)
    }

    /// `[N, positions.., g * phases * M/g]` to `[N, spatial.., M]`: phases beside their positions, cropped.
    fn interleave(&self, b: &mut Builder, y: Value) -> Result<Value, Error> {
        let n = self.sides.len();
        let mut y = y;
        if self.phases() > 1 {
            let mut split = vec![self.batch];
            split.extend(self.sides.iter().map(|side| side.positions));
            split.push(self.group);
            split.extend(self.sides.iter().map(|side| side.stride));
            split.push(self.group_out);
            y = b.push1(Reshape::to(&split), &[y])?;
            let pairs = (0..n).flat_map(|d| [1 + d, 2 + n + d]);
            let order: Vec<usize> = [0].into_iter().chain(pairs).chain([1 + n, 2 + 2 * n]).collect();
            y = b.push1(Transpose::by(&order), &[y])?;
            let mut shape = vec![self.batch];
            shape.extend(self.sides.iter().map(|side| side.positions * side.stride));
            shape.push(self.group * self.group_out);
            y = b.push1(Reshape::to(&shape), &[y])?;
        }
        let crop = |end: usize| self.sides.iter().map(|side| side.crop[end] as i64).collect::<Vec<_>>();
        let axes = (1..n as i64 + 1).collect::<Vec<_>>();
        let crop =
            Slice { starts: crop(0).into(), ends: crop(1).into(), axes: axes.into(), steps: Late::default() };
        Ok(b.push1(crop, &[y])?)
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;
    use crate::testing::{after, blocked, graph, ops, weights};

    /// `after` also compares what both graphs compute.
    fn check(x: &[usize], w: &[usize], op: ConvTranspose) {
        let g = graph(&[x], |b, x| {
            let m = w[1] * op.group as usize;
            let (w, bias) = (weights(b, w, 3), weights(b, &[m], 4));
            Ok(smallvec![b.push1(op.clone(), &[x[0], w, bias])?])
        });
        let text = ops(&after(&g, &["sub_pixel"]).0);
        assert!(text.contains("conv 1") && !text.contains("conv_transpose"), "{text}");
    }

    #[test]
    fn kernels_strides_pads_and_groups() {
        let plain = ConvTranspose::plain;
        check(&[1, 3, 4, 5], &[3, 2, 2, 2], ConvTranspose { strides: vec![2, 2], ..plain() });
        check(
            &[2, 4, 5],
            &[4, 3, 3],
            ConvTranspose { strides: vec![2], pads: vec![1, 1], group: 2, ..plain() },
        );
        check(&[1, 2, 3], &[2, 2, 5], ConvTranspose { strides: vec![3], output_padding: vec![2], ..plain() });
        check(&[1, 2, 6], &[2, 2, 3], ConvTranspose { dilations: vec![2], pads: vec![1, 0], ..plain() });
        check(&[1, 2, 3, 3, 2], &[2, 1, 2, 3, 1], ConvTranspose { strides: vec![2, 1, 3], ..plain() });
        // More is cut off than full padding would add, or less is computed than the kernel reaches.
        check(&[1, 2, 6], &[2, 2, 2], ConvTranspose { strides: vec![2], pads: vec![5, 4], ..plain() });
        check(&[1, 1, 1], &[1, 1, 1], ConvTranspose { strides: vec![4], output_padding: vec![3], ..plain() });
    }

    #[test]
    fn strides_far_beyond_the_kernel_block() {
        let g = graph(&[&[1, 3, 1]], |b, x| {
            let w = weights(b, &[3, 2, 2], 3);
            let op = ConvTranspose { strides: vec![1 << 30], ..ConvTranspose::plain() };
            Ok(smallvec![b.push1(op, &[x[0], w])?])
        });
        let (_, records) = after(&g, &["sub_pixel"]);
        assert!(matches!(blocked(&records, RULE), Some(Reason::Limit { .. })));
    }

    #[test]
    fn weights_of_the_run_may_be_transformed_too() {
        let g = graph(&[&[1, 3, 4], &[3, 2, 2]], |b, x| {
            Ok(smallvec![b.push1(ConvTranspose { strides: vec![2], ..ConvTranspose::plain() }, x)?])
        });
        assert!(ops(&after(&g, &["sub_pixel"]).0).contains("conv 1"));
    }

    #[test]
    fn a_stride_with_a_dilation_blocks() {
        let g = graph(&[&[1, 3, 4]], |b, x| {
            let w = weights(b, &[3, 2, 2], 3);
            let op = ConvTranspose { strides: vec![2], dilations: vec![3], ..ConvTranspose::plain() };
            Ok(smallvec![b.push1(op, &[x[0], w])?])
        });
        let (_, records) = after(&g, &["sub_pixel"]);
        assert!(matches!(blocked(&records, RULE), Some(Reason::Form { .. })));
    }
}
