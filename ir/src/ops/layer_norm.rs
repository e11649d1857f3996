//! `layer_norm` and `rms_norm`: rows scaled to unit variance or unit mean square.

use super::elementwise::broadcast_index;
use super::formula::{inverse_root, mean, standardized};
use super::{Gradients, Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::error::{Error, Violation};
use crate::graph::Value;
use crate::loops::{Index, NestBuilder};
use crate::ops::movement::position;
use crate::ops::points::points;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, Shape, TensorType, broadcast_dims, normalize_axis, strides};

/// `(x - mean) / sqrt(variance + epsilon) * scale + bias` over the dimensions from `axis` on; `rms_norm`
/// is `x / sqrt(mean(x^2) + epsilon) * scale + bias`. Scale and bias may be left out, from the end.
///
/// Everything is computed in f32 (f64 for f64) and rounded once.
///
/// - (C1) the operands are floats;
/// - (C2) the axis lies within the rank of `x`, or is the rank;
/// - (C3) scale and bias broadcast to `x`.
///
/// ONNX: `LayerNormalization` (17..) and `RMSNormalization` (23..), by their importer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    /// Whether the mean is left in.
    pub rms: bool,
    /// The first normalized dimension.
    pub axis: i64,
    /// Added to the variance.
    pub epsilon: f64,
}

impl LayerNorm {
    /// The first normalized dimension, from 0.
    fn axis(&self, rank: usize) -> Result<usize, Violation> {
        let axis = if self.axis == rank as i64 { Some(rank) } else { normalize_axis(self.axis, rank) };
        axis.ok_or_else(|| Violation::new("C2", format!("axis {} is outside rank {rank}", self.axis)))
    }
}

impl OpDef for LayerNorm {
    const NAMES: &'static [&'static str] = &["layer_norm", "rms_norm"];

    fn with_name(name: &str) -> LayerNorm {
        LayerNorm { rms: name == "rms_norm", axis: -1, epsilon: 1e-5 }
    }

    fn name(&self) -> &'static str {
        Self::NAMES[usize::from(self.rms)]
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axis", Slot::Int(&mut self.axis))?;
        codec.attr("epsilon", Slot::Float(&mut self.epsilon))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=3)?;
        let x = ins[0];
        for ty in ins {
            require!(ty.dtype.is_float(), "C1", "{ty} is not a float");
        }
        self.axis(x.rank())?;
        for part in &ins[1..] {
            let joined = broadcast_dims(&x.dims, &part.dims).filter(|dims| {
                dims.len() == x.rank() && dims.iter().zip(&x.dims).all(|(a, b)| a.may_equal(b))
            });
            require!(joined.is_some(), "C3", "{part} does not broadcast to {x}");
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let axis = self.axis(x.rank()).map_err(|v| v.to_string())?;
        let row: usize = x.shape()[axis..].iter().product();
        let mut values = x.to_f64s();
        for row in values.chunks_exact_mut(row.max(1)) {
            standardize(row, self.epsilon, !self.rms);
        }
        for (part, f) in ins[1..].iter().zip([|a, b| a * b, |a, b| a + b] as [fn(f64, f64) -> f64; 2]) {
            let parts = part.to_f64s();
            let skipped = x.rank() - part.rank();
            let steps: Shape = strides(part.shape())
                .iter()
                .zip(part.shape())
                .map(|(&s, &n)| if n == 1 { 0 } else { s })
                .collect();
            for (value, at) in values.iter_mut().zip(points(x.shape())) {
                *value = f(*value, parts[position(&at[skipped..], &steps)]);
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &values)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (x, g) = (cx.ins[0], cx.dout(0));
        let shape = cx.shape(x);
        let axis = self.axis(shape.len()).expect("infer accepted the axis");
        let axes: Vec<usize> = (axis..shape.len()).collect();
        let count: usize = shape[axis..].iter().product();
        let mean = |cx: &mut VjpCx<'_>, value: Value| -> Result<Value, Error> {
            let sum = cx.sum(value, &axes, true)?;
            cx.with_constant(ScalarFn::Div, sum, count.max(1) as f64)
        };
        let deviation = match self.rms {
            true => x,
            false => {
                let center = mean(cx, x)?;
                cx.map(ScalarFn::Sub, &[x, center])?
            }
        };
        let square = cx.map(ScalarFn::Mul, &[deviation, deviation])?;
        let variance = mean(cx, square)?;
        let shifted = cx.with_constant(ScalarFn::Add, variance, self.epsilon)?;
        let root = cx.map(ScalarFn::Sqrt, &[shifted])?;
        let one = cx.builder.scalar_like(x, 1.0);
        let inverse = cx.map(ScalarFn::Div, &[one, root])?;
        let unit = cx.map(ScalarFn::Mul, &[deviation, inverse])?;
        let mut gradients = Gradients::from_elem(None, cx.ins.len());
        if cx.wanted[0] {
            let scaled = match cx.ins.get(1) {
                Some(&scale) => cx.map(ScalarFn::Mul, &[g, scale])?,
                None => g,
            };
            // What is along the row's mean and along the row itself has no effect.
            let product = cx.map(ScalarFn::Mul, &[scaled, unit])?;
            let along = mean(cx, product)?;
            let along = cx.map(ScalarFn::Mul, &[unit, along])?;
            let mut across = cx.map(ScalarFn::Sub, &[scaled, along])?;
            if !self.rms {
                let center = mean(cx, scaled)?;
                across = cx.map(ScalarFn::Sub, &[across, center])?;
            }
            gradients[0] = Some(cx.map(ScalarFn::Mul, &[across, inverse])?);
        }
        for part in 1..cx.ins.len() {
            if cx.wanted[part] {
                let own = cx.shape(cx.ins[part]);
                let flow = if part == 1 { cx.map(ScalarFn::Mul, &[g, unit])? } else { g };
                gradients[part] = Some(cx.sum_to(flow, &own)?);
            }
        }
        Ok(Vjp::Gradients(gradients))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let rank = cx.rank(0);
        let axis = self.axis(rank).expect("infer accepted the axis") as i64 + 1;
        let mut ins = vec![cx.with_batch(0)?];
        for i in 1..cx.ins.len() {
            ins.push(cx.aligned(i, rank)?);
        }
        cx.push(LayerNorm { axis, ..self.clone() }, &ins)
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (shape, dtype) = (outs[0].shape(), ins[0].dtype);
        let axis = self.axis(shape.len()).expect("infer accepted the axis");
        let mut n = NestBuilder::new(&shape);
        let operand = n.operand(dtype, &shape);
        let at = n.domain();
        let load = |n: &mut NestBuilder, along: &[Index]| {
            let index: Vec<Index> = at[..axis].iter().chain(along).cloned().collect();
            let x = n.load(operand, &index);
            n.cast(x, dtype.accumulator())
        };
        let x = load(&mut n, &at[axis..]);
        let mut result = match self.rms {
            false => standardized(&mut n, x, &shape[axis..], self.epsilon, load),
            true => {
                let square = mean(&mut n, &shape[axis..], |n, k| {
                    let x = load(n, k);
                    n.apply(ScalarFn::Mul, &[x, x])
                });
                let inverse = inverse_root(&mut n, square, self.epsilon);
                n.apply(ScalarFn::Mul, &[x, inverse])
            }
        };
        for (part, f) in ins[1..].iter().zip([ScalarFn::Mul, ScalarFn::Add]) {
            let operand = n.operand(part.dtype, &part.shape());
            let value = n.load(operand, &broadcast_index(&at, &part.shape()));
            let value = n.cast(value, dtype.accumulator());
            result = n.apply(f, &[result, value]);
        }
        let result = n.cast(result, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

/// Scales a row to variance 1, or without `center` to mean square 1.
pub(crate) fn standardize(row: &mut [f64], epsilon: f64, center: bool) {
    let count = row.len() as f64;
    if center {
        let mean = row.iter().sum::<f64>() / count;
        row.iter_mut().for_each(|x| *x -= mean);
    }
    let square = row.iter().map(|x| x * x).sum::<f64>() / count;
    let root = (square + epsilon).sqrt();
    row.iter_mut().for_each(|x| *x /= root);
}

/// The sizes of operands that hold one element a channel. Violates `constraint`.
pub(crate) fn per_channel(
    parts: &[&TensorType],
    channels: &Dim,
    constraint: &'static str,
) -> Result<(), Violation> {
    for part in parts {
        let fits = part.rank() == 1 && part.dims[0].may_equal(channels) && part.dtype.is_float();
        if !fits {
            let message = format!("{part} does not hold {channels} floats, one a channel");
            return Err(Violation::new(constraint, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::testing::{check, sample};

    #[test]
    fn a_row_by_hand() {
        let x = Tensor::new(&[1, 4], &[1f64, 2., 3., 4.]);
        let layer = LayerNorm { rms: false, axis: -1, epsilon: 0.0 };
        let y = check(layer.clone(), std::slice::from_ref(&x))[0].to_f64s();
        let expected = 0.5 / 1.25f64.sqrt();
        assert!((y[2] - expected).abs() < 1e-15 && (y[0] + 3.0 * expected).abs() < 1e-15);
        let y = check(LayerNorm { rms: true, ..layer }, &[x])[0].to_f64s();
        assert!((y[3] - 4.0 / 7.5f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn axes_scales_and_biases_agree_with_the_formula() {
        for rms in [false, true] {
            for (axis, scale) in [(-1, &[4][..]), (1, &[3, 4]), (0, &[2, 1, 4]), (-2, &[3, 1])] {
                for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
                    let ins =
                        [sample(dtype, &[2, 3, 4], 1), sample(DType::F32, scale, 2), sample(dtype, scale, 3)];
                    let op = LayerNorm { rms, axis, epsilon: 1e-3 };
                    check(op.clone(), &ins[..1]);
                    check(op.clone(), &ins[..2]);
                    check(op, &ins);
                }
            }
        }
    }

    #[test]
    fn constraints_are_named() {
        let op = LayerNorm { rms: false, axis: -1, epsilon: 1e-5 };
        let x = TensorType::fixed(DType::F32, &[2, 3]);
        let violated = |op: &LayerNorm, ins: &[&TensorType]| op.infer(ins).unwrap_err().constraint;
        assert_eq!(violated(&op, &[&TensorType::fixed(DType::I32, &[2])]), "C1");
        assert_eq!(violated(&LayerNorm { axis: 3, ..op.clone() }, &[&x]), "C2");
        assert_eq!(violated(&op, &[&x, &TensorType::fixed(DType::F32, &[2])]), "C3");
        assert_eq!(violated(&op, &[&x, &TensorType::fixed(DType::F32, &[1, 2, 3])]), "C3");
    }
}
