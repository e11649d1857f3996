//! `batch_norm`: channels scaled by statistics that are given.

use super::conv::Layout;
use super::formula::inverse_root;
use super::layer_norm::per_channel;
use super::vjp;
use super::{Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity, decompose};
use crate::attrs::{AttrError, Codec, Slot};
use crate::error::{Error, Violation};
use crate::graph::Values;
use crate::loops::NestBuilder;
use crate::ops::movement::around;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// `(x - mean) * (scale / sqrt(variance + epsilon)) + bias` for operands x, scale, bias, mean, variance:
/// `x` `[N, C, spatial..]`, or `[N, spatial.., C]` with `channels_last`, the others `[C]`.
///
/// Everything is computed in f32 (f64 for f64) and rounded once.
///
/// - (C1) `x` is a float of rank 2 or more;
/// - (C2) the others are floats with C elements.
///
/// ONNX: `BatchNormalization` (7..) outside training, by its importer.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNorm {
    /// Added to the variance.
    pub epsilon: f64,
    /// Whether the channels are the last dimension.
    pub channels_last: bool,
}

impl OpDef for BatchNorm {
    const NAMES: &'static [&'static str] = &["batch_norm"];

    fn with_name(_: &str) -> BatchNorm {
        BatchNorm { epsilon: 1e-5, channels_last: false }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("epsilon", Slot::Float(&mut self.epsilon))?;
        codec.attr("channels_last", Slot::Bool(&mut self.channels_last))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 5..=5)?;
        let x = ins[0];
        require!(x.dtype.is_float() && x.rank() >= 2, "C1", "{x} is not a float with channels");
        let layout = Layout::new(x.rank(), self.channels_last);
        per_channel(&ins[1..], &x.dims[layout.channels], "C2")?;
        Ok(vec![x.clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let layout = Layout::new(x.rank(), self.channels_last);
        let (_, channels, after) = around(x.shape(), layout.channels);
        let parts: Vec<Vec<f64>> = ins[1..].iter().map(Tensor::to_f64s).collect();
        let mut values = x.to_f64s();
        for (i, value) in values.iter_mut().enumerate() {
            let c = i / after % channels;
            let (scale, bias, mean, variance) = (parts[0][c], parts[1][c], parts[2][c], parts[3][c]);
            *value = (*value - mean) / (variance + self.epsilon).sqrt() * scale + bias;
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &values)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let rank = cx.shape(cx.ins[0]).len();
        let axis = Layout::new(rank, self.channels_last).channels;
        let shifted = cx.with_constant(ScalarFn::Add, cx.ins[4], self.epsilon)?;
        let root = cx.map(ScalarFn::Sqrt, &[shifted])?;
        let factor = cx.map(ScalarFn::Div, &[cx.ins[1], root])?;
        let [factor, bias, mean] =
            [factor, cx.ins[2], cx.ins[3]].map(|part| cx.per_channel(part, axis, rank));
        let deviation = cx.map(ScalarFn::Sub, &[cx.ins[0], mean?])?;
        let scaled = cx.map(ScalarFn::Mul, &[deviation, factor?])?;
        vjp::through(cx.map(ScalarFn::Add, &[scaled, bias?])?)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        if cx.first_alone() {
            return cx.merged(self.clone(), &[Some(0), None, None, None, None], &[0]);
        }
        // Statistics of every example's own: the formula.
        let body = decompose(&cx.types(), |b, ins| {
            let ty = b.ty(ins[0]).clone();
            let (wide, rank) = (ty.dtype.accumulator(), ty.rank());
            let mut channels = vec![1; rank];
            let at = if self.channels_last { rank - 1 } else { 1 };
            channels[at] = ty.shape()[at];
            let mut parts = Vec::new();
            for (i, &value) in ins.iter().enumerate() {
                let value = b.cast(value, wide)?;
                parts.push(if i == 0 { value } else { b.reshape(value, &channels)? });
            }
            let epsilon = b.scalar(wide, self.epsilon);
            let shifted = b.map(ScalarFn::Add, &[parts[4], epsilon])?;
            let root = b.map(ScalarFn::Sqrt, &[shifted])?;
            let factor = b.map(ScalarFn::Div, &[parts[1], root])?;
            let centered = b.map(ScalarFn::Sub, &[parts[0], parts[3]])?;
            let scaled = b.map(ScalarFn::Mul, &[centered, factor])?;
            let sum = b.map(ScalarFn::Add, &[scaled, parts[2]])?;
            Ok(Values::from_slice(&[b.cast(sum, ty.dtype)?]))
        })?;
        Ok(Vmap::Through(Box::new(body)))
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (shape, dtype) = (outs[0].shape(), ins[0].dtype);
        let layout = Layout::new(shape.len(), self.channels_last);
        let mut n = NestBuilder::new(&shape);
        let operand = n.operand(dtype, &shape);
        let at = n.domain();
        let x = n.load(operand, &at);
        let x = n.cast(x, dtype.accumulator());
        let parts: Vec<_> = ins[1..]
            .iter()
            .map(|part| {
                let operand = n.operand(part.dtype, &part.shape());
                let value = n.load(operand, &at[layout.channels..=layout.channels]);
                n.cast(value, dtype.accumulator())
            })
            .collect();
        let (scale, bias, mean, variance) = (parts[0], parts[1], parts[2], parts[3]);
        let inverse = inverse_root(&mut n, variance, self.epsilon);
        let factor = n.apply(ScalarFn::Mul, &[scale, inverse]);
        let deviation = n.apply(ScalarFn::Sub, &[x, mean]);
        let scaled = n.apply(ScalarFn::Mul, &[deviation, factor]);
        let result = n.apply(ScalarFn::Add, &[scaled, bias]);
        let result = n.cast(result, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::testing::{check, sample};

    #[test]
    fn both_layouts_agree_with_the_formula() {
        for (channels_last, shape) in [(false, [2, 3, 4, 5]), (true, [2, 4, 5, 3])] {
            for dtype in [DType::F16, DType::F32, DType::F64] {
                let variance = Tensor::from_f64s(DType::F32, &[3], &[0.5, 1.0, 2.0]);
                let part = |seed| sample(dtype, &[3], seed);
                let ins = [sample(dtype, &shape, 1), part(2), part(3), part(4), variance];
                check(BatchNorm { epsilon: 1e-5, channels_last }, &ins);
            }
        }
    }

    #[test]
    fn constraints_are_named() {
        let op = BatchNorm { epsilon: 1e-5, channels_last: false };
        let f32 = |shape: &[usize]| TensorType::fixed(DType::F32, shape);
        let (x, part) = (f32(&[1, 4]), f32(&[3]));
        assert_eq!(op.infer(&[&part, &part, &part, &part, &part]).unwrap_err().constraint, "C1");
        assert_eq!(op.infer(&[&x, &part, &part, &part, &part]).unwrap_err().constraint, "C2");
    }
}
