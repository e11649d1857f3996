//! The command as its users meet it: what it prints, and its exit codes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use prost::Message;
use serde_json::Value;
use windlass::{Limits, Tensor};
use windlass_frontend::onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_shape_proto, type_proto,
};
use windlass_frontend::onnx::testcase::write_tensor;

fn windlass(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_windlass")).args(arguments).output().unwrap()
}

fn digits(file: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    root.join("examples/digits").join(file).display().to_string()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[test]
fn run_recognises_every_shipped_digit() {
    for engine in ["jit", "loops", "interp"] {
        for image in ["0_1", "1_5", "2_0", "3_30", "4_2", "5_26", "6_8", "7_9", "8_12", "9_3"] {
            let input = format!("image={}", digits(&format!("digit_{image}.png")));
            let output = windlass(&["run", &digits("digits.onnx"), "--engine", engine, "--input", &input]);
            let lines: Vec<&str> = text(&output.stdout).lines().collect();
            assert_eq!(lines[0], "probabilities: f32[1, 10]", "{}", text(&output.stderr));
            let best = format!("  class {}", &image[..1]);
            assert!(lines[1].starts_with(&best), "{engine} {image}: {}", text(&output.stdout));
        }
    }
}

#[test]
fn run_makes_inputs_up_and_says_so() {
    let output = windlass(&["run", &digits("digits.onnx"), "--dim", "batch=3", "--seed", "7", "--json"]);
    assert_eq!(text(&output.stderr), "note: random values (seed 7) are used for image\n");
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["outputs"]["probabilities"]["shape"], serde_json::json!([3, 10]));
    let again = windlass(&["run", &digits("digits.onnx"), "--dim", "batch=3", "--seed", "7", "--json"]);
    assert_eq!(output.stdout, again.stdout);
}

/// A model that squeezes whatever axes have size 1, so that its result has no rank until its sizes are known.
fn squeezing(file: &Path) {
    let named = |name: &str| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimParam(name.to_string())),
        denotation: None,
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(1),
        shape: Some(TensorShapeProto { dim: vec![named("rows"), named("columns")] }),
    };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None };
    let value = |name: &str, r#type| ValueInfoProto {
        name: Some(name.to_string()),
        r#type,
        ..ValueInfoProto::default()
    };
    let node = NodeProto {
        op_type: Some("Squeeze".to_string()),
        input: vec!["x".to_string()],
        output: vec!["y".to_string()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        node: vec![node],
        input: vec![value("x", Some(ty))],
        output: vec![value("y", None)],
        ..GraphProto::default()
    };
    let model = ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { version: Some(18), ..OperatorSetIdProto::default() }],
        graph: Some(graph),
        ..ModelProto::default()
    };
    std::fs::write(file, model.encode_to_vec()).unwrap();
}

#[test]
fn a_model_may_ask_for_its_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("squeezing.onnx");
    squeezing(&file);
    let model = file.to_str().unwrap();
    let refused = windlass(&["run", model]);
    assert_ne!(code(&refused), 0);
    assert!(text(&refused.stderr).contains("sizes of f32[rows, columns] are not known"));
    let shape = |arguments: &[&str]| {
        let output = windlass(&[&["run", model, "--json"], arguments].concat());
        assert_eq!(code(&output), 0, "{}", text(&output.stderr));
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        value["outputs"]["y"]["shape"].clone()
    };
    assert_eq!(shape(&["--dim", "rows=1", "--dim", "columns=3"]), serde_json::json!([3]));
    let x = folder.path().join("x.npy");
    windlass_frontend::npy::write(&x, &Tensor::new(&[2, 1], &[1f32, 2.0])).unwrap();
    assert_eq!(shape(&["--input", &format!("x={}", x.display())]), serde_json::json!([2]));
    let unknown = windlass(&["dump", model, "--stage", "graph", "--dim", "lines=1"]);
    assert!(text(&unknown.stderr).contains("has no dimension `lines`"), "{}", text(&unknown.stderr));
    let dump = windlass(&["dump", model, "--stage", "loops", "--dim", "rows=1", "--dim", "columns=3"]);
    assert_eq!(code(&dump), 0, "{}", text(&dump.stderr));
}

#[test]
fn run_saves_outputs_that_run_takes_as_inputs() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let output = windlass(&["run", &digits("digits.onnx"), "--save", dir]);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    let saved = folder.path().join("probabilities.npy");
    assert!(saved.is_file());
    let input = format!("image={}", saved.display());
    let refused = windlass(&["run", &digits("digits.onnx"), "--input", &input]);
    assert_eq!(code(&refused), 1);
    assert!(text(&refused.stderr).contains("`image` takes f32[batch, 1, 8, 8]"), "{}", text(&refused.stderr));
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    let model = digits("digits.onnx");
    let cases: &[(i32, &[&str])] = &[
        (0, &["list", "ops"]),
        (0, &["completions", "bash"]),
        (1, &["run", "no-such-model.onnx"]),
        (1, &["run", "Cargo.toml"]),
        (2, &["run"]),
        (2, &["run", &model, "--dim", "batch"]),
        (2, &["run", &model, "--dim", "nothing=1"]),
        (2, &["run", &model, "--input", "nothing=x.npy"]),
        (2, &["compile", &model, "-o", "digits.exe"]),
        (2, &["compile", &model, "-o", "digits.o", "--name", "1 bad"]),
        (2, &["compile", &model, "-o", "digits.o", "--target", "sparc-unknown-linux-gnu"]),
        (2, &["compile", &model, "-o", "digits.o", "--cpu", "nothing"]),
        (2, &["compile", &model, "-o", "digits.o", "--cpu", "x86-64-v3,x86-64-v4,x86-64-v3"]),
        (2, &["compile", &model, "-o", "digits.o", "--cpu", "x86-64-v3,x86-64-v2"]),
        (
            2,
            &[
                "compile",
                &model,
                "-o",
                "digits.o",
                "--target",
                "aarch64-unknown-linux-gnu",
                "--cpu",
                "x86-64-v3,x86-64-v4",
            ],
        ),
        (2, &["compile", &model, "-o", "digits.so", "--target", "s390x-unknown-linux-gnu"]),
        (2, &["bench", &model, "--seconds", "-1"]),
        (4, &["opt", &model, "--max-nodes", "3"]),
        (4, &["run", &model, "--max-file-bytes", "100"]),
        (4, &["run", &model, "--max-nodes", "3"]),
        (4, &["run", &model, "--dim", "batch=1000000000000"]),
    ];
    for (expected, arguments) in cases {
        let output = windlass(arguments);
        assert_eq!(code(&output), *expected, "{arguments:?}: {}", text(&output.stderr));
        assert!(*expected == 0 || !output.stderr.is_empty(), "{arguments:?} fails without a word");
    }
}

#[test]
fn limits_name_what_exceeds_them() {
    let output = windlass(&["run", &digits("digits.onnx"), "--max-elements", "100"]);
    assert_eq!(code(&output), 4);
    let expected = "error: tensor `conv1.weight`: 144 elements exceed the limit of 100\n";
    assert_eq!(text(&output.stderr), expected);

    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("plain.wir");
    std::fs::write(&model, "graph @plain(%x: f32[2]) { return %x as \"y\" }").unwrap();
    let model = model.to_str().unwrap();
    assert_eq!(code(&windlass(&["run", model, "--max-depth", "1"])), 0);
    for limit in ["--max-depth=0", "--max-elements=1", "--max-memory-bytes=7", "--max-file-bytes=9"] {
        assert_eq!(code(&windlass(&["run", model, limit])), 4, "{limit}");
    }

    // Sizes that are data are limited like others, whatever runs the model.
    let model = folder.path().join("late.wir");
    let graph = "graph @late(%x: f32[1], %s: i64[2]) { %y = broadcast %x {shape = %s} return %y as \"y\" }";
    std::fs::write(&model, graph).unwrap();
    let sizes = folder.path().join("s.npy");
    windlass_frontend::npy::write(&sizes, &Tensor::from_ints(&[1 << 20, 1 << 20])).unwrap();
    let input = format!("s={}", sizes.display());
    for engine in ["jit", "loops", "interp"] {
        let output = windlass(&["run", model.to_str().unwrap(), "--engine", engine, "--input", &input]);
        assert_eq!(code(&output), 4, "{engine}: {}", text(&output.stderr));
    }
}

#[test]
fn what_cannot_be_written_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let entries = || -> Vec<String> {
        let names = std::fs::read_dir(folder.path()).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    // A folder in the header's place.
    std::fs::create_dir_all(folder.path().join("digits.h/inside")).unwrap();
    for extension in ["o", "a", "so"] {
        let file = folder.path().join("digits").with_extension(extension);
        let output = windlass(&["compile", &digits("digits.onnx"), "-o", file.to_str().unwrap()]);
        assert_eq!(code(&output), 1, "{}", text(&output.stderr));
        assert_eq!(entries(), ["digits.h"]);
    }
    let below = folder.path().join("none/digits.o");
    let output = windlass(&["compile", &digits("digits.onnx"), "-o", below.to_str().unwrap()]);
    assert_eq!(code(&output), 1);
    assert_eq!(text(&output.stderr).matches("No such file").count(), 1, "{}", text(&output.stderr));
}

#[test]
fn opt_prints_the_result_whatever_it_explains() {
    let plain = windlass(&["opt", &digits("digits.onnx"), "--pass", "cse"]);
    let arguments = ["opt", &digits("digits.onnx"), "--pass", "cse", "--print-after-all", "--time-passes"];
    let explained = windlass(&arguments);
    assert!(text(&plain.stdout).starts_with("graph @digits"));
    assert_eq!(plain.stdout, explained.stdout);
    let all = windlass(&["opt", &digits("digits.onnx"), "--print-after-all"]);
    assert!(text(&all.stderr).contains("// after choose_layout\ngraph @digits"), "{}", text(&all.stderr));
}

#[test]
fn a_graph_that_onnx_cannot_say_is_not_an_import() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.wir");
    let graph = "graph @main(%x: f32[2]) {
  %p = cumulative_prod %x {axis = [0]}
  %y = softmax %p {masked = true}
  return %y as \"y\"
}
";
    std::fs::write(&model, graph).unwrap();
    let output = windlass(&["dump", model.to_str().unwrap(), "--stage", "optimized", "--format", "onnx"]);
    assert_eq!(code(&output), 1);
    let first = text(&output.stderr).lines().next().unwrap();
    assert_eq!(first, "error: 2 things in the graph cannot be written as ONNX:");
    // What the digits' graph becomes, channels last among it, can be.
    let arguments = ["dump", &digits("digits.onnx"), "--stage", "optimized", "--format", "onnx"];
    assert_eq!(code(&windlass(&arguments)), 0);
}

/// A folder with one case for the digits model, expecting these probabilities of its zero image.
fn digit_case(folder: &Path, name: &str, expected: Option<&[f32]>) -> PathBuf {
    let case = folder.join(name);
    let data = case.join("test_data_set_0");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::copy(digits("digits.onnx"), case.join("model.onnx")).unwrap();
    let image = Tensor::zeros(windlass::DType::F32, &[1, 1, 8, 8]);
    write_tensor(&data.join("input_0.pb"), "image", &image).unwrap();
    if let Some(expected) = expected {
        write_tensor(&data.join("output_0.pb"), "probabilities", &Tensor::new(&[1, 10], expected)).unwrap();
    }
    case
}

#[test]
fn test_reports_each_case_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("cases");
    let out = folder.path().join("out");
    digit_case(&root, "a_ran", None);
    let broken = digit_case(&root, "b_broken", None);
    std::fs::write(broken.join("model.onnx"), b"not a model").unwrap();
    digit_case(&root, "c_wrong", Some(&[0.5; 10]));
    let arguments = ["test", root.to_str().unwrap(), "--json", "--out", out.to_str().unwrap()];
    let output = windlass(&arguments);
    assert_eq!(code(&output), 3);
    let reports: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seen: Vec<(u64, &str, &str)> = reports
        .iter()
        .map(|r| (r["index"].as_u64().unwrap(), r["case"].as_str().unwrap(), r["status"].as_str().unwrap()))
        .collect();
    assert_eq!(seen, [(0, "a_ran", "ran"), (1, "b_broken", "error"), (2, "c_wrong", "wrong")]);
    for key in ["reason", "difference", "compiled", "called", "interpreted"] {
        assert!(reports.iter().all(|report| report.get(key).is_some()), "{key}");
    }
    // What ran can be expected of the next run.
    let written = out.join("0/test_data_set_0/output_0.pb");
    let result = windlass_frontend::onnx::testcase::read_tensor(&written, &Limits::default()).unwrap();
    let root = folder.path().join("again");
    digit_case(&root, "pass", Some(result.as_slice::<f32>()));
    let output = windlass(&["test", root.to_str().unwrap()]);
    assert_eq!(text(&output.stdout), "pass        pass\n1 cases: 1 pass\n");
    assert_eq!(code(&output), 0);
}

#[test]
fn test_without_cases_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(code(&windlass(&["test", folder.path().to_str().unwrap()])), 1);
}
