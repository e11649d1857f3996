//! `fold`: evaluates at compile time what depends on constants alone.
//!
//! The interpreter evaluates, so folding means what running would. Three things are left alone:
//! results much larger than what they are made from (a broadcast or a range is cheaper to compute
//! than to store), work that would make compiling slow, and what is done to large weights: lowering
//! sets apart what depends on constants alone, and compiled kernels do all of it in one pass over them.

use windlass_ir::graph::Values;
use windlass_ir::ops::Lowered;
use windlass_ir::{Graph, Node, Op, Tensor, TensorType, eval_op};

use crate::cx::PassCx;
use crate::error::Error;
use crate::manager::Pass;
use crate::reason::Reason;
use crate::rewrite::rewrite;
use crate::stats::node_work;

/// The pass.
pub const PASS: Pass = Pass { name: "fold", help: "evaluate what depends on constants alone", run };

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    rewrite(graph, cx, |edit, node, cx| {
        let op = &*graph.node(node).op;
        if matches!(op, Op::Constant(_)) || !op.is_pure() {
            return Ok(None);
        }
        let ins = edit.map_all(&graph.node(node).ins);
        let built = edit.graph();
        let Some(values) = ins.iter().map(|&v| built.as_constant(v).cloned()).collect::<Option<Vec<_>>>()
        else {
            return Ok(None);
        };
        if let Some(reason) = obstacle(graph, node, &values, cx) {
            cx.blocked("constant", || graph.describe(node), || reason);
            return Ok(None);
        }
        let outs = match eval_op(op, &values) {
            Ok(outs) => outs,
            Err(message) => {
                cx.blocked("constant", || graph.describe(node), || Reason::Eval(message));
                return Ok(None);
            }
        };
        if !cx.fire("constant", || graph.describe(node)) {
            return Ok(None);
        }
        Ok(Some(outs.into_iter().map(|t| edit.builder().constant(t)).collect::<Values>()))
    })
}

/// Constants larger than this are left to be prepared by compiled code.
const PREPARED_BYTES: u64 = 8 << 10;

/// Whether compiled code can compute a node's results.
fn is_compiled(graph: &Graph, node: Node) -> bool {
    let data = graph.node(node);
    let types = |values: &[windlass_ir::Value]| -> Vec<TensorType> {
        values.iter().map(|&v| graph.ty(v).clone()).collect()
    };
    let (ins, outs) = (types(&data.ins), types(&data.outs));
    let fixed = ins.iter().chain(&outs).all(|ty| ty.as_shape().is_some());
    fixed && !matches!(data.op.lower(&ins, &outs), Ok(Lowered::Interpret) | Err(_))
}

/// Why a node of constant operands had better be left to run time.
fn obstacle(graph: &Graph, node: Node, values: &[Tensor], cx: &PassCx) -> Option<Reason> {
    let data = graph.node(node);
    let bytes = |n: Option<usize>, size: usize| n.unwrap_or(0) as u64 * size as u64;
    let read: u64 = values.iter().map(|t| t.raw_bytes().len() as u64).sum();
    let made: u64 = data.outs.iter().map(|&v| bytes(graph.ty(v).as_len(), graph.ty(v).dtype.size())).sum();
    // The same bytes under another shape cost nothing.
    let view = matches!(*data.op, Op::Reshape(_) | Op::Unsqueeze(_) | Op::Squeeze(_) | Op::Flatten(_));
    if read > PREPARED_BYTES && !view && is_compiled(graph, node) {
        return Some(Reason::Prepared { bytes: read + made });
    }
    let growth = made.saturating_sub(read);
    if growth > cx.options.fold_growth_bytes {
        let limit = cx.options.fold_growth_bytes;
        return Some(Reason::Limit { what: "bytes of growth", found: growth, limit });
    }
    let (found, limit) = (node_work(graph, node), cx.options.fold_work);
    (found > limit).then_some(Reason::Limit { what: "scalar operations", found, limit })
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use windlass_ir::ScalarFn;
    use windlass_ir::ops::Reshape;

    use super::*;
    use crate::testing::{after, blocked, graph, ops, weights};

    #[test]
    fn a_chain_of_constants_becomes_one() {
        let g = graph(&[&[4]], |b, x| {
            let c = weights(b, &[2, 2], 1);
            let c = b.map(ScalarFn::Neg, &[c])?;
            let c = b.push1(Reshape::to(&[4]), &[c])?;
            Ok(smallvec![b.map(ScalarFn::Add, &[x[0], c])?])
        });
        let (g, _) = after(&g, &["fold"]);
        assert_eq!((ops(&g).as_str(), g.node_count()), ("add 1", 2));
    }

    #[test]
    fn a_large_broadcast_is_left() {
        let g = graph(&[&[4]], |b, x| {
            let (row, column) = (weights(b, &[1, 400], 1), weights(b, &[400, 1], 2));
            Ok(smallvec![x[0], b.map(ScalarFn::Add, &[row, column])?])
        });
        let (g, records) = after(&g, &["fold"]);
        assert_eq!(ops(&g), "add 1");
        assert!(
            matches!(blocked(&records, "constant"), Some(Reason::Limit { found: 636_800, .. })),
            "{records:?}"
        );
    }
}
