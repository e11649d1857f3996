//! The training step as one graph: forward, loss, gradients, update.

use std::collections::BTreeSet;

use windlass_ir::{Builder, DType, Error, Graph, ScalarFn, Tensor, TensorType, Value, gradients};

use super::graph::free_name;
use super::losses::{Loss, WeightedMean, mean};
use super::net::{Built, Variable};
use super::optimizers::Optimizer;

/// A network with a loss and an optimizer.
#[derive(Clone, Debug)]
pub struct Training {
    /// How far predictions are from what is true.
    pub loss: Loss,
    /// How parameters follow.
    pub optimizer: Optimizer,
    /// What weighted losses are divided by.
    pub weighted: WeightedMean,
}

/// What a training step keeps from one to the next: the variables, then the optimizer's slots, then the number of
/// steps done.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The variables.
    pub variables: Vec<Variable>,
    /// Names and types of everything kept, and what the slots start with.
    slots: Vec<(String, TensorType, f64)>,
}

/// The graph of a step. Its first inputs are what is kept, the others are data; its first outputs are the loss and the
/// predictions, the others what is kept for the next step, in the order of the inputs.
#[derive(Clone, Debug)]
pub struct Step {
    /// The graph.
    pub graph: Graph,
    /// What is kept.
    pub state: State,
    /// The variables to be trained that the loss does not depend on.
    pub unused: Vec<String>,
}

impl State {
    /// What training these variables keeps.
    pub fn new(variables: Vec<Variable>, optimizer: &Optimizer) -> State {
        let mut names: BTreeSet<String> = variables.iter().map(|v| v.name.clone()).collect();
        let mut slots = Vec::new();
        for Variable { name, ty, .. } in variables.iter().filter(|v| v.trainable) {
            for slot in optimizer.slots() {
                let name = free_name(&mut names, &format!("{name}.{slot}"));
                slots.push((name, ty.clone(), optimizer.initial()));
            }
        }
        let step = free_name(&mut names, "step");
        slots.push((step, TensorType::fixed(DType::F64, &[]), 0.0));
        State { variables, slots }
    }

    /// The state before the first step.
    pub fn initial(&self, seed: u64) -> Vec<Tensor> {
        let variables = self.variables.iter().map(|v| v.initial(seed));
        let filled = |(_, ty, value): &(String, TensorType, f64)| {
            let shape = ty.shape();
            Tensor::from_f64s(ty.dtype, &shape, &vec![*value; shape.iter().product()])
        };
        variables.chain(self.slots.iter().map(filled)).collect()
    }

    /// The names and types of all tensors, in order; no two names are the same.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorType)> {
        let variables = self.variables.iter().map(|v| (v.name.as_str(), &v.ty));
        variables.chain(self.slots.iter().map(|(name, ty, _)| (name.as_str(), ty)))
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.variables.len() + self.slots.len()
    }

    /// Whether nothing is kept; never so, for steps are counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Training {
    /// The step that trains a network on predictions and what is true of them, with an optional weight for each example.
    pub fn step(
        &self,
        mut net: Built,
        prediction: Value,
        truth: Value,
        weights: Option<Value>,
    ) -> Result<Step, Error> {
        let losses = self.loss.per_example(&mut net.builder, truth, prediction)?;
        let loss = mean(&mut net.builder, losses, weights, self.weighted)?;
        self.optimizer.step(net, loss, &[("prediction", prediction)])
    }
}

impl Optimizer {
    /// The step that makes a loss smaller, which is one number. Its graph gives these results too.
    pub fn step(&self, net: Built, mut loss: Value, results: &[(&str, Value)]) -> Result<Step, Error> {
        let Built { builder: mut b, variables, values, updates, penalties } = net;
        for penalty in penalties {
            loss = b.map(ScalarFn::Add, &[loss, penalty])?;
        }
        let trained: Vec<usize> = (0..variables.len()).filter(|&i| variables[i].trainable).collect();
        let parameters: Vec<Value> = trained.iter().map(|&i| values[i]).collect();
        let one = b.scalar_like(loss, 1.0);
        let flows = gradients(&mut b, &[(loss, one)], &parameters)?;
        // What the loss does not depend on stays, but for its decay.
        let (mut grads, mut unused) = (Vec::new(), Vec::new());
        for (&variable, flow) in trained.iter().zip(flows) {
            let Variable { name, ty, .. } = &variables[variable];
            grads.push(match flow {
                Some(flow) => flow,
                None => {
                    unused.push(name.clone());
                    b.constant(Tensor::zeros(ty.dtype, &ty.shape()))
                }
            });
        }
        let state = State::new(variables, self);
        let mut taken: BTreeSet<String> = b.graph().inputs().iter().map(|(name, _)| name.clone()).collect();
        let mut slots: Vec<Value> = Vec::new();
        for (name, ty, _) in &state.slots {
            slots.push(b.input(&free_name(&mut taken, name), ty.clone()));
        }
        let step = slots.pop().expect("steps are counted");
        let (next, next_slots) = self.update(&mut b, &parameters, &grads, &slots, step)?;
        let mut kept = values.clone();
        for (variable, value) in updates {
            kept[variable] = value;
        }
        for (&variable, value) in trained.iter().zip(next) {
            kept[variable] = value;
        }
        let one = b.scalar(DType::F64, 1.0);
        let next_step = b.map(ScalarFn::Add, &[step, one])?;
        kept.extend(next_slots);
        kept.push(next_step);
        let mut taken: BTreeSet<String> = results.iter().map(|(name, _)| name.to_string()).collect();
        b.output(&free_name(&mut taken, "loss"), loss);
        for (name, value) in results {
            b.output(name, *value);
        }
        for ((name, _), &value) in state.tensors().zip(&kept) {
            b.output(&free_name(&mut taken, &format!("next.{name}")), value);
        }
        let order: Vec<Value> = values.iter().chain(&slots).chain([&step]).copied().collect();
        Ok(Step { graph: reordered(b, &order)?, state, unused })
    }
}

/// The graph with these inputs first.
fn reordered(b: Builder, first: &[Value]) -> Result<Graph, Error> {
    let graph = b.finish()?;
    let mut to = Builder::new(&graph.name);
    let mut values = vec![None; graph.inputs().len()];
    let place = |value: Value| graph.inputs().iter().position(|(_, v)| *v == value);
    let own = first.iter().filter_map(|&value| place(value));
    let rest = (0..values.len()).filter(|&i| !first.contains(&graph.inputs()[i].1));
    for i in own.chain(rest) {
        let (name, value) = &graph.inputs()[i];
        values[i] = Some(to.input(name, graph.ty(*value).clone()));
    }
    let values: Vec<Value> = values.into_iter().flatten().collect();
    let outs = to.inline(&graph, &values)?;
    for ((name, _), out) in graph.outputs().iter().zip(outs) {
        to.output(name, out);
    }
    to.finish()
}
