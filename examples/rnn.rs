//! A recurrent network: the next value of a wave, from the twenty before it.

use windlass::nn::layers::{Dense, SimpleRnn};
use windlass::nn::{Fit, Loss, Model, Network, Optimizer};
use windlass::{Error, Options, Tensor};

fn main() -> Result<(), Error> {
    let wave = |t: usize| (t as f32 * 0.3).sin() + 0.5 * (t as f32 * 0.11).cos();
    let (count, steps) = (512, 20);
    let x = Tensor::from_fn::<f32>(&[count, steps, 1], |i| wave(i / steps + i % steps));
    let y = Tensor::from_fn::<f32>(&[count, 1], |i| wave(i + steps));

    let network = Network::sequential(&[steps, 1]).add(SimpleRnn::new(32)).add(Dense::new(1));
    let mut model = Model::new(network, 0, Options::default())?;
    model.compile(Optimizer::adam(3e-3), Loss::MeanSquaredError);
    model.fit(&x, &y, &Fit { epochs: 20, verbose: true, ..Fit::default() })?;

    let predicted = model.predict(&x, 64)?.to_f64s();
    for at in [0, 100, 200] {
        println!("after value {at}: predicted {:.3}, is {:.3}", predicted[at], wave(at + steps));
    }
    Ok(())
}
