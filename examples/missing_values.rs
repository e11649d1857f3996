//! Missing values: a third of the pixels of every digit is not known. What fills them in is learnt from the data and becomes
//! a part of the network, and of its ONNX file: `cargo run --release --example missing_values -- filled.onnx`.

#[path = "digits/data.rs"]
mod data;

use windlass::nn::layers::{Activation, Dense, Fill, Imputer, Normalization, Reshape};
use windlass::nn::{Fit, Loss, Model, Network, Optimizer};
use windlass::{Error, Options, Tensor};

/// Images in rows of 64, every third pixel or so lost.
fn with_gaps((x, y): (Tensor, Tensor)) -> (Tensor, Tensor) {
    let lost = |i: usize| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 < (1 << 32) / 3;
    let values = x.to_f64s();
    let value = |i: usize| if lost(i) { f32::NAN } else { values[i] as f32 };
    (Tensor::from_fn::<f32>(&[x.shape()[0], 64], value), y)
}

/// The accuracy on digits held back, and what training says without the imputer.
pub fn run() -> Result<(f64, String), Error> {
    let (x, y) = with_gaps(data::digits(false)?);
    let held_back = with_gaps(data::digits(true)?);
    let layers = |network: Network| {
        network.add(Dense::new(64).activation(Activation::Relu)).add(Dense::new(10)).add(Reshape(vec![10]))
    };
    let loss = Loss::SparseCategoricalCrossentropy { from_logits: true };

    let mut bare = Model::new(layers(Network::sequential(&[64])), 1, Options::default())?;
    bare.compile(Optimizer::adam(3e-3), loss.clone());
    let complaint = match bare.fit(&x, &y, &Fit::default()) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    println!("without an imputer: {complaint}");

    let network = Network::sequential(&[64])
        .add(Normalization::default().adapt(&x))
        .add(Imputer::new(Fill::Mean).indicator(true));
    let mut model = Model::new(layers(network), 1, Options::default())?;
    model.compile(Optimizer::adam(3e-3), loss);
    model.fit(&x, &y, &Fit { epochs: 20, ..Fit::default() })?;
    let accuracy = model.evaluate(&held_back.0, &held_back.1, 60)?.accuracy.unwrap_or(0.0);
    println!("with one: {accuracy:.3} of the digits are right");
    if let Some(path) = std::env::args().nth(1).filter(|path| path.ends_with(".onnx")) {
        model.export_onnx(path, 1)?;
    }
    Ok((accuracy, complaint))
}

fn main() -> Result<(), Error> {
    run().map(|_| ())
}
