//! What can go wrong on the way in.

use std::fmt;
use std::path::PathBuf;

/// A part of a model that cannot be imported, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// The node, initializer, input or output.
    pub subject: String,
    /// What about it.
    pub reason: String,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.reason)
    }
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Bytes that are not the protobuf message they should be.
    #[error("{what} is not valid protobuf: {error}")]
    Protobuf {
        /// The message.
        what: &'static str,
        /// What the decoder said.
        error: prost::DecodeError,
    },
    /// A model that breaks a rule of ONNX.
    #[error("{subject}: {message}")]
    Invalid {
        /// The node, tensor or graph at fault.
        subject: String,
        /// The rule and what was found.
        message: String,
    },
    /// Everything in the model that is valid but that Windlass cannot import.
    #[error("{} in the model cannot be imported:{}", count(.0), list(.0))]
    Unsupported(Vec<Unsupported>),
    /// Everything in the graph that ONNX cannot say.
    #[error("{} in the graph cannot be written as ONNX:{}", count(.0), list(.0))]
    Unwritable(Vec<Unsupported>),
    /// The graph that the model asks for does not hold together, or exceeds a limit.
    #[error(transparent)]
    Graph(#[from] windlass_ir::Error),
    /// A numpy file that cannot be read.
    #[error("{subject}: {message}")]
    Numpy {
        /// The file, and the member of an archive.
        subject: String,
        /// What is wrong with it.
        message: String,
    },
    /// An image that cannot be read.
    #[error("{}: {message}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

impl Error {
    pub(crate) fn invalid(subject: impl Into<String>, message: impl Into<String>) -> Error {
        Error::Invalid { subject: subject.into(), message: message.into() }
    }

    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        |error| Error::File { path, error }
    }

    /// One unsupported thing.
    pub(crate) fn unsupported(subject: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Unsupported(vec![Unsupported { subject: subject.into(), reason: reason.into() }])
    }

    /// Everything unsupported, if that is what went wrong.
    pub fn as_unsupported(&self) -> Option<&[Unsupported]> {
        match self {
            Error::Unsupported(list) | Error::Unwritable(list) => Some(list),
            _ => None,
        }
    }
}

fn count(list: &[Unsupported]) -> String {
    match list.len() {
        1 => "one thing".to_string(),
        n => format!("{n} things"),
    }
}

fn list(list: &[Unsupported]) -> String {
    list.iter().map(|item| format!("\n  {item}")).collect()
}
