//! A network with its weights.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use windlass_frontend::nn::{Built, Loss, Net, Optimizer, Schedule, State, Training, Variable, WeightedMean};
use windlass_ir::{DType, Graph, Tensor, TensorType, Value};

use super::data::{rows, stacked};
use super::error::TrainingError;
use super::metrics::{Metric, Tally};
use super::network::Network;
use crate::error::Error;
use crate::nan::{self, NanOrigin};
use crate::options::Options;
use crate::session::Session;

/// A network with its weights, and once it is compiled a loss and an optimizer.
pub struct Model {
    network: Network,
    options: Options,
    pub(super) seed: u64,
    pub(super) dtype: DType,
    pub(super) training: Option<Training>,
    pub(super) metrics: Vec<Metric>,
    /// Whether weights have masks.
    pub(super) masked: bool,
    /// The type that trained variables are kept in.
    storage: DType,
    pub(super) variables: Vec<Variable>,
    /// What the variables hold.
    pub(super) values: Vec<Tensor>,
    /// What the optimizer keeps, once there was a step.
    slots: Option<Vec<Tensor>>,
    steps: BTreeMap<StepKey, (Session, State)>,
    evaluations: BTreeMap<StepKey, Session>,
    predictions: BTreeMap<usize, Session>,
    pub(super) input_gradients: BTreeMap<StepKey, Session>,
}

/// The form of a step: how many examples, whether they have weights, the type of what is true.
pub(super) type StepKey = (usize, bool, String);

/// How good a model is on some data.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The mean loss of an example.
    pub loss: f64,
    /// The share of examples whose class is right, where what is true are classes.
    pub accuracy: Option<f64>,
    /// The metrics that the model was compiled with, by name.
    pub metrics: Vec<(String, f64)>,
}

/// What one training step says.
pub(super) struct StepResult {
    pub loss: f64,
    pub prediction: Tensor,
    /// Where it came from that the loss is not a number, if that stopped the step.
    pub origin: Option<NanOrigin>,
}

impl Model {
    /// A network with random weights.
    pub fn new(network: Network, seed: u64, options: Options) -> Result<Model, Error> {
        Model::with_dtype(network, seed, DType::F32, options)
    }

    /// A network with random weights of this float type.
    pub fn with_dtype(network: Network, seed: u64, dtype: DType, options: Options) -> Result<Model, Error> {
        let mut model = Model {
            network,
            options,
            seed,
            dtype,
            training: None,
            metrics: Vec::new(),
            masked: false,
            storage: dtype,
            variables: Vec::new(),
            values: Vec::new(),
            slots: None,
            steps: BTreeMap::new(),
            evaluations: BTreeMap::new(),
            predictions: BTreeMap::new(),
            input_gradients: BTreeMap::new(),
        };
        let (built, _) = model.built(1, false)?;
        model.values = built.variables.iter().map(|v| v.initial(seed)).collect();
        model.variables = built.variables;
        Ok(model)
    }

    /// Keeps trained variables in f16 or bf16 from now on. Arithmetic, gradients and what the optimizer keeps stay in the
    /// model's own type; what a step makes of a variable is rounded at random, without bias.
    pub fn with_storage(mut self, storage: DType) -> Result<Model, Error> {
        if !storage.is_float() || storage.size() > self.dtype.size() {
            let (expected, found) = (format!("a float of at most {}", self.dtype), storage.to_string());
            return Err(TrainingError::Setting { what: "the type of variables", expected, found }.into());
        }
        self.storage = storage;
        let variables = self.built(1, false)?.0.variables;
        for (value, variable) in self.values.iter_mut().zip(&variables) {
            *value = Tensor::from_f64s(variable.ty.dtype, value.shape(), &value.to_f64s());
        }
        self.variables = variables;
        self.rebuilt();
        Ok(self)
    }

    /// Sets the optimizer and the loss; what an optimizer kept is forgotten.
    pub fn compile(&mut self, optimizer: Optimizer, loss: Loss) {
        self.compile_with(optimizer, loss, []);
    }

    /// Sets the optimizer, the loss, and metrics that evaluations and training report.
    pub fn compile_with(
        &mut self,
        optimizer: Optimizer,
        loss: Loss,
        metrics: impl IntoIterator<Item = Metric>,
    ) {
        self.metrics = metrics.into_iter().collect();
        self.training = Some(Training { loss, optimizer, weighted: WeightedMean::Count });
        self.slots = None;
        self.steps.clear();
        self.evaluations.clear();
        self.input_gradients.clear();
    }

    /// Sets what weighted losses are divided by: with 0 and 1 for weights and [`WeightedMean::Weights`] they are a mask.
    pub fn set_weighted_mean(&mut self, weighted: WeightedMean) -> Result<(), Error> {
        self.training.as_mut().ok_or(TrainingError::NotCompiled)?.weighted = weighted;
        self.steps.clear();
        Ok(())
    }

    /// The learning rate where it does not follow a schedule.
    pub fn learning_rate(&self) -> Option<f64> {
        match self.training.as_ref()?.optimizer.learning_rate {
            Schedule::Constant(rate) | Schedule::Adjustable(rate) => Some(rate),
            _ => None,
        }
    }

    /// Sets the learning rate, in place of a schedule if there was one. The first time, steps are compiled again.
    pub fn set_learning_rate(&mut self, rate: f64) -> Result<(), Error> {
        let training = self.training.as_mut().ok_or(TrainingError::NotCompiled)?;
        let before = std::mem::replace(&mut training.optimizer.learning_rate, Schedule::Adjustable(rate));
        if !matches!(before, Schedule::Adjustable(_)) {
            self.steps.clear();
        }
        Ok(())
    }

    /// The variables' names and what they hold.
    pub fn variables(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.variables.iter().map(|v| v.name.as_str()).zip(&self.values)
    }

    /// Sets what a variable holds.
    pub fn set_variable(&mut self, name: &str, value: Tensor) -> Result<(), Error> {
        let Some(at) = self.variables.iter().position(|v| v.name == name) else {
            let known = self.variables.iter().map(|v| v.name.clone()).collect();
            return Err(TrainingError::UnknownVariable { name: name.to_string(), known }.into());
        };
        let (expected, found) = (self.variables[at].ty.clone(), value.ty());
        if expected != found {
            return Err(TrainingError::VariableType { name: name.to_string(), expected, found }.into());
        }
        self.values[at] = value;
        Ok(())
    }

    /// The network for so many examples.
    pub(super) fn built(&self, batch: usize, training: bool) -> Result<(Built, Value), Error> {
        let net = Net::new("model", self.dtype, training);
        self.built_on(if self.masked { net.with_masks() } else { net }, batch)
    }

    fn built_on(&self, net: Net, batch: usize) -> Result<(Built, Value), Error> {
        let mut net = net.with_storage(self.storage);
        let x = net.input("x", self.network.input_type(batch, self.dtype));
        let prediction = self.network.apply(&mut net, x)?;
        Ok((net.build(), prediction))
    }

    /// How sessions are made.
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(super) fn compiled(&self) -> Result<&Training, Error> {
        Ok(self.training.as_ref().ok_or(TrainingError::NotCompiled)?)
    }

    /// What counts predictions for the model's metrics.
    pub(super) fn tally(&self) -> Result<Tally, Error> {
        self.metrics_tally(&self.metrics)
    }

    /// What counts predictions for these metrics.
    pub(super) fn metrics_tally(&self, metrics: &[Metric]) -> Result<Tally, Error> {
        Ok(Tally::new(metrics, &self.compiled()?.loss))
    }

    /// Adds an input for what is true and, if there are some, for weights.
    fn with_truth(&self, built: &mut Built, truth: &Tensor, weighted: bool) -> (Value, Option<Value>) {
        let y = built.builder.input("y", truth.ty());
        let shape = if self.has_positions() { truth.shape() } else { &truth.shape()[..1] };
        let weights = weighted.then(|| built.builder.input("weights", TensorType::fixed(self.dtype, shape)));
        (y, weights)
    }

    /// Whether weights are of positions, each of which has a class, rather than of examples.
    pub(super) fn has_positions(&self) -> bool {
        self.training.as_ref().is_some_and(|training| training.loss.takes_classes())
    }

    /// Fails unless `x` holds examples, and `y` as many.
    pub(super) fn check(&self, x: &Tensor, y: Option<&Tensor>) -> Result<usize, Error> {
        let count = x.shape().first().copied().unwrap_or(0);
        let expected = self.network.input_type(count, self.dtype);
        if x.ty() != expected {
            let expected = expected.to_string();
            return Err(TrainingError::Data { what: "x".to_string(), expected, found: x.ty() }.into());
        }
        if let Some(y) = y
            && y.shape().first() != Some(&count)
        {
            let expected = format!("{count} rows");
            return Err(TrainingError::Data { what: "y".to_string(), expected, found: y.ty() }.into());
        }
        Ok(count)
    }

    /// One training step. With `stop` a loss that is not a number changes nothing.
    pub(super) fn step(
        &mut self,
        x: &Tensor,
        y: &Tensor,
        weights: Option<&Tensor>,
        stop: bool,
    ) -> Result<StepResult, Error> {
        let batch = x.shape()[0];
        let key = (batch, weights.is_some(), y.ty().to_string());
        if !self.steps.contains_key(&key) {
            let (mut built, prediction) = self.built(batch, true)?;
            let (truth, weight) = self.with_truth(&mut built, y, weights.is_some());
            let step = self.compiled()?.step(built, prediction, truth, weight)?;
            let session = Session::new(step.graph, self.options.clone())?;
            self.steps.insert(key.clone(), (session, step.state));
        }
        let (session, state) = &self.steps[&key];
        let slots = match self.slots.take() {
            Some(slots) => slots,
            None => state.initial(self.seed).split_off(self.variables.len()),
        };
        let mut inputs = self.values.clone();
        inputs.extend(slots);
        inputs.push(x.clone());
        inputs.push(y.clone());
        inputs.extend(weights.cloned());
        if let Schedule::Adjustable(rate) = self.compiled()?.optimizer.learning_rate {
            inputs.push(Tensor::scalar(rate));
        }
        let mut outs = session.run(inputs.clone())?.into_tensors().into_iter();
        let loss = outs.next().map_or(f64::NAN, |loss| loss.to_f64s()[0]);
        let prediction = outs.next().ok_or(TrainingError::NotCompiled)?;
        if stop && loss.is_nan() {
            let origin = match nan::origin(session.graph(), &inputs, "loss", &self.options)? {
                NanOrigin::Input { name } if self.variables.iter().any(|v| v.name == name) => {
                    NanOrigin::Variable { name }
                }
                origin => origin,
            };
            self.slots = Some(inputs[self.variables.len()..state.len()].to_vec());
            return Ok(StepResult { loss, prediction, origin: Some(origin) });
        }
        self.values = outs.by_ref().take(self.variables.len()).collect();
        self.slots = Some(outs.collect());
        Ok(StepResult { loss, prediction, origin: None })
    }

    /// The loss and the accuracy on examples, `batch_size` of them at a time.
    pub fn evaluate(&mut self, x: &Tensor, y: &Tensor, batch_size: usize) -> Result<Evaluation, Error> {
        let count = self.check(x, Some(y))?;
        let (mut loss, mut total) = (0.0, 0.0);
        let mut tally = self.tally()?;
        for start in (0..count).step_by(batch_size.max(1)) {
            let numbers: Vec<usize> = (start..(start + batch_size.max(1)).min(count)).collect();
            let (x, y) = (rows(x, &numbers), rows(y, &numbers));
            let key = (numbers.len(), false, y.ty().to_string());
            if !self.evaluations.contains_key(&key) {
                let (mut built, prediction) = self.built(numbers.len(), false)?;
                let (truth, _) = self.with_truth(&mut built, &y, false);
                let training = self.compiled()?;
                let mean =
                    training.loss.mean(&mut built.builder, truth, prediction, None, training.weighted)?;
                let graph = built.graph(&[("loss", mean), ("prediction", prediction)])?;
                self.evaluations.insert(key.clone(), Session::new(graph, self.options.clone())?);
            }
            let outs = self.infer(&self.evaluations[&key], &x, Some(&y))?;
            let examples = tally.add(&outs[1], &y);
            total += examples;
            loss += outs[0].to_f64s()[0] * examples;
        }
        let loss = loss / f64::max(total, f64::MIN_POSITIVE);
        Ok(Evaluation { loss, accuracy: tally.accuracy(), metrics: tally.results() })
    }

    /// The predictions for examples, `batch_size` of them at a time.
    pub fn predict(&mut self, x: &Tensor, batch_size: usize) -> Result<Tensor, Error> {
        let count = self.check(x, None)?;
        let mut parts = Vec::new();
        for start in (0..count).step_by(batch_size.max(1)) {
            let numbers: Vec<usize> = (start..(start + batch_size.max(1)).min(count)).collect();
            if !self.predictions.contains_key(&numbers.len()) {
                let (built, prediction) = self.built(numbers.len(), false)?;
                let graph = built.graph(&[("prediction", prediction)])?;
                self.predictions.insert(numbers.len(), Session::new(graph, self.options.clone())?);
            }
            let outs = self.infer(&self.predictions[&numbers.len()], &rows(x, &numbers), None)?;
            parts.extend(outs);
        }
        match stacked(&parts) {
            Some(all) => Ok(all),
            None => {
                // No examples have no predictions, of the type that one would have.
                let (built, prediction) = self.built(1, false)?;
                let mut shape = built.builder.ty(prediction).shape();
                shape[0] = 0;
                Ok(Tensor::zeros(self.dtype, &shape))
            }
        }
    }

    /// Runs a session whose inputs are the variables and data.
    pub(super) fn infer(
        &self,
        session: &Session,
        x: &Tensor,
        y: Option<&Tensor>,
    ) -> Result<Vec<Tensor>, Error> {
        let mut inputs = Vec::new();
        for (name, _) in session.inputs() {
            inputs.push(match (name, y) {
                ("x", _) => x.clone(),
                ("y", Some(y)) => y.clone(),
                _ => {
                    let at = self.variables.iter().position(|v| v.name == name);
                    self.values[at.expect("other inputs are variables")].clone()
                }
            });
        }
        Ok(session.run(inputs)?.into_tensors())
    }

    /// The graph of the network for inference, its weights as constants, for so many examples.
    pub fn graph(&self, batch: usize) -> Result<Graph, Error> {
        let (built, prediction) = self.built_on(Net::new("model", self.dtype, false), batch)?;
        let graph = built.graph(&[("prediction", prediction)])?;
        let mut b = windlass_ir::Builder::new("model");
        let mut values = Vec::new();
        for (name, value) in graph.inputs() {
            values.push(match self.variables.iter().position(|v| v.name == *name) {
                Some(at) => b.constant(self.pruned(at)),
                None => b.input(name, graph.ty(*value).clone()),
            });
        }
        let outs = b.inline(&graph, &values)?;
        b.output("prediction", outs[0]);
        Ok(b.finish()?)
    }

    /// Forgets what was compiled, for other variables.
    pub(super) fn rebuilt(&mut self) {
        self.steps.clear();
        self.evaluations.clear();
        self.predictions.clear();
        self.input_gradients.clear();
    }

    /// A table of the variables and the number of their elements.
    pub fn summary(&self) -> String {
        let width = self.variables.iter().map(|v| v.name.len()).max().unwrap_or(0).max(8);
        let mut text = String::new();
        let (mut trained, mut kept) = (0, 0);
        for variable in &self.variables {
            let count = variable.ty.as_len().unwrap_or(0);
            *if variable.trainable { &mut trained } else { &mut kept } += count;
            let _ = writeln!(text, "{:width$}  {:>16}  {count:>10}", variable.name, variable.ty.to_string());
        }
        let _ = writeln!(text, "{trained} parameters are trained, {kept} are not");
        text
    }
}
