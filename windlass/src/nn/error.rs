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
        what: &'static str,
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
    /// The loss became not a number.
    #[error("the loss is not a number at step {step} of epoch {epoch}")]
    LossIsNan {
        /// The epoch, from 0.
        epoch: usize,
        /// The step in it, from 0.
        step: usize,
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
