//! Heat maps: numbers over an image as colours, red above 0 and blue below it, written as PNG files.
//!
//! ```
//! use windlass::Tensor;
//! use windlass::nn::heat_map::HeatMap;
//!
//! let elements = Tensor::new(&[1, 1, 3], &[-2f32, 0.0, 2.0]);
//! let pixels = HeatMap::of(&elements, 0)?.pixels();
//! assert_eq!(pixels, Tensor::new(&[1, 3, 3], &[59u8, 76, 192, 255, 255, 255, 180, 4, 38]));
//! # Ok::<(), windlass::Error>(())
//! ```

use std::path::Path;

use windlass_frontend::image::encode_png;
use windlass_ir::Tensor;

use super::data::rows;
use super::error::TrainingError;
use crate::error::Error;
use crate::files::write_whole;

/// Colours at -1, 0 and 1: the ends of a diverging map (Moreland, 2009), and white.
const COLORS: [[f64; 3]; 3] = [[59.0, 76.0, 192.0], [255.0, 255.0, 255.0], [180.0, 4.0, 38.0]];

/// Numbers of pixels, drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    map: Plane,
    image: Option<Plane>,
    magnified: usize,
}

/// A number for each pixel.
#[derive(Clone, Debug, PartialEq)]
struct Plane {
    height: usize,
    width: usize,
    values: Vec<f64>,
}

impl Plane {
    /// The sums over the channels of an example.
    fn of(x: &Tensor, example: usize, what: &'static str) -> Result<Plane, Error> {
        let (&[count, height, width] | &[count, height, width, _]) = x.shape() else {
            let expected =
                "images [examples, height, width] or [examples, height, width, channels]".to_string();
            return Err(TrainingError::Data { what: what.to_string(), expected, found: x.ty() }.into());
        };
        if example >= count {
            return Err(TrainingError::Row { row: example, count }.into());
        }
        let values = rows(x, &[example]).to_f64s();
        let channels = values.len() / (height * width).max(1);
        let values = values.chunks(channels.max(1)).map(|pixel| pixel.iter().sum()).collect();
        Ok(Plane { height, width, values })
    }

    /// The value at a pixel of a larger or smaller image.
    fn at(&self, (row, column): (usize, usize), (height, width): (usize, usize)) -> f64 {
        let (row, column) = (row * self.height / height, column * self.width / width);
        self.values[row * self.width + column]
    }

    /// Scaled so that the largest size is 1.
    fn scaled(mut self) -> Plane {
        let largest = self.values.iter().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
        if largest > 0.0 {
            self.values.iter_mut().for_each(|x| *x /= largest);
        }
        self
    }
}

impl HeatMap {
    /// Of the elements `[examples, height, width]` or `[examples, height, width, channels]` of an example, summed over
    /// channels; colours go as far as the largest size.
    pub fn of(elements: &Tensor, example: usize) -> Result<HeatMap, Error> {
        let map = Plane::of(elements, example, "the map")?.scaled();
        Ok(HeatMap { map, image: None, magnified: 1 })
    }

    /// Over an image of any size, pale and in grey; where the map is 0 one sees the image.
    pub fn over(mut self, images: &Tensor, example: usize) -> Result<HeatMap, Error> {
        self.image = Some(Plane::of(images, example, "the image")?.scaled());
        Ok(self)
    }

    /// With so many pixels down and across for each.
    pub fn magnified(mut self, times: usize) -> HeatMap {
        self.magnified = times.max(1);
        self
    }

    /// The picture: u8 `[height, width, 3]`.
    pub fn pixels(&self) -> Tensor {
        let base = self.image.as_ref().unwrap_or(&self.map);
        let size = (base.height * self.magnified, base.width * self.magnified);
        let mut pixels = Vec::with_capacity(size.0 * size.1 * 3);
        for pixel in 0..size.0 * size.1 {
            let place = (pixel / size.1, pixel % size.1);
            let value = self.map.at(place, size).clamp(-1.0, 1.0);
            let value = if value.is_nan() { 0.0 } else { value };
            let [low, white, high] = COLORS;
            let end = if value < 0.0 { low } else { high };
            // Under the colour is white, or the image between grey and white.
            let under =
                self.image.as_ref().map(|image| 127.0 + 128.0 * image.at(place, size).clamp(0.0, 1.0));
            for (channel, end) in end.iter().enumerate() {
                let under = under.unwrap_or(white[channel]);
                pixels.push((under + value.abs() * (end - under)).round() as u8);
            }
        }
        Tensor::new(&[size.0, size.1, 3], &pixels)
    }

    /// Writes the picture as a PNG file. What was there stays until the new file is complete.
    pub fn write_png(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        write_whole(path, &encode_png(&self.pixels())?)
            .map_err(|error| Error::Io { path: path.to_path_buf(), error })
    }
}
