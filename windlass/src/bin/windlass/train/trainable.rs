//! Which weights of a model are trained.

use clap::Args;
use wildmatch::WildMatch;
use windlass::Graph;
use windlass::nn::Network;

use crate::failure::Failure;

/// Which weights are trained, and how statistics are taken.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Weights")]
pub struct TrainableArgs {
    /// Do not train weights whose names match a pattern with `*` and `?`, such as those behind an operator that has no
    /// gradient
    #[arg(long, value_name = "PATTERN")]
    freeze: Vec<String>,
    /// Train only weights whose names match a pattern
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// Use each batch's statistics in batch normalization, and let the running ones follow: this part is kept at each
    /// step
    #[arg(long, value_name = "KEPT", num_args = 0..=1, default_missing_value = "0.9", value_parser = parse_part)]
    batch_statistics: Option<f64>,
}

impl TrainableArgs {
    /// A model's network, with the weights that are to be trained.
    pub fn network(&self, graph: &Graph) -> Result<Network, Failure> {
        let network = Network::from_graph(graph)?;
        let matches =
            |patterns: &[String], name: &str| patterns.iter().any(|p| WildMatch::new(p).matches(name));
        let names: Vec<&str> = network.variables().iter().map(|variable| variable.name.as_str()).collect();
        for pattern in self.freeze.iter().chain(&self.only) {
            if !names.iter().any(|name| WildMatch::new(pattern).matches(name)) {
                let names = names.join(", ");
                let message = format!("no weight's name matches `{pattern}`; the weights: {names}");
                return Err(Failure::Usage(message));
            }
        }
        let network = network.with_frozen(|name| {
            matches(&self.freeze, name) || !(self.only.is_empty() || matches(&self.only, name))
        });
        Ok(match self.batch_statistics {
            Some(kept) => network.with_batch_statistics(kept),
            None => network,
        })
    }
}

/// Reads a part of a whole.
pub fn parse_part(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(part) if (0.0..1.0).contains(&part) => Ok(part),
        _ => Err("a number from 0 to below 1 is expected".to_string()),
    }
}
