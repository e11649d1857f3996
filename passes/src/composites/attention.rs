//! `attention`: products of queries and keys, scaled and masked, their softmax, times values.
//!
//! A query all of whose keys are masked by -inf gives NaN by the formula and 0 by the composite; for
//! every other query they agree.

use windlass_ir::ops::{Attention, MatMul, Transpose};
use windlass_ir::{Graph, Op, Value};

use super::{Composite, Operand, Plan};
use crate::pattern::Match;
use crate::reason::Reason;

/// The composite.
pub const COMPOSITE: Composite = Composite {
    name: "attention",
    formulas: &["p = matmul(q * #half, k * #half) | matmul(q * #scale, k) | matmul(q, k);
         s = p * #scale | p / #divisor | p;
         w = softmax(s + mask | s);
         matmul(w, v)"],
    plan,
};

fn plan(graph: &Graph, found: &Match<'_>) -> Result<Plan, Reason> {
    let rank = graph.ty(found.value("q")).rank();
    if rank != 4 {
        return Err(Reason::Type { what: "the query", found: graph.ty(found.value("q")).clone() });
    }
    let op = |value: Value| graph.def_node(value).map(|data| &*data.op);
    if let Some(Op::Softmax(softmax)) = op(found.value("w"))
        && windlass_ir::normalize_axis(softmax.axis, rank) != Some(rank - 1)
    {
        return Err(Reason::Unsound("the softmax is not over the keys"));
    }
    let (Some(Op::MatMul(product)), Op::MatMul(output)) =
        (op(found.value("p")), &*graph.node(found.nodes[0]).op)
    else {
        return Err(Reason::Unsound("the products are not matrix products"));
    };
    if product.trans_a || *output != MatMul::default() {
        return Err(Reason::Unsound("the queries, probabilities or values are transposed"));
    }
    let number = |name| found.as_number(name);
    let half = number("half").unwrap_or(1.0);
    let scale = half * half * number("scale").unwrap_or(1.0) / number("divisor").unwrap_or(1.0);
    // A scale of 0 would stand for the default.
    if !(scale.is_finite() && scale != 0.0) {
        return Err(Reason::Unsound("the scale is 0 or not finite"));
    }
    let key = match product.trans_b {
        true => Operand::Named("k"),
        false => Operand::Applied(Transpose::by(&[0, 1, 3, 2]).into(), "k"),
    };
    let mut ins = vec![Operand::Named("q"), key, Operand::Named("v")];
    ins.extend(found.as_value("mask").map(|_| Operand::Named("mask")));
    Ok(Plan { op: Attention { scale, ..Attention::plain() }.into(), ins })
}
