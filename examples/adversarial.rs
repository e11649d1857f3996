//! Attacks: how accurate a network is when every pixel may be changed a little to mislead it, and how much is won by
//! training on such images: `cargo run --release --example adversarial`.

#[path = "digits/data.rs"]
mod data;

use windlass::nn::layers::{Activation, Dense, Flatten};
use windlass::nn::{Adversarial, Attack, Fit, Loss, Model, Network, Optimizer};
use windlass::{Error, Options};

const EPSILONS: [f64; 5] = [0.0, 0.05, 0.1, 0.15, 0.2];

/// The accuracy under attacks of each strength, after training without and with attacks.
pub fn run() -> Result<[Vec<(f64, f64)>; 2], Error> {
    let (x, y) = data::digits(false)?;
    let held_back = data::digits(true)?;
    let curve = |adversarial: Option<Adversarial>| -> Result<Vec<(f64, f64)>, Error> {
        let network = Network::sequential(&[8, 8, 1])
            .add(Flatten)
            .add(Dense::new(64).activation(Activation::Relu))
            .add(Dense::new(10));
        let mut model = Model::new(network, 1, Options::default())?;
        model.compile(Optimizer::adam(3e-3), Loss::SparseCategoricalCrossentropy { from_logits: true });
        model.fit(&x, &y, &Fit { epochs: 15, adversarial, ..Fit::default() })?;
        model.robustness(&held_back.0, &held_back.1, &Attack::pgd(0.0, 10), &EPSILONS, 60)
    };
    let attack = Attack::pgd(0.15, 5);
    let curves = [curve(None)?, curve(Some(Adversarial { attack, share: 0.5, seed: 1 }))?];
    println!("epsilon  plain  trained against attacks");
    for ((epsilon, plain), (_, trained)) in curves[0].iter().zip(&curves[1]) {
        println!("{epsilon:7.2}  {plain:5.3}  {trained:5.3}");
    }
    Ok(curves)
}

fn main() -> Result<(), Error> {
    run().map(|_| ())
}
