//! Augmentation: examples changed at random, anew in each epoch.
//!
//! What happens to an example follows from the seed, the epoch and the example's number alone, so it does not depend on
//! the batch that the example is in, nor on threads.
//!
//! ```
//! use windlass::nn::{Augment, Augmentation};
//! use windlass::Tensor;
//!
//! let augment = Augment::new(7, [Augmentation::FlipHorizontal, Augmentation::Crop { padding: 1 }]);
//! let image = Tensor::from_fn::<f32>(&[1, 4, 4, 1], |i| i as f32);
//! let first = augment.apply(&image, &[0], 0)?;
//! assert_eq!(first, augment.apply(&image, &[0], 0)?);
//! assert_ne!(first, augment.apply(&image, &[0], 1)?);
//! # Ok::<(), windlass::Error>(())
//! ```

use windlass_frontend::nn::initializers::Random;
use windlass_ir::Tensor;

use super::error::TrainingError;
use crate::error::Error;

/// One way to change an example. All but noise are for images `[height, width, channels]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Augmentation {
    /// Left becomes right, for one of two.
    FlipHorizontal,
    /// Top becomes bottom, for one of two.
    FlipVertical,
    /// A window of the image's own size, anywhere in the image with a border of so many zeros.
    Crop {
        /// How wide the border is.
        padding: usize,
    },
    /// Turned about its middle by an angle of at most so many degrees, with bilinear interpolation; outside are zeros.
    Rotate {
        /// How many.
        degrees: f64,
    },
    /// Moved in each direction by at most this share of its size, with bilinear interpolation; outside are zeros.
    Translate {
        /// Which.
        share: f64,
    },
    /// Each element plus a number of the normal distribution about 0.
    GaussianNoise {
        /// Its standard deviation.
        deviation: f64,
    },
}

/// Changes that examples go through, one after another.
#[derive(Clone, Debug, PartialEq)]
pub struct Augment {
    /// What they follow from, beside the epoch and the example.
    pub seed: u64,
    /// The changes, in order.
    pub steps: Vec<Augmentation>,
}

impl Augment {
    /// With a seed.
    pub fn new(seed: u64, steps: impl IntoIterator<Item = Augmentation>) -> Augment {
        Augment { seed, steps: steps.into_iter().collect() }
    }

    /// Examples, changed; `numbers` says which ones they are.
    pub fn apply(&self, x: &Tensor, numbers: &[usize], epoch: usize) -> Result<Tensor, Error> {
        let image = match *x.shape() {
            [_, height, width, channels] => Some(Image { height, width, channels }),
            _ => None,
        };
        let unfit = || {
            let expected = "images [examples, height, width, channels], to be augmented".to_string();
            TrainingError::Data { what: "x".to_string(), expected, found: x.ty() }
        };
        let count = x.shape().first().copied().unwrap_or(0);
        let mut values = x.to_f64s();
        let each = values.len() / count.max(1);
        for (example, &number) in values.chunks_exact_mut(each.max(1)).zip(numbers) {
            let mut random = Random::new("augment", drawn(self.seed, epoch, number));
            for step in &self.steps {
                match step {
                    Augmentation::GaussianNoise { deviation } => {
                        example.iter_mut().for_each(|x| *x += deviation * random.normal());
                    }
                    step => image.ok_or_else(unfit)?.change(*step, &mut random, example),
                }
            }
        }
        Ok(Tensor::from_f64s(x.dtype(), x.shape(), &values))
    }
}

/// A seed for one example in one epoch.
pub(super) fn drawn(seed: u64, epoch: usize, example: usize) -> u64 {
    let mixed = seed.wrapping_add((epoch as u64).wrapping_mul(0xd134_2543_de82_ef95));
    mixed.wrapping_add((example as u64).wrapping_mul(0xaf25_1af3_b0f0_25b5))
}

/// The sizes of an image.
#[derive(Clone, Copy)]
struct Image {
    height: usize,
    width: usize,
    channels: usize,
}

impl Image {
    /// Moves the pixels of an image.
    fn change(self, step: Augmentation, random: &mut Random, pixels: &mut [f64]) {
        let (bottom, right) = (self.height as f64 - 1.0, self.width as f64 - 1.0);
        // Evenly between -1 and 1.
        let mut even = |limit: f64| limit * (2.0 * random.unit() - 1.0);
        let moved = match step {
            Augmentation::FlipHorizontal if even(1.0) < 0.0 => self.taken(pixels, |r, c| (r, right - c)),
            Augmentation::FlipVertical if even(1.0) < 0.0 => self.taken(pixels, |r, c| (bottom - r, c)),
            Augmentation::Crop { padding } => {
                let mut shift = || (random.bits() % (2 * padding as u64 + 1)) as f64 - padding as f64;
                let (down, across) = (shift(), shift());
                self.taken(pixels, |r, c| (r + down, c + across))
            }
            Augmentation::Translate { share } => {
                let (down, across) = (even(share) * self.height as f64, even(share) * self.width as f64);
                self.taken(pixels, |r, c| (r + down, c + across))
            }
            Augmentation::Rotate { degrees } => {
                let (sin, cos) = even(degrees).to_radians().sin_cos();
                let (middle, center) = (bottom / 2.0, right / 2.0);
                self.taken(pixels, |r, c| {
                    let (r, c) = (r - middle, c - center);
                    (cos * r - sin * c + middle, sin * r + cos * c + center)
                })
            }
            Augmentation::FlipHorizontal
            | Augmentation::FlipVertical
            | Augmentation::GaussianNoise { .. } => {
                return;
            }
        };
        pixels.copy_from_slice(&moved);
    }

    /// Each pixel from where `from` says, between pixels by bilinear interpolation.
    fn taken(self, pixels: &[f64], from: impl Fn(f64, f64) -> (f64, f64)) -> Vec<f64> {
        let at = |row: f64, column: f64, channel: usize| {
            let inside =
                (0.0..self.height as f64).contains(&row) && (0.0..self.width as f64).contains(&column);
            let place = (row as usize * self.width + column as usize) * self.channels + channel;
            if inside { pixels[place] } else { 0.0 }
        };
        let mut moved = Vec::with_capacity(pixels.len());
        for pixel in 0..self.height * self.width {
            let (row, column) = from((pixel / self.width) as f64, (pixel % self.width) as f64);
            let (top, left) = (row.floor(), column.floor());
            let (down, across) = (row - top, column - left);
            for channel in 0..self.channels {
                let along = |row: f64| match across {
                    0.0 => at(row, left, channel),
                    _ => (1.0 - across) * at(row, left, channel) + across * at(row, left + 1.0, channel),
                };
                moved.push(match down {
                    0.0 => along(top),
                    _ => (1.0 - down) * along(top) + down * along(top + 1.0),
                });
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_between_pixels_are_between_their_values() {
        let image = Image { height: 2, width: 3, channels: 1 };
        let pixels = [0.0, 4.0, 8.0, 2.0, 6.0, 10.0];
        // Half a pixel to the right: what comes in from outside is 0.
        assert_eq!(image.taken(&pixels, |r, c| (r, c + 0.5)), [2.0, 6.0, 4.0, 4.0, 8.0, 5.0]);
        assert_eq!(image.taken(&pixels, |r, c| (r + 0.25, c)), [0.5, 4.5, 8.5, 1.5, 4.5, 7.5]);
        // A quarter turn of a square about its middle.
        let square = Image { height: 2, width: 2, channels: 1 };
        assert_eq!(square.taken(&[1.0, 2.0, 3.0, 4.0], |r, c| (c, 1.0 - r)), [2.0, 4.0, 1.0, 3.0]);
    }
}
