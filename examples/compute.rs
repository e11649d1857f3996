//! What a network costs, and two ways to make it cost less after or while it is trained: weights and activations of 8 bits,
//! and weights of which most are 0: `cargo run --release --example compute -- int8.onnx`.

#[path = "digits/data.rs"]
mod data;

use windlass::nn::layers::{Activation, Conv, Dense, Flatten, Padding, Pooling};
use windlass::nn::{ConfusionMatrix, Fit, Loss, MagnitudePruning, Model, Network, Optimizer};
use windlass::quantize::Ranges;
use windlass::{Error, Options, Session};

/// The accuracy on digits held back: in f32, in 8 bits, and with nine of ten weights 0.
pub fn run() -> Result<[f64; 3], Error> {
    let (x, y) = data::digits(false)?;
    let held_back = data::digits(true)?;
    let network = Network::sequential(&[8, 8, 1])
        .add(Conv::new(16, &[3, 3]).padding(Padding::Same).activation(Activation::Relu))
        .add(Pooling::max(&[2, 2]))
        .add(Conv::new(32, &[3, 3]).padding(Padding::Same).activation(Activation::Relu))
        .add(Flatten)
        .add(Dense::new(10));
    let mut model = Model::new(network, 1, Options::default())?;
    model.compile(Optimizer::adam(2e-3), Loss::SparseCategoricalCrossentropy { from_logits: true });
    print!("{}", model.cost(32)?);
    model.fit(&x, &y, &Fit { epochs: 10, ..Fit::default() })?;
    let exact = model.evaluate(&held_back.0, &held_back.1, 60)?.accuracy.unwrap_or(0.0);

    let count = held_back.1.len();
    let quantized = model.quantized(&x, count, Ranges::Percentile(99.99))?;
    if let Some(path) = std::env::args().nth(1).filter(|path| path.ends_with(".onnx")) {
        let bytes = windlass_frontend::onnx::to_bytes(&quantized)?;
        std::fs::write(&path, bytes).map_err(|error| Error::Io { path: path.into(), error })?;
    }
    let scores = Session::new(quantized, Options::default())?.run([("x", held_back.0.clone())])?;
    let bytes = ConfusionMatrix::of_scores(&scores["prediction"], &held_back.1).accuracy();

    let mut pruning = MagnitudePruning { target: 0.9, begin: 0, end: 8 };
    model.fit_with(&x, &y, &Fit { epochs: 12, ..Fit::default() }, &mut [&mut pruning])?;
    let pruned = model.evaluate(&held_back.0, &held_back.1, 60)?.accuracy.unwrap_or(0.0);
    println!(
        "accuracy: {exact:.3} in f32, {bytes:.3} in int8, {pruned:.3} with {:.2} zeros",
        model.sparsity()
    );
    Ok([exact, bytes, pruned])
}

fn main() -> Result<(), Error> {
    run().map(|_| ())
}
