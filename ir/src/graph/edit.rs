//! Rewriting: the only way from one graph to a changed one.
//!
//! An [`Edit`] walks the old graph in order and builds the new one. For each old node the caller
//! says which new values stand for its results: a copy, or anything it built instead. Replacing a
//! value by one of another element type or of sizes that cannot be equal is refused. Nodes that
//! nothing reads are not carried over.

use std::sync::Arc;

use cranelift_entity::packed_option::PackedOption;
use cranelift_entity::{EntityRef, SecondaryMap};

use super::{Builder, Def, Graph, Node, NodeData, Value, Values};
use crate::error::Error;
use crate::types::TensorType;

/// A rewrite in progress.
pub struct Edit<'g> {
    old: &'g Graph,
    builder: Builder,
    map: SecondaryMap<Value, PackedOption<Value>>,
    counts: SecondaryMap<Value, u32>,
    uses: SecondaryMap<Value, u32>,
    retyped: bool,
    /// How many of the old graph's nodes are carried over without being written yet. Up to the first change the new
    /// graph is the beginning of the old one, value for value, and most rewrites find nothing to change.
    unwritten: Option<usize>,
}

impl<'g> Edit<'g> {
    /// Starts a rewrite of `old`: the inputs are carried over.
    pub fn new(old: &'g Graph) -> Edit<'g> {
        let types: Vec<TensorType> = old.inputs.iter().map(|(_, v)| old.ty(*v).clone()).collect();
        let mut edit = Edit::with_input_types(old, &types).expect("the number of inputs is the same");
        edit.retyped = false;
        edit.unwritten = old.is_in_order().then_some(0);
        edit
    }

    /// Starts a rewrite that gives the inputs other types, so results may change type too.
    pub fn with_input_types(old: &'g Graph, types: &[TensorType]) -> Result<Edit<'g>, Error> {
        if types.len() != old.inputs.len() {
            return Err(Error::InputCount { expected: old.inputs.len(), found: types.len() });
        }
        let mut builder = Builder::new(&old.name);
        let mut map = SecondaryMap::with_capacity(old.value_count());
        let mut uses = SecondaryMap::new();
        let counts = old.use_counts();
        for ((name, value), ty) in old.inputs.iter().zip(types) {
            let new = builder.input(name, ty.clone());
            map[*value] = new.into();
            uses[new] = counts[*value];
        }
        Ok(Edit { old, builder, map, counts, uses, retyped: true, unwritten: None })
    }

    /// The graph being rewritten.
    pub fn old(&self) -> &'g Graph {
        self.old
    }

    /// The builder of the new graph.
    pub fn builder(&mut self) -> &mut Builder {
        self.write();
        &mut self.builder
    }

    /// Names the nodes that the builder's short forms add, as [`Builder::set_name`] does.
    pub fn set_name(&mut self, name: Option<Arc<str>>) {
        self.builder.set_name(name);
    }

    /// The graph built so far; it may have other nodes that nothing here stands for.
    pub fn graph(&self) -> &Graph {
        match self.unwritten {
            Some(_) => self.old,
            None => self.builder.graph(),
        }
    }

    /// Writes what was carried over.
    fn write(&mut self) {
        let Some(count) = self.unwritten.take() else { return };
        self.builder.reserve(self.old);
        for (node, data) in self.old.nodes().take(count) {
            let outs = self.builder.push_copy(self.old, data, Values::from_slice(&data.ins));
            self.stand_for(node, &outs);
        }
    }

    /// The new value that stands for an old one.
    ///
    /// # Panics
    /// If the old value's node was neither copied nor replaced yet.
    pub fn map(&self, old: Value) -> Value {
        let is_carried = |count: usize| match self.old.def(old) {
            Def::Input(_) => true,
            Def::Output { node, .. } => node.index() < count,
        };
        match self.unwritten {
            Some(count) if is_carried(count) => old,
            _ => self.map[old].expect("operands are mapped before their users"),
        }
    }

    /// [`Self::map`] over a list.
    pub fn map_all(&self, old: &[Value]) -> Values {
        old.iter().map(|&v| self.map(v)).collect()
    }

    /// How many readers the old values that `new` stands for had; 0 for values the rewrite made.
    pub fn old_uses(&self, new: Value) -> u32 {
        match self.unwritten {
            Some(_) => self.counts[new],
            None => self.uses[new],
        }
    }

    /// Carries an old node over unchanged.
    pub fn copy(&mut self, node: Node) -> Result<(), Error> {
        let data: &NodeData = self.old.node(node);
        if self.unwritten == Some(node.index()) && !self.old.tells_attributes(&data.op, &data.ins) {
            self.unwritten = Some(node.index() + 1);
            return Ok(());
        }
        self.write();
        let ins = self.map_all(&data.ins);
        // Of operands of the same types come results of the same types, unless one is an attribute's value.
        let same = |(&old, &new): (&Value, &Value)| self.old.ty(old) == self.builder.ty(new);
        if data.ins.iter().zip(&ins).all(same) && !self.builder.graph().tells_attributes(&data.op, &ins) {
            let outs = self.builder.push_copy(self.old, data, ins);
            self.stand_for(node, &outs);
            return Ok(());
        }
        let outs = self.builder.push(data.op.clone(), &ins, data.name.clone())?;
        self.replace(node, &outs)
    }

    /// Lets new values stand for an old node's results.
    pub fn replace(&mut self, node: Node, outs: &[Value]) -> Result<(), Error> {
        self.write();
        let data = self.old.node(node);
        assert_eq!(outs.len(), data.outs.len(), "every result of {node} needs a replacement");
        for (&old, &new) in data.outs.iter().zip(outs) {
            let (from, to) = (self.old.ty(old), self.builder.ty(new));
            let compatible = from.dtype == to.dtype
                && from.rank() == to.rank()
                && from.dims.iter().zip(&to.dims).all(|(a, b)| a.may_equal(b));
            if !self.retyped && !compatible {
                return Err(Error::TypeChanged {
                    node: self.old.describe(node),
                    from: from.clone(),
                    to: to.clone(),
                });
            }
        }
        self.stand_for(node, outs);
        Ok(())
    }

    fn stand_for(&mut self, node: Node, outs: &[Value]) {
        for (&old, &new) in self.old.node(node).outs.iter().zip(outs) {
            self.map[old] = new.into();
            self.uses[new] += self.counts[old];
        }
    }

    /// Finishes the new graph, leaving out nodes that no output depends on.
    pub fn finish(mut self) -> Result<Graph, Error> {
        self.write();
        let mut builder = self.builder;
        for (name, value) in &self.old.outputs {
            let new = self.map[*value].expand().ok_or_else(|| Error::NoOutputs { graph: name.clone() })?;
            builder.output(name, new);
        }
        Ok(drop_dead(builder.finish()?))
    }
}

/// The graph without nodes that no output depends on.
fn drop_dead(graph: Graph) -> Graph {
    let mut live: SecondaryMap<Value, bool> = SecondaryMap::with_capacity(graph.value_count());
    for (_, value) in &graph.outputs {
        live[*value] = true;
    }
    let mut dead = 0;
    for data in graph.nodes.values().rev() {
        match data.outs.iter().any(|&v| live[v]) {
            true => data.ins.iter().for_each(|&v| live[v] = true),
            false => dead += 1,
        }
    }
    if dead == 0 {
        return graph;
    }
    let mut map: SecondaryMap<Value, PackedOption<Value>> = SecondaryMap::with_capacity(graph.value_count());
    let mut kept = Builder::new(&graph.name).finish_unchecked();
    for (name, value) in &graph.inputs {
        let new = kept.values.push(graph.values[*value].clone());
        kept.inputs.push((name.clone(), new));
        map[*value] = new.into();
    }
    for data in graph.nodes.values() {
        if !data.outs.iter().any(|&v| live[v]) {
            continue;
        }
        let node = kept.nodes.next_key();
        let ins = data.ins.iter().map(|&v| map[v].unwrap()).collect();
        let mut outs = Values::new();
        for (index, &out) in data.outs.iter().enumerate() {
            let def = Def::Output { node, index: index as u32 };
            let new = kept.values.push(super::ValueData { def, ty: graph.values[out].ty.clone() });
            map[out] = new.into();
            outs.push(new);
        }
        let name: Option<Arc<str>> = data.name.clone();
        kept.nodes.push(NodeData { op: data.op.clone(), ins, outs, name });
    }
    kept.outputs = graph.outputs.iter().map(|(name, v)| (name.clone(), map[*v].unwrap())).collect();
    debug_assert!(kept.nodes.keys().all(|n| n.index() < graph.nodes.len()));
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::ops::{Elementwise, Op};
    use crate::scalar::ScalarFn;

    /// `-x + exp(-x)`.
    fn sum() -> Graph {
        let mut b = Builder::new("sum");
        let x = b.input("x", TensorType::fixed(DType::F32, &[4]));
        let y = b.map(ScalarFn::Neg, &[x]).unwrap();
        let z = b.map(ScalarFn::Exp, &[y]).unwrap();
        let sum = b.map(ScalarFn::Add, &[y, z]).unwrap();
        b.output("sum", sum);
        b.finish().unwrap()
    }

    #[test]
    fn copies_are_the_same_graph_whenever_they_are_written() {
        let old = sum();
        for early in [false, true] {
            let mut edit = Edit::new(&old);
            for (node, data) in old.nodes() {
                if early {
                    edit.builder();
                }
                edit.copy(node).unwrap();
                assert_eq!(edit.map_all(&data.outs), data.outs);
                assert_eq!(edit.old_uses(data.outs[0]), old.use_counts()[data.outs[0]]);
            }
            assert_eq!(edit.finish().unwrap(), old);
        }
    }

    #[test]
    fn what_stands_before_a_change_is_carried_over() {
        let old = sum();
        let mut edit = Edit::new(&old);
        for (node, data) in old.nodes() {
            match *data.op {
                Op::Elementwise(Elementwise { f: ScalarFn::Exp }) => {
                    let operand = edit.map(data.ins[0]);
                    edit.replace(node, &[operand]).unwrap();
                }
                _ => edit.copy(node).unwrap(),
            }
        }
        let new = edit.finish().unwrap();
        let (_, last) = new.nodes().last().unwrap();
        assert_eq!((new.node_count(), last.ins[0]), (2, last.ins[1]));
    }
}
