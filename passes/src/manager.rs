//! Runs passes: verifies what they make, holds them to what they claim, and times them.

use std::time::{Duration, Instant};

use windlass_ir::{Graph, verify};

use crate::cx::{Options, PassCx};
use crate::error::Error;
use crate::pipelines::Stage;
use crate::reason::Record;

/// A pass over graphs, as data.
pub struct Pass {
    /// The name on the command line; also that of its file.
    pub name: &'static str,
    /// What it does, in a line.
    pub help: &'static str,
    /// Runs it. `None` means that nothing changed.
    pub run: fn(&Graph, &mut PassCx) -> Result<Option<Graph>, Error>,
}

/// What one run of a pass did.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The pass.
    pub pass: &'static str,
    /// How long it took, its verification not counted.
    pub time: Duration,
    /// How many rewrites it did.
    pub rewrites: u64,
    /// Nodes before.
    pub nodes_before: usize,
    /// Nodes after.
    pub nodes_after: usize,
}

/// What a run of passes did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Each run of a pass, in order.
    pub steps: Vec<Step>,
    /// Each decision, if asked for.
    pub records: Vec<Record>,
    /// Fixpoint groups that were stopped by their bound, by their first pass.
    pub unsettled: Vec<&'static str>,
    /// Time spent verifying.
    pub verify_time: Duration,
}

impl Report {
    /// The number of rewrites over all passes.
    pub fn rewrites(&self) -> u64 {
        self.steps.iter().map(|s| s.rewrites).sum()
    }

    /// Each pass that ran with its total time and number of rewrites, in order of first run.
    pub fn totals(&self) -> Vec<(&'static str, Duration, u64)> {
        let mut totals: Vec<(&'static str, Duration, u64)> = Vec::new();
        for step in &self.steps {
            match totals.iter_mut().find(|(pass, ..)| *pass == step.pass) {
                Some((_, time, rewrites)) => {
                    *time += step.time;
                    *rewrites += step.rewrites;
                }
                None => totals.push((step.pass, step.time, step.rewrites)),
            }
        }
        totals
    }
}

/// Runs stages over a graph.
pub fn run(graph: &Graph, stages: &[Stage], options: &Options) -> Result<(Graph, Report), Error> {
    run_observed(graph, stages, options, |_, _| {})
}

/// Like [`run`], showing the graph after each pass that changed it.
pub fn run_observed(
    graph: &Graph,
    stages: &[Stage],
    options: &Options,
    mut observe: impl FnMut(&Pass, &Graph),
) -> Result<(Graph, Report), Error> {
    let mut runner = Runner {
        graph: graph.clone(),
        cx: PassCx::new(options.clone()),
        report: Report::default(),
        unverified: None,
        settled: Vec::new(),
        observe: &mut observe,
    };
    for stage in stages {
        match stage {
            Stage::Pass(pass) => {
                runner.step(pass)?;
            }
            Stage::Fixpoint { passes, rounds } => runner.fixpoint(passes, *rounds)?,
        }
    }
    runner.verify()?;
    runner.report.records = runner.cx.take_records();
    Ok((runner.graph, runner.report))
}

struct Runner<'a> {
    graph: Graph,
    cx: PassCx,
    report: Report,
    /// The last pass that changed the graph, if that is not verified yet.
    unverified: Option<&'static str>,
    /// The passes that leave the graph as it is now alone. They need not run again before another changes it.
    settled: Vec<&'static str>,
    observe: &'a mut dyn FnMut(&Pass, &Graph),
}

impl Runner<'_> {
    /// Repeats the passes until each has left the graph alone since it last changed.
    fn fixpoint(&mut self, passes: &[&'static Pass], rounds: usize) -> Result<(), Error> {
        for _ in 0..rounds {
            for pass in passes {
                self.step(pass)?;
            }
            if passes.iter().all(|pass| self.settled.contains(&pass.name)) {
                return Ok(());
            }
        }
        self.report.unsettled.extend(passes.first().map(|p| p.name));
        Ok(())
    }

    /// Runs one pass, unless it is known to change nothing.
    fn step(&mut self, pass: &Pass) -> Result<(), Error> {
        if self.settled.contains(&pass.name) {
            return Ok(());
        }
        self.cx.enter(pass.name);
        let fired = self.cx.fired();
        let nodes_before = self.graph.node_count();
        let start = Instant::now();
        let changed = (pass.run)(&self.graph, &mut self.cx)?;
        let time = start.elapsed();
        let rewrites = self.cx.fired() - fired;
        let nodes_after = changed.as_ref().map_or(nodes_before, Graph::node_count);
        self.report.steps.push(Step { pass: pass.name, time, rewrites, nodes_before, nodes_after });
        let dishonest = |claim| Err(Error::Dishonest { pass: pass.name, claim });
        let Some(changed) = changed else {
            self.settled.push(pass.name);
            return match rewrites {
                0 => Ok(()),
                _ => dishonest("that nothing changed though rules fired"),
            };
        };
        if rewrites == 0 {
            return dishonest("a change though no rule fired");
        }
        if cfg!(debug_assertions) && changed == self.graph {
            return dishonest("a change though the graph is the same");
        }
        self.graph = changed;
        self.settled.clear();
        self.unverified = Some(pass.name);
        if self.cx.options.verify {
            self.verify()?;
        }
        (self.observe)(pass, &self.graph);
        Ok(())
    }

    /// Verifies the graph if a pass changed it since it was verified.
    fn verify(&mut self) -> Result<(), Error> {
        let Some(pass) = self.unverified.take() else { return Ok(()) };
        let start = Instant::now();
        verify(&self.graph).map_err(|error| Error::Invalid { pass, error })?;
        self.report.verify_time += start.elapsed();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use windlass_ir::ScalarFn;

    use super::*;
    use crate::graph::PASSES;
    use crate::pipelines::{PIPELINES, pass, pipeline};
    use crate::testing::{graph, ops, same_results};

    fn noisy() -> Graph {
        graph(&[&[4]], |b, x| {
            let one = b.scalar_like(x[0], 1.0);
            let y = b.map(ScalarFn::Mul, &[x[0], one])?;
            let y = b.map(ScalarFn::Neg, &[y])?;
            let y = b.map(ScalarFn::Neg, &[y])?;
            let z = b.map(ScalarFn::Exp, &[x[0]])?;
            let w = b.map(ScalarFn::Exp, &[y])?;
            Ok(smallvec![b.map(ScalarFn::Add, &[z, w])?])
        })
    }

    #[test]
    fn pipelines_keep_the_meaning_and_settle() {
        for pipeline in PIPELINES {
            let (g, report) = run(&noisy(), pipeline.stages, &Options::default()).unwrap();
            same_results(&noisy(), &g);
            assert!(report.unsettled.is_empty());
            if pipeline.name != "O0" {
                assert_eq!(ops(&g), "add 1, exp 1");
            }
        }
    }

    #[test]
    fn what_changes_nothing_runs_once() {
        let (_, report) = run(&noisy(), pipeline("O2").unwrap().stages, &Options::default()).unwrap();
        let mut settled: Vec<&str> = Vec::new();
        for step in &report.steps {
            assert!(!settled.contains(&step.pass), "{} ran again on the same graph", step.pass);
            match step.rewrites {
                0 => settled.push(step.pass),
                _ => settled.clear(),
            }
        }
    }

    #[test]
    fn every_amount_of_fuel_gives_a_right_graph() {
        let stages = pipeline("O2").unwrap().stages;
        let (_, full) = run(&noisy(), stages, &Options::default()).unwrap();
        for fuel in 0..=full.rewrites() {
            let options = Options { fuel: Some(fuel), ..Options::default() };
            let (g, report) = run(&noisy(), stages, &options).unwrap();
            assert_eq!(report.rewrites(), fuel);
            same_results(&noisy(), &g);
        }
    }

    #[test]
    fn untrue_claims_are_errors() {
        fn unannounced(graph: &Graph, _: &mut PassCx) -> Result<Option<Graph>, Error> {
            Ok(Some(graph.clone()))
        }
        fn unchanged(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
            cx.fire("nothing", String::new);
            Ok(Some(graph.clone()))
        }
        fn denied(_: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
            cx.fire("nothing", String::new);
            Ok(None)
        }
        const PASSES: [Pass; 3] = [
            Pass { name: "unannounced", help: "", run: unannounced },
            Pass { name: "unchanged", help: "", run: unchanged },
            Pass { name: "denied", help: "", run: denied },
        ];
        static STAGES: [Stage; 3] =
            [Stage::Pass(&PASSES[0]), Stage::Pass(&PASSES[1]), Stage::Pass(&PASSES[2])];
        for stage in &STAGES {
            let result = run(&noisy(), std::slice::from_ref(stage), &Options::default());
            assert!(matches!(result, Err(Error::Dishonest { .. })));
        }
    }

    #[test]
    fn passes_are_listed_in_order_and_found() {
        assert!(PASSES.is_sorted_by_key(|p| p.name));
        assert!(PASSES.iter().all(|p| pass(p.name).is_ok() && !p.help.is_empty()));
        assert!(matches!(pass("no such"), Err(Error::UnknownPass { .. })));
    }
}
