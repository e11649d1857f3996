//! Training steps within a limit of memory: less of it, the same bits.

use windlass::{Options, Session, Tensor};
use windlass_frontend::nn::Step;
use windlass_tests::nets::{residual, step, transformer};

fn inputs(step: &Step) -> Vec<Tensor> {
    let mut inputs = step.state.initial(1);
    for (_, value) in &step.graph.inputs()[inputs.len()..] {
        let ty = step.graph.ty(*value);
        inputs.push(match ty.dtype.is_float() {
            true => Tensor::from_fn::<f32>(&ty.shape(), |i| (i * 7 % 17) as f32 / 17.0),
            false => Tensor::from_fn::<i32>(&ty.shape(), |i| (i % 10) as i32),
        });
    }
    inputs
}

fn check(step: &Step, share: f64) {
    let whole = Options::default();
    let before = windlass::compile::program(&step.graph, &whole).expect("it compiles").0.arena_bytes;
    let limit = (before as f64 * share) as u64;
    let less = Options { memory_limit: Some(limit), ..Options::default() };
    let after = windlass::compile::program(&step.graph, &less).expect("it compiles").0.arena_bytes;
    assert!(after <= limit, "{after} bytes of {before}, more than {limit}");
    let run = |options: Options| {
        let session = Session::new(step.graph.clone(), options).expect("it compiles");
        session.run(inputs(step)).expect("it runs").into_tensors()
    };
    assert!(run(whole) == run(less), "the results differ");
}

#[test]
fn residual_networks_take_less_memory() {
    let step = step(&[4, 16, 16, 3], &|net, x| residual(net, x, 8, 8)).expect("a step");
    check(&step, 0.5);
}

#[test]
fn transformers_take_less_memory() {
    let step = step(&[4, 16, 32], &|net, x| transformer(net, x, 4, 4)).expect("a step");
    check(&step, 0.4);
}
