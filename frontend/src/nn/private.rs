//! Differentially private stochastic gradient descent (Abadi et al., "Deep Learning with Differential Privacy", 2016).
//!
//! The gradient of every example is scaled to a norm of at most `l2_norm_clip`, and to their sum is added noise of
//! `noise_multiplier` times that. So what any one example changes is hidden, by how much [`super::accountant`] says.
//! Gradients of single examples are those of the graph of one, vectorized ([`windlass_ir::vmap`]). What a layer draws at
//! random, as dropout does, is the same for every example of a step.

use windlass_ir::ops::Slice;
use windlass_ir::{Builder, Error, ScalarFn, TensorType, Value, vmap_into};

use super::initializers::Random;
use super::loss_scale::LossScale;
use super::net::Built;
use super::per_example::PerExample;
use super::random::normals;
use super::step::{Differentiated, Step, Training, flows, number_input, or_zeros, trained};

/// How gradients are clipped and hidden.
#[derive(Clone, Debug, PartialEq)]
pub struct DpSgd {
    /// The largest norm of what one microbatch adds to a gradient.
    pub l2_norm_clip: f64,
    /// The deviation of the noise, in units of that norm.
    pub noise_multiplier: f64,
    /// How many parts a batch is cut into, whose gradients are clipped each; none means one for every example.
    pub microbatches: Option<usize>,
    /// What the sum is divided by, if not the number of microbatches: the expected one, where batches vary.
    pub divisor: Option<f64>,
    /// Where the noise comes from.
    pub noise: Noise,
}

/// Where noise comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noise {
    /// A seed and the number of the step: the same bits whenever and wherever it runs. It is no secret to whom knows
    /// the seed.
    Counted(u64),
    /// Inputs of the step, `noise.` and the name of each variable that is trained, of the standard normal distribution.
    Given,
}

/// A network for some examples, with what is predicted and true of them, and a weight for each if they have one.
///
/// Inputs that are no variables have the examples as their first dimension.
#[derive(Clone, Debug)]
pub struct Microbatch {
    /// The network.
    pub net: Built,
    /// What it predicts.
    pub prediction: Value,
    /// What is true.
    pub truth: Value,
    /// How much each counts; one that counts nothing might as well not be there.
    pub weights: Option<Value>,
}

impl DpSgd {
    /// With a microbatch for every example.
    pub fn new(l2_norm_clip: f64, noise_multiplier: f64, seed: u64) -> DpSgd {
        let noise = Noise::Counted(seed);
        DpSgd { l2_norm_clip, noise_multiplier, microbatches: None, divisor: None, noise }
    }

    /// Noise for each variable that is trained, times the deviation.
    fn noise(
        &self,
        b: &mut Builder,
        (names, values): (&[String], &[Value]),
        step: Value,
    ) -> Result<Vec<Value>, Error> {
        let types: Vec<TensorType> = values.iter().map(|&v| b.ty(v).clone()).collect();
        let mut noise = Vec::new();
        match self.noise {
            Noise::Given => {
                let given = names.iter().zip(&types);
                noise.extend(given.map(|(name, ty)| b.input(&format!("noise.{name}"), ty.clone())));
            }
            Noise::Counted(seed) => {
                // One after another in one vector.
                let lengths: Vec<usize> = types.iter().map(|ty| ty.shape().iter().product()).collect();
                let Some(first) = types.first() else { return Ok(noise) };
                let key = Random::new("noise", seed).bits();
                let all = normals(b, lengths.iter().sum(), key, step, first.dtype)?;
                let mut start = 0;
                for (length, ty) in lengths.into_iter().zip(&types) {
                    let part = Slice::along(0, start as i64, (start + length) as i64);
                    let part = b.push1(part, &[all])?;
                    noise.push(b.reshape(part, &ty.shape())?);
                    start += length;
                }
            }
        }
        for noise in &mut noise {
            let deviation = b.scalar_like(*noise, self.noise_multiplier * self.l2_norm_clip);
            *noise = b.map(ScalarFn::Mul, &[*noise, deviation])?;
        }
        Ok(noise)
    }
}

/// What makes gradients of single examples impossible.
fn refused(reason: String) -> Error {
    Error::NoExample { reason }
}

impl Training {
    /// The step that trains on batches of this size, a network for any number of examples being given: for all of them,
    /// or for those of one microbatch.
    pub fn batch_step<E: From<Error>>(
        &self,
        batch: usize,
        build: impl FnOnce(usize) -> Result<Microbatch, E>,
    ) -> Result<Step, E> {
        let Some(privacy) = &self.privacy else {
            let Microbatch { net, prediction, truth, weights } = build(batch)?;
            return Ok(self.step(net, prediction, truth, weights)?);
        };
        let parts = privacy.microbatches.unwrap_or(batch);
        if parts == 0 || !batch.is_multiple_of(parts) {
            return Err(
                refused(format!("a batch of {batch} is not cut into {parts} equal microbatches")).into()
            );
        }
        Ok(self.private_step(privacy, build(batch / parts)?, parts)?)
    }

    /// The step on so many microbatches like the one given.
    fn private_step(&self, privacy: &DpSgd, one: Microbatch, parts: usize) -> Result<Step, Error> {
        if self.optimizer.loss_scale != LossScale::None {
            return Err(refused("what is clipped and hidden is not scaled: a loss scale".to_string()));
        }
        let Microbatch { net, prediction, truth, weights } = one;
        let Built { builder: mut b, variables, wide, updates, penalties, .. } = net;
        let trained = trained(&variables);
        let parameters: Vec<Value> = trained.iter().map(|&i| wide[i]).collect();
        let loss = self.loss.mean(&mut b, truth, prediction, weights, self.weighted)?;
        let mut results = vec![loss, prediction];
        let own_flows = flows(&mut b, loss, &parameters)?;
        results.extend(own_flows.into_iter().zip(&parameters).map(|(flow, &of)| or_zeros(&mut b, flow, of)));
        // What is the same for every example comes after.
        let own = results.len();
        results.extend(updates.iter().map(|(_, value)| *value));
        let penalty =
            penalties.into_iter().map(Ok).reduce(|a, c| b.map(ScalarFn::Add, &[a?, c?])).transpose()?;
        if let Some(penalty) = penalty {
            results.push(penalty);
            let flows = flows(&mut b, penalty, &parameters)?;
            results.extend(flows.into_iter().zip(&parameters).map(|(flow, &of)| or_zeros(&mut b, flow, of)));
        }
        results.iter().enumerate().for_each(|(i, &value)| b.output(&format!("result{i}"), value));
        let single = b.finish()?;

        let mut b = Builder::new(&single.name);
        let (mut ins, mut mapped) = (Vec::new(), Vec::new());
        for (name, value) in single.inputs() {
            let ty = single.ty(*value).clone();
            let is_data = !variables.iter().any(|v| v.name == *name);
            mapped.push(is_data);
            ins.push(match is_data {
                false => b.input(name, ty),
                true => {
                    let mut shape = ty.shape();
                    if shape.is_empty() {
                        return Err(refused(format!("input `{name}` is one number for all examples")));
                    }
                    shape[0] *= parts;
                    let whole = b.input(name, TensorType::fixed(ty.dtype, &shape));
                    shape[0] /= parts;
                    shape.insert(0, parts);
                    b.reshape(whole, &shape)?
                }
            });
        }
        let values: Vec<Value> = (variables.iter())
            .filter_map(|v| single.inputs().iter().position(|(name, _)| *name == v.name).map(|i| ins[i]))
            .collect();
        let widened = values.iter().zip(&variables).map(|(&value, v)| b.cast(value, v.arithmetic));
        let wide: Vec<Value> = widened.collect::<Result<_, _>>()?;
        let outs = vmap_into(&mut b, &single, &ins, &mapped, parts)?;
        for (&(variable, _), (_, batched)) in updates.iter().zip(&outs[own..]) {
            if *batched {
                let name = &variables[variable].name;
                return Err(refused(format!("`{name}` follows all examples of a batch, as statistics do")));
            }
        }
        let common = &outs[own + updates.len()..];
        if common.iter().any(|(_, batched)| *batched) {
            return Err(refused("a penalty depends on the examples".to_string()));
        }
        let updates: Vec<(usize, Value)> =
            updates.iter().zip(&outs[own..]).map(|(&(i, _), &(value, _))| (i, value)).collect();

        let mut own_values = Vec::new();
        for &(value, batched) in &outs[..own] {
            let mut shape = b.ty(value).shape();
            if !batched {
                shape.insert(0, parts);
            }
            own_values.push(b.broadcast(value, &shape)?);
        }
        let step = number_input(&mut b, "step");
        let names: Vec<String> = trained.iter().map(|&i| variables[i].name.clone()).collect();
        let parameters: Vec<Value> = trained.iter().map(|&i| wide[i]).collect();
        let noise = privacy.noise(&mut b, (&names, &parameters), step)?;
        let divisor = privacy.divisor.unwrap_or(parts as f64);
        let mut gradients = clipped_sums(&mut b, &own_values[2..], privacy.l2_norm_clip)?;
        for (i, gradient) in gradients.iter_mut().enumerate() {
            let hidden = b.map(ScalarFn::Add, &[*gradient, noise[i]])?;
            let by = b.scalar_like(hidden, divisor);
            *gradient = b.map(ScalarFn::Div, &[hidden, by])?;
            if let Some((flow, _)) = common.get(1 + i) {
                *gradient = b.map(ScalarFn::Add, &[*gradient, *flow])?;
            }
        }
        let total = windlass_ir::ops::Reduce::over(windlass_ir::ops::ReduceKind::Sum, &[0], false);
        let total = b.push1(total, &[own_values[0]])?;
        let by = b.scalar_like(total, divisor);
        let mut loss = b.map(ScalarFn::Div, &[total, by])?;
        if let Some((penalty, _)) = common.first() {
            loss = b.map(ScalarFn::Add, &[loss, *penalty])?;
        }
        let mut shape = b.ty(own_values[1]).shape();
        let each = shape.remove(1);
        shape[0] *= each;
        let prediction = b.reshape(own_values[1], &shape)?;
        let net = Built { builder: b, variables, values, wide, updates, penalties: Vec::new() };
        let gradients = gradients.into_iter().map(Some).collect();
        let results = &[("prediction", prediction)];
        self.optimizer.updated(Differentiated { net, step, shared: Vec::new(), loss, results, gradients })
    }
}

/// The sums over examples of gradients whose joint norm is at most `bound`; each value has those of all examples along
/// its first dimension.
fn clipped_sums(b: &mut Builder, gradients: &[Value], bound: f64) -> Result<Vec<Value>, Error> {
    let gradients: Vec<PerExample> =
        gradients.iter().map(|&g| PerExample::new(b, g)).collect::<Result<_, _>>()?;
    let mut squares: Option<Value> = None;
    for gradient in &gradients {
        let own = gradient.square_norms(b)?;
        squares = Some(match squares {
            Some(others) => b.map(ScalarFn::Add, &[others, own])?,
            None => own,
        });
    }
    let Some(squares) = squares else { return Ok(Vec::new()) };
    let (zero, bound) = (b.scalar_like(squares, 0.0), b.scalar_like(squares, bound));
    // Differences of rounded products may be a little below 0.
    let squares = b.map(ScalarFn::Max, &[squares, zero])?;
    let norms = b.map(ScalarFn::Sqrt, &[squares])?;
    let least = b.map(ScalarFn::Max, &[norms, bound])?;
    let factors = b.map(ScalarFn::Div, &[bound, least])?;
    gradients.iter().map(|gradient| gradient.weighted_sum(b, factors)).collect()
}
