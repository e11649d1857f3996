//! A network with its weights.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use windlass_frontend::nn::{Built, Loss, Net, Optimizer, State, Step, Variable, WeightedMean};
use windlass_ir::{DType, Dim, Graph, Tensor, TensorType, Value};

use super::data::{Examples, arranged, form, largest, rows, stacked};
use super::error::TrainingError;
use super::network::Network;
use super::objective::{Objective, OutputLoss, truth_type};
use crate::error::Error;
use crate::options::Options;
use crate::session::Session;

/// A network with its weights, and once it is compiled a loss and an optimizer.
pub struct Model {
    network: Network,
    options: Options,
    pub(super) seed: u64,
    pub(super) dtype: DType,
    pub(super) training: Option<Objective>,
    pub(super) variables: Vec<Variable>,
    /// What the variables hold.
    pub(super) values: Vec<Tensor>,
    /// What the optimizer keeps, once there was a step.
    pub(super) slots: Option<Vec<Tensor>>,
    steps: HashMap<Form, (Session, State)>,
    evaluations: HashMap<Form, Session>,
    predictions: HashMap<Form, Session>,
    pub(super) input_gradients: HashMap<Form, Session>,
}

/// The types of the data that something is compiled for.
pub(super) type Form = Vec<TensorType>;

/// How good a model is on some data.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The mean loss of an example.
    pub loss: f64,
    /// The share of examples whose class is right, where what is true are classes.
    pub accuracy: Option<f64>,
}

/// The examples of a step, and what is true of them.
pub(super) struct Batch {
    /// For each input.
    pub x: Vec<Tensor>,
    /// For each output with a loss.
    pub y: Vec<Tensor>,
    pub weights: Option<Tensor>,
}

impl Batch {
    /// These rows.
    pub fn of(x: &[&Tensor], y: &[&Tensor], weights: Option<&Tensor>, numbers: &[usize]) -> Batch {
        let taken = |all: &[&Tensor]| all.iter().map(|tensor| rows(tensor, numbers)).collect();
        Batch { x: taken(x), y: taken(y), weights: weights.map(|weights| rows(weights, numbers)) }
    }

    fn form(&self) -> Form {
        form(self.x.iter().chain(&self.y).chain(&self.weights))
    }
}

/// What one training step says.
pub(super) struct StepResult {
    pub loss: f64,
    /// Of each output.
    pub predictions: Vec<Tensor>,
}

impl Model {
    /// A network with random weights, or with a graph's own.
    pub fn new(network: Network, seed: u64, options: Options) -> Result<Model, Error> {
        Model::with_dtype(network, seed, DType::F32, options)
    }

    /// A network with random weights of this float type, or with a graph's own weights.
    pub fn with_dtype(network: Network, seed: u64, dtype: DType, options: Options) -> Result<Model, Error> {
        let mut model = Model {
            network,
            options,
            seed,
            dtype,
            training: None,
            variables: Vec::new(),
            values: Vec::new(),
            slots: None,
            steps: HashMap::new(),
            evaluations: HashMap::new(),
            predictions: HashMap::new(),
            input_gradients: HashMap::new(),
        };
        model.variables = match model.network.graph_variables() {
            Some(variables) => variables.to_vec(),
            None => model.built(&model.network.types(1, dtype), false)?.0.variables,
        };
        model.values = model.variables.iter().map(|v| v.initial(seed)).collect();
        Ok(model)
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Sets the optimizer and the loss, which every output has; what an optimizer kept is forgotten.
    pub fn compile(&mut self, optimizer: Optimizer, loss: Loss) {
        let of_output =
            |output: usize| (output, OutputLoss::new(&self.network.outputs()[output], loss.clone()));
        let losses = (0..self.network.outputs().len()).map(of_output).collect();
        self.train_by(Objective { losses, optimizer, weighted: WeightedMean::Count });
    }

    /// Sets the optimizer and the losses of some outputs, whose weighted sum becomes less; what an optimizer kept is
    /// forgotten.
    pub fn compile_outputs(&mut self, optimizer: Optimizer, losses: &[OutputLoss]) -> Result<(), Error> {
        let outputs = self.network.outputs();
        let mut placed = Vec::new();
        for loss in losses {
            let Some(at) = outputs.iter().position(|name| *name == loss.output) else {
                let (name, known) = (loss.output.clone(), outputs.to_vec());
                return Err(TrainingError::UnknownOutput { name, known }.into());
            };
            if placed.iter().any(|(other, _)| *other == at) {
                return Err(TrainingError::RepeatedOutput { name: loss.output.clone() }.into());
            }
            placed.push((at, loss.clone()));
        }
        if placed.is_empty() {
            return Err(TrainingError::NotCompiled.into());
        }
        self.train_by(Objective { losses: placed, optimizer, weighted: WeightedMean::Count });
        Ok(())
    }

    fn train_by(&mut self, objective: Objective) {
        self.training = Some(objective);
        self.slots = None;
        self.steps.clear();
        self.evaluations.clear();
        self.input_gradients.clear();
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

    /// The network for inputs of these types, all sizes known.
    pub(super) fn built(&self, types: &[TensorType], training: bool) -> Result<(Built, Vec<Value>), Error> {
        let mut net = Net::new("model", self.dtype, training);
        let names = self.network.inputs(self.dtype);
        let inputs: Vec<Value> =
            names.zip(types).map(|((name, _), ty)| net.input(name, ty.clone())).collect();
        let predictions = self.network.apply(&mut net, &inputs)?;
        if predictions.len() != self.network.outputs().len() {
            let (found, expected) = (predictions.len(), self.network.outputs().len());
            return Err(TrainingError::ResultCount { found, expected }.into());
        }
        Ok((net.build(), predictions))
    }

    /// How sessions are made.
    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    pub(super) fn compiled(&self) -> Result<&Objective, Error> {
        Ok(self.training.as_ref().ok_or(TrainingError::NotCompiled)?)
    }

    /// The tensors of the inputs, in order, and how many examples they hold.
    pub(super) fn inputs_of<'a>(&self, x: &'a dyn Examples) -> Result<(Vec<&'a Tensor>, usize), Error> {
        let expected: Vec<(&str, TensorType)> = self.network.inputs(self.dtype).collect();
        let names: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
        let tensors = arranged(x, "x", &names)?;
        let count = tensors.first().and_then(|tensor| tensor.shape().first()).copied().unwrap_or(0);
        let mut sizes: HashMap<Arc<str>, usize> = HashMap::new();
        for ((name, ty), tensor) in expected.iter().zip(&tensors) {
            let mut fits = |at: usize, dim: &Dim, size: usize| match dim {
                _ if at == 0 => size == count,
                Dim::Fixed(n) => *n == size,
                Dim::Named(name) => *sizes.entry(name.clone()).or_insert(size) == size,
                Dim::Unknown => true,
            };
            let mut dims = ty.dims.iter().zip(tensor.shape()).enumerate();
            let fits = ty.rank() == tensor.rank() && dims.all(|(at, (dim, &size))| fits(at, dim, size));
            if ty.dtype != tensor.dtype() || !fits {
                let mut expected = ty.clone();
                expected.dims[0] = Dim::Fixed(count);
                let (what, expected) = (name.to_string(), expected.to_string());
                return Err(TrainingError::Data { what, expected, found: tensor.ty() }.into());
            }
        }
        Ok((tensors, count))
    }

    /// The tensors of what is true, one for each output with a loss, of as many examples.
    pub(super) fn truths_of<'a>(&self, y: &'a dyn Examples, count: usize) -> Result<Vec<&'a Tensor>, Error> {
        let losses = &self.compiled()?.losses;
        let names: Vec<&str> = losses.iter().map(|(_, loss)| loss.output.as_str()).collect();
        let tensors = arranged(y, "y", &names)?;
        for (name, tensor) in names.iter().zip(&tensors) {
            if tensor.shape().first() != Some(&count) {
                let what = if names.len() == 1 { "y".to_string() } else { format!("y of `{name}`") };
                let expected = format!("{count} rows");
                return Err(TrainingError::Data { what, expected, found: tensor.ty() }.into());
            }
        }
        Ok(tensors)
    }

    /// Fails unless so many examples can be taken so many at a time.
    pub(super) fn check_batches(&self, count: usize, batch_size: usize) -> Result<(), Error> {
        match self.network.fixed_batch() {
            Some((input, size)) if batch_size != size || !count.is_multiple_of(size.max(1)) => {
                Err(TrainingError::FixedBatch { input: input.to_string(), size, batch_size, count }.into())
            }
            _ => Ok(()),
        }
    }

    /// The training step for inputs of these types, and of what is true and of weights.
    fn step_for(
        &self,
        x: &[TensorType],
        y: &[TensorType],
        weights: Option<&TensorType>,
    ) -> Result<Step, Error> {
        let (mut built, predictions) = self.built(x, true)?;
        let objective = self.compiled()?;
        let (loss, _) = objective.add_loss(&mut built, &predictions, y, weights)?;
        let names = self.network.outputs().iter().map(String::as_str);
        let results: Vec<(&str, Value)> = names.zip(predictions).collect();
        let step = objective.optimizer.step(built, loss, &results)?;
        if step.unused.len() == step.state.variables.iter().filter(|v| v.trainable).count() {
            return Err(TrainingError::NothingTrained.into());
        }
        Ok(step)
    }

    /// The training step on so many examples as a graph, to be compiled ahead. `size` gives the sizes of other named
    /// dimensions. The state that it begins with holds what the variables hold now.
    pub fn training_step(
        &self,
        batch: usize,
        size: impl Fn(&str) -> Option<usize>,
    ) -> Result<(Step, Vec<Tensor>), Error> {
        self.check_batches(batch, batch)?;
        let mut x = self.network.types(batch, self.dtype);
        for dim in x.iter_mut().flat_map(|ty| &mut ty.dims) {
            if let Dim::Named(name) = dim
                && let Some(n) = size(name)
            {
                *dim = Dim::Fixed(n);
            }
        }
        let (built, predictions) = self.built(&x, true)?;
        let of_loss = |(output, own): &(usize, OutputLoss)| {
            truth_type(&own.loss, built.builder.ty(predictions[*output]))
        };
        let y: Vec<TensorType> = self.compiled()?.losses.iter().map(of_loss).collect();
        let step = self.step_for(&x, &y, None)?;
        let mut state = step.state.initial(self.seed);
        state.splice(..self.values.len(), self.values.iter().cloned());
        Ok((step, state))
    }

    /// One training step.
    pub(super) fn step(&mut self, batch: Batch) -> Result<StepResult, Error> {
        let key = batch.form();
        if !self.steps.contains_key(&key) {
            let weights = batch.weights.as_ref().map(Tensor::ty);
            let step = self.step_for(&form(&batch.x), &form(&batch.y), weights.as_ref())?;
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
        inputs.extend(batch.x.into_iter().chain(batch.y).chain(batch.weights));
        let mut outs = session.run(inputs)?.into_tensors().into_iter();
        let loss = outs.next().map_or(f64::NAN, |loss| loss.to_f64s()[0]);
        let predictions = outs.by_ref().take(self.network.outputs().len()).collect();
        self.values = outs.by_ref().take(self.variables.len()).collect();
        self.slots = Some(outs.collect());
        Ok(StepResult { loss, predictions })
    }

    /// The loss and the accuracy on examples, `batch_size` of them at a time.
    pub fn evaluate(
        &mut self,
        x: &dyn Examples,
        y: &dyn Examples,
        batch_size: usize,
    ) -> Result<Evaluation, Error> {
        let (x, count) = self.inputs_of(x)?;
        let y = self.truths_of(y, count)?;
        self.check_batches(count, batch_size)?;
        let (mut loss, mut right) = (0.0, Matches::default());
        for numbers in chunks(count, batch_size) {
            let batch = Batch::of(&x, &y, None, &numbers);
            let key = batch.form();
            if !self.evaluations.contains_key(&key) {
                let (mut built, predictions) = self.built(&form(&batch.x), false)?;
                let (mean, _) = self.compiled()?.add_loss(&mut built, &predictions, &form(&batch.y), None)?;
                let mut results = vec![("loss".to_string(), mean)];
                let numbered = predictions.iter().enumerate();
                results.extend(numbered.map(|(i, &value)| (format!("prediction.{i}"), value)));
                let results: Vec<(&str, Value)> =
                    results.iter().map(|(name, value)| (name.as_str(), *value)).collect();
                let session = Session::new(built.graph(&results)?, self.options.clone())?;
                self.evaluations.insert(key.clone(), session);
            }
            let mut outs = self.infer(&self.evaluations[&key], batch.x.iter().chain(&batch.y))?;
            loss += outs.remove(0).to_f64s()[0] * numbers.len() as f64;
            right.count(self.compiled()?, &outs, &batch.y);
        }
        Ok(Evaluation { loss: loss / count.max(1) as f64, accuracy: right.share() })
    }

    /// The predictions for examples, `batch_size` of them at a time, of a model of one output.
    pub fn predict(&mut self, x: &dyn Examples, batch_size: usize) -> Result<Tensor, Error> {
        let mut all = self.predict_all(x, batch_size)?;
        match (all.pop(), all.is_empty()) {
            (Some((_, only)), true) => Ok(only),
            _ => Err(TrainingError::SeveralOutputs { names: self.network.outputs().to_vec() }.into()),
        }
    }

    /// The predictions of every output for examples, `batch_size` of them at a time.
    pub fn predict_all(
        &mut self,
        x: &dyn Examples,
        batch_size: usize,
    ) -> Result<Vec<(String, Tensor)>, Error> {
        let (x, count) = self.inputs_of(x)?;
        self.check_batches(count, batch_size)?;
        let outputs = self.network.outputs().to_vec();
        let mut parts: Vec<Vec<Tensor>> = vec![Vec::new(); outputs.len()];
        for numbers in chunks(count, batch_size) {
            let batch = Batch::of(&x, &[], None, &numbers);
            let key = batch.form();
            if !self.predictions.contains_key(&key) {
                let (built, predictions) = self.built(&key, false)?;
                let results = outputs.iter().map(String::as_str).zip(predictions);
                let graph = built.graph(&results.collect::<Vec<_>>())?;
                self.predictions.insert(key.clone(), Session::new(graph, self.options.clone())?);
            }
            let outs = self.infer(&self.predictions[&key], &batch.x)?;
            parts.iter_mut().zip(outs).for_each(|(part, out)| part.push(out));
        }
        if count == 0 {
            // No examples have no predictions, of the type that one would have.
            let mut types = form(x.iter().copied());
            types.iter_mut().for_each(|ty| ty.dims[0] = Dim::Fixed(1));
            let (built, predictions) = self.built(&types, false)?;
            for (part, value) in parts.iter_mut().zip(predictions) {
                let ty = built.builder.ty(value);
                let mut shape = ty.shape();
                shape[0] = 0;
                part.push(Tensor::zeros(ty.dtype, &shape));
            }
        }
        let mut all = Vec::new();
        for (name, parts) in outputs.into_iter().zip(parts) {
            let stacked = stacked(&parts).ok_or_else(|| TrainingError::NoRows { output: name.clone() })?;
            all.push((name, stacked));
        }
        Ok(all)
    }

    /// Runs a session whose inputs are the variables, under their names, and data in order.
    pub(super) fn infer<'a>(
        &self,
        session: &Session,
        data: impl IntoIterator<Item = &'a Tensor>,
    ) -> Result<Vec<Tensor>, Error> {
        let mut data = data.into_iter();
        let mut inputs = Vec::new();
        for (name, _) in session.inputs() {
            let variable = self.variables.iter().position(|v| v.name == name);
            inputs.extend(match variable {
                Some(at) => Some(self.values[at].clone()),
                None => data.next().cloned(),
            });
        }
        Ok(session.run(inputs)?.into_tensors())
    }

    /// The graph for inference, its weights as constants: of layers for so many examples, of a graph with the dimensions
    /// that it had.
    pub fn graph(&self, batch: usize) -> Result<Graph, Error> {
        if let Some(graph) = self.network.graph_with(&self.values) {
            return Ok(graph?);
        }
        let (built, predictions) = self.built(&self.network.types(batch, self.dtype), false)?;
        let results = self.network.outputs().iter().map(String::as_str).zip(predictions);
        let graph = built.graph(&results.collect::<Vec<_>>())?;
        let mut b = windlass_ir::Builder::new("model");
        let mut values = Vec::new();
        for (name, value) in graph.inputs() {
            values.push(match self.variables.iter().position(|v| v.name == *name) {
                Some(at) => {
                    let op = windlass_ir::ops::Constant { value: self.values[at].clone() };
                    b.push(op, &[], Some(name.as_str().into()))?[0]
                }
                None => b.input(name, graph.ty(*value).clone()),
            });
        }
        let outs = b.inline(&graph, &values)?;
        for ((name, _), value) in graph.outputs().iter().zip(outs) {
            b.output(name, value);
        }
        Ok(b.finish()?)
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

/// The numbers of rows, so many at a time.
fn chunks(count: usize, size: usize) -> impl Iterator<Item = Vec<usize>> {
    let size = size.max(1);
    (0..count).step_by(size).map(move |start| (start..(start + size).min(count)).collect())
}

/// How many classes are right, over all outputs whose loss takes classes.
#[derive(Default)]
pub(super) struct Matches {
    right: usize,
    all: usize,
}

impl Matches {
    /// Counts those of a batch, given the predictions of all outputs.
    pub fn count(&mut self, objective: &Objective, predictions: &[Tensor], truths: &[Tensor]) {
        for ((output, loss), truth) in objective.losses.iter().zip(truths) {
            if loss.loss.takes_classes() {
                let found = largest(&predictions[*output]).into_iter();
                self.right += found.zip(truth.to_ints()).filter(|(found, class)| found == class).count();
                self.all += truth.len();
            }
        }
    }

    /// The share of those that are right, if there are any.
    pub fn share(&self) -> Option<f64> {
        (self.all > 0).then(|| self.right as f64 / self.all as f64)
    }
}
