//! Trains a network on scikit-learn's handwritten digits so that little can be learnt from it of any one of them:
//! `cargo run --release --example privacy`. Prints what is given away, and how many of those held back are read right.

use std::path::Path;

use windlass::nn::accountant::Accountant;
use windlass::nn::layers::{Activation, Dense, Flatten};
use windlass::nn::{DpSgd, Loss, Model, Network, Optimizer, PrivateFit};
use windlass::{Error, Limits, Options, Tensor};
use windlass_frontend::npy::read_npz;

fn main() -> Result<(), Error> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/training");
    let arrays = read_npz(folder.join("digits_data.npz"), &Limits::default())?;
    let array = |key: &str| arrays.iter().find(|(name, _)| name == key).map(|(_, array)| array.to_f64s());
    let (images, labels) = (array("images").unwrap_or_default(), array("labels").unwrap_or_default());
    // Images of 8 x 8 numbers from 0 to 1, and their classes.
    let digits = |key: &str| -> (Tensor, Tensor) {
        let rows: Vec<usize> = array(key).unwrap_or_default().into_iter().map(|row| row as usize).collect();
        let pixels: Vec<f32> =
            rows.iter().flat_map(|&r| &images[r * 64..][..64]).map(|&x| x as f32 / 16.0).collect();
        let classes: Vec<i32> = rows.iter().map(|&r| labels[r] as i32).collect();
        (Tensor::new(&[rows.len(), 8, 8, 1], &pixels), Tensor::new(&[rows.len()], &classes))
    };
    let (x, y) = digits("train_idx");
    let held_back = digits("test_idx");

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
