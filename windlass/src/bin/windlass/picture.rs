//! An image as a model's input: laid out and scaled as the input's type asks.

use windlass::{DType, Dim, Tensor, TensorType};

/// Lays out an image, u8 `[height, width, channels]`, for an input of this type.
///
/// A type of rank 4 is a batch of one, `[1, C, H, W]` or `[1, H, W, C]`, of rank 3 one image, of rank 2
/// its grey values. Channels come first unless only the last dimension is 1 or 3. Colours become grey
/// by their luminance (ITU-R BT.601), grey is repeated for three channels, transparency is dropped.
/// A byte becomes value/255 for floats and stays as it is for u8. Nothing is resized.
pub fn lay_out(image: &Tensor, ty: &TensorType) -> Result<Tensor, String> {
    let &[height, width, channels] = image.shape() else {
        return Err(format!("an image has height, width and channels, found {}", image.ty()));
    };
    let colors = if channels >= 3 { 3 } else { 1 };
    let is_channels = |dim: &Dim| matches!(dim, Dim::Fixed(1 | 3));
    let leading = ty.rank().saturating_sub(3);
    let channels_last = match ty.dims.get(leading..) {
        Some([first, _, last]) => !is_channels(first) && is_channels(last),
        _ => false,
    };
    let wanted = match ty.rank() {
        2 => 1,
        3 | 4 => {
            let dim = &ty.dims[if channels_last { ty.rank() - 1 } else { leading }];
            match dim.as_fixed() {
                None => colors,
                Some(n @ (1 | 3)) => n,
                Some(n) => return Err(format!("an image has 1 or 3 channels, the input takes {n} ({ty})")),
            }
        }
        rank => return Err(format!("an image does not fit an input of rank {rank} ({ty})")),
    };
    let pixels = image.as_slice::<u8>();
    let sample = |y: usize, x: usize, c: usize| -> u8 {
        let pixel = &pixels[(y * width + x) * channels..][..channels];
        match (colors, wanted) {
            (3, 1) => luminance(pixel),
            (1, _) => pixel[0],
            _ => pixel[c],
        }
    };
    let mut bytes = Vec::with_capacity(height * width * wanted);
    let mut shape = vec![1; leading];
    if channels_last {
        for y in 0..height {
            for x in 0..width {
                bytes.extend((0..wanted).map(|c| sample(y, x, c)));
            }
        }
        shape.extend([height, width, wanted]);
    } else {
        for c in 0..wanted {
            for y in 0..height {
                bytes.extend((0..width).map(|x| sample(y, x, c)));
            }
        }
        if ty.rank() > 2 {
            shape.push(wanted);
        }
        shape.extend([height, width]);
    }
    for (dim, &size) in ty.dims.iter().zip(&shape) {
        if !dim.may_equal(&Dim::Fixed(size)) {
            return Err(format!("the image is {width}x{height} and {shape:?} as an input, which takes {ty}"));
        }
    }
    match ty.dtype {
        DType::U8 => Ok(Tensor::new(&shape, &bytes)),
        dtype if dtype.is_float() => {
            let floats: Vec<f64> = bytes.iter().map(|&byte| f64::from(byte) / 255.0).collect();
            Ok(Tensor::from_f64s(dtype, &shape, &floats))
        }
        dtype => Err(format!("an image becomes floats or u8, the input takes {dtype}")),
    }
}

/// 0.299 R + 0.587 G + 0.114 B, rounded.
fn luminance(pixel: &[u8]) -> u8 {
    let weighted = 299 * u32::from(pixel[0]) + 587 * u32::from(pixel[1]) + 114 * u32::from(pixel[2]);
    ((weighted + 500) / 1000) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rgb() -> Tensor {
        Tensor::new::<u8>(&[1, 2, 3], &[255, 0, 0, 0, 0, 255])
    }

    fn ty(dtype: DType, dims: &[usize]) -> TensorType {
        TensorType::fixed(dtype, dims)
    }

    #[test]
    fn channels_go_where_the_type_has_them() {
        let first = lay_out(&rgb(), &ty(DType::U8, &[1, 3, 1, 2])).unwrap();
        assert_eq!(first, Tensor::new::<u8>(&[1, 3, 1, 2], &[255, 0, 0, 0, 0, 255]));
        let last = lay_out(&rgb(), &ty(DType::U8, &[1, 2, 3])).unwrap_err();
        assert!(last.contains("takes u8[1, 2, 3]"), "{last}");
        let last =
            lay_out(&rgb(), &TensorType::new(DType::U8, [Dim::named("h"), Dim::named("w"), Dim::Fixed(3)]));
        assert_eq!(last.unwrap(), rgb());
    }

    #[test]
    fn colours_become_grey_and_grey_is_repeated() {
        let grey = lay_out(&rgb(), &ty(DType::U8, &[1, 2])).unwrap();
        assert_eq!(grey, Tensor::new::<u8>(&[1, 2], &[76, 29]));
        let grey = Tensor::new::<u8>(&[1, 1, 2], &[51, 0]);
        let repeated = lay_out(&grey, &ty(DType::F32, &[3, 1, 1])).unwrap();
        assert_eq!(repeated, Tensor::new::<f32>(&[3, 1, 1], &[0.2, 0.2, 0.2]));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for refused in [ty(DType::F32, &[1, 3, 2, 2]), ty(DType::F32, &[1, 5, 1, 2]), ty(DType::I64, &[1, 2])]
        {
            assert!(lay_out(&rgb(), &refused).is_err(), "{refused}");
        }
        assert!(lay_out(&rgb(), &ty(DType::F32, &[2])).is_err());
    }
}
