//! A graph as DOT text, by way of petgraph.

use cranelift_entity::SecondaryMap;
use petgraph::dot::{Config, Dot};
use petgraph::graph::{DiGraph, NodeIndex};
use windlass_ir::{Graph, Op, Value};

/// Where each value comes from; constants come from nowhere.
type Sources = SecondaryMap<Value, Option<NodeIndex>>;

/// Nodes are ops with their model names, edges values with their types. Constants are left out.
pub fn dot(graph: &Graph) -> String {
    let mut drawing: DiGraph<String, String> = DiGraph::new();
    let mut source: Sources = SecondaryMap::with_capacity(graph.value_count());
    for (name, value) in graph.inputs() {
        source[*value] = Some(drawing.add_node(format!("input {name}")));
    }
    for (node, data) in graph.nodes() {
        if matches!(*data.op, Op::Constant(_)) {
            continue;
        }
        let index = drawing.add_node(graph.describe(node));
        for value in &data.ins {
            connect(&mut drawing, &source, graph, *value, index);
        }
        for &out in &data.outs {
            source[out] = Some(index);
        }
    }
    for (name, value) in graph.outputs() {
        let index = drawing.add_node(format!("output {name}"));
        connect(&mut drawing, &source, graph, *value, index);
    }
    let label = |text: &str| format!("label = \"{}\"", text.escape_default());
    let edge = |_, edge: petgraph::graph::EdgeReference<'_, String>| label(edge.weight());
    let node = |_, (_, weight): (NodeIndex, &String)| label(weight);
    let config = [Config::EdgeNoLabel, Config::NodeNoLabel];
    format!("{:?}", Dot::with_attr_getters(&drawing, &config, &edge, &node))
}

fn connect(
    drawing: &mut DiGraph<String, String>,
    source: &Sources,
    graph: &Graph,
    value: Value,
    to: NodeIndex,
) {
    if let Some(from) = source[value] {
        drawing.add_edge(from, to, format!("{value}: {}", graph.ty(value)));
    }
}
