//! Linear regression by gradient descent: y = 4 + 3 x, found again from 100 noisy points.

use windlass::nn::{Fit, Loss, Model, Network, Optimizer, layers::Dense};
use windlass::{Error, Options, Tensor};

fn main() -> Result<(), Error> {
    // Points on the line, moved up and down a little.
    let xs: Vec<f32> = (0..100).map(|i| i as f32 / 50.0).collect();
    let noise = |i: usize| ((i * 37 % 19) as f32 - 9.0) / 20.0;
    let ys: Vec<f32> = xs.iter().enumerate().map(|(i, x)| 4.0 + 3.0 * x + noise(i)).collect();
    let (x, y) = (Tensor::new(&[100, 1], &xs), Tensor::new(&[100, 1], &ys));

    let network = Network::sequential(&[1]).add(Dense::new(1));
    let mut model = Model::new(network, 0, Options::default())?;
    model.compile(Optimizer::sgd(0.1), Loss::MeanSquaredError);
    let history = model.fit(&x, &y, &Fit { epochs: 1000, batch_size: 100, ..Fit::default() })?;

    println!("loss {:.4} at first, {:.4} at last", history.loss[0], history.loss[999]);
    for (name, value) in model.variables() {
        println!("{name} = {:.3}", value.to_f64s()[0]);
    }
    Ok(())
}
