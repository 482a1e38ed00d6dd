//! Trains a network: replicas on threads, each with its own minibatches, update one set of weights, and none waits for
//! another (paper §4.1); or, in mode `sync`, all wait for each other and the run repeats. Stage by stage or all together, with
//! checkpoints to go on from.

mod board;
pub mod cluster;
mod engine;
pub mod events;
mod feeder;
pub mod find_rate;
pub mod health;
pub mod monitor;
pub mod optimiser;
mod parallel;
pub mod replica;
mod run;
pub mod server;
mod state;
pub mod sweep;
pub mod validate;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::Serialize;

use crate::config::{OnDivergence, OnFullDisk, RunConfig};
use crate::dataset::{Augment, Dataset, Shuffle, Split, available_memory};
use crate::error::{Error, Result};
use crate::files;
use crate::frames::FrameStore;
use crate::kernels::{Buffer, Cpu, lanes_for, machine};
use crate::network::checkpoint::{self, Checkpoint};
use crate::network::preprocess::{Inputs, Scratch, Whitening};
use crate::network::{Network, costs};
use board::Board;
pub use board::EVENTS;
use cluster::lead::Lead;
use cluster::{Ranks, follow};
use engine::Engine;
pub(crate) use feeder::Feeder;
use monitor::{LogLine, Monitor, Totals};
pub use parallel::{Parallel, check_memory, memory_bytes};
pub(crate) use parallel::{ahead, check_worker_memory, inputs_len};
use run::{Pools, Run};
use server::Store;
use state::RollBacks;
pub use state::{Best, FramesUsed, State, check_folder};
use validate::Validation;

/// What else [`train`] wants to know.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Seed of weights, order and everything else.
    pub seed: u64,
    /// Threads in all, divided among replicas; as many replicas where the config leaves it open.
    pub threads: usize,
    /// Go on with the run in the folder, if there is one.
    pub resume: bool,
    /// Go on although settings were changed that a run can go on with.
    pub accept_changes: bool,
    /// Where the frames are from, for the record.
    pub frames: &'a Path,
    /// The other ranks, if this process leads a job of several.
    pub lead: Option<(&'a Lead<'a>, &'a FrameStore)>,
    /// Set to a signal's number to stop after the current step, save and return.
    pub interrupted: &'a AtomicUsize,
}

impl Options<'_> {
    /// The network that this process is to have, or its part of it, all weights 0.
    fn empty(&self, config: &RunConfig) -> Result<Network> {
        let network = Network::zeros(config, true)?;
        Ok(match self.lead {
            Some((lead, _)) => lead.group.own(network),
            None => network,
        })
    }
}

/// What [`train`] tells of while it works.
pub enum Happened<'a> {
    /// So many steps of the run are done.
    Step(u64),
    /// A line of the log was written.
    Line(&'a LogLine),
    /// Frames that are held out were looked at.
    Validation(&'a Validation),
    /// Something that a user should know.
    Note(&'a str),
}

/// What a training run came to.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The run folder.
    pub run: PathBuf,
    /// True if all steps were done; false if it was interrupted, and saved.
    pub finished: bool,
    /// Steps done in the whole run.
    pub steps: u64,
    /// Steps done by this call.
    pub new_steps: u64,
    /// Frames learned from.
    pub images: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Threads that trained.
    pub threads: usize,
    /// Replicas that trained.
    pub replicas: usize,
    /// Minibatches that each of them learned from now, on several ranks: whoever is faster takes more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub of_replicas: Vec<u64>,
    /// Share of the replicas' time in this call that they waited for minibatches.
    pub stall: f64,
    /// Updates in this call by staleness, see [`LogLine::staleness`].
    pub staleness: Vec<u64>,
    /// Their mean staleness.
    pub mean_staleness: f64,
    /// Pictures passed over in this call because they could not be read.
    pub skipped: u64,
    /// Frames there were.
    pub frames: usize,
    /// Of these, kept out of training.
    pub held_out: usize,
    /// Step of the checkpoint with the lowest validation loss of the last stages that learned.
    pub best: Option<Best>,
    /// How far each stage came.
    pub stages: Vec<StageSummary>,
}

/// How far a stage came.
#[derive(Debug, Clone, Serialize)]
pub struct StageSummary {
    /// Number of the stage, from 1.
    pub stage: usize,
    /// Loss in the first line of the log.
    pub first_loss: f64,
    /// Loss in the last.
    pub last_loss: f64,
    /// Reconstruction error as a share of the input, in the last line.
    pub unexplained: f64,
    /// Sparsity over reconstruction, in the last line.
    pub balance: f64,
    /// Loss on frames that were held out, at the end.
    pub validation_loss: Option<f64>,
    /// Complex units, and those of them that responded to no frame at the last validation.
    pub units: usize,
    /// See `units`.
    pub dead: usize,
}

impl StageSummary {
    /// What validation has to add.
    fn on_validation(&self) -> String {
        let loss = self.validation_loss.map_or(String::new(), |loss| format!("; held-out loss {loss:.2}"));
        let dead = if self.dead > 0 {
            format!("; {} of {} units dead", self.dead, self.units)
        } else {
            String::new()
        };
        loss + &dead
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let state = match (self.finished, self.new_steps) {
            (true, 0) => "nothing to do, the run is complete",
            (true, _) => "trained",
            _ => "interrupted and saved",
        };
        let Summary { steps, images, seconds, replicas, threads, stall, frames, held_out, .. } = self;
        let rate = *images as f64 / seconds.max(1e-9);
        write!(f, "{state}: {steps} steps, {images} images ({frames} frames")?;
        let held_out = if *held_out > 0 { format!(", {held_out} of them held out") } else { String::new() };
        writeln!(f, "{held_out}) in {seconds:.0} s")?;
        writeln!(
            f,
            "{replicas} replicas on {threads} threads, {rate:.0} images/s, {:.1} % of their time spent waiting for frames, \
             weights {:.2} updates old",
            100.0 * stall,
            self.mean_staleness
        )?;
        if !self.of_replicas.is_empty() {
            let each: Vec<String> = self.of_replicas.iter().map(u64::to_string).collect();
            writeln!(f, "minibatches of each: {}", each.join(", "))?;
        }
        if self.skipped > 0 {
            writeln!(f, "{} pictures could not be read and were passed over", self.skipped)?;
        }
        for s in &self.stages {
            let (first, last, share) = (s.first_loss, s.last_loss, 100.0 * s.unexplained);
            writeln!(
                f,
                "stage {}: loss {first:.2} -> {last:.2}; {share:.0} % of the input unexplained; \
                 sparsity / reconstruction {:.2}{}",
                s.stage,
                s.balance,
                s.on_validation()
            )?;
        }
        write!(f, "{}", self.run.display())
    }
}

/// Preprocessing is nothing beside learning if it takes less than one part in so many.
const WHITENING_SHARE: u64 = 20;

/// How often a run may go back to its last checkpoint.
const ROLL_BACKS: u32 = 5;

/// For so long the most that the threads can do is measured.
const PEAK_MS: f64 = 20.0;

/// Trains as `config` says on `frames`, in the run folder `out`; `watch` is told of what happens. Newly decoded frames are kept,
/// once it is clear that the run can use them.
///
/// # Errors
/// The folder holds a run already (or, to go on, one of other settings or frames), does not fit in memory, cannot be
/// written, a minibatch cannot be prepared, or the loss is no number any more or jumps; the last checkpoint stays good in every
/// case.
pub fn train(
    config: &RunConfig,
    frames: &mut Dataset,
    out: &Path,
    options: &Options,
    watch: impl Fn(Happened) + Sync,
) -> Result<Summary> {
    check_folder(out, options.resume)?;
    let warnings =
        health::check_frames(config, frames).map_err(|e| Error::bad_file(options.frames, e.to_string()))?;
    let threads = options.threads.max(1);
    let replicas = options.lead.map_or_else(|| Parallel::new(config, threads).replicas, |_| 1);
    let Ranks { workers, parts, .. } =
        options.lead.map_or(Ranks { workers: 1, parts: 1, servers: 0 }, |(lead, _)| lead.ranks());
    let (learners, all_threads) = (replicas.max(workers / parts), threads * workers);
    match options.lead {
        Some(_) => check_worker_memory(config, parts)?,
        None => check_memory(config, replicas)?,
    }
    let cpu = Cpu::detect()?;
    fs::create_dir_all(out).map_err(Error::io(out, "create"))?;
    // For as long as the run is in this process.
    let lock = fs::File::open(out).map_err(Error::io(out, "read"))?;
    if let Err(error) = lock.try_lock() {
        return Err(match error {
            fs::TryLockError::WouldBlock => Error::bad_file(out, "another process is training there"),
            fs::TryLockError::Error(e) => Error::io(out, "lock")(e),
        });
    }
    let from = checkpoint::latest(out);
    let used = FramesUsed {
        path: fs::canonicalize(options.frames).unwrap_or_else(|_| options.frames.to_owned()),
        count: frames.len(),
        fingerprint: frames.fingerprint().to_owned(),
    };
    let going_on = from.is_some();
    let resumed = from.map(|folder| state::resume(&folder, config, &used, options)).transpose()?;
    frames.keep()?;
    let frames = &*frames;
    run::clear_unfinished(out)?;
    let (network, whitening, mut state, changes) = match resumed {
        Some((Checkpoint { network, whitening, .. }, state, changes)) => {
            if options.seed != 0 && options.seed != state.seed {
                let problem = format!("the run was begun with seed {}, not {}", state.seed, options.seed);
                return Err(Error::bad_file(out, problem));
            }
            (network, whitening, state, changes)
        }
        None => {
            let split = Split::new(&frames.keys, config.training.held_out, options.seed);
            let whitening = Whitening::fit_on(&config.input, frames, &split.training, options.seed)?;
            let network = options.empty(config)?;
            network.draw(options.seed);
            // Now, and not only after hours of training.
            checkpoint::check_room(out, &network, &whitening)?;
            (network, whitening, State::new(options.seed, used.clone()), Vec::new())
        }
    };
    let mut split = Split::new(&frames.keys, config.training.held_out, state.seed);
    let held_out = split.fingerprint();
    if going_on && state.held_out.is_empty() {
        let problem =
            "the run was begun by an older version, which took frames in another order: begin it anew";
        return Err(Error::bad_file(out, problem));
    }
    if going_on && state.held_out != held_out {
        let problem =
            "the run was begun with other frames held out: their names in the frame set have changed";
        return Err(Error::bad_file(options.frames, problem));
    }
    state.held_out = held_out;
    // What this process learns from: all, or the leader's share.
    if let Some((lead, store)) = options.lead {
        split = follow::own_split(frames, store, config, state.seed, (0, lead.ranks().replicas()))?;
    }
    let phases = config.phases();
    if state.phase == phases.len() && changes.is_empty() {
        // Complete: it stays as it is.
        return summary(
            config,
            &state,
            &split,
            (out, all_threads, learners),
            (state.step, 0.0),
            Totals::default(),
        );
    }
    files::replace(&out.join("config.toml"), config.to_toml())?;
    // Frames stay as bytes where preprocessing them again and again is nothing beside learning from them.
    let costs = costs(config);
    let negligible = WHITENING_SHARE * whitening.flops() < costs[0].learn_flops;
    let budget = if negligible { 0 } else { available_memory() / 4 };
    let augment = Augment::new(&config.input, state.seed);
    let inputs = Inputs::for_training(frames, &whitening, budget as usize, augment);
    let pools = Pools::new(threads, replicas, config.training.mode)?;
    let rows = run::rows(config, threads, replicas);
    let skipped = Skipped::default();
    let (batch, every) = (config.training.batch as u64, config.training.log_every);
    let bytes = (state.log_bytes, state.validation_bytes);
    let mut monitor = Monitor::open(out, bytes, (state.step, batch), every)?;
    monitor.goes_on_when_full(config.training.on_full_disk == OnFullDisk::GoOn);
    let weights = Arc::new(network);
    let mut engine = match options.lead {
        Some((lead, _)) => Engine::Cluster(lead),
        None => Engine::Threads(Store::new(Arc::clone(&weights))),
    };
    engine.begin_from(&weights, out, state.seed)?;
    let mut run = Run {
        config,
        out,
        replicas: engine.replicas(&weights, config, (replicas, rows)),
        engine,
        weights,
        whitening: &whitening,
        inputs: &inputs,
        split: &split,
        peak: 1e9 * workers as f64 * pools.all.install(|| machine::fma_peak(cpu, PEAK_MS)),
        pools,
        monitor: Mutex::new(monitor),
        health: Mutex::default(),
        board: Mutex::new(Board::create(out, config, state.step)?),
        skipped: &skipped,
        options,
        watch: &watch,
        saved: Instant::now(),
        costs,
    };
    let how = match options.lead {
        Some((lead, _)) => {
            let Ranks { servers, .. } = lead.ranks();
            let split = if parts > 1 { format!(", a replica on {parts} of them") } else { String::new() };
            let frames = frames.len();
            format!("{workers} workers of {threads} threads each{split}, {servers} servers, {frames} frames")
        }
        None => format!("{replicas} replicas on {threads} threads, {} frames", frames.len()),
    };
    match going_on {
        true => run.note_quietly(state.step, &format!("went on with {how}"))?,
        false => run.note_quietly(0, &format!("began with {how}; seed {}", state.seed))?,
    }
    for warning in warnings.iter().filter(|_| !going_on) {
        run.note(state.step, warning)?;
    }
    for change in &changes {
        run.note(state.step, &format!("setting changed: {change}"))?;
    }
    if options.lead.is_some() && !going_on {
        // Workers take from it what is done to pictures first.
        run.save(&mut state, None, false)?;
    }
    let (steps_before, seconds_before) = (state.step, state.seconds);
    let mut roll_backs = RollBacks::read(out)?;
    loop {
        let outcome = std::thread::scope(|scope| {
            let left =
                phases.iter().skip(state.phase).map(|(_, steps)| steps).sum::<u64>() - state.phase_step;
            let (shuffle_seed, numbers) = match options.lead {
                // Who learns from how many is not known: it goes by who is faster.
                Some(_) => {
                    (follow::shuffle_seed(state.seed, 0), state.step / (workers / parts) as u64..u64::MAX)
                }
                None => (state.seed, state.step..state.step + left),
            };
            let shuffle = Shuffle::new(shuffle_seed, split.training.len(), config.training.batch);
            let lanes = lanes_for(config.training.batch);
            let prepare = prepare(&inputs, &split, &skipped, shuffle, lanes, numbers.start);
            let feeder = Feeder::start(scope, numbers, (ahead(replicas), inputs_len(config)), prepare)?;
            run.train(&mut state, &feeder, roll_backs.rate_factor())
        });
        match outcome {
            Err(Error::Diverged { stage, what, step, .. }) => {
                let good = checkpoint::latest(out).and_then(|path| checkpoint::step_of(&path));
                let error = Error::Diverged { stage, what, step, good };
                if config.training.on_divergence == OnDivergence::Stop || roll_backs.count == ROLL_BACKS {
                    run.note_quietly(step, &error.to_string())?;
                    return Err(error);
                }
                roll_backs.count += 1;
                roll_backs.write(out)?;
                let split = state.held_out.clone();
                state = run.roll_back(&used)?;
                state.held_out = split;
                let rate = roll_backs.rate_factor() * config.training.rate;
                run.note(state.step, &format!("{error}; went back to step {}, at rate {rate}", state.step))?;
            }
            outcome => break outcome?,
        }
    }
    let totals = run.lock_monitor().totals().clone();
    let seconds = state.seconds - seconds_before;
    let mut summary =
        summary(config, &state, &split, (out, all_threads, learners), (steps_before, seconds), totals)?;
    summary.of_replicas = run.engine.done();
    run.note_quietly(state.step, if summary.finished { "done" } else { "interrupted and saved" })?;
    Ok(summary)
}

/// What a run came to, of which this call did the last steps, in so many seconds.
fn summary(
    config: &RunConfig,
    state: &State,
    split: &Split,
    (out, threads, replicas): (&Path, usize, usize),
    (steps_before, seconds): (u64, f64),
    totals: Totals,
) -> Result<Summary> {
    let replica_seconds = (replicas as f64 * seconds).max(f64::MIN_POSITIVE);
    Ok(Summary {
        run: out.into(),
        finished: state.phase == config.phases().len(),
        steps: state.step,
        new_steps: state.step.saturating_sub(steps_before),
        images: state.images,
        seconds: state.seconds,
        threads,
        replicas,
        of_replicas: Vec::new(),
        stall: (totals.stall.as_secs_f64() / replica_seconds).min(1.0),
        mean_staleness: totals.mean_staleness(),
        staleness: totals.staleness,
        skipped: totals.skipped,
        frames: state.frames.count,
        held_out: split.held_out.len(),
        best: state.best.clone(),
        stages: summarise(&monitor::read_log(out)?, &monitor::read_lines(&out.join(monitor::VALIDATION))?),
    })
}

/// Pictures that were passed over since they could not be read.
#[derive(Default)]
pub(crate) struct Skipped {
    count: AtomicUsize,
    /// It was written down that there are some.
    noted: AtomicBool,
}

impl Skipped {
    /// Counts some more.
    pub(crate) fn add(&self, count: usize) {
        self.count.fetch_add(count, Ordering::Relaxed);
    }

    /// How many were counted since the last call.
    pub(crate) fn take(&self) -> usize {
        self.count.swap(0, Ordering::Relaxed)
    }
}

/// What prepares the minibatches of a run, in turn from number `first`.
pub(crate) fn prepare<'a>(
    inputs: &'a Inputs,
    split: &'a Split,
    skipped: &'a Skipped,
    mut shuffle: Shuffle,
    lanes: usize,
    first: u64,
) -> impl FnMut(u64, &mut Buffer) -> Result<()> + Send + 'a {
    let (mut indices, mut following, mut scratch) = (Vec::new(), Vec::new(), Scratch::default());
    let mut batch = move |number, indices: &mut Vec<usize>| {
        shuffle.batch(number, indices);
        indices.iter_mut().for_each(|index| *index = split.training[*index] as usize);
    };
    batch(first, &mut following);
    move |number, buffer| {
        std::mem::swap(&mut indices, &mut following);
        batch(number + 1, &mut following);
        inputs.announce(&following);
        let missing = inputs.fill_minibatch(Some(number), &indices, lanes, buffer, &mut scratch)?;
        if missing > 0 {
            skipped.add(missing);
        }
        Ok(())
    }
}

fn summarise(log: &[LogLine], validations: &[Validation]) -> Vec<StageSummary> {
    let mut stages: Vec<StageSummary> = Vec::new();
    for line in log.iter().flat_map(|line| &line.stages) {
        match stages.iter_mut().find(|summary| summary.stage == line.stage) {
            Some(summary) => {
                (summary.last_loss, summary.unexplained, summary.balance) =
                    (line.loss, line.unexplained, line.balance);
            }
            None => stages.push(StageSummary {
                stage: line.stage,
                first_loss: line.loss,
                last_loss: line.loss,
                unexplained: line.unexplained,
                balance: line.balance,
                validation_loss: None,
                units: 0,
                dead: 0,
            }),
        }
    }
    for summary in &mut stages {
        let of_stage = validations.iter().rev().find_map(|validation| {
            let stage = validation.stages.iter().find(|stage| stage.stage == summary.stage)?;
            Some((validation, stage))
        });
        if let Some((validation, stage)) = of_stage {
            summary.validation_loss = validation.held_out.then_some(stage.loss);
            (summary.units, summary.dead) = (stage.units, stage.dead);
        }
    }
    stages
}
