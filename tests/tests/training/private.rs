//! Differentially private steps against PyTorch's and JAX's numbers, and against ordinary steps.

use std::collections::HashMap;

use windlass::{DType, Options, Session, Tensor, TensorType};
use windlass_frontend::nn::{DpSgd, Microbatch, Net, Noise, Optimizer, Training, WeightedMean};

use super::{Golden, initial, loss, network, optimizer, run};

/// A network of the file for so many examples.
fn examples(golden: &Golden, dtype: DType, count: usize) -> Microbatch {
    let mut net = Net::new(golden.word("name"), dtype, true);
    let typed = |key: &str| {
        let ty = golden.batch(key, 0, dtype).ty();
        let mut shape = ty.shape();
        shape[0] = count;
        TensorType::fixed(ty.dtype, &shape)
    };
    let (x, truth) = (net.input("x", typed("x")), net.input("y", typed("y")));
    let prediction = network(golden, &mut net, x).expect("the network is valid");
    Microbatch { net: net.build(), prediction, truth, weights: None }
}

fn private(golden: &Golden, noise_multiplier: f64, noise: Noise) -> Training {
    let privacy = DpSgd { noise, ..DpSgd::new(golden.number("/clip"), noise_multiplier, 0) };
    Training {
        loss: loss(golden),
        optimizer: optimizer(golden),
        weighted: WeightedMean::Count,
        privacy: Some(privacy),
    }
}

#[test]
fn dpsgd() {
    let golden = Golden::load("dpsgd");
    let training = private(&golden, golden.number("/sigma"), Noise::Given);
    for dtype in [DType::F64, DType::F32] {
        let batch = golden.batch("x", 0, dtype).shape()[0];
        let step = training
            .batch_step(batch, |count| Ok::<_, windlass_ir::Error>(examples(&golden, dtype, count)))
            .expect("a step");
        let session = Session::new(step.graph.clone(), Options::default()).expect("the step compiles");
        let mut state = initial(&golden, &step, dtype);
        let before = state.clone();
        for number in 0..golden.number("/steps") as usize {
            let mut given: HashMap<String, Tensor> = HashMap::new();
            let names = step.state.variables.iter().map(|v| v.name.clone());
            given.extend(names.zip(state.iter().cloned()));
            given.insert("step".to_string(), state[state.len() - 1].clone());
            for key in ["x", "y"] {
                given.insert(key.to_string(), golden.batch(key, number, dtype));
            }
            let inputs: Vec<Tensor> = session
                .inputs()
                .map(|(name, _)| match given.get(name) {
                    Some(tensor) => tensor.clone(),
                    None => golden.batch(name, number, dtype),
                })
                .collect();
            let mut outs = run(&session, &inputs);
            state = outs.split_off(2);
            let each = golden.batch("per_example_loss64", number, DType::F64).to_f64s();
            let expected = each.iter().sum::<f64>() / each.len() as f64;
            let error = (outs[0].to_f64s()[0] - expected).abs() / expected;
            let tolerance = if dtype == DType::F64 { 1e-9 } else { 2e-6 };
            assert!(error <= tolerance, "step {number} in {dtype}: {error:e}");
            if number == 0 && dtype == DType::F64 {
                for ((variable, before), after) in step.state.variables.iter().zip(&before).zip(&state) {
                    let (before, after) = (before.to_f64s(), after.to_f64s());
                    let rate = golden.number("/hyper/lr");
                    let gradient: Vec<f64> = before.iter().zip(after).map(|(b, a)| (b - a) / rate).collect();
                    let gradient = Tensor::from_f64s(DType::F64, &variable.ty.shape(), &gradient);
                    golden.compare(&format!("noised_grad64.{}", variable.name), &gradient, 1e-9);
                }
            }
        }
        let tolerance = if dtype == DType::F64 { 1e-9 } else { 2e-6 };
        for (variable, value) in step.state.variables.iter().zip(&state) {
            golden.compare(&format!("final64.{}", variable.name), value, tolerance);
        }
    }
}

/// Without noise and with a bound that nothing reaches, the gradient is the ordinary one, however a batch is cut.
#[test]
fn private_steps_without_privacy_are_ordinary_ones() {
    for name in ["mlp", "cnn_small_same", "lstm", "transformer", "selfattn"] {
        let golden = Golden::load(name);
        let mut training = private_or_not(&golden, None);
        let batch = golden.batch("x", 0, DType::F64).shape()[0];
        let mut expected: Option<Vec<Tensor>> = None;
        for microbatches in [None, Some(batch), Some(batch / 2), Some(1)] {
            let step = training
                .batch_step(batch, |count| Ok::<_, windlass_ir::Error>(examples(&golden, DType::F64, count)));
            let step = step.unwrap_or_else(|e| panic!("{name}: {e}"));
            let session = Session::new(step.graph.clone(), Options::default()).expect("the step compiles");
            let mut inputs = initial(&golden, &step, DType::F64);
            inputs.extend(["x", "y"].map(|key| golden.batch(key, 0, DType::F64)));
            let found = run(&session, &inputs);
            for (a, b) in found.iter().zip(expected.get_or_insert_with(|| found.clone())) {
                let largest = b.to_f64s().iter().fold(1e-3f64, |m, x| m.max(x.abs()));
                let near = a.to_f64s().iter().zip(b.to_f64s()).all(|(a, b)| (a - b).abs() <= 1e-9 * largest);
                assert!(near, "{name} with {microbatches:?}");
            }
            let privacy = DpSgd { microbatches, ..DpSgd::new(1e6, 0.0, 0) };
            training = private_or_not(&golden, Some(privacy));
        }
    }
}

fn private_or_not(golden: &Golden, privacy: Option<DpSgd>) -> Training {
    let optimizer = Optimizer::sgd(0.1);
    Training { loss: loss(golden), optimizer, weighted: WeightedMean::Count, privacy }
}

#[test]
fn statistics_of_a_batch_are_refused_by_name() {
    let golden = Golden::load("resnet_bn");
    let training = private_or_not(&golden, Some(DpSgd::new(1.0, 1.0, 0)));
    let error = training
        .batch_step(2, |count| Ok::<_, windlass_ir::Error>(examples(&golden, DType::F32, count)))
        .unwrap_err();
    assert!(error.to_string().contains("`stem.bn.mean` follows all examples of a batch"), "{error}");
    let privacy = DpSgd { microbatches: Some(3), ..DpSgd::new(1.0, 1.0, 0) };
    let training = private_or_not(&Golden::load("mlp"), Some(privacy));
    let error = training
        .batch_step(4, |count| Ok::<_, windlass_ir::Error>(examples(&golden, DType::F32, count)))
        .unwrap_err();
    assert!(error.to_string().contains("4 is not cut into 3"), "{error}");
}
