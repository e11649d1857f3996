//! `bf16_weights`: rounds the weights of products to bf16.
//!
//! The arithmetic stays that of f32, so a result differs by what 8 bits of a weight's fraction leave. Products of few
//! rows, which take as long as reading their weights, read half as much. No pipeline has this pass: it is asked for.

use windlass_ir::graph::Values;
use windlass_ir::{DType, Graph, Op, ScalarFn, Value};

use crate::cx::PassCx;
use crate::error::Error;
use crate::known::is_known;
use crate::manager::Pass;
use crate::rewrite::rewrite;

/// The pass.
pub const PASS: Pass = Pass { name: "bf16_weights", help: "round the weights of products to bf16", run };

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    rewrite(graph, cx, |edit, node, cx| {
        let data = graph.node(node);
        if !matches!(*data.op, Op::MatMul(_) | Op::Conv(_)) {
            return Ok(None);
        }
        let is_weight = |&at: &usize| {
            let value = data.ins[at];
            graph.ty(value).dtype == DType::F32 && is_known(graph, value) && !is_rounded(graph, value)
        };
        let Some(at) = (0..2).find(is_weight) else { return Ok(None) };
        if !cx.fire("weight", || graph.describe(node)) {
            return Ok(None);
        }
        let mut ins = edit.map_all(&data.ins);
        let b = edit.builder();
        let rounded = b.cast(ins[at], DType::BF16)?;
        ins[at] = b.cast(rounded, DType::F32)?;
        Ok(Some(Values::from_slice(&[b.push1(data.op.clone(), &ins)?])))
    })
}

/// Whether a value was bf16 before.
fn is_rounded(graph: &Graph, value: Value) -> bool {
    let Some(data) = graph.def_node(value) else { return false };
    matches!(&*data.op, Op::Elementwise(op) if op.f == ScalarFn::Cast(DType::F32))
        && graph.ty(data.ins[0]).dtype == DType::BF16
}
