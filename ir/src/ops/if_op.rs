//! `if`: one of two bodies.

use std::sync::Arc;

use super::body::{infer_body, is_pure, join, placeholder, run_body};
use super::{Gradients, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::grad::body_gradient;
use crate::graph::{Builder, Graph, Value, Values};
use crate::require;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType};
use crate::vmap::vmap as vectorized;

/// The results of `then_branch` if the first operand is true, else those of `else_branch`. The other
/// operands are what the bodies use of the graph around them; both take all of them.
///
/// - (C1) the condition is a bool with one element;
/// - (C2) both bodies take the operands;
/// - (C3) their results agree in number, element types and ranks; sizes that differ are not known.
///
/// ONNX: `If` (1..), by its importer.
#[derive(Clone, Debug, PartialEq)]
pub struct If {
    /// What runs if the condition holds.
    pub then_branch: Arc<Graph>,
    /// What runs if not.
    pub else_branch: Arc<Graph>,
}

impl OpDef for If {
    const NAMES: &'static [&'static str] = &["if"];

    fn with_name(_: &str) -> If {
        If { then_branch: placeholder(), else_branch: placeholder() }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("then_branch", Slot::Graph(&mut self.then_branch))?;
        codec.attr("else_branch", Slot::Graph(&mut self.else_branch))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=usize::MAX)?;
        let single = ins[0].dims.iter().all(|d| d.may_equal(&Dim::Fixed(1)));
        require!(ins[0].dtype == DType::Bool && single, "C1", "the condition is {}", ins[0]);
        let captures: Vec<TensorType> = ins[1..].iter().map(|t| (*t).clone()).collect();
        let then = infer_body(&self.then_branch, &captures, "C2")?;
        let otherwise = infer_body(&self.else_branch, &captures, "C2")?;
        require!(
            then.len() == otherwise.len(),
            "C3",
            "the branches have {} and {} results",
            then.len(),
            otherwise.len()
        );
        let joined = then.iter().zip(&otherwise).map(|(a, b)| {
            join(a, b).ok_or_else(|| Violation::new("C3", format!("the branches give {a} and {b}")))
        });
        joined.collect()
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let condition = ins[0].to_ints();
        let condition = *condition.first().ok_or("the condition is empty")? != 0;
        run_body(if condition { &self.then_branch } else { &self.else_branch }, &ins[1..])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let types: Vec<TensorType> = cx.ins[1..].iter().map(|&v| cx.builder.ty(v).clone()).collect();
        let results: Vec<usize> = (0..cx.outs.len()).filter(|&i| cx.douts[i].is_some()).collect();
        let operands: Vec<usize> = (0..types.len()).filter(|&i| cx.wanted[i + 1]).collect();
        let branch = |body: &Graph| body_gradient(body, &types, &results, &operands, &[]).map(Arc::new);
        let op = If { then_branch: branch(&self.then_branch)?, else_branch: branch(&self.else_branch)? };
        let mut ins = cx.ins.to_vec();
        ins.extend(cx.douts.iter().flatten());
        let flows = cx.builder.push(op, &ins, None)?;
        let mut gradients = Gradients::from_elem(None, cx.ins.len());
        operands.iter().zip(flows).for_each(|(&i, flow)| gradients[i + 1] = Some(flow));
        Ok(Vjp::Gradients(gradients))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        if cx.batched[0] {
            return Ok(Vmap::OneByOne);
        }
        let types = cx.types();
        let branch = |body: &Graph| -> Result<Arc<Graph>, Error> {
            let body = body.with_input_types(&types[1..])?;
            Ok(Arc::new(vectorized(&body, &cx.batched[1..], cx.batch)?))
        };
        let op = If { then_branch: branch(&self.then_branch)?, else_branch: branch(&self.else_branch)? };
        cx.push(op, cx.ins)
    }

    fn simplify(&self, b: &mut Builder, ins: &[Value]) -> Result<Option<Values>, Error> {
        let Some(condition) = b.graph().as_constant(ins[0]).and_then(|t| t.to_ints().first().copied()) else {
            return Ok(None);
        };
        let body = if condition != 0 { &self.then_branch } else { &self.else_branch };
        Ok(Some(b.inline(body, &ins[1..])?))
    }

    fn is_pure(&self) -> bool {
        is_pure(&self.then_branch) && is_pure(&self.else_branch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interpret::{eval_op, interpret};
    use crate::scalar::ScalarFn;

    fn body(f: ScalarFn) -> Arc<Graph> {
        let mut b = Builder::new("body");
        let x = b.input("x", TensorType::new(DType::F32, [Dim::Unknown]));
        let y = b.map(f, &[x]).unwrap();
        b.output("y", y);
        Arc::new(b.finish().unwrap())
    }

    fn negate_or_root() -> If {
        If { then_branch: body(ScalarFn::Neg), else_branch: body(ScalarFn::Sqrt) }
    }

    #[test]
    fn the_condition_chooses() {
        let x = Tensor::new(&[2], &[1f32, 4.]);
        let run = |c| {
            let condition = Tensor::from_i128s(DType::Bool, &[], &[c]);
            eval_op(&negate_or_root().into(), &[condition, x.clone()]).unwrap()[0].to_f64s()
        };
        assert_eq!(run(1), [-1., -4.]);
        assert_eq!(run(0), [1., 2.]);
    }

    #[test]
    fn a_constant_condition_leaves_one_branch() {
        let mut b = Builder::new("main");
        let x = b.input("x", TensorType::fixed(DType::F32, &[2]));
        let condition = b.constant(Tensor::from_i128s(DType::Bool, &[], &[0]));
        let y = negate_or_root().simplify(&mut b, &[condition, x]).unwrap().unwrap();
        assert_eq!(b.ty(y[0]).to_string(), "f32[2]");
        b.output("y", y[0]);
        let graph = b.finish().unwrap();
        let y = interpret(&graph, &[Tensor::new(&[2], &[9f32, 25.])]).unwrap();
        assert_eq!(y[0].to_f64s(), [3., 5.]);
    }

    #[test]
    fn constraints_are_named() {
        let ty = |dtype, shape: &[usize]| TensorType::fixed(dtype, shape);
        let (c, x) = (ty(DType::Bool, &[]), ty(DType::F32, &[3]));
        let violated = |ins: &[&TensorType]| negate_or_root().infer(ins).unwrap_err().constraint;
        assert_eq!(negate_or_root().infer(&[&c, &x]).unwrap(), vec![x.clone()]);
        assert_eq!(violated(&[&x, &x]), "C1");
        assert_eq!(violated(&[&c]), "C2");
        assert_eq!(violated(&[&c, &ty(DType::F32, &[1, 2])]), "C2");
    }
}
