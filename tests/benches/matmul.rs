//! A hand-scheduled 1024 x 1024 x 1024 f32 matrix product against the processor's own peak.
//!
//! The peak is that of ten chains of 128-bit fused multiply-adds in registers, written in the same
//! kernel grammar and compiled by the same emitter. `cargo bench --bench matmul`

use std::time::{Duration, Instant};

use windlass_codegen::{Options, jit};
use windlass_ir::loops::{Guard, Index, Kernel, KernelBuilder, LoopKind, Place, Program, Role, Step, Work};
use windlass_ir::{DType, ScalarFn, Tensor, TensorType};
use windlass_runtime::Pool;

const SIZE: usize = 1024;
/// Rows and columns of the register tile: ten accumulators of four lanes.
const ROWS: usize = 5;
const COLS: usize = 8;
/// How much of k is worked off at once.
const DEPTH: usize = 256;
/// Panels of one block in a group: 512 KiB.
const PANELS: usize = 64;
/// Row tiles of a parallel chunk.
const CHUNK: usize = 12;

/// `rounds` times ten independent fused multiply-adds of four lanes.
fn peak(rounds: usize) -> Kernel {
    let lanes = 4 * 10;
    let mut b = KernelBuilder::new("peak");
    let x = b.buffer("x", DType::F32, 2, Role::In);
    let y = b.buffer("y", DType::F32, lanes, Role::Out);
    let acc = b.buffer("acc", DType::F32, lanes, Role::Register);
    b.repeat(LoopKind::Vector, lanes, |b, l| {
        let zero = b.constant(DType::F32, 0.0);
        b.store(acc, l, zero);
    });
    let (p, q) = (b.load(x, Index::constant(0)), b.load(x, Index::constant(1)));
    b.repeat(LoopKind::Serial, rounds, |b, _| {
        b.repeat(LoopKind::Vector, lanes, |b, l| {
            let sum = b.load(acc, l.clone());
            let sum = b.apply(ScalarFn::Fma, &[sum, p, q]);
            b.store(acc, l, sum);
        });
    });
    b.repeat(LoopKind::Vector, lanes, |b, l| {
        let sum = b.load(acc, l.clone());
        b.store(y, l, sum);
    });
    b.finish()
}

/// `z = x y` for a whole number of tiles, `y` packed as [block of k][panel][k][COLS]. A row tile of one
/// block stays in the first cache while the panels of a group, which stay in the second, stream past it.
fn product(m: usize, n: usize, k: usize) -> Kernel {
    let (tall, wide, deep) = (ROWS as i64, COLS as i64, DEPTH as i64);
    let (rows, cols) = (k as i64, n as i64);
    let tiles = m / ROWS;
    let group = PANELS.min(n / COLS);
    assert_eq!((tiles % CHUNK, n % (COLS * group), k % DEPTH), (0, 0, 0));
    let mut b = KernelBuilder::new("product");
    let x = b.buffer("x", DType::F32, m * k, Role::In);
    let y = b.buffer("y", DType::F32, k * n, Role::In);
    let z = b.buffer("z", DType::F32, m * n, Role::InOut);
    let acc = b.buffer("acc", DType::F32, ROWS * COLS, Role::Register);
    // Each element of the tile, at its place in the accumulator and in the result.
    let each = |b: &mut KernelBuilder, result: &Index, act: &dyn Fn(&mut KernelBuilder, Index, Index)| {
        b.repeat(LoopKind::Unroll, ROWS, |b, r| {
            b.repeat(LoopKind::Vector, COLS, |b, l| {
                act(b, r.mul(wide).add(&l), result.add(&r.mul(cols)).add(&l));
            });
        });
    };
    b.repeat(LoopKind::Parallel, tiles / CHUNK, |b, c| {
        b.repeat(LoopKind::Serial, k / DEPTH, |b, block| {
            b.repeat(LoopKind::Serial, n / COLS / group, |b, g| {
                let tile_by_panel = CHUNK * group;
                b.repeat(LoopKind::Serial, tile_by_panel, |b, at| {
                    let (i, j) = (at.div(group as i64), g.mul(group as i64).add(&at.rem(group as i64)));
                    let row = c.mul(CHUNK as i64).add(&i).mul(tall);
                    let result = row.mul(cols).add(&j.mul(wide));
                    b.begin_if(&[Guard::new(block.clone(), 1)]);
                    each(b, &result, &|b, at, _| {
                        let zero = b.constant(DType::F32, 0.0);
                        b.store(acc, at, zero);
                    });
                    b.begin_else();
                    each(b, &result, &|b, at, from| {
                        let sum = b.load(z, from);
                        b.store(acc, at, sum);
                    });
                    b.end();
                    b.repeat(LoopKind::Serial, DEPTH, |b, p| {
                        b.repeat(LoopKind::Unroll, ROWS, |b, r| {
                            let left = row.add(&r).mul(rows).add(&block.mul(deep)).add(&p);
                            let left = b.load(x, left);
                            b.repeat(LoopKind::Vector, COLS, |b, l| {
                                let right = block.mul(cols / wide).add(&j).mul(deep).add(&p);
                                let right = b.load(y, right.mul(wide).add(&l));
                                let sum = b.load(acc, r.mul(wide).add(&l));
                                let sum = b.apply(ScalarFn::Fma, &[left, right, sum]);
                                b.store(acc, r.mul(wide).add(&l), sum);
                            });
                        });
                    });
                    each(b, &result, &|b, at, to| {
                        let sum = b.load(acc, at);
                        b.store(z, to, sum);
                    });
                });
            });
        });
    });
    b.finish()
}

fn program(kernel: Kernel, flops: u64) -> Program {
    let mut program = Program::default();
    let mut args = Vec::new();
    for (_, buffer) in kernel.params() {
        let port = (buffer.name.clone(), TensorType::fixed(buffer.dtype, &[buffer.len]));
        match buffer.role {
            Role::In => {
                args.push(Place::Input(program.inputs.len() as u32));
                program.inputs.push(port);
            }
            _ => {
                args.push(Place::Output(program.outputs.len() as u32));
                program.outputs.push(port);
            }
        }
    }
    program.steps.push(Step { work: Work::Kernel(0), args, origin: Vec::new(), flops });
    program.kernels.push(kernel);
    program
}

/// Time that this thread has run, where the system tells; it leaves out what others take of a busy
/// machine.
fn clock() -> Duration {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    match text.split(' ').next().and_then(|nanos| nanos.parse().ok()) {
        Some(nanos) => Duration::from_nanos(nanos),
        None => START.elapsed(),
    }
}

/// The GFLOP/s that a quarter of the runs of some seconds reach.
fn measure(program: &Program, threads: usize) -> f64 {
    let options = Options { verify: false, ..Options::default() };
    let (executable, _) = jit(program, &options).expect("the program compiles");
    let pool = Pool::new(threads);
    let inputs: Vec<Tensor> = program
        .inputs
        .iter()
        .map(|(_, ty)| Tensor::from_fn::<f32>(&ty.shape(), |i| ((i * 7 + 3) % 17) as f32 / 17.0))
        .collect();
    let mut outputs: Vec<Tensor> =
        program.outputs.iter().map(|(_, ty)| Tensor::zeros(ty.dtype, &ty.shape())).collect();
    let ins: Vec<&[u8]> = inputs.iter().map(|t| t.bytes()).collect();
    let mut times = Vec::new();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        let mut outs: Vec<&mut [u8]> = outputs.iter_mut().map(|t| t.bytes_mut()).collect();
        let start = (clock(), Instant::now());
        let mut runs = 0;
        while start.1.elapsed() < Duration::from_millis(200) {
            executable.run(&pool, &ins, &mut outs).expect("the program runs");
            runs += 1;
        }
        times.push((clock() - start.0) / runs);
    }
    times.sort_unstable();
    let quick = times[times.len() / 4];
    program.steps[0].flops as f64 / quick.as_secs_f64() / 1e9
}

fn main() {
    let rounds = 1_000_000;
    let peak = measure(&program(peak(rounds), 80 * rounds as u64), 1);
    // The nearest multiple of the tile's rows: 1020.
    let m = SIZE / (ROWS * CHUNK) * ROWS * CHUNK;
    let kernel = product(m, SIZE, SIZE);
    if std::env::var_os("ASM").is_some() {
        let text = windlass_codegen::asm_text(&kernel, &windlass_codegen::Target::host());
        println!("{}", text.expect("the kernel compiles"));
    }
    println!("peak of 128-bit fma    {peak:6.1} GFLOP/s");
    for (m, n, k) in [(60, 64, 256), (240, 256, 256), (m, SIZE, SIZE)] {
        let ours = measure(&program(product(m, n, k), (2 * m * n * k) as u64), 1);
        println!("{m:4}x{n:4}x{k:4} product {ours:6.1} GFLOP/s, {:.0} % of the peak", 100.0 * ours / peak);
    }
}
