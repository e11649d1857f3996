//! Winograd's transforms and products, whose arrays between never leave the stack.

mod common;

use common::{build, f32s, ramp};
use windlass_ir::loops::interpret::run_program;
use windlass_ir::loops::{Program, print_kernel, verify_kernel};
use windlass_ir::ops::{MatMul, Winograd};
use windlass_ir::{Builder, DType, Graph, Tensor, TensorType, Value};
use windlass_passes::lower::schedule::Machine;
use windlass_passes::lower::{LowerOptions, lower};

/// Small numbers that a type can hold.
fn numbers(dtype: DType, shape: &[usize], salt: usize) -> Tensor {
    let factor = if dtype.is_int() { 40.0 } else { 1.0 };
    let numbers: Vec<f64> = ramp(shape, salt).to_f64s().iter().map(|x| x * factor).collect();
    Tensor::from_f64s(dtype, shape, &numbers)
}

/// A convolution of an image, or of several behind one another, in Winograd's form, with as many taps as pads allow for; the
/// transformed image may be an output too.
fn convolution(b: &mut Builder, x: &TensorType, to: usize, pads: &[i64], is_read: bool) -> Vec<Value> {
    let (channels, places) =
        x.shape().split_last().map(|(&channels, places)| (channels, places.to_vec())).unwrap();
    let input = b.input("x", x.clone());
    let kernel = vec![3; places.len() - 3];
    let padded = |dim: usize| places[1 + dim] + (pads[dim] + pads[dim + places.len() - 1]) as usize;
    let result: Vec<usize> =
        [places[0]].into_iter().chain((0..places.len() - 1).map(|dim| padded(dim) - 2)).collect();
    let terms = channels * 3usize.pow(kernel.len() as u32);
    let weights = b.constant(numbers(x.dtype, &[36, terms, to], 5));
    let bias = b.constant(numbers(x.dtype, &[to], 6));
    let tiles = b.push1(Winograd { kernel, ..Winograd::input(pads) }, &[input]).unwrap();
    let sums = b.push1(MatMul::default(), &[tiles, weights]).unwrap();
    let y = b.push1(Winograd::output(&result), &[sums, bias]).unwrap();
    if is_read { vec![y, tiles] } else { vec![y] }
}

fn lowered(graph: &Graph, machine: Machine) -> Program {
    let program = lower(graph, &LowerOptions { machine, ..LowerOptions::default() }).unwrap();
    for kernel in &program.kernels {
        verify_kernel(kernel).unwrap_or_else(|e| panic!("{e}\n{}", print_kernel(kernel)));
    }
    program
}

/// Lowers for caches of a few bytes and for large ones, with vectors of every width, and compares the bits.
fn compare(x: &TensorType, to: usize, pads: &[i64], is_read: bool, joined: bool) {
    let mut b = Builder::new("winograd");
    for (i, out) in convolution(&mut b, x, to, pads, is_read).into_iter().enumerate() {
        b.output(&format!("y{i}"), out);
    }
    let graph = b.finish().unwrap();
    let input = [numbers(x.dtype, &x.shape(), 3)];
    for bits in [128, 256, 512] {
        let machine = Machine::with_vectors(bits);
        let [apart, together] =
            [1 << 40, 1 << 10].map(|block_bytes| lowered(&graph, Machine { block_bytes, ..machine }));
        assert!(apart.steps.len() >= 3, "{x}, {bits} bits");
        assert_eq!(together.steps.len() < apart.steps.len(), joined, "{x}, {bits} bits");
        let [expected, found] = [apart, together].map(|program| run_program(&program, &input).unwrap());
        assert_eq!(found, expected, "{x}, {bits} bits");
    }
}

#[test]
fn transforms_and_products_run_for_a_few_tiles_at_a_time() {
    // Sizes that tiles divide and that they do not, blocks of one size and of two, channels in whole vectors and a rest.
    for (shape, to, pads) in [
        (&[1, 32, 40, 8][..], 16, &[1, 1, 1, 1][..]),
        (&[1, 35, 38, 8], 12, &[1, 1, 1, 1]),
        (&[3, 21, 17, 5], 40, &[0, 2, 1, 0]),
        (&[1, 30, 41, 40], 3, &[0, 0, 0, 0]),
        (&[1, 4, 18, 17, 8], 12, &[1, 1, 1, 1, 1, 1]),
    ] {
        for dtype in [DType::F32, DType::F64, DType::I32] {
            compare(&TensorType::fixed(dtype, shape), to, pads, false, true);
        }
    }
}

#[test]
fn transformed_tiles_with_another_reader_are_written() {
    compare(&f32s(&[1, 32, 40, 8]), 16, &[1; 4], true, false);
}

#[test]
fn few_tiles_are_shared_by_positions() {
    compare(&f32s(&[1, 24, 24, 8]), 16, &[1; 4], false, false);
}

/// What the loops compute is what the ops mean.
#[test]
fn a_whole_convolution() {
    build("winograd", |b| convolution(b, &f32s(&[1, 35, 38, 40]), 60, &[1; 4], false));
}
