//! Recurrent layers large enough for threads to share their steps: the loops agree with the graph's meaning, and code has
//! the loops' bits on any number of threads, at every width of vectors, and in an object file.

use windlass_codegen::{Options, Target, jit};
use windlass_ir::loops::Program;
use windlass_ir::loops::interpret::run_program;
use windlass_ir::ops::{Cell, CellKind, Direction, Recurrent};
use windlass_ir::{Builder, DType, Graph, Tensor, interpret};
use windlass_passes::lower::schedule::Machine;
use windlass_passes::lower::{LowerOptions, lower};
use windlass_runtime::Pool;
use windlass_tests::aot::{Batch, Driver};
use windlass_tests::lowering::compare_within;

/// Features and units, of which the last panels have fewer.
const SIZES: [usize; 2] = [8, 68];

/// Steps and sequences: an even and an odd number of rounds, and one alone; sequences in blocks of one to seven.
const RUNS: [[usize; 2]; 6] = [[5, 2], [4, 3], [1, 1], [3, 4], [2, 5], [3, 13]];

fn layers() -> Vec<Recurrent> {
    let plain = |kind| Recurrent { bias: true, ..Recurrent::plain(kind) };
    let reset = Cell { linear_before_reset: true, ..Cell::plain(CellKind::Gru) };
    vec![
        plain(CellKind::Lstm),
        Recurrent {
            direction: Direction::Bidirectional,
            sequence_lens: true,
            peepholes: true,
            initial_h: true,
            initial_c: true,
            ..plain(CellKind::Lstm)
        },
        Recurrent { direction: Direction::Reverse, initial_h: true, ..plain(CellKind::Gru) },
        Recurrent { direction: Direction::Bidirectional, sequence_lens: true, ..plain(CellKind::Gru) },
        Recurrent { direction: Direction::Bidirectional, cell: reset, ..plain(CellKind::Gru) },
        Recurrent { direction: Direction::Reverse, sequence_lens: true, ..plain(CellKind::Rnn) },
    ]
}

/// A graph of one layer, and its inputs.
fn graph(layer: &Recurrent, [steps, batch]: [usize; 2]) -> (Graph, Vec<Tensor>) {
    let [features, size] = SIZES;
    let directions = if layer.direction == Direction::Bidirectional { 2 } else { 1 };
    let gates = layer.cell.kind.gates() * size;
    let mut state = 7u64;
    let mut random = |shape: &[usize]| {
        let values = (0..shape.iter().product()).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 24) - 0.5
        });
        Tensor::from_f64s(DType::F32, shape, &values.collect::<Vec<f64>>())
    };
    let mut inputs = vec![
        random(&[steps, batch, features]),
        random(&[directions, gates, features]),
        random(&[directions, gates, size]),
        random(&[directions, 2 * gates]),
    ];
    inputs.extend(layer.sequence_lens.then(|| Tensor::new(&[batch], &[3i32, 5, 0, 1, 2].repeat(3)[..batch])));
    inputs.extend(layer.initial_h.then(|| random(&[directions, batch, size])));
    inputs.extend(layer.initial_c.then(|| random(&[directions, batch, size])));
    inputs.extend(layer.peepholes.then(|| random(&[directions, 3 * size])));
    let mut b = Builder::new("layer");
    let values: Vec<_> =
        inputs.iter().enumerate().map(|(i, tensor)| b.input(&format!("x{i}"), tensor.ty())).collect();
    let outs = b.push(layer.clone(), &values, None).expect("the operands fit");
    for (i, &out) in outs.iter().enumerate() {
        b.output(&format!("y{i}"), out);
    }
    (b.finish().expect("the graph is valid"), inputs)
}

/// What code in memory gives, on a number of threads.
fn run(program: &Program, bits: usize, pool: &Pool, inputs: &[Tensor]) -> Vec<Tensor> {
    let options = Options { vector_bits: Some(bits), ..Options::default() };
    let (executable, _) = jit(program, &options).expect("the program compiles");
    let inputs: Vec<&[u8]> = inputs.iter().map(Tensor::bytes).collect();
    let zeros = || program.outputs.iter().map(|(_, ty)| Tensor::zeros(ty.dtype, &ty.shape()));
    let mut once: Option<Vec<Tensor>> = None;
    // Threads meet in another order each time.
    for _ in 0..20 {
        let mut results: Vec<Tensor> = zeros().collect();
        let mut outputs: Vec<&mut [u8]> = results.iter_mut().map(Tensor::bytes_mut).collect();
        executable.run(pool, &inputs, &mut outputs).expect("the program runs");
        assert!(once.as_ref().is_none_or(|once| same_bits(once, &results)));
        once = Some(results);
    }
    once.expect("it ran")
}

fn same_bits(a: &[Tensor], b: &[Tensor]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.bytes() == b.bytes())
}

#[test]
fn threads_share_the_steps_of_a_layer() {
    let widths = Target::host().vector_widths().expect("code is made for this machine");
    let pools = [1, 2, 3].map(Pool::new);
    let mut batch = Batch::default();
    let mut linked = Vec::new();
    for (layer, run_of) in layers().into_iter().flat_map(|layer| RUNS.map(|run| (layer.clone(), run))) {
        let (graph, inputs) = graph(&layer, run_of);
        let machine = Machine::with_vectors(*widths.last().expect("there is a width"));
        let program =
            lower(&graph, &LowerOptions { machine, ..LowerOptions::default() }).expect("the graph lowers");
        let shared = program.repeats.iter().map(|repeat| program.steps[repeat.first].flops).max();
        assert!(shared.is_some_and(|flops| flops >= 2 * 64 * 64), "{program}");
        let expected = run_program(&program, &inputs).expect("the loops run");
        let meaning = interpret(&graph, &inputs).expect("the graph runs");
        for (found, meant) in expected.iter().zip(&meaning) {
            compare_within(found, meant, 1e-5).expect("the loops give what the graph means");
        }
        for &bits in &widths {
            for pool in &pools {
                let found = run(&program, bits, pool, &inputs);
                assert!(
                    same_bits(&found, &expected),
                    "{layer:?}, {run_of:?}, {bits} bits, {} threads",
                    pool.threads()
                );
            }
        }
        let bits = widths[linked.len() % widths.len()];
        assert!(batch.add(&program, bits, &inputs, &expected).expect("the program compiles"));
        linked.push((layer, expected));
    }
    let found = Driver::new().run(batch).expect("the objects run");
    for (found, (layer, expected)) in found.iter().zip(&linked) {
        assert!(same_bits(found, expected), "{layer:?} as an object file");
    }
}
