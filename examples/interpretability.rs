//! What a network looks at: which pixels speak for a digit, by integrated gradients, by gradients without their noise, and
//! by covering parts of the image. Writes a picture of each to a folder:
//! `cargo run --release --example interpretability -- pictures`.

#[path = "digits/data.rs"]
mod data;

use std::path::Path;

use windlass::nn::heat_map::HeatMap;
use windlass::nn::layers::{Activation, Conv, Dense, Flatten, Padding, Pooling};
use windlass::nn::sampling::take;
use windlass::nn::{Fit, Loss, Model, Network, Occlusion, Optimizer, SmoothGrad};
use windlass::{DType, Error, Options, Tensor};

/// Explains a digit held back, and says how far integrated gradients are from the score that they explain.
pub fn run(folder: Option<&Path>) -> Result<f64, Error> {
    let (x, y) = data::digits(false)?;
    let network = Network::sequential(&[8, 8, 1])
        .add(Conv::new(16, &[3, 3]).padding(Padding::Same).activation(Activation::Relu))
        .add(Pooling::max(&[2, 2]))
        .add(Flatten)
        .add(Dense::new(10));
    let mut model = Model::new(network, 1, Options::default())?;
    model.compile(Optimizer::adam(3e-3), Loss::SparseCategoricalCrossentropy { from_logits: true });
    model.fit(&x, &y, &Fit { epochs: 8, ..Fit::default() })?;

    let (x, y) = data::digits(true)?;
    let (image, class) = (take(&x, &[0])?, [y.to_ints()[0] as usize]);
    let black = Tensor::zeros(DType::F32, image.shape());
    let integrated = model.integrated_gradients(&image, &black, &class, 100)?;
    let smooth = model.smooth_grad(&image, &class, &SmoothGrad { samples: 50, deviation: 0.15, seed: 1 })?;
    let lost = model.occlusion(&image, &class, &Occlusion { window: (2, 2), ..Occlusion::default() })?;
    println!("a {}: the attributions add up to its score but for {:.1e}", class[0], integrated.gap[0].abs());
    if let Some(folder) = folder {
        let maps = [("integrated", &integrated.elements), ("smooth", &smooth), ("occlusion", &lost)];
        for (name, elements) in maps {
            let path = folder.join(format!("{name}.png"));
            HeatMap::of(elements, 0)?.over(&image, 0)?.magnified(24).write_png(&path)?;
            println!("wrote {}", path.display());
        }
    }
    Ok(integrated.gap[0].abs())
}

fn main() -> Result<(), Error> {
    run(std::env::args().nth(1).as_deref().map(Path::new)).map(|_| ())
}
