//! `striate info`: what is this config, frame set or run?

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use striate::config::RunConfig;
use striate::error::Error;
use striate::frames::FrameStore;
use striate::network::{StageCost, TrainingBytes, checkpoint, costs, schedule_flops, training_bytes};
use striate::report::figure::grouped;
use striate::training::monitor::{LogLine, read_log};
use striate::training::{Parallel, State};

use super::Global;

/// Say what a config, frame set or run is: sizes, receptive fields, weights, memory, cost.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate info configs/paper.toml
  striate info outputs/frames
  striate info outputs/run --json")]
pub struct InfoArgs {
    /// Config file, frame set, tar shard, folder of pictures, or run folder.
    path: PathBuf,
    /// Replace one setting of a config. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Info {
    Config(Box<NetworkInfo>),
    Run(Box<RunInfo>),
    Frames(FramesInfo),
}

#[derive(Serialize)]
struct NetworkInfo {
    path: PathBuf,
    config: RunConfig,
    stages: Vec<StageCost>,
    units: usize,
    encoder_connections: u64,
    trainable_weights: u64,
    encode_flops_per_image: u64,
    learn_flops_per_image: u64,
    memory: TrainingBytes,
    /// What `striate train` would use on this machine.
    parallel: Parallel,
    images: u64,
}

#[derive(Serialize)]
struct RunInfo {
    network: NetworkInfo,
    checkpoint: PathBuf,
    state: State,
    steps_planned: u64,
    last: Option<LogLine>,
}

#[derive(Serialize)]
struct FramesInfo {
    path: PathBuf,
    frames: usize,
    first: Option<FrameInfo>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct FrameInfo {
    key: String,
    width: u32,
    height: u32,
    colour: bool,
    metadata: Option<serde_json::Value>,
}

impl NetworkInfo {
    fn new(path: &Path, config: RunConfig) -> NetworkInfo {
        let stages = costs(&config);
        let sum = |f: &dyn Fn(&StageCost) -> u64| stages.iter().map(f).sum::<u64>();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let parallel = Parallel::new(&config, cores);
        NetworkInfo {
            path: path.into(),
            units: stages.iter().map(|s| s.units).sum(),
            encoder_connections: sum(&|s| s.encoder_connections),
            trainable_weights: sum(&|s| s.weights),
            encode_flops_per_image: sum(&|s| s.encode_flops),
            learn_flops_per_image: mean_learn_flops(&config, &stages),
            memory: training_bytes(&config, parallel.replicas),
            parallel,
            images: config.training.steps.iter().sum::<u64>() * config.training.batch as u64,
            stages,
            config,
        }
    }
}

/// Mean over the schedule's steps: a stage that learns has five products for each weight, those below it one.
fn mean_learn_flops(config: &RunConfig, stages: &[StageCost]) -> u64 {
    let steps: u128 = config.training.steps.iter().map(|&steps| u128::from(steps)).sum();
    (schedule_flops(config, stages) / steps.max(1)) as u64
}

/// Arithmetic, with a unit.
pub(super) fn flop(count: f64) -> String {
    if count < 1e8 {
        format!("{:.2} MFLOP", count / 1e6)
    } else if count < 1e11 {
        format!("{:.2} GFLOP", count / 1e9)
    } else {
        format!("{:.2} TFLOP", count / 1e12)
    }
}

/// Memory, with a unit.
pub(super) fn gb(bytes: u64) -> String {
    if bytes < 100_000_000 {
        format!("{:.1} MB", bytes as f64 / 1e6)
    } else {
        format!("{:.2} GB", bytes as f64 / 1e9)
    }
}

impl fmt::Display for NetworkInfo {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let i = &self.config.input;
        writeln!(
            f,
            "{}: {} stages on {}x{}x{} pictures",
            self.path.display(),
            self.stages.len(),
            i.width,
            i.height,
            i.channels
        )?;
        for (number, s) in (1..).zip(&self.stages) {
            let (a, h, r) = (s.shape.filtered, s.shape.pooled, s.support);
            writeln!(
                f,
                "stage {number}: {} units in {} maps of {}x{}",
                grouped(s.units as u64),
                h.channels,
                h.cols,
                h.rows
            )?;
            writeln!(
                f,
                "  filters     {0}x{0}x{1}, stride {2}: {3} maps of {4}x{5}",
                s.shape.field, s.shape.input.channels, s.shape.stride, a.channels, a.cols, a.rows
            )?;
            writeln!(
                f,
                "  a unit sees {0}x{0} pixels by filtering and pooling, {1}x{1} (h) or {2}x{2} (y) through normalisation",
                r.pooling_only, r.h, r.y
            )?;
            let (connections, weights) = (grouped(s.encoder_connections), grouped(s.weights));
            writeln!(f, "  encoder connections {connections}; trainable weights {weights}")?;
        }
        writeln!(f, "in all {} units", grouped(self.units as u64))?;
        writeln!(f, "encoder connections {}", grouped(self.encoder_connections))?;
        writeln!(f, "trainable weights {} (encoder and decoder)", grouped(self.trainable_weights))?;
        let m = &self.memory;
        writeln!(
            f,
            "training memory: weights {} ({}), optimiser {}, activations {} a replica of batch {}",
            gb(m.weights),
            self.config.training.precision.name(),
            gb(m.optimiser),
            gb(m.activations),
            self.config.training.batch
        )?;
        if m.copies + m.gradients > 0 {
            writeln!(
                f,
                "and for each replica: its own weights {}, its own gradient {}",
                gb(m.copies),
                gb(m.gradients)
            )?;
        }
        let Parallel { threads, replicas, reason } = &self.parallel;
        writeln!(f, "on this machine: {threads} threads, {replicas} replicas ({reason})")?;
        writeln!(
            f,
            "cost of an image: {} to encode, {} to learn from (mean of the schedule)",
            flop(self.encode_flops_per_image as f64),
            flop(self.learn_flops_per_image as f64)
        )?;
        let steps: Vec<String> = self.config.training.steps.iter().map(|&steps| grouped(steps)).collect();
        write!(f, "schedule: {} steps, {} images", steps.join(" + "), grouped(self.images))
    }
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Info::Config(network) => network.fmt(f),
            Info::Run(run) => {
                writeln!(f, "{}", run.network)?;
                let s = &run.state;
                writeln!(
                    f,
                    "run: {} of {} steps, {} images, {:.0} s, seed {}",
                    grouped(s.step),
                    grouped(run.steps_planned),
                    grouped(s.images),
                    s.seconds,
                    s.seed
                )?;
                for stage in run.last.iter().flat_map(|line| &line.stages) {
                    let (share, balance) = (100.0 * stage.unexplained, stage.balance);
                    writeln!(
                        f,
                        "stage {}: loss {:.2}, {share:.0} % unexplained, sparsity / reconstruction {balance:.2}",
                        stage.stage, stage.loss
                    )?;
                }
                writeln!(f, "frames: {} of {}", s.frames.count, s.frames.path.display())?;
                write!(f, "checkpoint: {}", run.checkpoint.display())
            }
            Info::Frames(frames) => {
                write!(f, "{}: {} pictures", frames.path.display(), grouped(frames.frames as u64))?;
                if let Some(first) = &frames.first {
                    let colour = if first.colour { "colour" } else { "grey" };
                    write!(f, "\nfirst: {} ({}x{}, {colour})", first.key, first.width, first.height)?;
                    if let Some(metadata) = &first.metadata {
                        write!(f, "\n{}", serde_json::to_string_pretty(metadata).map_err(|_| fmt::Error)?)?;
                    }
                }
                Ok(())
            }
        }
    }
}

pub fn run(args: InfoArgs, global: Global) -> anyhow::Result<()> {
    let path = &args.path;
    let is_config = path.is_file() && path.extension().is_some_and(|extension| extension == "toml");
    if is_config {
        let network = NetworkInfo::new(path, RunConfig::load(path, &args.overrides)?);
        return global.print(&Info::Config(Box::new(network)));
    }
    if !args.overrides.is_empty() {
        let (got, want) = (format!("given with {}", path.display()), "a config file (.toml) to change");
        return Err(Error::Setting { key: "--set".into(), got, want: want.into() }.into());
    }
    if path.join("checkpoints").is_dir() || path.join("config.toml").is_file() {
        return global.print(&Info::Run(Box::new(run_info(path, global)?)));
    }
    let store = FrameStore::open(path)?;
    let mut warnings = store.warnings().to_vec();
    let first = first_frame(&store).inspect_err(|e| warnings.push(e.to_string())).ok();
    global.warn(&warnings);
    global.print(&Info::Frames(FramesInfo { path: path.clone(), frames: store.len(), first, warnings }))
}

fn first_frame(store: &FrameStore) -> striate::Result<FrameInfo> {
    let picture = store.picture(0)?;
    let (key, metadata) = (store.key(0).to_owned(), store.metadata(0)?);
    let colour = picture.color().has_color();
    Ok(FrameInfo { key, width: picture.width(), height: picture.height(), colour, metadata })
}

fn run_info(path: &Path, global: Global) -> anyhow::Result<RunInfo> {
    let config = RunConfig::load(&path.join("config.toml"), &[])?;
    let missing = || Error::bad_file(path, "not a run: it has no checkpoint");
    let checkpoint = checkpoint::latest(path).ok_or_else(missing)?;
    // A power cut may tear the log's last line, and the run is good all the same.
    let log = path.join("log.jsonl");
    let log = if log.exists() { read_log(path) } else { Ok(Vec::new()) };
    let log = log.inspect_err(|e| global.warn(&[e.to_string()])).unwrap_or_default();
    Ok(RunInfo {
        steps_planned: config.training.steps.iter().sum(),
        network: NetworkInfo::new(path, config),
        state: checkpoint::read_state(&checkpoint)?,
        last: log.into_iter().next_back(),
        checkpoint,
    })
}
