//! The training steps that are benchmarked.
//!
//! `training steps DIR` writes each as IR text, and `training data DIR` seeded weights and a batch for it. `training run
//! NET DATA.npz THREADS SECONDS` trains from such weights on such a batch, and prints as JSON how long the first step
//! took, the median of the later ones, and the losses of the first: `tests/peers/training.py` does that in turn with
//! other systems. `training fit NET DATA.npz EPOCHS` fits to all the examples of a file, in f64 if they are, and prints each
//! epoch's loss.

use std::path::Path;
use std::time::{Duration, Instant};

use windlass::nn::initializers::Random;
use windlass::nn::layers::{
    Activation, BatchNormalization, Conv, Dense, Embedding, Flatten, GlobalPooling, Layer,
    LayerNormalization, Lstm, MultiHeadAttention, Padding, Pooling,
};
use windlass::nn::{Fit, Loss, Model, Net, Network, Optimizer, Order, Training, WeightedMean};
use windlass::{DType, Options, Tensor};
use windlass_frontend::npy::{read_npz, write_npz};
use windlass_ir::{Error, Limits, ScalarFn, TensorType, Value, ops, text::print_graph};

/// A network on a batch.
struct Subject {
    name: &'static str,
    /// The batch's shape and type.
    shape: &'static [usize],
    dtype: DType,
    body: fn(&mut Net, Value) -> Result<Value, Error>,
}

const SUBJECTS: [Subject; 5] = [
    Subject { name: "mlp", shape: &[64, 784], dtype: DType::F32, body: mlp },
    Subject { name: "cnn", shape: &[32, 32, 32, 3], dtype: DType::F32, body: cnn },
    Subject { name: "resnet", shape: &[32, 32, 32, 3], dtype: DType::F32, body: resnet },
    Subject { name: "lstm", shape: &[16, 64, 256], dtype: DType::F32, body: lstm },
    Subject { name: "transformer", shape: &[16, 64], dtype: DType::I32, body: transformer },
];

fn dense(units: usize, name: &str) -> Dense {
    Dense::new(units).named(name)
}

fn mlp(net: &mut Net, x: Value) -> Result<Value, Error> {
    let x = dense(512, "dense1").activation(Activation::Relu).apply(net, x)?;
    let x = dense(512, "dense2").activation(Activation::Relu).apply(net, x)?;
    dense(10, "dense3").apply(net, x)
}

/// Two convolutions and two dense layers.
fn cnn(net: &mut Net, mut x: Value) -> Result<Value, Error> {
    for (name, filters) in [("conv1", 32), ("conv2", 64)] {
        x = Conv::new(filters, &[3, 3]).named(name).activation(Activation::Relu).apply(net, x)?;
        x = Pooling::max(&[2, 2]).apply(net, x)?;
    }
    let x = Flatten.apply(net, x)?;
    let x = dense(128, "dense1").activation(Activation::Relu).apply(net, x)?;
    dense(32, "dense2").apply(net, x)
}

/// Three stages of two residual blocks, the first of 16 channels.
fn resnet(net: &mut Net, x: Value) -> Result<Value, Error> {
    let conv = |net: &mut Net, name: &str, x: Value, filters: usize, size: usize, stride: usize| {
        let conv = Conv::new(filters, &[size, size]).named(&format!("{name}.conv")).use_bias(false);
        let x = conv.strides(vec![stride; 2]).padding(Padding::Explicit(vec![size / 2; 4])).apply(net, x)?;
        BatchNormalization::default().named(&format!("{name}.bn")).apply(net, x)
    };
    let x = conv(net, "stem", x, 16, 3, 1)?;
    let mut x = net.map(ScalarFn::Relu, &[x])?;
    for stage in 0..3 {
        for block in 0..2 {
            let (name, width) = (format!("s{stage}b{block}"), 16 << stage);
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let y = conv(net, &format!("{name}.1"), x, width, 3, stride)?;
            let y = net.map(ScalarFn::Relu, &[y])?;
            let y = conv(net, &format!("{name}.2"), y, width, 3, 1)?;
            if stride > 1 {
                x = conv(net, &format!("{name}.proj"), x, width, 1, stride)?;
            }
            let sum = net.map(ScalarFn::Add, &[x, y])?;
            x = net.map(ScalarFn::Relu, &[sum])?;
        }
    }
    let x = GlobalPooling::Average.apply(net, x)?;
    dense(10, "head").apply(net, x)
}

fn lstm(net: &mut Net, x: Value) -> Result<Value, Error> {
    let x = Lstm::new(256).named("rnn").apply(net, x)?;
    dense(10, "head").apply(net, x)
}

/// Two encoder layers, norms first, 4 heads.
fn transformer(net: &mut Net, ids: Value) -> Result<Value, Error> {
    let (d, length) = (128, net.ty(ids).shape()[1]);
    let x = Embedding::new(1000, d).named("emb").apply(net, ids)?;
    let positions =
        net.push(ops::Iota { shape: vec![length as i64].into(), axis: 0, dtype: DType::I32 }, &[])?;
    let positions = Embedding::new(length, d).named("pos").apply(net, positions)?;
    let mut x = net.map(ScalarFn::Add, &[x, positions])?;
    let norm = |net: &mut Net, name: &str, x: Value| {
        LayerNormalization::default().named(name).epsilon(1e-5).apply(net, x)
    };
    for layer in 1..=2 {
        let y = norm(net, &format!("l{layer}.ln1"), x)?;
        let y = MultiHeadAttention::new(4, d / 4).named(&format!("l{layer}")).apply(net, y)?;
        x = net.map(ScalarFn::Add, &[x, y])?;
        let y = norm(net, &format!("l{layer}.ln2"), x)?;
        let y = dense(4 * d, &format!("l{layer}.ff1")).activation(Activation::Gelu).apply(net, y)?;
        let y = dense(d, &format!("l{layer}.ff2")).apply(net, y)?;
        x = net.map(ScalarFn::Add, &[x, y])?;
    }
    let x = norm(net, "lnf", x)?;
    let x = GlobalPooling::Average.apply(net, x)?;
    dense(10, "head").apply(net, x)
}

fn loss() -> Loss {
    Loss::SparseCategoricalCrossentropy { from_logits: true }
}

fn write_steps(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    for Subject { name, shape, dtype, body } in SUBJECTS {
        let mut net = Net::new(name, DType::F32, true);
        let x = net.input("x", TensorType::fixed(dtype, shape));
        let y = net.input("y", TensorType::fixed(DType::I32, &shape[..1]));
        let prediction = body(&mut net, x)?;
        let optimizer = Optimizer::adam(1e-3);
        let training = Training { loss: loss(), optimizer, weighted: WeightedMean::Count, privacy: None };
        let step = training.step(net.build(), prediction, y, None)?;
        std::fs::write(folder.join(format!("{name}.wir")), print_graph(&step.graph))?;
    }
    Ok(())
}

impl Subject {
    /// The network with variables of `dtype`.
    fn model(&self, dtype: DType, options: Options) -> Result<Model, windlass::Error> {
        let input = if self.dtype == DType::I32 { DType::I32 } else { dtype };
        let network = Network::functional(&self.shape[1..], self.body).with_input_type(input);
        Model::with_dtype(network, 0, dtype, options)
    }

    /// Random examples and their classes.
    fn batch(&self) -> (Tensor, Tensor) {
        let mut random = Random::new(self.name, 1);
        let len = self.shape.iter().product();
        let x = match self.dtype {
            DType::I32 => (0..len).map(|_| (random.bits() % 1000) as f64).collect(),
            _ => (0..len).map(|_| random.normal()).collect::<Vec<f64>>(),
        };
        let y: Vec<i32> = (0..self.shape[0]).map(|_| (random.bits() % 10) as i32).collect();
        (Tensor::from_f64s(self.dtype, self.shape, &x), Tensor::new(&self.shape[..1], &y))
    }
}

fn write_data(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    for subject in SUBJECTS {
        let model = subject.model(DType::F32, Options::default())?;
        let variables = model.variables().map(|(name, value)| (name.to_string(), value.clone()));
        let (x, y) = subject.batch();
        let all: Vec<(String, Tensor)> =
            variables.chain([("x".to_string(), x), ("y".to_string(), y)]).collect();
        write_npz(folder.join(format!("{}.npz", subject.name)), &all)?;
    }
    Ok(())
}

/// A model with the weights of a file, and the file's examples.
fn loaded(
    name: &str,
    data: &Path,
    threads: usize,
) -> Result<(Model, Tensor, Tensor), Box<dyn std::error::Error>> {
    let subject = SUBJECTS.iter().find(|subject| subject.name == name).ok_or("no such network")?;
    let arrays = read_npz(data, &Limits::default())?;
    let is_double = arrays.iter().any(|(key, array)| key == "x" && array.dtype() == DType::F64);
    let dtype = if is_double { DType::F64 } else { DType::F32 };
    let mut model = subject.model(dtype, Options { threads, ..Options::default() })?;
    let mut batch: [Option<Tensor>; 2] = [None, None];
    for (key, tensor) in arrays {
        match key.as_str() {
            "x" => batch[0] = Some(tensor),
            "y" => batch[1] = Some(tensor),
            _ => model.set_variable(&key, tensor)?,
        }
    }
    let [Some(x), Some(y)] = batch else { return Err("the file has no x or no y".into()) };
    Ok((model, x, y))
}

fn fit(name: &str, data: &Path, epochs: usize) -> Result<String, Box<dyn std::error::Error>> {
    let (mut model, x, y) = loaded(name, data, 1)?;
    model.compile(Optimizer::adam(1e-3), loss());
    let history = model.fit(&x, &y, &Fit { epochs, order: Order::Given, ..Fit::default() })?;
    Ok(format!("{:?}", history.loss))
}

fn run(name: &str, data: &Path, threads: usize, seconds: f64) -> Result<String, Box<dyn std::error::Error>> {
    let (mut model, x, y) = loaded(name, data, threads)?;
    let begin = Instant::now();
    model.compile(Optimizer::adam(1e-3), loss());
    let mut losses = vec![model.train_on_batch(&x, &y)?];
    let first = begin.elapsed();
    let mut times: Vec<Duration> = Vec::new();
    while times.len() < 19 || begin.elapsed().as_secs_f64() < seconds {
        let begin = Instant::now();
        losses.push(model.train_on_batch(&x, &y)?);
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    let (first, median) = (first.as_secs_f64() * 1e3, times[times.len() / 2].as_secs_f64() * 1e3);
    losses.truncate(20);
    Ok(format!("{{\"first\": {first:.3}, \"step\": {median:.4}, \"losses\": {losses:?}}}"))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["steps", folder] => write_steps(Path::new(folder)),
        ["data", folder] => write_data(Path::new(folder)),
        ["fit", name, data, epochs] => {
            println!("{}", fit(name, Path::new(data), epochs.parse()?)?);
            Ok(())
        }
        ["run", name, data, threads, seconds] => {
            println!("{}", run(name, Path::new(data), threads.parse()?, seconds.parse()?)?);
            Ok(())
        }
        _ => {
            Err("training steps|data DIR | run NET DATA.npz THREADS SECONDS | fit NET DATA.npz EPOCHS".into())
        }
    }
}
