//! scikit-learn's handwritten digits, as the examples read them.

use std::path::Path;

use windlass::{Error, Limits, Tensor};
use windlass_frontend::npy::read_npz;

/// Images `[count, 8, 8, 1]` of numbers from 0 to 1 and their classes: those to train on, or those held back.
pub fn digits(held_back: bool) -> Result<(Tensor, Tensor), Error> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/training");
    let arrays = read_npz(folder.join("digits_data.npz"), &Limits::default())?;
    let array = |key: &str| {
        let found = arrays.iter().find(|(name, _)| name == key);
        found.map(|(_, array)| array.to_f64s()).unwrap_or_default()
    };
    let (images, labels) = (array("images"), array("labels"));
    let rows = array(if held_back { "test_idx" } else { "train_idx" });
    let pixels = rows.iter().flat_map(|&row| &images[row as usize * 64..][..64]);
    let pixels: Vec<f32> = pixels.map(|&x| x as f32 / 16.0).collect();
    let classes: Vec<i32> = rows.iter().map(|&row| labels[row as usize] as i32).collect();
    Ok((Tensor::new(&[rows.len(), 8, 8, 1], &pixels), Tensor::new(&[rows.len()], &classes)))
}
