//! Layers that know their data: missing values filled in, features scaled to mean 0 and variance 1.
//!
//! What they know is `adapt`ed from data, per feature (the last dimension), and stands in the graph as constants: it is
//! compiled and exported with the network.
//!
//! ```
//! use windlass_frontend::nn::{Net, layers::{Fill, Imputer, Layer}};
//! use windlass_ir::{DType, Tensor, TensorType, interpret};
//!
//! let data = Tensor::new(&[3, 2], &[1f32, f32::NAN, 3.0, 6.0, f32::NAN, 8.0]);
//! let mut net = Net::new("filled", DType::F32, false);
//! let x = net.input("x", TensorType::fixed(DType::F32, &[3, 2]));
//! let y = Imputer::new(Fill::Mean).indicator(true).adapt(&data).apply(&mut net, x)?;
//! let filled = interpret(&net.build().graph(&[("y", y)])?, &[data])?;
//! let expected = [1f32, 7.0, 0.0, 1.0, 3.0, 6.0, 0.0, 0.0, 2.0, 8.0, 1.0, 0.0];
//! assert_eq!(filled[0], Tensor::new(&[3, 4], &expected));
//! # Ok::<(), windlass_ir::Error>(())
//! ```

use windlass_ir::ops::Concat;
use windlass_ir::{Error, ScalarFn, Tensor, Value};

use super::{Layer, name, setters};
use crate::nn::net::Net;

/// What stands for a missing value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// The mean of the feature.
    Mean,
    /// The middle of its values, or the mean of the two in the middle.
    Median,
    /// The one that occurs most often, the smallest of several.
    MostFrequent,
    /// A number.
    Constant(f64),
}

/// `where(isnan(x), fill, x)`: scikit-learn's `SimpleImputer`. A feature of which every value is missing is filled with 0.
#[derive(Clone, Debug)]
pub struct Imputer {
    name: Option<String>,
    fill: Fill,
    indicator: bool,
    fills: Vec<f64>,
}

setters!(Imputer {
    /// Whether as many features follow, 1 where the value was missing and else 0.
    indicator: bool,
});

impl Imputer {
    /// That has seen no data, and fills in the constant or 0.
    pub fn new(fill: Fill) -> Imputer {
        Imputer { name: None, fill, indicator: false, fills: Vec::new() }
    }

    /// With what fills each feature as this data has it; missing values are passed over.
    pub fn adapt(mut self, data: &Tensor) -> Imputer {
        let fill = |mut column: Vec<f64>| {
            column.sort_by(f64::total_cmp);
            self.fill.of(&column)
        };
        self.fills = columns(data).into_iter().map(fill).collect();
        self
    }

    /// What fills each feature; empty before there was data.
    pub fn fills(&self) -> &[f64] {
        &self.fills
    }
}

impl Fill {
    /// For values in ascending order.
    fn of(self, sorted: &[f64]) -> f64 {
        match self {
            Fill::Constant(value) => value,
            _ if sorted.is_empty() => 0.0,
            Fill::Mean => mean(sorted),
            Fill::Median => (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0,
            Fill::MostFrequent => {
                let runs = sorted.chunk_by(|a, b| a == b);
                let longest =
                    runs.fold(&sorted[..0], |best, run| if run.len() > best.len() { run } else { best });
                longest[0]
            }
        }
    }
}

impl Layer for Imputer {
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        name(&self.name, net, "imputer");
        let missing = net.map(ScalarFn::IsNan, &[x])?;
        let fills = match self.fill {
            _ if !self.fills.is_empty() => per_feature(net, x, &self.fills),
            Fill::Constant(value) => net.builder().scalar_like(x, value),
            _ => net.builder().scalar_like(x, 0.0),
        };
        let filled = net.map(ScalarFn::Select, &[missing, fills, x])?;
        if !self.indicator {
            return Ok(filled);
        }
        let dtype = net.ty(x).dtype;
        let indicator = net.builder().cast(missing, dtype)?;
        net.push(Concat { axis: -1 }, &[filled, indicator])
    }
}

/// `(x - mean) / max(sqrt(variance), epsilon)` of each feature: Keras's layer. Missing values stay missing;
/// before there was data, all stays.
#[derive(Clone, Debug, Default)]
pub struct Normalization {
    name: Option<String>,
    mean: Vec<f64>,
    variance: Vec<f64>,
}

setters!(Normalization {
    /// The mean of each feature.
    mean: Vec<f64>,
    /// The variance of each feature.
    variance: Vec<f64>,
});

/// The least deviation that is divided by, Keras's.
const EPSILON: f64 = 1e-7;

impl Normalization {
    /// With the mean and the variance of each feature as this data has them; missing values are passed over.
    pub fn adapt(mut self, data: &Tensor) -> Normalization {
        let columns = columns(data);
        self.mean = columns.iter().map(|column| mean(column)).collect();
        let square = |(column, mean): (&Vec<f64>, &f64)| {
            column.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / column.len().max(1) as f64
        };
        self.variance = columns.iter().zip(&self.mean).map(square).collect();
        self
    }
}

impl Layer for Normalization {
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        name(&self.name, net, "normalization");
        if self.mean.is_empty() {
            return Ok(x);
        }
        let mean = per_feature(net, x, &self.mean);
        let deviations: Vec<f64> = self.variance.iter().map(|v| v.sqrt().max(EPSILON)).collect();
        let deviation = per_feature(net, x, &deviations);
        let centered = net.map(ScalarFn::Sub, &[x, mean])?;
        net.map(ScalarFn::Div, &[centered, deviation])
    }
}

/// A constant that lies along the last dimension of `like`.
fn per_feature(net: &mut Net, like: Value, values: &[f64]) -> Value {
    let dtype = net.ty(like).dtype;
    net.builder().constant(Tensor::from_f64s(dtype, &[values.len()], values))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The values of each feature that are there.
fn columns(data: &Tensor) -> Vec<Vec<f64>> {
    let features = data.shape().last().copied().unwrap_or(1);
    let mut columns = vec![Vec::new(); features];
    for row in data.to_f64s().chunks_exact(features.max(1)) {
        for (column, &value) in columns.iter_mut().zip(row).filter(|(_, value)| !value.is_nan()) {
            column.push(value);
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use windlass_ir::{DType, TensorType, interpret};

    use super::*;

    const NAN: f64 = f64::NAN;

    fn data() -> Tensor {
        Tensor::new(&[5, 3], &[1.0, NAN, NAN, 2.0, 4.0, NAN, 2.0, 9.0, NAN, 7.0, 4.5, NAN, NAN, 1.0, NAN])
    }

    fn applied(layer: &dyn Layer, x: &Tensor) -> Tensor {
        let mut net = Net::new("net", DType::F64, false);
        let input = net.input("x", TensorType::fixed(DType::F64, x.shape()));
        let y = layer.apply(&mut net, input).unwrap();
        interpret(&net.build().graph(&[("y", y)]).unwrap(), &[x.clone()]).unwrap().remove(0)
    }

    /// `SimpleImputer(strategy=.., keep_empty_features=True).fit(data).statistics_` of scikit-learn 1.9.
    #[test]
    fn fills_are_those_of_scikit_learn() {
        let fills = |fill| Imputer::new(fill).adapt(&data()).fills().to_vec();
        assert_eq!(fills(Fill::Mean), [3.0, 4.625, 0.0]);
        assert_eq!(fills(Fill::Median), [2.0, 4.25, 0.0]);
        assert_eq!(fills(Fill::MostFrequent), [2.0, 1.0, 0.0]);
        assert_eq!(fills(Fill::Constant(-1.0)), [-1.0; 3]);
    }

    /// `np.nanmean` and `np.nanvar`, as Keras's layer uses them.
    #[test]
    fn features_are_scaled_and_missing_ones_stay() {
        let y = applied(&Normalization::default().adapt(&data()), &data()).to_f64s();
        // (1 - 3) / sqrt(5.5), (4 - 4.625) / sqrt(8.171875)
        assert!((y[0] + 0.852_802_865_422_441_7).abs() < 1e-15, "{}", y[0]);
        assert!((y[4] + 0.218_634_734_723_313_02).abs() < 1e-15, "{}", y[4]);
        assert!(y[1].is_nan() && y[2].is_nan());
        // A feature that does not vary.
        let flat = Tensor::new(&[2, 1], &[3.0, 3.0]);
        assert_eq!(applied(&Normalization::default().adapt(&flat), &flat).to_f64s(), [0.0, 0.0]);
    }
}
