//! Private training as a whole: it learns, gives away what the accountant says, and depends on its seed alone.

use windlass::nn::accountant::Accountant;
use windlass::nn::layers::{Activation, BatchNormalization, Dense, Lstm};
use windlass::nn::{DpSgd, Loss, Model, Network, Optimizer, PrivateFit, PrivateHistory};
use windlass::{DType, Options, Tensor};

const CROSSENTROPY: Loss = Loss::SparseCategoricalCrossentropy { from_logits: true };

/// Points of a plane, and in which quarter of it they lie.
fn quarters(count: usize) -> (Tensor, Tensor) {
    let place = |i: usize, factor: usize| (i * factor % 211) as f32 / 105.0 - 1.0;
    let points: Vec<f32> = (0..count).flat_map(|i| [place(i, 37), place(i, 101)]).collect();
    let classes: Vec<i32> =
        points.chunks(2).map(|p| i32::from(p[0] > 0.0) + 2 * i32::from(p[1] > 0.0)).collect();
    (Tensor::new(&[count, 2], &points), Tensor::new(&[count], &classes))
}

fn trained(threads: usize, seed: u64) -> (Vec<Tensor>, PrivateHistory) {
    let network =
        Network::sequential(&[2]).add(Dense::new(16).activation(Activation::Tanh)).add(Dense::new(4));
    let mut model = Model::new(network, 1, Options { threads, ..Options::default() }).unwrap();
    model.compile_private(Optimizer::adam(0.05), CROSSENTROPY, DpSgd::new(1.0, 1.2, seed));
    let (x, y) = quarters(400);
    let fit = PrivateFit { steps: 60, batch_size: 50, validation: Some((&x, &y)), ..PrivateFit::default() };
    let history = model.fit_private(&x, &y, &fit, &mut Accountant::default()).unwrap();
    (model.variables().map(|(_, value)| value.clone()).collect(), history)
}

#[test]
fn private_training_learns_and_says_what_it_gives_away() {
    let (weights, history) = trained(1, 1);
    assert!(history.validation.as_ref().unwrap().accuracy.unwrap() > 0.8, "{history:?}");
    let mut accountant = Accountant::default();
    accountant.add(1.2, 50.0 / 400.0, 60);
    let (expected, _) = accountant.epsilon(1e-5);
    assert!((history.epsilon - expected).abs() < 1e-3 * expected, "{} {expected}", history.epsilon);
    // One seed gives the same bits, another one others.
    assert_eq!(trained(2, 1), (weights.clone(), history));
    assert_ne!(trained(1, 2).0, weights);
}

#[test]
fn what_cannot_be_private_is_refused() {
    let (x, y) = quarters(40);
    let mut accountant = Accountant::default();
    let fit = PrivateFit { steps: 1, batch_size: 8, ..PrivateFit::default() };
    let mut model = Model::new(Network::sequential(&[2]).add(Dense::new(4)), 1, Options::default()).unwrap();
    model.compile(Optimizer::sgd(0.1), CROSSENTROPY);
    let error = model.fit_private(&x, &y, &fit, &mut accountant).unwrap_err();
    assert!(error.to_string().contains("compile_private"), "{error}");
    let network = Network::sequential(&[2]).add(BatchNormalization::default()).add(Dense::new(4));
    let mut model = Model::with_dtype(network, 1, DType::F32, Options::default()).unwrap();
    model.compile_private(Optimizer::sgd(0.1), CROSSENTROPY, DpSgd::new(1.0, 1.0, 1));
    let error = model.fit_private(&x, &y, &fit, &mut accountant).unwrap_err();
    assert!(error.to_string().contains("follows all examples of a batch"), "{error}");
    assert_eq!(accountant.steps(), 0);
}

/// The gradient of a recurrence lets one node stand in for another, so values get other numbers.
#[test]
fn recurrent_networks_can_be_private() {
    let network = Network::sequential(&[24, 2]).add(Lstm::new(3)).add(Dense::new(4));
    let mut model = Model::new(network, 1, Options::default()).unwrap();
    model.compile_private(Optimizer::sgd(0.5), CROSSENTROPY, DpSgd::new(1.0, 0.0, 1));
    let points: Vec<f32> = (0..8 * 24 * 2).map(|i| (i * 37 % 211) as f32 / 105.0 - 1.0).collect();
    let (x, y) = (Tensor::new(&[8, 24, 2], &points), Tensor::new(&[8], &[0i32, 1, 2, 3, 3, 2, 1, 0]));
    let fit = PrivateFit { steps: 30, batch_size: 8, ..PrivateFit::default() };
    let history = model.fit_private(&x, &y, &fit, &mut Accountant::default()).unwrap();
    assert!(history.loss[29] < history.loss[0], "{:?}", history.loss);
}
