//! How the command fails: a message on stderr and an exit code.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use ariadne::{Color, Config, IndexType, Label, Report, ReportKind, Source};
use windlass::Error;

/// The exit code of what the keyboard interrupted: 128 and the number of the signal, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// Why a subcommand did not succeed.
pub enum Failure {
    /// The compiler said no.
    Error(Error),
    /// Something else went wrong.
    Message(String),
    /// The arguments do not fit the model.
    Usage(String),
    /// A result differs from the expected one; what differs was printed already.
    Mismatch,
    /// The keyboard interrupted it; what was kept.
    Interrupted(String),
    /// Something failed and was printed already.
    Reported,
}

impl Failure {
    /// A file that could not be read or written.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Failure + use<> {
        let path = path.to_path_buf();
        |error| Failure::Error(Error::Io { path, error })
    }

    /// Prints the message, if any, and gives the exit code.
    pub fn report(self) -> ExitCode {
        let code = match &self {
            Failure::Error(error) if error.is_limit() => 4,
            Failure::Error(_) | Failure::Message(_) | Failure::Reported => 1,
            Failure::Usage(_) => 2,
            Failure::Mismatch => 3,
            Failure::Interrupted(_) => INTERRUPTED,
        };
        match self {
            Failure::Error(error) => print_error(&error),
            Failure::Message(message) | Failure::Usage(message) => eprintln!("error: {message}"),
            Failure::Interrupted(message) => eprintln!("{message}"),
            Failure::Mismatch | Failure::Reported => {}
        }
        ExitCode::from(code)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Error(error)
    }
}

impl From<windlass_ir::Error> for Failure {
    fn from(error: windlass_ir::Error) -> Failure {
        Failure::Error(error.into())
    }
}

/// Output that nobody reads any more (`windlass list ops | head`) ends the command.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::Reported,
            _ => Failure::Message(error.to_string()),
        }
    }
}

/// Text errors are shown with the text around them.
fn print_error(error: &Error) {
    if let Error::Text { path, source_text, error: windlass_ir::Error::Parse { span: at, message } } = error {
        let file = path.display().to_string();
        // An error at the end of the text points behind its last byte.
        let start = at.start.min(source_text.len().saturating_sub(1));
        let span = (file.clone(), start..at.end.clamp(start, source_text.len()));
        let config = Config::default()
            .with_index_type(IndexType::Byte)
            .with_color(io::IsTerminal::is_terminal(&io::stderr()));
        let report = Report::build(ReportKind::Error, span.clone())
            .with_config(config)
            .with_message("this is not IR text")
            .with_label(Label::new(span).with_message(message).with_color(Color::Red))
            .finish();
        if report.eprint((file, Source::from(source_text))).is_ok() {
            return;
        }
    }
    eprintln!("error: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        eprintln!("  because: {cause}");
        source = cause.source();
    }
}
