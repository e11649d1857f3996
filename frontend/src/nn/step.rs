//! The training step as one graph: forward, loss, gradients, update.

use windlass_ir::{Builder, DType, Error, Graph, ScalarFn, Tensor, TensorType, Value, gradients};

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
}

impl Step {
    /// The inputs that are kept, by name, and the outputs that take their place.
    pub fn in_place(&self) -> Vec<(String, String)> {
        let variables = self.state.variables.iter().map(|v| &v.name);
        let names = variables.chain(self.state.slots.iter().map(|(name, _, _)| name));
        names.map(|name| (name.clone(), next(name))).collect()
    }

    /// The step that changes nothing if its loss is not a number.
    pub fn guarded(self) -> Result<Step, Error> {
        let Step { graph, state } = self;
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
        Ok(Step { graph: b.finish()?, state })
    }
}

/// What the output is called that takes the place of an input.
fn next(name: &str) -> String {
    format!("next.{name}")
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

/// A network with its loss differentiated: what an optimizer's update is made of.
pub(super) struct Differentiated {
    pub builder: Builder,
    pub variables: Vec<Variable>,
    pub values: Vec<Value>,
    /// The variables in the type of arithmetic.
    pub wide: Vec<Value>,
    pub updates: Vec<(usize, Value)>,
    /// The number of steps done.
    pub step: Value,
    pub loss: Value,
    pub prediction: Value,
    /// The gradient of each variable that is trained, in order.
    pub gradients: Vec<Value>,
}

/// Which variables are trained.
pub(super) fn trained(variables: &[Variable]) -> Vec<usize> {
    (0..variables.len()).filter(|&i| variables[i].trainable).collect()
}

/// The number of steps done, as an input.
pub(super) fn step_input(b: &mut Builder) -> Value {
    b.input("step", TensorType::fixed(DType::F64, &[]))
}

/// The gradients of a number with respect to values, zeros where it does not depend on one.
pub(super) fn flows(b: &mut Builder, of: Value, wrt: &[Value]) -> Result<Vec<Value>, Error> {
    let one = b.scalar_like(of, 1.0);
    let flows = gradients(b, &[(of, one)], wrt)?;
    let zeros = |b: &mut Builder, value: Value| {
        let ty = b.ty(value).clone();
        b.constant(Tensor::zeros(ty.dtype, &ty.shape()))
    };
    Ok(wrt.iter().zip(flows).map(|(&value, flow)| flow.unwrap_or_else(|| zeros(b, value))).collect())
}

impl Training {
    /// The step that trains a network on predictions and what is true of them, with an optional weight for each example.
    ///
    /// That of private training is not made so but by [`Training::batch_step`].
    pub fn step(
        &self,
        net: Built,
        prediction: Value,
        truth: Value,
        weights: Option<Value>,
    ) -> Result<Step, Error> {
        if self.privacy.is_some() {
            let reason =
                "private training makes its step from a network for one, by `batch_step`".to_string();
            return Err(Error::NoExample { reason });
        }
        let Built { builder: mut b, variables, values, wide, updates, penalties } = net;
        b.set_name(Some("loss".into()));
        let mut loss = self.loss.mean(&mut b, truth, prediction, weights, self.weighted)?;
        for penalty in penalties {
            loss = b.map(ScalarFn::Add, &[loss, penalty])?;
        }
        let parameters: Vec<Value> = trained(&variables).iter().map(|&i| wide[i]).collect();
        let gradients = flows(&mut b, loss, &parameters)?;
        let step = step_input(&mut b);
        self.updated(Differentiated {
            builder: b,
            variables,
            values,
            wide,
            updates,
            step,
            loss,
            prediction,
            gradients,
        })
    }

    /// The step that follows gradients.
    pub(super) fn updated(&self, differentiated: Differentiated) -> Result<Step, Error> {
        let Differentiated {
            builder: mut b,
            variables,
            values,
            wide,
            updates,
            step,
            loss,
            prediction,
            gradients,
        } = differentiated;
        let trained = trained(&variables);
        let parameters: Vec<Value> = trained.iter().map(|&i| wide[i]).collect();
        let mut state = State { variables, slots: Vec::new() };
        let mut slots = Vec::new();
        for &parameter in &trained {
            let (name, ty) = (&state.variables[parameter].name, b.ty(wide[parameter]).clone());
            for slot in self.optimizer.slots() {
                let name = format!("{name}.{slot}");
                slots.push(b.input(&name, ty.clone()));
                state.slots.push((name, ty.clone(), self.optimizer.initial()));
            }
        }
        state.slots.push(("step".to_string(), b.ty(step).clone(), 0.0));
        b.set_name(Some("optimizer".into()));
        let (updated, next_slots) = self.optimizer.update(&mut b, &parameters, &gradients, &slots, step)?;
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
        kept.push(next_step);
        b.output("loss", loss);
        b.output("prediction", prediction);
        let names =
            state.variables.iter().map(|v| &v.name).chain(state.slots.iter().map(|(name, _, _)| name));
        for (name, &value) in names.zip(&kept) {
            b.output(&next(name), value);
        }
        let order: Vec<Value> = values.iter().chain(&slots).chain([&step]).copied().collect();
        Ok(Step { graph: reordered(b, &order)?, state })
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
