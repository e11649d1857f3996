//! A convolutional network as one writes it in Keras: two convolutions with pooling, two dense layers, Adam, sparse
//! categorical cross-entropy. It learns which of 32 stripes an image of 32 x 32 pixels has.

use windlass::nn::layers::{Activation, Conv, Dense, Flatten, Pooling};
use windlass::nn::{Fit, Loss, Model, Network, Optimizer};
use windlass::{Error, Options, Tensor};

/// So many images of stripes, and how they run: 8 directions, 4 widths.
fn stripes(count: usize, seed: usize) -> (Tensor, Tensor) {
    let (mut pixels, mut classes) = (Vec::new(), Vec::new());
    for image in 0..count {
        let number = (image * 7919 + seed * 104_729) % 99_991;
        let class = number % 32;
        let angle = (class % 8) as f32 * std::f32::consts::PI / 8.0;
        let period = [3.0, 5.0, 8.0, 12.0][class / 8];
        let shift = (number / 32 % 17) as f32;
        for at in 0..32 * 32 {
            let (row, column) = ((at / 32) as f32, (at % 32) as f32);
            let along = row * angle.sin() + column * angle.cos() + shift;
            let value = (along * std::f32::consts::TAU / period).sin();
            let grain = ((at * 31 + number) % 23) as f32 / 23.0 - 0.5;
            pixels.extend([value + grain, value - grain, grain]);
        }
        classes.push(class as i32);
    }
    (Tensor::new(&[count, 32, 32, 3], &pixels), Tensor::new(&[count], &classes))
}

fn main() -> Result<(), Error> {
    let network = Network::sequential(&[32, 32, 3])
        .add(Conv::new(32, &[3, 3]).activation(Activation::Relu))
        .add(Pooling::max(&[2, 2]))
        .add(Conv::new(64, &[3, 3]).activation(Activation::Relu))
        .add(Pooling::max(&[2, 2]))
        .add(Flatten)
        .add(Dense::new(128).activation(Activation::Relu))
        .add(Dense::new(32).activation(Activation::Softmax));
    let mut model = Model::new(network, 0, Options::default())?;
    model.compile(Optimizer::adam(1e-3), Loss::SparseCategoricalCrossentropy { from_logits: false });
    print!("{}", model.summary());

    let (x, y) = stripes(1024, 1);
    let held_back = stripes(256, 2);
    model.fit(
        &x,
        &y,
        &Fit { epochs: 4, validation: Some((&held_back.0, &held_back.1)), verbose: true, ..Fit::default() },
    )?;
    Ok(())
}
