//! Which examples are trained on, and how much each counts: splits, weights of classes, resampling.
//!
//! Rows are chosen by number; [`take`] takes them out of a tensor, and [`Order::Listed`](super::Order) trains on them as
//! they are listed.
//!
//! ```
//! use windlass::Tensor;
//! use windlass::nn::sampling::{balanced_class_weight, over_sample, stratified_split};
//!
//! // Eight examples of one class, two of another.
//! let y = Tensor::new(&[10], &[0i32, 0, 0, 0, 1, 0, 0, 0, 0, 1]);
//! assert_eq!(balanced_class_weight(&y)?, [0.625, 2.5]);
//! assert_eq!(over_sample(&y, 1)?.len(), 16);
//! let split = stratified_split(&y, 0.5, 1)?;
//! assert_eq!(split.test.iter().filter(|&&row| y.to_ints()[row] == 1).count(), 1);
//! # Ok::<(), windlass::Error>(())
//! ```

use windlass_frontend::nn::initializers::Random;
use windlass_ir::Tensor;

use super::data::rows;
use super::error::TrainingError;
use crate::error::Error;

/// Rows to train on and rows to test on, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Those to train on, shuffled.
    pub train: Vec<usize>,
    /// Those to test on, shuffled.
    pub test: Vec<usize>,
}

/// Splits so many rows at random; `share` of them, rounded up, are to test on.
pub fn train_test_split(count: usize, share: f64, seed: u64) -> Result<Split, Error> {
    let tested = tested(count, share)?;
    let mut all: Vec<usize> = (0..count).collect();
    shuffle(&mut all, &mut Random::new("split", seed));
    let train = all.split_off(tested);
    Ok(Split { train, test: all })
}

/// Splits rows so that both parts have the same share of each class, as nearly as can be: what is left over by rounding
/// down goes to the classes that miss most. `y` are classes by number.
pub fn stratified_split(y: &Tensor, share: f64, seed: u64) -> Result<Split, Error> {
    let mut classes = by_class(y)?;
    let count: usize = classes.iter().map(Vec::len).sum();
    let tested = tested(count, share)?;
    let exact = |class: &Vec<usize>| class.len() as f64 * tested as f64 / count.max(1) as f64;
    let mut takes: Vec<usize> = classes.iter().map(|class| exact(class) as usize).collect();
    let mut missing: Vec<usize> = (0..classes.len()).collect();
    let miss = |class: usize| exact(&classes[class]).fract();
    missing.sort_by(|&a, &b| miss(b).total_cmp(&miss(a)));
    let left = tested - takes.iter().sum::<usize>();
    missing.iter().take(left).for_each(|&class| takes[class] += 1);
    let mut random = Random::new("split", seed);
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for (class, take) in classes.iter_mut().zip(takes) {
        shuffle(class, &mut random);
        test.extend(class.drain(..take));
        train.append(class);
    }
    shuffle(&mut train, &mut random);
    shuffle(&mut test, &mut random);
    Ok(Split { train, test })
}

/// `n / (k * count)` for each of `k` classes of `n` examples, or positions of them: with it, all classes weigh the same. A
/// class without examples has 0.
pub fn balanced_class_weight(y: &Tensor) -> Result<Vec<f64>, Error> {
    let counts: Vec<usize> = by_class(&y.reshaped(&[y.len()]))?.iter().map(Vec::len).collect();
    let (examples, classes) = (counts.iter().sum::<usize>(), counts.iter().filter(|&&n| n > 0).count());
    let weight = |&n: &usize| if n > 0 { examples as f64 / (classes * n) as f64 } else { 0.0 };
    Ok(counts.iter().map(weight).collect())
}

/// Rows with as many of every class as the most frequent has: all of them, and some drawn again.
pub fn over_sample(y: &Tensor, seed: u64) -> Result<Vec<usize>, Error> {
    let mut classes = by_class(y)?;
    let most = classes.iter().map(Vec::len).max().unwrap_or(0);
    let mut random = Random::new("over_sample", seed);
    for class in classes.iter_mut().filter(|class| !class.is_empty()) {
        let own = class.len();
        for _ in own..most {
            class.push(class[(random.bits() % own as u64) as usize]);
        }
    }
    let mut all = classes.concat();
    shuffle(&mut all, &mut random);
    Ok(all)
}

/// Rows with as many of every class as the least frequent has, drawn at random.
pub fn under_sample(y: &Tensor, seed: u64) -> Result<Vec<usize>, Error> {
    let mut classes = by_class(y)?;
    let least = classes.iter().map(Vec::len).filter(|&n| n > 0).min().unwrap_or(0);
    let mut random = Random::new("under_sample", seed);
    for class in &mut classes {
        shuffle(class, &mut random);
        class.truncate(least);
    }
    let mut all = classes.concat();
    shuffle(&mut all, &mut random);
    Ok(all)
}

/// The rows of these numbers, in this order.
pub fn take(x: &Tensor, numbers: &[usize]) -> Result<Tensor, Error> {
    let count = x.shape().first().copied().unwrap_or(0);
    match numbers.iter().find(|&&row| row >= count) {
        Some(&row) => Err(TrainingError::Row { row, count }.into()),
        None => Ok(rows(x, numbers)),
    }
}

/// Fisher and Yates.
pub(super) fn shuffle(rows: &mut [usize], random: &mut Random) {
    for last in (1..rows.len()).rev() {
        rows.swap(last, (random.bits() % (last as u64 + 1)) as usize);
    }
}

/// How many rows are tested on.
fn tested(count: usize, share: f64) -> Result<usize, Error> {
    let tested = (share * count as f64).ceil();
    if share > 0.0 && tested < count as f64 {
        return Ok(tested as usize);
    }
    let expected = format!("above 0, and less than all of {count} rows");
    Err(TrainingError::Setting { what: "the share to test on", expected, found: share.to_string() }.into())
}

/// The rows of each class.
fn by_class(y: &Tensor) -> Result<Vec<Vec<usize>>, Error> {
    let mut classes: Vec<Vec<usize>> = Vec::new();
    let unfit = || TrainingError::Data {
        what: "y".to_string(),
        expected: "a class from 0 for each row".to_string(),
        found: y.ty(),
    };
    if y.rank() != 1 || y.dtype().is_float() {
        return Err(unfit().into());
    }
    for (row, class) in y.to_ints().into_iter().enumerate() {
        // Classes are counted in memory.
        let class = usize::try_from(class).ok().filter(|&class| class < 1 << 24).ok_or_else(unfit)?;
        if class >= classes.len() {
            classes.resize(class + 1, Vec::new());
        }
        classes[class].push(row);
    }
    Ok(classes)
}
