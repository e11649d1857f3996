//! `propagate_shapes`: follows sizes through the integers that models compute shapes with.
//!
//! Sizes that are known become constants even where others of the same tensor are not:
//!
//! - `known_sizes`: integers taken from a shape, all of which are known, become a constant;
//! - `partial_shape`: a reshape whose sizes are known but for one infers that one; sizes named as the
//!   operand's at the same position are copied from it.
//!
//! Where every dimension is fixed, [`Graph::bind`] and `fold` have done all of this already.

use std::sync::Arc;

use cranelift_entity::SecondaryMap;
use windlass_ir::attrs::Late;
use windlass_ir::graph::Values;
use windlass_ir::ops::{Elementwise, Reshape};
use windlass_ir::{DType, Dim, Graph, Op, ScalarFn, Tensor, Value};

use crate::cx::PassCx;
use crate::error::Error;
use crate::manager::Pass;
use crate::reason::Reason;
use crate::rewrite::rewrite;

/// The pass.
pub const PASS: Pass =
    Pass { name: "propagate_shapes", help: "follow known sizes through shape arithmetic", run };

/// One integer of a shape computed in the graph.
#[derive(Clone, Debug, PartialEq)]
enum Size {
    Known(i64),
    Named(Arc<str>),
    Unknown,
}

/// Integers of more elements than this are no shapes.
const MAX_SIZES: usize = 64;

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    let mut sizes: SecondaryMap<Value, Option<Vec<Size>>> = SecondaryMap::with_capacity(graph.value_count());
    for (_, data) in graph.nodes() {
        let out = data.outs[0];
        let ty = graph.ty(out);
        if data.outs.len() == 1 && matches!(ty.dtype, DType::I32 | DType::I64) && ty.rank() <= 1 {
            let found = sizes_of(graph, &data.op, &data.ins, &sizes);
            // A result whose length is not the inferred one was misread.
            sizes[out] = found.filter(|s| s.len() <= MAX_SIZES && Some(s.len()) == ty.as_len());
        }
    }
    rewrite(graph, cx, |edit, node, cx| {
        let data = graph.node(node);
        if let (Op::Reshape(Reshape { shape: Late::Operand(i), copy_zero }), [x, ..]) =
            (&*data.op, data.ins.as_slice())
        {
            let from = &graph.ty(*x).dims;
            let Some(wanted) = sizes[data.ins[*i as usize]].as_deref() else { return Ok(None) };
            let Some(op) = partial(wanted, from, *copy_zero) else {
                let what = || Reason::UnknownSize { what: "the shape, more than one".into() };
                cx.blocked("partial_shape", || graph.describe(node), what);
                return Ok(None);
            };
            if !cx.fire("partial_shape", || graph.describe(node)) {
                return Ok(None);
            }
            let x = edit.map(*x);
            return Ok(Some(Values::from_slice(&[edit.builder().push1(op, &[x])?])));
        }
        if matches!(*data.op, Op::Constant(_)) {
            return Ok(None);
        }
        let Some(ints) = sizes[data.outs[0]].as_deref().and_then(all_known) else { return Ok(None) };
        let ty = graph.ty(data.outs[0]);
        if !cx.fire("known_sizes", || graph.describe(node)) {
            return Ok(None);
        }
        let constant = Tensor::from_i128s(ty.dtype, &ty.shape(), &ints);
        Ok(Some(Values::from_slice(&[edit.builder().constant(constant)])))
    })
}

fn all_known(sizes: &[Size]) -> Option<Vec<i128>> {
    let known = |size: &Size| match size {
        Size::Known(n) => Some(i128::from(*n)),
        Size::Named(_) | Size::Unknown => None,
    };
    sizes.iter().map(known).collect()
}

/// A reshape to sizes of which some are not known.
fn partial(wanted: &[Size], from: &[Dim], copy_zero: bool) -> Option<Reshape> {
    let mut copied = copy_zero;
    let mut inferred = 0;
    let mut shape = Vec::new();
    for (i, size) in wanted.iter().enumerate() {
        shape.push(match size {
            Size::Known(n) => *n,
            Size::Named(name) if from.get(i) == Some(&Dim::Named(name.clone())) => {
                copied = true;
                0
            }
            Size::Named(_) | Size::Unknown => {
                inferred += 1;
                -1
            }
        });
    }
    // A size of -1 or 0 that the model computes has its own meaning, which must stay the only one.
    let literal = |n: i64| wanted.contains(&Size::Known(n));
    let ambiguous = literal(0) && (!copy_zero || inferred > 0) || literal(-1) && inferred > 0;
    (inferred <= 1 && !ambiguous).then_some(Reshape { shape: Late::Known(shape), copy_zero: copied })
}

/// The integers that an op computes, as far as they follow from sizes.
fn sizes_of(
    graph: &Graph,
    op: &Op,
    ins: &[Value],
    sizes: &SecondaryMap<Value, Option<Vec<Size>>>,
) -> Option<Vec<Size>> {
    let of = |i: usize| sizes[*ins.get(i)?].clone();
    let is_axis_0 = |axis: i64| axis == 0 || axis == -1;
    match op {
        Op::Constant(constant) => {
            let small = constant.value.len() <= MAX_SIZES;
            small.then(|| constant.value.to_ints().into_iter().map(Size::Known).collect())
        }
        Op::ShapeOf(_) => {
            let size = |dim: &Dim| match dim {
                Dim::Fixed(n) => Size::Known(*n as i64),
                Dim::Named(name) => Size::Named(name.clone()),
                Dim::Unknown => Size::Unknown,
            };
            Some(graph.ty(ins[0]).dims.iter().map(size).collect())
        }
        Op::Gather(op) if is_axis_0(op.axis) && graph.ty(ins[0]).rank() == 1 => {
            let (data, indices) = (of(0)?, of(1)?);
            let pick = |index: &Size| {
                let Size::Known(index) = index else { return None };
                let index = if *index < 0 { index + data.len() as i64 } else { *index };
                data.get(usize::try_from(index).ok()?).cloned()
            };
            indices.iter().map(pick).collect()
        }
        Op::Slice(op) => {
            let data = of(0)?;
            let one = |late: &Late, default: i64| match late.as_known()? {
                [] => Some(default),
                [n] => Some(*n),
                _ => None,
            };
            let (start, end) = (one(&op.starts, 0)?, one(&op.ends, i64::MAX)?);
            if one(&op.steps, 1)? != 1 || !is_axis_0(one(&op.axes, 0)?) || op.starts.as_known()?.is_empty() {
                return None;
            }
            let len = data.len() as i64;
            let clamp = |n: i64| (if n < 0 { n.saturating_add(len) } else { n }).clamp(0, len) as usize;
            Some(data.get(clamp(start)..clamp(end)).unwrap_or(&[]).to_vec())
        }
        Op::Concat(op) if is_axis_0(op.axis) => {
            let parts: Option<Vec<Vec<Size>>> = (0..ins.len()).map(of).collect();
            Some(parts?.concat())
        }
        // Between rank 0 and 1 the same integers.
        Op::Reshape(_) | Op::Squeeze(_) | Op::Unsqueeze(_) => of(0),
        Op::Elementwise(Elementwise { f: ScalarFn::Cast(DType::I32 | DType::I64) }) => {
            // A cast to fewer bits could wrap; sizes that large do not fit in memory.
            let fits = |s: &Size| !matches!(s, Size::Known(n) if i32::try_from(*n).is_err());
            of(0).filter(|sizes| sizes.iter().all(fits))
        }
        Op::Elementwise(Elementwise { f }) if ins.len() == 2 => {
            let (a, b) = (of(0)?, of(1)?);
            let len = if a.len() == 1 { b.len() } else { a.len() };
            if a.is_empty() || b.is_empty() || !(b.len() == 1 || b.len() == len) {
                return None;
            }
            (0..len).map(|i| combined(*f, &a[i % a.len()], &b[i % b.len()])).collect()
        }
        _ => None,
    }
}

fn combined(f: ScalarFn, a: &Size, b: &Size) -> Option<Size> {
    let (Size::Known(a), Size::Known(b)) = (a, b) else { return Some(Size::Unknown) };
    let result = match f {
        ScalarFn::Add => a.checked_add(*b),
        ScalarFn::Sub => a.checked_sub(*b),
        ScalarFn::Mul => a.checked_mul(*b),
        _ => return None,
    };
    // What would not fit in either type is left to run time.
    result.filter(|n| i32::try_from(*n).is_ok()).map(Size::Known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_shapes() {
        let known = |n| Size::Known(n);
        let named = |n: &str| Size::Named(n.into());
        let from = [Dim::named("batch"), Dim::named("seq"), Dim::Fixed(8)];
        let shape = |wanted: &[Size]| {
            let op = partial(wanted, &from, false)?;
            Some((op.shape.known().to_vec(), op.copy_zero))
        };
        assert_eq!(
            shape(&[named("batch"), named("seq"), known(2), known(4)]),
            Some((vec![0, 0, 2, 4], true))
        );
        assert_eq!(shape(&[Size::Unknown, known(8)]), Some((vec![-1, 8], false)));
        assert_eq!(shape(&[Size::Unknown, Size::Unknown]), None);
        assert_eq!(shape(&[Size::Unknown, known(-1)]), None);
        assert_eq!(shape(&[named("batch"), known(0)]), None);
        assert_eq!(shape(&[named("batch"), known(-1)]), Some((vec![0, -1], true)));
    }
}
