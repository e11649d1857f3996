//! `fit` against Keras-like training by other systems, its reproducibility, and what it keeps.

use std::path::PathBuf;

use windlass::nn::layers::{Activation, Conv, Dense, Flatten, Padding, Pooling};
use windlass::nn::{
    EarlyStopping, Fit, Loss, Model, ModelCheckpoint, Network, Optimizer, Order, TrainingError,
};
use windlass::{DType, Error, Options, Session, Tensor};

fn arrays(name: &str) -> impl Fn(&str) -> Tensor + use<> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/training").join(name);
    let arrays = windlass_frontend::npy::read_npz(path, &windlass_ir::Limits::default()).expect("readable");
    move |key| arrays.iter().find(|(name, _)| name == key).unwrap_or_else(|| panic!("no {key}")).1.clone()
}

const CROSSENTROPY: Loss = Loss::SparseCategoricalCrossentropy { from_logits: true };

/// The network of `digits_fit`.
fn digits_network() -> Network {
    let conv = |filters: usize, name: &str| {
        Conv::new(filters, &[3, 3]).named(name).padding(Padding::Same).activation(Activation::Relu)
    };
    Network::sequential(&[8, 8, 1])
        .add(conv(32, "conv1"))
        .add(Pooling::max(&[2, 2]))
        .add(conv(64, "conv2"))
        .add(Pooling::max(&[2, 2]))
        .add(Flatten)
        .add(Dense::new(128).named("dense1").activation(Activation::Relu))
        .add(Dense::new(10).named("dense2"))
}

/// Rows of the digits, as numbers from 0 to 1, and their classes.
fn digits(which: &str, dtype: DType) -> (Tensor, Tensor) {
    let data = arrays("digits_data.npz");
    let (images, labels) = (data("images").to_f64s(), data("labels").to_ints());
    let rows: Vec<usize> = data(which).to_ints().into_iter().map(|row| row as usize).collect();
    let pixels: Vec<f64> = rows.iter().flat_map(|&r| &images[r * 64..][..64]).map(|x| x / 16.0).collect();
    let classes: Vec<i32> = rows.iter().map(|&r| labels[r] as i32).collect();
    (Tensor::from_f64s(dtype, &[rows.len(), 8, 8, 1], &pixels), Tensor::new(&[rows.len()], &classes))
}

#[test]
fn digits_are_learnt_as_by_others() {
    let (x, y) = digits("train_idx", DType::F64);
    let test = digits("test_idx", DType::F64);
    let (data, expected) = (arrays("digits_data.npz"), arrays("digits_fit.npz"));
    let mut model = Model::with_dtype(digits_network(), 0, DType::F64, Options::default()).unwrap();
    let names: Vec<String> = model.variables().map(|(name, _)| name.to_string()).collect();
    for name in names {
        let given = expected(&format!("init.{name}"));
        model.set_variable(&name, Tensor::from_f64s(DType::F64, given.shape(), &given.to_f64s())).unwrap();
    }
    model.compile(Optimizer::adam(1e-3), CROSSENTROPY);
    let perms: Vec<usize> = data("perms").to_ints().into_iter().map(|i| i as usize).collect();
    let epochs = 3;
    let fit = Fit {
        epochs,
        order: Order::Listed(perms.chunks(1437).map(<[usize]>::to_vec).collect()),
        validation: Some((&test.0, &test.1)),
        ..Fit::default()
    };
    let history = model.fit(&x, &y, &fit).unwrap();
    for (key, found) in [
        ("train_loss64", &history.loss),
        ("test_loss64", &history.validation_loss),
        ("test_acc64", &history.validation_accuracy),
    ] {
        for (epoch, (found, expected)) in found.iter().zip(expected(key).to_f64s()).enumerate() {
            assert!(
                (found - expected).abs() <= 1e-9 * expected,
                "{key} of epoch {epoch}: {found}, {expected}"
            );
        }
    }
    assert_eq!(history.loss.len(), epochs);
}

#[test]
fn digits_are_learnt_from_scratch() {
    let (x, y) = digits("train_idx", DType::F32);
    let test = digits("test_idx", DType::F32);
    let mut model = Model::new(digits_network(), 1, Options::default()).unwrap();
    model.compile(Optimizer::adam(2e-3), CROSSENTROPY);
    let fit = Fit { epochs: 20, ..Fit::default() };
    model.fit(&x, &y, &fit).unwrap();
    let accuracy = model.evaluate(&test.0, &test.1, 60).unwrap().accuracy.unwrap();
    assert!(accuracy >= 0.985, "{accuracy}");
}

/// A small network and data of two classes.
fn small(threads: usize) -> (Model, Tensor, Tensor) {
    let network = Network::sequential(&[6, 6, 2])
        .add(Conv::new(5, &[3, 3]).activation(Activation::Relu))
        .add(Pooling::max(&[2, 2]))
        .add(Flatten)
        .add(Dense::new(64).activation(Activation::Gelu))
        .add(Dense::new(2));
    let mut model = Model::new(network, 3, Options { threads, ..Options::default() }).unwrap();
    model.compile(Optimizer::adam(1e-2), CROSSENTROPY);
    let x = Tensor::from_fn::<f32>(&[50, 6, 6, 2], |i| ((i * 7919 + i / 72 * 31) % 101) as f32 / 50.0 - 1.0);
    let sums: Vec<i32> =
        x.to_f64s().chunks(72).map(|row| i32::from(row[..36].iter().sum::<f64>() > 0.0)).collect();
    (model, x, Tensor::new(&[50], &sums))
}

fn weights(model: &Model) -> Vec<Tensor> {
    model.variables().map(|(_, tensor)| tensor.clone()).collect()
}

#[test]
fn one_seed_gives_the_same_bits_with_any_number_of_threads() {
    let trained = |threads: usize| {
        let (mut model, x, y) = small(threads);
        let history = model.fit(&x, &y, &Fit { epochs: 3, batch_size: 16, ..Fit::default() }).unwrap();
        (weights(&model), history)
    };
    let first = trained(1);
    assert_eq!(first, trained(1));
    assert_eq!(first, trained(2));
}

#[test]
fn weights_are_saved_and_models_exported() {
    let folder = tempfile::tempdir().unwrap();
    let (mut model, x, y) = small(1);
    let path = folder.path().join("best.safetensors");
    let mut checkpoint = ModelCheckpoint::new(&path);
    let fit = Fit { epochs: 2, ..Fit::default() };
    model.fit_with(&x, &y, &fit, &mut [&mut checkpoint]).unwrap();
    let expected = model.predict(&x, 50).unwrap();

    let (mut other, _, _) = small(1);
    assert_ne!(other.predict(&x, 50).unwrap(), expected);
    other.load_weights(&path).unwrap();
    assert_eq!(other.predict(&x, 50).unwrap(), expected);

    let onnx = folder.path().join("model.onnx");
    model.export_onnx(&onnx, 50).unwrap();
    let outputs = Session::open(&onnx, Options::default()).unwrap().run([("x", x)]).unwrap();
    let found = outputs["prediction"].to_f64s();
    for (found, expected) in found.iter().zip(expected.to_f64s()) {
        assert!((found - expected).abs() <= 1e-5, "{found}, {expected}");
    }
}

#[test]
fn a_file_that_does_not_fit_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let (mut model, _, _) = small(1);
    model.save_weights(&path).unwrap();
    let before = weights(&model);
    let mut other = Model::new(digits_network(), 0, Options::default()).unwrap();
    let kept = weights(&other);
    let error = other.load_weights(&path).unwrap_err();
    assert!(matches!(error, Error::Training(TrainingError::Weights { .. })), "{error}");
    assert_eq!(weights(&other), kept);
    // A file cut short.
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(model.load_weights(&path).is_err());
    assert_eq!(weights(&model), before);
    // A folder that is not there: nothing is written.
    assert!(model.save_weights(folder.path().join("none/weights.safetensors")).is_err());
}

#[test]
fn training_stops_when_nothing_improves() {
    let (mut model, x, y) = small(1);
    let mut stopping = EarlyStopping::new(2);
    stopping.min_delta = 10.0;
    let fit = Fit { epochs: 9, ..Fit::default() };
    let history = model.fit_with(&x, &y, &fit, &mut [&mut stopping]).unwrap();
    assert_eq!(history.loss.len(), 3);
}

#[test]
fn bad_data_is_named() {
    let (mut model, x, y) = small(1);
    let message = |result: Result<windlass::nn::History, Error>| result.unwrap_err().to_string();
    let fit = Fit::default();
    let flat = x.reshaped(&[50, 72]);
    assert_eq!(message(model.fit(&flat, &y, &fit)), "x is f32[50, 72], the model takes f32[50, 6, 6, 2]");
    let short = Tensor::new(&[3], &[0i32, 1, 0]);
    assert_eq!(message(model.fit(&x, &short, &fit)), "y is i32[3], the model takes 50 rows");
    let weighted = Fit { class_weight: Some(vec![1.0]), ..Fit::default() };
    assert!(message(model.fit(&x, &y, &weighted)).starts_with("class_weight"));
    let nan = Tensor::from_fn::<f32>(&[50, 6, 6, 2], |_| f32::NAN);
    let expected = "the loss is not a number at step 0 of epoch 0: the first that is none is in `x`";
    assert_eq!(message(model.fit(&nan, &y, &fit)), expected);
    let network = Network::sequential(&[2]).add(Dense::new(1));
    let mut raw = Model::new(network, 0, Options::default()).unwrap();
    let (x, y) = (Tensor::zeros(DType::F32, &[1, 2]), Tensor::zeros(DType::F32, &[1, 1]));
    assert!(message(raw.fit(&x, &y, &fit)).contains("compile it first"));
}

#[test]
fn dropout_leaves_out_its_share_and_only_in_training() {
    use windlass::TensorType;
    use windlass::nn::Net;
    use windlass::nn::layers::{Dropout, Layer as _};
    let mask = |training: bool, count: f32| -> Vec<f64> {
        let mut net = Net::new("dropout", DType::F32, training);
        let x = net.input("x", TensorType::fixed(DType::F32, &[100, 100]));
        let y = Dropout::new(0.25).apply(&mut net, x).unwrap();
        let graph = net.build().graph(&[("y", y)]).unwrap();
        let inputs: Vec<Tensor> = graph
            .inputs()
            .iter()
            .map(|(name, _)| match name.as_str() {
                "x" => Tensor::from_fn::<f32>(&[100, 100], |_| 1.0),
                _ => Tensor::scalar(count),
            })
            .collect();
        let found = Session::new(graph.clone(), Options::default()).unwrap().run(inputs.clone()).unwrap();
        let found = found["y"].to_f64s();
        assert_eq!(found, windlass_ir::interpret(&graph, &inputs).unwrap()[0].to_f64s());
        found
    };
    assert!(mask(false, 0.0).iter().all(|&x| x == 1.0));
    let (first, second) = (mask(true, 0.0), mask(true, 1.0));
    let kept = |mask: &[f64]| mask.iter().filter(|x| **x != 0.0).count();
    for mask in [&first, &second] {
        assert!((7300..7700).contains(&kept(mask)), "{} stay", kept(mask));
        assert!(mask.iter().all(|&x| x == 0.0 || (x - 4.0 / 3.0).abs() < 1e-6));
    }
    // Steps, and neighbours, are independent: 9/16 of the pairs both stay.
    let both = first.iter().zip(&second).filter(|(a, b)| **a != 0.0 && **b != 0.0).count();
    let neighbours = first.windows(2).filter(|pair| pair[0] != 0.0 && pair[1] != 0.0).count();
    assert!((5400..5850).contains(&both) && (5400..5850).contains(&neighbours), "{both}, {neighbours}");
}

#[test]
fn penalties_and_both_directions_train() {
    use windlass::nn::Regularizer;
    use windlass::nn::layers::{Bidirectional, Dropout, Gru};
    let network = Network::sequential(&[5, 3])
        .add(Bidirectional::new(Gru::new(4).return_sequences(true)))
        .add(Dropout::new(0.1))
        .add(Flatten)
        .add(Dense::new(2).kernel_regularizer(Regularizer { l1: 0.0, l2: 0.5 }));
    let mut model = Model::new(network, 5, Options::default()).unwrap();
    model.compile(Optimizer::adam(1e-2), CROSSENTROPY);
    let x = Tensor::from_fn::<f32>(&[16, 5, 3], |i| (i % 7) as f32 / 7.0);
    let y = Tensor::from_fn::<i32>(&[16], |i| (i % 2) as i32);
    let norm = |model: &Model| -> f64 {
        let kernel = model.variables().find(|(name, _)| *name == "dense.kernel").unwrap().1.to_f64s();
        kernel.iter().map(|x| x * x).sum()
    };
    let before = norm(&model);
    let history = model.fit(&x, &y, &Fit { epochs: 60, ..Fit::default() }).unwrap();
    assert!(norm(&model) < before / 4.0, "{} of {before}", norm(&model));
    assert!(history.loss[59] < history.loss[0]);
    assert_eq!(model.predict(&x, 16).unwrap(), model.predict(&x, 16).unwrap());
}

/// The network of `inputgrad_mlp` or `inputgrad_cnn`, its weights, and its arrays.
fn attacked(name: &str) -> (Model, impl Fn(&str) -> Tensor) {
    let golden = arrays(&format!("{name}.npz"));
    let network = match name {
        "inputgrad_mlp" => Network::sequential(&[24]),
        _ => Network::sequential(&[10, 10, 2])
            .add(Conv::new(4, &[3, 3]).named("conv1").activation(Activation::Relu))
            .add(Pooling::max(&[2, 2]))
            .add(Flatten),
    };
    let sizes: &[usize] = if name == "inputgrad_mlp" { &[32, 16, 6] } else { &[12, 5] };
    let network = sizes.iter().enumerate().fold(network, |network, (i, &units)| {
        let last = i + 1 == sizes.len();
        let activation = if last { Activation::Linear } else { Activation::Relu };
        network.add(Dense::new(units).named(&format!("dense{}", i + 1)).activation(activation))
    });
    let mut model = Model::with_dtype(network, 0, DType::F64, Options::default()).unwrap();
    model.compile(Optimizer::sgd(0.1), CROSSENTROPY);
    let names: Vec<String> = model.variables().map(|(name, _)| name.to_string()).collect();
    for name in names {
        let given = golden(&format!("init.{name}"));
        model.set_variable(&name, Tensor::from_f64s(DType::F64, given.shape(), &given.to_f64s())).unwrap();
    }
    (model, golden)
}

#[test]
fn attacks_and_attributions_are_those_of_others() {
    use windlass::nn::{Ball, Pgd};
    for name in ["inputgrad_mlp", "inputgrad_cnn"] {
        let (mut model, golden) = attacked(name);
        let meta: serde_json::Value = serde_json::from_slice(golden("meta_json").bytes()).unwrap();
        let number = |key: &str| meta[key].as_f64().unwrap();
        let wide = |key: &str| {
            let array = golden(key);
            // Batches of one are in a dimension of their own.
            let shape = if key == "x" { array.shape()[1..].to_vec() } else { array.shape().to_vec() };
            Tensor::from_f64s(DType::F64, &shape, &array.to_f64s())
        };
        let x = wide("x");
        let classes: Vec<usize> = golden("y").to_ints().into_iter().map(|class| class as usize).collect();
        let y = Tensor::from_fn::<i32>(&[classes.len()], |i| classes[i] as i32);
        let check = |key: &str, found: &Tensor| {
            let expected = golden(key).to_f64s();
            let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            for (i, (found, expected)) in found.to_f64s().iter().zip(&expected).enumerate() {
                assert!((found - expected).abs() <= 1e-9 * largest, "{name} {key}[{i}]: {found}, {expected}");
            }
        };
        let range = (0.0, 1.0);
        check("loss_grad64", &model.loss_gradient(&x, &y).unwrap().1);
        let fgsm = model.fgsm(&x, &y, number("eps"), range).unwrap();
        check("fgsm64", &fgsm);
        let loss = |model: &mut Model, x: &Tensor| Tensor::scalar(model.loss_gradient(x, &y).unwrap().0);
        check("loss_clean64", &loss(&mut model, &x));
        check("loss_fgsm64", &loss(&mut model, &fgsm));
        let pgd = Pgd {
            ball: Ball::Linf(number("eps")),
            step: number("alpha"),
            iterations: number("pgd_iters") as usize,
            start: Some(wide("pgd_start")),
            range,
        };
        let attacked = model.pgd(&x, &y, &pgd).unwrap();
        check("pgd64", &attacked);
        check("loss_pgd64", &loss(&mut model, &attacked));
        check("score_grad64", &model.score_gradient(&x, &classes).unwrap().1);
        check("grad_times_input64", &model.gradient_times_input(&x, &classes).unwrap());
        let steps = number("ig_steps") as usize;
        let attribution = model.integrated_gradients(&x, &wide("baseline"), &classes, steps).unwrap();
        check("ig_midpoint64", &attribution.elements);
        let largest = attribution.gap.iter().fold(0.0f64, |m, gap| m.max(gap.abs()));
        assert!((largest - number("ig_completeness_gap_midpoint")).abs() < 1e-6, "the gap is {largest}");
        // Within a Euclidean ball, no worse than no attack, and no further than asked.
        let pgd = Pgd { ball: Ball::L2(0.5), step: 0.1, start: None, ..pgd };
        let near = model.pgd(&x, &y, &pgd).unwrap();
        assert!(loss(&mut model, &near).to_f64s()[0] > loss(&mut model, &x).to_f64s()[0]);
        let each: usize = x.shape()[1..].iter().product();
        for (a, b) in near.to_f64s().chunks(each).zip(x.to_f64s().chunks(each)) {
            let distance: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
            assert!(distance.sqrt() <= 0.5 + 1e-9);
        }
    }
}
