//! Reverse-mode differentiation: from values of a graph to their gradients, as more nodes of that graph.
//!
//! [`gradients`] walks back over the nodes of a [`Builder`] from what is differentiated and asks each op for
//! its rule ([`crate::ops::OpDef::vjp`]). Where a rule answers with smaller ops, the walk goes through
//! those. What it adds are ordinary nodes: they can be differentiated again, and are optimised and fused like
//! any others. Values that do not depend on what is asked for get no gradient, and integers have none.
//!
//! ```
//! use windlass_ir::{Builder, DType, ScalarFn, Tensor, TensorType, gradients, interpret};
//!
//! let mut b = Builder::new("cube");
//! let x = b.input("x", TensorType::fixed(DType::F64, &[]));
//! let square = b.map(ScalarFn::Mul, &[x, x])?;
//! let cube = b.map(ScalarFn::Mul, &[square, x])?;
//! let one = b.scalar(DType::F64, 1.0);
//! let first = gradients(&mut b, &[(cube, one)], &[x])?[0].unwrap();
//! let second = gradients(&mut b, &[(first, one)], &[x])?[0].unwrap();
//! b.output("first", first);
//! b.output("second", second);
//! let out = interpret(&b.finish()?, &[Tensor::scalar(5f64)])?;
//! assert_eq!([out[0].to_f64s()[0], out[1].to_f64s()[0]], [75.0, 30.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use cranelift_entity::{EntityRef, SecondaryMap};

use crate::error::Error;
use crate::graph::{Builder, Def, Graph, Node, Value, Values, late_operands};
use crate::ops::{Gradients, Vjp, VjpCx};
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// How deep a rule may answer with ops whose rules answer with ops.
const DEPTH: usize = 16;

/// How many nodes at each end of a way an error names.
const SHOWN_ENDS: usize = 6;

/// The gradients with respect to `wrt` of the sum of each value times what is given with it, which has its type.
/// Where nothing depends on a value its gradient is `None`.
///
/// Every size on the way is fixed ([`crate::Graph::bind`] does that). An op on the way that has no
/// gradient is an error that names it and the way.
pub fn gradients(b: &mut Builder, of: &[(Value, Value)], wrt: &[Value]) -> Result<Vec<Option<Value>>, Error> {
    let mut walk = Walk { of: of.iter().map(|(value, _)| *value).collect(), ..Walk::default() };
    for &value in wrt {
        let ty = b.ty(value);
        if !ty.dtype.is_float() {
            return Err(Error::NotFloat { value: describe(b, value), found: ty.clone() });
        }
        walk.active[value] = true;
    }
    let nodes = 0..b.graph().node_count();
    walk.activate(b, nodes.clone());
    for &(value, seed) in of {
        if b.ty(value) != b.ty(seed) {
            let found = b.ty(seed).clone();
            return Err(Error::Seed { value: describe(b, value), expected: b.ty(value).clone(), found });
        }
        if walk.active[value] {
            walk.add(b, value, seed)?;
        }
    }
    let outcome = walk.back(b, nodes, DEPTH);
    b.set_name(None);
    outcome?;
    Ok(wrt.iter().map(|&value| walk.flows[value]).collect())
}

/// The gradient of a body, as a body: it takes the operands of `body`, of these types, and then the gradients
/// of some of its results, and gives those of some of its operands, zeros where nothing flows, and then some of the
/// body's values.
pub(crate) fn body_gradient(
    body: &Graph,
    ins: &[TensorType],
    results: &[usize],
    operands: &[usize],
    inner: &[Value],
) -> Result<Graph, Error> {
    let mut b = Builder::new(&format!("{}_grad", body.name));
    let values: Vec<Value> =
        ins.iter().enumerate().map(|(i, ty)| b.input(&format!("in{i}"), ty.clone())).collect();
    let all: Values = body.outputs().iter().map(|(_, v)| *v).chain(inner.iter().copied()).collect();
    let made = b.inline_values(body, &values, &all)?;
    let (outs, inner) = made.split_at(body.outputs().len());
    let mut of = Vec::new();
    for &result in results {
        let ty = b.ty(outs[result]).clone();
        let flow = b.input(&format!("d{result}"), ty);
        of.push((outs[result], flow));
    }
    let wrt: Vec<Value> = operands.iter().map(|&i| values[i]).collect();
    for (&i, flow) in operands.iter().zip(gradients(&mut b, &of, &wrt)?) {
        let flow = flow.unwrap_or_else(|| b.constant(Tensor::zeros(ins[i].dtype, &ins[i].shape())));
        b.output(&format!("d_in{i}"), flow);
    }
    for (i, &value) in inner.iter().enumerate() {
        b.output(&format!("inner{i}"), value);
    }
    b.finish()
}

/// What errors call a value.
fn describe(b: &Builder, value: Value) -> String {
    match b.graph().def(value) {
        Def::Input(index) => format!("input `{}`", b.graph().inputs()[index as usize].0),
        Def::Output { node, .. } => b.graph().describe(node),
    }
}

#[derive(Default)]
struct Walk {
    /// Whether a value is a float that depends on what gradients are asked for.
    active: SecondaryMap<Value, bool>,
    /// What has flowed back to a value so far.
    flows: SecondaryMap<Value, Option<Value>>,
    /// What is differentiated.
    of: Vec<Value>,
    /// The node whose rule is being followed, if it answered with smaller ops.
    outer: Option<Node>,
}

impl Walk {
    /// Marks the results of nodes that read what is active.
    fn activate(&mut self, b: &Builder, nodes: Range<usize>) {
        for node in nodes {
            let data = b.graph().node(Node::new(node));
            if data.ins.iter().any(|&v| self.active[v]) {
                for &out in &data.outs {
                    self.active[out] |= b.ty(out).dtype.is_float();
                }
            }
        }
    }

    /// Adds to what flows back to a value.
    fn add(&mut self, b: &mut Builder, value: Value, flow: Value) -> Result<(), Error> {
        self.flows[value] = Some(match self.flows[value] {
            Some(other) => b.map(ScalarFn::Add, &[other, flow])?,
            None => flow,
        });
        Ok(())
    }

    /// Takes what has flowed to the results of nodes on to their operands, last node first.
    fn back(&mut self, b: &mut Builder, nodes: Range<usize>, depth: usize) -> Result<(), Error> {
        for node in nodes.rev().map(Node::new) {
            let data = b.graph().node(node);
            let douts: Vec<Option<Value>> = data.outs.iter().map(|&out| self.flows[out]).collect();
            let wanted: Vec<bool> = data.ins.iter().map(|&v| self.active[v]).collect();
            if douts.iter().all(Option::is_none) || !wanted.contains(&true) {
                continue;
            }
            let (op, ins, outs) = (data.op.clone(), data.ins.clone(), data.outs.clone());
            let name = data.name.clone();
            let unknown = ins.iter().chain(&outs).find(|&&v| b.ty(v).as_shape().is_none());
            if unknown.is_some() || !late_operands(&op).is_empty() {
                return Err(Error::GradientSizes { node: b.graph().describe(node) });
            }
            b.set_name(name.map(|name| Arc::from(format!("{name}.grad"))));
            let start = b.graph().node_count();
            let mut cx = VjpCx { builder: b, ins: &ins, outs: &outs, douts: &douts, wanted: &wanted };
            match op.vjp(&mut cx)? {
                Vjp::Gradients(flows) => self.spread(b, node, &ins, &flows)?,
                Vjp::Through(values) if depth > 0 => {
                    let inner = start..b.graph().node_count();
                    let outermost = self.outer.is_none();
                    self.outer.get_or_insert(node);
                    self.through(b, inner, (&values, &douts), depth - 1)?;
                    if outermost {
                        self.outer = None;
                    }
                }
                Vjp::Through(_) | Vjp::Undefined => return Err(self.refusal(b, node)),
            }
        }
        Ok(())
    }

    /// Hands the gradients that a rule gave to the operands.
    fn spread(&mut self, b: &mut Builder, node: Node, ins: &[Value], flows: &Gradients) -> Result<(), Error> {
        for (&operand, flow) in ins.iter().zip(flows) {
            let Some(flow) = *flow else { continue };
            if !self.active[operand] {
                continue;
            }
            if b.ty(flow) != b.ty(operand) {
                let (expected, found) = (b.ty(operand).clone(), b.ty(flow).clone());
                return Err(Error::GradientType { node: b.graph().describe(node), expected, found });
            }
            self.add(b, operand, flow)?;
        }
        Ok(())
    }

    /// Walks over nodes that a rule answered with.
    fn through(
        &mut self,
        b: &mut Builder,
        nodes: Range<usize>,
        (values, douts): (&Values, &[Option<Value>]),
        depth: usize,
    ) -> Result<(), Error> {
        self.activate(b, nodes.clone());
        for (&value, dout) in values.iter().zip(douts) {
            if let Some(dout) = *dout
                && self.active[value]
            {
                self.add(b, value, dout)?;
            }
        }
        self.back(b, nodes, depth)
    }

    /// The error for a node without a gradient: which it is, and the way to it from what is differentiated and on to
    /// what gradients are asked for.
    fn refusal(&self, b: &Builder, node: Node) -> Error {
        let mut way: Vec<String> = self.way_to(b, self.outer.unwrap_or(node));
        if self.outer.is_some() {
            way.push(b.graph().describe(node));
        }
        let mut at = node;
        while let Some(&from) = b.graph().node(at).ins.iter().find(|&&v| self.active[v]) {
            way.push(describe(b, from));
            let Def::Output { node, .. } = b.graph().def(from) else { break };
            at = node;
        }
        if way.len() > 2 * SHOWN_ENDS + 1 {
            let hidden = format!("({} more)", way.len() - 2 * SHOWN_ENDS);
            way.splice(SHOWN_ENDS..way.len() - SHOWN_ENDS, [hidden]);
        }
        Error::NoGradient { node: b.graph().describe(node), way: way.join(" <- ") }
    }

    /// The nodes on a shortest way from what is differentiated to a node, both ends with it.
    fn way_to(&self, b: &Builder, node: Node) -> Vec<String> {
        let graph = b.graph();
        let defining = |value: Value| match graph.def(value) {
            Def::Output { node, .. } => Some(node),
            Def::Input(_) => None,
        };
        // Which node reads each that is met.
        let mut readers: SecondaryMap<Node, Option<Option<Node>>> = SecondaryMap::new();
        let mut queue: VecDeque<Node> = VecDeque::new();
        for from in self.of.iter().filter_map(|&value| defining(value)) {
            readers[from] = Some(None);
            queue.push_back(from);
        }
        while let Some(reader) = queue.pop_front().filter(|&met| met != node) {
            for from in
                graph.node(reader).ins.iter().filter(|&&v| self.active[v]).filter_map(|&v| defining(v))
            {
                if readers[from].is_none() {
                    readers[from] = Some(Some(reader));
                    queue.push_back(from);
                }
            }
        }
        let mut way = vec![graph.describe(node)];
        let mut at = node;
        while let Some(Some(reader)) = readers[at] {
            way.insert(0, graph.describe(reader));
            at = reader;
        }
        way
    }
}
