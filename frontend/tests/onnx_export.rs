//! A graph written as ONNX and read again computes the same.

mod common;

use common::*;
use windlass_frontend::onnx::{from_bytes, load, to_bytes};
use windlass_ir::{Builder, DType, Dim, Graph, Limits, ScalarFn, Tensor, TensorType, interpret, ops, verify};

/// Writes and reads a graph.
fn around(graph: &Graph) -> Graph {
    let bytes = to_bytes(graph).unwrap_or_else(|error| panic!("{error}"));
    let back = from_bytes(bytes, &Limits::default()).unwrap_or_else(|error| panic!("{error}")).graph;
    verify(&back).unwrap_or_else(|error| panic!("{error}"));
    let signature = |g: &Graph| -> Vec<(String, TensorType)> {
        g.inputs().iter().chain(g.outputs()).map(|(name, v)| (name.clone(), g.ty(*v).clone())).collect()
    };
    assert_eq!(signature(graph), signature(&back));
    back
}

#[test]
fn the_digits_model_gives_the_same_bits() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/digits/digits.onnx");
    let graph = load(path, &Limits::default()).unwrap().graph;
    let graph = graph.bind(|_| Some(2)).unwrap();
    let back = around(&graph);
    let inputs: Vec<Tensor> = graph
        .inputs()
        .iter()
        .map(|(_, v)| {
            let shape = graph.ty(*v).shape();
            let len: usize = shape.iter().product();
            let values: Vec<f64> = (0..len).map(|i| (i % 17) as f64 / 16.0).collect();
            Tensor::from_f64s(graph.ty(*v).dtype, &shape, &values)
        })
        .collect();
    assert_eq!(interpret(&graph, &inputs).unwrap(), interpret(&back, &inputs).unwrap());
}

#[test]
fn late_attributes_become_operands() {
    let mut b = Builder::new("g");
    let x = b.input("x", TensorType::new(DType::F32, [Dim::named("n"), Dim::Fixed(4)]));
    let sizes = b.push1(ops::ShapeOf, &[x]).unwrap();
    let turned = b.push1(ops::Transpose::by(&[1, 0]), &[x]).unwrap();
    let shape = windlass_ir::Late::Operand(1);
    let back = b.push1(ops::Reshape { shape, copy_zero: false }, &[turned, sizes]).unwrap();
    let total = b.push1(ops::Reduce::over(ops::ReduceKind::Sum, &[1], true), &[back]).unwrap();
    let y = b.map(ScalarFn::Ne, &[total, back]).unwrap();
    b.output("y", y);
    b.output("x_again", x);
    b.output("y_again", y);
    let graph = b.finish().unwrap();
    let x = Tensor::new::<f32>(&[2, 4], &[1., 2., 3., 4., 5., 6., 7., 8.]);
    let inputs = [x];
    let found = around(&graph);
    assert_eq!(interpret(&graph, &inputs).unwrap(), interpret(&found, &inputs).unwrap());
}

#[test]
fn what_onnx_has_no_operator_for_is_listed() {
    let mut b = Builder::new("g");
    let shape = windlass_ir::Late::Known(vec![3]);
    let x = b.push1(ops::Iota { shape, axis: 0, dtype: DType::F32 }, &[]).unwrap();
    let bits = b.map(ScalarFn::Bitcast(DType::I32), &[x]).unwrap();
    b.output("y", bits);
    let error = to_bytes(&b.finish().unwrap()).unwrap_err();
    assert_eq!(error.as_unsupported().unwrap().len(), 2);
}

#[test]
fn operators_survive_the_way_around() {
    let nodes = vec![
        node("Conv", "x w", "a", vec![int_list("pads", &[1, 0]), int_list("strides", &[2])]),
        node("MaxPool", "a", "b", vec![int_list("kernel_shape", &[2]), int("ceil_mode", 1)]),
        node("Gelu", "b", "c", vec![text("approximate", "tanh")]),
        node("LayerNormalization", "c one", "d", vec![float("epsilon", 0.5)]),
        node("Gather", "d index", "e", vec![int("axis", 1)]),
        node("TopK", "e k", "values positions", vec![int("largest", 0)]),
        node("Einsum", "e e", "s", vec![text("equation", "bij,bkj->ik")]),
        node("Softmax", "s", "p", vec![int("axis", 0)]),
        node("Slice", "p k two", "q", vec![]),
    ];
    let mut g = graph(nodes, vec![floats("x", &[2, 2, 6])], vec![any("values"), any("positions"), any("q")]);
    g.initializer = vec![
        float_tensor("w", &[3, 2, 2], &[1., -2., 3., 4., -5., 6., 7., 8., 9., 10., -11., 12.]),
        float_tensor("one", &[1], &[1.]),
        int_tensor("index", &[2], &[2, 0]),
        int_tensor("k", &[1], &[1]),
        int_tensor("two", &[1], &[2]),
    ];
    let graph = import(&model(20, g)).unwrap().graph;
    let values: Vec<f64> = (0..24).map(|i| f64::from(i * 7 % 11) / 4.0).collect();
    let x = [Tensor::from_f64s(DType::F32, &[2, 2, 6], &values)];
    assert_eq!(interpret(&graph, &x).unwrap(), interpret(&around(&graph), &x).unwrap());
}

/// onnxruntime refuses two nodes of one name.
#[test]
fn nodes_of_one_name_have_names_of_their_own_in_the_file() {
    let mut b = Builder::new("g");
    let x = b.input("x", TensorType::fixed(DType::F32, &[2, 3]));
    b.set_name(Some("layer".into()));
    let scale = b.constant(Tensor::new(&[3], &[0.5f32, 0.25, 0.125]));
    let zero = b.constant(Tensor::new(&[3], &[1i8, 0, -1]));
    let quantize = ops::QuantizeLinear { axis: 1, block_size: 0, to: DType::I8 };
    let q = b.push1(quantize, &[x, scale, zero]).unwrap();
    let dequantize = ops::DequantizeLinear { axis: 1, block_size: 0, to: DType::F32 };
    let y = b.push1(dequantize, &[q, scale, zero]).unwrap();
    let y = b.push1(ops::Silu { alpha: 0.5 }, &[y]).unwrap();
    b.output("y", y);
    let graph = b.finish().unwrap();
    let found = around(&graph);
    let mut names: Vec<&str> = found.nodes().filter_map(|(_, data)| data.name.as_deref()).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert!(names.len() == all && names.contains(&"layer"), "{names:?}");
    let x = [Tensor::new::<f32>(&[2, 3], &[1.3, -2.2, 0.4, 100.0, 0.1, -0.06])];
    let (found, expected) = (interpret(&found, &x).unwrap(), interpret(&graph, &x).unwrap());
    for (found, expected) in found[0].to_f64s().iter().zip(expected[0].to_f64s()) {
        assert!((found - expected).abs() < 1e-6, "{found}, {expected}");
    }
}

#[test]
fn an_op_that_becomes_several_nodes_gives_each_a_name() {
    use prost::Message;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/digits/digits.onnx");
    let bytes = to_bytes(&load(path, &Limits::default()).unwrap().graph).unwrap();
    let model = windlass_frontend::onnx::proto::ModelProto::decode(&bytes[..]).unwrap();
    let graph = model.graph.unwrap();
    let mut names: Vec<&str> =
        graph.node.iter().map(|node| node.name()).filter(|name| !name.is_empty()).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    let weights: Vec<&str> = graph.initializer.iter().map(|tensor| tensor.name()).collect();
    assert!(weights.contains(&"conv1.weight") && weights.contains(&"dense.bias"), "{weights:?}");
}
