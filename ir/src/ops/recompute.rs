//! `recompute`: a value as it is, for something that is computed again.

use super::vjp::Gradients;
use super::{Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::error::{Error, Violation};
use crate::loops::NestBuilder;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// The first operand, not before the second is computed. What is computed from it is not equal to what is computed from
/// the operand itself, so it is not replaced by that, which would have to be kept until then.
///
/// Takes any types. No ONNX operator. XLA: `OptimizationBarrier`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recompute;

impl OpDef for Recompute {
    const NAMES: &'static [&'static str] = &["recompute"];

    fn with_name(_: &str) -> Recompute {
        Recompute
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 2..=2)?;
        Ok(vec![ins[0].clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        Ok(vec![ins[0].clone()])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let mut gradients = Gradients::from_elem(None, 2);
        gradients[0] = Some(cx.dout(0));
        Ok(Vjp::Gradients(gradients))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let x = cx.with_batch(0)?;
        let after = cx.ins[1];
        cx.push(self.clone(), &[x, after])
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let mut n = NestBuilder::new(&outs[0].shape());
        let operand = n.operand(ins[0].dtype, &ins[0].shape());
        n.operand(ins[1].dtype, &ins[1].shape());
        let element = n.load(operand, &n.domain());
        Ok(Lowered::nest(n.finish(&[element])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::testing::{check, sample};

    #[test]
    fn the_value_is_the_first_operand() {
        let ins = [sample(DType::F32, &[2, 3], 1), sample(DType::I64, &[4], 2)];
        assert_eq!(check(Recompute, &ins)[0], ins[0]);
    }
}
