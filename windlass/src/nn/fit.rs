//! Training over epochs, and what may happen between them.

use std::path::PathBuf;

use windlass_frontend::nn::initializers::Random;
use windlass_ir::{DType, Tensor};

use super::data::rows;
use super::error::TrainingError;
use super::model::{Evaluation, Model, matches};
use crate::error::Error;

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
    /// How often every example is seen.
    pub epochs: usize,
    /// How many examples a step has; the last one of an epoch may have fewer.
    pub batch_size: usize,
    /// In which order.
    pub order: Order,
    /// Examples and what is true of them, to evaluate after every epoch.
    pub validation: Option<(&'a Tensor, &'a Tensor)>,
    /// A weight for each class.
    pub class_weight: Option<Vec<f64>>,
    /// A weight for each example.
    pub sample_weight: Option<Vec<f64>>,
    /// Whether each epoch prints a line.
    pub verbose: bool,
    /// Whether a loss that is not a number stops training.
    pub stop_at_nan: bool,
}

impl Default for Fit<'_> {
    /// One epoch in steps of 32, shuffled.
    fn default() -> Self {
        Fit {
            epochs: 1,
            batch_size: 32,
            order: Order::Shuffled,
            validation: None,
            class_weight: None,
            sample_weight: None,
            verbose: false,
            stop_at_nan: true,
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
    /// The evaluation after it.
    pub validation: Option<Evaluation>,
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
}

/// Whether training goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// It does.
    Continue,
    /// It ends.
    Stop,
}

/// What happens between epochs.
pub trait Callback {
    /// After an epoch.
    fn on_epoch_end(&mut self, epoch: &Epoch, model: &mut Model) -> Result<Control, Error>;

    /// After the last epoch.
    fn on_train_end(&mut self, model: &mut Model) -> Result<(), Error> {
        let _ = model;
        Ok(())
    }
}

impl Epoch {
    /// The loss that callbacks watch: that on the validation data, if there is some.
    pub fn watched(&self) -> f64 {
        self.validation.as_ref().map_or(self.loss, |v| v.loss)
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
    /// Trains on examples and what is true of them.
    pub fn fit(&mut self, x: &Tensor, y: &Tensor, fit: &Fit<'_>) -> Result<History, Error> {
        self.fit_with(x, y, fit, &mut [])
    }

    /// Trains, with callbacks between epochs.
    pub fn fit_with(
        &mut self,
        x: &Tensor,
        y: &Tensor,
        fit: &Fit<'_>,
        callbacks: &mut [&mut dyn Callback],
    ) -> Result<History, Error> {
        let count = self.check(x, Some(y))?;
        let weights = self.weights(y, count, fit)?;
        let mut history = History::default();
        for number in 0..fit.epochs {
            let order = order(&fit.order, count, self.seed, number)?;
            let epoch = self.epoch(number, (x, y, weights.as_ref()), &order, fit)?;
            history.loss.push(epoch.loss);
            history.accuracy.extend(epoch.accuracy);
            if let Some(validation) = &epoch.validation {
                history.validation_loss.push(validation.loss);
                history.validation_accuracy.extend(validation.accuracy);
            }
            if fit.verbose {
                eprintln!("{}", line(&epoch, fit.epochs));
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

    fn epoch(
        &mut self,
        number: usize,
        (x, y, weights): (&Tensor, &Tensor, Option<&Tensor>),
        order: &[usize],
        fit: &Fit<'_>,
    ) -> Result<Epoch, Error> {
        let classes = self.training.as_ref().is_some_and(|t| t.loss.takes_classes());
        let (mut loss, mut right) = (0.0, 0);
        for (step, numbers) in order.chunks(fit.batch_size.max(1)).enumerate() {
            let (x, y) = (rows(x, numbers), rows(y, numbers));
            let weights = weights.map(|weights| rows(weights, numbers));
            let result = self.step(&x, &y, weights.as_ref())?;
            if fit.stop_at_nan && result.loss.is_nan() {
                return Err(TrainingError::LossIsNan { epoch: number, step }.into());
            }
            loss += result.loss * numbers.len() as f64;
            if classes {
                right += matches(&result.prediction, &y);
            }
        }
        let each = y.shape()[1..].iter().product::<usize>();
        let validation = match fit.validation {
            Some((x, y)) => Some(self.evaluate(x, y, fit.batch_size)?),
            None => None,
        };
        Ok(Epoch {
            number,
            loss: loss / order.len().max(1) as f64,
            accuracy: classes.then(|| right as f64 / (order.len() * each).max(1) as f64),
            validation,
        })
    }

    /// The weight of each example, if any has one.
    fn weights(&self, y: &Tensor, count: usize, fit: &Fit<'_>) -> Result<Option<Tensor>, Error> {
        if fit.class_weight.is_none() && fit.sample_weight.is_none() {
            return Ok(None);
        }
        let mut weights = match &fit.sample_weight {
            Some(given) if given.len() != count => {
                let found = windlass_ir::TensorType::fixed(DType::F64, &[given.len()]);
                let expected = format!("{count} weights");
                return Err(TrainingError::Data { what: "sample_weight", expected, found }.into());
            }
            Some(given) => given.clone(),
            None => vec![1.0; count],
        };
        if let Some(classes) = &fit.class_weight {
            let unfit = || TrainingError::Data {
                what: "class_weight",
                expected: "a weight for every class, and one class an example".to_string(),
                found: y.ty(),
            };
            if y.rank() != 1 {
                return Err(unfit().into());
            }
            for (weight, class) in weights.iter_mut().zip(y.to_ints()) {
                let own = usize::try_from(class).ok().and_then(|class| classes.get(class));
                *weight *= own.ok_or_else(unfit)?;
            }
        }
        Ok(Some(Tensor::from_f64s(self.dtype, &[count], &weights)))
    }
}

/// The order of an epoch's examples.
fn order(order: &Order, count: usize, seed: u64, epoch: usize) -> Result<Vec<usize>, Error> {
    let mut numbers: Vec<usize> = (0..count).collect();
    match order {
        Order::Given => {}
        Order::Shuffled => {
            // Fisher and Yates.
            let mut random =
                Random::new("order", seed.wrapping_add((epoch as u64).wrapping_mul(0x9e37_79b9)));
            for last in (1..count).rev() {
                numbers.swap(last, (random.bits() % (last as u64 + 1)) as usize);
            }
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

/// What an epoch prints.
fn line(epoch: &Epoch, epochs: usize) -> String {
    let mut text = format!("epoch {}/{epochs}: loss {:.4}", epoch.number + 1, epoch.loss);
    if let Some(accuracy) = epoch.accuracy {
        text += &format!(", accuracy {accuracy:.4}");
    }
    if let Some(validation) = &epoch.validation {
        text += &format!("; validation loss {:.4}", validation.loss);
        if let Some(accuracy) = validation.accuracy {
            text += &format!(", accuracy {accuracy:.4}");
        }
    }
    text
}
