//! What a model does with batches of examples: steps, evaluations, predictions.

use windlass_frontend::nn::{Microbatch, Schedule, Step};
use windlass_ir::{Dim, Tensor, TensorType, Value};

use super::data::{Examples, form, rows, stacked};
use super::error::TrainingError;
use super::metrics::{Metric, Tallies};
use super::model::{Form, Model};
use super::objective::{OutputLoss, check, truth_type};
use crate::error::Error;
use crate::nan::{self, NanOrigin};
use crate::options::Options;
use crate::session::Session;

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
    /// Where it came from that the loss is not a number, if that stopped the step.
    pub origin: Option<NanOrigin>,
}

impl Model {
    /// What counts predictions for the model's metrics.
    pub(super) fn tallies(&self) -> Result<Tallies, Error> {
        self.metrics_tallies(&self.metrics)
    }

    /// What counts predictions for these metrics.
    pub(super) fn metrics_tallies(&self, metrics: &[Metric]) -> Result<Tallies, Error> {
        Ok(Tallies::new(metrics, &self.compiled()?.losses))
    }

    /// The training step for inputs of these types, and of what is true and of weights.
    fn step_for(
        &self,
        x: &[TensorType],
        y: &[TensorType],
        weights: Option<&TensorType>,
    ) -> Result<Step, Error> {
        let objective = self.compiled()?;
        if let Some(privacy) = &objective.privacy {
            let training = objective.private(privacy)?;
            let count = x.first().map_or(0, |ty| ty.shape()[0]);
            return training.batch_step(count, |examples| {
                let of = |ty: &TensorType| {
                    let mut ty = ty.clone();
                    ty.dims[0] = Dim::Fixed(examples);
                    ty
                };
                let types: Vec<TensorType> = x.iter().map(of).collect();
                let (mut net, predictions) = self.built(&types, true)?;
                let truth = of(&y[0]);
                check(&training.loss, "y", net.builder.ty(predictions[0]), &truth)?;
                let truth = net.builder.input("y", truth);
                let weights = weights.map(|ty| net.builder.input("weights", of(ty)));
                Ok(Microbatch { net, prediction: predictions[0], truth, weights })
            });
        }
        let (mut built, predictions) = self.built(x, true)?;
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

    /// One training step. With `stop` a loss that is not a number changes nothing.
    pub(super) fn step(&mut self, batch: Batch, stop: bool) -> Result<StepResult, Error> {
        let key = (batch.form(), stop);
        if !self.steps.contains_key(&key) {
            let weights = batch.weights.as_ref().map(Tensor::ty);
            let step = self.step_for(&form(&batch.x), &form(&batch.y), weights.as_ref())?;
            let step = if stop { step.guarded()? } else { step };
            let options = Options { in_place: step.in_place(), ..self.options.clone() };
            let session = Session::new(step.graph, options)?;
            self.steps.insert(key.clone(), (session, step.state));
        }
        let (session, state) = &self.steps[&key];
        let slots = match self.slots.take() {
            Some(slots) => slots,
            None => state.initial(self.seed).split_off(self.variables.len()),
        };
        let mut kept = std::mem::take(&mut self.values);
        kept.extend(slots);
        let mut data: Vec<Tensor> = batch.x.into_iter().chain(batch.y).chain(batch.weights).collect();
        if let Some(Schedule::Adjustable(rate)) = self.training.as_ref().map(|t| &t.optimizer.learning_rate) {
            data.push(Tensor::scalar(*rate));
        }
        let outs = session.run_in_place(&mut kept, &data);
        self.slots = Some(kept.split_off(self.variables.len()));
        self.values = kept;
        let mut predictions = outs?;
        let loss = predictions.remove(0).to_f64s()[0];
        let mut origin = None;
        if stop && loss.is_nan() {
            // Such a step changes nothing, so it can be looked at again.
            let inputs: Vec<Tensor> =
                self.values.iter().chain(self.slots.iter().flatten()).chain(&data).cloned().collect();
            let name = &session.graph().outputs()[0].0;
            origin = Some(match nan::origin(session.graph(), &inputs, name, &self.options)? {
                NanOrigin::Input { name } if self.variables.iter().any(|v| v.name == name) => {
                    NanOrigin::Variable { name }
                }
                origin => origin,
            });
        }
        Ok(StepResult { loss, predictions, origin })
    }

    /// One training step on a batch: its loss before the update.
    pub fn train_on_batch(&mut self, x: &dyn Examples, y: &dyn Examples) -> Result<f64, Error> {
        let (x, count) = self.inputs_of(x)?;
        let y = self.truths_of(y, count)?;
        self.check_batches(count, count)?;
        let all = |tensors: Vec<&Tensor>| tensors.into_iter().cloned().collect();
        Ok(self.step(Batch { x: all(x), y: all(y), weights: None }, false)?.loss)
    }

    /// The loss, the accuracy and the metrics on examples, `batch_size` of them at a time.
    pub fn evaluate(
        &mut self,
        x: &dyn Examples,
        y: &dyn Examples,
        batch_size: usize,
    ) -> Result<Evaluation, Error> {
        let (x, count) = self.inputs_of(x)?;
        let y = self.truths_of(y, count)?;
        self.check_batches(count, batch_size)?;
        let (mut loss, mut total, mut tallies) = (0.0, 0.0, self.tallies()?);
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
            let mean = outs.remove(0).to_f64s()[0];
            let examples = tallies.add(&outs, &batch.y);
            total += examples;
            loss += mean * examples;
        }
        let loss = loss / f64::max(total, f64::MIN_POSITIVE);
        Ok(Evaluation { loss, accuracy: tallies.accuracy(), metrics: tallies.results() })
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
}

/// The numbers of rows, so many at a time.
fn chunks(count: usize, size: usize) -> impl Iterator<Item = Vec<usize>> {
    let size = size.max(1);
    (0..count).step_by(size).map(move |start| (start..(start + size).min(count)).collect())
}
