//! `scatter_elements` and `scatter_nd`: a copy of a tensor with updates written, or combined, at
//! positions that the data gives.
//!
//! Updates apply one after another in row-major order, so where positions repeat the last one wins
//! or all combine. A position outside is an error of evaluation; lowered code clamps it.

use super::movement::{each_index, is_index, position, wrap_position, wrap_positions};
use super::{Concat, GatherElements, GatherNd, Gradients, Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Keyword, Slot};
use crate::dtype::{DType, Element};
use crate::error::{Error, Violation};
use crate::graph::Value;
use crate::loops::{Buffer, Index, Kernel, KernelBuilder, LoopKind, Rhs, Role, Val};
use crate::scalar::{self, Operand, ScalarFn};
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, normalize_axis, strides};
use crate::{require, with_element};

/// How an update meets the element that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ScatterReduction {
    /// It replaces it.
    #[default]
    None,
    /// Their sum.
    Add,
    /// Their product.
    Mul,
    /// The larger.
    Max,
    /// The smaller.
    Min,
}

impl Keyword for ScatterReduction {
    const ALL: &'static [(&'static str, ScatterReduction)] = &[
        ("none", ScatterReduction::None),
        ("add", ScatterReduction::Add),
        ("mul", ScatterReduction::Mul),
        ("max", ScatterReduction::Max),
        ("min", ScatterReduction::Min),
    ];
}

impl ScatterReduction {
    /// The scalar function that combines, if one does.
    fn combine(self) -> Option<ScalarFn> {
        match self {
            ScatterReduction::None => None,
            ScatterReduction::Add => Some(ScalarFn::Add),
            ScatterReduction::Mul => Some(ScalarFn::Mul),
            ScatterReduction::Max => Some(ScalarFn::Max),
            ScatterReduction::Min => Some(ScalarFn::Min),
        }
    }
}

/// `data` with each update at its own index, but along the axis at the position `indices` gives.
///
/// - (C1) indices are i32 or i64, updates are of the data's type, a number if they combine;
/// - (C2) the axis lies within the data's rank, which indices and updates have too;
/// - (C3) indices and updates have one shape, which beside the axis does not exceed the data's.
///
/// ONNX: `Scatter` (9..=10), `ScatterElements` (11..).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScatterElements {
    /// The axis.
    pub axis: i64,
    /// How updates meet what is there.
    pub reduction: ScatterReduction,
}

/// `data` with slices updated: the last dimension of `indices` holds positions along the data's first
/// dimensions, and `updates` has a slice of the rest for each such tuple.
///
/// - (C1) indices are i32 or i64, of rank 1 or more with a known last size; updates are of the data's
///   type, a number if they combine;
/// - (C2) a tuple has at most as many positions as the data has dimensions;
/// - (C3) the updates' shape is that of the indices without their last dimension, then that of a slice.
///
/// ONNX: `ScatterND` (11..).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScatterNd {
    /// How updates meet what is there.
    pub reduction: ScatterReduction,
}

/// Reads a tensor where updates go.
type Take<'a> = &'a dyn Fn(&mut VjpCx<'_>, Value) -> Result<Value, Error>;
/// Writes updates to a tensor.
type Put<'a> = &'a dyn Fn(&mut VjpCx<'_>, Value, Value, ScatterReduction) -> Result<Value, Error>;

impl ScatterReduction {
    /// The gradients of a scatter, whose indices `take` and `put` know.
    fn vjp(self, cx: &mut VjpCx<'_>, take: Take<'_>, put: Put<'_>) -> Result<Vjp, Error> {
        let (data, updates, g) = (cx.ins[0], cx.ins[2], cx.dout(0));
        let (image, spots) = (cx.builder.ty(data).clone(), cx.builder.ty(updates).clone());
        let mut gradients = Gradients::from_elem(None, 3);
        match self {
            ScatterReduction::Add => {
                gradients[0] = Some(g);
                gradients[2] = Some(take(cx, g)?);
            }
            ScatterReduction::None => {
                let nothing = cx.builder.constant(Tensor::zeros(spots.dtype, &spots.shape()));
                gradients[0] = Some(put(cx, g, nothing, self)?);
                // Of the updates to one place, the last in row-major order counts.
                let count = spots.shape().iter().product::<usize>();
                let number = Tensor::from_fn::<i64>(&spots.shape(), |i| i as i64);
                let number = cx.builder.constant(number);
                let nobody = cx.builder.constant(Tensor::from_fn::<i64>(&image.shape(), |_| count as i64));
                let winners = put(cx, nobody, number, self)?;
                let winner = take(cx, winners)?;
                let won = cx.map(ScalarFn::Eq, &[winner, number])?;
                let flow = take(cx, g)?;
                gradients[2] = Some(cx.masked(won, flow)?);
            }
            // All that are as extreme share alike.
            ScatterReduction::Max | ScatterReduction::Min => {
                let best = cx.outs[0];
                let kept = cx.map(ScalarFn::Eq, &[data, best])?;
                let there = take(cx, best)?;
                let won = cx.map(ScalarFn::Eq, &[updates, there])?;
                let cast = ScalarFn::Cast(image.dtype);
                let (own, others) = (cx.map(cast, &[kept])?, cx.map(cast, &[won])?);
                let count = put(cx, own, others, ScatterReduction::Add)?;
                let share = cx.map(ScalarFn::Div, &[g, count])?;
                gradients[0] = Some(cx.masked(kept, share)?);
                let share = take(cx, share)?;
                gradients[2] = Some(cx.masked(won, share)?);
            }
            // The product of all other factors of a place: of all but one if none of them is 0, of all but the
            // zero if there is one.
            ScatterReduction::Mul => {
                let cast = ScalarFn::Cast(image.dtype);
                let parts = |cx: &mut VjpCx<'_>, factor: Value| -> Result<[Value; 3], Error> {
                    let none = cx.with_constant(ScalarFn::Eq, factor, 0.0)?;
                    let one = cx.builder.scalar_like(factor, 1.0);
                    let nonzero = cx.map(ScalarFn::Select, &[none, one, factor])?;
                    Ok([none, nonzero, cx.map(cast, &[none])?])
                };
                let [no_data, data, data_count] = parts(cx, data)?;
                let [no_update, update, update_count] = parts(cx, updates)?;
                let product = put(cx, data, update, self)?;
                let zeros = put(cx, data_count, update_count, ScatterReduction::Add)?;
                let flow = cx.map(ScalarFn::Mul, &[g, product])?;
                let taken = [take(cx, flow)?, take(cx, zeros)?];
                for (i, own, none, factor, [flow, zeros]) in [
                    (0, data_count, no_data, data, [flow, zeros]),
                    (2, update_count, no_update, update, taken),
                ] {
                    let others = cx.map(ScalarFn::Sub, &[zeros, own])?;
                    let alone = cx.with_constant(ScalarFn::Eq, others, 0.0)?;
                    let rest = cx.map(ScalarFn::Div, &[flow, factor])?;
                    let rest = cx.map(ScalarFn::Select, &[none, flow, rest])?;
                    gradients[i] = Some(cx.masked(alone, rest)?);
                }
            }
        }
        Ok(Vjp::Gradients(gradients))
    }
}

fn check_types(ins: &[&TensorType], reduction: ScatterReduction) -> Result<(), Violation> {
    arity(ins, 3..=3)?;
    let (data, indices, updates) = (ins[0], ins[1], ins[2]);
    require!(is_index(indices.dtype), "C1", "indices are {}, not i32 or i64", indices.dtype);
    require!(updates.dtype == data.dtype, "C1", "updates are {}, data is {}", updates.dtype, data.dtype);
    let combines = reduction == ScatterReduction::None || data.dtype != DType::Bool;
    require!(combines, "C1", "{} does not combine {}", reduction.word(), data.dtype);
    Ok(())
}

/// Applies updates: for each, where it goes and which one it is.
fn apply(data: &Tensor, updates: &Tensor, reduction: ScatterReduction, moves: &[(usize, usize)]) -> Tensor {
    fn operand<T: Element>(x: T) -> Operand {
        match T::DTYPE.is_float() {
            true => Operand::Float(x.to_f64()),
            false => Operand::Int(x.to_i128()),
        }
    }
    let mut out = data.clone();
    with_element!(data.dtype(), T => {
        let (slots, updates) = (out.as_mut_slice::<T>(), updates.as_slice::<T>());
        for &(to, from) in moves {
            slots[to] = match reduction.combine() {
                None => updates[from],
                Some(f) => match scalar::eval(f, T::DTYPE, &[operand(slots[to]), operand(updates[from])]) {
                    Operand::Float(x) => <T as Element>::from_f64(x),
                    Operand::Int(x) => T::from_i128(x),
                },
            };
        }
    });
    out
}

/// Loops that copy the data, then run over the updates; `place` gives where one goes.
fn kernel(
    name: &str,
    types: &[TensorType],
    reduction: ScatterReduction,
    place: impl FnOnce(&mut KernelBuilder, Buffer, &[Index]) -> Index,
) -> Kernel {
    let len = |ty: &TensorType| ty.shape().iter().product::<usize>();
    let mut b = KernelBuilder::new(name);
    let data = b.buffer("data", types[0].dtype, len(&types[0]), Role::In);
    let indices = b.buffer("indices", types[1].dtype, len(&types[1]), Role::In);
    let updates = b.buffer("updates", types[2].dtype, len(&types[2]), Role::In);
    let role = if reduction == ScatterReduction::None { Role::Out } else { Role::InOut };
    let out = b.buffer("out", types[0].dtype, len(&types[0]), role);
    b.repeat(LoopKind::Vector, len(&types[0]), |b, i| {
        let element = b.load(data, i.clone());
        b.store(out, i, element);
    });
    let shape = types[2].shape();
    nested(&mut b, &shape, &mut Vec::new(), |b, index| {
        let to = place(b, indices, index);
        let update = b.load(updates, Index::flatten(index, &shape));
        let result = match reduction.combine() {
            None => update,
            Some(f) => {
                let there = b.load(out, to.clone());
                b.apply(f, &[there, update])
            }
        };
        b.store(out, to, result);
    });
    b.finish()
}

/// Serial loops over a shape around what `body` builds.
fn nested(
    b: &mut KernelBuilder,
    shape: &[usize],
    index: &mut Vec<Index>,
    body: impl FnOnce(&mut KernelBuilder, &[Index]),
) {
    // Boxed so that the recursion, as deep as the rank, has one type.
    fn go(
        b: &mut KernelBuilder,
        shape: &[usize],
        index: &mut Vec<Index>,
        body: Box<dyn FnOnce(&mut KernelBuilder, &[Index]) + '_>,
    ) {
        match shape.split_first() {
            None => body(b, index),
            Some((&n, rest)) => b.repeat(LoopKind::Serial, n, |b, i| {
                index.push(i);
                go(b, rest, index, body);
            }),
        }
    }
    go(b, shape, index, Box::new(body));
}

/// A loaded index that may count from the end, clamped to `0..extent`.
fn wrapped(b: &mut KernelBuilder, raw: Val, extent: usize) -> Index {
    let int = |b: &mut KernelBuilder, value: i64| b.define(DType::I64, Rhs::Const(value as u64));
    let raw = match b.dtype(raw) {
        DType::I64 => raw,
        _ => b.apply(ScalarFn::Cast(DType::I64), &[raw]),
    };
    let (zero, size, last) = (int(b, 0), int(b, extent as i64), int(b, extent as i64 - 1));
    let negative = b.apply(ScalarFn::Lt, &[raw, zero]);
    let from_end = b.apply(ScalarFn::Add, &[raw, size]);
    let at = b.apply(ScalarFn::Select, &[negative, from_end, raw]);
    let raised = b.apply(ScalarFn::Max, &[at, zero]);
    Index::value(b.apply(ScalarFn::Min, &[raised, last]), extent)
}

/// Empty operands leave loops nothing to do, or a position nowhere to be: the interpreter decides.
fn has_empty(types: &[TensorType]) -> bool {
    types.iter().any(|ty| ty.as_len() == Some(0))
}

impl OpDef for ScatterElements {
    const NAMES: &'static [&'static str] = &["scatter_elements"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] =
        &[("Scatter", 9..=10), ("ScatterElements", 11..=u32::MAX)];

    fn with_name(_: &str) -> ScatterElements {
        ScatterElements::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axis", Slot::Int(&mut self.axis))?;
        codec.attr("reduction", Slot::Keyword(&mut self.reduction))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        check_types(ins, self.reduction)?;
        let (data, indices, updates) = (ins[0], ins[1], ins[2]);
        let axis = normalize_axis(self.axis, data.rank());
        require!(axis.is_some(), "C2", "axis {} is outside {data}", self.axis);
        let ranks = indices.rank() == data.rank() && updates.rank() == data.rank();
        require!(ranks, "C2", "{indices} and {updates} have not the rank of {data}");
        let same = indices.dims.iter().zip(&updates.dims).all(|(a, b)| a.may_equal(b));
        require!(same, "C3", "{indices} and {updates} differ in shape");
        for (d, (of, i)) in data.dims.iter().zip(&indices.dims).enumerate() {
            let fits = match (of.as_fixed(), i.as_fixed()) {
                (Some(size), Some(found)) => found <= size || Some(d) == axis,
                _ => true,
            };
            require!(fits, "C3", "{indices} exceeds {data} beside axis {}", self.axis);
        }
        Ok(vec![data.clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let (data, indices, updates) = (&ins[0], &ins[1], &ins[2]);
        let axis = normalize_axis(self.axis, data.rank()).ok_or("the axis is outside the rank")?;
        let along = wrap_positions(indices, data.shape()[axis])?;
        let stride = strides(data.shape());
        let mut moves = Vec::with_capacity(along.len());
        let mut to = data.shape().to_vec();
        each_index(indices.shape(), |index| {
            to.copy_from_slice(index);
            to[axis] = along[moves.len()];
            moves.push((position(&to, &stride), moves.len()));
        });
        Ok(vec![apply(data, updates, self.reduction, &moves)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let take =
            |cx: &mut VjpCx<'_>, data: Value| cx.push(GatherElements { axis: self.axis }, &[data, cx.ins[1]]);
        let put = |cx: &mut VjpCx<'_>, data, updates, reduction| {
            cx.push(ScatterElements { reduction, ..self.clone() }, &[data, cx.ins[1], updates])
        };
        self.reduction.vjp(cx, &take, &put)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let axis = cx.axis(self.axis, 0);
        let ins = cx.all_with_batch()?;
        cx.push(ScatterElements { axis, ..self.clone() }, &ins)
    }

    fn lower(&self, ins: &[TensorType], _: &[TensorType]) -> Result<Lowered, Error> {
        if has_empty(ins) {
            return Ok(Lowered::Interpret);
        }
        let shape = ins[0].shape();
        let axis = normalize_axis(self.axis, shape.len()).expect("infer accepted the axis");
        let kernel = kernel("scatter_elements", ins, self.reduction, |b, indices, index| {
            let raw = b.load(indices, Index::flatten(index, &ins[1].shape()));
            let mut to = index.to_vec();
            to[axis] = wrapped(b, raw, shape[axis]);
            Index::flatten(&to, &shape)
        });
        Ok(Lowered::Kernel(Box::new(kernel)))
    }
}

impl OpDef for ScatterNd {
    const NAMES: &'static [&'static str] = &["scatter_nd"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] = &[("ScatterND", 11..=u32::MAX)];

    fn with_name(_: &str) -> ScatterNd {
        ScatterNd::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("reduction", Slot::Keyword(&mut self.reduction))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        check_types(ins, self.reduction)?;
        let (data, indices, updates) = (ins[0], ins[1], ins[2]);
        let tuple = indices.dims.last().and_then(Dim::as_fixed);
        require!(tuple.is_some(), "C1", "the number of positions in a tuple of {indices} is not known");
        let tuple = tuple.unwrap_or(0);
        require!(tuple <= data.rank(), "C2", "tuples of {tuple} do not index {data}");
        let expected: Vec<&Dim> =
            indices.dims[..indices.rank() - 1].iter().chain(&data.dims[tuple..]).collect();
        let fits = expected.len() == updates.rank()
            && expected.iter().zip(&updates.dims).all(|(a, b)| a.may_equal(b));
        require!(fits, "C3", "updates {updates} do not fit {indices} and slices of {data}");
        Ok(vec![data.clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let (data, indices, updates) = (&ins[0], &ins[1], &ins[2]);
        let tuple = indices.shape()[indices.rank() - 1];
        let count: usize = indices.shape()[..indices.rank() - 1].iter().product();
        let slice: usize = data.shape()[tuple..].iter().product();
        let stride = strides(data.shape());
        let raw = indices.to_ints();
        let mut moves = Vec::with_capacity(count * slice);
        for row in 0..count {
            let mut start = 0;
            for d in 0..tuple {
                start += wrap_position(raw[row * tuple + d], data.shape()[d])? * stride[d];
            }
            moves.extend((0..slice).map(|i| (start + i, row * slice + i)));
        }
        Ok(vec![apply(data, updates, self.reduction, &moves)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let take = |cx: &mut VjpCx<'_>, data: Value| cx.push(GatherNd { batch_dims: 0 }, &[data, cx.ins[1]]);
        let put = |cx: &mut VjpCx<'_>, data, updates, reduction| {
            cx.push(ScatterNd { reduction }, &[data, cx.ins[1], updates])
        };
        self.reduction.vjp(cx, &take, &put)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let mut ins = cx.all_with_batch()?;
        // A tuple starts with the number of its example.
        let ty = cx.builder.ty(ins[1]).clone();
        let mut shape = ty.shape();
        let last = shape.len() - 1;
        shape[last] = 1;
        let numbers = cx.numbers(ty.dtype, shape.len())?;
        let numbers = cx.builder.broadcast(numbers, &shape)?;
        ins[1] = cx.builder.push1(Concat { axis: last as i64 }, &[numbers, ins[1]])?;
        cx.push(self.clone(), &ins)
    }

    fn lower(&self, ins: &[TensorType], _: &[TensorType]) -> Result<Lowered, Error> {
        if has_empty(ins) {
            return Ok(Lowered::Interpret);
        }
        let (shape, tuples) = (ins[0].shape(), ins[1].shape());
        let leading = tuples.len() - 1;
        let kernel = kernel("scatter_nd", ins, self.reduction, |b, indices, index| {
            let (row, rest) = index.split_at(leading);
            let mut to = Vec::new();
            for d in 0..tuples[leading] {
                let place: Vec<Index> = row.iter().cloned().chain([Index::constant(d as i64)]).collect();
                let raw = b.load(indices, Index::flatten(&place, &tuples));
                to.push(wrapped(b, raw, shape[d]));
            }
            to.extend(rest.iter().cloned());
            Index::flatten(&to, &shape)
        });
        Ok(Lowered::Kernel(Box::new(kernel)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_update_wins() {
        let data = Tensor::new(&[1, 4], &[1i32, 2, 3, 4]);
        let at = Tensor::new(&[1, 3], &[-1i64, 0, 3]);
        let updates = Tensor::new(&[1, 3], &[10i32, 20, 30]);
        let op = ScatterElements { axis: 1, reduction: ScatterReduction::None };
        let y = op.eval(&[data.clone(), at.clone(), updates.clone()]).unwrap().remove(0);
        assert_eq!(y.to_ints(), [20, 2, 3, 30]);
        let op = ScatterElements { axis: 1, reduction: ScatterReduction::Add };
        assert_eq!(op.eval(&[data, at, updates]).unwrap()[0].to_ints(), [21, 2, 3, 44]);
    }

    #[test]
    fn slices_are_replaced() {
        let data = Tensor::new(&[3, 2], &[1i8, 2, 3, 4, 5, 6]);
        let at = Tensor::new(&[2, 1], &[2i32, 0]);
        let updates = Tensor::new(&[2, 2], &[7i8, 8, -9, 9]);
        let op = ScatterNd { reduction: ScatterReduction::Min };
        assert_eq!(op.eval(&[data.clone(), at, updates]).unwrap()[0].to_ints(), [-9, 2, 3, 4, 5, 6]);
        let none = Tensor::zeros(DType::I64, &[0, 2]);
        let y = op.eval(&[data.clone(), none, Tensor::zeros(DType::I8, &[0])]).unwrap().remove(0);
        assert_eq!(y, data);
    }

    #[test]
    fn positions_outside_are_refused() {
        let (data, updates) = (Tensor::zeros(DType::F16, &[3]), Tensor::zeros(DType::F16, &[1]));
        let op = ScatterElements::default();
        assert!(op.eval(&[data, Tensor::new(&[1], &[3i64]), updates]).is_err());
    }
}
