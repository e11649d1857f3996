//! Self-attention: every element of a sequence becomes the one that comes from the same place counted from the end.

use windlass::nn::layers::{Dense, SelfAttention};
use windlass::nn::{Fit, Loss, Model, Network, Optimizer};
use windlass::{Error, Options, Tensor};

fn main() -> Result<(), Error> {
    // Each element is its place, as one of eight directions, and a number.
    let (count, length) = (512, 8);
    let number = |example: usize, at: usize| ((example * 31 + at * 17) % 29) as f32 / 29.0;
    let x = Tensor::from_fn::<f32>(&[count, length, length + 1], |i| {
        let (element, feature) = (i / (length + 1), i % (length + 1));
        let (example, at) = (element / length, element % length);
        if feature == length { number(example, at) } else { f32::from(u8::from(feature == at)) }
    });
    let y = Tensor::from_fn::<f32>(&[count, length, 1], |i| number(i / length, length - 1 - i % length));

    let network = Network::sequential(&[length, length + 1]).add(SelfAttention::new(16)).add(Dense::new(1));
    let mut model = Model::new(network, 0, Options::default())?;
    model.compile(Optimizer::adam(1e-2), Loss::MeanSquaredError);
    let history = model.fit(&x, &y, &Fit { epochs: 60, ..Fit::default() })?;
    for epoch in [0, 9, 59] {
        println!("epoch {}: loss {:.5}", epoch + 1, history.loss[epoch]);
    }
    Ok(())
}
