//! `matmul`: matrix products over broadcast batch dimensions.

use super::vmap;
use super::{Gradients, Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::{DType, Element};
use crate::error::{Error, Violation};
use crate::graph::Value;
use crate::loops::{Index, NestBuilder, Reduction};
use crate::ops::elementwise::broadcast_index;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, Shape, TensorType, broadcast_dims};
use crate::{require, with_element};

/// The matrix product of the last two dimensions, over leading dimensions that broadcast.
///
/// `a` is `[.., m, k]` (or `[.., k, m]` with `trans_a`), `b` is `[.., k, n]` (or `[.., n, k]`), the
/// result `[.., m, n]`. Each element is accumulated over k in ascending order; f16 and bf16 in f32,
/// rounded once. Vectors are not promoted: the importer inserts the dimensions of 1.
///
/// - (C1) both are numeric, of one element type;
/// - (C2) both have rank 2 or more;
/// - (C3) the contracted dimensions are equal;
/// - (C4) the leading dimensions broadcast.
///
/// ONNX: `MatMul` (1..) and `Gemm` (1..), by their own importers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MatMul {
    /// Whether `a`'s last two dimensions are swapped.
    pub trans_a: bool,
    /// Whether `b`'s last two dimensions are swapped.
    pub trans_b: bool,
}

/// The batch dimensions of a matrix operand, then its rows and columns after any transposition.
fn split(ty: &TensorType, trans: bool) -> (&[Dim], Dim, Dim) {
    let (batch, matrix) = ty.dims.split_at(ty.rank() - 2);
    match trans {
        false => (batch, matrix[0].clone(), matrix[1].clone()),
        true => (batch, matrix[1].clone(), matrix[0].clone()),
    }
}

/// Matrices below one another as one.
fn as_rows(cx: &mut VjpCx<'_>, x: Value) -> Result<Value, Error> {
    let shape = cx.shape(x);
    let (&columns, rows) = shape.split_last().expect("it is a matrix");
    cx.reshape(x, &[rows.iter().product(), columns])
}

impl OpDef for MatMul {
    const NAMES: &'static [&'static str] = &["matmul"];

    fn with_name(_: &str) -> MatMul {
        MatMul::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("trans_a", Slot::Bool(&mut self.trans_a))?;
        codec.attr("trans_b", Slot::Bool(&mut self.trans_b))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 2..=2)?;
        let (a, b) = (ins[0], ins[1]);
        require!(
            a.dtype == b.dtype && a.dtype != DType::Bool,
            "C1",
            "{a} and {b} are not of one numeric type"
        );
        require!(a.rank() >= 2 && b.rank() >= 2, "C2", "{a} and {b} are not both matrices");
        let (batch_a, m, k) = split(a, self.trans_a);
        let (batch_b, other_k, n) = split(b, self.trans_b);
        require!(k.may_equal(&other_k), "C3", "{a} and {b} contract {k} with {other_k}");
        let batch = broadcast_dims(batch_a, batch_b);
        require!(batch.is_some(), "C4", "the leading dimensions of {a} and {b} do not broadcast");
        let dims = batch.unwrap_or_default().into_iter().chain([m, n]);
        Ok(vec![TensorType::new(a.dtype, dims)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let (a, b) = (&ins[0], &ins[1]);
        let out = self.infer(&[&a.ty(), &b.ty()]).map_err(|v| v.to_string())?.remove(0).shape();
        let (batch, matrix) = out.split_at(out.len() - 2);
        let (m, n) = (matrix[0], matrix[1]);
        let k = a.shape()[a.rank() - if self.trans_a { 2 } else { 1 }];
        // Where the batch's linear position falls in an operand with fewer or smaller dimensions.
        let start = |shape: &[usize], mut linear: usize| {
            let own = &shape[..shape.len() - 2];
            let mut at = 0;
            let mut stride = m_by_n(shape);
            for d in (0..batch.len()).rev() {
                let i = linear % batch[d];
                linear /= batch[d];
                if let Some(o) = (d + own.len()).checked_sub(batch.len()) {
                    at += if own[o] == 1 { 0 } else { i * stride };
                    stride *= own[o];
                }
            }
            at
        };
        let (row_a, step_a) = if self.trans_a { (1, m) } else { (k, 1) };
        let (step_b, col_b) = if self.trans_b { (1, k) } else { (n, 1) };
        let positions = move |i: usize| {
            let (at_batch, row, col) = (i / (m * n), i / n % m, i % n);
            (at_batch, row * row_a, col * col_b)
        };
        let result = if a.dtype().is_float() {
            let (x, y) = (a.to_f64s(), b.to_f64s());
            let element = |i: usize| {
                let (at_batch, row, col) = positions(i);
                let (sa, sb) = (start(a.shape(), at_batch) + row, start(b.shape(), at_batch) + col);
                (0..k).map(|k| x[sa + k * step_a] * y[sb + k * step_b]).sum::<f64>()
            };
            with_element!(a.dtype(), T => Tensor::from_fn::<T>(&out, |i| <T as Element>::from_f64(element(i))))
        } else {
            let (x, y) = (a.to_i128s(), b.to_i128s());
            let element = |i: usize| {
                let (at_batch, row, col) = positions(i);
                let (sa, sb) = (start(a.shape(), at_batch) + row, start(b.shape(), at_batch) + col);
                (0..k).fold(0i128, |sum, k| {
                    sum.wrapping_add(x[sa + k * step_a].wrapping_mul(y[sb + k * step_b]))
                })
            };
            with_element!(a.dtype(), T => Tensor::from_fn::<T>(&out, |i| T::from_i128(element(i))))
        };
        Ok(vec![result])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (a, b, g) = (cx.ins[0], cx.ins[1], cx.dout(0));
        let (shape_a, shape_b) = (cx.shape(a), cx.shape(b));
        let product =
            |cx: &mut VjpCx<'_>, x, y, trans_a, trans_b| cx.push(MatMul { trans_a, trans_b }, &[x, y]);
        let mut gradients = Gradients::from_elem(None, 2);
        if cx.wanted[0] {
            let da = match self.trans_a {
                false => product(cx, g, b, false, !self.trans_b)?,
                true => product(cx, b, g, self.trans_b, true)?,
            };
            gradients[0] = Some(cx.sum_to(da, &shape_a)?);
        }
        if cx.wanted[1] {
            // The rows of all matrices that meet one b are rows of one matrix.
            let rows = !self.trans_a && shape_b.len() == 2 && shape_a.len() > 2;
            let [a, g] = match rows {
                true => [as_rows(cx, a)?, as_rows(cx, g)?],
                false => [a, g],
            };
            let db = match self.trans_b {
                false => product(cx, a, g, !self.trans_a, false)?,
                true => product(cx, g, a, true, self.trans_a)?,
            };
            gradients[1] = Some(cx.sum_to(db, &shape_b)?);
        }
        Ok(Vjp::Gradients(gradients))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let shape = cx.over_batch(&cx.outs[0].shape());
        let (ranks, b) = ([cx.rank(0), cx.rank(1)], cx.ins[1]);
        if !cx.batched[1] && ranks[1] == 2 {
            // The rows of all examples meet one matrix: they are rows of one.
            let mut order: Vec<usize> = (0..=ranks[0]).collect();
            if self.trans_a {
                order.swap(ranks[0] - 1, ranks[0]);
            }
            let a = cx.builder.transpose(cx.ins[0], &order)?;
            let from = cx.builder.ty(a).shape();
            let (&columns, rows) = from.split_last().expect("it is a matrix");
            let a = cx.builder.reshape(a, &[rows.iter().product(), columns])?;
            let product = cx.builder.push1(MatMul { trans_a: false, trans_b: self.trans_b }, &[a, b])?;
            return vmap::one(cx.builder.reshape(product, &shape)?);
        }
        let rank = ranks[0].max(ranks[1]);
        let (a, b) = (cx.aligned(0, rank)?, cx.aligned(1, rank)?);
        cx.push(self.clone(), &[a, b])
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (a, b) = (ins[0].shape(), ins[1].shape());
        let mut nest = NestBuilder::new(&outs[0].shape());
        let (op_a, op_b) = (nest.operand(ins[0].dtype, &a), nest.operand(ins[1].dtype, &b));
        let mut batch = nest.domain();
        let (n, m) = (batch.pop().expect("rank 2"), batch.pop().expect("rank 2"));
        let k = a[a.len() - if self.trans_a { 2 } else { 1 }];
        let accumulator = match ins[0].dtype {
            DType::F16 | DType::BF16 => DType::F32,
            other => other,
        };
        let matrix = |shape: &Shape, row: &Index, col: &Index, trans: bool| {
            let mut index = broadcast_index(&batch, &shape[..shape.len() - 2]);
            index.extend(if trans { [col.clone(), row.clone()] } else { [row.clone(), col.clone()] });
            index
        };
        let sum = nest.reduce(Reduction::Sum, &[k], |nest, k| {
            let x = nest.load(op_a, &matrix(&a, &m, &k[0], self.trans_a));
            let y = nest.load(op_b, &matrix(&b, &k[0], &n, self.trans_b));
            let (x, y) = (nest.cast(x, accumulator), nest.cast(y, accumulator));
            nest.apply(ScalarFn::Mul, &[x, y])
        });
        let result = nest.cast(sum, ins[0].dtype);
        Ok(Lowered::nest(nest.finish(&[result])))
    }
}

/// The number of elements of one matrix.
fn m_by_n(shape: &[usize]) -> usize {
    shape[shape.len() - 2] * shape[shape.len() - 1]
}
