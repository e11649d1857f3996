//! Training against what JAX, PyTorch and TensorFlow computed: `golden/training`, whose README has the mathematics.
//!
//! In f64 the first prediction, the first gradients, every loss and the last weights to 1e-9; in f32 every loss within
//! the file's own tolerance. All compiled; `linreg` by the interpreter too.

mod private;

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::Value as Json;
use windlass::{DType, Options, Session, Tensor};
use windlass_frontend::nn::layers::{
    Activation, BatchNormalization, Conv, Dense, Embedding, Flatten, GlobalPooling, Layer,
    LayerNormalization, Lstm, MultiHeadAttention, Padding, Pooling, SelfAttention, SimpleRnn,
};
use windlass_frontend::nn::{
    Clip, Convention, Decay, Loss, LossScale, Net, Optimizer, Rule, Schedule, Step, Training, WeightedMean,
};
use windlass_ir::{Error, ScalarFn, Value, gradients, ops};

/// A file of arrays, and what its description says.
struct Golden {
    arrays: HashMap<String, Tensor>,
    meta: Json,
}

impl Golden {
    fn load(name: &str) -> Golden {
        let path =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/training").join(format!("{name}.npz"));
        let limits = windlass_ir::Limits::default();
        let arrays: HashMap<String, Tensor> = windlass_frontend::npy::read_npz(&path, &limits)
            .expect("the file is readable")
            .into_iter()
            .collect();
        let meta = serde_json::from_slice(arrays["meta_json"].bytes()).expect("the description is JSON");
        Golden { arrays, meta }
    }

    fn number(&self, path: &str) -> f64 {
        self.meta.pointer(path).and_then(Json::as_f64).unwrap_or_else(|| panic!("no {path} in {}", self.meta))
    }

    fn size(&self, key: &str) -> usize {
        self.number(&format!("/cfg/{key}")) as usize
    }

    fn sizes(&self, key: &str) -> Vec<usize> {
        let list = self.meta["cfg"][key].as_array().expect("a list");
        list.iter().map(|n| n.as_u64().expect("a size") as usize).collect()
    }

    fn word(&self, key: &str) -> &str {
        self.meta[key].as_str().unwrap_or("")
    }

    /// One batch of an array whose first dimension counts them.
    fn batch(&self, key: &str, step: usize, dtype: DType) -> Tensor {
        let all = &self.arrays[key];
        let count = all.shape()[0];
        let each: usize = all.shape()[1..].iter().product();
        let at = step % count * each;
        match all.dtype().is_float() {
            true => Tensor::from_f64s(dtype, &all.shape()[1..], &all.to_f64s()[at..at + each]),
            false => {
                let ints: Vec<i128> = all.to_i128s()[at..at + each].to_vec();
                Tensor::from_i128s(DType::I32, &all.shape()[1..], &ints)
            }
        }
    }

    /// Compares a tensor with the array `key`, whole or sampled, relative to its largest element.
    fn compare(&self, key: &str, found: &Tensor, tolerance: f64) {
        let sampled = self.arrays.iter().find_map(|(name, array)| {
            let step = name.strip_prefix(key)?.strip_prefix("#s")?.parse::<usize>().ok()?;
            Some((step, array))
        });
        let (step, expected) = sampled.unwrap_or_else(|| (1, &self.arrays[key]));
        let found: Vec<f64> = found.to_f64s().into_iter().step_by(step).collect();
        let expected = expected.to_f64s();
        assert_eq!(found.len(), expected.len(), "{key}");
        let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
            assert!((f - e).abs() <= tolerance * largest.max(1e-3), "{key}[{i}] is {f}, expected {e}");
        }
    }
}

fn optimizer(golden: &Golden) -> Optimizer {
    let name = golden.word("optimizer");
    let hyper = |key: &str| golden.number(&format!("/hyper/{key}"));
    let (kind, convention) = match name.split_once('_') {
        Some((kind, "keras")) => (kind, Convention::Keras),
        Some((kind, _)) => (kind, Convention::Torch),
        None => (name, Convention::Torch),
    };
    let rule = match kind {
        "sgd" if name == "sgd" => Rule::Sgd { momentum: 0.0, nesterov: false },
        "sgd" | "sgdw" | "momentum" => Rule::Sgd { momentum: hyper("mu"), nesterov: false },
        "nesterov" => Rule::Sgd { momentum: hyper("mu"), nesterov: true },
        "rmsprop" => Rule::RmsProp { rho: hyper("rho"), epsilon: hyper("eps") },
        "adagrad" => Rule::Adagrad { initial_accumulator: hyper("init_acc"), epsilon: hyper("eps") },
        "adam" | "adamw" => Rule::Adam { beta_1: hyper("b1"), beta_2: hyper("b2"), epsilon: hyper("eps") },
        _ => panic!("no optimizer {name}"),
    };
    let decay = match kind {
        "sgd" if name == "sgd_l2" => Decay::Coupled(hyper("wd")),
        "sgdw" | "adamw" => Decay::Decoupled(hyper("wd")),
        _ => Decay::None,
    };
    let learning_rate = match golden.meta["hyper"]["schedule"].as_str() {
        Some("cosine") => Schedule::Cosine { initial: hyper("lr"), steps: hyper("T"), floor: 0.0 },
        Some("exp") => Schedule::Exponential {
            initial: hyper("lr"),
            rate: hyper("rate"),
            decay_steps: hyper("decay_steps"),
            staircase: false,
        },
        _ => Schedule::Constant(hyper("lr")),
    };
    let clip = match golden.meta["hyper"]["clipnorm"].as_f64() {
        Some(bound) => Clip::GlobalNorm(bound),
        None => Clip::None,
    };
    Optimizer { rule, learning_rate, decay, clip, convention, loss_scale: LossScale::None }
}

fn loss(golden: &Golden) -> Loss {
    match golden.word("loss") {
        "mse" => Loss::MeanSquaredError,
        "xent" => Loss::SparseCategoricalCrossentropy { from_logits: true },
        other => panic!("no loss {other}"),
    }
}

/// The network of a file, on its input.
fn network(golden: &Golden, net: &mut Net, x: Value) -> Result<Value, Error> {
    let dense = |units: usize, name: &str| Dense::new(units).named(name);
    match golden.word("model") {
        "linreg" => dense(1, "lin").apply(net, x),
        "mlp" => {
            let sizes = golden.sizes("sizes");
            stack(net, x, &sizes[1..])
        }
        "cnn" => {
            let padding = if golden.meta["cfg"]["pad"] == "same" { Padding::Same } else { Padding::Valid };
            let mut x = x;
            for (i, filters) in golden.sizes("conv").into_iter().enumerate() {
                let conv =
                    Conv::new(filters, &[3, 3]).named(&format!("conv{}", i + 1)).padding(padding.clone());
                x = conv.activation(Activation::Relu).apply(net, x)?;
                x = Pooling::max(&[2, 2]).apply(net, x)?;
            }
            let x = Flatten.apply(net, x)?;
            stack(net, x, &golden.sizes("dense"))
        }
        "simplernn" => {
            let x = SimpleRnn::new(golden.size("hidden")).named("rnn").apply(net, x)?;
            dense(golden.size("classes"), "head").apply(net, x)
        }
        "lstm" => {
            let x = Lstm::new(golden.size("hidden")).named("rnn").apply(net, x)?;
            dense(golden.size("classes"), "head").apply(net, x)
        }
        "selfattn" => {
            let scale = Some(1.0 / (golden.size("d") as f64).sqrt());
            let x = SelfAttention::new(golden.size("dk")).named("").scale(scale).apply(net, x)?;
            let x = dense(golden.size("d"), "out").apply(net, x)?;
            dense(1, "head").apply(net, x)
        }
        "resnet" => resnet(golden, net, x),
        "transformer" => transformer(golden, net, x),
        other => panic!("no model {other}"),
    }
}

/// Dense layers with ReLU between.
fn stack(net: &mut Net, mut x: Value, sizes: &[usize]) -> Result<Value, Error> {
    for (i, &units) in sizes.iter().enumerate() {
        let last = i + 1 == sizes.len();
        let activation = if last { Activation::Linear } else { Activation::Relu };
        x = Dense::new(units).named(&format!("dense{}", i + 1)).activation(activation).apply(net, x)?;
    }
    Ok(x)
}

fn resnet(golden: &Golden, net: &mut Net, x: Value) -> Result<Value, Error> {
    let (momentum, epsilon) = (golden.number("/cfg/bn_mom"), golden.number("/cfg/bn_eps"));
    let unbiased = golden.meta["cfg"]["bn_unbiased"] == true;
    let norm = |net: &mut Net, name: &str, x: Value| {
        let norm = BatchNormalization::default().named(name).momentum(momentum).epsilon(epsilon);
        norm.unbiased(unbiased).apply(net, x)
    };
    let conv = |net: &mut Net, name: &str, x: Value, filters: usize, size: usize, stride: usize| {
        let padding = Padding::Explicit(vec![size / 2; 4]);
        let conv = Conv::new(filters, &[size, size]).named(name).strides(vec![stride; 2]);
        conv.padding(padding).use_bias(false).apply(net, x)
    };
    let mut x = conv(net, "stem.conv", x, golden.size("width"), 3, 1)?;
    x = norm(net, "stem.bn", x)?;
    x = net.map(ScalarFn::Relu, &[x])?;
    for (stage, blocks) in golden.sizes("blocks").into_iter().enumerate() {
        let width = golden.size("width") << stage;
        for block in 0..blocks {
            let name = format!("s{}b{}", stage + 1, block + 1);
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let mut y = conv(net, &format!("{name}.conv1"), x, width, 3, stride)?;
            y = norm(net, &format!("{name}.bn1"), y)?;
            y = net.map(ScalarFn::Relu, &[y])?;
            y = conv(net, &format!("{name}.conv2"), y, width, 3, 1)?;
            y = norm(net, &format!("{name}.bn2"), y)?;
            let mut shortcut = x;
            if net.ty(x) != net.ty(y) {
                shortcut = conv(net, &format!("{name}.proj"), x, width, 1, stride)?;
                shortcut = norm(net, &format!("{name}.projbn"), shortcut)?;
            }
            let sum = net.map(ScalarFn::Add, &[y, shortcut])?;
            x = net.map(ScalarFn::Relu, &[sum])?;
        }
    }
    let x = GlobalPooling::Average.apply(net, x)?;
    Dense::new(golden.size("classes")).named("head").apply(net, x)
}

fn transformer(golden: &Golden, net: &mut Net, ids: Value) -> Result<Value, Error> {
    let (d, seq) = (golden.size("d"), golden.size("seq"));
    let mut x = Embedding::new(golden.size("vocab"), d).named("emb").apply(net, ids)?;
    let positions =
        net.push(ops::Iota { shape: vec![seq as i64].into(), axis: 0, dtype: DType::I32 }, &[])?;
    let positions = Embedding::new(seq, d).named("pos").apply(net, positions)?;
    x = net.map(ScalarFn::Add, &[x, positions])?;
    let norm = |net: &mut Net, name: &str, x: Value| {
        LayerNormalization::default().named(name).epsilon(golden.number("/cfg/ln_eps")).apply(net, x)
    };
    for layer in 1..=golden.size("layers") {
        let heads = golden.size("heads");
        let y = norm(net, &format!("l{layer}.ln1"), x)?;
        let y = MultiHeadAttention::new(heads, d / heads).named(&format!("l{layer}")).apply(net, y)?;
        x = net.map(ScalarFn::Add, &[x, y])?;
        let y = norm(net, &format!("l{layer}.ln2"), x)?;
        let y = Dense::new(golden.size("ff"))
            .named(&format!("l{layer}.ff1"))
            .activation(Activation::Gelu)
            .apply(net, y)?;
        let y = Dense::new(d).named(&format!("l{layer}.ff2")).apply(net, y)?;
        x = net.map(ScalarFn::Add, &[x, y])?;
    }
    let x = norm(net, "lnf", x)?;
    let x = GlobalPooling::Average.apply(net, x)?;
    Dense::new(golden.size("classes")).named("head").apply(net, x)
}

/// A network on one batch's types, built for training or not.
fn built(golden: &Golden, dtype: DType, training: bool) -> (Net, Value, Value) {
    let mut net = Net::new(golden.word("name"), dtype, training);
    let x = net.input("x", golden.batch("x", 0, dtype).ty());
    let truth = net.input("y", golden.batch("y", 0, dtype).ty());
    let prediction = network(golden, &mut net, x).expect("the network is valid");
    (net, prediction, truth)
}

fn step(golden: &Golden, dtype: DType) -> Step {
    let (net, prediction, truth) = built(golden, dtype, true);
    let (loss, optimizer) = (loss(golden), optimizer(golden));
    let training = Training { loss, optimizer, weighted: WeightedMean::Count, privacy: None };
    training.step(net.build(), prediction, truth, None).expect("the step is valid")
}

/// The file's initial variables, then slots and the count.
fn initial(golden: &Golden, step: &Step, dtype: DType) -> Vec<Tensor> {
    let mut state = step.state.initial(0);
    for (slot, variable) in state.iter_mut().zip(&step.state.variables) {
        let given = golden.arrays.get(&format!("init.{}", variable.name));
        let given = given.or_else(|| golden.arrays.get(&format!("state0.{}", variable.name)));
        let given = given.unwrap_or_else(|| panic!("no initial {}", variable.name));
        assert_eq!(given.shape(), slot.shape(), "{}", variable.name);
        *slot = Tensor::from_f64s(dtype, given.shape(), &given.to_f64s());
    }
    state
}

fn run(session: &Session, inputs: &[Tensor]) -> Vec<Tensor> {
    let outputs = session.run(inputs).expect("the step runs");
    outputs.iter().map(|(_, tensor)| tensor.clone()).collect()
}

/// Trains for the file's number of steps: the losses, the first prediction and the last state.
fn train(golden: &Golden, step: &Step, dtype: DType, options: Options) -> (Vec<f64>, Tensor, Vec<Tensor>) {
    let session = Session::new(step.graph.clone(), options).expect("the step compiles");
    let mut state = initial(golden, step, dtype);
    let (mut losses, mut first) = (Vec::new(), None);
    for number in 0..golden.number("/steps") as usize {
        let mut inputs = state;
        inputs.push(golden.batch("x", number, dtype));
        inputs.push(golden.batch("y", number, dtype));
        let mut outs = run(&session, &inputs);
        state = outs.split_off(2);
        losses.push(outs[0].to_f64s()[0]);
        first.get_or_insert(outs.remove(1));
    }
    (losses, first.expect("there is a step"), state)
}

/// The gradients at the initial parameters, on the first batch.
fn first_gradients(golden: &Golden) -> Vec<(String, Tensor)> {
    let (net, prediction, truth) = built(golden, DType::F64, true);
    let windlass_frontend::nn::Built { builder: mut b, variables, values, .. } = net.build();
    let losses = loss(golden).per_example(&mut b, truth, prediction).expect("a loss");
    let total =
        windlass_frontend::nn::losses::mean(&mut b, losses, None, WeightedMean::Count).expect("a mean");
    let one = b.scalar(DType::F64, 1.0);
    let flows = gradients(&mut b, &[(total, one)], &values).expect("the network is differentiable");
    let mut names = Vec::new();
    for (variable, flow) in variables.iter().zip(flows).filter(|(v, _)| v.trainable) {
        b.output(&variable.name, flow.expect("every parameter has a gradient"));
        names.push(variable.name.clone());
    }
    let graph = b.finish().expect("a graph");
    let inputs: Vec<Tensor> = graph
        .inputs()
        .iter()
        .map(|(name, _)| match name.as_str() {
            "x" | "y" => golden.batch(name, 0, DType::F64),
            name => {
                let given = golden.arrays.get(&format!("init.{name}"));
                let given =
                    given.or_else(|| golden.arrays.get(&format!("state0.{name}"))).expect("a variable");
                Tensor::from_f64s(DType::F64, given.shape(), &given.to_f64s())
            }
        })
        .collect();
    let session = Session::new(graph, Options::default()).expect("the gradients compile");
    names.into_iter().zip(run(&session, &inputs)).collect()
}

/// Everything that a file of kind `training` says.
fn check(name: &str) {
    let golden = Golden::load(name);
    for (parameter, gradient) in first_gradients(&golden) {
        golden.compare(&format!("grad64.{parameter}"), &gradient, 1e-9);
    }
    let wide = step(&golden, DType::F64);
    let (losses, first, state) = train(&golden, &wide, DType::F64, Options::default());
    golden.compare("out64", &first, 1e-9);
    for (i, (found, expected)) in losses.iter().zip(golden.arrays["loss64"].to_f64s()).enumerate() {
        assert!(
            (found - expected).abs() <= 1e-9 * expected.abs().max(1e-6),
            "{name}: step {i} has loss {found}, expected {expected}"
        );
    }
    let kept = golden.meta["params"].as_array().into_iter().flatten().filter_map(Json::as_str);
    for parameter in kept {
        let at = wide.state.variables.iter().position(|v| v.name == parameter).expect("it is a variable");
        // Rounding noise moves what has no gradient.
        let noise = golden.meta["tolerance"]["final_abs"][parameter].as_f64().is_some_and(|t| t > 1e-3);
        if !noise {
            golden.compare(&format!("final64.{parameter}"), &state[at], 1e-9);
        }
    }
    for (at, variable) in wide.state.variables.iter().enumerate().filter(|(_, v)| !v.trainable) {
        golden.compare(&format!("state64.{}", variable.name), &state[at], 1e-9);
    }
    // What has been trained, with its statistics, on the first batch.
    let (net, prediction, _) = built(&golden, DType::F64, false);
    let graph = net.build().graph(&[("prediction", prediction)]).expect("the network is valid");
    let session = Session::new(graph, Options::default()).expect("the network compiles");
    let inputs: Vec<Tensor> = session
        .inputs()
        .map(|(input, _)| match input {
            "x" | "y" => golden.batch(input, 0, DType::F64),
            input => {
                let at = wide.state.variables.iter().position(|v| v.name == input);
                state[at.expect("both networks have the same variables")].clone()
            }
        })
        .collect();
    golden.compare("eval64", &run(&session, &inputs)[0], 1e-9);

    let narrow = step(&golden, DType::F32);
    let (losses, _, _) = train(&golden, &narrow, DType::F32, Options::default());
    // At step 7 of the article's network two elements of a window of max pooling differ by less than a unit in the
    // last place. Of the four systems only PyTorch's roundings tell them apart; the tolerance from there on is that of
    // JAX and TensorFlow, which lose such a pair a step earlier.
    let lost = if name == "cnn_article" { 8 } else { usize::MAX };
    let [tight, wide] = ["loss_tol_rel_tight", "loss_tol_rel"].map(|key| golden.arrays[key].to_f64s());
    for (i, found) in losses.iter().enumerate() {
        let expected = golden.arrays["loss64"].to_f64s()[i];
        let error = (found - expected).abs() / expected.abs();
        assert!(
            error <= if i < lost { tight[i] } else { wide[i] },
            "{name}: step {i} in f32 has loss {found}, expected {expected}: {error:e}"
        );
    }
}

macro_rules! goldens {
    ($($name:ident)*) => {
        mod goldens {
            $(
                #[test]
                fn $name() {
                    super::check(stringify!($name));
                }
            )*
        }
    };
}

goldens! {
    linreg mlp cnn_article cnn_small_same simplernn lstm selfattn resnet_bn resnet_bn_keras transformer
    opt_sgd opt_momentum opt_momentum_cosine opt_momentum_cosine_keras opt_nesterov opt_sgd_expdecay opt_sgd_l2
    opt_sgdw_keras opt_rmsprop_keras opt_rmsprop_torch opt_adagrad_keras opt_adagrad_torch opt_adam_keras
    opt_adam_torch opt_adam_clipnorm opt_adamw_keras opt_adamw_torch
}

#[test]
fn weights_count_in_losses() {
    let golden = Golden::load("weighted_loss");
    for (variant, by_class, weighted) in [
        ("class_n", true, WeightedMean::Count),
        ("class_w", true, WeightedMean::Weights),
        ("sample_n", false, WeightedMean::Count),
        ("sample_w", false, WeightedMean::Weights),
    ] {
        let (mut net, prediction, truth) = built(&golden, DType::F64, true);
        let rows = golden.batch("y", 0, DType::F64).shape().to_vec();
        let weights = net.input("weights", windlass::TensorType::fixed(DType::F64, &rows));
        let (loss, optimizer) = (loss(&golden), optimizer(&golden));
        let training = Training { loss, optimizer, weighted, privacy: None };
        let step = training.step(net.build(), prediction, truth, Some(weights)).expect("the step is valid");
        let session = Session::new(step.graph.clone(), Options::default()).expect("the step compiles");
        let mut state = initial(&golden, &step, DType::F64);
        for (number, expected) in golden.arrays[&format!("{variant}.loss64")].to_f64s().iter().enumerate() {
            let y = golden.batch("y", number, DType::F64);
            let weights = match by_class {
                false => golden.batch("sample_weight", number, DType::F64),
                true => {
                    let classes = golden.arrays["class_weight"].to_f64s();
                    let own: Vec<f64> = y.to_ints().iter().map(|&class| classes[class as usize]).collect();
                    Tensor::from_f64s(DType::F64, &rows, &own)
                }
            };
            let mut inputs = state;
            inputs.extend([golden.batch("x", number, DType::F64), y, weights]);
            let mut outs = run(&session, &inputs);
            state = outs.split_off(2);
            let found = outs[0].to_f64s()[0];
            assert!(
                (found - expected).abs() <= 1e-9 * expected,
                "{variant}, step {number}: {found}, {expected}"
            );
        }
        for (variable, value) in step.state.variables.iter().zip(&state) {
            golden.compare(&format!("{variant}.final64.{}", variable.name), value, 1e-9);
        }
    }
}
