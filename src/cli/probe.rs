//! `striate probe`: does training go as theory says?

mod ntk;
mod overparam;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use striate::classify::head::Kind as HeadKind;
use striate::classify::labels::some_of_each;
use striate::classify::tune::Settings;
use striate::error::Error;
use striate::files;
use striate::network::Network;

use super::Global;
use super::classify::{Decoded, TaskArgs};

/// Measure what theory says of training: the tangent kernel, and extra linear factors.
#[derive(Args)]
#[command(after_help = "\
Examples:
  striate probe ntk outputs/run --labels train/ --test test/
  striate probe overparam outputs/run --labels train/

Both tune the network on labelled pictures as `striate classify tune` does, keep no network, and write RUN/probe/NAME.json and
NAME.svg, which `striate report` shows.")]
pub struct ProbeArgs {
    #[command(subcommand)]
    command: ProbeCommand,
}

#[derive(Subcommand)]
enum ProbeCommand {
    Ntk(Box<ntk::NtkArgs>),
    Overparam(Box<overparam::OverparamArgs>),
}

pub fn run(args: ProbeArgs, global: Global) -> anyhow::Result<ExitCode> {
    match args.command {
        ProbeCommand::Ntk(args) => ntk::run(*args, global),
        ProbeCommand::Overparam(args) => overparam::run(*args, global),
    }
}

/// What is tuned, on what, and how positions are put together.
#[derive(Args)]
struct ProbedArgs {
    #[command(flatten)]
    task: TaskArgs,
    /// How positions are put together.
    #[arg(long, value_enum, default_value = "full")]
    head: HeadArg,
}

#[derive(Clone, Copy, ValueEnum)]
enum HeadArg {
    /// Each position has weights of its own.
    Full,
    /// Their mean.
    Mean,
}

impl ProbedArgs {
    /// How to tune: pictures as they are, never shifted or mirrored, so that all see the same.
    fn settings(&self, network: &Network, steps: u64, seed: u64) -> anyhow::Result<Settings> {
        let head = match self.head {
            HeadArg::Full => HeadKind::Full,
            HeadArg::Mean => HeadKind::Mean,
        };
        let (group, batch) = (self.task.group(network)?, self.task.batch.into());
        Ok(Settings { head, group, steps, batch, shift: 0, flip: false, seed, ..Settings::default() })
    }
}

/// About so many of the pictures, of each class the same share, by chance.
fn some(pictures: &Decoded, count: usize, seed: u64) -> Vec<usize> {
    let share = count as f64 / pictures.class.len() as f64;
    some_of_each(&pictures.class, share.min(1.0), seed)
}

/// Writes `RUN/probe/NAME.json` and `NAME.svg`.
fn write(run: &Path, name: &str, result: &impl Serialize, drawn: String) -> anyhow::Result<PathBuf> {
    let folder = run.join("probe");
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "create"))?;
    files::replace(&folder.join(format!("{name}.json")), serde_json::to_vec(result)?)?;
    files::replace(&folder.join(format!("{name}.svg")), drawn)?;
    Ok(folder.join(format!("{name}.json")))
}
