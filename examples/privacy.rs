//! Trains a network on scikit-learn's handwritten digits so that little can be learnt from it of any one of them:
//! `cargo run --release --example privacy`. Prints what is given away, and how many of those held back are read right.

#[path = "digits/data.rs"]
mod data;

use windlass::nn::accountant::Accountant;
use windlass::nn::layers::{Activation, Dense, Flatten};
use windlass::nn::{DpSgd, Loss, Model, Network, Optimizer, PrivateFit};
use windlass::{Error, Options};

fn main() -> Result<(), Error> {
    let (x, y) = data::digits(false)?;
    let held_back = data::digits(true)?;

    let network = Network::sequential(&[8, 8, 1])
        .add(Flatten)
        .add(Dense::new(64).activation(Activation::Tanh))
        .add(Dense::new(10));
    let mut model = Model::new(network, 1, Options::default())?;
    let loss = Loss::SparseCategoricalCrossentropy { from_logits: true };
    // Examples weigh at most a norm of 1; noise of 2.5 times that hides them.
    model.compile_private(Optimizer::adam(5e-3), loss, DpSgd::new(1.0, 2.5, 1));
    let mut accountant = Accountant::default();
    let validation = Some((&held_back.0, &held_back.1));
    let fit = PrivateFit { steps: 300, batch_size: 128, delta: 1e-4, validation, verbose: 50 };
    let history = model.fit_private(&x, &y, &fit, &mut accountant)?;
    let accuracy = history.validation.and_then(|v| v.accuracy).unwrap_or(0.0);
    println!("({:.2}, {:e})-private, accuracy {accuracy:.4}", history.epsilon, fit.delta);
    Ok(())
}
