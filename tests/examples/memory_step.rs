//! Memory and time of training steps as they are and within limits: `cargo run --release -p windlass-tests --example
//! memory_step`. MiB of arena, and the least of several runs on one thread in milliseconds.

use std::time::{Duration, Instant};

use windlass::{Options, Session, Tensor, compile};
use windlass_frontend::nn::Step;
use windlass_tests::nets::{residual, step, transformer};

fn measure(name: &str, step: &Step) -> Result<(), Box<dyn std::error::Error>> {
    let mut inputs = step.state.initial(1);
    for (_, value) in &step.graph.inputs()[inputs.len()..] {
        let ty = step.graph.ty(*value);
        inputs.push(match ty.dtype.is_float() {
            true => Tensor::from_fn::<f32>(&ty.shape(), |i| (i * 7 % 17) as f32 / 17.0),
            false => Tensor::from_fn::<i32>(&ty.shape(), |i| (i % 10) as i32),
        });
    }
    let whole = compile::program(&step.graph, &Options::default())?.0.arena_bytes;
    for share in [1.0, 0.75, 0.5, 0.35, 0.25] {
        let limit = (share < 1.0).then_some((whole as f64 * share) as u64);
        let options = Options { memory_limit: limit, ..Options::default() };
        let start = Instant::now();
        let arena = compile::program(&step.graph, &options)?.0.arena_bytes;
        let planned = start.elapsed();
        let session = Session::new(step.graph.clone(), options)?;
        let mut best = Duration::MAX;
        for _ in 0..8 {
            let given = inputs.clone();
            let start = Instant::now();
            session.run(given)?;
            best = best.min(start.elapsed());
        }
        println!(
            "{name}, limit {:3.0} %: {:6.1} MiB, {:7.2} ms a step, {:5.0} ms to plan",
            share * 100.0,
            arena as f64 / f64::from(1 << 20),
            best.as_secs_f64() * 1e3,
            planned.as_secs_f64() * 1e3
        );
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cnn = step(&[16, 32, 32, 3], &|net, x| residual(net, x, 16, 16))?;
    measure("16 residual blocks", &cnn)?;
    let layers = step(&[8, 128, 128], &|net, x| transformer(net, x, 4, 4))?;
    measure("4 transformer layers", &layers)?;
    Ok(())
}
