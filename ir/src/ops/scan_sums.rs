//! Sums over the positions of a scan that need no scan: of products whose factors are stacked.
//!
//! `sum over t of a[t]^T b[t]` is `A^T B`, where the rows of all positions are rows of one matrix. The gradient of a
//! weight that every step multiplies by is such a sum, and one large product takes far less time than one at each step.

use super::vjp::VjpCx;
use super::{MatMul, Op, PadMode};
use crate::error::Error;
use crate::graph::{Def, Graph, NodeData, Value, late_operands};
use crate::scalar::ScalarFn;

/// Whether a value of a body is products of matrices, moved about and added: its sum is then the same of sums of products.
pub(super) fn is_linear_in_products(body: &Graph, value: Value) -> bool {
    match maker(body, value) {
        Some(data) => match form(body, data) {
            Some(Form::Product) => true,
            Some(Form::Sum) => data.ins.iter().all(|&v| is_linear_in_products(body, v)),
            Some(Form::Moved) => is_linear_in_products(body, data.ins[0]),
            None => false,
        },
        None => false,
    }
}

/// The sum of such a value over all positions, in the graph around the scan. `stacked` gives a value of the body at all
/// positions, stacked along a first axis in one order.
pub(super) fn sum_over_positions(
    cx: &mut VjpCx<'_>,
    body: &Graph,
    value: Value,
    stacked: &mut dyn FnMut(Value) -> Value,
) -> Result<Value, Error> {
    let data = maker(body, value).expect("it is made of products");
    match (form(body, data).expect("it is made of products"), &*data.op) {
        (Form::Product, Op::MatMul(product)) => {
            // The summed dimension of each factor comes first.
            let mut factors = [stacked(data.ins[0]), stacked(data.ins[1])];
            for (factor, is_first) in factors.iter_mut().zip([product.trans_a, !product.trans_b]) {
                if !is_first {
                    *factor = cx.transpose(*factor, &[0, 2, 1])?;
                }
                let shape = cx.shape(*factor);
                *factor = cx.reshape(*factor, &[shape[0] * shape[1], shape[2]])?;
            }
            cx.push(MatMul { trans_a: true, trans_b: false }, &factors)
        }
        (Form::Sum, _) => {
            let a = sum_over_positions(cx, body, data.ins[0], stacked)?;
            let b = sum_over_positions(cx, body, data.ins[1], stacked)?;
            cx.map(ScalarFn::Add, &[a, b])
        }
        (_, op) => {
            let mut ins = vec![sum_over_positions(cx, body, data.ins[0], stacked)?];
            for &constant in &data.ins[1..] {
                let value = body.as_constant(constant).expect("it is moved by constants").clone();
                ins.push(cx.builder.constant(value));
            }
            cx.push(op.clone(), &ins)
        }
    }
}

/// The values that [`sum_over_positions`] asks for.
pub(super) fn factors(body: &Graph, value: Value, found: &mut Vec<Value>) {
    let Some(data) = maker(body, value) else { return };
    match form(body, data) {
        Some(Form::Product) => {
            for &factor in &data.ins {
                if !found.contains(&factor) {
                    found.push(factor);
                }
            }
        }
        Some(Form::Sum) => data.ins.iter().for_each(|&v| factors(body, v, found)),
        Some(Form::Moved) => factors(body, data.ins[0], found),
        None => {}
    }
}

/// How a node is linear.
enum Form {
    /// A product of two matrices.
    Product,
    /// A sum of two values of one type.
    Sum,
    /// Elements of the first operand in other places, with zeros between.
    Moved,
}

fn form(body: &Graph, data: &NodeData) -> Option<Form> {
    match &*data.op {
        Op::MatMul(_) => data.ins.iter().all(|&v| body.ty(v).rank() == 2).then_some(Form::Product),
        Op::Elementwise(op) if op.f == ScalarFn::Add => {
            data.ins.iter().all(|&v| body.ty(v) == body.ty(data.outs[0])).then_some(Form::Sum)
        }
        Op::Reshape(_) | Op::Transpose(_) => (data.ins.len() == 1).then_some(Form::Moved),
        Op::Pad(pad) if pad.mode == PadMode::Constant && late_operands(&data.op).is_empty() => {
            let is_zero = |&v: &Value| body.as_constant(v).is_some_and(|t| t.to_f64s() == [0.0]);
            data.ins[1..].iter().all(is_zero).then_some(Form::Moved)
        }
        _ => None,
    }
}

fn maker(body: &Graph, value: Value) -> Option<&NodeData> {
    match body.def(value) {
        Def::Input(_) => None,
        Def::Output { node, .. } => Some(body.node(node)),
    }
}
