//! `stop_gradient`: the operand, as if it were a constant.

use super::{Gradients, Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::error::{Error, Violation};
use crate::loops::NestBuilder;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// The operand, through which no gradient flows back. Takes any type; no ONNX operator.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StopGradient;

impl OpDef for StopGradient {
    const NAMES: &'static [&'static str] = &["stop_gradient"];

    fn with_name(_: &str) -> StopGradient {
        StopGradient
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=1)?;
        Ok(vec![ins[0].clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        Ok(vec![ins[0].clone()])
    }

    fn vjp(&self, _: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        Ok(Vjp::Gradients(Gradients::from_elem(None, 1)))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.along(self.clone())
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let mut n = NestBuilder::new(&outs[0].shape());
        let operand = n.operand(ins[0].dtype, &ins[0].shape());
        let element = n.load(operand, &n.domain());
        Ok(Lowered::nest(n.finish(&[element])))
    }
}
