//! `transpose`: dimensions in another order.

use super::vjp;
use super::{Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::loops::{Index, NestBuilder};
use crate::ops::Op;
use crate::require;
use crate::tensor::Tensor;
use crate::types::{Shape, TensorType, strides};

/// Dimension `d` of the result is dimension `perm[d]` of the operand.
///
/// - (C1) `perm` is a permutation of the operand's dimensions; empty means reversed order.
///
/// ONNX: `Transpose` (1..).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transpose {
    /// Where each dimension of the result comes from.
    pub perm: Vec<i64>,
}

impl Transpose {
    /// By a permutation.
    pub fn by(perm: &[usize]) -> Transpose {
        Transpose { perm: perm.iter().map(|&p| p as i64).collect() }
    }

    /// The permutation for an operand of this rank.
    pub fn perm(&self, rank: usize) -> Vec<usize> {
        match self.perm.is_empty() {
            true => (0..rank).rev().collect(),
            false => self.perm.iter().map(|&p| p as usize).collect(),
        }
    }
}

impl OpDef for Transpose {
    const NAMES: &'static [&'static str] = &["transpose"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] = &[("Transpose", 1..=u32::MAX)];

    fn with_name(_: &str) -> Transpose {
        Transpose::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("perm", Slot::Ints(&mut self.perm))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=1)?;
        let rank = ins[0].rank();
        if !self.perm.is_empty() {
            let mut sorted = self.perm.clone();
            sorted.sort_unstable();
            let whole = sorted.iter().copied().eq(0..rank as i64);
            require!(whole, "C1", "{:?} is not a permutation of the dimensions of {}", self.perm, ins[0]);
        }
        let dims: Vec<_> = self.perm(rank).into_iter().map(|p| ins[0].dims[p].clone()).collect();
        Ok(vec![TensorType::new(ins[0].dtype, dims)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let perm = self.perm(x.rank());
        let shape: Shape = perm.iter().map(|&p| x.shape()[p]).collect();
        let stride = strides(x.shape());
        let stride: Shape = perm.iter().map(|&p| stride[p]).collect();
        Ok(vec![gather_strided(x, &shape, &stride)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let g = cx.dout(0);
        let mut inverse = self.perm(cx.shape(g).len());
        for (from, to) in self.perm(inverse.len()).into_iter().enumerate() {
            inverse[to] = from;
        }
        vjp::one(cx.transpose(g, &inverse)?)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let perm = self.perm(cx.rank(0));
        let perm: Vec<usize> = [0].into_iter().chain(perm.into_iter().map(|p| p + 1)).collect();
        cx.along(Transpose::by(&perm))
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let mut n = NestBuilder::new(&outs[0].shape());
        let operand = n.operand(ins[0].dtype, &ins[0].shape());
        let mut index = vec![Index::constant(0); ins[0].rank()];
        for (i, p) in n.domain().into_iter().zip(self.perm(ins[0].rank())) {
            index[p] = i;
        }
        let element = n.load(operand, &index);
        Ok(Lowered::nest(n.finish(&[element])))
    }

    fn simplify(&self, b: &mut Builder, ins: &[Value]) -> Result<Option<Values>, Error> {
        let perm = self.perm(b.ty(ins[0]).rank());
        if perm.iter().copied().eq(0..perm.len()) {
            return Ok(Some(Values::from_slice(&[ins[0]])));
        }
        // transpose(transpose(x, q), p) = transpose(x, q[p])
        if let Some(producer) = b.graph().def_node(ins[0])
            && let Op::Transpose(inner) = &*producer.op
        {
            let inner = inner.perm(perm.len());
            let composed: Vec<usize> = perm.iter().map(|&p| inner[p]).collect();
            let source = producer.ins[0];
            return Ok(Some(Values::from_slice(&[b.push1(Transpose::by(&composed), &[source])?])));
        }
        Ok(None)
    }
}

/// The tensor of `shape` whose element at an index is `x`'s element at the dot product with `stride`.
pub(crate) fn gather_strided(x: &Tensor, shape: &[usize], stride: &[usize]) -> Tensor {
    // Elements move as unsigned integers of their size, so five loops serve every type.
    fn run<T: Copy + bytemuck::Pod>(from: &[u8], to: &mut [u8], shape: &[usize], stride: &[usize]) {
        let (from, to): (&[T], &mut [T]) = (bytemuck::cast_slice(from), bytemuck::cast_slice_mut(to));
        let (Some(&inner), Some(&step)) = (shape.last(), stride.last()) else {
            to.copy_from_slice(&from[..1]);
            return;
        };
        let mut index: Shape = shape.iter().map(|_| 0).collect();
        let mut base = 0;
        for row in to.chunks_exact_mut(inner.max(1)) {
            for (j, slot) in row.iter_mut().enumerate() {
                *slot = from[base + j * step];
            }
            for d in (0..shape.len() - 1).rev() {
                index[d] += 1;
                base += stride[d];
                if index[d] < shape[d] {
                    break;
                }
                base -= stride[d] * shape[d];
                index[d] = 0;
            }
        }
    }
    let mut out = Tensor::zeros(x.dtype(), shape);
    if out.is_empty() {
        return out;
    }
    match x.dtype().size() {
        1 => run::<u8>(x.bytes(), out.bytes_mut(), shape, stride),
        2 => run::<u16>(x.bytes(), out.bytes_mut(), shape, stride),
        4 => run::<u32>(x.bytes(), out.bytes_mut(), shape, stride),
        _ => run::<u64>(x.bytes(), out.bytes_mut(), shape, stride),
    }
    debug_assert!(DType::ALL.iter().all(|d| matches!(d.size(), 1 | 2 | 4 | 8)));
    out
}
