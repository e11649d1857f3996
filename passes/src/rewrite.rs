//! What most passes do: offer each node to a rule, and carry over those it leaves.

use windlass_ir::graph::Values;
use windlass_ir::{Edit, Graph, Node, TensorType};

use crate::cx::PassCx;
use crate::error::Error;

/// Rewrites node by node. The rule returns values of the new graph for a node's results, or `None`
/// to keep the node. It must announce what it replaces by [`PassCx::fire`].
///
/// Nodes that the rule adds through the builder's short forms get the old node's name.
pub fn rewrite<'g>(
    graph: &'g Graph,
    cx: &mut PassCx,
    mut rule: impl FnMut(&mut Edit<'g>, Node, &mut PassCx) -> Result<Option<Values>, Error>,
) -> Result<Option<Graph>, Error> {
    let before = cx.fired();
    let mut edit = Edit::new(graph);
    for (node, data) in graph.nodes() {
        edit.set_name(data.name.clone());
        match rule(&mut edit, node, cx)? {
            Some(outs) => edit.replace(node, &outs)?,
            None => edit.copy(node)?,
        }
    }
    match cx.fired() == before {
        true => Ok(None),
        false => Ok(Some(edit.finish()?)),
    }
}

/// Whether a value of type `new` can stand for one of type `old`: no known size gets lost.
pub fn stands_for(new: &TensorType, old: &TensorType) -> bool {
    new.dtype == old.dtype
        && new.rank() == old.rank()
        && new.dims.iter().zip(&old.dims).all(|(n, o)| n == o || o.as_fixed().is_none())
}
