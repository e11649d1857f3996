//! What can go wrong between a model file and its results.

use std::path::PathBuf;

/// An error of the facade.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A model file of a kind that is not known.
    #[error("{}: not a model: the name ends neither in .onnx nor in .wir", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// Text that is not IR.
    #[error("{}: {error}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// Its contents, which the error's span points into.
        source_text: String,
        /// What is wrong.
        error: windlass_ir::Error,
    },
    /// A model or data file could not be read.
    #[error(transparent)]
    Frontend(#[from] windlass_frontend::Error),
    /// The graph is invalid, could not be evaluated, or exceeds a limit.
    #[error(transparent)]
    Ir(#[from] windlass_ir::Error),
    /// A pass failed.
    #[error(transparent)]
    Passes(#[from] windlass_passes::Error),
    /// Code could not be made.
    #[error(transparent)]
    Codegen(#[from] windlass_codegen::Error),
    /// Compiled code could not be run.
    #[error(transparent)]
    Runtime(#[from] windlass_runtime::Error),
    /// A program was asked for, but a part of the model can only be compiled while it runs.
    #[error("{node}: its sizes depend on data, so it can run but not be compiled ahead")]
    DataDependent {
        /// The first such node.
        node: String,
    },
    /// An output that cannot be made in the memory of an input.
    #[error("output `{output}` cannot stand in the memory of input `{input}`: {reason}")]
    InPlace {
        /// The input.
        input: String,
        /// The output.
        output: String,
        /// Why.
        reason: String,
    },
    /// A network could not be trained on what it was given.
    #[error(transparent)]
    Training(#[from] crate::nn::TrainingError),
    /// A result is not a number.
    #[error("output `{output}` is not a number: {origin}")]
    NotANumber {
        /// The output.
        output: String,
        /// Where the first came from.
        origin: crate::nan::NanOrigin,
    },
    /// An input was given that the model does not have.
    #[error("the model has no input `{name}`; its inputs are {}", known.join(", "))]
    UnknownInput {
        /// The name given.
        name: String,
        /// The model's inputs.
        known: Vec<String>,
    },
    /// An input was given twice.
    #[error("input `{name}` is given twice")]
    RepeatedInput {
        /// The input.
        name: String,
    },
    /// An input was not given.
    #[error("input `{name}` is missing")]
    MissingInput {
        /// The input.
        name: String,
    },
}

impl Error {
    /// Whether a limit was exceeded.
    pub fn is_limit(&self) -> bool {
        match self {
            Error::Text { error, .. } | Error::Ir(error) => {
                matches!(error, windlass_ir::Error::Limit { .. })
            }
            Error::Frontend(windlass_frontend::Error::Graph(error))
            | Error::Passes(windlass_passes::Error::Ir(error)) => {
                matches!(error, windlass_ir::Error::Limit { .. })
            }
            Error::Frontend(_)
            | Error::Passes(_)
            | Error::Codegen(_)
            | Error::Runtime(_)
            | Error::DataDependent { .. }
            | Error::InPlace { .. }
            | Error::Training(_)
            | Error::NotANumber { .. }
            | Error::Io { .. }
            | Error::UnknownFormat { .. }
            | Error::UnknownInput { .. }
            | Error::RepeatedInput { .. }
            | Error::MissingInput { .. } => false,
        }
    }

    /// Whether the model is valid but needs something that is not supported.
    pub fn is_unsupported(&self) -> bool {
        match self {
            Error::Frontend(error) => error.as_unsupported().is_some(),
            _ => false,
        }
    }
}
