//! Training over epochs, and what may happen between them.

use std::path::PathBuf;

use windlass_frontend::nn::initializers::Random;
use windlass_ir::{DType, Tensor};

use super::data::Examples;
use super::error::TrainingError;
use super::model::{Batch, Evaluation, Matches, Model};
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
            first_epoch: 0,
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

impl History {
    /// Adds an epoch.
    pub fn push(&mut self, epoch: &Epoch) {
        self.loss.push(epoch.loss);
        self.accuracy.extend(epoch.accuracy);
        if let Some(validation) = &epoch.validation {
            self.validation_loss.push(validation.loss);
            self.validation_accuracy.extend(validation.accuracy);
        }
    }

    /// The columns under their names, those that are empty left out.
    pub fn columns(&self) -> impl Iterator<Item = (&'static str, &[f64])> {
        let all = [
            ("loss", &self.loss[..]),
            ("accuracy", &self.accuracy),
            ("validation_loss", &self.validation_loss),
            ("validation_accuracy", &self.validation_accuracy),
        ];
        all.into_iter().filter(|(_, column)| !column.is_empty())
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

/// What happens between epochs and between steps.
pub trait Callback {
    /// After an epoch.
    fn on_epoch_end(&mut self, epoch: &Epoch, model: &mut Model) -> Result<Control, Error>;

    /// After a step of an epoch. Where training stops here, the epoch is not ended: it counts for nothing.
    fn on_step_end(&mut self, step: &StepEnd) -> Control {
        let _ = step;
        Control::Continue
    }

    /// After the last epoch.
    fn on_train_end(&mut self, model: &mut Model) -> Result<(), Error> {
        let _ = model;
        Ok(())
    }
}

impl Epoch {
    /// What an epoch of so many prints.
    pub fn summary(&self, epochs: usize) -> String {
        let mut text = format!("epoch {}/{epochs}: loss {:.4}", self.number + 1, self.loss);
        if let Some(accuracy) = self.accuracy {
            text += &format!(", accuracy {accuracy:.4}");
        }
        if let Some(validation) = &self.validation {
            text += &format!("; validation loss {:.4}", validation.loss);
            if let Some(accuracy) = validation.accuracy {
                text += &format!(", accuracy {accuracy:.4}");
            }
        }
        text
    }

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
        let (mut loss, mut seen, mut right) = (0.0, 0, Matches::default());
        let steps = order.len().div_ceil(fit.batch_size.max(1));
        for (step, numbers) in order.chunks(fit.batch_size.max(1)).enumerate() {
            let batch = Batch::of(x, y, weights, numbers);
            let truths = batch.y.clone();
            let result = self.step(batch)?;
            if fit.stop_at_nan && result.loss.is_nan() {
                return Err(TrainingError::LossIsNan { epoch: number, step }.into());
            }
            loss += result.loss * numbers.len() as f64;
            seen += numbers.len();
            right.count(self.compiled()?, &result.predictions, &truths);
            let at = StepEnd { epoch: number, step, steps, loss: loss / seen as f64 };
            let stops = callbacks.iter_mut().map(|callback| callback.on_step_end(&at));
            if stops.fold(false, |stops, control| stops | (control == Control::Stop)) {
                return Ok(None);
            }
        }
        let validation = match fit.validation {
            Some((x, y)) => Some(self.evaluate(x, y, fit.batch_size)?),
            None => None,
        };
        let loss = loss / seen.max(1) as f64;
        Ok(Some(Epoch { number, loss, accuracy: right.share(), validation }))
    }

    /// The weight of each example, if any has one.
    fn weights(&self, y: &[&Tensor], count: usize, fit: &Fit<'_>) -> Result<Option<Tensor>, Error> {
        if fit.class_weight.is_none() && fit.sample_weight.is_none() {
            return Ok(None);
        }
        let mut weights = match &fit.sample_weight {
            Some(given) if given.len() != count => {
                let found = windlass_ir::TensorType::fixed(DType::F64, &[given.len()]);
                let expected = format!("{count} weights");
                return Err(TrainingError::Data { what: "sample_weight".to_string(), expected, found }.into());
            }
            Some(given) => given.clone(),
            None => vec![1.0; count],
        };
        if let Some(classes) = &fit.class_weight {
            let losses = &self.compiled()?.losses;
            let of_classes = losses.iter().zip(y).find(|((_, loss), _)| loss.loss.takes_classes());
            let y = of_classes.map_or(y[0], |(_, y)| *y);
            let unfit = || TrainingError::Data {
                what: "class_weight".to_string(),
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
