//! `cse`: computes equal things once. Equal constants become one.

use rustc_hash::FxHashMap;
use windlass_ir::graph::Values;
use windlass_ir::{Graph, Node};

use crate::cx::PassCx;
use crate::error::Error;
use crate::fingerprint::op_fingerprint;
use crate::manager::Pass;
use crate::rewrite::rewrite;

/// The pass.
pub const PASS: Pass = Pass { name: "cse", help: "compute equal things once", run };

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    // Keyed by hash and operands of the new graph; the ops themselves are compared before use.
    let mut seen: FxHashMap<(u64, Values), Vec<Node>> = FxHashMap::default();
    rewrite(graph, cx, |edit, node, cx| {
        let op = &*graph.node(node).op;
        if !op.is_pure() {
            return Ok(None);
        }
        let key = (op_fingerprint(op), edit.map_all(&graph.node(node).ins));
        let candidates = seen.entry(key).or_default();
        for &earlier in candidates.iter() {
            if *graph.node(earlier).op == *op && cx.fire("equal", || graph.describe(node)) {
                return Ok(Some(edit.map_all(&graph.node(earlier).outs)));
            }
        }
        candidates.push(node);
        Ok(None)
    })
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use windlass_ir::ScalarFn;

    use crate::testing::{after, graph, ops};

    #[test]
    fn equal_nodes_and_constants_become_one() {
        let g = graph(&[&[4]], |b, x| {
            let (one, also_one) = (b.scalar_like(x[0], 1.5), b.scalar_like(x[0], 1.5));
            let (p, q) = (b.map(ScalarFn::Add, &[x[0], one])?, b.map(ScalarFn::Add, &[x[0], also_one])?);
            Ok(smallvec![b.map(ScalarFn::Mul, &[p, q])?])
        });
        let (g, _) = after(&g, &["cse"]);
        assert_eq!((ops(&g).as_str(), g.node_count()), ("add 1, mul 1", 3));
    }

    #[test]
    fn zeros_of_either_sign_stay_apart() {
        let g = graph(&[&[4]], |b, x| {
            let (plus, minus) = (b.scalar_like(x[0], 0.0), b.scalar_like(x[0], -0.0));
            let (p, q) = (b.map(ScalarFn::Add, &[x[0], plus])?, b.map(ScalarFn::Add, &[x[0], minus])?);
            Ok(smallvec![p, q])
        });
        let (g, records) = after(&g, &["cse"]);
        assert_eq!((ops(&g).as_str(), records.len()), ("add 2", 0));
    }
}
