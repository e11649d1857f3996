//! A graph's loops held against its meaning, and its code against the loops, bit for bit, on any number of threads and at
//! every width of vectors.

use windlass_codegen::{Options, Target, jit};
use windlass_ir::loops::Program;
use windlass_ir::loops::interpret::run_program;
use windlass_ir::text::parse_graph;
use windlass_ir::{Graph, Tensor, Value, interpret};
use windlass_passes::lower::schedule::Machine;
use windlass_passes::lower::{LowerOptions, lower};
use windlass_runtime::Pool;

use crate::lowering::compare_within;

/// Checks a graph on numbers. Its loops.
pub fn check(text: &str) -> Program {
    check_graph(&parse_graph(text).unwrap_or_else(|e| panic!("{e} in {text}")), text)
}

/// The same of a graph that stands for itself under this name.
pub fn check_graph(graph: &Graph, name: &str) -> Program {
    let numbers = |(_, value): &(String, Value)| {
        let ty = graph.ty(*value);
        let values: Vec<f64> = (0..ty.as_len().unwrap()).map(|i| ((i * 7919) % 61) as f64 / 16.0).collect();
        Tensor::from_f64s(ty.dtype, &ty.shape(), &values)
    };
    let inputs: Vec<Tensor> = graph.inputs().iter().map(numbers).collect();
    let meant = interpret(graph, &inputs).unwrap();
    let widths = Target::host().vector_widths().unwrap();
    let machine = Machine::with_vectors(*widths.last().unwrap());
    let program = lower(graph, &LowerOptions { machine, ..LowerOptions::default() }).unwrap();
    let expected = run_program(&program, &inputs).unwrap();
    compare_within(&expected[0], &meant[0], 1e-5).unwrap_or_else(|e| panic!("{e} in {name}"));
    let inputs: Vec<&[u8]> = inputs.iter().map(Tensor::bytes).collect();
    for bits in widths {
        let options = Options { vector_bits: Some(bits), ..Options::default() };
        let (executable, _) = jit(&program, &options).unwrap();
        for threads in [1, 2, 3] {
            let mut found = Tensor::zeros(expected[0].dtype(), expected[0].shape());
            // Whatever the memory of results held, all of it is written.
            found.bytes_mut().fill(0xa5);
            executable.run(&Pool::new(threads), &inputs, &mut [found.bytes_mut()]).unwrap();
            assert!(found.bytes() == expected[0].bytes(), "{bits} bits, {threads} threads: {name}");
        }
    }
    program
}
