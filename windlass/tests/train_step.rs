//! Training steps compiled ahead: a C program that trains by one gets the bits that `Model::fit` gets.

use std::path::Path;
use std::process::Command;

use windlass::nn::{Clip, Fit, Model, Network, Optimizer, Order, OutputLoss};
use windlass::{Limits, Options, Tensor};

const BATCH: usize = 32;
const STEPS: usize = 6;

/// A small network with an embedding of sizes that are no multiples of anything.
const MODEL: &str = r#"graph @m(%x: f32[n, 7]) {
  %0 = constant {value = f32[7, 5] [WEIGHTS]} "dense.weight"
  %1 = matmul %x, %0
  %2 = constant {value = f32[5] [0, 0, 0, 0, 0]} "dense.bias"
  %3 = add %1, %2
  %4 = constant {value = f32[5] [1, 1, 1, 1, 1]} "norm.gamma"
  %5 = constant {value = f32[5] [0.5, 0, 0.25, 0, 0]} "norm.beta"
  %6 = constant {value = f32[5] [0, 0, 0.5, 0, 0]} "norm.mean"
  %7 = constant {value = f32[5] [1, 2, 1, 1, 1]} "norm.variance"
  %8 = batch_norm %3, %4, %5, %6, %7
  %9 = tanh %8
  %10 = constant {value = f32[5, 3] [1, -1, 0, 0.5, 1, -1, 0.25, 1, 0, -0.5, 1, 1, 0, 0.125, -1]} "head \"w\""
  %11 = matmul %9, %10
  return %11 as "logits"
}"#;

fn batch(step: usize) -> (Tensor, Tensor) {
    let x = Tensor::from_fn::<f32>(&[BATCH, 7], |i| ((i * 37 + step * 11) % 23) as f32 / 11.5 - 1.0);
    let y = Tensor::from_fn::<i64>(&[BATCH], |i| ((i * 5 + step) % 3) as i64);
    (x, y)
}

/// Runs a program in a folder, which succeeds.
fn run(program: &str, arguments: &[&str], folder: &Path) {
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {} {said}", output.status);
}

fn check(optimizer: &str, expected: Optimizer, more: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let numbers: Vec<String> = (0..35).map(|i| format!("{:?}", ((i * 7) % 13) as f32 / 13.0 - 0.5)).collect();
    std::fs::write(folder.join("m.wir"), MODEL.replace("WEIGHTS", &numbers.join(", "))).unwrap();
    let loss = "--loss=sparse_categorical_crossentropy:from_logits";
    let batch_size = format!("--batch={BATCH}");
    let arguments =
        ["compile", "m.wir", "--train", loss, "--optimizer", optimizer, &batch_size, "-o", "step.o"];
    run(env!("CARGO_BIN_EXE_windlass"), &[&arguments[..], &["--learning-rate=0.01"], more].concat(), folder);
    std::fs::write(folder.join("main.c"), include_str!("train_step.c")).unwrap();
    let strict = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror"];
    run("cc", &[&strict[..], &["main.c", "step.o", "-o", "train"]].concat(), folder);
    let input: Vec<u8> = (0..STEPS).map(batch).flat_map(|(x, y)| [x.bytes(), y.bytes()].concat()).collect();
    std::fs::write(folder.join("input"), input).unwrap();
    run("./train", &["input", "output", &STEPS.to_string()], folder);
    let output = std::fs::read(folder.join("output")).unwrap();

    let mut network = Network::open(folder.join("m.wir"), &Limits::default()).unwrap();
    if more.contains(&"--batch-statistics") {
        network = network.with_batch_statistics(0.9);
    }
    let mut model = Model::new(network, 0, Options::default()).unwrap();
    let loss = OutputLoss::new("logits", "sparse_categorical_crossentropy:from_logits".parse().unwrap());
    model.compile_outputs(expected, &[loss]).unwrap();
    let mut losses: Vec<u8> = Vec::new();
    for (x, y) in (0..STEPS).map(batch) {
        let fit = Fit { batch_size: BATCH, order: Order::Given, ..Fit::default() };
        let loss = model.fit(&x, &y, &fit).unwrap().loss[0];
        losses.extend((loss as f32).to_ne_bytes());
    }
    let (found, state) = output.split_at(4 * STEPS);
    assert_eq!(found, losses);
    let variables: Vec<u8> = model.variables().flat_map(|(_, tensor)| tensor.bytes().to_vec()).collect();
    assert_eq!(state[..variables.len()], variables);
    assert_eq!(state[state.len() - 8..], (STEPS as f64).to_ne_bytes());
}

#[test]
fn a_c_program_trains_to_the_same_bits() {
    check("sgd", Optimizer::sgd(0.01), &[]);
    check("adam", Optimizer::adam(0.01), &["--batch-statistics"]);
}

#[test]
fn variants_for_several_processors_train_alike() {
    let clipped = Optimizer { clip: Clip::GlobalNorm(0.5), ..Optimizer::adagrad(0.01) };
    let variants = "--cpu=x86-64-v3,x86-64-v4";
    check(
        "adagrad",
        clipped,
        &["--clip-norm=0.5", if cfg!(target_arch = "x86_64") { variants } else { "-O2" }],
    );
}

#[test]
fn what_makes_no_step_is_refused() {
    let digits = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/digits/digits.onnx");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("step.o").display().to_string();
    let cases: &[(&[&str], &str)] = &[
        (&["--train"], "--loss says what is to become less: one of mean_squared_error, "),
        (&["--loss=mse"], "--loss is for a training step: --train"),
        (&["--train", "--loss=mse", "--dim=batch=2"], "`batch` is the dimension of examples: --batch"),
        (&["--train", "--loss=mse", "--dim=n=2"], "the model has no dimension `n`"),
        (&["--batch=2"], "--train"),
    ];
    for (arguments, said) in cases {
        let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
        command.args(["compile", digits.to_str().unwrap(), "-o", &out]).args(*arguments);
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
    }
}
