//! The command line: arguments in, a library call, the result out.
//!
//! Results go to stdout, as text or with `--json` as one JSON object; progress, warnings and errors go to stderr.

/// Prints a line to stderr; if nobody reads it any more, that is no reason to stop.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod bench;
mod classify;
mod compare;
mod controls;
mod encode;
mod evaluate;
mod example;
mod explain;
mod frames;
mod info;
mod invariance;
mod labelled;
mod map;
mod neighbours;
mod probe;
#[cfg(feature = "mpi")]
mod ranks;
mod report;
mod sample;
mod scale;
mod serve;
mod sweep;
mod synth;
mod train;
mod tuning;
mod verify;
mod view;
mod visualize;
mod watch;
mod worker;

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use striate::RunConfig;
use striate::analysis::{Progress, UnitName};
use striate::dataset::Dataset;
use striate::error::Error;
use striate::frames::FrameStore;
use striate::geometry::Kind;
use striate::network::checkpoint;
use striate::report::detectors::Evaluated;
use striate::training::State;

/// Teaches itself to see from unlabelled video, and shows what it learned.
#[derive(Parser)]
#[command(version, propagate_version = true, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Whether the threads of this process are started.
static THREADS_ARE_SET: AtomicBool = AtomicBool::new(false);

const EXAMPLES: &str = "\
Example, from videos to pictures of what the units prefer:
  striate sample my-videos/ --out outputs/frames --size 64 --per-video 20
  striate train configs/small.toml --frames outputs/frames --out outputs/run
  striate visualize outputs/run --frames outputs/frames
  striate evaluate outputs/run --positives faces/ --negatives others/
  striate controls outputs/run --positives faces/ --negatives others/
  striate report outputs/run

Exit codes: 0 done, 1 failed, 2 wrong usage or config, 3 bad inputs under --strict, 130 or 143 interrupted.";

/// Flags that every command takes.
#[derive(Args, Clone, Copy)]
pub struct Global {
    /// Print the result as one JSON object.
    #[arg(long, global = true)]
    pub json: bool,
    /// Seed of all randomness; the same seed gives the same result (of training: in mode "sync", or with one replica).
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// No progress on stderr; warnings and errors remain.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// No result either: the command is a step of another.
    #[arg(skip)]
    silent: bool,
}

#[derive(Subcommand)]
enum Command {
    Synth(synth::SynthArgs),
    Sample(Box<sample::SampleArgs>),
    Frames(frames::FramesArgs),
    Train(Box<train::TrainArgs>),
    Watch(watch::WatchArgs),
    Sweep(Box<sweep::SweepArgs>),
    Visualize(Box<visualize::VisualizeArgs>),
    Evaluate(Box<evaluate::EvaluateArgs>),
    Controls(Box<controls::ControlsArgs>),
    Compare(compare::CompareArgs),
    Tuning(tuning::TuningArgs),
    Invariance(Box<invariance::InvarianceArgs>),
    Encode(encode::EncodeArgs),
    Classify(classify::ClassifyArgs),
    Probe(probe::ProbeArgs),
    Neighbours(neighbours::NeighboursArgs),
    Map(map::MapArgs),
    Explain(explain::ExplainArgs),
    Report(report::ReportArgs),
    Serve(serve::ServeArgs),
    Verify(verify::VerifyArgs),
    Bench(bench::BenchArgs),
    Scale(scale::ScaleArgs),
    Info(info::InfoArgs),
    #[command(hide = true)]
    Worker(worker::WorkerArgs),
}

/// Parses the command line, runs the command and reports an error with its causes.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            // Each of this crate's errors names its cause already; others are joined with theirs.
            let usage = error.downcast_ref::<Error>().is_some_and(Error::is_usage);
            let line = if error.is::<Error>() { error.to_string() } else { format!("{error:#}") };
            say!("error: {line}");
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let global = cli.global;
    match cli.command {
        Command::Synth(args) => synth::run(args, &global)?,
        Command::Sample(args) => return sample::run(*args, global),
        Command::Frames(args) => frames::run(args, global)?,
        Command::Train(args) => return train::run(*args, global),
        Command::Watch(args) => watch::run(args, &global)?,
        Command::Sweep(args) => return sweep::run(*args, global),
        Command::Visualize(args) => visualize::run(*args, global)?,
        Command::Evaluate(args) => evaluate::run(*args, global)?,
        Command::Controls(args) => return controls::run(*args, global),
        Command::Compare(args) => compare::run(args, global)?,
        Command::Tuning(args) => tuning::run(args, global)?,
        Command::Invariance(args) => invariance::run(*args, global)?,
        Command::Encode(args) => return encode::run(args, global),
        Command::Classify(args) => return classify::run(args, global),
        Command::Probe(args) => return probe::run(args, global),
        Command::Neighbours(args) => neighbours::run(args, global)?,
        Command::Map(args) => map::run(args, global)?,
        Command::Explain(args) => explain::run(args, global)?,
        Command::Report(args) => report::run(args, global)?,
        Command::Serve(args) => serve::run(args, global)?,
        Command::Verify(args) => verify::run(args, global)?,
        Command::Bench(args) => bench::run(args, global)?,
        Command::Scale(args) => scale::run(args, global)?,
        Command::Info(args) => info::run(args, global)?,
        Command::Worker(args) => return worker::run(args),
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the frames are: as named, or those that the run was trained on.
fn frames_of(run: &Path, named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path);
    }
    let path = checkpoint::read_state::<State>(&checkpoint::latest_of(run)?)?.frames.path;
    if !path.exists() {
        return Err(
            Error::bad_file(path, "the run's frames are no longer there; name others with --frames").into()
        );
    }
    Ok(path)
}

/// The best unit that `striate evaluate --concept NAME` found for the network of a checkpoint, by values of a kind.
fn best_of(evaluated: &[Evaluated], name: &str, (identity, kind): (&str, Kind)) -> anyhow::Result<UnitName> {
    let found = evaluated.iter().find(|one| one.concept == name);
    let found = found.filter(|one| one.checkpoint == identity).and_then(|one| one.best_by(kind));
    match found {
        Some(best) => Ok(best.unit.probe.name()),
        None => anyhow::bail!(
            "--detector {name}: no unit of this checkpoint was tested for it by its values {kind}; run `striate evaluate --concept {name}` first"
        ),
    }
}

/// `1.5` and `GB` of `1.5GB`.
fn number_with_unit(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim()))
}

/// Bytes, with a unit such as `MB`, `G` or `GiB`, or without.
fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = number_with_unit(text)?;
    let factor = match unit.to_ascii_uppercase().trim_end_matches('B') {
        "" => 1.0,
        "K" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "KI" => f64::from(1 << 10),
        "MI" => f64::from(1 << 20),
        "GI" => f64::from(1 << 30),
        _ => return None,
    };
    Some((number * factor) as u64)
}

impl Global {
    /// Prints a command's result to stdout. A reader that hangs up early (`| head`) is no error.
    pub fn print<T: Serialize + Display>(&self, result: &T) -> anyhow::Result<()> {
        if self.silent {
            return Ok(());
        }
        let text = match self.json {
            true => serde_json::to_string(result)?,
            false => result.to_string(),
        };
        match writeln!(std::io::stdout(), "{}", text.trim_end()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Prints what a user should know to stderr; of many alike only the first few.
    pub fn warn(&self, warnings: &[String]) {
        const SHOWN: usize = 20;
        warnings.iter().take(SHOWN).for_each(|warning| say!("warning: {warning}"));
        if warnings.len() > SHOWN {
            say!("warning: and {} more", warnings.len() - SHOWN);
        }
    }

    /// Uses this many threads from now on, or one per core; returns how many were asked for. More than there are cores
    /// would only wait for each other. The first call of a process decides.
    pub fn use_threads(&self, threads: Option<u16>) -> anyhow::Result<usize> {
        let cores = std::thread::available_parallelism()?.get();
        let threads = threads.map_or(cores, usize::from);
        if !THREADS_ARE_SET.swap(true, Ordering::Relaxed) {
            rayon::ThreadPoolBuilder::new().num_threads(threads.min(cores)).build_global()?;
        }
        Ok(threads)
    }

    /// Decodes pictures as a run's network takes them, into a file in the run's folder that is gone with them.
    pub fn pictures(&self, store: &FrameStore, run: &Path, config: &RunConfig) -> anyhow::Result<Dataset> {
        let bar = self.progress(store.len() as u64, "frames");
        let (shape, margin) = (config.input_shape(), config.input.margin);
        let dataset = Dataset::load(store, shape, margin, run, false, || bar.inc(1))?;
        bar.finish();
        self.warn(&dataset.warnings);
        Ok(dataset)
    }

    /// A progress bar for work of several parts, and what tells it of them.
    pub fn parts(&self, what: &'static str) -> (ProgressBar, Progress) {
        let bar = self.progress(0, what);
        let (begun, added) = (bar.clone(), bar.clone());
        let progress = Progress {
            on_begin: Box::new(move |what, len| {
                begun.reset();
                begun.set_length(len as u64);
                begun.set_message(what.to_owned());
            }),
            on_add: Box::new(move |count| added.inc(count as u64)),
        };
        (bar, progress)
    }

    /// A progress bar with ETA on stderr. Where stderr is no terminal, a line every few seconds instead.
    pub fn progress(&self, len: u64, what: &'static str) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        let style = "{prefix:>10} [{bar:30}] {human_pos}/{human_len}  {elapsed} elapsed, {eta} left  {msg}";
        let style = ProgressStyle::with_template(style).expect("a valid template").progress_chars("=> ");
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(len).with_style(style).with_prefix(what);
            bar.enable_steady_tick(Duration::from_millis(250));
            return bar;
        }
        let bar = ProgressBar::with_draw_target(Some(len), ProgressDrawTarget::hidden()).with_prefix(what);
        let watched = bar.downgrade();
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_secs(5));
                let Some(bar) = watched.upgrade() else { break };
                if bar.is_finished() {
                    break;
                }
                let (done, len) = (bar.position(), bar.length().unwrap_or(0));
                let percent = 100 * done / len.max(1);
                let (elapsed, left) = (bar.elapsed().as_secs(), bar.eta().as_secs());
                say!(
                    "{what}: {done}/{len} ({percent} %), {elapsed} s elapsed, {left} s left  {}",
                    bar.message()
                );
            }
        });
        bar
    }
}
