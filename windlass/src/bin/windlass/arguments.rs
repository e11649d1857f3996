//! Arguments that several subcommands take.

use clap::{Args, ValueEnum};
use windlass::{Engine, Limits, Options, Tuning};

/// What runs a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    /// Native code made in memory
    Jit,
    /// The interpreter of loops, on what machine code is made from; gives the same bits as jit
    Loops,
    /// The interpreter of graphs: slow, and the definition of the right result
    Interp,
}

/// How a model is compiled and run.
#[derive(Args, Clone, Debug)]
pub struct SessionArgs {
    /// What runs the model
    #[arg(long, value_enum, default_value = "jit")]
    pub engine: EngineName,
    /// Threads of one run; results do not depend on it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: u16,
    /// How much is optimised: 0 to 2
    #[arg(
        short = 'O', long, value_name = "LEVEL", default_value_t = Options::MAX_OPT_LEVEL,
        value_parser = clap::value_parser!(u8).range(..=Options::MAX_OPT_LEVEL as i64)
    )]
    pub opt_level: u8,
    /// The most bits of a vector, 128, 256 or 512; as many as the processor has if not given. Results do not depend on it
    #[arg(long, value_name = "BITS", value_parser = parse_vectors)]
    pub vectors: Option<usize>,
    /// Keep 3x3 convolutions as they are, in place of products of transformed tiles, which round otherwise
    #[arg(long)]
    pub no_winograd: bool,
    /// Round the weights of products to bf16, which products of few rows read in half the time
    #[arg(long)]
    pub bf16_weights: bool,
    /// Choose schedules of products by their times on this machine, and remember them; results do not depend on it
    #[arg(long)]
    pub tune: bool,
    /// The file that remembers them; one in the user's folder for caches if not given
    #[arg(long, value_name = "PATH", requires = "tune")]
    pub tune_cache: Option<std::path::PathBuf>,
    #[command(flatten)]
    pub limits: LimitArgs,
}

impl SessionArgs {
    /// The session options these arguments ask for.
    pub fn options(&self) -> Options {
        Options {
            engine: match self.engine {
                EngineName::Jit => Engine::Jit,
                EngineName::Loops => Engine::Loops,
                EngineName::Interp => Engine::Interpreter,
            },
            threads: usize::from(self.threads),
            opt_level: self.opt_level,
            vector_bits: self.vectors,
            winograd: !self.no_winograd,
            bf16_weights: self.bf16_weights,
            limits: self.limits.limits(),
            tune: self.tuning(),
            ..Options::default()
        }
    }

    /// What tuning is asked for; warns of a file that it cannot use.
    fn tuning(&self) -> Option<Tuning> {
        let tuning = self.tune.then(|| Tuning { cache: self.tune_cache.clone() })?;
        if let Some(warning) = tuning.warning() {
            eprintln!("warning: {warning}");
        }
        Some(tuning)
    }
}

/// Parses a width of vectors.
fn parse_vectors(text: &str) -> Result<usize, String> {
    match text {
        "128" => Ok(128),
        "256" => Ok(256),
        "512" => Ok(512),
        _ => Err("vectors have 128, 256 or 512 bits".to_string()),
    }
}

/// What a model may ask for.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Bytes of a model file, external data included
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().file_bytes)]
    pub max_file_bytes: u64,
    /// Nodes of a graph
    #[arg(long, value_name = "N", default_value_t = Limits::default().nodes)]
    pub max_nodes: u64,
    /// Levels of graphs and functions within one another
    #[arg(long, value_name = "N", default_value_t = Limits::default().depth)]
    pub max_depth: u64,
    /// Elements of one tensor
    #[arg(long, value_name = "N", default_value_t = Limits::default().elements)]
    pub max_elements: u64,
    /// Bytes of one tensor, and of the memory of a compiled model
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().memory_bytes)]
    pub max_memory_bytes: u64,
}

impl LimitArgs {
    /// The limits these arguments ask for.
    pub fn limits(&self) -> Limits {
        Limits {
            file_bytes: self.max_file_bytes,
            nodes: self.max_nodes,
            depth: self.max_depth,
            elements: self.max_elements,
            memory_bytes: self.max_memory_bytes,
            ..Limits::default()
        }
    }
}

/// A size for a named dimension.
#[derive(Clone, Debug)]
pub struct DimArg {
    pub name: String,
    pub size: usize,
}

/// Reads `NAME=N`.
pub fn parse_dim(text: &str) -> Result<DimArg, String> {
    let (name, size) = split_pair(text)?;
    let size = size.parse().map_err(|_| format!("`{size}` is not a size"))?;
    Ok(DimArg { name, size })
}

/// A file for an input.
#[derive(Clone, Debug)]
pub struct InputArg {
    pub name: String,
    pub file: std::path::PathBuf,
}

/// Reads `NAME=FILE`.
pub fn parse_input(text: &str) -> Result<InputArg, String> {
    let (name, file) = split_pair(text)?;
    Ok(InputArg { name, file: file.into() })
}

/// The name may itself contain `=` only in the file's part: the first one splits.
fn split_pair(text: &str) -> Result<(String, &str), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok((name.to_string(), value)),
        _ => Err(format!("`{text}` is not of the form NAME=VALUE")),
    }
}
