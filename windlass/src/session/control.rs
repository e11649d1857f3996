//! Nodes that run graphs of their own, which of them and how often being known only at run time.
//!
//! A body is planned like the graph around it, for the types that it meets, and its plans are kept. What it uses of
//! the graph around it is a constant of its own where it is one there, so that weights are prepared once.

use windlass_ir::graph::Node;
use windlass_ir::ops::Loop;
use windlass_ir::{Bool8, Graph, Limits, Op, Tensor, TensorType, eval_op};

use super::cache::Cache;
use super::parts::{Key, with_keys};
use super::plan::Plan;
use super::stage::{KernelProfile, Setup};
use crate::compile::Counts;
use crate::error::Error;

/// What runs an `if` or a `loop`.
pub(super) struct Control {
    /// What errors call the node.
    node: String,
    kind: Kind,
}

enum Kind {
    If { then_branch: Body, else_branch: Body },
    Loop { op: Loop, body: Body },
}

/// A graph that runs on a node's operands.
struct Body {
    graph: Graph,
    /// Which of the operands it is given.
    takes: Vec<usize>,
    plans: Cache<Vec<TensorType>, Plan>,
}

/// Whether a node is run by a [`Control`].
pub(super) fn is_control(op: &Op) -> bool {
    matches!(op, Op::If(_) | Op::Loop(_))
}

impl Control {
    /// What runs a node of a graph; `None` if it is another op.
    pub(super) fn new(graph: &Graph, node: Node, setup: &Setup) -> Result<Option<Control>, Error> {
        let data = graph.node(node);
        let mut constants: Vec<Option<&Tensor>> = data.ins.iter().map(|&v| graph.as_constant(v)).collect();
        let kind = match &*data.op {
            Op::If(op) => {
                let branch = |body| Body::new(body, &constants[1..], setup);
                Kind::If { then_branch: branch(&op.then_branch)?, else_branch: branch(&op.else_branch)? }
            }
            Op::Loop(op) => {
                // The number of the round, the condition and the states change.
                constants.iter_mut().take(2 + op.num_states as usize).for_each(|constant| *constant = None);
                Kind::Loop { op: op.clone(), body: Body::new(&op.body, &constants, setup)? }
            }
            _ => return Ok(None),
        };
        Ok(Some(Control { node: graph.describe(node), kind }))
    }

    /// The results for these operands.
    pub(super) fn run(
        &self,
        ins: &[Tensor],
        setup: &Setup,
        counts: &mut Counts,
    ) -> Result<Vec<Tensor>, Error> {
        match &self.kind {
            Kind::If { then_branch, else_branch } => {
                let branch = if self.first(&ins[0])? != 0 { then_branch } else { else_branch };
                branch.run(&ins[1..], setup, counts)
            }
            Kind::Loop { op, body } => self.run_loop(op, body, ins, setup, counts),
        }
    }

    fn run_loop(
        &self,
        op: &Loop,
        body: &Body,
        ins: &[Tensor],
        setup: &Setup,
        counts: &mut Counts,
    ) -> Result<Vec<Tensor>, Error> {
        let states = op.num_states as usize;
        let (trips, mut again) = (self.first(&ins[0])?, self.first(&ins[1])? != 0);
        if trips <= 0 || !again {
            // Nothing runs; the interpreter knows the sizes of stacks of nothing.
            return eval_op(&op.clone().into(), ins).map_err(|message| self.fail(message));
        }
        let single = |at: usize| vec![1; op.body.ty(op.body.inputs()[at].1).rank()];
        let (number_shape, condition_shape) = (single(0), single(1));
        let mut operands = ins.to_vec();
        operands[1] = Tensor::new(&condition_shape, &[Bool8(1)]);
        let mut stacks: Vec<Vec<Tensor>> = Vec::new();
        let (mut number, mut elements) = (0i64, 0u64);
        while again && number < trips {
            operands[0] = Tensor::new(&number_shape, &[number]);
            let mut own = Counts::default();
            let mut results = body.run(&operands, setup, &mut own)?.into_iter();
            if number == 0 {
                counts.add(own);
            }
            again = match results.next() {
                Some(condition) => self.first(&condition)? != 0,
                None => false,
            };
            operands[2..2 + states].iter_mut().zip(&mut results).for_each(|(state, next)| *state = next);
            stacks.resize_with(results.len(), Vec::new);
            for (stack, part) in stacks.iter_mut().zip(results) {
                elements += part.len() as u64 + 1;
                stack.push(part);
            }
            number += 1;
            let size = elements.max(number as u64);
            Limits::check(|| self.node.clone(), "elements", size, setup.options.limits.elements)?;
        }
        let stacked = stacks.iter().map(|parts| stacked(parts).map_err(|message| self.fail(message)));
        let stacked: Vec<Tensor> = stacked.collect::<Result<_, _>>()?;
        Ok(operands.drain(2..2 + states).chain(stacked).collect())
    }

    /// The first element: conditions and trip counts have one.
    fn first(&self, tensor: &Tensor) -> Result<i64, Error> {
        tensor
            .to_ints()
            .first()
            .copied()
            .ok_or_else(|| self.fail("an operand of one element is empty".to_string()))
    }

    fn fail(&self, message: String) -> Error {
        windlass_ir::Error::Eval { node: self.node.clone(), message }.into()
    }

    /// Where the time of the bodies' forms that were used last went.
    pub(super) fn profile(&self) -> Vec<KernelProfile> {
        let bodies = match &self.kind {
            Kind::If { then_branch, else_branch } => vec![then_branch, else_branch],
            Kind::Loop { body, .. } => vec![body],
        };
        bodies.into_iter().filter_map(|body| body.plans.last()).flat_map(|plan| plan.profile()).collect()
    }
}

impl Body {
    fn new(graph: &Graph, constants: &[Option<&Tensor>], setup: &Setup) -> Result<Body, Error> {
        let declared = graph.inputs().iter().map(|(_, value)| graph.ty(*value).clone());
        let keys: Vec<Key> = declared
            .zip(constants)
            .map(|(ty, constant)| constant.map_or(Key::Type(ty), |constant| Key::Value(constant.clone())))
            .collect();
        let takes = (0..keys.len()).filter(|&i| matches!(keys[i], Key::Type(_))).collect();
        let (graph, _) = with_keys(graph, &keys, &setup.options.limits)?;
        Ok(Body { graph, takes, plans: Cache::new(setup.options.cache) })
    }

    fn run(&self, operands: &[Tensor], setup: &Setup, counts: &mut Counts) -> Result<Vec<Tensor>, Error> {
        let mut ins: Vec<Tensor> = self.takes.iter().map(|&i| operands[i].clone()).collect();
        let plan = self.plans.obtain_for(&ins, |types| Plan::new(&self.graph, types, setup))?;
        plan.run(&mut ins, setup, counts)
    }
}

/// Tensors of one type along a new first axis; there is one at least.
fn stacked(parts: &[Tensor]) -> Result<Tensor, String> {
    let ty = parts[0].ty();
    if let Some(other) = parts.iter().find(|part| part.ty() != ty) {
        return Err(format!("it stacks {ty} and {}", other.ty()));
    }
    let shape: Vec<usize> = std::iter::once(parts.len()).chain(parts[0].shape().iter().copied()).collect();
    let mut all = Tensor::zeros(ty.dtype, &shape);
    let size = parts[0].bytes().len();
    for (part, place) in parts.iter().zip(all.bytes_mut().chunks_exact_mut(size.max(1))) {
        place.copy_from_slice(part.bytes());
    }
    Ok(all)
}
