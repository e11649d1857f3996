//! Trains a network on scikit-learn's handwritten digits until 98.5 % of those held back are read right, and writes it
//! as an ONNX file: `cargo run --release --example digits -- digits.onnx`.

#[path = "digits/data.rs"]
mod data;

use windlass::nn::layers::{Activation, Conv, Dense, Flatten, Padding, Pooling};
use windlass::nn::{Callback, Control, Epoch, Fit, Loss, Model, Network, Optimizer};
use windlass::{Error, Options};

/// Ends training once enough is right.
struct Enough(f64);

impl Callback for Enough {
    fn on_epoch_end(&mut self, epoch: &Epoch, _: &mut Model) -> Result<Control, Error> {
        let accuracy = epoch.validation.as_ref().and_then(|v| v.accuracy).unwrap_or(0.0);
        Ok(if accuracy >= self.0 { Control::Stop } else { Control::Continue })
    }
}

fn main() -> Result<(), Error> {
    let (x, y) = data::digits(false)?;
    let held_back = data::digits(true)?;

    let conv =
        |filters: usize| Conv::new(filters, &[3, 3]).padding(Padding::Same).activation(Activation::Relu);
    let network = Network::sequential(&[8, 8, 1])
        .add(conv(32))
        .add(Pooling::max(&[2, 2]))
        .add(conv(64))
        .add(Pooling::max(&[2, 2]))
        .add(Flatten)
        .add(Dense::new(128).activation(Activation::Relu))
        .add(Dense::new(10));
    let mut model = Model::new(network, 1, Options::default())?;
    model.compile(Optimizer::adam(2e-3), Loss::SparseCategoricalCrossentropy { from_logits: true });
    let fit =
        Fit { epochs: 30, validation: Some((&held_back.0, &held_back.1)), verbose: true, ..Fit::default() };
    model.fit_with(&x, &y, &fit, &mut [&mut Enough(0.985)])?;
    if let Some(path) = std::env::args().nth(1) {
        model.export_onnx(&path, 1)?;
        println!("wrote {path}");
    }
    Ok(())
}
