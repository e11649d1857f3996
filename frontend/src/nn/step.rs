//! The training step as one graph: forward, loss, gradients, update.

use std::collections::BTreeSet;

use windlass_ir::{Builder, DType, Error, Graph, ScalarFn, Tensor, TensorType, Value, gradients};

use super::graph::free_name;
use super::losses::{Loss, WeightedMean};
use super::net::{Built, Variable};
use super::optimizers::Optimizer;
use super::precision::narrowed;
use super::private::DpSgd;

/// A network with a loss and an optimizer.
#[derive(Clone, Debug)]
pub struct Training {
    /// How far predictions are from what is true.
    pub loss: Loss,
    /// How parameters follow.
    pub optimizer: Optimizer,
    /// What weighted losses are divided by.
    pub weighted: WeightedMean,
    /// Whether what any one example changes is bounded, and hidden in noise.
    pub privacy: Option<DpSgd>,
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

impl Step {
    /// The inputs that are kept, by name, and the outputs that take their place.
    pub fn in_place(&self) -> Vec<(String, String)> {
        let (inputs, outputs) = (self.graph.inputs(), self.graph.outputs());
        let kept = &outputs[outputs.len() - self.state.len()..];
        inputs.iter().zip(kept).map(|((input, _), (output, _))| (input.clone(), output.clone())).collect()
    }

    /// The step that changes nothing if its loss is not a number.
    pub fn guarded(self) -> Result<Step, Error> {
        let Step { graph, state, unused } = self;
        let mut b = Builder::new(&graph.name);
        let inputs: Vec<Value> =
            graph.inputs().iter().map(|(name, value)| b.input(name, graph.ty(*value).clone())).collect();
        let mut outs = b.inline(&graph, &inputs)?;
        let (results, kept) = outs.split_at_mut(graph.outputs().len() - state.len());
        let is_number = b.map(ScalarFn::Eq, &[results[0], results[0]])?;
        for (&old, new) in inputs.iter().zip(kept) {
            // What stays anyway has no need of it.
            if *new != old {
                *new = b.map(ScalarFn::Select, &[is_number, *new, old])?;
            }
        }
        for ((name, _), out) in graph.outputs().iter().zip(outs) {
            b.output(name, out);
        }
        Ok(Step { graph: b.finish()?, state, unused })
    }
}

impl State {
    /// What training these variables keeps.
    pub fn new(variables: Vec<Variable>, optimizer: &Optimizer) -> State {
        let mut names: BTreeSet<String> = variables.iter().map(|v| v.name.clone()).collect();
        let mut slots = Vec::new();
        for Variable { name, ty, arithmetic, .. } in variables.iter().filter(|v| v.trainable) {
            for slot in optimizer.slots() {
                let name = free_name(&mut names, &format!("{name}.{slot}"));
                slots.push((name, TensorType::new(*arithmetic, ty.dims.clone()), optimizer.initial()));
            }
        }
        for (slot, initial) in optimizer.shared_slots() {
            slots.push((free_name(&mut names, slot), TensorType::fixed(DType::F64, &[]), initial));
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

/// A network with its loss differentiated: what an optimizer's update is made of.
pub(super) struct Differentiated<'r> {
    /// The network; its penalties are in the loss.
    pub net: Built,
    /// The number of steps done.
    pub step: Value,
    /// What the optimizer keeps for all parameters together.
    pub shared: Vec<Value>,
    pub loss: Value,
    /// What the graph gives too.
    pub results: &'r [(&'r str, Value)],
    /// The gradient of each variable that is trained, in order, where the loss depends on it.
    pub gradients: Vec<Option<Value>>,
}

/// Which variables are trained.
pub(super) fn trained(variables: &[Variable]) -> Vec<usize> {
    (0..variables.len()).filter(|&i| variables[i].trainable).collect()
}

/// A number that is kept, as the number of steps done, as an input.
pub(super) fn number_input(b: &mut Builder, name: &str) -> Value {
    let mut taken: BTreeSet<String> = b.graph().inputs().iter().map(|(name, _)| name.clone()).collect();
    let name = free_name(&mut taken, name);
    b.input(&name, TensorType::fixed(DType::F64, &[]))
}

/// The gradients of a number with respect to values, where it depends on them.
pub(super) fn flows(b: &mut Builder, of: Value, wrt: &[Value]) -> Result<Vec<Option<Value>>, Error> {
    let one = b.scalar_like(of, 1.0);
    gradients(b, &[(of, one)], wrt)
}

/// A gradient, 0 where there is none.
pub(super) fn or_zeros(b: &mut Builder, flow: Option<Value>, of: Value) -> Value {
    let ty = b.ty(of).clone();
    flow.unwrap_or_else(|| b.constant(Tensor::zeros(ty.dtype, &ty.shape())))
}

impl Training {
    /// The step that trains a network on predictions and what is true of them, with an optional weight for each example.
    ///
    /// That of private training is not made so but by [`Training::batch_step`].
    pub fn step(
        &self,
        mut net: Built,
        prediction: Value,
        truth: Value,
        weights: Option<Value>,
    ) -> Result<Step, Error> {
        if self.privacy.is_some() {
            let reason =
                "private training makes its step from a network for one, by `batch_step`".to_string();
            return Err(Error::NoExample { reason });
        }
        net.builder.set_name(Some("loss".into()));
        let loss = self.loss.mean(&mut net.builder, truth, prediction, weights, self.weighted)?;
        self.optimizer.step(net, loss, &[("prediction", prediction)])
    }
}

impl Optimizer {
    /// The step that makes a loss smaller, which is one number. Its graph gives these results too.
    pub fn step(&self, mut net: Built, mut loss: Value, results: &[(&str, Value)]) -> Result<Step, Error> {
        let b = &mut net.builder;
        for &penalty in &net.penalties {
            loss = b.map(ScalarFn::Add, &[loss, penalty])?;
        }
        let parameters: Vec<Value> = trained(&net.variables).iter().map(|&i| net.wide[i]).collect();
        let shared: Vec<Value> = self.shared_slots().iter().map(|(name, _)| number_input(b, name)).collect();
        let gradients = match self.loss_scale.factor(b, &shared) {
            None => flows(b, loss, &parameters)?,
            Some(factor) => {
                let seed = b.cast(factor, b.ty(loss).dtype)?;
                let flows = gradients(b, &[(loss, seed)], &parameters)?;
                let unscaled = |b: &mut Builder, flow: Value| {
                    let factor = b.cast(factor, b.ty(flow).dtype)?;
                    b.map(ScalarFn::Div, &[flow, factor])
                };
                let flows = flows.into_iter().map(|flow| flow.map(|flow| unscaled(b, flow)).transpose());
                flows.collect::<Result<_, _>>()?
            }
        };
        let step = number_input(b, "step");
        self.updated(Differentiated { net, step, shared, loss, results, gradients })
    }

    /// The step that follows gradients. What the loss does not depend on stays, but for its decay.
    pub(super) fn updated(&self, differentiated: Differentiated<'_>) -> Result<Step, Error> {
        let Differentiated { net, step, shared, loss, results, gradients: flows } = differentiated;
        let Built { builder: mut b, variables, values, wide, updates, penalties: _ } = net;
        let trained = trained(&variables);
        let parameters: Vec<Value> = trained.iter().map(|&i| wide[i]).collect();
        let (mut gradients, mut unused) = (Vec::new(), Vec::new());
        for ((&variable, &parameter), flow) in trained.iter().zip(&parameters).zip(flows) {
            if flow.is_none() {
                unused.push(variables[variable].name.clone());
            }
            gradients.push(or_zeros(&mut b, flow, parameter));
        }
        let state = State::new(variables, self);
        let mut taken: BTreeSet<String> = b.graph().inputs().iter().map(|(name, _)| name.clone()).collect();
        let mut slots: Vec<Value> = Vec::new();
        // The last are the shared ones and the number of steps.
        for (name, ty, _) in &state.slots[..state.slots.len() - 1 - shared.len()] {
            slots.push(b.input(&free_name(&mut taken, name), ty.clone()));
        }
        b.set_name(Some("optimizer".into()));
        let (updated, next_slots) = self.update(&mut b, &parameters, &gradients, &slots, step)?;
        let mut kept = values.clone();
        for (variable, value) in updates {
            kept[variable] = value;
        }
        for (&variable, value) in trained.iter().zip(updated) {
            let Variable { name, ty, .. } = &state.variables[variable];
            kept[variable] = narrowed(&mut b, value, ty.dtype, step, name)?;
        }
        let one = b.scalar(DType::F64, 1.0);
        let next_step = b.map(ScalarFn::Add, &[step, one])?;
        kept.extend(next_slots);
        let order: Vec<Value> = values.iter().chain(&slots).chain(&shared).chain([&step]).copied().collect();
        match self.loss_scale.follow(&mut b, &gradients, &shared)? {
            None => kept.extend(shared.iter().copied().chain([next_step])),
            Some((finite, next_shared)) => {
                kept.extend(&shared);
                kept.push(next_step);
                for (next, &old) in kept.iter_mut().zip(&order).filter(|(next, old)| next != old) {
                    *next = b.map(ScalarFn::Select, &[finite, *next, old])?;
                }
                let before = kept.len() - 1 - shared.len();
                kept[before..][..shared.len()].copy_from_slice(&next_shared);
            }
        }
        let mut taken: BTreeSet<String> = results.iter().map(|(name, _)| name.to_string()).collect();
        b.output(&free_name(&mut taken, "loss"), loss);
        for (name, value) in results {
            b.output(name, *value);
        }
        for ((name, _), &value) in state.tensors().zip(&kept) {
            b.output(&free_name(&mut taken, &format!("next.{name}")), value);
        }
        Ok(Step { graph: reordered(b, &order)?, state, unused })
    }
}

/// The graph with these inputs first.
fn reordered(b: Builder, first: &[Value]) -> Result<Graph, Error> {
    let inputs: Vec<Value> = b.graph().inputs().iter().map(|(_, v)| *v).collect();
    let own = first.iter().filter_map(|value| inputs.iter().position(|v| v == value));
    let rest = (0..inputs.len()).filter(|&i| !first.contains(&inputs[i]));
    let graph = b.finish()?;
    let mut to = Builder::new(&graph.name);
    let mut values = vec![None; inputs.len()];
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
