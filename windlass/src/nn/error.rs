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
    /// Data under a name that a model does not have.
    #[error("{what} has `{name}`, the model takes {}", known.join(", "))]
    UnknownData {
        /// `x` or `y`.
        what: &'static str,
        /// The name given.
        name: String,
        /// The names of inputs, or of outputs with a loss.
        known: Vec<String>,
    },
    /// Data that is not given, or more than once.
    #[error("{what} has {count} tensors for `{name}`, the model takes one")]
    MissingData {
        /// `x` or `y`.
        what: &'static str,
        /// The input or output.
        name: String,
        /// How many there are.
        count: usize,
    },
    /// Examples of another number than the one that a model takes at a time.
    #[error(
        "`{input}` takes {size} examples at a time, its first dimension being fixed: {count} of them in batches of {batch_size} do not fit"
    )]
    FixedBatch {
        /// The input.
        input: String,
        /// How many it takes.
        size: usize,
        /// How many were to be given at a time.
        batch_size: usize,
        /// How many there are.
        count: usize,
    },
    /// An input without a dimension for examples.
    #[error("input `{input}` is {ty}: it has no dimension for examples")]
    NoExamples {
        /// The input.
        input: String,
        /// Its type.
        ty: windlass_ir::TensorType,
    },
    /// An input with examples along another dimension than the first.
    #[error("input `{input}` is {ty}: examples are taken along the first dimension, not along `{dim}`")]
    NotFirst {
        /// The input.
        input: String,
        /// Its type.
        ty: windlass_ir::TensorType,
        /// The dimension that seems to be that of the examples.
        dim: String,
    },
    /// A graph without anything to train.
    #[error("the graph has no weights: no constant that has a name, float elements and a dimension")]
    NoWeights,
    /// A loss that depends on no variable that is trained.
    #[error("the loss depends on no variable that is trained")]
    NothingTrained,
    /// A loss of an output that the model does not have.
    #[error("the model has no output `{name}`; its outputs are {}", known.join(", "))]
    UnknownOutput {
        /// The name given.
        name: String,
        /// The model's outputs.
        known: Vec<String>,
    },
    /// Two losses of one output.
    #[error("output `{name}` has two losses")]
    RepeatedOutput {
        /// The output.
        name: String,
    },
    /// One prediction was asked of a model of several outputs.
    #[error("the model has several outputs ({}), where one is asked for", names.join(", "))]
    SeveralOutputs {
        /// Their names.
        names: Vec<String>,
    },
    /// A network that gives another number of results than it has outputs.
    #[error("the network gives {found} results for {expected} outputs")]
    ResultCount {
        /// How many it gives.
        found: usize,
        /// How many outputs it has.
        expected: usize,
    },
    /// An output whose first dimension is not that of the examples.
    #[error("output `{output}` has no row for each example")]
    NoRows {
        /// The output.
        output: String,
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
