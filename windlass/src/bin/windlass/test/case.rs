//! Running one case.

use std::path::Path;

use windlass::{Error, Model, Options, Session};
use windlass_frontend::onnx::testcase::{self, Case, Failure, Outcome, write_tensor};

use super::protocol::{CaseReport, Job, Status};

/// Runs a case; whatever goes wrong becomes part of the report.
pub fn run(job: &Job, options: &Options) -> CaseReport {
    let case = match Case::open(&job.dir) {
        Ok(case) => case,
        Err(error) => return CaseReport::failed(job, Status::Error, error.to_string()),
    };
    let mut session: Option<Session> = None;
    let mut nodes = windlass::session::Counts::default();
    let outcome = testcase::check(&case, &options.limits, &mut |model, inputs| {
        let session = match &mut session {
            Some(session) => session,
            none => {
                let opened = Session::new(Model::from(model.clone()), options.clone()).map_err(failure)?;
                none.insert(opened)
            }
        };
        let (outputs, counts) = session.run_counted(inputs).map_err(failure)?;
        nodes = counts;
        Ok(outputs.into_tensors())
    });
    let (status, reason) = match outcome.status.clone() {
        testcase::Status::Pass => (Status::Pass, None),
        testcase::Status::Ran => (Status::Ran, None),
        testcase::Status::Wrong(reason) => (Status::Wrong, Some(reason)),
        testcase::Status::Unsupported(reason) => (Status::Unsupported, Some(reason)),
        testcase::Status::Error(reason) => (Status::Error, Some(reason)),
    };
    let report = CaseReport {
        status,
        reason,
        difference: outcome.largest_difference.filter(|difference| difference.is_finite()),
        compiled: nodes.compiled,
        called: nodes.called,
        interpreted: nodes.interpreted,
        ..CaseReport::failed(job, status, String::new())
    };
    match job.out.as_deref().map_or(Ok(()), |out| write_results(out, &outcome)) {
        Ok(()) => report,
        Err(reason) => CaseReport { status: Status::Error, reason: Some(reason), ..report },
    }
}

fn failure(error: Error) -> Failure {
    match error.is_unsupported() {
        true => Failure::Unsupported(error.to_string()),
        false => Failure::Error(error.to_string()),
    }
}

/// Writes the results of each data set that ran to its folder in `out`.
fn write_results(out: &Path, outcome: &Outcome) -> Result<(), String> {
    for (data_set, results) in &outcome.results {
        let folder = out.join(data_set);
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        for (index, (name, tensor)) in results.iter().enumerate() {
            write_tensor(&folder.join(format!("output_{index}.pb")), name, tensor)
                .map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}
