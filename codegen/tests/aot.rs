//! Object files: linked into a C program by the system's compiler, they give the JIT's bits.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Random, program, run_native, same};
use windlass_codegen::{ObjectOptions, Target, archive, object, shared_library};
use windlass_ir::loops::{Guard, Index, KernelBuilder, LoopKind, Place, Program, Role, Step, Work};
use windlass_ir::{DType, ScalarFn, Tensor, TensorType};

/// `y = sqrt(x * w + b)` in two steps through the arena, and a constant copied out.
fn model() -> Program {
    let (rows, cols) = (64usize, 50usize);
    let len = rows * cols;
    let mut b = KernelBuilder::new("scale");
    let x = b.buffer("x", DType::F32, len, Role::In);
    let w = b.buffer("w", DType::F32, cols, Role::In);
    let y = b.buffer("y", DType::F32, len, Role::Out);
    b.repeat(LoopKind::Parallel, rows, |b, i| {
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
        origin: vec!["node".to_string()],
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
    Program {
        kernels: vec![scale, root],
        steps: vec![
            step(0, &[Place::Input(0), Place::Constant(0), Place::Arena(64)]),
            step(1, &[Place::Arena(64), Place::Constant(1), Place::Output(0), Place::Output(1)]),
        ],
        constants: vec![Tensor::from_fn::<f32>(&[cols], |i| i as f32 * 0.25 - 3.0)],
        prepare: Some(Box::new(prepare)),
        arena_bytes: 64 + (len * 4) as u64,
        inputs: vec![("x */ \\".to_string(), matrix.clone())],
        outputs: vec![("y".to_string(), matrix), ("z".to_string(), TensorType::fixed(DType::I64, &[3]))],
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
    if (m_run_parallel(inputs, outputs, arena, in_three, &calls) != 0 || calls != 1) return 8;
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

#[test]
fn a_c_program_gives_the_bits_of_the_jit() {
    let program = model();
    let x = Random(3).tensor(DType::F32, 64 * 50).reshaped(&[64, 50]);
    let expected = run_native(&program, std::slice::from_ref(&x), 2, None);
    for (name, parallel, separate_weights, defines, linked) in [
        ("plain", false, false, vec![], "m.o"),
        ("parallel", true, false, vec!["-DPARALLEL"], "libm_model.a"),
        ("weights", false, true, vec!["-DWEIGHTS"], "./libm_model.so"),
    ] {
        let folder = folder(name);
        let options =
            ObjectOptions { name: "m".to_string(), parallel, separate_weights, ..ObjectOptions::default() };
        let target = Target { cpu: Some("native".to_string()), ..Target::host() };
        let artifact = object(&program, &target, &options).unwrap_or_else(|e| panic!("{e}"));
        let write = |file: &str, bytes: &[u8]| std::fs::write(folder.join(file), bytes).unwrap();
        write("m.o", &artifact.object);
        write("m.h", artifact.header.as_bytes());
        write("main.c", MAIN.as_bytes());
        write("x.bin", x.bytes());
        write("libm_model.a", &archive("m.o", &artifact.object, &artifact.symbols));
        if let Some(weights) = &artifact.weights {
            write("w.bin", weights);
        }
        if linked.ends_with(".so") {
            shared_library(&folder.join("m.o"), &folder.join("libm_model.so")).unwrap();
        }
        assert_eq!(run("nm", &["-u", "m.o"], &folder).trim(), "");
        let strict = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wl,--fatal-warnings"];
        let args = [&strict[..], &defines[..], &["main.c", linked, "-o", "main"]].concat();
        run("cc", &args, &folder);
        run("c++", &["-x", "c++", "-Wall", "-Werror", "-fsyntax-only", "m.h"], &folder);
        run("./main", &[], &folder);
        for (file, expected) in [("y.bin", &expected[0]), ("z.bin", &expected[1])] {
            let bytes = std::fs::read(folder.join(file)).unwrap();
            let found = Tensor::from_bytes(expected.dtype(), expected.shape(), &bytes).unwrap();
            assert!(same(&found, expected), "{name} {file}");
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
