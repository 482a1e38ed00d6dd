//! `striate train`: fit a network to frames and leave a run folder behind.

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use indicatif::ProgressBar;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use striate::config::RunConfig;
use striate::dataset::Dataset;
use striate::error::Error;
use striate::frames::FrameStore;
use striate::training::find_rate::find_rate;
use striate::training::monitor::LogLine;
use striate::training::{Happened, Options, check_folder, train};

use super::Global;

/// Train a network on frames: unsupervised, asynchronously on threads.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate train configs/small.toml --frames outputs/frames --out outputs/run
  striate train configs/small.toml --frames pictures/ --out outputs/short --set 'training.steps=[500,500,500]'
  striate train configs/small.toml --frames outputs/frames --out outputs/run --resume
  striate train configs/small.toml --frames outputs/frames --find-lr
  mpirun -n 10 striate train configs/small.toml --frames outputs/frames --out outputs/run --servers 2  # docs/cluster.md
  striate watch outputs/run          # from another terminal; or: tensorboard --logdir outputs/run

Ctrl-C finishes the step, saves and exits with code 130; --resume goes on from there. A second Ctrl-C quits at once.")]
pub struct TrainArgs {
    /// Settings of the run; see configs/.
    config: PathBuf,
    /// Frames to learn from: a frame set, WebDataset tar shards, or a folder of pictures.
    #[arg(long)]
    pub frames: PathBuf,
    /// Run folder: settings as used, log.jsonl, validation.jsonl, notes.jsonl, events (TensorBoard), checkpoints, decoded frames.
    #[arg(long, default_value = "outputs/run")]
    pub out: PathBuf,
    /// Replace one setting, e.g. `training.rate=0.01` or `stages.2.maps=32`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Threads in all, divided among the replicas. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Replicas that train at the same time, as `--set training.replicas=N`; 0 for one per thread, or as many as memory holds.
    #[arg(long, value_name = "N")]
    replicas: Option<u16>,
    /// Continue the run in the folder, with the same settings; start it if there is none.
    #[arg(long)]
    pub resume: bool,
    /// With --resume: go on although settings differ from those the run was begun with, as far as a run can.
    #[arg(long, requires = "resume")]
    pub accept_changes: bool,
    /// Of the ranks that mpirun starts, those that hold the weights; all others learn. Default: one of five.
    #[arg(long, value_name = "K")]
    pub servers: Option<usize>,
    /// Split each replica over so many workers by position, for networks larger than one machine's memory; with mpirun only.
    #[arg(long, value_name = "R", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub split: u16,
    /// Search a learning rate to begin with, instead of training: a table, and nothing written.
    #[arg(long, conflicts_with_all = ["resume", "out"])]
    find_lr: bool,
}

/// Set to a signal's number by SIGINT and SIGTERM; a second one ends the process.
pub fn on_signals() -> anyhow::Result<Arc<AtomicUsize>> {
    let interrupted = Arc::new(AtomicUsize::new(0));
    for signal in [SIGINT, SIGTERM] {
        // The order matters: a second signal finds the flag set and ends the process.
        let twice = Arc::new(AtomicBool::new(false));
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&twice))?;
        flag::register(signal, twice)?;
        flag::register_usize(signal, Arc::clone(&interrupted), signal as usize)?;
    }
    Ok(interrupted)
}

/// Shows on `bar` what happens in a run.
pub fn show(bar: &ProgressBar, happened: Happened) {
    match happened {
        Happened::Step(step) => {
            if bar.position() == 0 && step > 1 {
                bar.reset_eta(); // a resumed run did not do the first steps now
            }
            bar.set_position(step);
        }
        Happened::Line(line) => bar.set_message(message(line)),
        Happened::Validation(_) => {}
        Happened::Note(note) => bar.suspend(|| say!("warning: {note}")),
    }
}

fn message(line: &LogLine) -> String {
    let stages: Vec<String> =
        line.stages.iter().map(|s| format!("stage {} loss {:.2}", s.stage, s.loss)).collect();
    let (rate, share) = (line.images_per_second, 100.0 * line.peak_share);
    format!("{}  {rate:.0} images/s, {share:.0} % of peak", stages.join(", "))
}

fn find_lr(config: &RunConfig, frames: &Path, threads: usize, global: Global) -> anyhow::Result<ExitCode> {
    let store = FrameStore::open(frames)?;
    let folder = tempfile::tempdir()?;
    let bar = global.progress(store.len() as u64, "frames");
    let frames =
        Dataset::load(&store, config.input_shape(), config.input.margin, folder.path(), false, || {
            bar.inc(1)
        })?;
    bar.finish();
    global.warn(&frames.warnings);
    let bar = global.progress(0, "searching");
    let found = find_rate(config, &frames, global.seed, threads, |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish();
    global.print(&found?)?;
    Ok(ExitCode::SUCCESS)
}

/// How many ranks of the job there are that this process was started in, if there are several.
fn ranks() -> Option<usize> {
    let of = |name: &str| env::var(name).ok()?.parse().ok();
    let of_launcher = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"].into_iter().find_map(of);
    // Slurm's own launcher says how many there are in any job, and by this that they can find each other.
    let of_slurm = || env::var_os("PMIX_RANK").and_then(|_| of("SLURM_NTASKS"));
    of_launcher.or_else(of_slurm).filter(|&ranks| ranks > 1)
}

#[cfg(feature = "mpi")]
fn on_ranks(args: TrainArgs, config: RunConfig, global: Global, _: usize) -> anyhow::Result<ExitCode> {
    super::ranks::run(args, config, global)
}

#[cfg(not(feature = "mpi"))]
fn on_ranks(_: TrainArgs, _: RunConfig, _: Global, ranks: usize) -> anyhow::Result<ExitCode> {
    let problem = format!(
        "started as one of {ranks} ranks, but built without MPI: build with `cargo build --release --features mpi`"
    );
    Err(Error::Mismatch(problem).into())
}

pub fn run(args: TrainArgs, global: Global) -> anyhow::Result<ExitCode> {
    let mut overrides = args.overrides.clone();
    overrides.extend(args.replicas.map(|replicas| format!("training.replicas={replicas}")));
    let config = RunConfig::load(&args.config, &overrides)?;
    if let Some(ranks) = ranks() {
        return on_ranks(args, config, global, ranks);
    }
    for (option, given) in [("--servers", args.servers.is_some()), ("--split", args.split > 1)] {
        if given {
            let problem =
                format!("{option} is for several ranks: start them with mpirun -n N striate train ...");
            return Err(Error::Mismatch(problem).into());
        }
    }
    let threads = global.use_threads(args.threads)?;
    if args.find_lr {
        return find_lr(&config, &args.frames, threads, global);
    }
    check_folder(&args.out, args.resume)?;
    let store = FrameStore::open(&args.frames)?;
    let bar = global.progress(store.len() as u64, "frames");
    std::fs::create_dir_all(&args.out).map_err(Error::io(&args.out, "create"))?;
    let (shape, margin) = (config.input_shape(), config.input.margin);
    let mut frames = Dataset::load(&store, shape, margin, &args.out, true, || bar.inc(1))?;
    bar.finish();
    global.warn(&frames.warnings);

    let interrupted = on_signals()?;
    let steps: u64 = config.training.steps.iter().sum();
    let bar = global.progress(steps, "training");
    let options = Options {
        seed: global.seed,
        threads,
        resume: args.resume,
        accept_changes: args.accept_changes,
        frames: &args.frames,
        lead: None,
        interrupted: &interrupted,
    };
    let summary = train(&config, &mut frames, &args.out, &options, |happened| show(&bar, happened));
    bar.finish();
    let summary = summary?;
    global.print(&summary)?;
    let code = match interrupted.load(Ordering::Relaxed) {
        signal if !summary.finished => 128 + signal as u8,
        _ => 0,
    };
    Ok(ExitCode::from(code))
}
