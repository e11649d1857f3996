//! A network with its weights.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use windlass_frontend::nn::{Built, Loss, Net, Optimizer, Schedule, State, Variable, WeightedMean};
use windlass_ir::{DType, Dim, Graph, Tensor, TensorType, Value};

use super::data::{Examples, arranged};
use super::error::TrainingError;
use super::metrics::Metric;
use super::network::Network;
use super::objective::{Objective, OutputLoss};
use crate::error::Error;
use crate::options::Options;
use crate::session::Session;

/// A network with its weights, and once it is compiled a loss and an optimizer.
pub struct Model {
    pub(super) network: Network,
    pub(super) options: Options,
    pub(super) seed: u64,
    pub(super) dtype: DType,
    pub(super) training: Option<Objective>,
    pub(super) metrics: Vec<Metric>,
    /// Whether weights have masks.
    pub(super) masked: bool,
    /// The type that trained variables are kept in.
    storage: DType,
    pub(super) variables: Vec<Variable>,
    /// What the variables hold.
    pub(super) values: Vec<Tensor>,
    /// What the optimizer keeps, once there was a step.
    pub(super) slots: Option<Vec<Tensor>>,
    /// By the types of the data, and whether a loss that is not a number changes nothing.
    pub(super) steps: HashMap<(Form, bool), (Session, State)>,
    pub(super) evaluations: HashMap<Form, Session>,
    pub(super) predictions: HashMap<Form, Session>,
    pub(super) input_gradients: HashMap<Form, Session>,
}

/// The types of the data that something is compiled for.
pub(super) type Form = Vec<TensorType>;

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
            metrics: Vec::new(),
            masked: false,
            storage: dtype,
            variables: Vec::new(),
            values: Vec::new(),
            slots: None,
            steps: HashMap::new(),
            evaluations: HashMap::new(),
            predictions: HashMap::new(),
            input_gradients: HashMap::new(),
        };
        model.variables = model.built_variables()?;
        model.values = model.variables.iter().map(|v| v.initial(seed)).collect();
        Ok(model)
    }

    /// The variables that the network has.
    pub(super) fn built_variables(&self) -> Result<Vec<Variable>, Error> {
        match self.network.graph_variables() {
            Some(variables) => Ok(variables.to_vec()),
            None => Ok(self.built(&self.network.types(1, self.dtype), false)?.0.variables),
        }
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Keeps trained variables of layers in f16 or bf16 from now on. Arithmetic, gradients and what the optimizer keeps
    /// stay in the model's own type; what a step makes of a variable is rounded at random, without bias.
    pub fn with_storage(mut self, storage: DType) -> Result<Model, Error> {
        if !storage.is_float() || storage.size() > self.dtype.size() {
            let (expected, found) = (format!("a float of at most {}", self.dtype), storage.to_string());
            return Err(TrainingError::Setting { what: "the type of variables", expected, found }.into());
        }
        self.storage = storage;
        let variables = self.built_variables()?;
        for (value, variable) in self.values.iter_mut().zip(&variables) {
            *value = Tensor::from_f64s(variable.ty.dtype, value.shape(), &value.to_f64s());
        }
        self.variables = variables;
        self.rebuilt();
        Ok(self)
    }

    /// Sets the optimizer and the loss, which every output has; what an optimizer kept is forgotten.
    pub fn compile(&mut self, optimizer: Optimizer, loss: Loss) {
        self.compile_with(optimizer, loss, []);
    }

    /// Sets the optimizer, the loss, which every output has, and metrics that evaluations and training report.
    pub fn compile_with(
        &mut self,
        optimizer: Optimizer,
        loss: Loss,
        metrics: impl IntoIterator<Item = Metric>,
    ) {
        self.metrics = metrics.into_iter().collect();
        let of_output =
            |output: usize| (output, OutputLoss::new(&self.network.outputs()[output], loss.clone()));
        let losses = (0..self.network.outputs().len()).map(of_output).collect();
        self.train_by(Objective { losses, optimizer, weighted: WeightedMean::Count, privacy: None });
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
        self.metrics = Vec::new();
        let weighted = WeightedMean::Count;
        self.train_by(Objective { losses: placed, optimizer, weighted, privacy: None });
        Ok(())
    }

    /// Sets the metrics that evaluations and training report.
    pub fn set_metrics(&mut self, metrics: impl IntoIterator<Item = Metric>) {
        self.metrics = metrics.into_iter().collect();
    }

    /// Sets how it is trained; what an optimizer kept is forgotten.
    pub(super) fn train_by(&mut self, objective: Objective) {
        self.training = Some(objective);
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

    /// The network for inputs of these types, all sizes known.
    pub(super) fn built(&self, types: &[TensorType], training: bool) -> Result<(Built, Vec<Value>), Error> {
        let net = Net::new("model", self.dtype, training);
        self.built_on(if self.masked { net.with_masks() } else { net }, types)
    }

    fn built_on(&self, net: Net, types: &[TensorType]) -> Result<(Built, Vec<Value>), Error> {
        let mut net = net.with_storage(self.storage);
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
    pub(crate) fn options(&self) -> &Options {
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

    /// The graph for inference, its weights as constants: of layers for so many examples, of a graph with the dimensions
    /// that it had.
    pub fn graph(&self, batch: usize) -> Result<Graph, Error> {
        if let Some(graph) = self.network.graph_with(&self.values) {
            return Ok(graph?);
        }
        let net = Net::new("model", self.dtype, false);
        let (built, predictions) = self.built_on(net, &self.network.types(batch, self.dtype))?;
        let results = self.network.outputs().iter().map(String::as_str).zip(predictions);
        let graph = built.graph(&results.collect::<Vec<_>>())?;
        let mut b = windlass_ir::Builder::new("model");
        let mut values = Vec::new();
        for (name, value) in graph.inputs() {
            values.push(match self.variables.iter().position(|v| v.name == *name) {
                Some(at) => {
                    let op = windlass_ir::ops::Constant { value: self.pruned(at) };
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
