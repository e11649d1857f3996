//! Why a part of a model could not be imported, before it is known which part it is.

use crate::error::Error;

/// What is wrong, without its subject: whoever knows the node or tensor adds that.
#[derive(Debug)]
pub(crate) enum Problem {
    /// Valid, but Windlass has no way to express it. Importing goes on, to find what else is.
    Unsupported(String),
    /// Breaks a rule of ONNX.
    Invalid(String),
    /// An error that already says where it is.
    Error(Error),
}

impl Problem {
    /// The error for this problem in `subject`.
    pub fn within(self, subject: impl Into<String>) -> Error {
        match self {
            Problem::Unsupported(reason) => Error::unsupported(subject, reason),
            Problem::Invalid(message) => Error::invalid(subject, message),
            Problem::Error(error) => error,
        }
    }
}

impl From<windlass_ir::Error> for Problem {
    fn from(error: windlass_ir::Error) -> Problem {
        Problem::Error(Error::Graph(error))
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        Problem::Error(error)
    }
}

/// Fails with [`Problem::Unsupported`].
macro_rules! unsupported {
    ($($message:tt)*) => { return Err($crate::onnx::problem::Problem::Unsupported(format!($($message)*))) };
}

/// Fails with [`Problem::Invalid`].
macro_rules! invalid {
    ($($message:tt)*) => { return Err($crate::onnx::problem::Problem::Invalid(format!($($message)*))) };
}

pub(crate) use {invalid, unsupported};
