//! What is done about hard data: metrics, imbalance, masks, augmentation, missing values, attacks, explanations.

use std::collections::BTreeMap;

use windlass::nn::heat_map::HeatMap;
use windlass::nn::layers::{Activation, Dense, Fill, Flatten, Imputer, Normalization};
use windlass::nn::{
    Adversarial, Attack, Augment, Augmentation, Callback, ConfusionMatrix, Control, CsvLogger, Epoch, Fit,
    Loss, Mask, Metric, Model, NanOrigin, NanPolicy, Network, Occlusion, Of, Optimizer, Order,
    ReduceLrOnPlateau, SmoothGrad, StepEnd, TrainingError, WeightedMean, sampling,
};
use windlass::{Builder, DType, Error, Options, ScalarFn, Session, Tensor, TensorType};

const CROSSENTROPY: Loss = Loss::SparseCategoricalCrossentropy { from_logits: true };

/// A model that predicts what it is given.
fn identity(shape: &[usize], loss: Loss, metrics: &[Metric]) -> Model {
    let network = Network::functional(shape, |_, x| Ok(x));
    let mut model = Model::with_dtype(network, 0, DType::F64, Options::default()).unwrap();
    model.compile_with(Optimizer::sgd(0.1), loss, metrics.to_vec());
    model
}

fn close(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() <= 1e-12, "{what}: {found}, {expected}");
}

/// Scores of 24 examples in 4 classes, many of them equal, and the classes.
fn scores() -> (Tensor, Tensor) {
    let class = |i: usize| (i * i + i / 3) % 4;
    let score = |i: usize| {
        let score = (((i * 7919 + i / 4 * 31) % 101) as f64 / 50.0 - 1.0) * 4.0;
        let own = i % 4 == class(i / 4) && !(i / 4).is_multiple_of(3);
        score.round_ties_even() / 4.0 + f64::from(u8::from(own))
    };
    (Tensor::from_fn::<f64>(&[24, 4], score), Tensor::from_fn::<i32>(&[24], |i| class(i) as i32))
}

/// `confusion_matrix`, `precision_score`, `roc_auc_score(softmax, multi_class="ovr")` and so on of scikit-learn 1.9.
#[test]
fn metrics_of_classes_are_those_of_scikit_learn() {
    let (x, y) = scores();
    let expected = [
        (Metric::Accuracy, 0.458_333_333_333_333_3),
        (Metric::TopKAccuracy(2), 0.708_333_333_333_333_4),
        (Metric::Precision(Of::Macro), 0.448_809_523_809_523_77),
        (Metric::Precision(Of::Class(3)), 2.0 / 3.0),
        (Metric::Recall(Of::Macro), 0.5),
        (Metric::Recall(Of::Class(0)), 0.375),
        (Metric::F1(Of::Macro), 0.462_698_412_698_412_7),
        (Metric::F1(Of::Class(2)), 3.0 / 7.0),
        (Metric::Auc, 0.721_875),
    ];
    let metrics = expected.map(|(metric, _)| metric);
    let hot = Tensor::from_fn::<f64>(&[24, 4], |i| f64::from(u8::from(y.to_ints()[i / 4] == (i % 4) as i64)));
    let dense = Loss::CategoricalCrossentropy { from_logits: true, label_smoothing: 0.0 };
    for (loss, y) in [(CROSSENTROPY, &y), (dense, &hot)] {
        for batch in [24, 7] {
            let found = identity(&[4], loss.clone(), &metrics).evaluate(&x, y, batch).unwrap().metrics;
            for ((metric, expected), (name, found)) in expected.iter().zip(&found) {
                assert_eq!(metric.name(), *name);
                close(*found, *expected, name);
            }
        }
    }
    let matrix = ConfusionMatrix::of_scores(&x, &y);
    let rows: Vec<&[u64]> = matrix.rows().collect();
    assert_eq!(rows, [[3, 2, 3, 0], [2, 1, 0, 1], [2, 2, 3, 1], [0, 0, 0, 4]]);
    assert_eq!(matrix.to_string(), " 3 2 3 0\n 2 1 0 1\n 2 2 3 1\n 0 0 0 4\n");
}

#[test]
fn metrics_of_two_classes_and_of_numbers_are_those_of_scikit_learn() {
    let (x, y) = scores();
    let column = Tensor::from_fn::<f64>(&[24, 1], |i| x.to_f64s()[4 * i]);
    let truth = Tensor::from_fn::<f64>(&[24, 1], |i| f64::from(u8::from(y.to_ints()[i] > 1)));
    let loss = Loss::BinaryCrossentropy { from_logits: true, label_smoothing: 0.0 };
    let class = Of::Class(1);
    let metrics = [Metric::Auc, Metric::Accuracy, Metric::Precision(class), Metric::F1(class)];
    let found = identity(&[1], loss, &metrics).evaluate(&column, &truth, 5).unwrap().metrics;
    for ((name, found), expected) in found.iter().zip([0.53125, 7.0 / 12.0, 4.0 / 7.0, 8.0 / 13.0]) {
        close(*found, expected, name);
    }
    let truth = Tensor::from_fn::<f64>(&[24, 4], |i| ((i * 31) % 17) as f64 / 8.0);
    let metrics = [Metric::RootMeanSquaredError, Metric::MeanAbsoluteError];
    let found = identity(&[4], Loss::MeanSquaredError, &metrics).evaluate(&x, &truth, 5).unwrap().metrics;
    close(found[0].1, 1.222_616_729_260_101, "rmse");
    close(found[1].1, 0.984_375, "mae");
}

/// The same formulas in numpy, over `k = truth >= 0`, or `np.nanmean`.
#[test]
fn masked_losses_are_means_of_what_is_known() {
    let x = Tensor::new(&[4, 3], &[1., 2., 0.5, 0.2, -1., 0.3, 2., 0., 1., 0.5, 0.5, 3.]);
    let y = Tensor::new(&[4], &[1i32, -1, 2, 0]);
    let masked = CROSSENTROPY.masked(Mask::Value(-1.0));
    for batch in [4, 3, 1] {
        let found = identity(&[3], masked.clone(), &[Metric::Accuracy]).evaluate(&x, &y, batch).unwrap();
        close(found.loss, 1.507_994_377_647_820, "loss");
        close(found.accuracy.unwrap(), 1.0 / 3.0, "accuracy");
        assert_eq!(found.metrics, [("accuracy".to_string(), found.accuracy.unwrap())]);
    }
    // The formula of torch.nn.functional.cross_entropy(x, y, ignore_index=-1, label_smoothing=0.1), in numpy.
    let y = Tensor::new(&[4], &[1i32, -1, 0, 0]);
    let smoothed = Loss::SmoothedSparseCategoricalCrossentropy { from_logits: true, label_smoothing: 0.1 };
    let found = identity(&[3], smoothed.masked(Mask::Value(-1.0)), &[]).evaluate(&x, &y, 4).unwrap();
    close(found.loss, 1.2079943776478201, "smoothed");
    let x = Tensor::new(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let nan = f64::NAN;
    let y = Tensor::new(&[3, 2], &[0.5, nan, nan, nan, 4.0, 9.0]);
    let mut model = identity(&[2], Loss::MeanSquaredError.masked(Mask::Nan), &[Metric::MeanAbsoluteError]);
    for batch in [3, 2, 1] {
        let found = model.evaluate(&x, &y, batch).unwrap();
        close(found.loss, 10.25 / 3.0, "loss");
        close(found.metrics[0].1, 1.5, "mae");
    }
    let (loss, gradient) = model.loss_gradient(&x, &y).unwrap();
    close(loss, 10.25 / 3.0, "loss");
    for (found, expected) in gradient.to_f64s().iter().zip([1.0 / 3.0, 0.0, 0.0, 0.0, 2.0 / 3.0, -2.0]) {
        close(*found, expected, "gradient");
    }
    // Of nothing the loss is 0, and so is its gradient.
    let (loss, gradient) = model.loss_gradient(&x, &Tensor::new(&[3, 2], &[nan; 6])).unwrap();
    assert_eq!((loss, gradient.to_f64s()), (0.0, vec![0.0; 6]));
}

#[test]
fn weights_of_positions_are_a_mask() {
    // The loss of a masked class and that of weights 0 and 1, divided by their sum, are the same.
    let network = || Network::sequential(&[5, 3]).add(Dense::new(4));
    let x = Tensor::from_fn::<f64>(&[6, 5, 3], |i| ((i * 37) % 19) as f64 / 10.0 - 1.0);
    let padded = Tensor::from_fn::<i32>(&[6, 5], |i| if i % 3 == 2 { -1 } else { (i % 4) as i32 });
    let filled = Tensor::from_fn::<i32>(&[6, 5], |i| if i % 3 == 2 { 0 } else { (i % 4) as i32 });
    let known = (0..30).map(|i| f64::from(u8::from(i % 3 != 2))).collect::<Vec<f64>>();
    let fit = Fit { epochs: 3, batch_size: 4, ..Fit::default() };
    let trained = |y: &Tensor, loss: Loss, fit: &Fit<'_>| {
        let mut model = Model::with_dtype(network(), 0, DType::F64, Options::default()).unwrap();
        model.compile(Optimizer::sgd(0.5), loss);
        model.set_weighted_mean(WeightedMean::Weights).unwrap();
        model.fit(&x, y, fit).unwrap();
        model.variables().map(|(_, value)| value.to_f64s()).collect::<Vec<_>>().concat()
    };
    let masked = trained(&padded, CROSSENTROPY.masked(Mask::Value(-1.0)), &fit);
    let weighted = trained(&filled, CROSSENTROPY, &Fit { sample_weight: Some(known), ..fit });
    masked.iter().zip(&weighted).for_each(|(a, b)| close(*a, *b, "weight"));
}

/// `compute_class_weight("balanced", ..)` of scikit-learn 1.9.
#[test]
fn classes_are_balanced() {
    let (_, y) = scores();
    assert_eq!(sampling::balanced_class_weight(&y).unwrap(), [0.75, 1.5, 0.75, 1.5]);
    let counts = |rows: &[usize]| {
        let mut counts = BTreeMap::new();
        rows.iter().for_each(|&row| *counts.entry(y.to_ints()[row]).or_insert(0) += 1);
        counts.into_values().collect::<Vec<usize>>()
    };
    let over = sampling::over_sample(&y, 1).unwrap();
    assert_eq!(counts(&over), [8; 4]);
    assert!((0..24).all(|row| over.contains(&row)));
    assert_eq!(counts(&sampling::under_sample(&y, 1).unwrap()), [4; 4]);
    for seed in 0..20 {
        let split = sampling::stratified_split(&y, 0.25, seed).unwrap();
        assert_eq!((counts(&split.test), counts(&split.train)), (vec![2, 1, 2, 1], vec![6, 3, 6, 3]));
        let mut all = [split.train, split.test].concat();
        all.sort_unstable();
        assert_eq!(all, (0..24).collect::<Vec<_>>());
    }
    // 7 of 24: a fifth of a row is left over for each of the small classes, a third for the large ones.
    assert_eq!(counts(&sampling::stratified_split(&y, 0.29, 3).unwrap().test), [3, 1, 2, 1]);
    assert_eq!(sampling::train_test_split(24, 0.25, 1).unwrap().test.len(), 6);
    let message = |share| sampling::stratified_split(&y, share, 0).unwrap_err().to_string();
    assert_eq!(message(1.0), "the share to test on is 1, not above 0, and less than all of 24 rows");
    assert!(message(f64::NAN).contains("NaN"));
    let negative = Tensor::new(&[2], &[0i32, -1]);
    assert!(sampling::over_sample(&negative, 0).unwrap_err().to_string().starts_with("y is i32[2]"));
    // What is drawn is trained on as listed.
    let (x, _) = scores();
    let mut model =
        Model::with_dtype(Network::sequential(&[4]).add(Dense::new(4)), 0, DType::F64, Options::default())
            .unwrap();
    model.compile(Optimizer::adam(0.1), CROSSENTROPY);
    model.fit(&x, &y, &Fit { order: Order::Listed(vec![over]), ..Fit::default() }).unwrap();
}

#[test]
fn examples_are_augmented_by_their_number_and_the_epoch() {
    let x = Tensor::from_fn::<f32>(&[40, 5, 4, 2], |i| (i % 251) as f32 / 251.0);
    let all: Vec<usize> = (0..40).collect();
    let of = |step: Augmentation| Augment::new(3, [step]).apply(&x, &all, 0).unwrap().to_f64s();
    let values = x.to_f64s();
    let pixel = |image: &[f64], r: usize, c: usize, k: usize| image[(r * 4 + c) * 2 + k];
    // Every example is as it was or flipped, and some are either.
    for (step, flip) in [
        (Augmentation::FlipHorizontal, (|r, c| (r, 3 - c)) as fn(usize, usize) -> (usize, usize)),
        (Augmentation::FlipVertical, |r, c| (4 - r, c)),
    ] {
        let found = of(step);
        let mut flipped = 0;
        for (before, after) in values.chunks(40).zip(found.chunks(40)) {
            if before == after {
                continue;
            }
            flipped += 1;
            for (at, &value) in after.iter().enumerate() {
                let (r, c) = flip(at / 8, at / 2 % 4);
                assert_eq!(value, pixel(before, r, c, at % 2));
            }
        }
        assert!((8..32).contains(&flipped), "{flipped}");
    }
    // Every example is a window of the image with its border.
    for (before, after) in values.chunks(40).zip(of(Augmentation::Crop { padding: 1 }).chunks(40)) {
        let window = |down: i64, across: i64| {
            (0..40i64).all(|at| {
                let (r, c) = (at / 8 + down, at / 2 % 4 + across);
                let inside = (0..5).contains(&r) && (0..4).contains(&c);
                let own = if inside { pixel(before, r as usize, c as usize, at as usize % 2) } else { 0.0 };
                after[at as usize] == own
            })
        };
        assert!((-1..2).any(|down| (-1..2).any(|across| window(down, across))));
    }
    // A turn by nothing and a move by nothing leave all as it is.
    assert_eq!(of(Augmentation::Rotate { degrees: 0.0 }), values);
    assert_eq!(of(Augmentation::Translate { share: 0.0 }), values);
    let noise: Vec<f64> =
        of(Augmentation::GaussianNoise { deviation: 0.5 }).iter().zip(&values).map(|(a, b)| a - b).collect();
    let mean = noise.iter().sum::<f64>() / 1600.0;
    let deviation = (noise.iter().map(|x| x * x).sum::<f64>() / 1600.0).sqrt();
    assert!(mean.abs() < 0.05 && (deviation - 0.5).abs() < 0.05, "{mean}, {deviation}");
    // Neither the batch nor the order matters.
    let steps = [Augmentation::Crop { padding: 2 }, Augmentation::Rotate { degrees: 20.0 }];
    let augment = Augment::new(9, steps);
    let whole = augment.apply(&x, &all, 4).unwrap();
    let part = augment.apply(&sampling::take(&x, &[31, 2]).unwrap(), &[31, 2], 4).unwrap();
    assert_eq!(part, sampling::take(&whole, &[31, 2]).unwrap());
    assert_ne!(whole, augment.apply(&x, &all, 5).unwrap());
    let flat = x.reshaped(&[40, 40]);
    assert!(augment.apply(&flat, &all, 0).unwrap_err().to_string().contains("images"));
}

/// Two classes of points around (0.3, 0.3) and (0.7, 0.7).
fn points(count: usize) -> (Tensor, Tensor) {
    let class = |i: usize| i % 2;
    let spread = |i: usize| ((i * 7919) % 101) as f32 / 101.0 - 0.5;
    let x = Tensor::from_fn::<f32>(&[count, 2], |i| 0.3 + 0.4 * class(i / 2) as f32 + 0.5 * spread(i));
    (x, Tensor::from_fn::<i32>(&[count], |i| class(i) as i32))
}

fn classifier(seed: u64, threads: usize) -> Model {
    let network =
        Network::sequential(&[2]).add(Dense::new(16).activation(Activation::Tanh)).add(Dense::new(2));
    let mut model = Model::new(network, seed, Options { threads, ..Options::default() }).unwrap();
    model.compile(Optimizer::adam(0.02), CROSSENTROPY);
    model
}

#[test]
fn training_against_attacks_is_reproducible() {
    let (x, y) = points(60);
    let trained = |threads: usize| {
        let mut model = classifier(1, threads);
        let augment = Some(Augment::new(5, [Augmentation::GaussianNoise { deviation: 0.01 }]));
        let adversarial = Some(Adversarial { attack: Attack::pgd(0.1, 3), share: 0.4, seed: 2 });
        let fit = Fit { epochs: 5, batch_size: 16, augment, adversarial, ..Fit::default() };
        let history = model.fit(&x, &y, &fit).unwrap();
        let curve = model.robustness(&x, &y, &Attack::fgsm(0.0), &[0.0, 0.05, 0.2], 16).unwrap();
        (history, curve, model.predict(&x, 60).unwrap())
    };
    let first = trained(1);
    assert_eq!(first, trained(1));
    assert_eq!(first, trained(2));
    let accuracies: Vec<f64> = first.1.iter().map(|(_, accuracy)| *accuracy).collect();
    assert!(accuracies.is_sorted_by(|a, b| a >= b) && accuracies[2] < accuracies[0], "{accuracies:?}");
    let mut model = classifier(1, 1);
    let plain = model.evaluate(&x, &y, 60).unwrap().accuracy.unwrap();
    assert_eq!(model.robustness(&x, &y, &Attack::pgd(0.1, 3), &[0.0], 60).unwrap(), [(0.0, plain)]);
    let adversarial = Some(Adversarial { attack: Attack::fgsm(0.1), share: 1.5, seed: 2 });
    let error = model.fit(&x, &y, &Fit { adversarial, ..Fit::default() }).unwrap_err();
    assert_eq!(error.to_string(), "the adversarial share is 1.5, not from 0 to 1");
}

#[test]
fn missing_values_are_filled_in_the_graph_and_in_its_file() {
    let nan = f32::NAN;
    let data = Tensor::new(&[4, 2], &[1.0, nan, 3.0, 4.0, nan, 8.0, 2.0, 6.0]);
    let imputer = Imputer::new(Fill::Mean).indicator(true).adapt(&data);
    let normalization =
        Normalization::default().adapt(&Tensor::new(&[2, 4], &[0f32, 2., 0., 0., 4., 10., 1., 1.]));
    let network = Network::sequential(&[2]).add(imputer).add(normalization).add(Dense::new(3));
    let mut model = Model::new(network, 0, Options::default()).unwrap();
    let found = model.predict(&data, 4).unwrap();
    assert!(found.to_f64s().iter().all(|x| x.is_finite()));
    // The first row is that of (1, 6) with a note that the second is missing.
    let graph = model.graph(4).unwrap();
    let expected = windlass_ir::interpret(&graph, &[data.clone()]).unwrap();
    for (found, expected) in found.to_f64s().iter().zip(expected[0].to_f64s()) {
        assert!((found - expected).abs() < 1e-6);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("filled.onnx");
    model.export_onnx(&path, 4).unwrap();
    let read = Session::open(&path, Options::default()).unwrap().run([("x", data.clone())]).unwrap();
    assert_eq!(read["prediction"], found);
    // Training goes through it.
    model.compile(Optimizer::adam(0.1), CROSSENTROPY);
    let y = Tensor::new(&[4], &[0i32, 1, 2, 0]);
    let history = model.fit(&data, &y, &Fit { epochs: 60, ..Fit::default() }).unwrap();
    assert!(history.loss[59] < history.loss[0] / 2.0);
}

#[test]
fn the_node_that_made_the_first_nan_is_named() {
    // log(x - 1) of 1 - 2, further on hidden behind more.
    let network = Network::functional(&[2], |net, x| {
        let y = Dense::new(3).named("first").apply(net, x)?;
        let y = net.map(ScalarFn::Log, &[y])?;
        net.builder().set_name(None);
        Dense::new(2).apply(net, y)
    });
    let mut model = Model::new(network, 0, Options::default()).unwrap();
    model.compile(Optimizer::adam(0.1), CROSSENTROPY);
    model.set_variable("first.kernel", Tensor::new(&[2, 3], &[1f32, 1., -1., 1., 1., -1.])).unwrap();
    let before: Vec<Tensor> = model.variables().map(|(_, value)| value.clone()).collect();
    let (x, y) = (Tensor::new(&[2, 2], &[1f32, 1., 2., 2.]), Tensor::new(&[2], &[0i32, 1]));
    let error = model.fit(&x, &y, &Fit::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the loss is not a number at step 0 of epoch 0: the first that is none came from log `first`"
    );
    // The step did nothing.
    assert!(model.variables().map(|(_, value)| value.clone()).eq(before));
    let Error::Training(TrainingError::LossIsNan { origin, .. }) = error else { panic!("{error}") };
    assert!(matches!(origin, NanOrigin::Node { of_infinity: false, .. }));
    let history = model.fit(&x, &y, &Fit { nan: NanPolicy::Propagate, ..Fit::default() }).unwrap();
    assert!(history.loss[0].is_nan());
    // A variable that is none is an input of the step.
    let error = model.fit(&x, &y, &Fit::default()).unwrap_err();
    assert!(error.to_string().ends_with("in the variable `first.kernel`, since an earlier step"), "{error}");
    // Examples may be filled in.
    let mut model = classifier(0, 1);
    let x = Tensor::new(&[2, 2], &[f32::NAN, 1., 2., 2.]);
    assert!(model.fit(&x, &y, &Fit::default()).unwrap_err().to_string().ends_with("is in `x`"));
    let fit = Fit { nan: NanPolicy::Impute(0.0), validation: Some((&x, &y)), ..Fit::default() };
    assert!(model.fit(&x, &y, &fit).unwrap().validation_loss[0].is_finite());
}

#[test]
fn a_nan_is_found_in_networks_of_all_kinds_of_layers() {
    use windlass::nn::layers::{BatchNormalization, Conv, Dropout, Gru, Pooling, Reshape};
    let network = Network::sequential(&[8, 8, 1])
        .add(Conv::new(4, &[3, 3]).activation(Activation::Relu))
        .add(BatchNormalization::default())
        .add(Pooling::max(&[2, 2]))
        .add(Reshape(vec![9, 4]))
        .add(Gru::new(5))
        .add(Dropout::new(0.1))
        .add(Dense::new(3));
    let mut model = Model::new(network, 0, Options::default()).unwrap();
    model.compile(Optimizer::adam(0.01), CROSSENTROPY);
    let y = Tensor::new(&[2], &[0i32, 2]);
    let x = Tensor::from_fn::<f32>(&[2, 8, 8, 1], |i| if i == 20 { f32::INFINITY } else { 0.5 });
    let error = model.fit(&x, &y, &Fit::default()).unwrap_err().to_string();
    assert!(error.ends_with("`batch_normalization`, of an infinity"), "{error}");
    // As far as an example is finite, it is trained on.
    let x = Tensor::from_fn::<f32>(&[2, 8, 8, 1], |i| (i % 7) as f32);
    assert!(model.fit(&x, &y, &Fit::default()).unwrap().loss[0].is_finite());
}

#[test]
fn sessions_say_what_is_not_a_number() {
    let mut b = Builder::new("difference");
    let x = b.input("x", TensorType::fixed(DType::F32, &[2]));
    let exp = b.map(ScalarFn::Exp, &[x]).unwrap();
    let difference = b.map(ScalarFn::Sub, &[exp, exp]).unwrap();
    let late = b.map(ScalarFn::Sqrt, &[difference]).unwrap();
    b.output("y", late);
    let session = Session::new(b.finish().unwrap(), Options::default()).unwrap();
    let run = |x: [f32; 2], policy| session.run_checked([Tensor::new(&[2], &x)], policy);
    assert_eq!(run([1.0, 2.0], NanPolicy::Stop).unwrap()["y"].to_f64s(), [0.0, 0.0]);
    let error = run([1.0, 200.0], NanPolicy::Stop).unwrap_err();
    assert_eq!(
        error.to_string(),
        "output `y` is not a number: the first that is none came from sub node1, of an infinity"
    );
    let input = Error::NotANumber { output: "y".into(), origin: NanOrigin::Input { name: "x".into() } };
    assert_eq!(run([f32::NAN, 0.0], NanPolicy::Stop).unwrap_err().to_string(), input.to_string());
    assert_eq!(run([f32::NAN, 0.0], NanPolicy::Impute(1.0)).unwrap()["y"].to_f64s(), [0.0, 0.0]);
    assert!(run([f32::NAN, 0.0], NanPolicy::Propagate).unwrap()["y"].to_f64s()[0].is_nan());
}

#[test]
fn windows_gradients_and_pictures_say_what_matters() {
    // The score of class 1 is the sum of the lower right quarter.
    let network = Network::sequential(&[4, 4, 1]).add(Flatten).add(Dense::new(2));
    let mut model = Model::new(network, 0, Options::default()).unwrap();
    let weight = |i: usize| f32::from(u8::from(i % 2 == 1 && i / 2 / 4 >= 2 && i / 2 % 4 >= 2));
    model.set_variable("dense.kernel", Tensor::from_fn::<f32>(&[16, 2], weight)).unwrap();
    let x = Tensor::from_fn::<f32>(&[2, 4, 4, 1], |i| (i / 16 + 1) as f32);
    let occlusion = Occlusion { window: (2, 2), stride: (2, 2), baseline: 0.5, batch_size: 8 };
    let lost = model.occlusion(&x, &[1, 1], &occlusion).unwrap();
    assert_eq!(lost, Tensor::new(&[2, 2, 2], &[0f32, 0., 0., 2., 0., 0., 0., 6.]));
    let smooth = SmoothGrad { samples: 3, deviation: 1.0, seed: 4 };
    let gradient = model.smooth_grad(&x, &[1, 0], &smooth).unwrap().to_f64s();
    assert_eq!(
        gradient,
        (0..32).map(|i| if i < 16 { f64::from(weight(2 * i + 1)) } else { 0.0 }).collect::<Vec<_>>()
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("map.png");
    let map = HeatMap::of(&lost, 1).unwrap().over(&x, 1).unwrap().magnified(3);
    map.write_png(&path).unwrap();
    let read = windlass_frontend::image::read_png(&path, &windlass_ir::Limits::default()).unwrap();
    assert_eq!((read.shape(), &read), (&[12, 12, 3][..], &map.pixels()));
    assert_eq!(&read.to_ints()[11 * 36 + 33..], [180, 4, 38]);
    assert!(HeatMap::of(&lost, 2).is_err() && HeatMap::of(&Tensor::zeros(DType::F32, &[4]), 0).is_err());
    let wide = Occlusion { window: (5, 2), ..occlusion };
    assert!(model.occlusion(&x, &[1, 1], &wide).unwrap_err().to_string().contains("4 x 4 pixels"));
    assert!(model.occlusion(&x, &[1, 2], &Occlusion::default()).is_err());
}

/// Notes what it is told.
#[derive(Default)]
struct Notes(Vec<String>);

impl Callback for Notes {
    fn on_epoch_begin(&mut self, epoch: usize, _: &mut Model) -> Result<(), Error> {
        self.0.push(format!("begin {epoch}"));
        Ok(())
    }

    fn on_step_end(&mut self, at: &StepEnd) -> Control {
        self.0.push(format!("step {} of {}", at.step, at.steps));
        if (at.epoch, at.step) == (1, 1) { Control::Stop } else { Control::Continue }
    }

    fn on_epoch_end(&mut self, epoch: &Epoch, _: &mut Model) -> Result<Control, Error> {
        self.0.push(format!("end {}", epoch.number));
        Ok(Control::Continue)
    }
}

#[test]
fn callbacks_are_told_and_tables_written() {
    let (x, y) = points(40);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.csv");
    let mut model = classifier(0, 1);
    model.compile_with(Optimizer::adam(0.02), CROSSENTROPY, [Metric::F1(Of::Macro), Metric::Auc]);
    let (mut notes, mut log) = (Notes::default(), CsvLogger::new(&path));
    let fit = Fit { epochs: 3, batch_size: 16, validation: Some((&x, &y)), ..Fit::default() };
    let history = model.fit_with(&x, &y, &fit, &mut [&mut notes, &mut log]).unwrap();
    let step = |i: usize| format!("step {i} of 3");
    let expected =
        ["begin 0".into(), step(0), step(1), step(2), "end 0".into(), "begin 1".into(), step(0), step(1)];
    assert_eq!(notes.0, expected);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "epoch,loss,accuracy,f1,auc,val_loss,val_accuracy,val_f1,val_auc");
    assert_eq!(lines.len(), 2);
    let last: Vec<f64> = lines[1].split(',').map(|x| x.parse().unwrap()).collect();
    for (name, value) in lines[0].split(',').zip(&last).skip(1) {
        assert_eq!(history.named(name).unwrap().last(), Some(value), "{name}");
    }
    assert_eq!(history.named("nothing"), None);
}

#[test]
fn the_learning_rate_falls_on_a_plateau() {
    let (x, y) = points(40);
    let mut model = classifier(0, 1);
    let mut plateau = ReduceLrOnPlateau::new(0.5, 2);
    (plateau.min_delta, plateau.min_rate) = (10.0, 0.004);
    let mut rates = Vec::new();
    for _ in 0..4 {
        model.fit_with(&x, &y, &Fit { epochs: 2, ..Fit::default() }, &mut [&mut plateau]).unwrap();
        rates.push(model.learning_rate().unwrap());
    }
    // The first epoch is the best so far.
    assert_eq!(rates, [0.02, 0.01, 0.005, 0.004]);
    // A rate that is given is the one that is compiled in.
    let weights = |given: bool| {
        let mut model = classifier(0, 1);
        if given {
            model.set_learning_rate(0.02).unwrap();
        }
        model.fit(&x, &y, &Fit { epochs: 2, ..Fit::default() }).unwrap();
        model.variables().map(|(_, value)| value.clone()).collect::<Vec<Tensor>>()
    };
    assert_eq!(weights(true), weights(false));
    let cosine = windlass::nn::Schedule::Cosine { initial: 0.1, steps: 10.0, floor: 0.0 };
    model.compile(Optimizer { learning_rate: cosine, ..Optimizer::sgd(0.1) }, CROSSENTROPY);
    let mut plateau = ReduceLrOnPlateau::new(0.5, 1);
    plateau.min_delta = 10.0;
    let error =
        model.fit_with(&x, &y, &Fit { epochs: 2, ..Fit::default() }, &mut [&mut plateau]).unwrap_err();
    assert!(error.to_string().contains("follows a schedule"), "{error}");
}
