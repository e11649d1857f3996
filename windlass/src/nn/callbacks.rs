//! Callbacks that change the learning rate, and one that writes a table.
//!
//! ```
//! use windlass::nn::{Fit, LearningRateScheduler, Loss, Model, Network, Optimizer, layers::Dense};
//! use windlass::{Options, Tensor};
//!
//! let mut model = Model::new(Network::sequential(&[1]).add(Dense::new(1)), 0, Options::default())?;
//! model.compile(Optimizer::sgd(0.1), Loss::MeanSquaredError);
//! let mut halved = LearningRateScheduler::new(|epoch, rate| if epoch > 0 { rate / 2.0 } else { rate });
//! let x = Tensor::new(&[2, 1], &[1f32, 2.0]);
//! let fit = Fit { epochs: 3, ..Fit::default() };
//! model.fit_with(&x, &x, &fit, &mut [&mut halved])?;
//! assert_eq!(model.learning_rate(), Some(0.025));
//! # Ok::<(), windlass::Error>(())
//! ```

use std::fmt::{self, Write as _};
use std::path::PathBuf;

use super::error::TrainingError;
use super::fit::{Callback, Control, Epoch};
use super::model::Model;
use crate::error::Error;
use crate::files::write_whole;

/// Sets the learning rate before each epoch: a function of the epoch's number and the rate so far.
pub struct LearningRateScheduler {
    rate: Box<dyn FnMut(usize, f64) -> f64>,
}

impl LearningRateScheduler {
    /// By this function.
    pub fn new(rate: impl FnMut(usize, f64) -> f64 + 'static) -> LearningRateScheduler {
        LearningRateScheduler { rate: Box::new(rate) }
    }
}

impl fmt::Debug for LearningRateScheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LearningRateScheduler")
    }
}

/// The learning rate, which a schedule must not set too.
fn rate_of(model: &Model) -> Result<f64, Error> {
    Ok(model.learning_rate().ok_or(TrainingError::Scheduled)?)
}

impl Callback for LearningRateScheduler {
    fn on_epoch_begin(&mut self, epoch: usize, model: &mut Model) -> Result<(), Error> {
        let rate = (self.rate)(epoch, rate_of(model)?);
        model.set_learning_rate(rate)
    }

    fn on_epoch_end(&mut self, _: &Epoch, _: &mut Model) -> Result<Control, Error> {
        Ok(Control::Continue)
    }
}

/// Multiplies the learning rate by `factor` once the loss has not become less for `patience` epochs: that on the
/// validation data, if there is some.
#[derive(Clone, Debug)]
pub struct ReduceLrOnPlateau {
    /// By what.
    pub factor: f64,
    /// How many epochs.
    pub patience: usize,
    /// By how much less at least.
    pub min_delta: f64,
    /// For how many epochs after a change none is counted.
    pub cooldown: usize,
    /// What the learning rate does not go below.
    pub min_rate: f64,
    best: f64,
    waited: usize,
    resting: usize,
}

impl Default for ReduceLrOnPlateau {
    /// A tenth after ten epochs, as in Keras.
    fn default() -> ReduceLrOnPlateau {
        ReduceLrOnPlateau {
            factor: 0.1,
            patience: 10,
            min_delta: 1e-4,
            cooldown: 0,
            min_rate: 0.0,
            best: f64::INFINITY,
            waited: 0,
            resting: 0,
        }
    }
}

impl ReduceLrOnPlateau {
    /// By this factor after so many epochs.
    pub fn new(factor: f64, patience: usize) -> ReduceLrOnPlateau {
        ReduceLrOnPlateau { factor, patience, ..ReduceLrOnPlateau::default() }
    }
}

impl Callback for ReduceLrOnPlateau {
    fn on_epoch_end(&mut self, epoch: &Epoch, model: &mut Model) -> Result<Control, Error> {
        if self.resting > 0 {
            (self.resting, self.waited) = (self.resting - 1, 0);
        }
        if epoch.watched() < self.best - self.min_delta {
            (self.best, self.waited) = (epoch.watched(), 0);
        } else if self.resting == 0 {
            self.waited += 1;
            let rate = rate_of(model)?;
            if self.waited >= self.patience && rate > self.min_rate {
                model.set_learning_rate((rate * self.factor).max(self.min_rate))?;
                (self.resting, self.waited) = (self.cooldown, 0);
            }
        }
        Ok(Control::Continue)
    }
}

/// Writes a line of comma-separated numbers for each epoch. The file is always a whole one.
#[derive(Clone, Debug)]
pub struct CsvLogger {
    path: PathBuf,
    text: String,
}

impl CsvLogger {
    /// To this file, in place of what is there.
    pub fn new(path: impl Into<PathBuf>) -> CsvLogger {
        CsvLogger { path: path.into(), text: String::new() }
    }
}

impl Callback for CsvLogger {
    fn on_epoch_end(&mut self, epoch: &Epoch, _: &mut Model) -> Result<Control, Error> {
        let (names, values): (Vec<String>, Vec<f64>) = epoch.by_name().into_iter().unzip();
        if self.text.is_empty() {
            let _ = writeln!(self.text, "epoch,{}", names.join(","));
        }
        let _ = write!(self.text, "{}", epoch.number);
        values.iter().for_each(|value| _ = write!(self.text, ",{value}"));
        self.text.push('\n');
        let io = |error| Error::Io { path: self.path.clone(), error };
        write_whole(&self.path, self.text.as_bytes()).map_err(io)?;
        Ok(Control::Continue)
    }
}
