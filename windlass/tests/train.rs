//! `windlass train` as its users meet it: what it writes, what it keeps when it is interrupted, and what it refuses.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use windlass::nn::{Loss, Model, Network, Optimizer};
use windlass::{Dim, Limits, Options, Session, Tensor};
use windlass_frontend::npy::{read_npz, write_npz};

const SPARSE: &str = "--loss=sparse_categorical_crossentropy";

fn root(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path).display().to_string()
}

fn digits() -> String {
    root("examples/digits/digits.onnx")
}

/// What trains the digits model on the images that it never saw.
fn on_digits(more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
    command.args(["train", &digits(), "--data", &root("examples/digits/heldout.npz")]);
    command.args([
        "--input",
        "image=images",
        "--scale",
        "image=1/16",
        "--target",
        "probabilities=labels",
        SPARSE,
    ]);
    command.args(more);
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Runs, and says what was printed if the exit code is another than expected.
fn run(mut command: Command, code: i32) -> Output {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
    output
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn weights(model: impl AsRef<Path>) -> Vec<(String, Tensor)> {
    let network = Network::open(model, &Limits::default()).unwrap();
    network.variables().iter().map(|v| (v.name.clone(), v.initial(0))).collect()
}

#[test]
fn what_is_written_is_the_model_with_other_weights() {
    let folder = Folder::new();
    let (out, history, curve) = (folder.text("out.onnx"), folder.text("h.json"), folder.text("curve.svg"));
    let files = ["-o", &out, "--history", &history, "--loss-curve", &curve];
    let more = ["--epochs=3", "--validation-split=0.2", "--freeze=conv*", "--class-weight=balanced"];
    let metrics = ["--metric", "f1", "--metric=recall:class=8", "--loss-scale=1024"];
    let output = run(on_digits(&[&files[..], &more[..], &metrics[..]].concat()), 0);
    let lines: Vec<&str> = text(&output.stderr).lines().collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines[0].starts_with("epoch 1/3: loss 0.") && lines[0].contains(", val_loss 0."), "{lines:?}");

    let session = Session::open(&out, Options::default()).unwrap();
    let inputs: Vec<(&str, String)> = session.inputs().map(|(name, ty)| (name, ty.to_string())).collect();
    assert_eq!(inputs, [("image", "f32[batch, 1, 8, 8]".to_string())]);
    let outputs: Vec<(&str, &Dim)> = session.outputs().map(|(name, ty)| (name, &ty.dims[0])).collect();
    assert_eq!(outputs, [("probabilities", &Dim::named("batch"))]);
    for ((name, before), (same, after)) in weights(digits()).into_iter().zip(weights(&out)) {
        assert_eq!(name, same);
        assert_eq!(before == after, name.starts_with("conv"), "{name}");
    }
    let history: serde_json::Value = serde_json::from_slice(&folder.bytes("h.json")).unwrap();
    for column in ["loss", "accuracy", "validation_loss", "validation_accuracy", "f1", "val_recall_8"] {
        assert_eq!(history[column].as_array().unwrap().len(), 3, "{column}");
    }
    assert!(history["loss"][2].as_f64() < history["loss"][0].as_f64());
    assert!(text(&folder.bytes("curve.svg")).contains("validation loss"));
    assert_eq!(folder.names(), ["curve.svg", "h.json", "out.onnx"]);
}

#[test]
fn training_goes_on_to_the_same_bits() {
    let folder = Folder::new();
    let train = |name: &str, more: &[&str]| {
        let (out, history) = (folder.text(&format!("{name}.onnx")), folder.text(&format!("{name}.csv")));
        let checkpoint = folder.text(&format!("{name}.safetensors"));
        let files = ["-o", &out, "--history", &history, "--checkpoint", &checkpoint, "--clip-norm=1"];
        run(on_digits(&[&files[..], more].concat()), 0)
    };
    train("whole", &["--epochs=4", "--validation-split=0.1"]);
    train("half", &["--epochs=2", "--validation-split=0.1"]);
    let half = folder.text("half.safetensors");
    let output = train("rest", &["--epochs=4", "--validation-split=0.1", "--resume", &half, "--threads=2"]);
    assert!(text(&output.stderr).starts_with("epoch 3/4: "), "{}", text(&output.stderr));
    for ending in ["onnx", "csv", "safetensors"] {
        let of = |name: &str| folder.bytes(&format!("{name}.{ending}"));
        assert!(of("whole") == of("rest"), "{ending}");
        assert!(of("half") != of("rest"), "{ending}");
    }
    let output = train("other", &["--epochs=3", "--resume", &half, "--seed=1"]);
    assert!(text(&output.stderr).contains("--seed was 0 and is 1"), "{}", text(&output.stderr));
}

/// Whether a checkpoint is whole, and how many epochs it holds.
fn epochs_of(checkpoint: &Path) -> usize {
    let network = Network::open(digits(), &Limits::default()).unwrap();
    let mut model = Model::new(network, 0, Options::default()).unwrap();
    model.compile(Optimizer::adam(1e-3), Loss::SparseCategoricalCrossentropy { from_logits: false });
    model.load_checkpoint(checkpoint).unwrap().epochs
}

/// A training without an end, once it has written a checkpoint.
fn endless(folder: &Folder) -> Child {
    let (out, checkpoint) = (folder.text("out.onnx"), folder.text("c.safetensors"));
    let more = ["-o", &out, "--checkpoint", &checkpoint, "--epochs=1000000", "--batch-size=450"];
    let child = on_digits(&more).stderr(Stdio::piped()).spawn().unwrap();
    while !folder.path("c.safetensors").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_training_in_order() {
    let folder = Folder::new();
    let child = endless(&folder);
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let done = epochs_of(&folder.path("c.safetensors"));
    let last = text(&output.stderr).lines().last().unwrap();
    assert!(last.starts_with(&format!("interrupted in epoch {} of 1000000: ", done + 1)), "{last}");
    assert_eq!(folder.names(), ["c.safetensors"]);
}

#[test]
fn a_checkpoint_is_whole_whenever_training_is_killed() {
    let folder = Folder::new();
    let mut last = 0;
    for round in 0..8u64 {
        let mut child = endless(&folder);
        std::thread::sleep(Duration::from_millis(5 + 7 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        last = last.max(epochs_of(&folder.path("c.safetensors")));
    }
    assert!(last > 0);
}

#[test]
fn a_checkpoint_that_cannot_be_written_ends_training() {
    let folder = Folder::new();
    std::fs::create_dir_all(folder.path("c.safetensors/inside")).unwrap();
    let (out, checkpoint) = (folder.text("out.onnx"), folder.text("c.safetensors"));
    let output = run(on_digits(&["-o", &out, "--checkpoint", &checkpoint]), 1);
    assert!(text(&output.stderr).contains("c.safetensors: "), "{}", text(&output.stderr));
    assert_eq!(folder.names(), ["c.safetensors"]);
}

/// Two inputs and two outputs.
const TWO: &str = r#"graph @two(%a: f32[n, 3], %b: f32[n, 2]) {
  %0 = constant {value = f32[3, 2] [0.5, -1, 1, 0.25, -0.5, 1]} "left"
  %1 = constant {value = f32[2, 2] [1, 0.5, -1, 2]} "right"
  %2 = matmul %a, %0
  %3 = matmul %b, %1
  %4 = add %2, %3 "sum"
  %5 = softmax %4
  return %4 as "scores", %5 as "classes"
}"#;

#[test]
fn several_inputs_and_outputs_have_arrays_and_losses_each() {
    let folder = Folder::new();
    std::fs::write(folder.path("two.wir"), TWO).unwrap();
    let numbers = |shape: &[usize]| Tensor::from_fn::<f64>(shape, |i| ((i * 7) % 11) as f64 / 11.0);
    let classes = Tensor::new::<u8>(&[8, 1], &[0, 1, 1, 0, 1, 0, 0, 1]);
    let arrays =
        [("a", numbers(&[8, 3])), ("b", numbers(&[8, 2])), ("scores", numbers(&[8, 2])), ("kind", classes)];
    write_npz(folder.path("d.npz"), &arrays.map(|(name, tensor)| (name.to_string(), tensor))).unwrap();
    let (model, data, out) = (folder.text("two.wir"), folder.text("d.npz"), folder.text("out.wir"));
    let train = |more: &[&str], code: i32| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
        command
            .args(["train", &model, "--data", &data, "-o", &out, "--epochs=20", "--learning-rate=0.05"])
            .args(more);
        let output = run(command, code);
        text(&output.stderr).to_string()
    };
    let losses = ["--loss=scores=mse", "--loss=classes=sparse_categorical_crossentropy"];
    let both = [&losses[..], &["--loss-weight=classes=0.5", "--target=classes=kind"]].concat();
    let said = train(&both, 0);
    let loss = |line: &str| line.split(['s', ',']).find_map(|part| part.trim().parse::<f64>().ok());
    let lines: Vec<Option<f64>> = said.lines().map(loss).collect();
    assert!(lines[19] < lines[0], "{said}");
    assert!(said.contains("accuracy"), "{said}");
    assert!(windlass::Model::load(&out, &Limits::default()).is_ok());

    assert!(train(&["--loss=mse"], 2).contains("OUTPUT=mse; the model's outputs: scores, classes"));
    assert!(train(&["--loss=scores=mse", "--loss-weight=classes=1"], 2).contains("--loss-weight"));
    assert!(train(&losses, 1).contains("no array for target `classes`, which takes i64[n]"));
    assert!(
        train(&["--loss=scores=mse", "--target=scores=a"], 1)
            .contains("array `a` is f64[8, 3], target `scores` takes f32[n, 2]")
    );
    assert!(train(&["--loss=scores=mse", "--input=c=a"], 2).contains("has no `c` there; it has a, b"));
}

#[test]
fn a_fixed_batch_and_what_cannot_be_differentiated_are_named() {
    let folder = Folder::new();
    let x = Tensor::from_fn::<f32>(&[6, 2], |i| i as f32);
    let arrays = [("x".to_string(), x), ("y".to_string(), Tensor::zeros(windlass::DType::F32, &[6, 2]))];
    write_npz(folder.path("d.npz"), &arrays).unwrap();
    let train = |graph: &str, more: &[&str]| {
        std::fs::write(folder.path("m.wir"), graph).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
        let (model, data, out) = (folder.text("m.wir"), folder.text("d.npz"), folder.text("out.onnx"));
        command.args(["train", &model, "--data", &data, "-o", &out, "--loss=mse"]).args(more);
        let output = command.output().unwrap();
        (output.status.code().unwrap(), text(&output.stderr).to_string())
    };
    let fixed = r#"graph @m(%x: f32[3, 2]) {
  %0 = constant {value = f32[2, 2] [1, 2, 3, 4]} "w"
  %1 = matmul %x, %0
  return %1 as "y"
}"#;
    let (code, said) = train(fixed, &[]);
    let expected =
        "`x` takes 3 examples at a time, its first dimension being fixed: 6 of them in batches of 32";
    assert!(code == 1 && said.contains(expected), "{said}");
    assert_eq!(train(fixed, &["--batch-size=3"]).0, 0);

    let through_bits = r#"graph @m(%x: f32[n, 2]) {
  %0 = constant {value = f32[2, 2] [1, 2, 3, 4]} "w"
  %1 = bitcast %0 {to = f32} "bits"
  %2 = matmul %x, %1 "scaled"
  return %2 as "y"
}"#;
    let (code, said) = train(through_bits, &[]);
    let way = "matmul `scaled` <- bitcast `bits` <- input `w`";
    assert!(
        code == 1 && said.contains("bitcast `bits` is not differentiable") && said.contains(way),
        "{said}"
    );

    let (code, said) = train("graph @m(%x: f32[n, 2]) { %0 = exp %x return %0 as \"y\" }", &[]);
    assert!(code == 1 && said.contains("the graph has no weights"), "{said}");
}

#[test]
fn what_is_wrong_is_said_before_any_work_is_done() {
    let folder = Folder::new();
    let out = folder.text("out.onnx");
    let missing = folder.text("none/out.onnx");
    let cases: &[(i32, &[&str], &str)] = &[
        (2, &["-o", &folder.text("out.txt")], "the name ends in .onnx or .wir or .safetensors"),
        (1, &["-o", &missing], "No such file"),
        (2, &["-o", &out, "--history", "h.txt"], "the name ends in .json or .csv"),
        (
            2,
            &["-o", &out, "--loss", "probabilities=nothing"],
            "there is no loss `nothing`; there are mean_squared_error, ",
        ),
        (2, &["-o", &out, "--optimizer", "adm"], "there is no optimizer `adm`; there are sgd, "),
        (2, &["-o", &out, "--metric", "f2"], "there is no metric `f2`; there are accuracy, "),
        (2, &["-o", &out, "--metric", "recall:class=a"], "option `class` of `recall` takes a whole number"),
        (2, &["-o", &out, "--loss-scale", "0"], "not `none`, `dynamic` or a number above 0"),
        (2, &["-o", &out, "--schedule", "line"], "there is no schedule `line`; there are constant, "),
        (2, &["-o", &out, "--learning-rate", "nan"], "--learning-rate"),
        (2, &["-o", &out, "--freeze", "x*"], "the weights: conv1.weight, "),
        (1, &["-o", &out, "--freeze", "*"], "depends on no variable that is trained"),
        (2, &["-o", &out, "--batch-size", "0"], "a number above 0"),
        (2, &["-o", &out, "--validation-split", "1"], "from 0 to below 1"),
        (2, &["-o", &out, "--class-weight", "10=1"], "a class below 10"),
        (1, &["-o", &out, "--sample-weight", "none"], "no array `none`; its arrays: `images` "),
        (1, &["-o", &out, "--sample-weight", "images"], "array `images` is u8[450, 8, 8], of 450 examples"),
        (1, &["-o", &out, "--resume", &digits()], "digits.onnx"),
        (1, &["-o", &out, "--resume", &folder.text("none")], "No such file"),
        (1, &["-o", &out, "--validation", &digits()], "digits.onnx"),
        (4, &["-o", &out, "--max-elements", "1000"], "limit of 1000"),
    ];
    for (code, arguments, said) in cases {
        let output = run(on_digits(arguments), *code);
        assert!(text(&output.stderr).contains(said), "{arguments:?}: {}", text(&output.stderr));
    }
    assert!(folder.names().is_empty());
    let arrays = read_npz(root("examples/digits/heldout.npz"), &Limits::default()).unwrap();
    assert_eq!(arrays.len(), 2);
}
