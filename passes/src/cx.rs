//! What a pass works with besides the graph: options, fuel and the record of its decisions.

use crate::reason::{Outcome, Reason, Record};

/// What a run of passes may do.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How many rewrites to do in all; `None` means no end. A wrong result is bisected by this.
    pub fuel: Option<u64>,
    /// Whether to keep a [`Record`] of every decision.
    pub explain: bool,
    /// Whether to verify the graph after every pass that changed it, and not only after the last; on in debug builds.
    pub verify: bool,
    /// Folding may enlarge constants by at most this many bytes a node.
    pub fold_growth_bytes: u64,
    /// Folding evaluates a node of at most this many scalar operations.
    pub fold_work: u64,
    /// Whether convolutions may be computed in forms that round otherwise.
    pub winograd: bool,
    /// How many examples `vmap` makes a batch of.
    pub batch: usize,
    /// The inputs that the examples of such a batch share.
    pub shared: Vec<String>,
    /// The bytes that `checkpoint` keeps values of a step within, as far as it can; half of what they are if `None`.
    pub memory_limit: Option<u64>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            fuel: None,
            explain: false,
            verify: cfg!(debug_assertions),
            fold_growth_bytes: 64 << 10,
            fold_work: 64 << 20,
            winograd: true,
            batch: 2,
            shared: Vec::new(),
            memory_limit: None,
        }
    }
}

/// The context of a running pass.
#[derive(Clone, Debug, Default)]
pub struct PassCx {
    /// The options.
    pub options: Options,
    pass: &'static str,
    fired: u64,
    records: Vec<Record>,
}

impl PassCx {
    /// A context for a run of passes.
    pub fn new(options: Options) -> PassCx {
        PassCx { options, ..PassCx::default() }
    }

    pub(crate) fn enter(&mut self, pass: &'static str) {
        self.pass = pass;
    }

    /// The number of rewrites done so far, over all passes.
    pub fn fired(&self) -> u64 {
        self.fired
    }

    /// Whether another rewrite may be done. Rules may ask before they build anything.
    pub fn has_fuel(&self) -> bool {
        self.options.fuel.is_none_or(|fuel| self.fired < fuel)
    }

    /// Announces a rewrite: true if it may be done. Every change of a graph is announced.
    pub fn fire(&mut self, rule: &'static str, node: impl FnOnce() -> String) -> bool {
        if !self.has_fuel() {
            self.blocked(rule, node, || Reason::Fuel);
            return false;
        }
        self.fired += 1;
        if self.options.explain {
            self.records.push(Record { pass: self.pass, rule, node: node(), outcome: Outcome::Fired });
        }
        true
    }

    /// Notes why a rule did not fire.
    pub fn blocked(
        &mut self,
        rule: &'static str,
        node: impl FnOnce() -> String,
        reason: impl FnOnce() -> Reason,
    ) {
        if self.options.explain {
            let outcome = Outcome::Blocked(reason());
            let record = Record { pass: self.pass, rule, node: node(), outcome };
            // A pass in a fixpoint group meets the same obstacle in every round.
            if !self.records.contains(&record) {
                self.records.push(record);
            }
        }
    }

    /// The decisions so far, in order; empty unless [`Options::explain`].
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The decisions so far, leaving none.
    pub fn take_records(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.records)
    }
}
