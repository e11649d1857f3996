//! PNG images as tensors of bytes `[height, width, channels]`.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use windlass_ir::{DType, Limits, Tensor, TensorType};

use crate::error::Error;

/// Reads a PNG: u8 `[height, width, channels]` with 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA)
/// channels. Palettes become colours, samples of other widths become 8 bits.
pub fn read_png(path: impl AsRef<Path>, limits: &Limits) -> Result<Tensor, Error> {
    let path = path.as_ref();
    let fail = |error: png::DecodingError| Error::Image { path: path.into(), message: error.to_string() };
    let file = File::open(path).map_err(Error::file(path))?;
    let mut decoder = png::Decoder::new(BufReader::new(file));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(fail)?;
    let (width, height) = reader.info().size();
    let (color, _) = reader.output_color_type();
    let shape = [height as usize, width as usize, color.samples()];
    limits.check_type(&TensorType::fixed(DType::U8, &shape), || path.display().to_string())?;
    let size = reader.output_buffer_size().unwrap_or(usize::MAX);
    let mut tensor = Tensor::zeros(DType::U8, &shape);
    if size != tensor.len() {
        let message = format!("{size} bytes of samples for {}", tensor.ty());
        return Err(Error::Image { path: path.into(), message });
    }
    reader.next_frame(tensor.bytes_mut()).map_err(fail)?;
    Ok(tensor)
}

/// The bytes of a PNG file of u8 `[height, width, channels]`, with 1 to 4 channels as [`read_png`] gives them.
pub fn encode_png(image: &Tensor) -> Result<Vec<u8>, Error> {
    let fail = |message: String| Error::Image { path: "picture".into(), message };
    let (&[height, width, channels], DType::U8) = (image.shape(), image.dtype()) else {
        return Err(fail(format!("{} is no image u8[height, width, channels]", image.ty())));
    };
    let color = match channels {
        1 => png::ColorType::Grayscale,
        2 => png::ColorType::GrayscaleAlpha,
        3 => png::ColorType::Rgb,
        4 => png::ColorType::Rgba,
        _ => return Err(fail(format!("{channels} channels are more than a PNG has"))),
    };
    let size = |n: usize| u32::try_from(n).map_err(|_| fail(format!("{n} pixels are more than a PNG has")));
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, size(width)?, size(height)?);
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(image.as_slice::<u8>())?;
        writer.finish()
    });
    written.map_err(|error| fail(error.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, color: png::ColorType, depth: png::BitDepth, size: (u32, u32), samples: &[u8]) {
        let mut encoder = png::Encoder::new(File::create(path).unwrap(), size.0, size.1);
        encoder.set_color(color);
        encoder.set_depth(depth);
        encoder.write_header().unwrap().write_image_data(samples).unwrap();
    }

    #[test]
    fn reads_rows_of_pixels() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        write(&path, png::ColorType::Rgb, png::BitDepth::Eight, (2, 1), &[1, 2, 3, 4, 5, 6]);
        let image = read_png(&path, &Limits::default()).unwrap();
        assert_eq!(image, Tensor::new::<u8>(&[1, 2, 3], &[1, 2, 3, 4, 5, 6]));
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        for channels in 1..=4 {
            let image = Tensor::from_fn::<u8>(&[3, 2, channels], |i| (i * 37 % 256) as u8);
            std::fs::write(&path, encode_png(&image).unwrap()).unwrap();
            assert_eq!(read_png(&path, &Limits::default()).unwrap(), image);
        }
        assert!(encode_png(&Tensor::zeros(DType::U8, &[2, 2, 5])).is_err());
        assert!(encode_png(&Tensor::zeros(DType::F32, &[2, 2, 3])).is_err());
    }

    #[test]
    fn narrow_samples_become_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        write(&path, png::ColorType::Grayscale, png::BitDepth::One, (4, 1), &[0b1010_0000]);
        let image = read_png(&path, &Limits::default()).unwrap();
        assert_eq!(image, Tensor::new::<u8>(&[1, 4, 1], &[255, 0, 255, 0]));
    }

    #[test]
    fn refuses_what_is_no_image_or_too_large() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        std::fs::write(&path, b"not a png").unwrap();
        assert!(matches!(read_png(&path, &Limits::default()), Err(Error::Image { .. })));
        write(&path, png::ColorType::Grayscale, png::BitDepth::Eight, (2, 2), &[1, 2, 3, 4]);
        let limits = Limits { elements: 3, ..Limits::default() };
        assert!(matches!(read_png(&path, &limits), Err(Error::Graph(_))));
    }
}
