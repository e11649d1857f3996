//! Test cases in ONNX's layout: a folder with `model.onnx` and `test_data_set_N/{input,output}_M.pb`.
//!
//! [`discover`] finds cases, [`check`] runs one with any engine and compares what it gives.

mod compare;
mod value;

use std::path::{Path, PathBuf};

use windlass_ir::{Limits, Tensor};

use super::external::Source;
use super::proto::GraphProto;
use super::{Model, Sizes, decode_model, import_model, read_file};
use crate::error::Error;

pub use compare::{Difference, Tolerance, compare};
pub(crate) use value::write_whole;
pub use value::{Kind, Value, read_tensor, read_value, write_tensor};

/// A folder that holds a model and data sets.
#[derive(Clone, Debug)]
pub struct Case {
    /// The folder's name.
    pub name: String,
    /// The folder.
    pub folder: PathBuf,
    /// How far results may be from the expected ones.
    pub tolerance: Tolerance,
}

/// What a model's file declares: its inputs without an initializer, and its outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The inputs: what `input_M.pb` holds.
    pub inputs: Vec<(String, Kind)>,
    /// The outputs.
    pub outputs: Vec<(String, Kind)>,
}

impl Signature {
    fn of(graph: &GraphProto) -> Signature {
        let given = |name: &str| {
            let sparse = graph.sparse_initializer.iter().filter_map(|t| t.values.as_ref());
            graph.initializer.iter().chain(sparse).any(|t| t.name() == name)
        };
        let declared = |v: &super::proto::ValueInfoProto| (v.name().to_string(), Kind::of(v.r#type.as_ref()));
        Signature {
            inputs: graph.input.iter().filter(|v| !given(v.name())).map(declared).collect(),
            outputs: graph.output.iter().map(declared).collect(),
        }
    }
}

/// One set of inputs with the outputs expected for them.
#[derive(Clone, Debug)]
pub struct DataSet {
    /// Its folder's name.
    pub name: String,
    /// The inputs.
    pub inputs: Vec<Value>,
    /// The outputs; empty if none are given.
    pub outputs: Vec<Value>,
}

/// Every case in a folder and its sub-folders, in order of their paths.
pub fn discover(folder: &Path) -> Result<Vec<Case>, Error> {
    let mut cases = Vec::new();
    let mut pending = vec![folder.to_path_buf()];
    while let Some(folder) = pending.pop() {
        if folder.join("model.onnx").is_file() {
            cases.push(Case::open(&folder)?);
            continue;
        }
        let mut inside = sub_folders(&folder)?;
        inside.reverse();
        pending.append(&mut inside);
    }
    Ok(cases)
}

/// The folders in a folder, in order; links are not followed, so that there is no cycle.
fn sub_folders(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::file(folder))? {
        let entry = entry.map_err(Error::file(folder))?;
        if entry.file_type().map_err(Error::file(entry.path()))?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

impl Case {
    /// The case of a folder.
    pub fn open(folder: &Path) -> Result<Case, Error> {
        let name = folder.file_name().map_or_else(|| ".".into(), |name| name.to_string_lossy().into_owned());
        let overrides = folder.join("case.json");
        let tolerance = match overrides.is_file() {
            true => Tolerance::read(&overrides)?,
            false => Tolerance::default(),
        };
        Ok(Case { name, folder: folder.to_path_buf(), tolerance })
    }

    /// Reads the model's file: what it declares, and the model or why it cannot be imported.
    pub fn load(&self, limits: &Limits) -> Result<(Signature, Result<Model, Error>), Error> {
        let path = self.folder.join("model.onnx");
        let bytes = read_file(&path, limits, None)?;
        let source = Source::beside(&path, limits, bytes.len() as u64, None);
        let proto = decode_model(bytes)?;
        let signature = Signature::of(proto.graph.as_ref().unwrap_or(&GraphProto::default()));
        Ok((signature, import_model(&proto, &source, &Sizes::default())))
    }

    /// The folders of the data sets, in order of their numbers.
    pub fn data_set_folders(&self) -> Result<Vec<PathBuf>, Error> {
        let mut numbered: Vec<(u64, PathBuf)> = sub_folders(&self.folder)?
            .into_iter()
            .filter_map(|path| {
                let number = path.file_name()?.to_str()?.strip_prefix("test_data_set_")?.parse().ok()?;
                Some((number, path))
            })
            .collect();
        numbered.sort();
        Ok(numbered.into_iter().map(|(_, path)| path).collect())
    }
}

impl DataSet {
    /// Reads a data set of a model.
    pub fn read(folder: &Path, signature: &Signature, limits: &Limits) -> Result<DataSet, Error> {
        let read = |what: &str, declared: &[(String, Kind)], needed: bool| {
            let mut values = Vec::new();
            for (i, (_, kind)) in declared.iter().enumerate() {
                let path = folder.join(format!("{what}_{i}.pb"));
                if !path.is_file() && !needed {
                    break;
                }
                values.push(read_value(&path, kind, limits)?);
            }
            Ok::<_, Error>(values)
        };
        Ok(DataSet {
            name: folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            inputs: read("input", &signature.inputs, true)?,
            outputs: read("output", &signature.outputs, false)?,
        })
    }
}

/// Why an engine gave no results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It cannot run this model.
    Unsupported(String),
    /// It should have been able to.
    Error(String),
}

/// How a case went.
#[derive(Clone, Debug, PartialEq)]
pub enum Status {
    /// Every result is as expected.
    Pass,
    /// There were no expected results to compare with.
    Ran,
    /// A result is not as expected, and how.
    Wrong(String),
    /// It needs something that is not supported.
    Unsupported(String),
    /// It could not be read or run.
    Error(String),
}

/// How a case went, and what it gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it went.
    pub status: Status,
    /// The largest difference of a result from an expected one.
    pub largest_difference: Option<f64>,
    /// The results of each data set that ran, by the data set's name.
    pub results: Vec<(String, Vec<(String, Tensor)>)>,
}

/// Runs every data set of a case and compares. `run` gets the model and its inputs.
pub fn check(
    case: &Case,
    limits: &Limits,
    run: &mut dyn FnMut(&Model, &[Tensor]) -> Result<Vec<Tensor>, Failure>,
) -> Outcome {
    let mut outcome = Outcome { status: Status::Pass, largest_difference: None, results: Vec::new() };
    outcome.status = match check_into(case, limits, run, &mut outcome) {
        Ok(status) => status,
        Err(error) => status_of(&error),
    };
    outcome
}

/// The status for an error of reading.
fn status_of(error: &Error) -> Status {
    match error.as_unsupported() {
        Some(list) => {
            Status::Unsupported(list.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        }
        None => Status::Error(error.to_string()),
    }
}

fn check_into(
    case: &Case,
    limits: &Limits,
    run: &mut dyn FnMut(&Model, &[Tensor]) -> Result<Vec<Tensor>, Failure>,
    outcome: &mut Outcome,
) -> Result<Status, Error> {
    let (signature, model) = case.load(limits)?;
    let model = model?;
    let folders = case.data_set_folders()?;
    if folders.is_empty() {
        return Ok(Status::Error("has no data sets".to_string()));
    }
    let mut compared = false;
    for folder in folders {
        let data = DataSet::read(&folder, &signature, limits)?;
        let inputs: Option<Vec<Tensor>> = data.inputs.into_iter().map(Value::into_tensor).collect();
        let Some(inputs) = inputs else {
            return Ok(Status::Unsupported("an input is not a tensor".to_string()));
        };
        let results = match run(&model, &inputs) {
            Ok(results) => results,
            Err(Failure::Unsupported(reason)) => return Ok(Status::Unsupported(reason)),
            Err(Failure::Error(reason)) => return Ok(Status::Error(format!("{}: {reason}", data.name))),
        };
        let names = model.graph.outputs().iter().map(|(name, _)| name.clone());
        let named: Vec<(String, Tensor)> = names.zip(results).collect();
        outcome.results.push((data.name.clone(), named.clone()));
        for (expected, (name, found)) in data.outputs.into_iter().zip(&named) {
            compared = true;
            let Some(expected) = expected.into_tensor() else {
                return Ok(Status::Unsupported(format!("output `{name}` is not a tensor")));
            };
            let difference = compare(&expected, found, case.tolerance);
            if let Some(largest) = difference.largest {
                outcome.largest_difference =
                    Some(outcome.largest_difference.map_or(largest, |l| l.max(largest)));
            }
            if let Some(reason) = difference.reason {
                return Ok(Status::Wrong(format!("{} `{name}`: {reason}", data.name)));
            }
        }
    }
    Ok(if compared { Status::Pass } else { Status::Ran })
}
