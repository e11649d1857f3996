//! The machine's own peak of arithmetic, which rates are compared with.

use std::time::{Duration, Instant};

use windlass_codegen::{Options, Target, jit};
use windlass_ir::loops::{Index, Kernel, KernelBuilder, LoopKind, Place, Program, Role, Step, Work};
use windlass_ir::{DType, ScalarFn, TensorType};
use windlass_runtime::Pool;

use crate::error::Error;

/// Independent chains of multiply-adds: enough to hide their latency, few enough to stay in registers.
const CHAINS: usize = 10;

/// Turns of the loop in one run: some hundred microseconds.
const TURNS: usize = 100_000;

/// GFLOP/s that one thread reaches in nothing but fused multiply-adds of f32 in registers, an fma counting
/// as two: the best of runs over so much time. The loop is compiled as models are.
///
/// # Errors
/// If this machine is none that code is made for.
pub fn fma_peak(time: Duration) -> Result<f64, Error> {
    let lanes = Target::host().vector_bits()? / 32;
    let port = |name: &str, len: usize| (name.to_string(), TensorType::fixed(DType::F32, &[len]));
    let flops = 2 * (CHAINS * lanes * TURNS) as u64;
    let args = vec![Place::Input(0), Place::Output(0)];
    let program = Program {
        kernels: vec![chains(CHAINS * lanes)],
        steps: vec![Step { work: Work::Kernel(0), args, origin: Vec::new(), flops }],
        inputs: vec![port("x", 2)],
        outputs: vec![port("y", CHAINS * lanes)],
        ..Program::default()
    };
    let (executable, _) = jit(&program, &Options::default())?;
    let pool = Pool::new(1);
    // Every sum tends to 0.5, far from denormal numbers.
    let x = [0.5f32, 0.25].map(f32::to_ne_bytes).concat();
    let mut y = vec![0; CHAINS * lanes * size_of::<f32>()];
    let mut best = Duration::MAX;
    let start = Instant::now();
    while start.elapsed() < time || best == Duration::MAX {
        let begin = Instant::now();
        executable.run(&pool, &[&x], &mut [&mut y])?;
        best = best.min(begin.elapsed());
    }
    Ok(flops as f64 / best.as_secs_f64() / 1e9)
}

/// `y = y * x[0] + x[1]`, over and over.
fn chains(len: usize) -> Kernel {
    let mut b = KernelBuilder::new("peak");
    let x = b.buffer("x", DType::F32, 2, Role::In);
    let y = b.buffer("y", DType::F32, len, Role::Out);
    let acc = b.buffer("acc", DType::F32, len, Role::Register);
    b.repeat(LoopKind::Vector, len, |b, lane| {
        let zero = b.constant(DType::F32, 0.0);
        b.store(acc, lane, zero);
    });
    let (factor, term) = (b.load(x, Index::constant(0)), b.load(x, Index::constant(1)));
    b.repeat(LoopKind::Serial, TURNS, |b, _| {
        b.repeat(LoopKind::Vector, len, |b, lane| {
            let value = b.load(acc, lane.clone());
            let value = b.apply(ScalarFn::Fma, &[value, factor, term]);
            b.store(acc, lane, value);
        });
    });
    b.repeat(LoopKind::Vector, len, |b, lane| {
        let value = b.load(acc, lane.clone());
        b.store(y, lane, value);
    });
    b.finish()
}
