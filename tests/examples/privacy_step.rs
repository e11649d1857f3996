//! The time of private training steps beside ordinary ones: `cargo run --release -p windlass-tests --example
//! privacy_step`. The least of several runs, on one thread, in milliseconds.

use std::time::{Duration, Instant};

use windlass::nn::layers::{Activation, Conv, Dense, Flatten, Layer, Padding, Pooling};
use windlass::nn::{DpSgd, Loss, Microbatch, Net, Optimizer, Training, WeightedMean};
use windlass::{DType, Options, Session, Tensor, TensorType};
use windlass_ir::{Error, Value};

type Body = fn(&mut Net, Value) -> Result<Value, Error>;

fn mlp(net: &mut Net, x: Value) -> Result<Value, Error> {
    let x = Dense::new(512).activation(Activation::Relu).apply(net, x)?;
    let x = Dense::new(512).activation(Activation::Relu).apply(net, x)?;
    Dense::new(10).apply(net, x)
}

fn cnn(net: &mut Net, mut x: Value) -> Result<Value, Error> {
    for filters in [32, 64, 64] {
        let conv = Conv::new(filters, &[3, 3]).padding(Padding::Same).activation(Activation::Relu);
        x = conv.apply(net, x)?;
        x = Pooling::max(&[2, 2]).apply(net, x)?;
    }
    let x = Flatten.apply(net, x)?;
    let x = Dense::new(256).activation(Activation::Relu).apply(net, x)?;
    Dense::new(10).apply(net, x)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let steps: [(&str, usize, &[usize], Body); 2] =
        [("mlp 784-512-512-10", 64, &[784], mlp), ("cnn 32x32x3", 32, &[32, 32, 3], cnn)];
    for (name, batch, shape, body) in steps {
        let mut times = Vec::new();
        for privacy in [None, Some(DpSgd::new(1.0, 1.1, 1))] {
            let training = Training {
                loss: Loss::SparseCategoricalCrossentropy { from_logits: true },
                optimizer: Optimizer::sgd(0.1),
                weighted: WeightedMean::Count,
                privacy,
            };
            let step = training.batch_step(batch, |count| {
                let mut net = Net::new("step", DType::F32, true);
                let full: Vec<usize> = [count].iter().chain(shape).copied().collect();
                let x = net.input("x", TensorType::fixed(DType::F32, &full));
                let truth = net.input("y", TensorType::fixed(DType::I32, &[count]));
                let prediction = body(&mut net, x)?;
                Ok::<_, Error>(Microbatch { net: net.build(), prediction, truth, weights: None })
            })?;
            let session = Session::new(step.graph, Options::default())?;
            let mut inputs = step.state.initial(1);
            let full: Vec<usize> = [batch].iter().chain(shape).copied().collect();
            inputs.push(Tensor::from_fn::<f32>(&full, |i| (i % 17) as f32 / 17.0));
            inputs.push(Tensor::from_fn::<i32>(&[batch], |i| (i % 10) as i32));
            let mut best = Duration::MAX;
            for _ in 0..30 {
                let given = inputs.clone();
                let start = Instant::now();
                session.run(given)?;
                best = best.min(start.elapsed());
            }
            times.push(best.as_secs_f64() * 1e3);
        }
        println!("{name}: {:.2} ms, in private {:.2} ms", times[0], times[1]);
    }
    Ok(())
}
