//! Object files: linked into a C program by the system's compiler, they give the JIT's bits.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Random, program, run_native, same};
use windlass_codegen::{
    ObjectArtifact, ObjectOptions, Target, Variant, archive, object, object_of_variants, shared_library,
};
use windlass_ir::loops::{
    Guard, Index, KernelBuilder, LoopKind, Move, Place, Program, Repeat, Role, Step, Work,
};
use windlass_ir::{DType, ScalarFn, Tensor, TensorType};

/// `y = sqrt(x * w + b)` in two steps through the arena, the first in two rounds of half the rows, the last half first;
/// and a constant copied out.
fn model() -> Program {
    let (rows, cols) = (64usize, 50usize);
    let len = rows * cols;
    let mut b = KernelBuilder::new("scale");
    let x = b.buffer("x", DType::F32, len / 2, Role::In);
    let w = b.buffer("w", DType::F32, cols, Role::In);
    let y = b.buffer("y", DType::F32, len / 2, Role::Out);
    b.repeat(LoopKind::Parallel, rows / 2, |b, i| {
        b.repeat(LoopKind::Vector, cols, |b, j| {
            let at = i.mul(cols as i64).add(&j);
            let (p, q) = (b.load(x, at.clone()), b.load(w, j));
            let v = b.apply(ScalarFn::Mul, &[p, q]);
            b.store(y, at, v);
        });
    });
    let scale = b.finish();
    let mut b = KernelBuilder::new("root");
    let x = b.buffer("x", DType::F32, len, Role::In);
    let c = b.buffer("c", DType::I64, 1, Role::In);
    let y = b.buffer("y", DType::F32, len, Role::Out);
    let z = b.buffer("z", DType::I64, 3, Role::Out);
    b.repeat(LoopKind::Vector, len, |b, i| {
        let p = b.load(x, i.clone());
        let half = b.constant(DType::F32, 0.5);
        let v = b.apply(ScalarFn::Add, &[p, half]);
        let v = b.apply(ScalarFn::Sqrt, &[v]);
        b.store(y, i, v);
    });
    b.repeat(LoopKind::Serial, 3, |b, i| {
        let v = b.load(c, Index::constant(0));
        b.store(z, i, v);
    });
    let root = b.finish();
    let step = |kernel, args: &[Place]| Step {
        work: Work::Kernel(kernel),
        args: args.to_vec(),
        origin: vec!["node".into()],
        flops: 10_000_000,
    };
    let matrix = TensorType::fixed(DType::F32, &[rows, cols]);
    // The second constant is prepared: the negative of one given.
    let mut negate = KernelBuilder::new("negate");
    let (from, to) =
        (negate.buffer("from", DType::I64, 1, Role::In), negate.buffer("to", DType::I64, 1, Role::Out));
    let value = negate.load(from, Index::constant(0));
    let value = negate.apply(ScalarFn::Neg, &[value]);
    negate.store(to, Index::constant(0), value);
    let prepare = Program {
        kernels: vec![negate.finish()],
        steps: vec![step(0, &[Place::Constant(0), Place::Output(0)])],
        constants: vec![Tensor::scalar::<i64>(123_456_789_012)],
        outputs: vec![("negative".to_string(), TensorType::fixed(DType::I64, &[]))],
        ..Program::default()
    };
    let bytes = 4 * len as u64 / 2;
    let half = |arg| Move { step: 0, arg, start: bytes, stride: -(bytes as i64), period: 0 };
    Program {
        kernels: vec![scale, root],
        steps: vec![
            step(0, &[Place::Input(0), Place::Constant(0), Place::Arena(64)]),
            step(1, &[Place::Arena(64), Place::Constant(1), Place::Output(0), Place::Output(1)]),
        ],
        repeats: vec![Repeat { first: 0, steps: 1, times: 2, moves: vec![half(0), half(2)] }],
        constants: vec![Tensor::from_fn::<f32>(&[cols], |i| i as f32 * 0.25 - 3.0)],
        prepare: Some(Box::new(prepare)),
        arena_bytes: 64 + (len * 4) as u64,
        inputs: vec![("x */ \\".to_string(), matrix.clone())],
        outputs: vec![("y".to_string(), matrix), ("z".to_string(), TensorType::fixed(DType::I64, &[3]))],
        in_place: Vec::new(),
    }
}

/// Reads each input from a file, runs, writes each output.
const MAIN: &str = r#"
#include "m.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static void *read_file(const char *path, size_t bytes) {
    void *data = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    FILE *f = fopen(path, "rb");
    if (!f || fread(data, 1, bytes, f) != bytes) exit(3);
    fclose(f);
    return data;
}
static void write_file(const char *path, const void *data, size_t bytes) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, bytes, f) != bytes) exit(4);
    fclose(f);
}
#ifdef PARALLEL
static void in_three(void *context, m_task task, void *const *table, int64_t extent, int64_t grain) {
    *(int *)context += 1;
    (void)grain;
    int64_t third = extent / 3;
    task(table, third * 2, extent);
    task(table, 0, third);
    task(table, third, third * 2);
}
#endif
int main(void) {
    const void *inputs[1] = {read_file("x.bin", M_INPUT_0_BYTES)};
    void *outputs[2] = {malloc(M_OUTPUT_0_BYTES), malloc(M_OUTPUT_1_BYTES)};
    char *arena = aligned_alloc(64, (m_arena_bytes + 63) / 64 * 64);
    if (m_arena_bytes != M_ARENA_BYTES) return 5;
#ifdef UNSUPPORTED
    return m_run(inputs, outputs, arena) == 2 && !m_variant() ? 0 : 9;
#endif
#ifdef VARIANTS
    printf("%s", m_variant());
#endif
#ifdef WEIGHTS
    const void *weights = read_file("w.bin", M_WEIGHTS_BYTES);
    if (m_run(inputs, outputs, arena + 1, weights) != 1) return 6;
    if (m_run(inputs, outputs, arena, weights) != 0) return 7;
#else
    if (m_run(inputs, outputs, arena + 1) != 1) return 6;
    if (m_run(inputs, outputs, arena) != 0) return 7;
#endif
#ifdef PARALLEL
    int calls = 0;
    memset(outputs[0], 1, M_OUTPUT_0_BYTES);
    if (m_run_parallel(inputs, outputs, arena, in_three, &calls) != 0 || calls != 2) return 8;
#endif
    write_file("y.bin", outputs[0], M_OUTPUT_0_BYTES);
    write_file("z.bin", outputs[1], M_OUTPUT_1_BYTES);
    return 0;
}
"#;

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("windlass-aot-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn run(program: &str, args: &[&str], folder: &Path) -> String {
    let run = Command::new(program).args(args).current_dir(folder).output().unwrap();
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{program} {args:?}: {:?} {errors}", run.status.code());
    format!("{}{errors}", String::from_utf8_lossy(&run.stdout))
}

/// How C programs are linked with an object.
struct Form {
    name: &'static str,
    parallel: bool,
    separate_weights: bool,
    defines: &'static [&'static str],
    linked: &'static str,
}

const FORMS: [Form; 3] = [
    Form { name: "plain", parallel: false, separate_weights: false, defines: &[], linked: "m.o" },
    Form {
        name: "parallel",
        parallel: true,
        separate_weights: false,
        defines: &["-DPARALLEL"],
        linked: "libm_model.a",
    },
    Form {
        name: "weights",
        parallel: false,
        separate_weights: true,
        defines: &["-DWEIGHTS"],
        linked: "./libm_model.so",
    },
];

impl Form {
    fn options(&self) -> ObjectOptions {
        let (parallel, separate_weights) = (self.parallel, self.separate_weights);
        ObjectOptions { name: "m".to_string(), parallel, separate_weights, ..ObjectOptions::default() }
    }

    /// Links the C program and runs it on `x` in a folder. What it prints.
    fn run(&self, artifact: &ObjectArtifact, x: &Tensor, defines: &[&str], folder: &Path) -> String {
        let write = |file: &str, bytes: &[u8]| std::fs::write(folder.join(file), bytes).unwrap();
        write("m.o", &artifact.object);
        write("m.h", artifact.header.as_bytes());
        write("main.c", MAIN.as_bytes());
        write("x.bin", x.bytes());
        write("libm_model.a", &archive("m.o", &artifact.object, &artifact.symbols));
        if let Some(weights) = &artifact.weights {
            write("w.bin", weights);
        }
        if self.linked.ends_with(".so") {
            shared_library(&folder.join("m.o"), &folder.join("libm_model.so")).unwrap();
        }
        assert_eq!(run("nm", &["-u", "m.o"], folder).trim(), "");
        let strict = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wl,--fatal-warnings"];
        let args = [&strict[..], self.defines, defines, &["main.c", self.linked, "-o", "main"]].concat();
        run("cc", &args, folder);
        run("c++", &["-x", "c++", "-Wall", "-Werror", "-fsyntax-only", "m.h"], folder);
        run("./main", &[], folder)
    }
}

/// Holds what the C program wrote to what it should have.
fn check_outputs(folder: &Path, expected: &[Tensor], what: &str) {
    for (file, expected) in ["y.bin", "z.bin"].into_iter().zip(expected) {
        let bytes = std::fs::read(folder.join(file)).unwrap();
        let found = Tensor::from_bytes(expected.dtype(), expected.shape(), &bytes).unwrap();
        assert!(same(&found, expected), "{what} {file}");
        std::fs::remove_file(folder.join(file)).unwrap();
    }
}

#[test]
fn a_c_program_gives_the_bits_of_the_jit() {
    let program = model();
    let x = Random(3).tensor(DType::F32, 64 * 50).reshaped(&[64, 50]);
    let expected = run_native(&program, std::slice::from_ref(&x), 2, None);
    for form in FORMS {
        let folder = folder(form.name);
        let target = Target { cpu: Some("native".to_string()), ..Target::host() };
        let artifact = object(&program, &target, &form.options()).unwrap_or_else(|e| panic!("{e}"));
        form.run(&artifact, &x, &[], &folder);
        check_outputs(&folder, &expected, form.name);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

/// The levels that this machine has, by the standard library's word.
#[cfg(target_arch = "x86_64")]
fn levels() -> Vec<&'static str> {
    let mut levels = Vec::new();
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("bmi2")
    {
        levels.push("x86-64-v3");
        if is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            levels.push("x86-64-v4");
            if is_x86_feature_detected!("avx512vnni") {
                levels.push("cascadelake");
            }
        }
    }
    levels
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_best_variant_for_the_machine_is_chosen() {
    // Variants may differ in their layout: one has a larger arena and a constant of its own.
    let narrow = model();
    let mut wide = model();
    wide.arena_bytes += 4096;
    wide.steps[0].args[2] = Place::Arena(4096);
    wide.steps[1].args[0] = Place::Arena(4096);
    wide.constants.insert(0, Tensor::scalar::<i64>(-1));
    for place in wide.steps.iter_mut().flat_map(|step| &mut step.args) {
        if let Place::Constant(constant) = place {
            *constant += 1;
        }
    }
    let x = Random(3).tensor(DType::F32, 64 * 50).reshaped(&[64, 50]);
    let expected = run_native(&narrow, std::slice::from_ref(&x), 2, None);
    let levels = levels();
    for (cpus, form) in [
        (&["x86-64-v3", "x86-64-v4"][..], &FORMS[0]),
        (&["x86-64-v4", "cascadelake", "x86-64-v3"], &FORMS[1]),
        (&["cascadelake", "x86-64-v3"], &FORMS[2]),
        (&["x86-64-v4", "cascadelake"], &FORMS[0]),
    ] {
        let folder = folder(&format!("variants-{}", cpus.join("-")));
        let targets: Vec<Target> =
            cpus.iter().map(|cpu| Target { cpu: Some(cpu.to_string()), ..Target::host() }).collect();
        let variants: Vec<Variant<'_>> = targets
            .iter()
            .map(|target| {
                let program = if target.vector_bits().unwrap() > 256 { &wide } else { &narrow };
                Variant { program, target }
            })
            .collect();
        let artifact = object_of_variants(&variants, &form.options()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(artifact.arena_bytes, wide.arena_bytes);
        // What both have stands there once: 50 floats, and three numbers.
        assert!(artifact.weight_bytes <= 256 + 2 * 64 + 8, "{}", artifact.weight_bytes);
        let chosen = levels.iter().rev().find(|level| cpus.contains(level));
        match chosen {
            Some(chosen) => {
                assert_eq!(form.run(&artifact, &x, &["-DVARIANTS"], &folder), *chosen);
                check_outputs(&folder, &expected, chosen);
            }
            None => {
                form.run(&artifact, &x, &["-DUNSUPPORTED"], &folder);
            }
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

/// `y[i] = x[i - 1]`, 0 before the first.
fn shifted() -> Program {
    let mut b = KernelBuilder::new("shifted");
    let x = b.buffer("x", DType::F32, 30, Role::In);
    let y = b.buffer("y", DType::F32, 30, Role::Out);
    b.repeat(LoopKind::Vector, 30, |b, i| {
        let before = i.add_const(-1);
        let v = b.load_guarded(x, before.clone(), vec![Guard::new(before, 30)]);
        b.store(y, i, v);
    });
    program(b.finish())
}

#[test]
fn objects_are_made_for_every_kind_of_target() {
    for triple in Target::TRIPLES {
        let target = Target::parse(triple).unwrap();
        let artifact = object(&model(), &target, &ObjectOptions::default());
        let artifact = artifact.unwrap_or_else(|e| panic!("{triple}: {e}"));
        assert!(artifact.object.len() > 1000, "{triple}");
        // Also where there are no vectors: an element or zero.
        let artifact = object(&shifted(), &target, &ObjectOptions::default());
        artifact.unwrap_or_else(|e| panic!("{triple}: {e}"));
    }
    assert!(Target::parse("pdp11-unknown-none").is_err());
    let old = Target { cpu: Some("nehalem".to_string()), ..Target::parse(Target::TRIPLES[0]).unwrap() };
    let error = object(&model(), &old, &ObjectOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "the processor lacks FMA, AVX, which generated code needs");
}

#[test]
fn names_must_be_c_identifiers() {
    for name in ["", "9lives", "a-b", "a b", "é"] {
        let options = ObjectOptions { name: name.to_string(), ..ObjectOptions::default() };
        assert!(object(&model(), &Target::host(), &options).is_err(), "{name}");
    }
}
