//! Graphs made again with other inputs.

use std::collections::HashMap;

use windlass_ir::{Builder, Edit, Graph, TensorType, Value};

/// The same graph, less what no output needs.
pub(super) fn without_dead_nodes(graph: &Graph) -> Result<Graph, windlass_ir::Error> {
    let mut edit = Edit::new(graph);
    graph.nodes().try_for_each(|(node, _)| edit.copy(node))?;
    edit.finish()
}

/// The same graph with its inputs in this order; it may gain inputs of other graphs' types, not lose any.
pub(super) fn with_inputs(graph: &Graph, inputs: &[Value]) -> Result<Graph, windlass_ir::Error> {
    let declared: Vec<(Option<Value>, &str, TensorType)> = inputs
        .iter()
        .map(|&value| {
            let name = graph.inputs().iter().find(|(_, v)| *v == value).map_or("", |(name, _)| name);
            (Some(value), name, graph.ty(value).clone())
        })
        .collect();
    rebuild(graph, &declared)
}

/// The same graph over other inputs: each stands for one of the old inputs, or for nothing.
pub(crate) fn rebuild(
    graph: &Graph,
    inputs: &[(Option<Value>, &str, TensorType)],
) -> Result<Graph, windlass_ir::Error> {
    let mut b = Builder::new(&graph.name);
    let mut map: HashMap<Value, Value> = HashMap::new();
    for (old, name, ty) in inputs {
        let new = b.input(name, ty.clone());
        if let Some(old) = old {
            map.insert(*old, new);
        }
    }
    for (_, data) in graph.nodes() {
        let ins: Vec<Value> = data.ins.iter().map(|v| map[v]).collect();
        let outs = b.push(data.op.clone(), &ins, data.name.clone())?;
        map.extend(data.outs.iter().copied().zip(outs));
    }
    for (name, value) in graph.outputs() {
        b.output(name, map[value]);
    }
    without_dead_nodes(&b.finish()?)
}
