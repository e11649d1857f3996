//! `windlass train`: trains a model's weights on data, and writes the model that comes of it.

pub mod ahead;
mod arrays;
mod curve;
mod goal;
mod progress;
mod trainable;

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::Args;
use windlass::Tensor;
use windlass::files::write_whole;
use windlass::nn::sampling::{balanced_class_weight, take};
use windlass::nn::{Checkpoint, Examples, Fit, History, Metric, Model, Order};

use self::arrays::{Arrays, Choice, parse_choice, parse_scale};
use self::goal::GoalArgs;
use self::progress::{Interrupts, Progress};
use self::trainable::{TrainableArgs, parse_part};
use crate::arguments::SessionArgs;
use crate::failure::Failure;

/// Train a model on data and write it with its new weights
///
/// Data are the arrays of .npz files, a row an example: one for each input, under its name or `x`, and what is
/// true of them for each output with a loss, under its name or `y`. Weights are the model's constants that have
/// a name, float elements and a dimension; the model computes as in inference while it trains, so running
/// statistics stay as they are unless --batch-statistics is given. One seed gives the same bits with any
/// number of threads. Interrupted (Ctrl-C), it ends after the step it is at, with exit code 130: the
/// checkpoint of the last whole epoch stays, and --resume goes on from there to the bits of a training
/// without a break.
#[derive(Args)]
pub struct Train {
    /// The model: .onnx or .wir
    model: PathBuf,
    /// What to train on: an .npz file
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// What to evaluate after each epoch: an .npz file
    #[arg(long, value_name = "FILE", conflicts_with = "validation_split")]
    validation: Option<PathBuf>,
    /// Evaluate on this part of the data, its last rows, and train on the others
    #[arg(long, value_name = "PART", value_parser = parse_part)]
    validation_split: Option<f64>,
    /// The array of an input
    #[arg(long = "input", value_name = "NAME=ARRAY", value_parser = parse_choice)]
    inputs: Vec<Choice>,
    /// The array of what is true of an output
    #[arg(long = "target", value_name = "NAME=ARRAY", value_parser = parse_choice)]
    targets: Vec<Choice>,
    /// Multiply an input's array, of integers too, by a number such as 1/255
    #[arg(long = "scale", value_name = "NAME=FACTOR", value_parser = parse_scale)]
    scales: Vec<(String, f64)>,
    /// What to report of predictions, besides: accuracy, top_k_accuracy:k=N, precision, recall or f1 (each of a class with
    /// :class=N), auc, root_mean_squared_error or mean_absolute_error; may be repeated
    #[arg(long = "metric", value_name = "NAME")]
    metrics: Vec<Metric>,
    /// How often every example is seen, epochs before --resume included
    #[arg(long, value_name = "N", default_value_t = 1)]
    epochs: usize,
    /// How many examples a step has
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = parse_positive)]
    batch_size: usize,
    /// What the order of examples follows from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Take the examples as they come
    #[arg(long)]
    no_shuffle: bool,
    /// A weight for each class: `balanced` by how many examples have it, or CLASS=WEIGHT,..
    #[arg(long, value_name = "WEIGHTS")]
    class_weight: Option<String>,
    /// The array of a weight for each example
    #[arg(long, value_name = "ARRAY")]
    sample_weight: Option<String>,
    /// Keep everything that training needs to go on, after each epoch
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Go on from a checkpoint
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// The model to write: .onnx or .wir, or .safetensors for its weights alone
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Write the figures of each epoch: .json or .csv
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Draw the losses over the epochs: .svg
    #[arg(long, value_name = "FILE")]
    loss_curve: Option<PathBuf>,
    #[command(flatten)]
    session: SessionArgs,
    // What has a heading of its own comes last, for what follows would stand below it.
    #[command(flatten)]
    goal: GoalArgs,
    #[command(flatten)]
    trainable: TrainableArgs,
}

impl Train {
    pub fn execute(self) -> Result<(), Failure> {
        self.check_files()?;
        let options = self.session.options();
        let network = self.trainable.network(&windlass::Model::load(&self.model, &options.limits)?.graph)?;
        let losses = self.goal.losses(network.outputs())?;
        let arrays = Arrays::read(&self.data, &options.limits)?;
        let inputs = arrays.inputs(&network, &self.inputs, &self.scales)?;
        let targets = arrays.targets(&network, &losses, &self.targets)?;
        let count = inputs.first().map_or(0, |(_, tensor)| tensor.shape()[0]);
        let held_back = self.validation_split.map_or(0, |part| (count as f64 * part).floor() as usize);
        let trained = count - held_back;
        if trained == 0 {
            return Err(Failure::Message(format!("{}: no examples to train on", self.data.display())));
        }
        let validation = match &self.validation {
            Some(path) => {
                let arrays = Arrays::read(path, &options.limits)?;
                let inputs = arrays.inputs(&network, &self.inputs, &self.scales)?;
                Some((inputs, arrays.targets(&network, &losses, &self.targets)?))
            }
            None if held_back > 0 => Some((cut(&inputs, trained..count)?, cut(&targets, trained..count)?)),
            None => None,
        };
        let (x, y) = (cut(&inputs, 0..trained)?, cut(&targets, 0..trained)?);
        let steps = trained.div_ceil(self.batch_size) * self.epochs;
        let optimizer = self.goal.optimizer(steps)?;

        let mut model = Model::new(network, self.seed, options)?;
        model.compile_outputs(optimizer, &losses)?;
        model.set_metrics(self.metrics.iter().copied());
        let mut done = Checkpoint { settings: self.settings(), ..Checkpoint::default() };
        if let Some(path) = &self.resume {
            let found = model.load_checkpoint(path)?;
            for (key, now) in &done.settings {
                if let Some(then) = found.settings.get(key).filter(|then| *then != now) {
                    eprintln!("warning: {}: {key} was {then} and is {now}", path.display());
                }
            }
            (done.epochs, done.history) = (found.epochs, found.history);
        }
        let validation = validation.as_ref().map(|(x, y)| (x as &dyn Examples, y as &dyn Examples));
        let fit = Fit {
            epochs: self.epochs,
            first_epoch: done.epochs,
            batch_size: self.batch_size,
            order: if self.no_shuffle { Order::Given } else { Order::Shuffled },
            validation,
            class_weight: self.class_weights(&y, &losses)?,
            sample_weight: self.sample_weights(&arrays, count, trained)?,
            ..Fit::default()
        };
        let interrupts = Interrupts::watch();
        let mut progress = Progress::new(done, self.epochs, self.checkpoint.as_deref(), &interrupts);
        model.fit_with(&x, &y, &fit, &mut [&mut progress])?;
        let done = progress.finish();
        if done.epochs < self.epochs {
            return Err(Failure::Interrupted(self.left(&done)));
        }
        self.write(&model, &done.history)
    }

    /// Refuses names of files that say nothing known, before any work is done.
    fn check_files(&self) -> Result<(), Failure> {
        let files: [(Option<&Path>, &[&str]); 4] = [
            (Some(self.output.as_path()), &["onnx", "wir", "safetensors"]),
            (self.history.as_deref(), &["json", "csv"]),
            (self.loss_curve.as_deref(), &["svg"]),
            (self.checkpoint.as_deref(), &[]),
        ];
        for (path, endings) in files {
            let Some(path) = path else { continue };
            if !endings.is_empty() && !endings.contains(&ending(path)) {
                let message = format!("{}: the name ends in .{}", path.display(), endings.join(" or ."));
                return Err(Failure::Usage(message));
            }
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            if let Some(folder) = folder {
                std::fs::read_dir(folder).map_err(Failure::io(folder))?;
            }
        }
        Ok(())
    }

    /// What a resumed training should have in common with the one before.
    fn settings(&self) -> BTreeMap<String, String> {
        let mut settings = self.goal.settings();
        settings.insert("--batch-size".to_string(), self.batch_size.to_string());
        settings.insert("--seed".to_string(), self.seed.to_string());
        settings
    }

    /// The weight of each class.
    fn class_weights(
        &self,
        y: &[(String, Tensor)],
        losses: &[windlass::nn::OutputLoss],
    ) -> Result<Option<Vec<f64>>, Failure> {
        let Some(text) = &self.class_weight else { return Ok(None) };
        let Some(at) = losses.iter().position(|loss| loss.loss.takes_classes()) else {
            return Err(Failure::Usage("--class-weight: no output's loss takes classes".to_string()));
        };
        let classes: Vec<i64> = y[at].1.to_ints();
        let highest = classes.iter().copied().max().unwrap_or(0);
        let count = usize::try_from(highest).map_or(0, |highest| highest + 1);
        if classes.iter().any(|&class| class < 0) || count > classes.len().max(1 << 16) {
            return Err(Failure::Message(format!("target `{}`: not numbers of classes", y[at].0)));
        }
        if text == "balanced" {
            return Ok(Some(balanced_class_weight(&y[at].1)?));
        }
        let mut weights = vec![1.0; count];
        for part in text.split(',') {
            let pair = part.split_once('=').and_then(|(class, weight)| {
                Some((class.trim().parse::<usize>().ok()?, weight.trim().parse::<f64>().ok()?))
            });
            match pair {
                Some((class, weight)) if class < count && weight.is_finite() => weights[class] = weight,
                _ => {
                    let message = format!(
                        "--class-weight: `{part}` is neither `balanced` nor CLASS=WEIGHT with a class below {count}"
                    );
                    return Err(Failure::Usage(message));
                }
            }
        }
        Ok(Some(weights))
    }

    /// The weights of the examples that are trained on.
    fn sample_weights(
        &self,
        arrays: &Arrays,
        count: usize,
        trained: usize,
    ) -> Result<Option<Vec<f64>>, Failure> {
        let Some(name) = &self.sample_weight else { return Ok(None) };
        let array = arrays.named(name)?;
        if *array.shape() != [count] {
            let found = array.ty();
            return Err(Failure::Message(format!(
                "--sample-weight: array `{name}` is {found}, of {count} examples each has one weight"
            )));
        }
        let mut weights = array.to_f64s();
        weights.truncate(trained);
        Ok(Some(weights))
    }

    /// What an interrupted training leaves.
    fn left(&self, done: &Checkpoint) -> String {
        let kept = match &self.checkpoint {
            Some(path) if done.epochs > 0 => {
                let path = path.display();
                format!(
                    "{path} holds the {} before it, from which --resume {path} goes on",
                    epochs(done.epochs)
                )
            }
            _ => "nothing was kept".to_string(),
        };
        let (at, all) = (done.epochs + 1, self.epochs);
        format!("interrupted in epoch {at} of {all}: {kept}; {} was not written", self.output.display())
    }

    fn write(&self, model: &Model, history: &History) -> Result<(), Failure> {
        let graph = || model.graph(self.batch_size);
        match ending(&self.output) {
            "safetensors" => model.save_weights(&self.output)?,
            "wir" => {
                let text = windlass_ir::text::print_graph(&graph()?);
                write_whole(&self.output, text.as_bytes()).map_err(Failure::io(&self.output))?;
            }
            _ => model.export_onnx(&self.output, self.batch_size)?,
        }
        if let Some(path) = &self.history {
            let bytes = match ending(path) {
                "csv" => csv(history),
                _ => json(history),
            };
            write_whole(path, &bytes).map_err(Failure::io(path))?;
        }
        if let Some(path) = &self.loss_curve {
            let svg = curve::svg(&history.loss, &history.validation_loss);
            write_whole(path, svg.as_bytes()).map_err(Failure::io(path))?;
        }
        eprintln!("note: wrote {}", self.output.display());
        Ok(())
    }
}

/// Rows of each tensor.
fn cut(tensors: &[(String, Tensor)], rows: Range<usize>) -> Result<Vec<(String, Tensor)>, Failure> {
    let rows: Vec<usize> = rows.collect();
    tensors.iter().map(|(name, tensor)| Ok((name.clone(), take(tensor, &rows)?))).collect()
}

fn epochs(count: usize) -> String {
    if count == 1 { "epoch".to_string() } else { format!("{count} epochs") }
}

fn ending(path: &Path) -> &str {
    path.extension().and_then(|ending| ending.to_str()).unwrap_or_default()
}

fn csv(history: &History) -> Vec<u8> {
    let columns: Vec<(&str, &[f64])> = history.columns().collect();
    let mut text = Vec::new();
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    // Writing to memory does not fail.
    let _ = writeln!(text, "epoch,{}", names.join(","));
    for epoch in 0..history.loss.len() {
        let cells: Vec<String> = columns
            .iter()
            .map(|(_, column)| column.get(epoch).map(f64::to_string).unwrap_or_default())
            .collect();
        let _ = writeln!(text, "{},{}", epoch + 1, cells.join(","));
    }
    text
}

fn json(history: &History) -> Vec<u8> {
    let columns: BTreeMap<&str, &[f64]> = history.columns().collect();
    format!("{}\n", serde_json::json!(columns)).into_bytes()
}

fn parse_positive(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("a number above 0 is expected".to_string()),
    }
}
