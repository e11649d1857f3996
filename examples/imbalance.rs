//! Rare classes: of five of the ten digits all but six examples are lost. Three ways to learn them nevertheless, compared by
//! the mean recall of the classes: `cargo run --release --example imbalance`.

#[path = "digits/data.rs"]
mod data;

use windlass::nn::layers::{Activation, Dense, Flatten};
use windlass::nn::sampling::{balanced_class_weight, over_sample, take};
use windlass::nn::{Augment, Augmentation, ConfusionMatrix, Fit, Loss, Model, Network, Of, Optimizer, Order};
use windlass::{Error, Options, Tensor};

const CROSSENTROPY: Loss = Loss::SparseCategoricalCrossentropy { from_logits: true };

/// The confusion matrix of the digits held back.
fn trained(loss: Loss, fit: &Fit<'_>, x: &Tensor, y: &Tensor) -> Result<ConfusionMatrix, Error> {
    let network = Network::sequential(&[8, 8, 1])
        .add(Flatten)
        .add(Dense::new(32).activation(Activation::Relu))
        .add(Dense::new(10));
    let mut model = Model::new(network, 1, Options::default())?;
    model.compile(Optimizer::adam(3e-3), loss);
    model.fit(x, y, fit)?;
    let (x, y) = data::digits(true)?;
    Ok(ConfusionMatrix::of_scores(&model.predict(&x, 60)?, &y))
}

/// The mean recall without and with each remedy.
pub fn run() -> Result<Vec<(&'static str, f64)>, Error> {
    let (x, y) = data::digits(false)?;
    let mut kept = [0; 10];
    let mut rows: Vec<usize> = Vec::new();
    for (row, class) in y.to_ints().into_iter().enumerate() {
        kept[class as usize] += 1;
        if class % 2 == 0 || kept[class as usize] <= 6 {
            rows.push(row);
        }
    }
    let (x, y) = (take(&x, &rows)?, take(&y, &rows)?);
    let fit = || Fit { epochs: 20, ..Fit::default() };
    let weighted = Fit { class_weight: Some(balanced_class_weight(&y)?), ..fit() };
    let focal = Loss::SparseCategoricalFocal { from_logits: true, gamma: 2.0 };
    let shifts = Augment::new(1, [Augmentation::Translate { share: 0.1 }]);
    let drawn = (0..20).map(|epoch| over_sample(&y, epoch)).collect::<Result<_, _>>()?;
    let over_sampled = Fit { order: Order::Listed(drawn), augment: Some(shifts), ..fit() };
    let mut recalls = Vec::new();
    for (name, loss, fit) in [
        ("as it is", CROSSENTROPY, fit()),
        ("balanced weights", CROSSENTROPY, Fit { class_weight: weighted.class_weight.clone(), ..fit() }),
        ("balanced weights, focal loss", focal, weighted),
        ("drawn evenly, shifted", CROSSENTROPY, over_sampled),
    ] {
        let matrix = trained(loss, &fit, &x, &y)?;
        println!("{name}: accuracy {:.3}, mean recall {:.3}", matrix.accuracy(), matrix.recall(Of::Macro));
        recalls.push((name, matrix.recall(Of::Macro)));
    }
    Ok(recalls)
}

fn main() -> Result<(), Error> {
    run().map(|_| ())
}
