//! Inputs, and the check of a graph against its program.

use windlass_ir::loops::interpret::run_program;
use windlass_ir::loops::{print_kernel, verify_kernel};
use windlass_ir::{Builder, DType, Graph, Tensor, TensorType, Value, interpret};
use windlass_passes::lower::{LowerOptions, lower};

/// A tensor of small values that repeat with no simple period.
pub fn ramp(shape: &[usize], salt: usize) -> Tensor {
    Tensor::from_fn::<f32>(shape, |i| (((i * 37 + salt * 11) % 101) as f32 - 50.0) / 40.0)
}

pub fn f32s(shape: &[usize]) -> TensorType {
    TensorType::fixed(DType::F32, shape)
}

pub fn check(name: &str, graph: &Graph) {
    let inputs: Vec<Tensor> =
        graph.inputs().iter().enumerate().map(|(i, (_, v))| ramp(&graph.ty(*v).shape(), i)).collect();
    let expected = interpret(graph, &inputs).expect("the graph runs");
    for fuse in [false, true] {
        let program =
            lower(graph, &LowerOptions { fuse, ..LowerOptions::default() }).expect("the graph lowers");
        for kernel in &program.kernels {
            verify_kernel(kernel)
                .unwrap_or_else(|e| panic!("{name} (fuse {fuse}): {e}\n{}", print_kernel(kernel)));
        }
        let dump = || program.kernels.iter().map(print_kernel).collect::<String>();
        let found = run_program(&program, &inputs)
            .unwrap_or_else(|e| panic!("{name} (fuse {fuse}): {e}\n{}", dump()));
        for (e, f) in expected.iter().zip(&found) {
            assert_eq!(e.ty(), f.ty(), "{name}");
            let (e, f) = (e.to_f64s(), f.to_f64s());
            let scale = e.iter().fold(1e-6f64, |m, x| m.max(x.abs()));
            for (i, (a, b)) in e.iter().zip(&f).enumerate() {
                let close = (a - b).abs() <= 1e-5 * scale || (a.is_nan() && b.is_nan());
                assert!(close, "{name} (fuse {fuse}): element {i} is {b}, expected {a}\n{}", dump());
            }
        }
    }
}

/// Builds a graph and checks it.
pub fn build(name: &str, body: impl FnOnce(&mut Builder) -> Vec<Value>) -> Graph {
    let mut b = Builder::new(name);
    let outs = body(&mut b);
    for (i, out) in outs.into_iter().enumerate() {
        b.output(&format!("y{i}"), out);
    }
    let graph = b.finish().expect("the graph is valid");
    check(name, &graph);
    graph
}
