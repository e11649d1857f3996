//! `dce`: drops nodes that no output depends on.

use windlass_ir::{Edit, Graph};

use crate::cx::PassCx;
use crate::error::Error;
use crate::manager::Pass;

/// The pass.
pub const PASS: Pass = Pass { name: "dce", help: "drop nodes that no output depends on", run };

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    let mut live = vec![false; graph.value_count()];
    let index = |value: windlass_ir::Value| cranelift_entity::EntityRef::index(value);
    for (_, value) in graph.outputs() {
        live[index(*value)] = true;
    }
    let mut dead = None;
    for (node, data) in graph.nodes().rev() {
        match data.outs.iter().any(|&v| live[index(v)]) {
            true => data.ins.iter().for_each(|&v| live[index(v)] = true),
            false => dead = Some(node),
        }
    }
    let Some(first) = dead else { return Ok(None) };
    if !cx.fire("dead", || graph.describe(first)) {
        return Ok(None);
    }
    let mut edit = Edit::new(graph);
    for (node, _) in graph.nodes() {
        edit.copy(node)?;
    }
    Ok(Some(edit.finish()?))
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use windlass_ir::ScalarFn;

    use crate::testing::{after, graph, ops};

    #[test]
    fn what_nothing_reads_goes() {
        let g = graph(&[&[4]], |b, x| {
            let dead = b.map(ScalarFn::Exp, &[x[0]])?;
            b.map(ScalarFn::Neg, &[dead])?;
            Ok(smallvec![b.map(ScalarFn::Abs, &[x[0]])?])
        });
        let (g, _) = after(&g, &["dce"]);
        assert_eq!(ops(&g), "abs 1");
        assert!(after(&g, &["dce"]).1.is_empty());
    }
}
