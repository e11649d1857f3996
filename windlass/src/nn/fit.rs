//! Training over epochs, and what may happen between them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use windlass_frontend::nn::initializers::Random;
use windlass_ir::{DType, Tensor};

use super::adversarial::Adversarial;
use super::augment::Augment;
use super::data::Examples;
use super::error::TrainingError;
use super::model::Model;
use super::progress::Progress;
use super::run::{Batch, Evaluation};
use super::sampling::shuffle;
use crate::error::Error;
use crate::nan::{NanPolicy, imputed};

/// In which order an epoch takes the examples.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Order {
    /// In a new random one, that follows from the model's seed and the epoch.
    #[default]
    Shuffled,
    /// As they are.
    Given,
    /// In these, one an epoch, from the first again after the last.
    Listed(Vec<Vec<usize>>),
}

/// How a model is trained.
#[derive(Debug)]
pub struct Fit<'a> {
    /// How often every example is seen, epochs before `first_epoch` included.
    pub epochs: usize,
    /// The epoch to begin with: as many are taken for done.
    pub first_epoch: usize,
    /// How many examples a step has; the last one of an epoch may have fewer.
    pub batch_size: usize,
    /// In which order.
    pub order: Order,
    /// Examples and what is true of them, to evaluate after every epoch.
    pub validation: Option<(&'a dyn Examples, &'a dyn Examples)>,
    /// A weight for each class.
    pub class_weight: Option<Vec<f64>>,
    /// A weight for each example, or where each of several positions has a class for each of these.
    pub sample_weight: Option<Vec<f64>>,
    /// How the examples of a step are changed at random.
    pub augment: Option<Augment>,
    /// Which of them, after that, are attacked.
    pub adversarial: Option<Adversarial>,
    /// Whether each epoch prints a line, and on a terminal each step how far it is.
    pub verbose: bool,
    /// What is done about examples and losses that are not numbers.
    pub nan: NanPolicy,
}

impl Default for Fit<'_> {
    /// One epoch in steps of 32, shuffled.
    fn default() -> Self {
        Fit {
            epochs: 1,
            first_epoch: 0,
            batch_size: 32,
            order: Order::Shuffled,
            validation: None,
            class_weight: None,
            sample_weight: None,
            augment: None,
            adversarial: None,
            verbose: false,
            nan: NanPolicy::Stop,
        }
    }
}

/// What came of an epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Epoch {
    /// Its number, from 0.
    pub number: usize,
    /// The mean of the losses of its steps, each before its update.
    pub loss: f64,
    /// The share of examples whose class was right, where what is true are classes.
    pub accuracy: Option<f64>,
    /// The metrics that the model was compiled with, by name, of the predictions of its steps.
    pub metrics: Vec<(String, f64)>,
    /// The evaluation after it.
    pub validation: Option<Evaluation>,
}

/// Where training is.
#[derive(Clone, Debug, PartialEq)]
pub struct StepEnd {
    /// The epoch, from 0.
    pub epoch: usize,
    /// The step in it that is done, from 0.
    pub step: usize,
    /// How many steps an epoch has.
    pub steps: usize,
    /// The mean of the losses of this epoch's examples so far.
    pub loss: f64,
}

/// What came of training.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// The loss of each epoch.
    pub loss: Vec<f64>,
    /// The accuracy of each, where there is one.
    pub accuracy: Vec<f64>,
    /// The loss on the validation data after each, where there is some.
    pub validation_loss: Vec<f64>,
    /// The accuracy on it.
    pub validation_accuracy: Vec<f64>,
    /// Each metric of each epoch; of the validation data with `val_` before its name.
    pub metrics: BTreeMap<String, Vec<f64>>,
}

impl History {
    /// A number of each epoch by Keras's name for it: `loss`, `accuracy`, a metric's name, or one of these after `val_`.
    pub fn named(&self, name: &str) -> Option<&[f64]> {
        let own = match name {
            "loss" => &self.loss,
            "accuracy" => &self.accuracy,
            "val_loss" => &self.validation_loss,
            "val_accuracy" => &self.validation_accuracy,
            name => self.metrics.get(name)?,
        };
        (!own.is_empty()).then_some(own).or_else(|| self.metrics.get(name)).map(Vec::as_slice)
    }

    /// Adds an epoch.
    pub fn push(&mut self, epoch: &Epoch) {
        self.loss.push(epoch.loss);
        self.accuracy.extend(epoch.accuracy);
        if let Some(validation) = &epoch.validation {
            self.validation_loss.push(validation.loss);
            self.validation_accuracy.extend(validation.accuracy);
        }
        let validation = epoch.validation.iter().flat_map(|validation| &validation.metrics);
        let validation = validation.map(|(name, value)| (format!("val_{name}"), *value));
        for (name, value) in epoch.metrics.iter().cloned().chain(validation) {
            self.metrics.entry(name).or_default().push(value);
        }
    }

    /// The columns under their names, those that are empty left out.
    pub fn columns(&self) -> impl Iterator<Item = (&str, &[f64])> {
        let all = [
            ("loss", &self.loss[..]),
            ("accuracy", &self.accuracy),
            ("validation_loss", &self.validation_loss),
            ("validation_accuracy", &self.validation_accuracy),
        ];
        // The metric of that name is the same.
        let has_accuracy = !self.accuracy.is_empty();
        let metrics = self.metrics.iter().map(|(name, column)| (name.as_str(), column.as_slice()));
        let others =
            metrics.filter(move |(name, _)| !has_accuracy || !matches!(*name, "accuracy" | "val_accuracy"));
        all.into_iter().chain(others).filter(|(_, column)| !column.is_empty())
    }
}

/// Whether training goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// It does.
    Continue,
    /// It ends.
    Stop,
}

/// What happens between steps and epochs.
pub trait Callback {
    /// Before an epoch, by its number.
    fn on_epoch_begin(&mut self, epoch: usize, model: &mut Model) -> Result<(), Error> {
        let _ = (epoch, model);
        Ok(())
    }

    /// After a step of an epoch. Where training stops here, the epoch is not ended: it counts for nothing.
    fn on_step_end(&mut self, step: &StepEnd) -> Control {
        let _ = step;
        Control::Continue
    }

    /// After an epoch.
    fn on_epoch_end(&mut self, epoch: &Epoch, model: &mut Model) -> Result<Control, Error>;

    /// After the last epoch.
    fn on_train_end(&mut self, model: &mut Model) -> Result<(), Error> {
        let _ = model;
        Ok(())
    }
}

impl Epoch {
    /// What an epoch of so many prints.
    pub fn summary(&self, epochs: usize) -> String {
        let numbers: Vec<String> =
            self.by_name().iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        format!("epoch {}/{epochs}: {}", self.number + 1, numbers.join(", "))
    }

    /// The loss that callbacks watch: that on the validation data, if there is some.
    pub fn watched(&self) -> f64 {
        self.validation.as_ref().map_or(self.loss, |v| v.loss)
    }

    /// All its numbers by Keras's names, those on the validation data after `val_`.
    pub fn by_name(&self) -> Vec<(String, f64)> {
        let part = |prefix: &str, loss: f64, accuracy: Option<f64>, metrics: &[(String, f64)]| {
            let accuracy = accuracy.filter(|_| metrics.iter().all(|(name, _)| name != "accuracy"));
            let own = accuracy.map(|value| ("accuracy".to_string(), value));
            let all = [("loss".to_string(), loss)].into_iter().chain(own).chain(metrics.iter().cloned());
            all.map(|(name, value)| (format!("{prefix}{name}"), value)).collect::<Vec<_>>()
        };
        let mut all = part("", self.loss, self.accuracy, &self.metrics);
        if let Some(Evaluation { loss, accuracy, metrics }) = &self.validation {
            all.extend(part("val_", *loss, *accuracy, metrics));
        }
        all
    }
}

/// Ends training once the loss has not become less for `patience` epochs.
#[derive(Clone, Debug)]
pub struct EarlyStopping {
    /// How many epochs.
    pub patience: usize,
    /// By how much at least.
    pub min_delta: f64,
    /// Whether the weights of the best epoch come back.
    pub restore_best_weights: bool,
    best: f64,
    waited: usize,
    weights: Vec<Tensor>,
}

impl EarlyStopping {
    /// After so many epochs without any improvement.
    pub fn new(patience: usize) -> EarlyStopping {
        EarlyStopping {
            patience,
            min_delta: 0.0,
            restore_best_weights: false,
            best: f64::INFINITY,
            waited: 0,
            weights: Vec::new(),
        }
    }
}

impl Callback for EarlyStopping {
    fn on_epoch_end(&mut self, epoch: &Epoch, model: &mut Model) -> Result<Control, Error> {
        if epoch.watched() < self.best - self.min_delta {
            (self.best, self.waited) = (epoch.watched(), 0);
            if self.restore_best_weights {
                self.weights = model.values.clone();
            }
            return Ok(Control::Continue);
        }
        self.waited += 1;
        Ok(if self.waited >= self.patience { Control::Stop } else { Control::Continue })
    }

    fn on_train_end(&mut self, model: &mut Model) -> Result<(), Error> {
        if !self.weights.is_empty() {
            model.values = std::mem::take(&mut self.weights);
        }
        Ok(())
    }
}

/// Saves the weights after every epoch, or after those that are better than all before.
#[derive(Clone, Debug)]
pub struct ModelCheckpoint {
    /// Where; the file is always a whole one.
    pub path: PathBuf,
    /// Whether only better ones are saved.
    pub save_best_only: bool,
    best: f64,
}

impl ModelCheckpoint {
    /// After every epoch.
    pub fn new(path: impl Into<PathBuf>) -> ModelCheckpoint {
        ModelCheckpoint { path: path.into(), save_best_only: false, best: f64::INFINITY }
    }
}

impl Callback for ModelCheckpoint {
    fn on_epoch_end(&mut self, epoch: &Epoch, model: &mut Model) -> Result<Control, Error> {
        if !self.save_best_only || epoch.watched() < self.best {
            self.best = self.best.min(epoch.watched());
            model.save_weights(&self.path)?;
        }
        Ok(Control::Continue)
    }
}

impl Model {
    /// Trains on examples and what is true of them: a tensor each, or several by the names of inputs and outputs.
    pub fn fit(&mut self, x: &dyn Examples, y: &dyn Examples, fit: &Fit<'_>) -> Result<History, Error> {
        self.fit_with(x, y, fit, &mut [])
    }

    /// Trains, with callbacks between epochs.
    pub fn fit_with(
        &mut self,
        x: &dyn Examples,
        y: &dyn Examples,
        fit: &Fit<'_>,
        callbacks: &mut [&mut dyn Callback],
    ) -> Result<History, Error> {
        let (x, count) = self.inputs_of(x)?;
        let y = self.truths_of(y, count)?;
        self.check_batches(count, fit.batch_size)?;
        let weights = self.weights(&y, count, fit)?;
        let mut history = History::default();
        for number in fit.first_epoch..fit.epochs {
            let order = order(&fit.order, count, self.seed, number)?;
            for callback in callbacks.iter_mut() {
                callback.on_epoch_begin(number, self)?;
            }
            let Some(epoch) = self.epoch(number, (&x, &y, weights.as_ref()), &order, fit, callbacks)? else {
                break;
            };
            history.push(&epoch);
            if fit.verbose {
                eprintln!("{}", epoch.summary(fit.epochs));
            }
            let mut control = Control::Continue;
            for callback in callbacks.iter_mut() {
                if callback.on_epoch_end(&epoch, self)? == Control::Stop {
                    control = Control::Stop;
                }
            }
            if control == Control::Stop {
                break;
            }
        }
        for callback in callbacks {
            callback.on_train_end(self)?;
        }
        Ok(history)
    }

    /// One epoch; `None` if it was stopped before its end.
    fn epoch(
        &mut self,
        number: usize,
        (x, y, weights): (&[&Tensor], &[&Tensor], Option<&Tensor>),
        order: &[usize],
        fit: &Fit<'_>,
        callbacks: &mut [&mut dyn Callback],
    ) -> Result<Option<Epoch>, Error> {
        let (mut tallies, mut loss, mut total) = (self.tallies()?, 0.0, 0.0);
        let steps = order.len().div_ceil(fit.batch_size.max(1));
        let mut progress = Progress::new(fit.verbose);
        for (step, numbers) in order.chunks(fit.batch_size.max(1)).enumerate() {
            let mut batch = Batch::of(x, y, weights, numbers);
            self.change(&mut batch, y, numbers, number, fit)?;
            let truths = batch.y.clone();
            let result = self.step(batch, fit.nan == NanPolicy::Stop)?;
            if let Some(origin) = result.origin {
                return Err(TrainingError::LossIsNan { epoch: number, step, origin }.into());
            }
            let examples = tallies.add(&result.predictions, &truths);
            total += examples;
            loss += result.loss * examples;
            let at = StepEnd { epoch: number, step, steps, loss: loss / total.max(1.0) };
            progress.show(&at, fit.epochs);
            let stops = callbacks.iter_mut().map(|callback| callback.on_step_end(&at));
            if stops.fold(false, |stops, control| stops | (control == Control::Stop)) {
                progress.clear();
                return Ok(None);
            }
        }
        progress.clear();
        let validation = match fit.validation {
            Some((x, y)) => match fit.nan {
                NanPolicy::Impute(number) => {
                    let of = |(name, x): (&str, &Tensor)| (name.to_string(), imputed(x, number));
                    let x: Vec<(String, Tensor)> = x.tensors().into_iter().map(of).collect();
                    Some(self.evaluate(&x, y, fit.batch_size)?)
                }
                NanPolicy::Stop | NanPolicy::Propagate => Some(self.evaluate(x, y, fit.batch_size)?),
            },
            None => None,
        };
        let loss = loss / f64::max(total, f64::MIN_POSITIVE);
        let (accuracy, metrics) = (tallies.accuracy(), tallies.results());
        Ok(Some(Epoch { number, loss, accuracy, metrics, validation }))
    }

    /// Makes the examples of a step those that are trained on.
    fn change(
        &mut self,
        batch: &mut Batch,
        y: &[&Tensor],
        numbers: &[usize],
        epoch: usize,
        fit: &Fit<'_>,
    ) -> Result<(), Error> {
        if let NanPolicy::Impute(number) = fit.nan {
            batch.x.iter_mut().for_each(|x| *x = imputed(x, number));
        }
        if fit.augment.is_none() && fit.adversarial.is_none() {
            return Ok(());
        }
        let ([x], [y]) = (&mut batch.x[..], y) else {
            let (expected, found) = ("one input and one loss".to_string(), "a model of several".to_string());
            return Err(
                TrainingError::Setting { what: "what is augmented or attacked", expected, found }.into()
            );
        };
        if let Some(augment) = &fit.augment {
            *x = augment.apply(x, numbers, epoch)?;
        }
        if let Some(adversarial) = &fit.adversarial {
            *x = adversarial.mixed(self, x, y, numbers, epoch)?;
        }
        Ok(())
    }

    /// The weights of examples, or of their positions where the only loss has a class for each, if there are some.
    fn weights(&self, y: &[&Tensor], count: usize, fit: &Fit<'_>) -> Result<Option<Tensor>, Error> {
        if fit.class_weight.is_none() && fit.sample_weight.is_none() {
            return Ok(None);
        }
        let losses = &self.compiled()?.losses;
        let of_classes = losses.iter().zip(y).find(|((_, own), _)| own.loss.takes_classes());
        // Where there are several losses their weights are those of examples.
        let positions = losses.len() == 1 && of_classes.is_some();
        let shape = if positions { y[0].shape().to_vec() } else { vec![count] };
        let len: usize = shape.iter().product();
        let mut weights = match &fit.sample_weight {
            Some(given) if given.len() == len => given.clone(),
            Some(given) if given.len() == count => {
                given.iter().flat_map(|&weight| std::iter::repeat_n(weight, len / count.max(1))).collect()
            }
            Some(given) => {
                let found = windlass_ir::TensorType::fixed(DType::F64, &[given.len()]);
                let expected = format!("{count} weights");
                return Err(TrainingError::Data { what: "sample_weight".to_string(), expected, found }.into());
            }
            None => vec![1.0; len],
        };
        if let Some(classes) = &fit.class_weight {
            let y = of_classes.map_or(y[0], |(_, y)| *y);
            let unfit = || TrainingError::Data {
                what: "class_weight".to_string(),
                expected: "a weight for every class, and one class for each weight".to_string(),
                found: y.ty(),
            };
            if y.len() != len {
                return Err(unfit().into());
            }
            let mask = of_classes.and_then(|((_, own), _)| own.loss.unmasked().1);
            for (weight, class) in weights.iter_mut().zip(y.to_ints()) {
                if mask.is_none_or(|mask| !mask.hides(class as f64)) {
                    let own = usize::try_from(class).ok().and_then(|class| classes.get(class));
                    *weight *= own.ok_or_else(unfit)?;
                }
            }
        }
        Ok(Some(Tensor::from_f64s(self.dtype, &shape, &weights)))
    }
}

/// The order of an epoch's examples.
fn order(order: &Order, count: usize, seed: u64, epoch: usize) -> Result<Vec<usize>, Error> {
    let mut numbers: Vec<usize> = (0..count).collect();
    match order {
        Order::Given => {}
        Order::Shuffled => {
            let seed = seed.wrapping_add((epoch as u64).wrapping_mul(0x9e37_79b9));
            shuffle(&mut numbers, &mut Random::new("order", seed));
        }
        Order::Listed(orders) => {
            let Some(listed) = orders.get(epoch % orders.len().max(1)) else { return Ok(numbers) };
            if let Some(&outside) = listed.iter().find(|&&row| row >= count) {
                return Err(TrainingError::Row { row: outside, count }.into());
            }
            numbers.clone_from(listed);
        }
    }
    Ok(numbers)
}
