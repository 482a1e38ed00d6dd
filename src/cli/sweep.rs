//! `striate sweep`: several settings of one config on the same frames, one after the other.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use striate::config::RunConfig;
use striate::dataset::Dataset;
use striate::error::Error;
use striate::frames::FrameStore;
use striate::training::sweep::{Outcome, Sweep, Vary, settings};
use striate::training::{Options, train};

use super::Global;
use super::train::{on_signals, show};

/// Train several settings of one config on the same frames, one after the other, and compare them.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate sweep configs/small.toml --frames outputs/frames --out outputs/rates --vary training.rate=0.01,0.02,0.04
  striate sweep configs/small.toml --frames outputs/frames --out outputs/lambda \\
    --vary stages.2.sparsity_weight=1,2 --vary stages.3.sparsity_weight=4,6 --seeds 0,1,2

The same command again goes on where it was interrupted. On several machines, run one setting on each: docs/training.md.")]
pub struct SweepArgs {
    /// Settings that all runs share; see configs/.
    config: PathBuf,
    /// Frames to learn from: a frame set, WebDataset tar shards, or a folder of pictures.
    #[arg(long)]
    frames: PathBuf,
    /// Folder of the runs; results.json in it has the table.
    #[arg(long, default_value = "outputs/sweep")]
    out: PathBuf,
    /// A setting and the values that it takes; every combination of several is run.
    #[arg(long, value_name = "KEY=VALUE,..", required = true)]
    vary: Vec<Vary>,
    /// Seeds of each setting: how far apart they are tells what a difference between settings is worth.
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "0")]
    seeds: Vec<u64>,
    /// Replace one setting in all runs, e.g. `training.steps=[500,500,500]`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Threads in all, divided among the replicas of a run. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

pub fn run(args: SweepArgs, global: Global) -> anyhow::Result<ExitCode> {
    let all = settings(&args.vary, &args.seeds);
    // A setting that is wrong is refused before hours of the others.
    let configs = all.iter().map(|setting| {
        RunConfig::load(&args.config, &[args.overrides.clone(), setting.overrides()].concat())
    });
    let configs = configs.collect::<striate::Result<Vec<RunConfig>>>()?;
    let threads = global.use_threads(args.threads)?;
    let store = FrameStore::open(&args.frames)?;
    let interrupted = on_signals()?;
    let mut datasets: HashMap<(String, usize), Dataset> = HashMap::new();
    let mut sweep = Sweep { runs: Vec::new(), left: all.len() };
    for (setting, config) in all.into_iter().zip(configs) {
        let (shape, margin) = (config.input_shape(), config.input.margin);
        let (cols, rows) = (shape.cols + margin, shape.rows + margin);
        let name = format!("frames-{cols}x{rows}x{}", shape.channels);
        let frames = match datasets.entry((name, margin)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let folder = args.out.join(&entry.key().0);
                std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "create"))?;
                let bar = global.progress(store.len() as u64, "frames");
                let frames = Dataset::load(&store, shape, margin, &folder, true, || bar.inc(1))?;
                bar.finish();
                global.warn(&frames.warnings);
                entry.insert(frames)
            }
        };
        let out = args.out.join(setting.name());
        let bar = global.progress(config.training.steps.iter().sum(), "training");
        let options = Options {
            lead: None,
            seed: setting.seed,
            threads,
            resume: true,
            accept_changes: false,
            frames: &args.frames,
            interrupted: &interrupted,
        };
        bar.println(setting.name());
        let outcome = train(&config, frames, &out, &options, |happened| show(&bar, happened));
        bar.finish();
        let (summary, error) = match outcome {
            Ok(summary) => (Some(summary), None),
            // Settings that do not learn are a result; all else is a reason to stop.
            Err(error @ Error::Diverged { .. }) => (None, Some(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        let stopped = interrupted.load(Ordering::Relaxed) != 0;
        sweep.left -= usize::from(!stopped || summary.as_ref().is_some_and(|summary| summary.finished));
        sweep.runs.push(Outcome { setting, run: out, summary, error });
        sweep.save(&args.out)?;
        if stopped {
            break;
        }
    }
    global.print(&sweep)?;
    let code = match interrupted.load(Ordering::Relaxed) {
        signal if sweep.left > 0 => 128 + signal as u8,
        _ => 0,
    };
    Ok(ExitCode::from(code))
}
