//! Models from strangers: every fault is a typed error, never a panic.

mod common;

use std::path::Path;

use common::*;
use prost::Message;
use windlass_frontend::Error;
use windlass_frontend::onnx::proto::tensor_proto::{DataLocation, DataType};
use windlass_frontend::onnx::proto::{ModelProto, StringStringEntryProto, TensorProto};
use windlass_frontend::onnx::{from_bytes, load};
use windlass_ir::Limits;

fn negate(ins: &str) -> ModelProto {
    model(18, graph(vec![node("Neg", ins, "y", vec![])], vec![floats("x", &[2])], vec![any("y")]))
}

fn with_initializer(tensor: TensorProto) -> ModelProto {
    let mut graph = graph(vec![node("Identity", "w", "y", vec![])], vec![], vec![any("y")]);
    graph.initializer.push(tensor);
    model(18, graph)
}

#[test]
fn names_that_are_not_defined_before_they_are_read() {
    assert_eq!(invalid(&negate("z")), "Neg (of `y`): reads `z`, which nothing before it defines");
    // A cycle is a name read before it is defined.
    assert_eq!(invalid(&negate("y")), "Neg (of `y`): reads `y`, which nothing before it defines");
    let missing = model(18, graph(vec![], vec![floats("x", &[1])], vec![any("y")]));
    assert_eq!(invalid(&missing), "output `y`: is not defined");
}

#[test]
fn names_that_are_defined_twice() {
    let nodes = vec![node("Neg", "x", "y", vec![]), node("Abs", "x", "y", vec![])];
    let twice = model(18, graph(nodes, vec![floats("x", &[1])], vec![any("y")]));
    assert_eq!(invalid(&twice), "Abs (of `y`): defines `y`, which is defined already");
    let inputs = vec![floats("x", &[1]), floats("x", &[1])];
    assert!(invalid(&model(18, graph(vec![], inputs, vec![any("x")]))).contains("defined already"));
}

#[test]
fn functions_that_call_themselves() {
    let mut cyclic =
        model(18, graph(vec![call("F", "x", "y", vec![])], vec![floats("x", &[1])], vec![any("y")]));
    cyclic.functions = vec![
        function("F", "x", "y", vec![call("G", "x", "y", vec![])]),
        function("G", "x", "y", vec![call("F", "x", "y", vec![])]),
    ];
    assert!(invalid(&cyclic).contains("function `F` calls itself"));
}

#[test]
fn functions_that_double_without_end_meet_the_limit_of_nodes() {
    let functions = (0..40).map(|i| {
        let next = format!("F{}", i + 1);
        let nodes = match i {
            39 => vec![node("Identity", "x", "y", vec![])],
            _ => vec![call(&next, "x", "a", vec![]), call(&next, "a", "y", vec![])],
        };
        function(&format!("F{i}"), "x", "y", nodes)
    });
    let mut bomb =
        model(18, graph(vec![call("F0", "x", "y", vec![])], vec![floats("x", &[1])], vec![any("y")]));
    bomb.functions = functions.collect();
    let limits = Limits { nodes: 10_000, ..Limits::default() };
    let error = from_bytes(bomb.encode_to_vec(), &limits).unwrap_err();
    assert!(matches!(error, Error::Graph(windlass_ir::Error::Limit { what: "nodes", .. })), "{error}");
}

#[test]
fn bodies_nested_too_deep() {
    let mut inner = graph(vec![node("Neg", "x", "y", vec![])], vec![], vec![any("y")]);
    for _ in 0..20 {
        let otherwise = graph(vec![node("Abs", "x", "y", vec![])], vec![], vec![any("y")]);
        let branches = vec![body("then_branch", inner), body("else_branch", otherwise)];
        inner = graph(vec![node("If", "c", "y", branches)], vec![], vec![any("y")]);
    }
    inner.input = vec![floats("x", &[1]), value("c", DataType::Bool, &[])];
    let limits = Limits { depth: 5, ..Limits::default() };
    let error = from_bytes(model(18, inner).encode_to_vec(), &limits).unwrap_err();
    assert!(matches!(error, Error::Graph(windlass_ir::Error::Limit { what: "levels", .. })), "{error}");
}

#[test]
fn sizes_beyond_the_limits_allocate_nothing() {
    for dims in [vec![1 << 40], vec![i64::MAX, i64::MAX], vec![0, i64::MAX, i64::MAX]] {
        let mut tensor = float_tensor("w", &[], &[]);
        tensor.dims = dims.clone();
        let error = import(&with_initializer(tensor)).unwrap_err();
        assert!(matches!(error, Error::Graph(windlass_ir::Error::Limit { .. })), "{error}");
        let huge = model(18, graph(vec![], vec![floats("x", &dims)], vec![any("x")]));
        let error = import(&huge).unwrap_err();
        assert!(matches!(error, Error::Graph(windlass_ir::Error::Limit { .. })), "{error}");
    }
    // A node may ask for much with few bytes.
    let mut graph = graph(vec![node("ConstantOfShape", "s", "y", vec![])], vec![], vec![any("y")]);
    graph.initializer.push(int_tensor("s", &[2], &[1 << 31, 1 << 31]));
    let error = import(&model(18, graph)).unwrap_err();
    assert!(matches!(error, Error::Graph(windlass_ir::Error::Limit { .. })), "{error}");
}

#[test]
fn data_that_does_not_fill_its_shape() {
    let mut tensor = float_tensor("w", &[3], &[1., 2.]);
    assert_eq!(invalid(&with_initializer(tensor.clone())), "initializer `w`: 2 elements for f32[3]");
    tensor.raw_data = Some(vec![0; 11].into());
    assert_eq!(invalid(&with_initializer(tensor.clone())), "initializer `w`: 11 bytes of data for f32[3]");
    tensor.dims = vec![-1];
    assert_eq!(invalid(&with_initializer(tensor)), "initializer `w`: sizes [-1]");
    let narrow = TensorProto {
        data_type: Some(DataType::Uint8.into()),
        int32_data: vec![256],
        float_data: vec![],
        ..float_tensor("w", &[1], &[])
    };
    assert_eq!(invalid(&with_initializer(narrow)), "initializer `w`: 256 is not a u8");
}

#[test]
fn attributes_of_another_type_and_given_twice() {
    let with = |attributes| {
        model(
            18,
            graph(vec![node("Flatten", "x", "y", attributes)], vec![floats("x", &[2, 2])], vec![any("y")]),
        )
    };
    let message = invalid(&with(vec![float("axis", 1.)]));
    assert_eq!(message, "Flatten (of `y`): attribute `axis` is of type FLOAT, not INT");
    assert!(invalid(&with(vec![int("axis", 1), int("axis", 0)])).contains("given twice"));
    assert!(invalid(&with(vec![int("axis", i64::MIN)])).contains("axis"));
}

#[test]
fn models_without_what_they_need() {
    assert_eq!(invalid(&ModelProto::default()), "model: holds no graph");
    let mut none = negate("x");
    none.opset_import.clear();
    assert!(invalid(&none).contains("no version of operator set"));
    let mut negative = negate("x");
    negative.opset_import[0].version = Some(-1);
    assert!(invalid(&negative).contains("version"));
    let newer =
        model(999, graph(vec![node("Neg", "x", "y", vec![])], vec![floats("x", &[1])], vec![any("y")]));
    assert!(unsupported(&newer)[0].reason.contains("999"));
}

#[test]
fn a_result_of_another_type_than_declared() {
    let outputs = vec![value("y", DataType::Int64, &[Size::Of(2)])];
    let wrong = model(18, graph(vec![node("Neg", "x", "y", vec![])], vec![floats("x", &[2])], outputs));
    assert_eq!(invalid(&wrong), "output `y`: is declared to hold i64, but is f32[2]");
}

/// A model beside which `data` lies, whose tensor of two floats is at `location`.
fn external(folder: &Path, location: &str, entries: &[(&str, &str)]) -> Result<Vec<f64>, Error> {
    let entry = |(key, value): (&str, &str)| StringStringEntryProto {
        key: Some(key.to_string()),
        value: Some(value.to_string()),
    };
    let mut tensor = float_tensor("w", &[2], &[]);
    tensor.data_location = Some(DataLocation::External.into());
    tensor.external_data =
        std::iter::once(("location", location)).chain(entries.iter().copied()).map(entry).collect();
    let path = folder.join("model.onnx");
    std::fs::write(&path, with_initializer(tensor).encode_to_vec()).unwrap();
    let model = load(&path, &Limits::default())?;
    Ok(windlass_ir::interpret(&model.graph, &[]).unwrap()[0].to_f64s())
}

#[test]
fn external_data_is_read_from_inside_the_folder_only() {
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("model");
    std::fs::create_dir_all(folder.join("inside")).unwrap();
    let data: Vec<u8> = [0f32, 1., 2., 3.].iter().flat_map(|x| x.to_le_bytes()).collect();
    for path in ["secret", "model/data", "model/inside/data"] {
        std::fs::write(outside.path().join(path), &data).unwrap();
    }
    assert_eq!(external(&folder, "data", &[]).unwrap(), [0., 1.]);
    assert_eq!(external(&folder, "data", &[("offset", "8"), ("length", "8")]).unwrap(), [2., 3.]);
    assert_eq!(external(&folder, "./inside/data", &[("offset", "4")]).unwrap(), [1., 2.]);
    let refused = |location: &str, entries: &[(&str, &str)]| match external(&folder, location, entries) {
        Err(Error::Invalid { .. } | Error::File { .. } | Error::Unsupported(_)) => {}
        other => panic!("{location} {entries:?}: {other:?}"),
    };
    let absolute = outside.path().join("secret");
    for location in [
        "../secret",
        "inside/../../secret",
        absolute.to_str().unwrap(),
        "",
        "none",
        "inside",
        "..\\secret",
        "a\0b",
    ] {
        refused(location, &[]);
    }
    for (key, text) in [
        ("offset", "12"),
        ("offset", "-1"),
        ("offset", "18446744073709551615"),
        ("length", "4"),
        ("other", "1"),
    ] {
        refused("data", &[(key, text)]);
    }
    assert!(
        invalid(&with_initializer(TensorProto {
            data_location: Some(DataLocation::External.into()),
            ..float_tensor("w", &[2], &[])
        }))
        .contains("location")
    );
}

#[cfg(unix)]
#[test]
fn links_that_lead_outside_are_refused() {
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(outside.path().join("secret"), [0; 16]).unwrap();
    std::fs::write(folder.join("data"), [0; 16]).unwrap();
    std::os::unix::fs::symlink("../secret", folder.join("link")).unwrap();
    std::os::unix::fs::symlink("data", folder.join("alias")).unwrap();
    std::os::unix::fs::symlink("..", folder.join("up")).unwrap();
    assert!(external(&folder, "alias", &[]).is_ok());
    for location in ["link", "up/secret"] {
        let error = external(&folder, location, &[]).unwrap_err();
        assert!(error.to_string().contains("outside"), "{error}");
    }
}

/// A linear congruential generator: the same mutations on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

/// A model with functions, bodies and most kinds of attributes, to be damaged.
fn sample() -> Vec<u8> {
    let then = graph(vec![node("Add", "x a", "t", vec![])], vec![], vec![any("t")]);
    let otherwise = graph(vec![node("Softmax", "x", "e", vec![int("axis", 0)])], vec![], vec![any("e")]);
    let nodes = vec![
        call("F", "x", "a", vec![float("by", 2.)]),
        node("If", "c", "b", vec![body("then_branch", then), body("else_branch", otherwise)]),
        node("Unsqueeze", "b axes", "d", vec![]),
        node("Conv", "d w", "f", vec![int_list("pads", &[1, 1]), text("auto_pad", "NOTSET")]),
        node("Shape", "f", "s", vec![]),
        node("Gather", "s axes", "n", vec![]),
        node("Reshape", "f n", "y", vec![]),
        node("Pad", "f pads", "z", vec![]),
        node("Resize", "f _ scales", "u", vec![text("mode", "linear")]),
    ];
    let inputs =
        vec![value("x", DataType::Float, &[Size::Named("n"), Size::Of(4)]), value("c", DataType::Bool, &[])];
    let mut g = graph(nodes, inputs, vec![any("y"), any("z"), any("u")]);
    g.initializer = vec![
        int_tensor("axes", &[1], &[1]),
        float_tensor("w", &[2, 1, 3], &[1., 2., 3., 4., 5., 6.]),
        int_tensor("pads", &[6], &[0, 0, 1, 0, 0, 1]),
        float_tensor("scales", &[3], &[1., 1., 2.]),
    ];
    let mut f = function(
        "F",
        "x",
        "y",
        vec![node(
            "Elu",
            "x",
            "y",
            vec![reference(
                "alpha",
                windlass_frontend::onnx::proto::attribute_proto::AttributeType::Float,
                "by",
            )],
        )],
    );
    f.attribute.push("by".into());
    let mut model = model(18, g);
    model.functions = vec![f];
    model.encode_to_vec()
}

#[test]
fn damaged_files_never_panic() {
    // Small limits: what a damaged size asks for is refused rather than made.
    let limits = Limits { elements: 1 << 20, memory_bytes: 1 << 22, nodes: 10_000, ..Limits::default() };
    let digits =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/digits/digits.onnx")).unwrap();
    let (mut accepted, mut refused) = (0, 0);
    for (seed, (file, rounds)) in [(sample(), 4000), (digits, 400)].into_iter().enumerate() {
        assert!(from_bytes(file.clone(), &limits).is_ok());
        let mut random = Random(seed as u64 + 1);
        for cut in (0..file.len()).step_by(file.len().div_ceil(200)) {
            let _ = from_bytes(file[..cut].to_vec(), &limits);
        }
        for _ in 0..rounds {
            let mut damaged = file.clone();
            for _ in 0..=random.below(4) {
                // The structure stands mostly at both ends of a file; weights between them matter less.
                let window = 2000.min(damaged.len());
                let at = match random.below(2) {
                    0 => random.below(window),
                    _ => damaged.len() - 1 - random.below(window),
                };
                match random.below(4) {
                    0 => damaged[at] = random.below(256) as u8,
                    1 => damaged[at] ^= 1 << random.below(8),
                    2 => drop(damaged.drain(at..(at + random.below(9)).min(damaged.len()))),
                    _ => damaged.insert(at, random.below(256) as u8),
                }
                if damaged.is_empty() {
                    break;
                }
            }
            match from_bytes(damaged, &limits) {
                Ok(model) => {
                    windlass_ir::verify(&model.graph).unwrap_or_else(|error| panic!("{error}"));
                    accepted += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(accepted > 100 && refused > 100, "{accepted} accepted, {refused} refused");
}
