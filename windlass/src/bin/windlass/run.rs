//! `windlass run`: runs a model once.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use windlass::{Outputs, Session, Tensor};

use crate::arguments::{DimArg, InputArg, SessionArgs, parse_dim, parse_input};
use crate::failure::Failure;
use crate::inputs::{gather, load_model};

/// Run a model and show its outputs
///
/// Inputs come from files: .npy, .pb (an ONNX TensorProto), or an image (.png), whose pixels become
/// value/255 for floats, laid out as the input's type asks: channels first or last, one channel or
/// three. An input without a file gets random values from a seed. An output that looks like the
/// probabilities of classes is shown as the most likely ones.
#[derive(Args)]
pub struct Run {
    /// The model: .onnx or .wir
    model: PathBuf,
    /// A file for an input: .npy, .pb or .png
    #[arg(long = "input", short, value_name = "NAME=FILE", value_parser = parse_input)]
    inputs: Vec<InputArg>,
    /// A size for a named dimension
    #[arg(long = "dim", short, value_name = "NAME=N", value_parser = parse_dim)]
    dims: Vec<DimArg>,
    /// Write each output to DIR/NAME.npy
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// The seed of inputs that are not given
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// How many classes to show of a classifier's output
    #[arg(long, value_name = "K", default_value_t = 5)]
    top: usize,
    /// Print the outputs as one JSON object, in full
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    session: SessionArgs,
}

impl Run {
    pub fn execute(self) -> Result<(), Failure> {
        let options = self.session.options();
        let (model, dims) = load_model(&self.model, &options.limits, &self.inputs, &self.dims)?;
        let session = Session::new(model, options)?;
        let gathered = gather(&session, &self.inputs, &dims, self.seed)?;
        gathered.announce(self.seed);
        let (outputs, counts) = session.run_counted(gathered.tensors)?;
        if let Some(dir) = &self.save {
            std::fs::create_dir_all(dir).map_err(Failure::io(dir))?;
            let names = file_names(outputs.iter().map(|(name, _)| name));
            for ((_, tensor), name) in outputs.iter().zip(names) {
                let file = dir.join(format!("{name}.npy"));
                windlass_frontend::npy::write(&file, tensor).map_err(windlass::Error::from)?;
                eprintln!("note: wrote {}", file.display());
            }
        }
        let mut out = io::stdout().lock();
        if self.json {
            let outputs: serde_json::Map<_, _> =
                outputs.iter().map(|(name, tensor)| (name.to_string(), json_tensor(tensor))).collect();
            let counts = json!({
                "compiled": counts.compiled, "called": counts.called, "interpreted": counts.interpreted,
            });
            writeln!(out, "{}", json!({ "outputs": outputs, "nodes": counts }))?;
        } else {
            print_outputs(&mut out, &outputs, self.top)?;
        }
        Ok(())
    }
}

/// A file's name for each output. A name is data: what could leave the folder is not taken over, and
/// where two would be the same file, the later one gets a number.
fn file_names<'n>(names: impl Iterator<Item = &'n str>) -> Vec<String> {
    let mut files: Vec<String> = Vec::new();
    for name in names {
        let plain = file_name(name);
        let numbered = (2..).map(|number| format!("{plain}_{number}"));
        let free = std::iter::once(plain.clone()).chain(numbered).find(|file| !files.contains(file));
        files.extend(free);
    }
    files
}

/// Letters, digits, `.`, `-` and `_` stay; a leading dot does not.
fn file_name(name: &str) -> String {
    let safe = |c: char| if c.is_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = name.chars().map(safe).collect();
    match name.strip_prefix('.') {
        Some(rest) => format!("_{rest}"),
        None => name,
    }
}

fn json_tensor(tensor: &Tensor) -> serde_json::Value {
    // JSON has no NaN and no infinities: they become null.
    let data = match tensor.dtype().is_float() {
        true => json!(tensor.to_f64s()),
        false => serde_json::Value::from(
            tensor
                .to_i128s()
                .into_iter()
                .map(|x| match i64::try_from(x) {
                    Ok(x) => json!(x),
                    Err(_) => json!(x as u64),
                })
                .collect::<Vec<_>>(),
        ),
    };
    json!({ "dtype": tensor.dtype().name(), "shape": tensor.shape(), "data": data })
}

/// At most this many elements of an output are shown.
const SHOWN_ELEMENTS: usize = 16;

/// At most this many rows of a classifier's output are shown.
const SHOWN_ROWS: usize = 8;

fn print_outputs(out: &mut impl Write, outputs: &Outputs, top: usize) -> io::Result<()> {
    for (name, tensor) in outputs.iter() {
        writeln!(out, "{name}: {}", tensor.ty())?;
        if let Some(classes) = class_count(tensor) {
            for (row, probabilities) in tensor.to_f64s().chunks_exact(classes).take(SHOWN_ROWS).enumerate() {
                if tensor.len() > classes {
                    writeln!(out, "  row {row}")?;
                }
                print_top(out, probabilities, top)?;
            }
            let hidden = (tensor.len() / classes).saturating_sub(SHOWN_ROWS);
            if hidden > 0 {
                writeln!(out, "  .. {hidden} more rows")?;
            }
        } else {
            writeln!(out, "  {}", elements(tensor))?;
        }
    }
    Ok(())
}

/// The number of classes, if every row of the last dimension is a probability distribution.
fn class_count(tensor: &Tensor) -> Option<usize> {
    let classes = *tensor.shape().last().filter(|&&n| n >= 2)?;
    if !tensor.dtype().is_float() || tensor.is_empty() || tensor.rank() > 2 {
        return None;
    }
    let is_distribution = |row: &[f64]| {
        row.iter().all(|p| (0.0..=1.0).contains(p)) && (row.iter().sum::<f64>() - 1.0).abs() < 1e-2
    };
    tensor.to_f64s().chunks_exact(classes).all(is_distribution).then_some(classes)
}

fn print_top(out: &mut impl Write, probabilities: &[f64], top: usize) -> io::Result<()> {
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
    let width = (probabilities.len() - 1).to_string().len();
    for &class in order.iter().take(top) {
        writeln!(out, "  class {class:>width$}  {:6.2} %", probabilities[class] * 100.0)?;
    }
    Ok(())
}

fn elements(tensor: &Tensor) -> String {
    let words: Vec<String> = if tensor.dtype().is_float() {
        tensor.to_f64s().iter().take(SHOWN_ELEMENTS).map(|x| format!("{x:.6}")).collect()
    } else {
        tensor.to_i128s().iter().take(SHOWN_ELEMENTS).map(i128::to_string).collect()
    };
    match tensor.len() {
        0 => "(no elements)".to_string(),
        n if n > SHOWN_ELEMENTS => format!("{} .. ({n} elements)", words.join(" ")),
        _ => words.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_output_has_a_file_of_its_own_inside_the_folder() {
        let names = ["a/b", "a_b", "../x", "a_b_2", "a:b"];
        assert_eq!(file_names(names.into_iter()), ["a_b", "a_b_2", "_._x", "a_b_2_2", "a_b_3"]);
    }
}
