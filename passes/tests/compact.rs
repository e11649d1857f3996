//! Weights that products of few rows read in 4, 8 or 16 bits: the loop interpreter against the graph interpreter, and when.

mod common;

use common::{build, check, f32s, ramp};
use windlass_ir::loops::Program;
use windlass_ir::loops::interpret::run_program;
use windlass_ir::ops::{DequantizeLinear, MatMul, Reshape};
use windlass_ir::{Builder, DType, Graph, ScalarFn, Tensor, Value};
use windlass_passes::graph::bf16_weights;
use windlass_passes::lower::schedule::Machine;
use windlass_passes::lower::{LowerOptions, lower};
use windlass_passes::{Options, Stage};

/// Integers from `low` to `high` without a simple period.
fn integers(dtype: DType, shape: &[usize], (low, high): (i64, i64)) -> Tensor {
    let values: Vec<i128> = (0..shape.iter().product::<usize>())
        .map(|i| i128::from(low + ((i * 37 + i / 11) as i64).rem_euclid(high - low + 1)))
        .collect();
    Tensor::from_i128s(dtype, shape, &values)
}

/// How a weight is quantized.
#[derive(Clone, Copy, Debug)]
struct Form {
    dtype: DType,
    range: (i64, i64),
    /// Steps of the sum that share a scale; 0 for one scale a column.
    block: usize,
    /// 0: none, 1: one for all, 2: as the scales.
    zeros: u8,
    /// Whether rows of the constant are columns of the product.
    transposed: bool,
}

/// A weight of `k` steps and `n` columns.
fn weight(b: &mut Builder, k: usize, n: usize, form: Form) -> Value {
    let Form { dtype, range, block, zeros, transposed } = form;
    let shape = if transposed { [n, k] } else { [k, n] };
    let axis = usize::from(transposed);
    let q = b.constant(integers(dtype, &shape, range));
    let mut scales = shape;
    scales[axis] = k.div_ceil(block.max(1));
    let scales = if block == 0 { vec![n] } else { scales.to_vec() };
    let mut ins = vec![q, b.constant(ramp(&scales, 7))];
    match zeros {
        0 => {}
        1 => ins.push(b.constant(Tensor::from_i128s(dtype, &[], &[i128::from((range.0 + range.1 + 1) / 2)]))),
        _ => ins.push(b.constant(integers(dtype, &scales, range))),
    }
    let axis = if block == 0 { 1 - axis } else { axis } as i64;
    b.push1(DequantizeLinear { axis, block_size: block as i64, to: DType::F32 }, &ins).unwrap()
}

const BYTES: Form = Form { dtype: DType::I8, range: (-128, 127), block: 0, zeros: 0, transposed: false };
const NIBBLES: Form = Form { dtype: DType::U8, range: (0, 15), block: 32, zeros: 1, transposed: true };

fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for (dtype, range) in
        [(DType::I8, (-128, 127)), (DType::U8, (0, 255)), (DType::U8, (0, 15)), (DType::I8, (-8, 7))]
    {
        for block in [0, 2, 32] {
            for zeros in 0..3 {
                for transposed in [false, true] {
                    forms.push(Form { dtype, range, block, zeros, transposed });
                }
            }
        }
    }
    forms
}

#[test]
fn every_form_computes_what_it_means() {
    for (i, form) in forms().into_iter().enumerate() {
        let (m, k, n) = [(1, 96, 70), (3, 64, 68), (4, 128, 96), (2, 64, 129)][i % 4];
        build(&format!("{form:?} {m} {k} {n}"), |b| {
            let x = b.input("x", f32s(&[m, k]));
            let w = weight(b, k, n, form);
            let y = b.push1(MatMul { trans_b: form.transposed, ..MatMul::default() }, &[x, w]).unwrap();
            let bias = b.constant(ramp(&[n], 4));
            vec![b.map(ScalarFn::Add, &[y, bias]).unwrap()]
        });
    }
}

fn product(m: usize, k: usize, n: usize, form: Form) -> Graph {
    let mut b = Builder::new("product");
    let x = b.input("x", f32s(&[m, k]));
    let w = weight(&mut b, k, n, form);
    let y = b.push1(MatMul { trans_b: form.transposed, ..MatMul::default() }, &[x, w]).unwrap();
    b.output("y", y);
    b.finish().unwrap()
}

fn lowered(graph: &Graph) -> Program {
    lower(graph, &LowerOptions::default()).unwrap()
}

/// Bytes that a run reads of constants and of what is prepared from them.
fn known_bytes(program: &Program) -> usize {
    let prepared = program.prepare.iter().flat_map(|prepare| &prepare.outputs);
    let sizes = prepared.map(|(_, ty)| ty.shape().iter().product::<usize>() * ty.dtype.size());
    sizes.chain(program.constants.iter().map(|constant| constant.bytes().len())).sum()
}

#[test]
fn few_rows_read_few_bits() {
    let columns = 128;
    // A float of scale for each column, or for each column and block; zero points are bytes.
    for (form, bits, sides) in [
        (BYTES, 8, columns * 4),
        (Form { transposed: true, ..BYTES }, 8, columns * 4),
        (Form { range: (-8, 7), ..BYTES }, 4, columns * 4),
        (NIBBLES, 4, 8 * columns * 4),
        (Form { zeros: 2, ..NIBBLES }, 4, 8 * columns * 5),
        // Less the zero point they would need 9 bits.
        (Form { dtype: DType::U8, range: (0, 255), zeros: 2, ..BYTES }, 8, columns * 5),
    ] {
        for rows in [1, 4] {
            let program = lowered(&product(rows, 256, columns, form));
            assert_eq!(program.kernels.len(), 1, "{form:?}");
            assert_eq!(known_bytes(&program), 256 * columns * bits / 8 + sides, "{form:?}");
        }
    }
}

/// A product in f32 with a weight that is dequantized to f16.
fn halves() -> Graph {
    let mut b = Builder::new("halves");
    let x = b.input("x", f32s(&[1, 256]));
    let q = b.constant(integers(DType::I8, &[256, 128], (-128, 127)));
    let scale = b.constant(Tensor::from_f64s(DType::F16, &[], &[0.25]));
    let op = DequantizeLinear { axis: 1, block_size: 0, to: DType::F16 };
    let w = b.push1(op, &[q, scale]).unwrap();
    let w = b.cast(w, DType::F32).unwrap();
    let y = b.push1(MatMul::default(), &[x, w]).unwrap();
    b.output("y", y);
    b.finish().unwrap()
}

#[test]
fn other_weights_are_kept_as_floats() {
    let floats = |graph: &Graph, elements: usize| {
        check("floats", graph);
        assert_eq!(known_bytes(&lowered(graph)), elements * 4);
    };
    // Many rows read it.
    floats(&product(5, 256, 128, BYTES), 256 * 128);
    // It is small.
    floats(&product(1, 32, 32, BYTES), 32 * 32);
    // Two steps share a scale: those are half of the floats.
    floats(&product(1, 256, 128, Form { block: 2, ..BYTES }), 256 * 128);
    // It is rounded to halves, for which there is no instruction.
    floats(&halves(), 256 * 128);
    // Blocks of steps do not fill it.
    floats(&product(1, 250, 128, Form { block: 32, ..BYTES }), 250 * 128);
}

/// An odd number of steps is not stored in pairs.
#[test]
fn odd_steps_take_bytes() {
    let graph = product(1, 255, 128, Form { range: (-8, 7), ..BYTES });
    check("odd", &graph);
    assert_eq!(known_bytes(&lowered(&graph)), 255 * 128 + 128 * 4);
}

/// Bits are those of weights that were made floats first, in the same order of steps, for every shape of tiles.
#[test]
fn machines_do_not_show_in_bits() {
    for form in [BYTES, NIBBLES, Form { zeros: 2, block: 16, ..BYTES }] {
        for rows in [1, 2, 4] {
            let graph = product(rows, 128, 200, form);
            let inputs = [ramp(&[rows, 128], 1)];
            let run = |bits| {
                let options =
                    LowerOptions { machine: Machine::with_vectors(bits), ..LowerOptions::default() };
                run_program(&lower(&graph, &options).unwrap(), &inputs).unwrap()
            };
            assert_eq!(run(128), run(256), "{form:?}");
            assert_eq!(run(128), run(512), "{form:?}");
        }
    }
    let graph = product(4, 128, 200, BYTES);
    let inputs = [ramp(&[4, 128], 1)];
    let run = |fuse| {
        run_program(&lower(&graph, &LowerOptions { fuse, ..LowerOptions::default() }).unwrap(), &inputs)
    };
    assert_eq!(run(true).unwrap(), run(false).unwrap());
}

/// Two to a byte, as 4-bit models are stored: taken apart by the graph's own operations.
#[test]
fn weights_of_packed_constants() {
    for rows in [1, 3] {
        build("packed", |b| {
            let (k, n) = (128, 72);
            let x = b.input("x", f32s(&[rows, k]));
            let bytes = b.constant(integers(DType::U8, &[n, k / 2, 1], (0, 255)));
            let counts = b.constant(Tensor::new(&[2], &[0u8, 4]));
            let mask = b.scalar(DType::U8, 15.0);
            let q = b.map(ScalarFn::Shr, &[bytes, counts]).unwrap();
            let q = b.map(ScalarFn::And, &[q, mask]).unwrap();
            let q = b.push1(Reshape::to(&[n, k]), &[q]).unwrap();
            let scale = b.constant(ramp(&[n, k / 32], 3));
            let zero = b.constant(integers(DType::U8, &[n, k / 32], (0, 15)));
            let op = DequantizeLinear { axis: 1, block_size: 32, to: DType::F32 };
            let w = b.push1(op, &[q, scale, zero]).unwrap();
            vec![b.push1(MatMul { trans_b: true, ..MatMul::default() }, &[x, w]).unwrap()]
        });
    }
}

/// The pass that rounds weights, and what is read then: of few rows the halves, of many floats.
#[test]
fn few_rows_read_weights_in_bf16() {
    for (rows, bits) in [(1, 16), (4, 16), (40, 32)] {
        for transposed in [false, true] {
            let mut b = Builder::new("bf16");
            let x = b.input("x", f32s(&[rows, 96]));
            let w = b.constant(ramp(if transposed { &[128, 96] } else { &[96, 128] }, 5));
            let y = b.push1(MatMul { trans_b: transposed, ..MatMul::default() }, &[x, w]).unwrap();
            b.output("y", y);
            let graph = b.finish().unwrap();
            let stages = [Stage::Pass(&bf16_weights::PASS)];
            let (rounded, _) = windlass_passes::run(&graph, &stages, &Options::default()).unwrap();
            check("bf16", &rounded);
            assert_eq!(known_bytes(&lowered(&rounded)), 96 * 128 * bits / 8, "{rows} rows");
            // What is rounded already stays as it is.
            let (again, _) = windlass_passes::run(&rounded, &stages, &Options::default()).unwrap();
            assert_eq!(again.node_count(), rounded.node_count());
        }
    }
}
