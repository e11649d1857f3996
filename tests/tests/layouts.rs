//! Data large enough to be read in another order than it is written: the loops agree with the graph's meaning, and code has
//! the loops' bits on any number of threads, at every width of vectors.

use windlass_codegen::{Options, Target, jit};
use windlass_ir::loops::Program;
use windlass_ir::loops::interpret::run_program;
use windlass_ir::text::parse_graph;
use windlass_ir::{Tensor, Value, interpret};
use windlass_passes::lower::schedule::Machine;
use windlass_passes::lower::{LowerOptions, lower};
use windlass_runtime::Pool;
use windlass_tests::lowering::compare_within;

/// Checks a graph on numbers. Its loops.
fn check(text: &str) -> Program {
    let graph = parse_graph(text).unwrap_or_else(|e| panic!("{e} in {text}"));
    let numbers = |(_, value): &(String, Value)| {
        let ty = graph.ty(*value);
        let values: Vec<f64> = (0..ty.as_len().unwrap()).map(|i| ((i * 7919) % 61) as f64 / 16.0).collect();
        Tensor::from_f64s(ty.dtype, &ty.shape(), &values)
    };
    let inputs: Vec<Tensor> = graph.inputs().iter().map(numbers).collect();
    let meant = interpret(&graph, &inputs).unwrap();
    let widths = Target::host().vector_widths().unwrap();
    let machine = Machine::with_vectors(*widths.last().unwrap());
    let program = lower(&graph, &LowerOptions { machine, ..LowerOptions::default() }).unwrap();
    let expected = run_program(&program, &inputs).unwrap();
    compare_within(&expected[0], &meant[0], 1e-5).unwrap_or_else(|e| panic!("{e} in {text}"));
    let inputs: Vec<&[u8]> = inputs.iter().map(Tensor::bytes).collect();
    for bits in widths {
        let options = Options { vector_bits: Some(bits), ..Options::default() };
        let (executable, _) = jit(&program, &options).unwrap();
        for threads in [1, 2, 3] {
            let mut found = Tensor::zeros(expected[0].dtype(), expected[0].shape());
            executable.run(&Pool::new(threads), &inputs, &mut [found.bytes_mut()]).unwrap();
            assert!(found.bytes() == expected[0].bytes(), "{bits} bits, {threads} threads: {text}");
        }
    }
    program
}

#[test]
fn transposed_operands() {
    for (dtype, shape, perm) in [
        ("f32", "[70, 130]", "[1, 0]"),
        ("f32", "[600, 523]", "[1, 0]"),
        ("f64", "[3, 64, 65]", "[0, 2, 1]"),
        ("u8", "[129, 300]", "[1, 0]"),
        ("f16", "[2, 17, 5, 90]", "[3, 1, 0, 2]"),
        ("f32", "[32, 16, 16, 24]", "[3, 1, 2, 0]"),
    ] {
        check(&format!(
            "graph @g(%x: {dtype}{shape}) {{
               %0 = transpose %x {{perm = {perm}}}
               return %0 as \"y\"
             }}"
        ));
        check(&format!(
            "graph @g(%x: {dtype}{shape}) {{
               %0 = transpose %x {{perm = {perm}}}
               %1 = add %0, %0
               %2 = cast %1 {{to = f32}}
               return %2 as \"y\"
             }}"
        ));
    }
}

#[test]
fn transposed_operands_with_borders() {
    for (shape, perm, pads) in [
        ("[300, 70]", "[1, 0]", "[2, 3, 1, 5]"),
        ("[16, 8, 9, 40]", "[3, 1, 2, 0]", "[0, 1, 1, 0, 0, 1, 1, 0]"),
        ("[16, 8, 9, 40]", "[3, 1, 2, 0]", "[1, 0, 0, 3, 2, 1, 0, 1]"),
    ] {
        check(&format!(
            "graph @g(%x: f32{shape}) {{
               %0 = transpose %x {{perm = {perm}}}
               %1 = constant {{value = f32[] [1.5]}}
               %2 = pad %0, %1 {{pads = {pads}}}
               return %2 as \"y\"
             }}"
        ));
    }
}

#[test]
fn left_operands_whose_steps_are_pages_apart() {
    let program = check(
        "graph @g(%x: f32[130, 1024], %w: f32[130, 256]) {
           %0 = matmul %x, %w {trans_a = true}
           return %0 as \"y\"
         }",
    );
    let text = program.to_string();
    assert_eq!(text.matches("kernel k").count(), 3, "both operands are laid out: {text}");
}

#[test]
fn means_of_channels_that_are_packed_with_the_batch() {
    let program = check(
        "graph @g(%x: f32[16, 2, 64, 16]) {
           %0 = reduce_mean %x {axes = [0, 1, 2], keepdims = true}
           %1 = sub %x, %0
           %2 = transpose %1 {perm = [2, 1, 0, 3]}
           %3 = reshape %2 {shape = [64, 2, 256]}
           return %3 as \"y\"
         }",
    );
    // A mean is made once for each channel, and not for each channel of each example.
    assert!(!program.to_string().contains(")%16"), "{program}");
}
