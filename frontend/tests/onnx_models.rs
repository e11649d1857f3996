//! Models as a whole: initializers, scopes, functions, bodies, dimensions, and what is unsupported.

mod common;

use common::*;
use prost::Message;
use windlass_frontend::Error;
use windlass_frontend::onnx::proto::attribute_proto::AttributeType;
use windlass_frontend::onnx::proto::tensor_proto::DataType;
use windlass_frontend::onnx::proto::{AttributeProto, SparseTensorProto, TensorProto};
use windlass_frontend::onnx::{Sizes, load_with};
use windlass_ir::{DType, Dim, Limits, Tensor, TensorType};

fn typed(ty: DataType, fill: impl FnOnce(&mut TensorProto)) -> TensorProto {
    let mut tensor = TensorProto {
        name: Some("w".into()),
        dims: vec![2],
        data_type: Some(ty as i32),
        ..TensorProto::default()
    };
    fill(&mut tensor);
    tensor
}

#[test]
fn initializers_in_every_encoding() {
    let cases = [
        typed(DataType::Float, |t| t.float_data = vec![1., 2.]),
        typed(DataType::Double, |t| t.double_data = vec![1., 2.]),
        typed(DataType::Int64, |t| t.int64_data = vec![1, 2]),
        typed(DataType::Uint64, |t| t.uint64_data = vec![1, 2]),
        typed(DataType::Uint32, |t| t.uint64_data = vec![1, 2]),
        typed(DataType::Int32, |t| t.int32_data = vec![1, 2]),
        typed(DataType::Int16, |t| t.int32_data = vec![1, 2]),
        typed(DataType::Int8, |t| t.int32_data = vec![1, 2]),
        typed(DataType::Uint16, |t| t.int32_data = vec![1, 2]),
        typed(DataType::Uint8, |t| t.int32_data = vec![1, 2]),
        typed(DataType::Float16, |t| t.int32_data = vec![0x3c00, 0x4000]),
        typed(DataType::Bfloat16, |t| t.int32_data = vec![0x3f80, 0x4000]),
        typed(DataType::Float, |t| t.raw_data = Some(vec![0, 0, 128, 63, 0, 0, 0, 64].into())),
        typed(DataType::Float16, |t| t.raw_data = Some(vec![0, 0x3c, 0, 0x40].into())),
        typed(DataType::Int16, |t| t.raw_data = Some(vec![1, 0, 2, 0].into())),
    ];
    for initializer in cases {
        let mut graph = graph(vec![node("Identity", "w", "y", vec![])], vec![], vec![any("y")]);
        graph.initializer.push(initializer);
        let y = run(&model(18, graph), &[]);
        assert_eq!((y[0].shape(), y[0].to_f64s()), (&[2][..], vec![1., 2.]));
    }
}

#[test]
fn bools_are_0_or_1_whatever_the_file_says() {
    let mut graph = graph(vec![node("Identity", "w", "y", vec![])], vec![], vec![any("y")]);
    graph.initializer.push(typed(DataType::Bool, |t| t.raw_data = Some(vec![0, 7].into())));
    assert_eq!(run(&model(18, graph), &[])[0].bytes(), [0, 1]);
}

#[test]
fn sparse_initializers_become_dense() {
    for indices in [int_tensor("", &[2], &[1, 5]), int_tensor("", &[2, 2], &[0, 1, 1, 2])] {
        let sparse = SparseTensorProto {
            values: Some(float_tensor("w", &[2], &[7., 8.])),
            indices: Some(indices),
            dims: vec![2, 3],
        };
        let mut graph = graph(vec![node("Identity", "w", "y", vec![])], vec![], vec![any("y")]);
        graph.sparse_initializer.push(sparse);
        let y = run(&model(18, graph), &[]);
        assert_eq!(y[0], Tensor::new::<f32>(&[2, 3], &[0., 7., 0., 0., 0., 8.]));
    }
}

#[test]
fn an_input_with_an_initializer_is_a_default() {
    let mut graph = graph(
        vec![node("Add", "x w", "y", vec![])],
        vec![floats("x", &[2]), floats("w", &[2])],
        vec![any("y")],
    );
    graph.initializer.push(float_tensor("w", &[2], &[1., 2.]));
    let model = import(&model(18, graph)).unwrap();
    assert_eq!(model.graph.inputs().len(), 1);
    assert_eq!(model.defaults, [("w".to_string(), Tensor::new::<f32>(&[2], &[1., 2.]))]);
}

#[test]
fn dimensions_keep_their_names_however_odd() {
    let x = value("x", DataType::Float, &[Size::Named("batch"), Size::Named("past + 1"), Size::Unknown]);
    let graph = graph(vec![node("Neg", "x", "y", vec![])], vec![x], vec![any("y")]);
    let graph = import(&model(18, graph)).unwrap().graph;
    let dims = [Dim::named("batch"), Dim::named("past + 1"), Dim::named("x.2")];
    assert_eq!(*graph.ty(graph.outputs()[0].1), TensorType::new(DType::F32, dims));
    let bound = graph.bind(|name| Some(name.len())).unwrap();
    assert_eq!(bound.ty(bound.outputs()[0].1).as_shape().unwrap().as_slice(), [5, 8, 3]);
}

#[test]
fn shapes_computed_in_the_model_are_known_once_sizes_are() {
    let x = value("x", DataType::Float, &[Size::Named("n"), Size::Of(4)]);
    let mut g = graph(
        vec![
            node("Shape", "x", "s", vec![]),
            node("Gather", "s zero", "n", vec![]),
            node("Unsqueeze", "n axes", "n1", vec![]),
            node("Concat", "n1 rest", "to", vec![int("axis", 0)]),
            node("Reshape", "x to", "y", vec![]),
        ],
        vec![x],
        vec![any("y")],
    );
    g.initializer = vec![
        int_tensor("zero", &[], &[0]),
        int_tensor("axes", &[1], &[0]),
        int_tensor("rest", &[2], &[2, -1]),
    ];
    let graph = import(&model(18, g)).unwrap().graph;
    let bound = graph.bind(|_| Some(3)).unwrap();
    assert_eq!(bound.node_count(), 1);
    assert_eq!(bound.ty(bound.outputs()[0].1).as_shape().unwrap().as_slice(), [3, 2, 2]);
}

#[test]
fn functions_are_inlined_with_their_attributes() {
    let scale = function(
        "Scale",
        "x",
        "y",
        vec![
            node("Constant", "", "c", vec![reference("value_float", AttributeType::Float, "by")]),
            node("Mul", "x c", "y", vec![]),
        ],
    );
    let mut twice = function(
        "Twice",
        "x bias",
        "y",
        vec![
            call("Scale", "x", "a", vec![reference("by", AttributeType::Float, "first")]),
            call("Scale", "a", "b", vec![float("by", 10.)]),
            node("Clip", "b bias", "y", vec![]),
        ],
    );
    let mut scale = scale;
    scale.attribute.push("by".into());
    twice.attribute_proto.push(float("first", 3.));
    let nodes = vec![call("Twice", "x", "p", vec![]), call("Twice", "x _", "q", vec![float("first", 5.)])];
    let mut model = model(18, graph(nodes, vec![floats("x", &[1])], vec![any("p"), any("q")]));
    model.functions = vec![scale, twice];
    let y = run(&model, &[Tensor::new::<f32>(&[1], &[2.])]);
    assert_eq!(y, [Tensor::new::<f32>(&[1], &[60.]), Tensor::new::<f32>(&[1], &[100.])]);
}

#[test]
fn nodes_inside_functions_are_named_after_the_call() {
    let f = function("F", "x", "y", vec![node("Neg", "x", "y", vec![])]);
    let mut model =
        model(18, graph(vec![call("F", "x", "y", vec![])], vec![floats("x", &[1])], vec![any("y")]));
    model.functions = vec![f];
    let graph = import(&model).unwrap().graph;
    let names: Vec<_> = graph.nodes().map(|(_, data)| data.name.as_deref().unwrap().to_string()).collect();
    assert_eq!(names, ["y/y"]);
}

fn constant(name: &str, t: TensorProto) -> windlass_frontend::onnx::proto::NodeProto {
    node("Constant", "", name, vec![tensor_attribute("value", t)])
}

#[test]
fn if_branches_capture_what_is_outside() {
    let then = graph(vec![node("Add", "x a", "t", vec![])], vec![], vec![any("t")]);
    let otherwise = graph(vec![node("Sub", "x b", "e", vec![])], vec![], vec![any("e")]);
    let nodes = vec![
        node("Neg", "x", "a", vec![]),
        node("Abs", "x", "b", vec![]),
        node("If", "c", "y", vec![body("then_branch", then), body("else_branch", otherwise)]),
    ];
    let inputs = vec![floats("x", &[2]), value("c", DataType::Bool, &[])];
    let model = model(18, graph(nodes, inputs, vec![any("y")]));
    let x = Tensor::new::<f32>(&[2], &[1., -2.]);
    let run_with = |c: u8| run(&model, &[x.clone(), Tensor::scalar(windlass_ir::Bool8(c))]).remove(0);
    assert_eq!(run_with(1), Tensor::new::<f32>(&[2], &[0., 0.]));
    assert_eq!(run_with(0), Tensor::new::<f32>(&[2], &[0., -4.]));
}

#[test]
fn a_branch_not_taken_may_hold_anything() {
    let then = graph(vec![node("Neg", "x", "t", vec![])], vec![], vec![any("t")]);
    let otherwise = graph(vec![node("NoSuchOperator", "x", "e", vec![])], vec![], vec![any("e")]);
    let yes = typed(DataType::Bool, |t| {
        t.dims = vec![];
        t.int32_data = vec![1];
    });
    let nodes = vec![
        constant("c", yes),
        node("If", "c", "y", vec![body("then_branch", then), body("else_branch", otherwise)]),
    ];
    let graph = import(&model(18, graph(nodes, vec![floats("x", &[2])], vec![any("y")]))).unwrap().graph;
    assert_eq!(graph.node_count(), 1);
}

/// As in a model for two rates of sampling, when its sizes are those of the one.
#[test]
fn a_branch_that_does_not_fit_fails_if_it_is_taken() {
    let then = graph(vec![node("Add", "x a", "t", vec![])], vec![], vec![any("t")]);
    let otherwise = graph(vec![node("Add", "x b", "e", vec![])], vec![], vec![any("e")]);
    let nodes = vec![node("If", "c", "y", vec![body("then_branch", then), body("else_branch", otherwise)])];
    let mut g = graph(nodes, vec![floats("x", &[2]), value("c", DataType::Bool, &[])], vec![any("y")]);
    g.initializer.push(float_tensor("a", &[2], &[10., 20.]));
    g.initializer.push(float_tensor("b", &[3], &[1., 2., 3.]));
    let imported = import(&model(18, g)).unwrap().graph;
    let run_with = |c: u8| {
        let inputs = [Tensor::new::<f32>(&[2], &[1., -2.]), Tensor::scalar(windlass_ir::Bool8(c))];
        windlass_ir::interpret(&imported, &inputs)
    };
    assert_eq!(run_with(1).unwrap()[0], Tensor::new::<f32>(&[2], &[11., 18.]));
    let error = run_with(0).unwrap_err().to_string();
    assert!(error.contains("f32[2] and f32[3] do not broadcast"), "{error}");
}

/// A squeeze of whatever has size 1, and branches of different ranks, one of which such sizes choose.
#[test]
fn some_models_are_imported_for_given_sizes_only() {
    let squeeze = graph(vec![node("Squeeze", "x", "t", vec![])], vec![], vec![any("t")]);
    let same = graph(vec![node("Identity", "x", "e", vec![])], vec![], vec![any("e")]);
    let zero = typed(DataType::Int64, |t| {
        t.dims = vec![];
        t.int64_data = vec![0];
    });
    let one = typed(DataType::Int64, |t| {
        t.dims = vec![];
        t.int64_data = vec![1];
    });
    let nodes = vec![
        constant("zero", zero),
        constant("one", one),
        node("Shape", "x", "shape", vec![]),
        node("Gather", "shape zero", "rows", vec![]),
        node("Equal", "rows one", "c", vec![]),
        node("If", "c", "y", vec![body("then_branch", squeeze), body("else_branch", same)]),
    ];
    let x = value("x", DataType::Float, &[Size::Named("n"), Size::Unknown]);
    let model = model(18, graph(nodes, vec![x], vec![any("y")]));
    assert!(matches!(import(&model).unwrap_err(), Error::Unsupported(_)));
    let file = tempfile::Builder::new().suffix(".onnx").tempfile().unwrap();
    std::fs::write(file.path(), model.encode_to_vec()).unwrap();
    let load = |sizes: Sizes| load_with(file.path(), &Limits::default(), &sizes, None);
    let rank = |sizes| {
        let graph = load(sizes).unwrap().graph;
        graph.ty(graph.outputs()[0].1).to_string()
    };
    let dims = |list: &[(&str, usize)]| Sizes {
        dims: list.iter().map(|(name, size)| (name.to_string(), *size)).collect(),
        ..Sizes::default()
    };
    let shape =
        |shape: &[usize]| Sizes { inputs: [("x".to_string(), shape.to_vec())].into(), ..Sizes::default() };
    // A dimension without a name is called by its input and position.
    assert_eq!(rank(dims(&[("n", 1), ("x.1", 3)])), "f32[3]");
    assert_eq!(rank(dims(&[("n", 2), ("x.1", 1)])), "f32[2, 1]");
    assert_eq!(rank(shape(&[1, 1])), "f32[]");
    assert_eq!(rank(shape(&[2, 1])), "f32[2, 1]");
    assert_eq!(load(dims(&[("m", 2)])).unwrap_err().to_string(), "model: has no dimension `m`");
    assert!(load(dims(&[("n", usize::MAX)])).is_err());
}

/// Some exporters write `?` for every size that they do not know.
#[test]
fn question_marks_are_no_name() {
    let x = value("x", DataType::Float, &[Size::Named("?"), Size::Named("?")]);
    let model = model(18, graph(vec![node("Neg", "x", "y", vec![])], vec![x], vec![any("y")]));
    let graph = import(&model).unwrap().graph;
    assert_eq!(graph.ty(graph.inputs()[0].1).to_string(), "f32[x.0, x.1]");
}

#[test]
fn a_loop_whose_state_grows() {
    let body_graph = graph(
        vec![
            node("Identity", "c", "c2", vec![]),
            node("Shape", "s", "size", vec![]),
            node("Concat", "s size", "s2", vec![int("axis", 0)]),
        ],
        vec![ints("i", &[]), value("c", DataType::Bool, &[]), any("s")],
        vec![any("c2"), any("s2"), any("size")],
    );
    let nodes = vec![node("Loop", "m _ x", "last sizes", vec![body("body", body_graph)])];
    let inputs = vec![ints("x", &[1]), ints("m", &[])];
    let y = run(
        &model(18, graph(nodes, inputs, vec![any("last"), any("sizes")])),
        &[Tensor::from_ints(&[9]), Tensor::scalar(3i64)],
    );
    assert_eq!(y[0], Tensor::from_ints(&[9, 1, 2, 3]));
    assert_eq!(y[1], Tensor::new::<i64>(&[3, 1], &[1, 2, 3]));
}

#[test]
fn a_scan_sums_rows() {
    let body_graph = graph(
        vec![node("Add", "s row", "t", vec![]), node("Mul", "t w", "u", vec![])],
        vec![any("s"), any("row")],
        vec![any("t"), any("u")],
    );
    let nodes =
        vec![node("Scan", "x y", "last all", vec![body("body", body_graph), int("num_scan_inputs", 1)])];
    let mut g = graph(nodes, vec![floats("x", &[2]), floats("y", &[3, 2])], vec![any("last"), any("all")]);
    g.initializer.push(float_tensor("w", &[], &[10.]));
    let inputs =
        [Tensor::new::<f32>(&[2], &[0., 0.]), Tensor::new::<f32>(&[3, 2], &[1., 2., 3., 4., 5., 6.])];
    let y = run(&model(18, g), &inputs);
    assert_eq!(y[0], Tensor::new::<f32>(&[2], &[9., 12.]));
    assert_eq!(y[1], Tensor::new::<f32>(&[3, 2], &[10., 20., 40., 60., 90., 120.]));
}

#[test]
fn everything_unsupported_is_listed_at_once() {
    let nodes = vec![
        node("NoSuchOperator", "x", "a", vec![]),
        node("Neg", "a", "b", vec![]),
        node("AnotherOne", "b", "c", vec![]),
        node("Abs", "x", "d", vec![int("strange", 1)]),
        windlass_frontend::onnx::proto::NodeProto {
            domain: Some("com.example".into()),
            ..node("Own", "x", "e", vec![])
        },
    ];
    let mut model = model(18, graph(nodes, vec![floats("x", &[1])], vec![any("c"), any("d"), any("e")]));
    model.opset_import.push(operator_set("com.example", 1));
    let text: Vec<String> = unsupported(&model).iter().map(ToString::to_string).collect();
    assert_eq!(
        text,
        [
            "NoSuchOperator (of `a`): operator `NoSuchOperator`",
            "AnotherOne (of `c`): operator `AnotherOne`",
            "Abs (of `d`): attribute `strange`",
            "Own (of `e`): operator `Own` of domain `com.example`",
        ]
    );
}

#[test]
fn types_without_arithmetic_here_are_unsupported() {
    let mut graph = graph(vec![node("Neg", "x", "y", vec![])], vec![], vec![any("y")]);
    graph.input.push(value("x", DataType::Float8e4m3fn, &[Size::Of(1)]));
    assert_eq!(unsupported(&model(18, graph))[0].to_string(), "input `x`: elements of type FLOAT8E4M3FN");
}

#[test]
fn a_result_that_nothing_reads_may_be_missing() {
    let nodes = |read: &str| {
        vec![
            node("Dropout", "x", "y mask", vec![]),
            node("Cast", read, "z", vec![int("to", DataType::Float as i64)]),
        ]
    };
    let with = |read| model(9, graph(nodes(read), vec![floats("x", &[1])], vec![any("z")]));
    assert!(import(&with("y")).is_ok());
    assert_eq!(
        unsupported(&with("mask"))[0].to_string(),
        "Cast (of `z`): reads `mask`, a result that is not supported"
    );
}

#[test]
fn attributes_of_files_that_leave_their_type_out() {
    let axis = AttributeProto { name: Some("axis".into()), i: Some(0), ..AttributeProto::default() };
    let nodes = vec![node("Concat", "x x", "y", vec![axis])];
    let y = run(
        &model(9, graph(nodes, vec![floats("x", &[1])], vec![any("y")])),
        &[Tensor::new::<f32>(&[1], &[3.])],
    );
    assert_eq!(y[0], Tensor::new::<f32>(&[2], &[3., 3.]));
}
