//! `nll_loss` and `softmax_cross_entropy`: how improbable the right classes are.

use super::formula::with_constant;
use super::movement::clamped_index;
use super::vjp;
use super::{Iota, Lowered, OpDef, Reduce, ReduceKind, Softmax, Vjp, VjpCx, Vmap, VmapCx, arity, decompose};
use crate::attrs::{AttrError, Codec, Keyword, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::loops::{Index, NestBuilder, Reduction, Val};
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType};

/// What becomes of the losses of all positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossReduction {
    /// The result has one a position.
    None,
    /// They are added.
    Sum,
    /// Their sum is divided by the sum of their weights.
    Mean,
}

impl Keyword for LossReduction {
    const ALL: &'static [(&'static str, LossReduction)] =
        &[("none", LossReduction::None), ("sum", LossReduction::Sum), ("mean", LossReduction::Mean)];
}

/// For log probabilities `x` `[N, C, spatial..]` and classes `target` `[N, spatial..]`, the loss
/// `-weight[target] * x[.., target, ..]` of each position, with an optional `weight` `[C]` (else 1).
/// Positions whose target is `ignore_index`, or no class, have weight and loss 0. f16 and bf16 are
/// computed in f32 and rounded once.
///
/// - (C1) `x` is a float of rank 2 or more;
/// - (C2) `target` is i32 or i64 with the dimensions of `x` without C;
/// - (C3) the weight has the type of `x` and C elements;
/// - (C4) there is at most one `ignore_index`.
///
/// ONNX: `NegativeLogLikelihoodLoss` (12..), by its importer.
#[derive(Clone, Debug, PartialEq)]
pub struct NllLoss {
    /// What becomes of the losses.
    pub reduction: LossReduction,
    /// The target that does not count, if any.
    pub ignore_index: Vec<i64>,
}

/// Two results: [`NllLoss`] of `log_softmax(x)` along dimension 1, and those logarithms.
///
/// - (C1)..(C4) of [`NllLoss`].
///
/// ONNX: `SoftmaxCrossEntropyLoss` (12..), by its importer.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftmaxCrossEntropy {
    /// What becomes of the losses.
    pub reduction: LossReduction,
    /// The target that does not count, if any.
    pub ignore_index: Vec<i64>,
}

impl NllLoss {
    fn result(&self, ins: &[&TensorType]) -> Result<TensorType, Violation> {
        arity(ins, 2..=3)?;
        let (x, target) = (ins[0], ins[1]);
        require!(x.dtype.is_float() && x.rank() >= 2, "C1", "{x} is not a float with classes");
        let kept: Vec<&Dim> = x.dims[..1].iter().chain(&x.dims[2..]).collect();
        let fits = matches!(target.dtype, DType::I32 | DType::I64)
            && target.rank() == kept.len()
            && target.dims.iter().zip(&kept).all(|(a, b)| a.may_equal(b));
        require!(fits, "C2", "the target {target} does not name classes of {x}");
        if let Some(weight) = ins.get(2) {
            let fits = weight.dtype == x.dtype && weight.rank() == 1 && weight.dims[0].may_equal(&x.dims[1]);
            require!(fits, "C3", "the weight {weight} does not fit the classes of {x}");
        }
        require!(self.ignore_index.len() <= 1, "C4", "{:?} are ignored", self.ignore_index);
        Ok(match self.reduction {
            LossReduction::None => TensorType::new(x.dtype, kept.into_iter().cloned()),
            LossReduction::Sum | LossReduction::Mean => TensorType::fixed(x.dtype, &[]),
        })
    }
}

impl OpDef for NllLoss {
    const NAMES: &'static [&'static str] = &["nll_loss"];

    fn with_name(_: &str) -> NllLoss {
        NllLoss { reduction: LossReduction::Mean, ignore_index: Vec::new() }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("reduction", Slot::Keyword(&mut self.reduction))?;
        codec.attr("ignore_index", Slot::Ints(&mut self.ignore_index))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        Ok(vec![self.result(ins)?])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let (x, target) = (&ins[0], &ins[1]);
        let (values, targets) = (x.to_f64s(), target.to_ints());
        let weights = ins.get(2).map(Tensor::to_f64s);
        let classes = x.shape()[1];
        let spatial: usize = x.shape()[2..].iter().product();
        let mut total = 0.0;
        let mut losses = Vec::with_capacity(targets.len());
        for (i, &class) in targets.iter().enumerate() {
            let counted = !self.ignore_index.contains(&class) && (0..classes as i64).contains(&class);
            losses.push(match counted {
                false => 0.0,
                true => {
                    let class = class as usize;
                    let weight = weights.as_ref().map_or(1.0, |w| w[class]);
                    total += weight;
                    -weight * values[(i / spatial * classes + class) * spatial + i % spatial]
                }
            });
        }
        let sum = || losses.iter().sum::<f64>();
        Ok(vec![match self.reduction {
            LossReduction::None => Tensor::from_f64s(x.dtype(), target.shape(), &losses),
            LossReduction::Sum => Tensor::from_f64s(x.dtype(), &[], &[sum()]),
            LossReduction::Mean => Tensor::from_f64s(x.dtype(), &[], &[sum() / total]),
        }])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (x, target) = (cx.ins[0], cx.ins[1]);
        let shape = cx.shape(x);
        // Whether each class is the right one.
        let mut kept = shape.clone();
        kept[1] = 1;
        let right = cx.reshape(target, &kept)?;
        let classes: Vec<i64> = (0..shape.len()).map(|d| if d == 1 { shape[1] as i64 } else { 1 }).collect();
        let class = cx.push(Iota { shape: classes.into(), axis: 1, dtype: cx.dtype(target) }, &[])?;
        let mut hit = cx.map(ScalarFn::Eq, &[class, right])?;
        if let Some(&ignored) = self.ignore_index.first() {
            let ignored =
                cx.builder.constant(Tensor::from_i128s(cx.dtype(target), &[], &[i128::from(ignored)]));
            let counts = cx.map(ScalarFn::Ne, &[right, ignored])?;
            hit = cx.map(ScalarFn::And, &[hit, counts])?;
        }
        let one = cx.builder.scalar_like(x, 1.0);
        let weight = match cx.ins.get(2) {
            Some(&weight) => cx.per_channel(weight, 1, shape.len())?,
            None => one,
        };
        let weight = cx.masked(hit, weight)?;
        let zero = cx.builder.scalar_like(x, 0.0);
        let picked = cx.map(ScalarFn::Select, &[hit, x, zero])?;
        let product = cx.map(ScalarFn::Mul, &[weight, picked])?;
        let gain = cx.map(ScalarFn::Neg, &[product])?;
        let all: Vec<usize> = (0..shape.len()).collect();
        match self.reduction {
            LossReduction::None => vjp::through(cx.sum(gain, &[1], false)?),
            LossReduction::Sum => vjp::through(cx.sum(gain, &all, false)?),
            LossReduction::Mean => {
                let weight = cx.broadcast(weight, &shape)?;
                let (sum, weights) = (cx.sum(gain, &all, false)?, cx.sum(weight, &all, false)?);
                vjp::through(cx.map(ScalarFn::Div, &[sum, weights])?)
            }
        }
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        if self.reduction == LossReduction::None {
            return cx.merged(self.clone(), &[Some(0), Some(0), None][..cx.ins.len()], &[0]);
        }
        let each = NllLoss { reduction: LossReduction::None, ..self.clone() };
        let body = decompose(&cx.types(), |b, ins| {
            let ty = b.ty(ins[0]).clone();
            let total = |b: &mut Builder, ins: &[Value]| -> Result<Value, Error> {
                let losses = b.push1(each.clone(), ins)?;
                let axes: Vec<i64> = (0..b.ty(losses).rank() as i64).collect();
                b.push1(Reduce::over(ReduceKind::Sum, &axes, false), &[losses])
            };
            let mut loss = total(b, ins)?;
            if self.reduction == LossReduction::Mean {
                // Where every class has the logarithm -1 the losses are the weights.
                let flat = b.scalar(ty.dtype, -1.0);
                let flat = b.broadcast(flat, &ty.shape())?;
                let weights: Vec<Value> = [flat].into_iter().chain(ins[1..].iter().copied()).collect();
                let weights = total(b, &weights)?;
                loss = b.map(ScalarFn::Div, &[loss, weights])?;
            }
            Ok(Values::from_slice(&[loss]))
        })?;
        Ok(Vmap::Through(Box::new(body)))
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (x, target) = (ins[0].shape(), ins[1].shape());
        let dtype = ins[0].dtype;
        let wide = dtype.accumulator();
        let mut n = NestBuilder::new(&outs[0].shape());
        let (op_x, op_target) = (n.operand(dtype, &x), n.operand(ins[1].dtype, &target));
        let op_weight = ins.get(2).map(|weight| n.operand(dtype, &weight.shape()));
        // The weight and the loss of one position.
        let position = |n: &mut NestBuilder, at: &[Index]| -> (Val, Val) {
            let class = n.load(op_target, at);
            let class = n.cast(class, DType::I64);
            let below = with_constant(n, ScalarFn::Lt, class, x[1] as f64);
            let above = with_constant(n, ScalarFn::Ge, class, 0.0);
            let mut counted = n.apply(ScalarFn::And, &[below, above]);
            for &ignored in &self.ignore_index {
                let ignored = n.constant_bits(DType::I64, ignored as u64);
                let other = n.apply(ScalarFn::Ne, &[class, ignored]);
                counted = n.apply(ScalarFn::And, &[counted, other]);
            }
            let class = clamped_index(n, class, x[1].max(1));
            let mut index = at.to_vec();
            index.insert(1, class.clone());
            let zero = n.constant(wide, 0.0);
            if x[1] == 0 {
                return (zero, zero);
            }
            let log = n.load(op_x, &index);
            let log = n.cast(log, wide);
            let loss = n.apply(ScalarFn::Neg, &[log]);
            let (weight, loss) = match op_weight {
                Some(operand) => {
                    let weight = n.load(operand, &[class]);
                    let weight = n.cast(weight, wide);
                    (weight, n.apply(ScalarFn::Mul, &[weight, loss]))
                }
                None => (n.constant(wide, 1.0), loss),
            };
            let weight = n.apply(ScalarFn::Select, &[counted, weight, zero]);
            (weight, n.apply(ScalarFn::Select, &[counted, loss, zero]))
        };
        let result = match self.reduction {
            LossReduction::None => {
                let at = n.domain();
                position(&mut n, &at).1
            }
            LossReduction::Sum => n.reduce(Reduction::Sum, &target, |n, at| position(n, at).1),
            LossReduction::Mean => {
                let sum = n.reduce(Reduction::Sum, &target, |n, at| position(n, at).1);
                let total = n.reduce(Reduction::Sum, &target, |n, at| position(n, at).0);
                n.apply(ScalarFn::Div, &[sum, total])
            }
        };
        let result = n.cast(result, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

impl SoftmaxCrossEntropy {
    fn loss(&self) -> NllLoss {
        NllLoss { reduction: self.reduction, ignore_index: self.ignore_index.clone() }
    }
}

impl OpDef for SoftmaxCrossEntropy {
    const NAMES: &'static [&'static str] = &["softmax_cross_entropy"];

    fn with_name(_: &str) -> SoftmaxCrossEntropy {
        SoftmaxCrossEntropy { reduction: LossReduction::Mean, ignore_index: Vec::new() }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("reduction", Slot::Keyword(&mut self.reduction))?;
        codec.attr("ignore_index", Slot::Ints(&mut self.ignore_index))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        let loss = self.loss().result(ins)?;
        Ok(vec![loss, ins[0].clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let wide = Tensor::from_f64s(DType::F64, x.shape(), &x.to_f64s());
        let logs = Softmax { log: true, ..Softmax::along(1) }.eval(&[wide])?.remove(0);
        let mut operands = ins.to_vec();
        operands[0] = logs.clone();
        let loss = self.loss().eval(&operands)?.remove(0);
        let narrow = |t: Tensor| Tensor::from_f64s(x.dtype(), t.shape(), &t.to_f64s());
        Ok(vec![narrow(loss), narrow(logs)])
    }

    fn lower(&self, ins: &[TensorType], _: &[TensorType]) -> Result<Lowered, Error> {
        Lowered::graph(ins, |b: &mut Builder, ins: &[Value]| {
            let dtype = b.ty(ins[0]).dtype;
            let mut operands = ins.to_vec();
            let x = b.cast(ins[0], dtype.accumulator())?;
            operands[0] = b.push1(Softmax { log: true, ..Softmax::along(1) }, &[x])?;
            if let Some(weight) = operands.get_mut(2) {
                *weight = b.cast(*weight, dtype.accumulator())?;
            }
            let loss = b.push1(self.loss(), &operands)?;
            Ok(Values::from_slice(&[b.cast(loss, dtype)?, b.cast(operands[0], dtype)?]))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, sample};

    const REDUCTIONS: [LossReduction; 3] = [LossReduction::None, LossReduction::Sum, LossReduction::Mean];

    #[test]
    fn weights_and_ignored_targets() {
        let x = Tensor::new(&[3, 2], &[-1f32, -2., -3., -4., -5., -6.]);
        let ins = [x, Tensor::new(&[3], &[1i64, 0, 1]), Tensor::new(&[2], &[1f32, 3.])];
        let run = |reduction, ignore: &[i64]| {
            check(NllLoss { reduction, ignore_index: ignore.to_vec() }, &ins)[0].to_f64s()
        };
        assert_eq!(run(LossReduction::None, &[]), [6., 3., 18.]);
        assert_eq!(run(LossReduction::Sum, &[0]), [24.]);
        assert_eq!(run(LossReduction::Mean, &[0]), [4.]);
        assert_eq!(run(LossReduction::Mean, &[1]), [3.]);
    }

    #[test]
    fn shapes_and_types_agree_with_the_formula() {
        for reduction in REDUCTIONS {
            for (shape, target) in
                [(&[3, 5][..], &[3][..]), (&[2, 3, 4], &[2, 4]), (&[2, 3, 2, 2], &[2, 2, 2])]
            {
                for dtype in [DType::F16, DType::F32, DType::F64] {
                    let classes: Vec<i64> =
                        (0..target.iter().product()).map(|i: usize| i as i64 % 5 - 1).collect();
                    let ins = [
                        sample(dtype, shape, 1),
                        Tensor::new(target, &classes),
                        sample(dtype, &[shape[1]], 2),
                    ];
                    let ignore_index = vec![-1];
                    check(NllLoss { reduction, ignore_index: ignore_index.clone() }, &ins);
                    check(NllLoss { reduction, ignore_index: Vec::new() }, &ins[..2]);
                    check(SoftmaxCrossEntropy { reduction, ignore_index }, &ins[..2]);
                }
            }
        }
    }
}
