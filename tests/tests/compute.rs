//! What models cost and how they are made to cost less: int8 after training, pruning.

use windlass::nn::layers::{Activation, Conv, Dense, Flatten, Padding, Pooling};
use windlass::nn::{Fit, Loss, LossScale, Model, Net, Network, Optimizer, Training, WeightedMean, sampling};
use windlass::quantize::Ranges;
use windlass::{DType, Options, Session, Tensor};
use windlass_ir::TensorType;

const CROSSENTROPY: Loss = Loss::SparseCategoricalCrossentropy { from_logits: true };

/// Two classes of points around (0.3, 0.3) and (0.7, 0.7).
fn points(count: usize) -> (Tensor, Tensor) {
    let class = |i: usize| i % 2;
    let spread = |i: usize| ((i * 7919) % 101) as f32 / 101.0 - 0.5;
    let x = Tensor::from_fn::<f32>(&[count, 2], |i| 0.3 + 0.4 * class(i / 2) as f32 + 0.5 * spread(i));
    (x, Tensor::from_fn::<i32>(&[count], |i| class(i) as i32))
}

fn classifier(seed: u64) -> Model {
    let network =
        Network::sequential(&[2]).add(Dense::new(16).activation(Activation::Tanh)).add(Dense::new(2));
    let mut model = Model::new(network, seed, Options::default()).unwrap();
    model.compile(Optimizer::adam(0.02), CROSSENTROPY);
    model
}

#[test]
fn networks_run_in_bytes() {
    let network = Network::sequential(&[6, 6, 4])
        .add(Conv::new(8, &[3, 3]).padding(Padding::Same).activation(Activation::Relu))
        .add(Flatten)
        .add(Dense::new(5));
    let model = Model::new(network, 3, Options::default()).unwrap();
    let x = Tensor::from_fn::<f32>(&[32, 6, 6, 4], |i| ((i * 7919 + i / 144 * 31) % 101) as f32 / 50.0 - 1.0);
    let exact = Session::new(model.graph(16).unwrap(), Options::default()).unwrap();
    let part = sampling::take(&x, &(0..16).collect::<Vec<_>>()).unwrap();
    let expected = exact.run([("x", part.clone())]).unwrap()["prediction"].to_f64s();
    let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    for ranges in [Ranges::MinMax, Ranges::Percentile(99.9)] {
        let graph = model.quantized(&x, 16, ranges).unwrap();
        let found =
            Session::new(graph.clone(), Options::default()).unwrap().run([("x", part.clone())]).unwrap();
        let found = &found["prediction"];
        for (found, expected) in found.to_f64s().iter().zip(&expected) {
            assert!((found - expected).abs() < 0.03 * largest, "{ranges:?}: {found}, {expected}");
        }
        let floats = graph.nodes().filter(|(_, data)| match &*data.op {
            windlass_ir::Op::Constant(op) => op.value.dtype() == DType::F32 && op.value.rank() > 1,
            _ => false,
        });
        assert_eq!(floats.count(), 0);
        // Products are those of integers, and the interpreter says the same.
        let optimized = windlass::compile::optimize(&graph, &Options::default()).unwrap();
        for (_, data) in optimized.nodes() {
            if matches!(*data.op, windlass_ir::Op::Conv(_) | windlass_ir::Op::MatMul(_)) {
                assert_eq!(optimized.ty(data.ins[0]).dtype, DType::I32, "{}", data.op.name());
            }
        }
        let meant = windlass_ir::interpret(&graph, &[part.clone()]).unwrap();
        for (found, meant) in found.to_f64s().iter().zip(meant[0].to_f64s()) {
            assert!((found - meant).abs() < 1e-4 * largest, "{found}, {meant}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bytes.onnx");
        std::fs::write(&path, windlass_frontend::onnx::to_bytes(&graph).unwrap()).unwrap();
        let read = Session::open(&path, Options::default()).unwrap().run([("x", part.clone())]).unwrap();
        for (found, read) in found.to_f64s().iter().zip(read["prediction"].to_f64s()) {
            assert!((found - read).abs() < 1e-4 * largest, "{found}, {read}");
        }
    }
}

/// Two formulas over rows that are kept on the stack, the second with fewer channels than a tile has lanes.
#[test]
fn windows_of_rows_on_the_stack_read_no_further() {
    let network = Network::sequential(&[8, 8, 1])
        .add(Conv::new(16, &[3, 3]).padding(Padding::Same).activation(Activation::Relu))
        .add(Pooling::max(&[2, 2]));
    let graph = Model::new(network, 1, Options::default()).unwrap().graph(60).unwrap();
    let x = Tensor::from_fn::<f32>(&[60, 8, 8, 1], |i| (i * 31 % 17) as f32 / 16.0);
    let found = Session::new(graph.clone(), Options::default()).unwrap().run([("x", x.clone())]).unwrap();
    let expected = windlass_ir::interpret(&graph, &[x]).unwrap();
    for (found, expected) in found["prediction"].to_f64s().iter().zip(expected[0].to_f64s()) {
        assert!((found - expected).abs() < 1e-5, "{found}, {expected}");
    }
}

#[test]
fn pruned_weights_stay_pruned() {
    let (x, y) = points(40);
    let folder = tempfile::tempdir().unwrap();
    let mut model = classifier(0);
    let fit = Fit { epochs: 2, ..Fit::default() };
    model.fit(&x, &y, &fit).unwrap();
    let before = model.predict(&x, 40).unwrap();
    model.prune(0.0).unwrap();
    assert_eq!(model.predict(&x, 40).unwrap(), before);
    model.prune(0.5).unwrap();
    let zeros = |model: &Model| {
        let kernel = |name: &str| model.variables().find(|(own, _)| *own == name).unwrap().1.to_f64s();
        [kernel("dense.kernel.mask"), kernel("dense_1.kernel.mask")].concat()
    };
    let masks = zeros(&model);
    assert_eq!(masks.iter().filter(|&&m| m == 0.0).count(), 32);
    model.fit(&x, &y, &fit).unwrap();
    assert_eq!((zeros(&model), model.sparsity()), (masks, 0.5));
    // What is exported needs no masks.
    let graph = model.graph(40).unwrap();
    assert_eq!(graph.inputs().len(), 1);
    assert!(graph.nodes().all(|(_, data)| data.op.name() != "mul"));
    let found = Session::new(graph, Options::default()).unwrap().run([("x", x.clone())]).unwrap();
    assert_eq!(found["prediction"], model.predict(&x, 40).unwrap());
    let path = folder.path().join("weights.safetensors");
    model.save_weights(&path).unwrap();
    assert!(model.prune(1.5).unwrap_err().to_string().starts_with("the share of zeros is 1.5"));
    let mut other = classifier(5);
    other.prune(0.0).unwrap();
    other.load_weights(&path).unwrap();
    assert_eq!(other.predict(&x, 40).unwrap(), model.predict(&x, 40).unwrap());
}

#[test]
fn costs_are_counted() {
    let mut model = classifier(0);
    let cost = model.cost(10).unwrap();
    // 2 * 16 + 16 and 16 * 2 + 2.
    assert_eq!((cost.parameters, cost.parameter_bytes, cost.optimizer_bytes), (82, 328, 656));
    assert_eq!(cost.prediction.product_flops, 2 * 10 * 64);
    // The gradients by weights are as much again, and that by what the second layer reads.
    assert_eq!(cost.step.unwrap().product_flops, 2 * 10 * (2 * 64 + 32));
    assert!(cost.to_string().contains("training step of 10"), "{cost}");
    model.compile(Optimizer::sgd(0.1), CROSSENTROPY);
    assert_eq!(model.cost(10).unwrap().optimizer_bytes, 0);
}

#[test]
fn parameters_in_few_bits_are_trained() {
    let (x, y) = points(40);
    let trained = |storage: DType, threads: usize| {
        let network =
            Network::sequential(&[2]).add(Dense::new(16).activation(Activation::Tanh)).add(Dense::new(2));
        let options = Options { threads, ..Options::default() };
        let mut model = Model::new(network, 1, options).unwrap().with_storage(storage).unwrap();
        model.compile(Optimizer::adam(0.01), CROSSENTROPY);
        let loss = model.fit(&x, &y, &Fit { epochs: 30, ..Fit::default() }).unwrap().loss[29];
        assert!(model.variables().all(|(_, value)| value.dtype() == storage));
        let cost = model.cost(8).unwrap();
        assert_eq!((cost.parameter_bytes, cost.optimizer_bytes), (82 * storage.size() as u64, 2 * 82 * 4));
        (loss, model.predict(&x, 40).unwrap())
    };
    let (exact, _) = trained(DType::F32, 1);
    for storage in [DType::BF16, DType::F16] {
        let (loss, prediction) = trained(storage, 1);
        assert!((loss - exact).abs() < 0.03 * exact, "{storage}: {loss}, {exact}");
        assert_eq!(prediction.dtype(), DType::F32);
        assert_eq!((loss, prediction), trained(storage, 2));
    }
    // Steps of a tenth of the last bit add up.
    let mut model =
        Model::new(Network::sequential(&[64]).add(Dense::new(64).use_bias(false)), 0, Options::default())
            .and_then(|model| model.with_storage(DType::BF16))
            .unwrap();
    model
        .set_variable("dense.kernel", Tensor::from_fn::<windlass::bf16>(&[64, 64], |_| windlass::bf16::ONE))
        .unwrap();
    // The mean of |x w - 0| over 64 columns: each weight's gradient is 1 / 64.
    model.compile(Optimizer::sgd(64.0 * 0.0004), Loss::MeanAbsoluteError);
    let (x, y) = (Tensor::from_fn::<f32>(&[1, 64], |_| 1.0), Tensor::zeros(DType::F32, &[1, 64]));
    model.fit(&x, &y, &Fit { epochs: 100, ..Fit::default() }).unwrap();
    let kernel = model.variables().next().unwrap().1.to_f64s();
    let mean = kernel.iter().sum::<f64>() / 4096.0;
    assert!((mean - 0.96).abs() < 0.003, "{mean}");
    assert!(
        classifier(0).with_storage(DType::F64).is_err() && classifier(0).with_storage(DType::I8).is_err()
    );
}

/// A product in f16 whose gradients are below its least number.
fn product_in_halves(dtype: &str) -> (Network, Tensor, Tensor) {
    let text = format!(
        "graph @g(%x: {dtype}[batch, 2]) {{
           %0 = constant {{value = {dtype}[2, 3] [0, 0, 0, 0, 0, 0]}} \"w\"
           %1 = matmul %x, %0
           return %1 as \"y\"
         }}"
    );
    let network = Network::from_graph(&windlass_ir::text::parse_graph(&text).unwrap()).unwrap();
    let dtype: DType = dtype.parse().unwrap();
    let all =
        |shape: &[usize]| Tensor::from_f64s(dtype, shape, &vec![0.5f64.powi(13); shape.iter().product()]);
    (network, all(&[8, 2]), all(&[8, 3]))
}

#[test]
fn small_gradients_of_halves_are_kept_by_a_loss_scale() {
    let trained = |dtype: &str, loss_scale: LossScale, epochs: usize| {
        let (network, x, y) = product_in_halves(dtype);
        let mut model = Model::new(network, 0, Options::default()).unwrap();
        model.compile(Optimizer { loss_scale, ..Optimizer::sgd(1e4) }, Loss::MeanSquaredError);
        model.fit(&x, &y, &Fit { batch_size: 8, epochs, ..Fit::default() }).unwrap();
        model.variables().next().unwrap().1.to_f64s()
    };
    let exact = trained("f32", LossScale::None, 5);
    assert_eq!(trained("f32", LossScale::Fixed(1024.0), 5), exact);
    assert_eq!(trained("f16", LossScale::None, 5), [0.0; 6]);
    for scale in [LossScale::Fixed(32768.0), LossScale::dynamic()] {
        for (found, exact) in trained("f16", scale, 5).iter().zip(&exact) {
            assert!((found - exact).abs() < 0.02 * exact.abs(), "{scale:?}: {found}, {exact}");
        }
    }
    // A scale beyond the numbers of f16 is halved until it is one of them; meanwhile weights stay.
    let large = LossScale::Dynamic { initial: 0.5f64.powi(-30), growth_steps: 1000 };
    assert_eq!(trained("f16", large, 15), [0.0; 6]);
    for (found, exact) in trained("f16", large, 15 + 5).iter().zip(&exact) {
        assert!((found - exact).abs() < 0.02 * exact.abs(), "{found}, {exact}");
    }
}

#[test]
fn a_loss_scale_follows_what_gradients_are() {
    let mut net = Net::new("scaled", DType::F32, true);
    let x = net.input("x", TensorType::fixed(DType::F32, &[1, 2]));
    let y = net.input("y", TensorType::fixed(DType::F32, &[1, 1]));
    let prediction = Dense::new(1).use_bias(false).apply(&mut net, x).unwrap();
    let loss_scale = LossScale::Dynamic { initial: 8.0, growth_steps: 2 };
    let optimizer = Optimizer { loss_scale, ..Optimizer::adam(0.1) };
    let (loss, weighted) = (Loss::MeanSquaredError, WeightedMean::Count);
    let training = Training { loss, optimizer, weighted, privacy: None };
    let step = training.step(net.build(), prediction, y, None).unwrap();
    let names: Vec<&str> = step.state.tensors().map(|(name, _)| name).collect();
    assert_eq!(names[3..], ["loss_scale", "loss_scale.steps", "step"]);
    let mut state = step.state.initial(1);
    let run = |state: &mut Vec<Tensor>, x: f32| {
        let before = state.clone();
        let data = [Tensor::new(&[1, 2], &[x, 1.0f32]), Tensor::zeros(DType::F32, &[1, 1])];
        let inputs: Vec<Tensor> = state.iter().cloned().chain(data).collect();
        let outputs = windlass_ir::interpret(&step.graph, &inputs).unwrap();
        *state = outputs[outputs.len() - before.len()..].to_vec();
        let numbers: Vec<f64> = state[3..].iter().flat_map(Tensor::to_f64s).collect();
        (state[..3] == before[..3], numbers)
    };
    assert_eq!(run(&mut state, 1.0), (false, vec![8.0, 1.0, 1.0]));
    assert_eq!(run(&mut state, 1.0), (false, vec![16.0, 0.0, 2.0]));
    assert_eq!(run(&mut state, f32::INFINITY), (true, vec![8.0, 0.0, 2.0]));
    assert_eq!(run(&mut state, f32::NAN), (true, vec![4.0, 0.0, 2.0]));
    assert_eq!(run(&mut state, 1.0), (false, vec![4.0, 1.0, 3.0]));
}
