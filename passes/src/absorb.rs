//! How each op computes on operands whose dimensions are in another order.
//!
//! A value `v` *has layout* `p` if a tensor `base` is at hand with `v = transpose(base, p)`. An op that
//! absorbs layouts is applied to bases instead, with its axes renamed, and its result has a layout too.

use std::collections::BTreeSet;
use std::sync::Arc;

use windlass_ir::attrs::Late;
use windlass_ir::ops::{
    BatchNorm, Broadcast, Concat, DequantizeLinear, GroupNorm, Hardmax, LayerNorm, LpNorm, Lrn, MatMul, Pad,
    Pool, QuantizeLinear, Reduce, Reshape, Slice, Softmax, Tile,
};
use windlass_ir::{Dim, Graph, Node, Op, TensorType, Value, normalize_axis};

use crate::permutation::Permutation;

/// How a node is computed on bases.
#[derive(Clone, Debug)]
pub struct Absorbed {
    /// The op with its axes renamed.
    pub op: Arc<Op>,
    /// The layout that each operand must have; `None` where the operand is taken as it is.
    ///
    /// A layout of higher rank than the operand means that dimensions of 1 are put before it.
    pub ins: Vec<Option<Permutation>>,
    /// The layout of the result.
    pub result: Permutation,
}

/// The layouts of values, and what changing one costs.
pub trait Layouts {
    /// The layout that `value` has; the identity if it is just itself.
    fn layout(&self, value: Value) -> Permutation;
    /// The bytes moved to give `value` the layout `to`.
    fn cost(&self, value: Value, to: &Permutation) -> u64;
}

/// How a node absorbs its operands' layouts, if it can and that is no dearer than undoing them.
pub fn absorb(graph: &Graph, node: Node, layouts: &dyn Layouts) -> Option<Absorbed> {
    let data = graph.node(node);
    if data.outs.len() != 1 || data.ins.is_empty() {
        return None;
    }
    let ty = |i: usize| graph.ty(data.ins[i]);
    let first = layouts.layout(data.ins[0]);
    match &*data.op {
        Op::Elementwise(_) => joined(graph, node, layouts, |_| Some(data.op.clone())),
        Op::Concat(op) => joined(graph, node, layouts, |layout| {
            let axis = layout.source(normalize_axis(op.axis, layout.rank())?) as i64;
            Some(Concat { axis }.into())
        }),
        Op::MatMul(op) => matmul(op, [ty(0), ty(1)], [&first, &layouts.layout(data.ins[1])]),
        _ if first.is_identity() => None,
        Op::Reduce(op) => reduce(op, ty(0), &first),
        Op::Gelu(_) | Op::Silu(_) => same_layout(data.op.clone(), &first),
        Op::Softmax(op) => same_layout(Softmax { axis: axis(op.axis, &first)?, ..op.clone() }, &first),
        Op::Hardmax(op) => same_layout(Hardmax { axis: axis(op.axis, &first)? }, &first),
        Op::LpNorm(op) => same_layout(LpNorm { axis: axis(op.axis, &first)?, ..op.clone() }, &first),
        Op::Pad(op) => {
            let axes = rename(&all_if_empty(op.axes.as_known()?, ty(0).rank()), &first)?;
            op.pads.as_known()?;
            first_operand(Pad { axes, ..op.clone() }, data.ins.len(), &first)
        }
        Op::Slice(op) => {
            let (starts, axes) = (op.starts.as_known()?, op.axes.as_known()?);
            op.ends.as_known()?;
            op.steps.as_known()?;
            let axes = rename(&all_if_empty(axes, starts.len()), &first)?;
            first_operand(Slice { axes, ..op.clone() }, data.ins.len(), &first)
        }
        Op::Tile(op) => {
            let repeats = in_base_order(op.repeats.as_known()?, &first)?;
            same_layout(Tile { repeats }, &first)
        }
        Op::Broadcast(op) => {
            let shape = in_base_order(op.shape.as_known()?, &first)?;
            same_layout(Broadcast { shape }, &first)
        }
        Op::Pool(op) => {
            let channels_last = flipped(op.channels_last, &first)?;
            same_layout(Pool { channels_last, ..op.clone() }, &first)
        }
        Op::BatchNorm(op) => {
            let channels_last = flipped(op.channels_last, &first)?;
            first_operand(BatchNorm { channels_last, ..op.clone() }, data.ins.len(), &first)
        }
        Op::GroupNorm(op) => {
            let channels_last = flipped(op.channels_last, &first)?;
            first_operand(GroupNorm { channels_last, ..op.clone() }, data.ins.len(), &first)
        }
        Op::Lrn(op) => {
            let channels_last = flipped(op.channels_last, &first)?;
            same_layout(Lrn { channels_last, ..op.clone() }, &first)
        }
        Op::QuantizeLinear(op) if op.block_size == 0 => {
            let axis = scale_axis(op.axis, ty(1), &first)?;
            first_operand(QuantizeLinear { axis, ..op.clone() }, data.ins.len(), &first)
        }
        Op::DequantizeLinear(op) if op.block_size == 0 => {
            let axis = scale_axis(op.axis, ty(1), &first)?;
            first_operand(DequantizeLinear { axis, ..op.clone() }, data.ins.len(), &first)
        }
        Op::LayerNorm(op) => {
            layer_norm(op, &first, &data.ins.iter().map(|&v| graph.ty(v)).collect::<Vec<_>>())
        }
        Op::Reshape(_) => reshape(data.ins[0], ty(0), graph.ty(data.outs[0]), layouts),
        _ => None,
    }
}

/// A one-operand op that keeps the layout.
fn same_layout(op: impl Into<Arc<Op>>, layout: &Permutation) -> Option<Absorbed> {
    Some(Absorbed { op: op.into(), ins: vec![Some(layout.clone())], result: layout.clone() })
}

/// An op whose first operand and result have the layout; its other operands do not depend on it.
fn first_operand(op: impl Into<Arc<Op>>, operands: usize, layout: &Permutation) -> Option<Absorbed> {
    let mut ins = vec![None; operands];
    ins[0] = Some(layout.clone());
    Some(Absorbed { op: op.into(), ins, result: layout.clone() })
}

/// An axis of a value as one of its base.
fn axis(axis: i64, layout: &Permutation) -> Option<i64> {
    Some(layout.source(normalize_axis(axis, layout.rank())?) as i64)
}

/// The axis of a value that a scale lies along, as one of its base; a scale of rank 0 lies along none.
fn scale_axis(along: i64, scale: &TensorType, layout: &Permutation) -> Option<i64> {
    if scale.rank() == 0 { Some(along) } else { axis(along, layout) }
}

/// Axes of a value as axes of its base.
fn rename(axes: &[i64], layout: &Permutation) -> Option<Late> {
    Some(Late::Known(axes.iter().map(|&a| axis(a, layout)).collect::<Option<_>>()?))
}

/// Axes that default to the first ones.
fn all_if_empty(axes: &[i64], count: usize) -> Vec<i64> {
    match axes.is_empty() {
        true => (0..count as i64).collect(),
        false => axes.to_vec(),
    }
}

/// One number a dimension of a value, in the order of its base.
fn in_base_order(numbers: &[i64], layout: &Permutation) -> Option<Late> {
    let inverse = layout.inverse();
    let whole = numbers.len() == layout.rank();
    whole.then(|| Late::Known(inverse.as_slice().iter().map(|&d| numbers[d]).collect()))
}

/// The layout flag of an op on a base that has the channels where the op, on the value, does not.
fn flipped(channels_last: bool, layout: &Permutation) -> Option<bool> {
    let to_last = Permutation::to_channels_last(layout.rank());
    let other = if channels_last { to_last } else { to_last.inverse() };
    (*layout == other).then_some(!channels_last)
}

/// Normalized dimensions stay where they are; the others may be in any order that scale and bias,
/// which broadcast, do not see.
fn layer_norm(op: &LayerNorm, layout: &Permutation, types: &[&TensorType]) -> Option<Absorbed> {
    let rank = layout.rank();
    let first = if op.axis == rank as i64 { rank } else { normalize_axis(op.axis, rank)? };
    let stays = |d: usize| layout.source(d) == d;
    let seen = types[1..].iter().map(|t| t.rank()).max().unwrap_or(0);
    let fixed = (rank - seen).min(first)..rank;
    fixed.clone().all(stays).then(|| first_operand(op.clone(), types.len(), layout)).flatten()
}

/// All operands of full rank in one layout: that which costs least to bring about.
fn joined(
    graph: &Graph,
    node: Node,
    layouts: &dyn Layouts,
    op: impl FnOnce(&Permutation) -> Option<Arc<Op>>,
) -> Option<Absorbed> {
    let data = graph.node(node);
    let rank = graph.ty(data.outs[0]).rank();
    // Lower ranks are padded by a reshape, which needs the sizes.
    let is_padded = |&v: &Value| graph.ty(v).rank() < rank && graph.ty(v).as_shape().is_none();
    if data.ins.iter().any(is_padded) {
        return None;
    }
    // What has one element broadcasts in any layout, but is not joined along an axis in any.
    let broadcasts = matches!(*data.op, Op::Elementwise(_));
    let one = |v: Value| broadcasts && graph.ty(v).dims.iter().all(|d| *d == Dim::Fixed(1));
    let needed = |layout: &Permutation| -> Vec<Option<Permutation>> {
        data.ins.iter().map(|&v| (!one(v)).then(|| layout.clone())).collect()
    };
    let cost = |layout: &Permutation| -> u64 {
        data.ins.iter().filter(|&&v| !one(v)).map(|&v| layouts.cost(v, layout)).sum()
    };
    let of_full_rank = data.ins.iter().filter(|&&v| graph.ty(v).rank() == rank);
    let candidates: BTreeSet<Permutation> = of_full_rank.map(|&v| layouts.layout(v)).collect();
    let others = candidates.into_iter().filter(|p| !p.is_identity());
    let (least, layout) = others.map(|layout| (cost(&layout), layout)).min()?;
    let pays = least <= cost(&Permutation::identity(rank));
    pays.then(|| Some(Absorbed { op: op(&layout)?, ins: needed(&layout), result: layout })).flatten()
}

/// A swap of the last two dimensions becomes the op's own flag.
fn matmul(op: &MatMul, types: [&TensorType; 2], layouts: [&Permutation; 2]) -> Option<Absorbed> {
    let is_swap = |p: &Permutation| {
        let r = p.rank();
        p.as_slice()[..r - 2].iter().copied().eq(0..r - 2) && p.source(r - 1) == r - 2
    };
    let swaps = layouts.map(is_swap);
    let rank = types[0].rank().max(types[1].rank());
    let op = MatMul { trans_a: op.trans_a ^ swaps[0], trans_b: op.trans_b ^ swaps[1] };
    let need =
        |i: usize| Some(if swaps[i] { layouts[i].clone() } else { Permutation::identity(types[i].rank()) });
    swaps.contains(&true).then(|| Absorbed {
        op: op.into(),
        ins: vec![need(0), need(1)],
        result: Permutation::identity(rank),
    })
}

fn reduce(op: &Reduce, ty: &TensorType, layout: &Permutation) -> Option<Absorbed> {
    let axes = op.axes.as_known()?;
    if axes.is_empty() {
        return (op.none_if_empty || op.keep).then(|| same_layout(op.clone(), layout)).flatten();
    }
    let mut reduced = vec![false; ty.rank()];
    for &axis in axes {
        reduced[normalize_axis(axis, ty.rank())?] = true;
    }
    let op = Reduce { axes: rename(axes, layout)?, ..op.clone() };
    let result = if op.keep { layout.clone() } else { layout.without(&reduced) };
    Some(Absorbed { op: op.into(), ins: vec![Some(layout.clone())], result })
}

/// A reshape splits and merges neighbouring dimensions, group by group; groups may stand in any order.
fn reshape(value: Value, from: &TensorType, to: &TensorType, layouts: &dyn Layouts) -> Option<Absorbed> {
    let layout = layouts.layout(value);
    let (from, to) = (from.as_shape()?, to.as_shape()?);
    let mut groups = reshape_groups(&from, &to)?;
    // In the order in which the base has them, by the first dimension of each that is not 1.
    groups.sort_by_key(|(old, _)| {
        let whole = old.clone().find(|&d| from[d] != 1).unwrap_or(old.start);
        layout.as_slice().get(whole).copied().unwrap_or(usize::MAX)
    });
    let order = |dims: Vec<usize>| dims.into_iter().collect::<Permutation>().inverse();
    let need = order(groups.iter().flat_map(|(old, _)| old.clone()).collect());
    let new_dims: Vec<usize> = groups.iter().flat_map(|(_, new)| new.clone()).collect();
    let shape: Vec<usize> = new_dims.iter().map(|&d| to[d]).collect();
    let result = order(new_dims);
    let plain = Permutation::identity(from.len());
    (layouts.cost(value, &need) <= layouts.cost(value, &plain)).then(|| Absorbed {
        op: Reshape::to(&shape).into(),
        ins: vec![Some(need)],
        result,
    })
}

type DimRange = std::ops::Range<usize>;

/// The finest ranges of dimensions of `from` and of `to` that hold equally many elements.
fn reshape_groups(from: &[usize], to: &[usize]) -> Option<Vec<(DimRange, DimRange)>> {
    if from.contains(&0) {
        return None;
    }
    let mut groups: Vec<(DimRange, DimRange)> = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < from.len() && j < to.len() {
        let (start_i, start_j) = (i, j);
        let (mut a, mut b) = (from[i], to[j]);
        (i, j) = (i + 1, j + 1);
        while a != b {
            match a < b {
                true => {
                    a *= from.get(i)?;
                    i += 1;
                }
                false => {
                    b *= to.get(j)?;
                    j += 1;
                }
            }
        }
        groups.push((start_i..i, start_j..j));
    }
    // Ones at the end belong to the last group, or stand alone.
    match groups.last_mut() {
        Some((old, new)) => (old.end, new.end) = (from.len(), to.len()),
        None => groups.push((0..from.len(), 0..to.len())),
    }
    Some(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_reshapes() {
        let groups = |from: &[usize], to: &[usize]| {
            reshape_groups(from, to).map(|groups| {
                let text = |(a, b): &(DimRange, DimRange)| format!("{a:?}-{b:?}");
                groups.iter().map(text).collect::<Vec<_>>().join(" ")
            })
        };
        assert_eq!(groups(&[2, 6, 5], &[2, 2, 3, 5]).unwrap(), "0..1-0..1 1..2-1..3 2..3-3..4");
        assert_eq!(groups(&[4, 6], &[6, 4]).unwrap(), "0..2-0..2");
        assert_eq!(groups(&[2, 3, 1], &[2, 1, 3]).unwrap(), "0..1-0..1 1..3-1..3");
        assert_eq!(groups(&[], &[1, 1]).unwrap(), "0..0-0..2");
        assert_eq!(groups(&[0, 2], &[2, 0]), None);
    }
}
