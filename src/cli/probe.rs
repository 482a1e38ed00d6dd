//! `striate probe`: does training go as theory says?

mod ntk;
mod overparam;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use striate::analysis;
use striate::analysis::evaluate::Group;
use striate::classify::head::Kind as HeadKind;
use striate::classify::labels::some_of_each;
use striate::classify::tune::Settings;
use striate::error::Error;
use striate::files;
use striate::geometry::Kind;
use striate::network::Network;

use super::Global;
use super::classify::{Decoded, LabelArgs};

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

/// What is tuned, and on what.
#[derive(Args)]
struct TaskArgs {
    #[command(flatten)]
    labels: LabelArgs,
    /// Only these classes, in this order, with commas between [default: all that there are].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    classes: Vec<String>,
    /// Stage that the classes are read off, from 1; those above have no part [default: the top one].
    #[arg(long, value_name = "N")]
    stage: Option<usize>,
    /// Value of a unit: pooled (h) or normalised (y).
    #[arg(long, value_enum, default_value = "y")]
    kind: Kind,
    /// How positions are put together.
    #[arg(long, value_enum, default_value = "full")]
    head: HeadArg,
    /// Pictures in a minibatch.
    #[arg(long, default_value_t = 96, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Threads. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

#[derive(Clone, Copy, ValueEnum)]
enum HeadArg {
    /// Each position has weights of its own.
    Full,
    /// Their mean.
    Mean,
}

impl TaskArgs {
    /// How to tune: pictures as they are, never shifted or mirrored, so that all see the same.
    fn settings(&self, network: &Network, steps: u64, seed: u64) -> anyhow::Result<Settings> {
        let stage = analysis::stage(self.stage, network.stages.len())?;
        if self.kind == Kind::A {
            let (key, got, want) = ("--kind".into(), "a".into(), "h or y".into());
            return Err(Error::Setting { key, got, want }.into());
        }
        Ok(Settings {
            head: match self.head {
                HeadArg::Full => HeadKind::Full,
                HeadArg::Mean => HeadKind::Mean,
            },
            group: Group { stage, kind: self.kind },
            steps,
            batch: self.batch.into(),
            shift: 0,
            flip: false,
            seed,
            ..Settings::default()
        })
    }
}

/// About so many of the pictures, of each class the same share, by chance.
fn some(pictures: &Decoded, count: usize, seed: u64) -> Vec<usize> {
    let share = count as f64 / pictures.class.len() as f64;
    some_of_each(&pictures.class, share.min(1.0), seed)
}

/// Numbers above 0.
fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    number.ok_or("expected a number above 0".into())
}

/// Writes `RUN/probe/NAME.json` and `NAME.svg`.
fn write(run: &Path, name: &str, result: &impl Serialize, drawn: String) -> anyhow::Result<PathBuf> {
    let folder = run.join("probe");
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "create"))?;
    files::replace(&folder.join(format!("{name}.json")), serde_json::to_vec(result)?)?;
    files::replace(&folder.join(format!("{name}.svg")), drawn)?;
    Ok(folder.join(format!("{name}.json")))
}
