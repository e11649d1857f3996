//! `simplify`: rewrites that need only look at a node and its producers.
//!
//! Each op's own simplifications ([`windlass_ir::ops::OpDef::simplify`]) come first, then the
//! algebra across ops in [`crate::algebra`]. A replacement is offered to the rules again at once.

use std::borrow::Cow;

use windlass_ir::graph::{Def, Values};
use windlass_ir::{Builder, Graph};

use crate::algebra::algebra;
use crate::cx::PassCx;
use crate::error::Error;
use crate::manager::Pass;
use crate::rewrite::{rewrite, stands_for};

/// The pass.
pub const PASS: Pass = Pass { name: "simplify", help: "apply each op's simplifications and algebra", run };

/// How often a replacement is simplified again before the next round takes over.
const CHAIN: usize = 4;

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    rewrite(graph, cx, |edit, node, cx| {
        if !cx.has_fuel() {
            return Ok(None);
        }
        let data = graph.node(node);
        let mut ins = edit.map_all(&data.ins);
        let b = edit.builder();
        let mut found = None;
        let mut op = Cow::Borrowed(&data.op);
        for _ in 0..CHAIN {
            let Some((rule, outs)) = step(b, &op, &ins)? else { break };
            let fits = outs.iter().zip(&data.outs).all(|(&new, &old)| stands_for(b.ty(new), graph.ty(old)));
            if !fits || !cx.fire(rule, || graph.describe(node)) {
                break;
            }
            found = Some(outs.clone());
            let Def::Output { node: again, .. } = b.graph().def(outs[0]) else { break };
            let again = b.graph().node(again);
            if again.outs != outs {
                break;
            }
            (op, ins) = (Cow::Owned(again.op.clone()), again.ins.clone());
        }
        Ok(found)
    })
}

fn step(
    b: &mut Builder,
    op: &windlass_ir::Op,
    ins: &[windlass_ir::Value],
) -> Result<Option<(&'static str, Values)>, Error> {
    if let Some(outs) = op.simplify(b, ins)? {
        return Ok(Some((op.name(), outs)));
    }
    algebra(b, op, ins)
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use windlass_ir::{DType, ScalarFn};

    use crate::testing::{after, graph, ops, weights};

    #[test]
    fn chains_collapse() {
        let g = graph(&[&[4]], |b, x| {
            let (one, two, eight) =
                (b.scalar_like(x[0], 1.0), b.scalar_like(x[0], 2.0), b.scalar_like(x[0], 8.0));
            let y = b.map(ScalarFn::Mul, &[one, x[0]])?;
            let y = b.cast(y, DType::F64)?;
            let y = b.cast(y, DType::F32)?;
            let y = b.map(ScalarFn::Pow, &[y, two])?;
            let y = b.map(ScalarFn::Neg, &[y])?;
            let y = b.map(ScalarFn::Neg, &[y])?;
            Ok(smallvec![b.map(ScalarFn::Div, &[y, eight])?])
        });
        let (g, _) = after(&g, &["simplify"]);
        assert_eq!(ops(&g), "mul 2");
    }

    #[test]
    fn what_is_not_an_identity_stays() {
        let g = graph(&[&[4]], |b, x| {
            let zero = b.scalar_like(x[0], 0.0);
            // Turns -0.0 into 0.0.
            let y = b.map(ScalarFn::Add, &[x[0], zero])?;
            // Broadcasts.
            let ones = b.constant(windlass_ir::Tensor::from_f64s(DType::F32, &[3, 1], &[1.0; 3]));
            let y = b.map(ScalarFn::Mul, &[y, ones])?;
            // Loses bits.
            let y = b.cast(y, DType::F16)?;
            let y = b.cast(y, DType::F32)?;
            // 0.1 is not a power of two.
            let tenth = weights(b, &[], 3);
            Ok(smallvec![b.map(ScalarFn::Div, &[y, tenth])?])
        });
        let (_, records) = after(&g, &["simplify"]);
        assert!(records.is_empty(), "{records:?}");
    }
}
