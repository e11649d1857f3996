//! Machine code gives the bits of the loop interpreter, on random graphs and for any number of threads.

use windlass_codegen::{Options as CodeOptions, jit};
use windlass_ir::Tensor;
use windlass_ir::loops::expand_kernel;
use windlass_ir::loops::interpret::run_program;
use windlass_ir::text::print_graph;
use windlass_passes::lower::{LowerOptions, lower};
use windlass_runtime::Pool;
use windlass_tests::generate::{Generated, Options, generate, seeds};

/// What differs, if anything does.
fn check(generated: &Generated, pools: &[Pool]) -> Result<(), String> {
    let program = lower(&generated.graph, &LowerOptions::default()).map_err(|e| e.to_string())?;
    let mut expanded = program.clone();
    expanded.kernels.iter_mut().for_each(|kernel| *kernel = expand_kernel(kernel));
    let expected = run_program(&expanded, &generated.inputs).map_err(|e| e.to_string())?;
    let (executable, _) = jit(&program, &CodeOptions::default()).map_err(|e| e.to_string())?;
    let inputs: Vec<&[u8]> = generated.inputs.iter().map(Tensor::bytes).collect();
    for pool in pools {
        let mut found: Vec<Tensor> =
            expected.iter().map(|tensor| Tensor::zeros(tensor.dtype(), tensor.shape())).collect();
        let mut outputs: Vec<&mut [u8]> = found.iter_mut().map(Tensor::bytes_mut).collect();
        executable.run(pool, &inputs, &mut outputs).map_err(|e| e.to_string())?;
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            if found != expected {
                return Err(format!("output {i} is {found:?}, as loops {expected:?}"));
            }
        }
    }
    Ok(())
}

#[test]
fn machine_code_gives_the_bits_of_the_loops() {
    let options = Options { late: false, named: false, ..Options::default() };
    let pools = [Pool::new(1), Pool::new(2)];
    let mut failures = Vec::new();
    for seed in seeds(300) {
        let generated = generate(seed, &options);
        if let Err(message) = check(&generated, &pools) {
            failures.push(format!("== seed {seed}: {message}\n{}", print_graph(&generated.graph)));
        }
    }
    let count = failures.len();
    failures.truncate(8);
    assert!(count == 0, "{count} graphs differ, the first of which:\n{}", failures.join("\n"));
}
