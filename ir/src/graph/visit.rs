//! petgraph's view of a graph: `&Graph` implements the visit traits, with an edge from the node that
//! defines a value to each node that reads it, so petgraph's algorithms run on it as it stands.

use cranelift_entity::EntityRef;
use petgraph::Direction;
use petgraph::visit::{
    GraphBase, IntoNeighbors, IntoNeighborsDirected, IntoNodeIdentifiers, NodeCount, NodeIndexable, Visitable,
};

use super::{Def, Graph, Node};

impl GraphBase for Graph {
    type NodeId = Node;
    type EdgeId = (Node, Node);
}

impl Graph {
    fn predecessors(&self, node: Node) -> Vec<Node> {
        let defs = self.node(node).ins.iter().filter_map(|&v| match self.def(v) {
            Def::Output { node, .. } => Some(node),
            Def::Input(_) => None,
        });
        defs.collect()
    }

    /// Nodes that read a result of `node`: later ones only, as order is topological.
    fn successors(&self, node: Node) -> Vec<Node> {
        let outs = &self.node(node).outs;
        let later = (node.index() + 1..self.node_count()).map(Node::new);
        later.filter(|&n| self.node(n).ins.iter().any(|v| outs.contains(v))).collect()
    }
}

impl IntoNeighbors for &Graph {
    type Neighbors = std::vec::IntoIter<Node>;

    fn neighbors(self, node: Node) -> Self::Neighbors {
        self.successors(node).into_iter()
    }
}

impl IntoNeighborsDirected for &Graph {
    type NeighborsDirected = std::vec::IntoIter<Node>;

    fn neighbors_directed(self, node: Node, direction: Direction) -> Self::NeighborsDirected {
        match direction {
            Direction::Incoming => self.predecessors(node).into_iter(),
            Direction::Outgoing => self.successors(node).into_iter(),
        }
    }
}

impl IntoNodeIdentifiers for &Graph {
    type NodeIdentifiers = std::vec::IntoIter<Node>;

    fn node_identifiers(self) -> Self::NodeIdentifiers {
        (0..self.node_count()).map(Node::new).collect::<Vec<_>>().into_iter()
    }
}

impl NodeCount for Graph {
    fn node_count(&self) -> usize {
        Graph::node_count(self)
    }
}

impl NodeIndexable for Graph {
    fn node_bound(&self) -> usize {
        Graph::node_count(self)
    }

    fn to_index(&self, node: Node) -> usize {
        node.index()
    }

    fn from_index(&self, index: usize) -> Node {
        Node::new(index)
    }
}

impl Visitable for Graph {
    type Map = std::collections::HashSet<Node>;

    fn visit_map(&self) -> Self::Map {
        Self::Map::new()
    }

    fn reset_map(&self, map: &mut Self::Map) {
        map.clear();
    }
}
