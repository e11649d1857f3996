//! Whole models as object files: C programs linked with them by the system's compiler give the bits of
//! the code that runs in memory, and the objects ask for nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use windlass::{Limits, Tensor};
use windlass_frontend::onnx::testcase::read_tensor;

use crate::support;

/// Reads the one input, runs, writes the one output.
const MAIN: &str = r#"
#include "model.h"
#include <stdio.h>
#include <stdlib.h>
int main(void) {
    static _Alignas(64) unsigned char input[MODEL_INPUT_0_BYTES], output[MODEL_OUTPUT_0_BYTES];
    static _Alignas(64) unsigned char arena[MODEL_ARENA_BYTES + 64];
    const void *inputs[MODEL_INPUTS] = {input};
    void *outputs[MODEL_OUTPUTS] = {output};
    FILE *in = fopen("input.bin", "rb");
    if (!in || fread(input, 1, sizeof input, in) != sizeof input) return 2;
    if (model_arena_bytes != MODEL_ARENA_BYTES) return 3;
    if (model_run(inputs, outputs, arena) != 0) return 4;
    FILE *out = fopen("output.bin", "wb");
    if (!out || fwrite(output, 1, sizeof output, out) != sizeof output || fclose(out) != 0) return 5;
    return 0;
}
"#;

/// Runs a program in a folder. What it prints.
fn run(program: &str, arguments: &[&str], folder: &Path) -> String {
    let output = Command::new(program).args(arguments).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| {
        panic!("{program} could not be run: {error}. Linking needs a C compiler, `cc`, and binutils, `nm`")
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {:?} {errors}", output.status.code());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Compiles a model to each form, for each list of processors, links a C program to it and compares its output with
/// that of `windlass run`.
fn check(
    model: &Path,
    input_name: &str,
    input: &Tensor,
    output_name: &str,
    forms: &[&str],
    cpus: &[&[&str]],
) {
    let folder = tempfile::tempdir().unwrap();
    let at = |file: &str| -> PathBuf { folder.path().join(file) };
    let command = env!("CARGO_BIN_EXE_windlass");
    let model = model.to_str().unwrap();
    std::fs::write(at("input.bin"), input.bytes()).unwrap();
    std::fs::write(at("main.c"), MAIN).unwrap();
    windlass_frontend::npy::write(at("input.npy"), input).unwrap();
    let given = format!("{input_name}=input.npy");
    run(command, &["run", model, "--input", &given, "--save", "saved"], folder.path());
    let saved = at("saved").join(format!("{output_name}.npy"));
    let expected = windlass_frontend::npy::read(&saved, &Limits::default()).unwrap();
    for (form, cpus) in forms.iter().flat_map(|form| cpus.iter().map(move |cpus| (form, cpus))) {
        run(command, &[&["compile", model, "-o", form], *cpus].concat(), folder.path());
        if form.ends_with(".o") {
            assert_eq!(run("nm", &["-u", form], folder.path()).trim(), "", "{model} asks for symbols");
        }
        let strict = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-Wl,--fatal-warnings"];
        let linked = format!("./{form}");
        let arguments = [&strict[..], &["main.c", &linked, "-o", "main"]].concat();
        run("cc", &arguments, folder.path());
        run("./main", &[], folder.path());
        let found = std::fs::read(at("output.bin")).unwrap();
        assert!(found == expected.bytes(), "{model} as {form} for {cpus:?} differs from the code in memory");
        std::fs::remove_file(at("output.bin")).unwrap();
    }
}

/// Variants for several levels, of which a machine without AVX-512 runs the first.
#[cfg(target_arch = "x86_64")]
const LEVELS: &[&str] = &["--cpu", "x86-64-v3,x86-64-v4,cascadelake"];
#[cfg(not(target_arch = "x86_64"))]
const LEVELS: &[&str] = &[];

#[test]
fn c_programs_linked_with_the_digits_model_give_the_bits_of_the_jit() {
    let model = support::root().join("examples/digits/digits.onnx");
    let image = Tensor::from_fn::<f32>(&[1, 1, 8, 8], |i| ((i * 37) % 17) as f32 / 16.0);
    check(&model, "image", &image, "probabilities", &["model.o", "model.a", "model.so"], &[&[], LEVELS]);
}

#[test]
fn c_programs_linked_with_resnet_50_give_the_bits_of_the_jit() {
    let folder = support::material("models").join("resnet50");
    let input = read_tensor(&folder.join("test_data_set_0/input_0.pb"), &Limits::default()).unwrap();
    let model = windlass::Model::load(folder.join("model.onnx"), &Limits::default()).unwrap();
    let (input_name, output_name) = (&model.graph.inputs()[0].0, &model.graph.outputs()[0].0);
    check(&folder.join("model.onnx"), input_name, &input, output_name, &["model.o"], &[&[]]);
}
