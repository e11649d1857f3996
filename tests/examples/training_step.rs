//! Writes the training steps that are benchmarked as IR text: `cargo run --example training_step -- DIR`.

use std::path::PathBuf;

use windlass_frontend::nn::layers::{Activation, Conv, Dense, Flatten, Layer, Lstm, Pooling};
use windlass_frontend::nn::{Loss, Net, Optimizer, Training, WeightedMean};
use windlass_ir::{DType, Error, TensorType, Value, text::print_graph};

type Body = fn(&mut Net, Value) -> Result<Value, Error>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("where to?")?);
    let steps: [(&str, &[usize], Body); 3] = [
        ("mlp", &[64, 784], |net, x| {
            let x = Dense::new(512).activation(Activation::Relu).apply(net, x)?;
            let x = Dense::new(512).activation(Activation::Relu).apply(net, x)?;
            Dense::new(10).apply(net, x)
        }),
        ("cnn", &[32, 32, 32, 3], |net, x| {
            let x = Conv::new(32, &[3, 3]).activation(Activation::Relu).apply(net, x)?;
            let x = Pooling::max(&[2, 2]).apply(net, x)?;
            let x = Conv::new(64, &[3, 3]).activation(Activation::Relu).apply(net, x)?;
            let x = Pooling::max(&[2, 2]).apply(net, x)?;
            let x = Flatten.apply(net, x)?;
            let x = Dense::new(128).activation(Activation::Relu).apply(net, x)?;
            Dense::new(32).apply(net, x)
        }),
        ("lstm", &[16, 64, 256], |net, x| {
            let x = Lstm::new(256).apply(net, x)?;
            Dense::new(10).apply(net, x)
        }),
    ];
    for (name, shape, body) in steps {
        let mut net = Net::new(name, DType::F32, true);
        let x = net.input("x", TensorType::fixed(DType::F32, shape));
        let y = net.input("y", TensorType::fixed(DType::I32, &shape[..1]));
        let prediction = body(&mut net, x)?;
        let training = Training {
            loss: Loss::SparseCategoricalCrossentropy { from_logits: true },
            optimizer: Optimizer::adam(1e-3),
            weighted: WeightedMean::Count,
            privacy: None,
        };
        let step = training.step(net.build(), prediction, y, None)?;
        std::fs::write(folder.join(format!("{name}.wir")), print_graph(&step.graph))?;
    }
    Ok(())
}
