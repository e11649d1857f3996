//! What in an input speaks for a class: gradients without their noise, and what is lost when a part is covered.
//!
//! [`Model::integrated_gradients`] is the third of them. [`heat_map`](super::heat_map) draws what they find.
//!
//! ```
//! use windlass::nn::{Initializer, Model, Network, Occlusion, SmoothGrad, layers::{Dense, Flatten}};
//! use windlass::{Options, Tensor};
//!
//! // The score is the pixel at the top left.
//! let kernel = Initializer::Given(vec![1.0, 0.0, 0.0, 0.0]);
//! let layer = Dense::new(1).kernel_initializer(kernel);
//! let mut model = Model::new(Network::sequential(&[2, 2, 1]).add(Flatten).add(layer), 0, Options::default())?;
//! let image = Tensor::new(&[1, 2, 2, 1], &[3f32, 4.0, 5.0, 6.0]);
//! let lost = model.occlusion(&image, &[0], &Occlusion { window: (1, 1), ..Occlusion::default() })?;
//! assert_eq!(lost, Tensor::new(&[1, 2, 2], &[3f32, 0.0, 0.0, 0.0]));
//! assert_eq!(model.smooth_grad(&image, &[0], &SmoothGrad::default())?.to_f64s(), [1.0, 0.0, 0.0, 0.0]);
//! # Ok::<(), windlass::Error>(())
//! ```

use windlass_frontend::nn::initializers::Random;
use windlass_ir::{Tensor, TensorType};

use super::augment::drawn;
use super::error::TrainingError;
use super::model::Model;
use crate::error::Error;

/// The mean gradient of copies with noise (Smilkov et al., 2017).
#[derive(Clone, Debug, PartialEq)]
pub struct SmoothGrad {
    /// How many copies.
    pub samples: usize,
    /// The standard deviation of the noise.
    pub deviation: f64,
    /// What the noise follows from, beside the copy and the example.
    pub seed: u64,
}

impl Default for SmoothGrad {
    /// 25 copies with noise of 0.1.
    fn default() -> SmoothGrad {
        SmoothGrad { samples: 25, deviation: 0.1, seed: 0 }
    }
}

/// What a class's score loses when a window of an image is covered (Zeiler and Fergus, 2014).
#[derive(Clone, Debug, PartialEq)]
pub struct Occlusion {
    /// The window's height and width.
    pub window: (usize, usize),
    /// How far it moves down and across.
    pub stride: (usize, usize),
    /// What covers it.
    pub baseline: f64,
    /// How many images are looked at at a time.
    pub batch_size: usize,
}

impl Default for Occlusion {
    /// 3 x 3 pixels of 0, everywhere.
    fn default() -> Occlusion {
        Occlusion { window: (3, 3), stride: (1, 1), baseline: 0.0, batch_size: 64 }
    }
}

impl Model {
    /// The gradient of each example's class's score by the example, smoothed.
    pub fn smooth_grad(
        &mut self,
        x: &Tensor,
        classes: &[usize],
        smooth: &SmoothGrad,
    ) -> Result<Tensor, Error> {
        let count = x.shape().first().copied().unwrap_or(0);
        let (values, samples) = (x.to_f64s(), smooth.samples.max(1));
        let each = values.len() / count.max(1);
        let mut sum = vec![0.0; values.len()];
        for sample in 0..samples {
            let mut noisy = values.clone();
            for (number, example) in noisy.chunks_exact_mut(each.max(1)).enumerate() {
                let mut random = Random::new("smooth_grad", drawn(smooth.seed, sample, number));
                example.iter_mut().for_each(|x| *x += smooth.deviation * random.normal());
            }
            let (_, gradient) =
                self.score_gradient(&Tensor::from_f64s(x.dtype(), x.shape(), &noisy), classes)?;
            sum.iter_mut().zip(gradient.to_f64s()).for_each(|(sum, g)| *sum += g);
        }
        let mean: Vec<f64> = sum.iter().map(|sum| sum / samples as f64).collect();
        Ok(Tensor::from_f64s(x.dtype(), x.shape(), &mean))
    }

    /// For images `[examples, height, width, channels]` what the score of each one's class loses as a window moves over
    /// it: `[examples, places down, places across]`.
    pub fn occlusion(
        &mut self,
        x: &Tensor,
        classes: &[usize],
        occlusion: &Occlusion,
    ) -> Result<Tensor, Error> {
        let count = x.shape().first().copied().unwrap_or(0);
        let unfit = |what: &str, expected: String, found| {
            Error::from(TrainingError::Data { what: what.to_string(), expected, found })
        };
        let &[_, height, width, channels] = x.shape() else {
            return Err(unfit("x", "images [examples, height, width, channels]".to_string(), x.ty()));
        };
        if classes.len() != count {
            let found = TensorType::fixed(windlass_ir::DType::I32, &[classes.len()]);
            return Err(unfit("classes", format!("{count} rows"), found));
        }
        let (window, stride) = (occlusion.window, occlusion.stride);
        let fits = (1..=height).contains(&window.0) && (1..=width).contains(&window.1);
        if !fits || stride.0 == 0 || stride.1 == 0 {
            let (expected, found) = (
                format!("a part of {height} x {width} pixels, in steps"),
                format!("{window:?} by {stride:?}"),
            );
            return Err(TrainingError::Setting { what: "the window", expected, found }.into());
        }
        let places = ((height - window.0) / stride.0 + 1, (width - window.1) / stride.1 + 1);
        let whole = self.scores(x, classes, occlusion.batch_size)?;
        let values = x.to_f64s();
        let mut lost = vec![0.0; count * places.0 * places.1];
        for place in 0..places.0 * places.1 {
            let (top, left) = (place / places.1 * stride.0, place % places.1 * stride.1);
            let mut covered = values.clone();
            for row in 0..count * window.0 {
                let (example, row) = (row / window.0, top + row % window.0);
                let begin = ((example * height + row) * width + left) * channels;
                covered[begin..][..window.1 * channels].fill(occlusion.baseline);
            }
            let covered = Tensor::from_f64s(x.dtype(), x.shape(), &covered);
            let scores = self.scores(&covered, classes, occlusion.batch_size)?;
            for (example, (whole, score)) in whole.iter().zip(scores).enumerate() {
                lost[example * places.0 * places.1 + place] = whole - score;
            }
        }
        Ok(Tensor::from_f64s(x.dtype(), &[count, places.0, places.1], &lost))
    }

    /// The prediction's element of each example's class.
    fn scores(&mut self, x: &Tensor, classes: &[usize], batch_size: usize) -> Result<Vec<f64>, Error> {
        let prediction = self.predict(x, batch_size)?;
        let columns = prediction.shape().last().copied().unwrap_or(1).max(1);
        let values = prediction.to_f64s();
        let score = |(row, &class): (usize, &usize)| {
            let unknown = TrainingError::Row { row: class, count: columns };
            if class < columns { Ok(values[row * columns + class]) } else { Err(unknown.into()) }
        };
        classes.iter().enumerate().map(score).collect()
    }
}
