//! Gradients by inputs: adversarial examples, and what in an input speaks for a class.
//!
//! Everything is computed as in inference, so examples do not depend on each other. An input has the model's type, and
//! so has what is given back.

use windlass_ir::ops::{LossReduction, NllLoss, Reduce, ReduceKind};
use windlass_ir::{Builder, DType, Graph, ScalarFn, Tensor, TensorType, Value, gradients};

use super::data::form;
use super::error::TrainingError;
use super::model::Model;
use crate::error::Error;
use crate::session::Session;

/// How far an adversarial example may be from what it is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ball {
    /// Each element by so much.
    Linf(f64),
    /// All elements of an example by this Euclidean distance.
    L2(f64),
}

/// Projected gradient descent (Madry et al., 2018): steps up the loss, each followed by a return into the ball.
#[derive(Clone, Debug, PartialEq)]
pub struct Pgd {
    /// How far it may go.
    pub ball: Ball,
    /// How long a step is: of each element, or of the example.
    pub step: f64,
    /// How many steps.
    pub iterations: usize,
    /// What is added at first.
    pub start: Option<Tensor>,
    /// The smallest and the largest value of an element.
    pub range: (f64, f64),
}

/// How each element speaks for a class.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribution {
    /// A number for each element of the input.
    pub elements: Tensor,
    /// For each example, how far their sum is from the difference of the scores that they explain.
    pub gap: Vec<f64>,
}

/// What is differentiated by the input.
enum Target<'a> {
    /// The mean loss, given what is true.
    Loss(&'a Tensor),
    /// The score of a class for each example.
    Score(&'a Tensor),
}

impl Model {
    /// The values (one loss, or a score for each example) and their gradient by the input.
    fn by_input(&mut self, x: &Tensor, target: &Target<'_>) -> Result<(Vec<f64>, Tensor), Error> {
        self.only_input(x)?;
        let (Target::Loss(truth) | Target::Score(truth)) = target;
        // A score's classes are told from what is true by a type more.
        let score = matches!(target, Target::Score(_)).then_some(*truth);
        let key = form([x, *truth].into_iter().chain(score));
        if !self.input_gradients.contains_key(&key) {
            let graph = self.input_gradient(x, target)?;
            self.input_gradients.insert(key.clone(), Session::new(graph, self.options().clone())?);
        }
        let mut outs = self.infer(&self.input_gradients[&key], [x, *truth])?;
        let gradient = outs.pop().expect("there are two results");
        Ok((outs[0].to_f64s(), gradient))
    }

    /// How many examples there are for a model of one input.
    fn only_input(&self, x: &Tensor) -> Result<usize, Error> {
        Ok(self.inputs_of(x)?.1)
    }

    /// The graph of values and their gradient by the input.
    fn input_gradient(&self, x: &Tensor, target: &Target<'_>) -> Result<Graph, Error> {
        let (mut built, predictions) = self.built(&[x.ty()], false)?;
        let input = built.builder.graph().inputs()[0].1;
        let values = match target {
            Target::Loss(truth) => {
                self.compiled()?.add_loss(&mut built, &predictions, &[truth.ty()], None)?.0
            }
            Target::Score(classes) => {
                let y = built.builder.input("y", classes.ty());
                score(&mut built.builder, predictions[0], y)?
            }
        };
        let mut b = built.builder;
        let total = match b.ty(values).rank() {
            0 => values,
            _ => b.push1(Reduce::over(ReduceKind::Sum, &[0], false), &[values])?,
        };
        let one = b.scalar_like(total, 1.0);
        let flow = gradients(&mut b, &[(total, one)], &[input])?[0];
        let ty = b.ty(input).clone();
        let flow = flow.unwrap_or_else(|| b.constant(Tensor::zeros(ty.dtype, &ty.shape())));
        b.output("values", values);
        b.output("gradient", flow);
        Ok(b.finish()?)
    }

    /// The mean loss on examples, and its gradient by them.
    pub fn loss_gradient(&mut self, x: &Tensor, y: &Tensor) -> Result<(f64, Tensor), Error> {
        let count = self.only_input(x)?;
        self.truths_of(y, count)?;
        let (values, gradient) = self.by_input(x, &Target::Loss(y))?;
        Ok((values[0], gradient))
    }

    /// The score of a class for each example (the prediction's element), and the gradient of each by its example.
    pub fn score_gradient(&mut self, x: &Tensor, classes: &[usize]) -> Result<(Vec<f64>, Tensor), Error> {
        let count = self.only_input(x)?;
        if classes.len() != count {
            let found = TensorType::fixed(DType::I32, &[classes.len()]);
            return Err(TrainingError::Data {
                what: "classes".to_string(),
                expected: format!("{count} rows"),
                found,
            }
            .into());
        }
        let classes: Vec<i32> = classes.iter().map(|&class| class as i32).collect();
        self.by_input(x, &Target::Score(&Tensor::new(&[count], &classes)))
    }

    /// The fast gradient sign method (Goodfellow et al., 2015): one step of `epsilon` up the loss along each element.
    pub fn fgsm(&mut self, x: &Tensor, y: &Tensor, epsilon: f64, range: (f64, f64)) -> Result<Tensor, Error> {
        let (_, gradient) = self.loss_gradient(x, y)?;
        Ok(joined(&[x, &gradient], |v| (v[0] + epsilon * sign(v[1])).clamp(range.0, range.1)))
    }

    /// Adversarial examples by projected gradient descent.
    pub fn pgd(&mut self, x: &Tensor, y: &Tensor, pgd: &Pgd) -> Result<Tensor, Error> {
        let within = |v: f64| v.clamp(pgd.range.0, pgd.range.1);
        let mut z = match &pgd.start {
            Some(start) => joined(&[x, start], |v| within(v[0] + v[1])),
            None => x.clone(),
        };
        for _ in 0..pgd.iterations {
            let (_, gradient) = self.loss_gradient(&z, y)?;
            z = match pgd.ball {
                Ball::Linf(epsilon) => joined(&[x, &z, &gradient], |v| {
                    let moved = v[1] + pgd.step * sign(v[2]);
                    within(v[0] + (moved - v[0]).clamp(-epsilon, epsilon))
                }),
                Ball::L2(epsilon) => {
                    let direction = of_length(&gradient, |_| pgd.step);
                    let offset = joined(&[x, &z, &direction], |v| v[1] + v[2] - v[0]);
                    let offset = of_length(&offset, |length| length.min(epsilon));
                    joined(&[x, &offset], |v| within(v[0] + v[1]))
                }
            };
        }
        Ok(z)
    }

    /// Each element times the gradient of its class's score.
    pub fn gradient_times_input(&mut self, x: &Tensor, classes: &[usize]) -> Result<Tensor, Error> {
        let (_, gradient) = self.score_gradient(x, classes)?;
        Ok(joined(&[x, &gradient], |v| v[0] * v[1]))
    }

    /// Integrated gradients (Sundararajan et al., 2017): the mean gradient on the way from a baseline, at the middles of
    /// so many parts of it, times the way.
    pub fn integrated_gradients(
        &mut self,
        x: &Tensor,
        baseline: &Tensor,
        classes: &[usize],
        steps: usize,
    ) -> Result<Attribution, Error> {
        self.only_input(baseline)?;
        let steps = steps.max(1);
        let mut sum = vec![0.0; x.len()];
        for step in 0..steps {
            let part = (step as f64 + 0.5) / steps as f64;
            let (_, gradient) =
                self.score_gradient(&joined(&[x, baseline], |v| v[1] + part * (v[0] - v[1])), classes)?;
            sum.iter_mut().zip(gradient.to_f64s()).for_each(|(sum, g)| *sum += g);
        }
        let mean: Vec<f64> = sum.iter().map(|sum| sum / steps as f64).collect();
        let mean = Tensor::from_f64s(x.dtype(), x.shape(), &mean);
        let elements = joined(&[x, baseline, &mean], |v| (v[0] - v[1]) * v[2]);
        let (here, there) = (self.score_gradient(x, classes)?.0, self.score_gradient(baseline, classes)?.0);
        let sums = rows(&elements).map(|row| row.iter().sum::<f64>()).collect::<Vec<f64>>();
        let gap = sums.iter().zip(here.iter().zip(&there)).map(|(sum, (a, b))| sum - (a - b)).collect();
        Ok(Attribution { elements, gap })
    }
}

/// The element of each example's class.
fn score(b: &mut Builder, prediction: Value, classes: Value) -> Result<Value, Error> {
    let pick = NllLoss { reduction: LossReduction::None, ignore_index: Vec::new() };
    let negative = b.push1(pick, &[prediction, classes])?;
    Ok(b.map(ScalarFn::Neg, &[negative])?)
}

fn sign(x: f64) -> f64 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        0.0
    }
}

/// A function of the elements of tensors of one type.
fn joined(tensors: &[&Tensor], f: impl Fn(&[f64]) -> f64) -> Tensor {
    let columns: Vec<Vec<f64>> = tensors.iter().map(|tensor| tensor.to_f64s()).collect();
    let mut row = vec![0.0; columns.len()];
    let at = |i: usize| {
        row.iter_mut().zip(&columns).for_each(|(value, column)| *value = column[i]);
        f(&row)
    };
    let values: Vec<f64> = (0..tensors[0].len()).map(at).collect();
    Tensor::from_f64s(tensors[0].dtype(), tensors[0].shape(), &values)
}

/// The elements of each example.
fn rows(x: &Tensor) -> impl Iterator<Item = Vec<f64>> {
    let each = x.shape()[1..].iter().product::<usize>().max(1);
    let values = x.to_f64s();
    (0..values.len() / each).map(move |row| values[row * each..][..each].to_vec())
}

/// Each example scaled to a length that follows from its own; 0 stays.
fn of_length(x: &Tensor, length: impl Fn(f64) -> f64) -> Tensor {
    let scaled = rows(x).flat_map(|row| {
        let own = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        let factor = if own > 0.0 { length(own) / own } else { 0.0 };
        row.into_iter().map(move |v| v * factor)
    });
    Tensor::from_f64s(x.dtype(), x.shape(), &scaled.collect::<Vec<f64>>())
}
