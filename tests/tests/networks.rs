//! Networks of several inputs and outputs, and networks that are graphs.

use windlass::nn::layers::{
    Activation, Conv, Dense, Flatten, Layer, LayerNormalization, MultiHeadAttention, Pooling,
    TransformerEncoder, add, concatenate,
};
use windlass::nn::{Fit, Loss, Model, Net, Network, Optimizer, Order, OutputLoss, TrainingError};
use windlass::{Error, Limits, Options, Tensor, TensorType};
use windlass_ir::text::{parse_graph, print_graph};
use windlass_ir::{DType, ScalarFn, Value, interpret};

fn numbers(shape: &[usize], seed: usize) -> Tensor {
    Tensor::from_fn::<f32>(shape, |i| ((i * 31 + seed * 17) % 29) as f32 / 14.5 - 1.0)
}

fn classes(count: usize) -> Tensor {
    Tensor::from_fn::<i64>(&[count], |i| (i * 7 % 3) as i64)
}

/// Pictures and words that meet, and give a class and a number.
fn forked() -> Model {
    let network =
        Network::functional_of(&[("picture", &[4, 4, 1]), ("word", &[3])], &["kind", "size"], |net, ins| {
            let seen = Conv::new(2, &[3, 3]).activation(Activation::Relu).apply(net, ins[0])?;
            let seen = Flatten.apply(net, seen)?;
            let seen = Dense::new(5).apply(net, seen)?;
            let read = Dense::new(5).apply(net, ins[1])?;
            let both = net.map(ScalarFn::Add, &[seen, read])?;
            let both = net.map(ScalarFn::Tanh, &[both])?;
            let kind = Dense::new(3).named("kind").activation(Activation::Softmax).apply(net, both)?;
            let size = Dense::new(1).named("size").apply(net, both)?;
            Ok(vec![kind, size])
        });
    Model::new(network, 5, Options::default()).unwrap()
}

fn losses() -> [OutputLoss; 2] {
    [
        OutputLoss::new("kind", Loss::SparseCategoricalCrossentropy { from_logits: false }),
        OutputLoss::new("size", Loss::MeanSquaredError).weighted(0.25),
    ]
}

#[test]
fn several_inputs_and_outputs_train_together() {
    let (picture, word, size) = (numbers(&[24, 4, 4, 1], 1), numbers(&[24, 3], 2), numbers(&[24, 1], 3));
    let kind = classes(24);
    let x = [("word", &word), ("picture", &picture)];
    let y = [("size", &size), ("kind", &kind)];
    let fit = Fit { epochs: 60, batch_size: 8, validation: Some((&x, &y)), ..Fit::default() };
    let mut model = forked();
    model.compile_outputs(Optimizer::adam(0.02), &losses()).unwrap();
    let before = model.evaluate(&x, &y, 7).unwrap();
    let history = model.fit(&x, &y, &fit).unwrap();
    let after = model.evaluate(&x, &y, 7).unwrap();
    assert!(after.loss < 0.6 * before.loss, "{before:?} {after:?}");
    assert_eq!(history.validation_accuracy.last().copied(), after.accuracy);

    // The loss is the sum of the parts, and each output is there under its name.
    let outputs = model.predict_all(&x, 5).unwrap();
    let names: Vec<&str> = outputs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["kind", "size"]);
    let chances = outputs[0].1.to_f64s();
    let right =
        kind.to_ints().into_iter().enumerate().map(|(row, class)| -chances[row * 3 + class as usize].ln());
    let square = outputs[1].1.to_f64s().into_iter().zip(size.to_f64s()).map(|(a, b)| (a - b) * (a - b));
    let expected = right.sum::<f64>() / 24.0 + 0.25 * square.sum::<f64>() / 24.0;
    assert!((after.loss - expected).abs() < 1e-5, "{} {expected}", after.loss);

    // An output without a loss is computed, and nothing is said of what is true of it.
    let mut one = forked();
    one.compile_outputs(Optimizer::adam(0.02), &losses()[1..]).unwrap();
    one.fit(&x, &[("size", &size)], &Fit::default()).unwrap();
}

#[test]
fn data_that_does_not_fit_is_named() {
    let (picture, word, size, kind) =
        (numbers(&[6, 4, 4, 1], 1), numbers(&[6, 3], 2), numbers(&[6, 1], 3), classes(6));
    let mut model = forked();
    model.compile_outputs(Optimizer::adam(0.02), &losses()).unwrap();
    let y = [("size", &size), ("kind", &kind)];
    let said =
        |result: Result<_, Error>| result.map(|_: windlass::nn::Evaluation| ()).unwrap_err().to_string();
    let cases: [(&[(&str, &Tensor)], &str); 5] = [
        (&[("word", &word)], "x has 0 tensors for `picture`, the model takes one"),
        (
            &[("word", &word), ("picture", &picture), ("tone", &word)],
            "x has `tone`, the model takes picture, word",
        ),
        (
            &[("word", &word), ("word", &word), ("picture", &picture)],
            "x has 2 tensors for `word`, the model takes one",
        ),
        (&[("word", &picture), ("picture", &picture)], "word is f32[6, 4, 4, 1], the model takes f32[6, 3]"),
        (&[("word", &size), ("picture", &picture)], "word is f32[6, 1], the model takes f32[6, 3]"),
    ];
    for (x, expected) in cases {
        assert_eq!(said(model.evaluate(&x.to_vec(), &y, 6)), expected);
    }
    let x = [("word", &word), ("picture", &picture)];
    let expected = "x has `0`, the model takes picture, word";
    assert_eq!(said(model.evaluate(&vec![("0".to_string(), word.clone())], &y, 6)), expected);
    let expected = "y.kind is f32[6, 1], the model takes classes, as i64[6] for predictions of f32[6, 3]";
    assert_eq!(said(model.evaluate(&x, &[("size", &size), ("kind", &size)], 6)), expected);
    let expected = "y.size is f32[6, 3], the model takes f32[6, 1] for predictions of f32[6, 1]";
    assert_eq!(said(model.evaluate(&x, &[("size", &word), ("kind", &kind)], 6)), expected);
    let several = model.predict(&x, 6).unwrap_err().to_string();
    assert_eq!(several, "the model has several outputs (kind, size), where one is asked for");
    let unknown = model.compile_outputs(Optimizer::adam(0.1), &[OutputLoss::new("colour", Loss::Hinge)]);
    let expected = "the model has no output `colour`; its outputs are kind, size";
    assert_eq!(unknown.unwrap_err().to_string(), expected);
}

/// A network of layers, and what ONNX makes of it.
fn layers_and_graph() -> (Model, Model) {
    let network = Network::sequential(&[8, 8, 1])
        .add(Conv::new(4, &[3, 3]).activation(Activation::Relu))
        .add(Pooling::max(&[2, 2]))
        .add(Flatten)
        .add(Dense::new(3));
    let layers = Model::new(network, 3, Options::default()).unwrap();
    let bytes = windlass_frontend::onnx::to_bytes(&layers.graph(16).unwrap()).unwrap();
    let network = Network::from_onnx(&bytes, &Limits::default()).unwrap();
    (layers, Model::new(network, 0, Options::default()).unwrap())
}

#[test]
fn a_graph_trains_as_the_layers_that_it_was_made_of() {
    let (mut layers, mut graph) = layers_and_graph();
    let (x, y) = (numbers(&[32, 8, 8, 1], 1), classes(32));
    let fit = Fit { epochs: 5, batch_size: 16, order: Order::Given, ..Fit::default() };
    let mut losses = Vec::new();
    for model in [&mut layers, &mut graph] {
        model.compile(Optimizer::adam(0.01), Loss::SparseCategoricalCrossentropy { from_logits: true });
        losses.push(model.fit(&x, &y, &fit).unwrap().loss);
    }
    for (a, b) in losses[0].iter().zip(&losses[1]) {
        assert!((a - b).abs() < 1e-4 * a, "{losses:?}");
    }
    assert!(losses[0][4] < losses[0][0]);
    let error = graph.predict(&x, 32).unwrap_err();
    assert!(matches!(error, Error::Training(TrainingError::FixedBatch { size: 16, .. })), "{error}");
}

#[test]
fn named_dimensions_other_than_the_batch_are_those_of_the_data() {
    let text = r#"graph @g(%x: f32[n, length, 2]) {
  %0 = constant {value = f32[2, 3] [1, 2, 3, 4, 5, 6]} "w"
  %1 = matmul %x, %0
  %2 = reduce_mean %1 {axes = [1], keepdims = false}
  return %2 as "y"
}"#;
    let network = Network::from_graph(&parse_graph(text).unwrap()).unwrap();
    let mut model = Model::new(network, 0, Options::default()).unwrap();
    model.compile(Optimizer::sgd(0.1), Loss::MeanSquaredError);
    for length in [2, 5] {
        let x = numbers(&[10, length, 2], 1);
        let fit = Fit { batch_size: 4, epochs: 3, ..Fit::default() };
        let history = model.fit(&x, &numbers(&[10, 3], 2), &fit).unwrap();
        assert!(history.loss[2] < history.loss[0]);
        assert_eq!(model.predict(&x, 3).unwrap().shape(), [10, 3]);
    }
    let graph = model.graph(1).unwrap();
    let expected: TensorType = parse_graph(text).unwrap().ty(graph.inputs()[0].1).clone();
    assert_eq!(*graph.ty(graph.inputs()[0].1), expected);
    assert_eq!(expected.dtype, DType::F32);
}

#[test]
fn graphs_without_rows_of_examples_are_refused() {
    let message = |input: &str| {
        let text = format!("graph @g({input}) {{ %0 = exp %x return %0 as \"y\" }}");
        Network::from_graph(&parse_graph(&text).unwrap()).unwrap_err().to_string()
    };
    assert_eq!(message("%x: f32[]"), "input `x` is f32[]: it has no dimension for examples");
    let expected =
        "input `x` is f32[9, batch]: examples are taken along the first dimension, not along `batch`";
    assert_eq!(message("%x: f32[9, batch]"), expected);
    assert!(message("%x: f32[batch, 2]").starts_with("the graph has no weights"));
}

#[test]
fn an_encoder_block_is_attention_and_dense_layers_beside_the_identity() {
    let print = |body: &dyn Fn(&mut Net, Value) -> Result<Value, windlass_ir::Error>| {
        let mut net = Net::new("block", DType::F32, true);
        let x = net.input("x", TensorType::fixed(DType::F32, &[2, 5, 8]));
        let y = body(&mut net, x).unwrap();
        print_graph(&net.build().graph(&[("y", y)]).unwrap())
    };
    for normalize_first in [false, true] {
        let block = TransformerEncoder::new(2, 16).named("b").activation(Activation::Gelu);
        let block = block.normalize_first(normalize_first);
        let found = print(&|net, x| block.apply(net, x));
        let expected = print(&|net, x| {
            let norm = |net: &mut Net, x, name: &str| {
                LayerNormalization::default().named(name).epsilon(1e-5).apply(net, x)
            };
            let attention =
                |net: &mut Net, x| MultiHeadAttention::new(2, 4).named("b.attention").apply(net, x);
            let dense = |net: &mut Net, x| {
                let inner = Dense::new(16).named("b.feedforward.intermediate").activation(Activation::Gelu);
                let x = inner.apply(net, x)?;
                Dense::new(8).named("b.feedforward.output").apply(net, x)
            };
            if normalize_first {
                let y = norm(net, x, "b.attention.norm")?;
                let y = attention(net, y)?;
                let x = add(net, &[x, y])?;
                let y = norm(net, x, "b.feedforward.norm")?;
                let y = dense(net, y)?;
                return add(net, &[x, y]);
            }
            let y = attention(net, x)?;
            let sum = add(net, &[x, y])?;
            let x = norm(net, sum, "b.attention.norm")?;
            let y = dense(net, x)?;
            let sum = add(net, &[x, y])?;
            norm(net, sum, "b.feedforward.norm")
        });
        assert_eq!(found, expected);
    }
    let block = TransformerEncoder::new(2, 16).dropout(0.1);
    let mut model = Model::new(Network::sequential(&[5, 8]).add(block), 1, Options::default()).unwrap();
    assert_eq!(model.variables().map(|(_, value)| value.len()).sum::<usize>(), 288 + 32 + 280 + 2);
    model.compile(Optimizer::adam(0.01), Loss::MeanSquaredError);
    let (x, y) = (numbers(&[16, 5, 8], 1), numbers(&[16, 5, 8], 2));
    let history = model.fit(&x, &y, &Fit { epochs: 10, ..Fit::default() }).unwrap();
    assert!(history.loss[9] < 0.9 * history.loss[0], "{:?}", history.loss);
}

#[test]
fn branches_are_joined() {
    let mut net = Net::new("branches", DType::F32, true);
    let x = net.input("x", TensorType::fixed(DType::F32, &[2, 3]));
    let sum = add(&mut net, &[x, x, x]).unwrap();
    assert_eq!(add(&mut net, &[x]).unwrap(), x);
    assert!(add(&mut net, &[]).is_err());
    let y = concatenate(&mut net, &[x, sum], -1).unwrap();
    let graph = net.build().graph(&[("y", y)]).unwrap();
    let found = interpret(&graph, &[Tensor::new(&[2, 3], &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0])]).unwrap();
    assert_eq!(found[0].to_f64s(), [1.0, 2.0, 3.0, 3.0, 6.0, 9.0, 4.0, 5.0, 6.0, 12.0, 15.0, 18.0]);
}
