//! Worker processes: started when needed, replaced when they die or are stopped.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use super::protocol::{CaseReport, Job, Status};
use crate::arguments::SessionArgs;
use crate::failure::Failure;

/// How workers are started.
pub struct Worker {
    /// How they run models.
    pub session: SessionArgs,
    /// What each may use of memory.
    pub memory_bytes: u64,
}

/// How cases are spread over workers.
pub struct Pool {
    /// How many run at once.
    pub workers: usize,
    /// When a case is stopped.
    pub timeout: Duration,
    /// How a worker is started.
    pub worker: Worker,
}

impl Pool {
    /// Runs the jobs; `done` sees the reports in the jobs' order, and says whether to go on.
    pub fn run(&self, jobs: Vec<Job>, mut done: impl FnMut(CaseReport) -> bool) -> Result<(), Failure> {
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let (sender, receiver) = mpsc::channel::<Result<CaseReport, Failure>>();
        thread::scope(|scope| {
            for _ in 0..self.workers {
                let sender = sender.clone();
                let (next, stop, jobs) = (&next, &stop, &jobs);
                scope.spawn(move || {
                    let mut process = None;
                    while !stop.load(Ordering::Relaxed)
                        && let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        if sender.send(self.run_one(&mut process, job)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            let mut waiting = BTreeMap::new();
            let mut turn = 0;
            for report in receiver {
                let report = report.inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
                waiting.insert(report.index, report);
                while let Some(report) = waiting.remove(&turn) {
                    turn += 1;
                    if !done(report) {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            }
            Ok(())
        })
    }

    fn run_one(&self, process: &mut Option<Process>, job: &Job) -> Result<CaseReport, Failure> {
        let start = Instant::now();
        let mut worker = match process.take() {
            Some(worker) => worker,
            None => Process::start(&self.worker)?,
        };
        let failed = |reason| {
            let report = CaseReport::failed(job, Status::Error, reason);
            Ok(CaseReport { seconds: start.elapsed().as_secs_f64(), ..report })
        };
        // A worker that died between cases shows when its answer is awaited.
        let _ = worker.send(job);
        match worker.answers.recv_timeout(self.timeout) {
            Ok(line) => match serde_json::from_str(&line) {
                Ok(report) => {
                    *process = Some(worker);
                    Ok(report)
                }
                Err(error) => failed(format!("the worker's answer is not a report: {error}")),
            },
            Err(RecvTimeoutError::Timeout) => {
                worker.stop();
                failed(format!("stopped after {} s", self.timeout.as_secs()))
            }
            Err(RecvTimeoutError::Disconnected) => failed(worker.cause_of_death()),
        }
    }
}

/// A running worker.
struct Process {
    child: Child,
    input: Option<ChildStdin>,
    answers: Receiver<String>,
    /// Yields the end of what the worker wrote to stderr.
    complaints: Option<JoinHandle<String>>,
}

impl Process {
    fn start(worker: &Worker) -> Result<Process, Failure> {
        let refused = |error| Failure::Message(format!("a worker process could not be started: {error}"));
        let session = &worker.session;
        let engine = session.engine.to_possible_value();
        let mut command = Command::new(std::env::current_exe().map_err(refused)?);
        command.arg("test-worker").arg("--memory-bytes").arg(worker.memory_bytes.to_string());
        command.arg("--engine").arg(engine.as_ref().map_or("jit", |value| value.get_name()));
        command.arg("--threads").arg(session.threads.to_string());
        command.arg("--opt-level").arg(session.opt_level.to_string());
        command.arg("--max-file-bytes").arg(session.limits.max_file_bytes.to_string());
        command.arg("--max-nodes").arg(session.limits.max_nodes.to_string());
        command.arg("--max-elements").arg(session.limits.max_elements.to_string());
        command.arg("--max-memory-bytes").arg(session.limits.max_memory_bytes.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(refused)?;
        let (sender, answers) = mpsc::channel();
        let input = child.stdin.take();
        if let Some(output) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        let complaints = child.stderr.take().map(|stderr| thread::spawn(move || last_of(stderr)));
        Ok(Process { child, input, answers, complaints })
    }

    fn send(&mut self, job: &Job) -> std::io::Result<()> {
        let Some(input) = &mut self.input else { return Ok(()) };
        serde_json::to_writer(&mut *input, job)?;
        input.write_all(b"\n")?;
        input.flush()
    }

    fn stop(&mut self) {
        // A worker that is gone already needs no stopping.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn cause_of_death(mut self) -> String {
        self.input = None;
        let status = self.child.wait();
        let said = self.complaints.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let how = match status {
            Ok(status) => describe(status),
            Err(error) => format!("its status is unknown: {error}"),
        };
        match said.is_empty() {
            true => format!("crashed: {how}"),
            false => format!("crashed: {how}: {said}"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.input = None;
        self.stop();
    }
}

fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => match signal {
            4 => "illegal instruction".to_string(),
            6 => "aborted".to_string(),
            7 | 11 => "invalid memory access".to_string(),
            8 => "arithmetic exception".to_string(),
            9 => "killed".to_string(),
            _ => format!("signal {signal}"),
        },
        None => status.to_string(),
    }
}

/// The line that says most among the last ones: a panic's, else the last.
fn last_of(stderr: impl Read) -> String {
    let mut last: VecDeque<String> = VecDeque::new();
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if last.len() == 64 {
            last.pop_front();
        }
        last.push_back(line);
    }
    let panic = last.iter().position(|line| line.contains("panicked at"));
    match panic {
        Some(at) => last.iter().skip(at).take(2).map(String::as_str).collect::<Vec<_>>().join(" "),
        None => last.iter().rev().find(|line| !line.trim().is_empty()).cloned().unwrap_or_default(),
    }
}
