//! What can go wrong while a network is trained.

use std::path::PathBuf;

/// Why a network could not be trained, or its weights not kept.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TrainingError {
    /// Training was asked of a model that has no loss and no optimizer.
    #[error("the model has no loss and no optimizer: compile it first")]
    NotCompiled,
    /// Private training was asked of a model that was not compiled for it.
    #[error("the model is not trained in private: compile it with `compile_private`")]
    NotPrivate,
    /// Data that does not fit a model.
    #[error("{what} is {found}, the model takes {expected}")]
    Data {
        /// Which.
        what: String,
        /// What fits.
        expected: String,
        /// What was given.
        found: windlass_ir::TensorType,
    },
    /// A row that the data does not have.
    #[error("row {row} of {count} rows was asked for")]
    Row {
        /// Which.
        row: usize,
        /// How many there are.
        count: usize,
    },
    /// A setting that makes no sense.
    #[error("{what} is {found}, not {expected}")]
    Setting {
        /// Which.
        what: &'static str,
        /// What makes sense.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A callback was to set a learning rate that a schedule sets.
    #[error("the learning rate follows a schedule, and a callback cannot set it too")]
    Scheduled,
    /// The loss became not a number. The model is as it was before the step.
    #[error("the loss is not a number at step {step} of epoch {epoch}: {origin}")]
    LossIsNan {
        /// The epoch, from 0.
        epoch: usize,
        /// The step in it, from 0.
        step: usize,
        /// Where the first that is none came from.
        origin: crate::nan::NanOrigin,
    },
    /// A variable that the model does not have.
    #[error("the model has no variable `{name}`; its variables are {}", known.join(", "))]
    UnknownVariable {
        /// The name given.
        name: String,
        /// The model's variables.
        known: Vec<String>,
    },
    /// A value of another type than the variable's.
    #[error("variable `{name}` is {expected}, found {found}")]
    VariableType {
        /// The variable.
        name: String,
        /// Its type.
        expected: windlass_ir::TensorType,
        /// What was given.
        found: windlass_ir::TensorType,
    },
    /// A file of weights that cannot be written, or does not fit.
    #[error("{}: {message}", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
}
