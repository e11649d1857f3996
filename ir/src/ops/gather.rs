//! `gather`, `gather_elements`, `gather_nd`: elements or slices at positions that the data gives.
//!
//! Positions are i32 or i64 and may count from the end. One outside is an error of evaluation;
//! lowered code clamps it, so that memory stays safe without a test per element.

use super::movement::{is_index, pick, position, wrap_position, wrap_positions, wrapped_index};
use super::vmap;
use super::{
    Concat, Iota, Lowered, OpDef, ScatterElements, ScatterNd, ScatterReduction, Vjp, VjpCx, Vmap, VmapCx,
    arity,
};
use crate::attrs::{AttrError, Codec, Slot};
use crate::error::{Error, Violation};
use crate::loops::{Index, NestBuilder};
use crate::require;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, normalize_axis, strides};

/// Slices of `data` along an axis at `indices`: the axis is replaced by the indices' dimensions.
///
/// - (C1) indices are i32 or i64;
/// - (C2) the axis lies within the data's rank.
///
/// ONNX: `Gather` (1..).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gather {
    /// The axis.
    pub axis: i64,
}

/// Elements of `data` where the position along an axis comes from `indices`, of the result's shape.
///
/// - (C1) indices are i32 or i64;
/// - (C2) the axis lies within the data's rank, which the indices have too;
/// - (C3) beside the axis no index dimension exceeds the data's.
///
/// ONNX: `GatherElements` (11..).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatherElements {
    /// The axis.
    pub axis: i64,
}

/// Slices of `data` at index tuples: the last dimension of `indices` holds positions along the data's
/// dimensions after the batch dimensions, which both share.
///
/// - (C1) indices are i32 or i64, of rank 1 or more, and their last size is known;
/// - (C2) there are fewer batch dimensions than either has dimensions, and they are equal;
/// - (C3) a tuple has at least one position and at most as many as there are dimensions left.
///
/// ONNX: `GatherND` (11..).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatherNd {
    /// The number of leading dimensions that both operands share.
    pub batch_dims: i64,
}

impl OpDef for Gather {
    const NAMES: &'static [&'static str] = &["gather"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] = &[("Gather", 1..=u32::MAX)];

    fn with_name(_: &str) -> Gather {
        Gather::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axis", Slot::Int(&mut self.axis))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 2..=2)?;
        let (data, indices) = (ins[0], ins[1]);
        require!(is_index(indices.dtype), "C1", "indices are {}, not i32 or i64", indices.dtype);
        let axis = normalize_axis(self.axis, data.rank());
        require!(axis.is_some(), "C2", "axis {} is outside {data}", self.axis);
        let (before, after) = data.dims.split_at(axis.unwrap_or(0));
        let dims = before.iter().chain(&indices.dims).chain(&after[1..]);
        Ok(vec![TensorType::new(data.dtype, dims.cloned())])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let (data, indices) = (&ins[0], &ins[1]);
        let shape = self.infer(&[&data.ty(), &indices.ty()]).map_err(|v| v.to_string())?.remove(0).shape();
        let axis = normalize_axis(self.axis, data.rank()).ok_or("the axis is outside the rank")?;
        let at = wrap_positions(indices, data.shape()[axis])?;
        let stride = strides(indices.shape());
        let mut source = data.shape().to_vec();
        let data_stride = strides(data.shape());
        Ok(vec![pick(&[data], &shape, |index| {
            let (before, rest) = index.split_at(axis);
            let (middle, after) = rest.split_at(indices.rank());
            source[..axis].copy_from_slice(before);
            source[axis] = at[position(middle, &stride)];
            source[axis + 1..].copy_from_slice(after);
            (0, position(&source, &data_stride))
        })])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (data, indices, g) = (cx.ins[0], cx.ins[1], cx.dout(0));
        let (shape, tuple) = (cx.shape(data), cx.shape(indices));
        let axis = normalize_axis(self.axis, shape.len()).expect("infer accepted the axis");
        // Slices under the indices that took them, added to a tensor whose first dimension is the axis.
        let (taken, rank) = (axis..axis + tuple.len(), cx.shape(g).len());
        let perm: Vec<usize> = taken.clone().chain(0..axis).chain(taken.end..rank).collect();
        let slices = cx.transpose(g, &perm)?;
        let first: Vec<usize> = [axis].into_iter().chain((0..shape.len()).filter(|&d| d != axis)).collect();
        let image: Vec<usize> = first.iter().map(|&d| shape[d]).collect();
        let zeros = cx.builder.constant(Tensor::zeros(cx.dtype(data), &image));
        let tuples: Vec<usize> = tuple.iter().copied().chain([1]).collect();
        let tuples = cx.reshape(indices, &tuples)?;
        let sum = cx.push(ScatterNd { reduction: ScatterReduction::Add }, &[zeros, tuples, slices])?;
        let mut back: Vec<usize> = (1..shape.len()).collect();
        back.insert(axis, 0);
        Ok(Vjp::Gradients(smallvec::smallvec![Some(cx.transpose(sum, &back)?), None]))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let axis = normalize_axis(self.axis, cx.rank(0)).expect("infer accepted the axis");
        let (data, indices) = (cx.ins[0], cx.ins[1]);
        if !cx.batched[1] {
            return cx.push(Gather { axis: axis as i64 + 1 }, &[data, indices]);
        }
        if !cx.batched[0] {
            // The batch is the first of the dimensions that replace the axis.
            let y = cx.builder.push1(self.clone(), &[data, indices])?;
            let perm: Vec<usize> =
                [axis].into_iter().chain((0..=cx.outs[0].rank()).filter(|&d| d != axis)).collect();
            return vmap::one(cx.builder.transpose(y, &perm)?);
        }
        let rank = cx.rank(0);
        let perm: Vec<usize> =
            [0, axis + 1].into_iter().chain((1..=rank).filter(|&d| d != axis + 1)).collect();
        let data = cx.builder.transpose(data, &perm)?;
        let mut tuples = cx.builder.ty(indices).shape();
        tuples.push(1);
        let indices = cx.builder.reshape(indices, &tuples)?;
        let y = cx.builder.push1(GatherNd { batch_dims: 1 }, &[data, indices])?;
        // The dimensions of the indices stand before all others.
        let along = tuples.len() - 2;
        let perm: Vec<usize> = [0]
            .into_iter()
            .chain((0..axis).map(|d| 1 + along + d))
            .chain(1..=along)
            .chain((axis..rank - 1).map(|d| 1 + along + d))
            .collect();
        vmap::one(cx.builder.transpose(y, &perm)?)
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let shape = ins[0].shape();
        if ins[0].as_len() == Some(0) {
            return Ok(Lowered::Interpret);
        }
        let axis = normalize_axis(self.axis, shape.len()).expect("infer accepted the axis");
        let mut n = NestBuilder::new(&outs[0].shape());
        let data = n.operand(ins[0].dtype, &shape);
        let indices = n.operand(ins[1].dtype, &ins[1].shape());
        let mut index = n.domain();
        let middle: Vec<Index> = index.drain(axis..axis + ins[1].rank()).collect();
        let raw = n.load(indices, &middle);
        index.insert(axis, wrapped_index(&mut n, raw, shape[axis]));
        let element = n.load(data, &index);
        Ok(Lowered::nest(n.finish(&[element])))
    }
}

impl OpDef for GatherElements {
    const NAMES: &'static [&'static str] = &["gather_elements"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] =
        &[("GatherElements", 11..=u32::MAX)];

    fn with_name(_: &str) -> GatherElements {
        GatherElements::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axis", Slot::Int(&mut self.axis))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 2..=2)?;
        let (data, indices) = (ins[0], ins[1]);
        require!(is_index(indices.dtype), "C1", "indices are {}, not i32 or i64", indices.dtype);
        let axis = normalize_axis(self.axis, data.rank());
        require!(axis.is_some(), "C2", "axis {} is outside {data}", self.axis);
        require!(indices.rank() == data.rank(), "C2", "{indices} has not the rank of {data}");
        for (d, (of, i)) in data.dims.iter().zip(&indices.dims).enumerate() {
            let fits = match (of.as_fixed(), i.as_fixed()) {
                (Some(size), Some(found)) => found <= size || Some(d) == axis,
                _ => true,
            };
            require!(fits, "C3", "{indices} exceeds {data} beside axis {}", self.axis);
        }
        Ok(vec![indices.with_dtype(data.dtype)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let (data, indices) = (&ins[0], &ins[1]);
        let axis = normalize_axis(self.axis, data.rank()).ok_or("the axis is outside the rank")?;
        let mut along = wrap_positions(indices, data.shape()[axis])?.into_iter();
        let stride = strides(data.shape());
        let mut source = data.shape().to_vec();
        Ok(vec![pick(&[data], indices.shape(), |index| {
            source.copy_from_slice(index);
            source[axis] = along.next().unwrap_or(0);
            (0, position(&source, &stride))
        })])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (data, g) = (cx.ins[0], cx.dout(0));
        let shape = cx.shape(data);
        let zeros = cx.builder.constant(Tensor::zeros(cx.dtype(data), &shape));
        let back = ScatterElements { axis: self.axis, reduction: ScatterReduction::Add };
        let sum = cx.push(back, &[zeros, cx.ins[1], g])?;
        Ok(Vjp::Gradients(smallvec::smallvec![Some(sum), None]))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let axis = cx.axis(self.axis, 0);
        let ins = cx.all_with_batch()?;
        cx.push(GatherElements { axis }, &ins)
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let shape = ins[0].shape();
        if ins[0].as_len() == Some(0) {
            return Ok(Lowered::Interpret);
        }
        let axis = normalize_axis(self.axis, shape.len()).expect("infer accepted the axis");
        let mut n = NestBuilder::new(&outs[0].shape());
        let data = n.operand(ins[0].dtype, &shape);
        let indices = n.operand(ins[1].dtype, &ins[1].shape());
        let mut index = n.domain();
        let raw = n.load(indices, &index);
        index[axis] = wrapped_index(&mut n, raw, shape[axis]);
        let element = n.load(data, &index);
        Ok(Lowered::nest(n.finish(&[element])))
    }
}

impl OpDef for GatherNd {
    const NAMES: &'static [&'static str] = &["gather_nd"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] = &[("GatherND", 11..=u32::MAX)];

    fn with_name(_: &str) -> GatherNd {
        GatherNd::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("batch_dims", Slot::Int(&mut self.batch_dims))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 2..=2)?;
        let (data, indices) = (ins[0], ins[1]);
        require!(is_index(indices.dtype), "C1", "indices are {}, not i32 or i64", indices.dtype);
        let tuple = indices.dims.last().and_then(Dim::as_fixed);
        require!(tuple.is_some(), "C1", "the number of positions in a tuple of {indices} is not known");
        let tuple = tuple.unwrap_or(0);
        let batch = usize::try_from(self.batch_dims).unwrap_or(usize::MAX);
        let fits = batch < data.rank().min(indices.rank());
        require!(fits, "C2", "{data} and {indices} do not have {} batch dimensions", self.batch_dims);
        let same = data.dims.iter().zip(&indices.dims).take(batch).all(|(a, b)| a.may_equal(b));
        require!(same, "C2", "the batch dimensions of {data} and {indices} differ");
        let left = data.rank() - batch;
        require!((1..=left).contains(&tuple), "C3", "tuples of {tuple} do not index {left} dimensions");
        let leading = &indices.dims[..indices.rank() - 1];
        let mut dims: Vec<Dim> = leading.to_vec();
        for (dim, other) in dims.iter_mut().zip(&data.dims).take(batch) {
            *dim = dim.meet(other);
        }
        dims.extend(data.dims[batch + tuple..].iter().cloned());
        Ok(vec![TensorType::new(data.dtype, dims)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let (data, indices) = (&ins[0], &ins[1]);
        let shape = self.infer(&[&data.ty(), &indices.ty()]).map_err(|v| v.to_string())?.remove(0).shape();
        let batch = self.batch_dims as usize;
        let leading = indices.rank() - 1;
        let tuple = indices.shape()[leading];
        let raw = indices.to_ints();
        let wrap = |(i, &at): (usize, &i64)| wrap_position(at, data.shape()[batch + i % tuple]);
        let along: Vec<usize> = raw.iter().enumerate().map(wrap).collect::<Result<_, _>>()?;
        let (stride, data_stride) = (strides(indices.shape()), strides(data.shape()));
        let mut source = data.shape().to_vec();
        Ok(vec![pick(&[data], &shape, |index| {
            let (at, rest) = index.split_at(leading);
            let first = position(at, &stride);
            source[..batch].copy_from_slice(&at[..batch]);
            source[batch..batch + tuple].copy_from_slice(&along[first..first + tuple]);
            source[batch + tuple..].copy_from_slice(rest);
            (0, position(&source, &data_stride))
        })])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (data, mut indices, g) = (cx.ins[0], cx.ins[1], cx.dout(0));
        let (shape, tuples) = (cx.shape(data), cx.shape(indices));
        if self.batch_dims > 0 {
            // Positions along the batch dimensions as parts of each tuple.
            let mut one = tuples.clone();
            one[tuples.len() - 1] = 1;
            let mut parts = Vec::new();
            for axis in 0..self.batch_dims {
                let sizes: Vec<i64> = one.iter().map(|&n| n as i64).collect();
                let iota = Iota { shape: sizes.into(), axis, dtype: cx.dtype(indices) };
                parts.push(cx.push(iota, &[])?);
            }
            parts.push(indices);
            indices = cx.push(Concat { axis: -1 }, &parts)?;
        }
        let zeros = cx.builder.constant(Tensor::zeros(cx.dtype(data), &shape));
        let sum = cx.push(ScatterNd { reduction: ScatterReduction::Add }, &[zeros, indices, g])?;
        Ok(Vjp::Gradients(smallvec::smallvec![Some(sum), None]))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        if !cx.batched[0] && self.batch_dims == 0 {
            return cx.push(self.clone(), cx.ins);
        }
        let ins = cx.all_with_batch()?;
        cx.push(GatherNd { batch_dims: self.batch_dims + 1 }, &ins)
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let shape = ins[0].shape();
        if ins[0].as_len() == Some(0) {
            return Ok(Lowered::Interpret);
        }
        let batch = self.batch_dims as usize;
        let leading = ins[1].rank() - 1;
        let tuple = ins[1].shape()[leading];
        let mut n = NestBuilder::new(&outs[0].shape());
        let data = n.operand(ins[0].dtype, &shape);
        let indices = n.operand(ins[1].dtype, &ins[1].shape());
        let domain = n.domain();
        let (at, rest) = domain.split_at(leading);
        let mut index: Vec<Index> = at[..batch].to_vec();
        for (i, &size) in shape[batch..batch + tuple].iter().enumerate() {
            let place: Vec<Index> = at.iter().cloned().chain([Index::constant(i as i64)]).collect();
            let raw = n.load(indices, &place);
            index.push(wrapped_index(&mut n, raw, size));
        }
        index.extend(rest.iter().cloned());
        let element = n.load(data, &index);
        Ok(Lowered::nest(n.finish(&[element])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix() -> Tensor {
        Tensor::new(&[2, 3], &[1i32, 2, 3, 4, 5, 6])
    }

    #[test]
    fn gather_takes_slices() {
        let at = Tensor::new(&[2, 1], &[-1i64, 0]);
        let y = Gather { axis: 1 }.eval(&[matrix(), at]).unwrap().remove(0);
        assert_eq!(y, Tensor::new(&[2, 2, 1], &[3i32, 1, 6, 4]));
        let y = Gather { axis: 0 }.eval(&[matrix(), Tensor::scalar(-1i32)]).unwrap().remove(0);
        assert_eq!(y, Tensor::new(&[3], &[4i32, 5, 6]));
        assert!(Gather { axis: 0 }.eval(&[matrix(), Tensor::scalar(2i64)]).is_err());
        assert!(Gather { axis: 0 }.eval(&[matrix(), Tensor::scalar(i64::MIN)]).is_err());
    }

    #[test]
    fn gather_elements_takes_one_each() {
        let at = Tensor::new(&[1, 2], &[1i64, -2]);
        let y = GatherElements { axis: 0 }.eval(&[matrix(), at]).unwrap().remove(0);
        assert_eq!(y, Tensor::new(&[1, 2], &[4i32, 2]));
    }

    #[test]
    fn gather_nd_takes_tuples() {
        let at = Tensor::new(&[2, 2], &[0i64, 1, -1, -1]);
        let y = GatherNd::default().eval(&[matrix(), at]).unwrap().remove(0);
        assert_eq!(y, Tensor::new(&[2], &[2i32, 6]));
        let at = Tensor::new(&[2, 1], &[2i64, 0]);
        let y = GatherNd { batch_dims: 1 }.eval(&[matrix(), at]).unwrap().remove(0);
        assert_eq!(y, Tensor::new(&[2], &[3i32, 4]));
    }
}
