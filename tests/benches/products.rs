//! Matrix products as the scheduler lays them out, on one thread. `cargo bench --bench products`
//!
//! Criterion's throughput counts a multiplication and an addition as two elements, so Gelem/s are GFLOP/s;
//! `windlass bench --peak` says what the machine could do.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use windlass_codegen::{Options, jit};
use windlass_ir::ops::MatMul;
use windlass_ir::{Builder, DType, Tensor, TensorType};
use windlass_passes::lower::{LowerOptions, lower};
use windlass_runtime::Pool;

/// Rows, columns and terms: squares, and layers of transformers and convolutional networks.
const SIZES: [[usize; 3]; 5] =
    [[64, 64, 64], [1024, 1024, 1024], [128, 3072, 768], [3136, 64, 576], [49, 512, 4608]];

fn products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("product");
    for [rows, columns, terms] in SIZES {
        let small = |shape: &[usize]| Tensor::from_fn::<f32>(shape, |i| ((i * 7 + 3) % 17) as f32 / 17.0);
        let mut b = Builder::new("product");
        let x = b.input("x", TensorType::fixed(DType::F32, &[rows, terms]));
        let w = b.constant(small(&[terms, columns]));
        let y = b.push1(MatMul::default(), &[x, w]).expect("the sizes fit");
        b.output("y", y);
        let graph = b.finish().expect("the graph is valid");
        let program = lower(&graph, &LowerOptions::default()).expect("the graph lowers");
        let (executable, _) = jit(&program, &Options::default()).expect("the program compiles");
        let (pool, x) = (Pool::new(1), small(&[rows, terms]));
        let mut y = Tensor::zeros(DType::F32, &[rows, columns]);
        group.throughput(Throughput::Elements(2 * (rows * columns * terms) as u64));
        group.bench_function(format!("{rows}x{columns}x{terms}"), |bencher| {
            bencher.iter(|| {
                executable
                    .run(&pool, &[black_box(&x).bytes()], &mut [y.bytes_mut()])
                    .expect("the program runs");
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    products(&mut criterion);
    criterion.final_summary();
}
