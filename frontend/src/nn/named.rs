//! Losses, optimizers and schedules by their names, as commands and other languages give them:
//! `NAME` or `NAME:OPTION=NUMBER,..`, where an option without a number is switched on.

use std::str::FromStr;

use super::losses::Loss;
use super::optimizers::{Convention, Optimizer, Rule};
use super::schedules::Schedule;

/// Why a text names nothing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NameError {
    /// A name that is not known.
    #[error("there is no {kind} `{name}`; there are {}", known.join(", "))]
    Unknown {
        /// What was to be named.
        kind: &'static str,
        /// The name given.
        name: String,
        /// Those known.
        known: Vec<&'static str>,
    },
    /// An option that is not one of what is named.
    #[error("`{name}` has no option `{option}`; its options: {}", if known.is_empty() { "none".to_string() } else { known.join(", ") })]
    Option {
        /// What is named.
        name: String,
        /// The option given.
        option: String,
        /// Those it has.
        known: Vec<&'static str>,
    },
    /// An option without the number that it takes, or with something else.
    #[error("option `{option}` of `{name}` takes {expected}, found `{found}`")]
    Value {
        /// What is named.
        name: String,
        /// The option.
        option: String,
        /// What it takes.
        expected: &'static str,
        /// What was given.
        found: String,
    },
}

/// A name and its options, as they are asked for: what is read of a text that names one of several things.
#[derive(Clone, Debug)]
pub struct Spec<'t> {
    /// The name.
    pub name: &'t str,
    given: Vec<(&'t str, Option<&'t str>)>,
    known: Vec<&'static str>,
    error: Option<NameError>,
}

impl<'t> Spec<'t> {
    /// What a text says.
    pub fn new(text: &'t str) -> Spec<'t> {
        let (name, options) = text.split_once(':').unwrap_or((text, ""));
        let given = options.split(',').filter(|option| !option.is_empty());
        let given = given.map(|option| match option.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value.trim())),
            None => (option.trim(), None),
        });
        Spec { name: name.trim(), given: given.collect(), known: Vec::new(), error: None }
    }

    fn wrong(&mut self, option: &str, expected: &'static str, found: &str) {
        let (name, option, found) = (self.name.to_string(), option.to_string(), found.to_string());
        self.error.get_or_insert(NameError::Value { name, option, expected, found });
    }

    /// The number of an option, or what it is if it is not given.
    pub fn number(&mut self, option: &'static str, default: f64) -> f64 {
        self.known.push(option);
        let Some(&(_, value)) = self.given.iter().find(|(key, _)| *key == option) else { return default };
        let value = value.unwrap_or("");
        match value.parse::<f64>() {
            Ok(number) if number.is_finite() => number,
            _ => {
                self.wrong(option, "a number", value);
                default
            }
        }
    }

    /// The whole number from 0 on of an option, if it is given.
    pub fn count(&mut self, option: &'static str) -> Option<usize> {
        self.known.push(option);
        let value = self.given.iter().find(|(key, _)| *key == option)?.1.unwrap_or("");
        let count = value.parse::<usize>().ok();
        if count.is_none() {
            self.wrong(option, "a whole number", value);
        }
        count
    }

    /// Whether an option is switched on.
    pub fn flag(&mut self, option: &'static str) -> bool {
        self.known.push(option);
        match self.given.iter().find(|(key, _)| *key == option) {
            None | Some((_, Some("false"))) => false,
            Some((_, None | Some("true"))) => true,
            Some(&(_, Some(value))) => {
                self.wrong(option, "true or false", value);
                false
            }
        }
    }

    /// What was named, unless an option is wrong.
    pub fn finish<T>(mut self, named: T) -> Result<T, NameError> {
        let unknown = self.given.iter().find(|(key, _)| !self.known.contains(key));
        match (unknown, self.error.take()) {
            (Some((option, _)), _) => {
                let (name, option) = (self.name.to_string(), option.to_string());
                Err(NameError::Option { name, option, known: self.known })
            }
            (None, Some(error)) => Err(error),
            (None, None) => Ok(named),
        }
    }

    /// The error that the name is none of those known.
    pub fn unknown<T>(self, kind: &'static str, known: &[&'static str]) -> Result<T, NameError> {
        Err(NameError::Unknown { kind, name: self.name.to_string(), known: known.to_vec() })
    }
}

impl Loss {
    /// The names of all losses.
    pub const NAMES: [&'static str; 11] = [
        "mean_squared_error",
        "mean_absolute_error",
        "huber",
        "sparse_categorical_crossentropy",
        "categorical_crossentropy",
        "binary_crossentropy",
        "binary_focal_crossentropy",
        "sparse_categorical_focal_crossentropy",
        "kl_divergence",
        "hinge",
        "negative_log_likelihood",
    ];
}

impl FromStr for Loss {
    type Err = NameError;

    /// Keras's names (`mse` and `mae` too); options are those of the variants, such as `huber:delta=2`.
    fn from_str(text: &str) -> Result<Loss, NameError> {
        let mut spec = Spec::new(text);
        let loss = match spec.name {
            "mean_squared_error" | "mse" => Loss::MeanSquaredError,
            "mean_absolute_error" | "mae" => Loss::MeanAbsoluteError,
            "huber" => Loss::Huber { delta: spec.number("delta", 1.0) },
            "sparse_categorical_crossentropy" => {
                Loss::SparseCategoricalCrossentropy { from_logits: spec.flag("from_logits") }
            }
            "categorical_crossentropy" => Loss::CategoricalCrossentropy {
                from_logits: spec.flag("from_logits"),
                label_smoothing: spec.number("label_smoothing", 0.0),
            },
            "binary_crossentropy" => Loss::BinaryCrossentropy {
                from_logits: spec.flag("from_logits"),
                label_smoothing: spec.number("label_smoothing", 0.0),
            },
            "binary_focal_crossentropy" => Loss::BinaryFocal {
                from_logits: spec.flag("from_logits"),
                gamma: spec.number("gamma", 2.0),
                alpha: spec.number("alpha", 0.25),
            },
            "sparse_categorical_focal_crossentropy" => Loss::SparseCategoricalFocal {
                from_logits: spec.flag("from_logits"),
                gamma: spec.number("gamma", 2.0),
            },
            "kl_divergence" => Loss::KlDivergence,
            "hinge" => Loss::Hinge,
            "negative_log_likelihood" => Loss::NegativeLogLikelihood,
            _ => return spec.unknown("loss", &Loss::NAMES),
        };
        spec.finish(loss)
    }
}

impl Optimizer {
    /// The names of all optimizers.
    pub const NAMES: [&'static str; 7] = ["sgd", "rmsprop", "adagrad", "adam", "adamw", "lion", "lamb"];
}

impl FromStr for Optimizer {
    type Err = NameError;

    /// Keras's names and defaults, with a learning rate of 0.001; options are those of the rules, and `torch` for
    /// PyTorch's formulas.
    fn from_str(text: &str) -> Result<Optimizer, NameError> {
        let mut spec = Spec::new(text);
        let rule = match spec.name {
            "sgd" => Rule::Sgd { momentum: spec.number("momentum", 0.0), nesterov: spec.flag("nesterov") },
            "rmsprop" => {
                Rule::RmsProp { rho: spec.number("rho", 0.9), epsilon: spec.number("epsilon", 1e-7) }
            }
            "adagrad" => Rule::Adagrad {
                initial_accumulator: spec.number("initial_accumulator", 0.1),
                epsilon: spec.number("epsilon", 1e-7),
            },
            "adam" | "adamw" => Rule::Adam {
                beta_1: spec.number("beta_1", 0.9),
                beta_2: spec.number("beta_2", 0.999),
                epsilon: spec.number("epsilon", 1e-7),
            },
            "lion" => Rule::Lion { beta_1: spec.number("beta_1", 0.9), beta_2: spec.number("beta_2", 0.99) },
            "lamb" => Rule::Lamb {
                beta_1: spec.number("beta_1", 0.9),
                beta_2: spec.number("beta_2", 0.999),
                epsilon: spec.number("epsilon", 1e-6),
            },
            _ => return spec.unknown("optimizer", &Optimizer::NAMES),
        };
        let mut optimizer = Optimizer::new(rule, 1e-3);
        if spec.name == "adamw" {
            optimizer.decay = super::Decay::Decoupled(0.004);
        }
        if spec.flag("torch") {
            optimizer.convention = Convention::Torch;
        }
        spec.finish(optimizer)
    }
}

impl Schedule {
    /// The names of all schedules.
    pub const NAMES: [&'static str; 3] = ["constant", "exponential", "cosine"];

    /// A schedule by its name, from this rate on: `constant`; `exponential:rate=R,steps=N,staircase`;
    /// `cosine:steps=N,floor=F`. Each may have `warm_up=N`. `steps` are those of the whole training unless they are given.
    pub fn named(text: &str, initial: f64, steps: f64) -> Result<Schedule, NameError> {
        let mut spec = Spec::new(text);
        let warm_up = spec.number("warm_up", 0.0);
        let rest = (steps - warm_up).max(1.0);
        let schedule = match spec.name {
            "constant" => Schedule::Constant(initial),
            "exponential" => Schedule::Exponential {
                initial,
                rate: spec.number("rate", 0.1),
                decay_steps: spec.number("steps", rest),
                staircase: spec.flag("staircase"),
            },
            "cosine" => Schedule::Cosine {
                initial,
                steps: spec.number("steps", rest),
                floor: spec.number("floor", 0.0),
            },
            _ => return spec.unknown("schedule", &Schedule::NAMES),
        };
        let schedule = match warm_up > 0.0 {
            true => Schedule::WarmUp { steps: warm_up, then: Box::new(schedule) },
            false => schedule,
        };
        spec.finish(schedule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_known() {
        for name in Loss::NAMES {
            assert!(name.parse::<Loss>().is_ok(), "{name}");
        }
        for name in Optimizer::NAMES {
            assert!(name.parse::<Optimizer>().is_ok(), "{name}");
        }
        for name in Schedule::NAMES {
            assert!(Schedule::named(name, 0.1, 10.0).is_ok(), "{name}");
        }
        assert_eq!("huber:delta=2.5".parse(), Ok(Loss::Huber { delta: 2.5 }));
        let cosine = Schedule::Cosine { initial: 0.1, steps: 8.0, floor: 0.0 };
        let expected = Schedule::WarmUp { steps: 2.0, then: Box::new(cosine) };
        assert_eq!(Schedule::named("cosine:warm_up=2", 0.1, 10.0), Ok(expected));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let message = |text: &str| text.parse::<Loss>().unwrap_err().to_string();
        assert!(message("huge").starts_with("there is no loss `huge`; there are mean_squared_error, "));
        assert_eq!(message("hinge:x=1"), "`hinge` has no option `x`; its options: none");
        assert_eq!(message("huber:delt=1"), "`huber` has no option `delt`; its options: delta");
        assert_eq!(message("huber:delta=a"), "option `delta` of `huber` takes a number, found `a`");
        let error = "adam:beta_1".parse::<Optimizer>().unwrap_err().to_string();
        assert_eq!(error, "option `beta_1` of `adam` takes a number, found ``");
    }
}
