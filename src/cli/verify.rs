//! `striate verify`: this build on this CPU against golden files.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::bail;
use serde::Serialize;

use striate::error::Error;
use striate::kernels::Cpu;
use striate::network::checkpoint;
use striate::verify::{Check, SHIPPED, check_file};

use super::Global;

/// Check this build on this CPU against golden values of an independent float64 implementation, or that a run is whole.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate verify
  STRIATE_CPU=avx2 striate verify
  striate verify tests/golden/three_stage.safetensors --failures
  striate verify --run outputs/run

Exit code 1 if any tensor is off by more than its tolerance, or if anything of a run's newest checkpoint is missing,
misshapen, no number, or not what was written.")]
pub struct VerifyArgs {
    /// Golden files (safetensors with a `spec`); none for those that ship with the program.
    files: Vec<PathBuf>,
    /// Check the newest checkpoint of this run: every tensor there, shaped and finite, every file as it was written.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["files", "all_cpus"])]
    run: Option<PathBuf>,
    /// Check every instruction set of this machine, not only the one in use.
    #[arg(long)]
    all_cpus: bool,
    /// List only what fails.
    #[arg(long)]
    failures: bool,
}

#[derive(Serialize)]
struct Table {
    passed: usize,
    failed: usize,
    checks: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    check: Check,
    passes: bool,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let width = self.checks.iter().map(|row| row.check.tensor.len()).max().unwrap_or(6).max(6);
        if !self.checks.is_empty() {
            writeln!(f, "{:<12} {:<7} {:<width$} {:>9} {:>9}", "file", "cpu", "tensor", "error", "allowed")?;
        }
        for Row { check: c, passes } in &self.checks {
            let verdict = if *passes { "ok" } else { "FAILED" };
            writeln!(
                f,
                "{:<12} {:<7} {:<width$} {:>9.1e} {:>9.0e}  {verdict}",
                c.file, c.cpu, c.tensor, c.error, c.tolerance
            )?;
        }
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[derive(Serialize)]
struct RunTable {
    checkpoint: PathBuf,
    passed: usize,
    failed: usize,
    checks: Vec<checkpoint::Check>,
}

impl fmt::Display for RunTable {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        for checkpoint::Check { name, what, problem } in &self.checks {
            writeln!(f, "{name:<width$}  {what}  {}", problem.as_deref().unwrap_or("ok"))?;
        }
        write!(f, "{}: {} passed, {} failed", self.checkpoint.display(), self.passed, self.failed)
    }
}

fn run_whole(run: &Path, failures: bool, global: &Global) -> anyhow::Result<()> {
    let folder = checkpoint::latest_of(run)?;
    let (bad, good): (Vec<_>, Vec<_>) =
        checkpoint::check(&folder)?.into_iter().partition(|check| check.problem.is_some());
    let (passed, failed) = (good.len(), bad.len());
    let checks = if failures { bad } else { good.into_iter().chain(bad).collect() };
    global.print(&RunTable { checkpoint: folder, passed, failed, checks })?;
    if failed > 0 {
        bail!("{failed} of {} checks failed, listed above", passed + failed);
    }
    Ok(())
}

pub fn run(args: VerifyArgs, global: Global) -> anyhow::Result<()> {
    if let Some(run) = &args.run {
        return run_whole(run, args.failures, &global);
    }
    let cpus = if args.all_cpus { Cpu::available() } else { vec![Cpu::detect()?] };
    let mut checks = Vec::new();
    for cpu in cpus {
        if args.files.is_empty() {
            for (name, bytes) in SHIPPED {
                checks.extend(check_file(name.as_ref(), bytes, cpu)?);
            }
        }
        for path in &args.files {
            let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
            checks.extend(check_file(path, &bytes, cpu)?);
        }
    }
    let rows = checks.into_iter().map(|check| Row { passes: check.passes(), check });
    let (good, bad): (Vec<Row>, Vec<Row>) = rows.partition(|row| row.passes);
    let (passed, failed) = (good.len(), bad.len());
    let checks = if args.failures { bad } else { good.into_iter().chain(bad).collect() };
    global.print(&Table { passed, failed, checks })?;
    if failed > 0 {
        bail!("{failed} of {} tensors are off by more than is allowed, listed above", passed + failed);
    }
    Ok(())
}
