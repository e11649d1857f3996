//! The training step as one graph: forward, loss, gradients, update.

use windlass_ir::{Builder, DType, Error, Graph, ScalarFn, Tensor, TensorType, Value, gradients};

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
}

impl State {
    /// The state before the first step.
    pub fn initial(&self, seed: u64) -> Vec<Tensor> {
        let variables = self.variables.iter().map(|v| v.initial(seed));
        let filled = |(_, ty, value): &(String, TensorType, f64)| {
            let shape = ty.shape();
            Tensor::from_f64s(ty.dtype, &shape, &vec![*value; shape.iter().product()])
        };
        variables.chain(self.slots.iter().map(filled)).collect()
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
        net: Built,
        prediction: Value,
        truth: Value,
        weights: Option<Value>,
    ) -> Result<Step, Error> {
        let Built { builder: mut b, variables, values, updates, penalties } = net;
        let losses = self.loss.per_example(&mut b, truth, prediction)?;
        let mut loss = mean(&mut b, losses, weights, self.weighted)?;
        for penalty in penalties {
            loss = b.map(ScalarFn::Add, &[loss, penalty])?;
        }
        let trained: Vec<usize> = (0..variables.len()).filter(|&i| variables[i].trainable).collect();
        let parameters: Vec<Value> = trained.iter().map(|&i| values[i]).collect();
        let one = b.scalar_like(loss, 1.0);
        let flows = gradients(&mut b, &[(loss, one)], &parameters)?;
        // What the loss does not depend on stays, but for its decay.
        let mut grads = Vec::new();
        for (&parameter, flow) in parameters.iter().zip(flows) {
            let ty = b.ty(parameter).clone();
            grads.push(match flow {
                Some(flow) => flow,
                None => b.constant(Tensor::zeros(ty.dtype, &ty.shape())),
            });
        }
        let mut state = State { variables, slots: Vec::new() };
        let mut slots = Vec::new();
        for &parameter in &trained {
            let Variable { name, ty, .. } = &state.variables[parameter];
            for slot in self.optimizer.slots() {
                let name = format!("{name}.{slot}");
                slots.push(b.input(&name, ty.clone()));
                state.slots.push((name, ty.clone(), self.optimizer.initial()));
            }
        }
        let step_type = TensorType::fixed(DType::F64, &[]);
        let step = b.input("step", step_type.clone());
        state.slots.push(("step".to_string(), step_type, 0.0));
        let (next, next_slots) = self.optimizer.update(&mut b, &parameters, &grads, &slots, step)?;
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
        b.output("loss", loss);
        b.output("prediction", prediction);
        let names =
            state.variables.iter().map(|v| &v.name).chain(state.slots.iter().map(|(name, _, _)| name));
        for (name, &value) in names.zip(&kept) {
            b.output(&format!("next.{name}"), value);
        }
        let order: Vec<Value> = values.iter().chain(&slots).chain([&step]).copied().collect();
        Ok(Step { graph: reordered(b, &order)?, state })
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
