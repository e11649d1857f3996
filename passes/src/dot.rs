//! Graphs as Graphviz text.

use cranelift_entity::EntityRef;
use petgraph::dot::{Config, Dot};
use petgraph::graph::{DiGraph, NodeIndex};
use windlass_ir::graph::Def;
use windlass_ir::{Graph, Op, Value};

/// The graph in the DOT language: a box a node, an edge a value read, labelled with its type. Constants
/// are left out unless they are outputs: they would hide the rest.
pub fn to_dot(graph: &Graph) -> String {
    let mut dot: DiGraph<String, String> = DiGraph::new();
    let inputs: Vec<NodeIndex> =
        graph.inputs().iter().map(|(name, v)| dot.add_node(format!("{name}\n{}", graph.ty(*v)))).collect();
    let nodes: Vec<Option<NodeIndex>> = graph
        .nodes()
        .map(|(node, data)| {
            (!matches!(*data.op, Op::Constant(_))).then(|| dot.add_node(graph.describe(node)))
        })
        .collect();
    let source = |value: Value| match graph.def(value) {
        Def::Input(i) => Some(inputs[i as usize]),
        Def::Output { node, .. } => nodes[node.index()],
    };
    for (node, data) in graph.nodes() {
        let Some(to) = nodes[node.index()] else { continue };
        for &value in &data.ins {
            if let Some(from) = source(value) {
                dot.add_edge(from, to, graph.ty(value).to_string());
            }
        }
    }
    for (name, value) in graph.outputs() {
        let to = dot.add_node(name.clone());
        let from = source(*value).unwrap_or_else(|| dot.add_node("constant".to_string()));
        dot.add_edge(from, to, graph.ty(*value).to_string());
    }
    let shape = |_: &DiGraph<String, String>, (_, label): (NodeIndex, &String)| {
        let label = label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        format!("shape = box, label = \"{label}\"")
    };
    let edge = |_: &DiGraph<String, String>, edge: petgraph::graph::EdgeReference<'_, String>| {
        format!("label = \"{}\"", edge.weight().replace('"', "\\\""))
    };
    let config = [Config::NodeNoLabel, Config::EdgeNoLabel];
    format!("{:?}", Dot::with_attr_getters(&dot, &config, &edge, &shape))
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use windlass_ir::ScalarFn;

    use super::*;
    use crate::testing::graph;

    #[test]
    fn nodes_and_edges() {
        let g = graph(&[&[4]], |b, x| {
            let one = b.scalar_like(x[0], 1.0);
            Ok(smallvec![b.map(ScalarFn::Add, &[x[0], one])?])
        });
        let dot = to_dot(&g);
        assert!(dot.starts_with("digraph {"), "{dot}");
        assert_eq!((dot.matches("shape = box").count(), dot.matches("->").count()), (3, 2), "{dot}");
        assert!(dot.contains("label = \"in0\\nf32[4]\"") && dot.contains("label = \"f32[4]\""), "{dot}");
    }
}
