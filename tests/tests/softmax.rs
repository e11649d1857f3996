//! Softmax finds the greatest of a row without heeding NaN: its sums must. Rows with NaN, infinities and zeros of both
//! signs give what the graph means, in code of every width, alone and within attention.

use windlass_codegen::{Options, Target, jit};
use windlass_ir::loops::interpret::run_program;
use windlass_ir::text::parse_graph;
use windlass_ir::{Tensor, interpret};
use windlass_passes::lower::schedule::Machine;
use windlass_passes::lower::{LowerOptions, lower};
use windlass_runtime::Pool;
use windlass_tests::lowering::compare_within;

const ROWS: usize = 64;
const KEYS: usize = 72;

/// Scores, some rows of which have one or more numbers that are not plain.
fn scores() -> Tensor {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let mut values: Vec<f32> = (0..ROWS * KEYS).map(|i| (i * 37 % 101) as f32 / 10.0 - 5.0).collect();
    let specials = [
        vec![(0, nan)],
        vec![(KEYS - 1, nan)],
        vec![(40, nan), (41, inf)],
        vec![(3, -inf), (70, -inf)],
        vec![(5, inf)],
        (0..KEYS).map(|at| (at, nan)).collect(),
        (0..KEYS).map(|at| (at, -inf)).collect(),
        (0..KEYS).map(|at| (at, if at == 17 { nan } else { -inf })).collect(),
        (0..KEYS).map(|at| (at, if at % 2 == 0 { 0.0 } else { -0.0 })).collect(),
    ];
    for (row, special) in specials.iter().enumerate() {
        special.iter().for_each(|&(at, value)| values[7 * row * KEYS + at] = value);
    }
    Tensor::new(&[1, ROWS, KEYS], &values)
}

#[test]
fn rows_that_are_not_plain_numbers() {
    let ones = |shape: &[usize]| Tensor::new(shape, &vec![1.0f32; shape.iter().product()]);
    for masked in [false, true] {
        let alone = format!(
            "graph @g(%x: f32[1, {ROWS}, {KEYS}]) {{ %y = softmax %x {{masked = {masked}}} return %y as \"y\" }}"
        );
        // The first gives rows of NaN to the second, which stands between two products.
        let chained = format!(
            "graph @g(%x: f32[1, {ROWS}, {KEYS}], %k: f32[1, {KEYS}, {KEYS}], %v: f32[1, {KEYS}, 8]) \
             {{ %p = softmax %x {{masked = {masked}}} %s = matmul %p, %k %q = softmax %s %y = matmul %q, %v return %y as \"y\" }}"
        );
        let more = [ones(&[1, KEYS, KEYS]), ones(&[1, KEYS, 8])];
        for (text, inputs) in [(alone, vec![scores()]), (chained, [&[scores()], &more[..]].concat())] {
            let graph = parse_graph(&text).unwrap_or_else(|e| panic!("{e:?}"));
            let meaning = interpret(&graph, &inputs).expect("the graph runs");
            for bits in Target::host().vector_widths().expect("code is made for this machine") {
                let options =
                    LowerOptions { machine: Machine::with_vectors(bits), ..LowerOptions::default() };
                let program = lower(&graph, &options).expect("the graph lowers");
                let expected = run_program(&program, &inputs).expect("the loops run");
                compare_within(&expected[0], &meaning[0], 1e-5).unwrap_or_else(|e| panic!("{text}: {e}"));
                let options = Options { vector_bits: Some(bits), ..Options::default() };
                let (executable, _) = jit(&program, &options).expect("the program compiles");
                let mut found = Tensor::zeros(expected[0].dtype(), expected[0].shape());
                let bytes: Vec<&[u8]> = inputs.iter().map(Tensor::bytes).collect();
                executable.run(&Pool::new(1), &bytes, &mut [found.bytes_mut()]).expect("the program runs");
                compare_within(&found, &meaning[0], 1e-5)
                    .unwrap_or_else(|e| panic!("{text}, {bits} bits: {e}"));
            }
        }
    }
}
