//! `decompose`: replaces composites by the smaller ops they stand for, as lowering would.
//!
//! Bodies are decomposed in turn, down to ops that lower to formulas or loops. Nodes whose sizes or
//! late attributes are not known yet stay.

use windlass_ir::attrs::{Late, Slot};
use windlass_ir::graph::Values;
use windlass_ir::ops::Lowered;
use windlass_ir::{Builder, Graph, Op, TensorType, Value};

use crate::cx::PassCx;
use crate::error::Error;
use crate::manager::Pass;
use crate::reason::Reason;
use crate::rewrite::rewrite;

/// The pass.
pub const PASS: Pass =
    Pass { name: "decompose", help: "replace composites by the smaller ops they stand for", run };

/// How deep bodies may hold composites: an op whose body holds itself would never end.
const DEPTH: usize = 16;

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    rewrite(graph, cx, |edit, node, cx| {
        let data = graph.node(node);
        let ins = edit.map_all(&data.ins);
        let b = edit.builder();
        let Some(body) = body(b, &data.op, &ins)? else {
            let unknown = matches!(*data.op, Op::Constant(_) | Op::ShapeOf(_))
                || data.ins.iter().chain(&data.outs).all(|&v| graph.ty(v).as_shape().is_some());
            if !unknown {
                let what = || Reason::UnknownSize { what: "an operand or result".into() };
                cx.blocked("composite", || graph.describe(node), what);
            }
            return Ok(None);
        };
        if !cx.fire("composite", || graph.describe(node)) {
            return Ok(None);
        }
        Ok(Some(inline(edit.builder(), &body, &ins, DEPTH)?))
    })
}

/// The body of a composite on these operands.
fn body(b: &Builder, op: &Op, ins: &[Value]) -> Result<Option<Graph>, Error> {
    let types: Vec<TensorType> = ins.iter().map(|&v| b.ty(v).clone()).collect();
    let known = |ty: &TensorType| ty.as_shape().is_some();
    if matches!(op, Op::Constant(_)) || !types.iter().all(known) || has_unknown_late(op) {
        return Ok(None);
    }
    let Ok(outs) = op.infer(&types.iter().collect::<Vec<_>>()) else { return Ok(None) };
    if !outs.iter().all(known) {
        return Ok(None);
    }
    Ok(match op.lower(&types, &outs)? {
        Lowered::Graph(body) => Some(*body),
        Lowered::Nest(_)
        | Lowered::Kernel(_)
        | Lowered::Recurrence(_)
        | Lowered::Repeated(_)
        | Lowered::Interpret => None,
    })
}

fn has_unknown_late(op: &Op) -> bool {
    let mut unknown = false;
    let mut visit = |_: &'static str, slot: Slot<'_>| {
        unknown |= matches!(slot, Slot::Late(Late::Operand(_)));
        Ok(())
    };
    let read = op.clone().attrs(&mut visit);
    unknown || read.is_err()
}

/// Copies a body, decomposing what is in it.
fn inline(b: &mut Builder, body_graph: &Graph, ins: &[Value], depth: usize) -> Result<Values, Error> {
    let mut map: cranelift_entity::SecondaryMap<Value, Option<Value>> = cranelift_entity::SecondaryMap::new();
    for ((_, old), &new) in body_graph.inputs().iter().zip(ins) {
        map[*old] = Some(new);
    }
    let at = |map: &cranelift_entity::SecondaryMap<Value, Option<Value>>, v: Value| {
        map[v].expect("operands are copied before their users")
    };
    for (_, data) in body_graph.nodes() {
        let ins: Values = data.ins.iter().map(|&v| at(&map, v)).collect();
        let inner = if depth > 0 { body(b, &data.op, &ins)? } else { None };
        let outs = match inner {
            Some(inner) => inline(b, &inner, &ins, depth - 1)?,
            None => {
                let types: Vec<Value> = ins.to_vec();
                b.push(data.op.clone(), &types, data.name.clone())?
            }
        };
        for (&old, new) in data.outs.iter().zip(outs) {
            map[old] = Some(new);
        }
    }
    Ok(body_graph.outputs().iter().map(|(_, v)| at(&map, *v)).collect())
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use windlass_ir::ops::Attention;

    use crate::testing::{after, graph, ops};

    #[test]
    fn attention_becomes_products_and_softmax() {
        let g = graph(&[&[2, 3, 4, 8], &[2, 3, 5, 8], &[2, 3, 5, 6]], |b, x| {
            Ok(smallvec![b.push1(Attention::plain(), x)?])
        });
        let (g, _) = after(&g, &["decompose"]);
        assert!(ops(&g).contains("matmul 2") && !ops(&g).contains("attention"), "{}", ops(&g));
        assert!(after(&g, &["decompose"]).1.is_empty());
    }
}
