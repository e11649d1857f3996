//! Trains a network on scikit-learn's handwritten digits until 98.5 % of those held back are read right, and writes it
//! as an ONNX file: `cargo run --release --example digits -- digits.onnx`.

use std::path::Path;

use windlass::nn::layers::{Activation, Conv, Dense, Flatten, Padding, Pooling};
use windlass::nn::{Callback, Control, Epoch, Fit, Loss, Model, Network, Optimizer};
use windlass::{Error, Limits, Options, Tensor};
use windlass_frontend::npy::read_npz;

/// Ends training once enough is right.
struct Enough(f64);

impl Callback for Enough {
    fn on_epoch_end(&mut self, epoch: &Epoch, _: &mut Model) -> Result<Control, Error> {
        let accuracy = epoch.validation.as_ref().and_then(|v| v.accuracy).unwrap_or(0.0);
        Ok(if accuracy >= self.0 { Control::Stop } else { Control::Continue })
    }
}

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
