//! `striate classify`: what are a run's features worth where there are labels?

mod compare;
pub mod fit;
mod test;
pub mod tune;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Args, Subcommand};

use striate::analysis;
use striate::analysis::evaluate::Group;
use striate::classify::{LabelTable, Labelled, Source, Weights};
use striate::dataset::Dataset;
use striate::error::Error;
use striate::geometry::Kind;
use striate::network::Network;
use striate::network::checkpoint::{self, Checkpoint};

use super::Global;
use super::labelled;

/// Learn classes from what a run's units say of labelled pictures, and test that on others.
#[derive(Args)]
#[command(after_help = "\
Examples:
  striate classify fit outputs/run --labels train/ --test test/
  striate classify fit outputs/run --labels shards/ --csv labels.csv --stage 1 --stage 3 --name both
  striate classify eval outputs/run --labels test/ --name both
  striate classify predict outputs/run picture.jpg holiday/
  striate classify tune outputs/run --labels train/ --test test/ --out outputs/tuned
  striate classify compare outputs/run --labels train/ --test test/

With `fit` the network stays as it is, and one number is learned for each class and each value of a unit; with `tune` all weights
learn.")]
pub struct ClassifyArgs {
    #[command(subcommand)]
    command: ClassifyCommand,
}

#[derive(Subcommand)]
enum ClassifyCommand {
    Fit(Box<fit::FitArgs>),
    Eval(test::EvalArgs),
    Predict(test::PredictArgs),
    Tune(Box<tune::TuneArgs>),
    Compare(Box<compare::CompareArgs>),
}

pub fn run(args: ClassifyArgs, global: Global) -> anyhow::Result<ExitCode> {
    match args.command {
        ClassifyCommand::Fit(args) => fit::run(*args, global)?,
        ClassifyCommand::Eval(args) => test::eval(args, global)?,
        ClassifyCommand::Predict(args) => test::predict(args, global)?,
        ClassifyCommand::Tune(args) => return tune::run(*args, global),
        ClassifyCommand::Compare(args) => return compare::run(*args, global),
    }
    Ok(ExitCode::SUCCESS)
}

/// Pictures with classes on the command line.
#[derive(Args)]
pub struct LabelArgs {
    /// Labelled pictures: a folder, tar or frame set, or PATH::PATTERN for those whose key matches. The class of a picture is the name
    /// of its folder, or that of --csv if it names any of them; or CLASS=PATH gives it. May be repeated.
    #[arg(long, required = true, value_name = "[CLASS=]PATH[::PATTERN]")]
    pub labels: Vec<LabelSource>,
    #[command(flatten)]
    pub table: TableArgs,
}

/// What is tuned on which pictures.
#[derive(Args)]
pub struct TaskArgs {
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
    /// Pictures in a minibatch.
    #[arg(long, default_value_t = 96, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub batch: u16,
    /// Threads. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

impl TaskArgs {
    /// The values that classes are read off.
    pub fn group(&self, network: &Network) -> anyhow::Result<Group> {
        let stage = analysis::stage(self.stage, network.stages.len())?;
        if self.kind == Kind::A {
            let (key, got, want) = ("--kind".into(), "a".into(), "h or y".into());
            return Err(Error::Setting { key, got, want }.into());
        }
        Ok(Group { stage, kind: self.kind })
    }

    /// Decodes the pictures to learn from, and reads the table, which may name the classes of others too.
    pub fn pictures(
        &self,
        from: (&Path, &Checkpoint),
        global: &Global,
    ) -> anyhow::Result<(Decoded, Option<LabelTable>)> {
        let table = self.labels.table.read()?;
        let pictures = decoded(&self.labels.labels, table.as_ref(), (&self.classes, false), from, global)?;
        Ok((pictures, table))
    }
}

/// Where classes are named.
#[derive(Args)]
pub struct TableArgs {
    /// A CSV file with a header: the key of each picture, and its class.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// The column of --csv that has the class [default: `class`, else `label`, else the second].
    #[arg(long, value_name = "NAME", requires = "csv")]
    column: Option<String>,
}

impl TableArgs {
    pub fn read(&self) -> striate::Result<Option<LabelTable>> {
        self.csv.as_ref().map(|path| LabelTable::read(path, self.column.as_deref())).transpose()
    }
}

/// `[CLASS=]PATH[::PATTERN]`.
#[derive(Clone)]
pub struct LabelSource(Source);

impl FromStr for LabelSource {
    type Err = String;
    fn from_str(text: &str) -> Result<LabelSource, String> {
        let (class, rest) = match text.split_once('=') {
            Some((class, rest)) if !class.is_empty() && !class.contains('/') => {
                (Some(class.to_owned()), rest)
            }
            _ => (None, text),
        };
        let labelled::Source { path, pattern } = rest.parse()?;
        Ok(LabelSource(Source { class, path, pattern }))
    }
}

impl fmt::Display for LabelSource {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Source { class, path, pattern } = &self.0;
        class.as_ref().map_or(Ok(()), |class| write!(f, "{class}="))?;
        write!(f, "{}", path.display())?;
        pattern.as_ref().map_or(Ok(()), |pattern| write!(f, "::{pattern}"))
    }
}

/// Labelled pictures, decoded as a network takes them.
pub struct Decoded {
    pub dataset: Dataset,
    pub classes: Vec<String>,
    /// Of each picture.
    pub class: Vec<usize>,
    pub sources: Vec<String>,
}

/// Opens and decodes labelled pictures; see [`Labelled::open`].
pub fn decoded(
    sources: &[LabelSource],
    table: Option<&LabelTable>,
    (wanted, may_lack): (&[String], bool),
    (run, checkpoint): (&Path, &Checkpoint),
    global: &Global,
) -> anyhow::Result<Decoded> {
    let plain: Vec<Source> = sources.iter().map(|source| source.0.clone()).collect();
    let labelled = Labelled::open(&plain, table, wanted, may_lack)?;
    global.warn(&labelled.warnings());
    let dataset = global.pictures(&labelled.store, run, &checkpoint.config)?;
    let class = labelled.classes_of(&dataset);
    let sources = sources.iter().map(LabelSource::to_string).collect();
    Ok(Decoded { dataset, classes: labelled.classes, class, sources })
}

/// A run's network with the weights that a read-out is of: those of the checkpoint called so, or, if none is, of the newest.
pub fn network(run: &Path, weights: Weights, identity: Option<&str>) -> anyhow::Result<(Checkpoint, String)> {
    let newest = checkpoint::latest_of(run)?;
    let is_it =
        |folder: &PathBuf| checkpoint::identity(folder).is_ok_and(|one| Some(one.as_str()) == identity);
    let folder = match (identity, weights) {
        (None, _) | (_, Weights::Random(_)) => newest,
        (Some(identity), Weights::Learned) => {
            checkpoint::all(run).into_iter().rev().find(is_it).ok_or_else(|| {
                let problem = format!("the checkpoint of the read-out, {identity}, is gone; fit it again");
                Error::bad_file(run, problem)
            })?
        }
    };
    let mut checkpoint = Checkpoint::load(&folder, false)?;
    if let Weights::Random(seed) = weights {
        checkpoint.network = Network::new(&checkpoint.config, seed)?;
    }
    Ok((checkpoint, checkpoint::identity(&folder)?))
}
