//! Trains a network: replicas on threads, each with its own minibatches, update one set of weights, and none waits for
//! another (paper §4.1). Stage by stage or all together, with checkpoints to go on from.

mod feeder;
pub mod monitor;
pub mod optimiser;

use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::RunConfig;
use crate::dataset::{Augment, Dataset, Shuffle, available_memory, is_cache_file};
use crate::error::{Error, Result};
use crate::kernels::{Buffer, Cpu, Rows, lanes_for};
use crate::network::checkpoint::{self, Checkpoint};
use crate::network::preprocess::{Inputs, Scratch, Whitening};
use crate::network::{Network, costs, training_bytes};
use feeder::Feeder;
use monitor::{LogLine, Monitor, Position};
use optimiser::{Step, schedule};

/// Where a run stands; saved with each checkpoint. All randomness follows from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Phase of the schedule, from 0.
    pub phase: usize,
    /// Steps done in this phase.
    pub phase_step: u64,
    /// Steps done in the whole run: the number of the next minibatch.
    pub step: u64,
    /// Frames learned from.
    pub images: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Bytes of the log.
    pub log_bytes: u64,
    /// Seed of the run.
    pub seed: u64,
    /// The frames that it learns from.
    pub frames: FramesUsed,
}

/// The frames that a run learns from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FramesUsed {
    /// Where they are, as an absolute path.
    pub path: PathBuf,
    /// How many.
    pub count: usize,
    /// See [`Dataset::fingerprint`].
    pub fingerprint: String,
}

/// What else [`train`] wants to know.
pub struct Options<'a> {
    /// Seed of weights, order and everything else.
    pub seed: u64,
    /// Threads in all, divided among replicas; as many replicas where the config leaves it open.
    pub threads: usize,
    /// Go on with the run in the folder, if there is one.
    pub resume: bool,
    /// Where the frames are from, for the record.
    pub frames: &'a Path,
    /// Set to a signal's number to stop after the current step, save and return.
    pub interrupted: &'a AtomicUsize,
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
    /// Replicas that trained.
    pub replicas: usize,
    /// Share of the replicas' time in this call that they waited for minibatches.
    pub stall: f64,
    /// Frames there were.
    pub frames: usize,
    /// Loss of each stage in its first and last line of the log.
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
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let state = match (self.finished, self.new_steps) {
            (true, 0) => "nothing to do, the run is complete",
            (true, _) => "trained",
            _ => "interrupted and saved",
        };
        let Summary { steps, images, seconds, replicas, stall, frames, .. } = self;
        let rate = *images as f64 / seconds.max(1e-9);
        writeln!(f, "{state}: {steps} steps, {images} images ({frames} frames) in {seconds:.0} s")?;
        writeln!(
            f,
            "{replicas} replicas, {rate:.0} images/s, {:.1} % of their time spent waiting for frames",
            100.0 * stall
        )?;
        for s in &self.stages {
            let (first, last, share) = (s.first_loss, s.last_loss, 100.0 * s.unexplained);
            writeln!(
                f,
                "stage {}: loss {first:.2} -> {last:.2}; {share:.0} % of the input unexplained; \
                 sparsity / reconstruction {:.2}",
                s.stage, s.balance
            )?;
        }
        write!(f, "{}", self.run.display())
    }
}

/// Preprocessing is nothing beside learning if it takes less than one part in so many.
const WHITENING_SHARE: u64 = 20;

/// A run in progress, shared by its replicas.
struct Run<'a> {
    config: &'a RunConfig,
    out: &'a Path,
    network: Network,
    whitening: &'a Whitening,
    monitor: Mutex<Monitor>,
    interrupted: &'a AtomicUsize,
}

/// Trains as `config` says on `frames`, in the run folder `out`; `watch` is told of every step (the last step of the
/// run, and a line of the log when one was written). Newly decoded frames are kept, once it is clear that the run can use
/// them.
///
/// # Errors
/// The folder holds a run already (or, to go on, one of other settings or frames), does not fit in memory, cannot be
/// written, a minibatch cannot be prepared, or the loss is no number any more; the last checkpoint stays good in every case.
pub fn train(
    config: &RunConfig,
    frames: &mut Dataset,
    out: &Path,
    options: &Options,
    watch: impl Fn(u64, Option<&LogLine>) + Sync,
) -> Result<Summary> {
    check_folder(out, options.resume)?;
    let from = checkpoint::latest(out);
    if !(0..frames.len()).any(|index| has_contrast(frames.kept_pixels(index))) {
        let (count, path) = (frames.len(), options.frames);
        let problem = format!("each of the {count} frames is of one colour: there is nothing to learn from");
        return Err(Error::bad_file(path, problem));
    }
    let replicas = Parallel::new(config, options.threads).replicas;
    check_memory(config, replicas)?;
    Cpu::detect()?;
    fs::create_dir_all(out).map_err(Error::io(out, "create"))?;

    let used = FramesUsed {
        path: fs::canonicalize(options.frames).unwrap_or_else(|_| options.frames.to_owned()),
        count: frames.len(),
        fingerprint: frames.fingerprint().to_owned(),
    };
    let resumed = from.map(|folder| resume(&folder, config, &used)).transpose()?;
    frames.keep()?;
    let frames = &*frames;
    let (network, whitening, mut state) = match resumed {
        Some(resumed) => resumed,
        None => {
            let whitening = Whitening::fit(&config.input, frames, options.seed)?;
            let network = Network::new(config, options.seed)?;
            // Now, and not only after hours of training.
            checkpoint::check_room(out, &network, &whitening)?;
            let path = out.join("config.toml");
            fs::write(&path, config.to_toml()).map_err(Error::io(&path, "write"))?;
            let (phase, phase_step, step, images, seconds, log_bytes) = (0, 0, 0, 0, 0.0, 0);
            let seed = options.seed;
            (
                network,
                whitening,
                State { phase, phase_step, step, images, seconds, log_bytes, seed, frames: used },
            )
        }
    };
    let log = out.join("log.jsonl");
    let monitor = Monitor::open(&log, state.log_bytes, config.training.log_every)?;
    let (monitor, interrupted) = (Mutex::new(monitor), options.interrupted);
    let run = Run { config, out, network, whitening: &whitening, monitor, interrupted };
    // Frames stay as bytes where preprocessing them again and again is nothing beside learning from them.
    let negligible = WHITENING_SHARE * whitening.flops() < costs(config)[0].learn_flops;
    let budget = if negligible { 0 } else { available_memory() / 4 };
    let augment = Augment::new(&config.input, state.seed);
    let inputs = Inputs::for_training(frames, &whitening, budget as usize, augment);
    let phases = config.phases();
    let (steps_before, seconds_before) = (state.step, state.seconds);
    std::thread::scope(|scope| -> Result<()> {
        let shuffle = Shuffle::new(state.seed, frames.len(), config.training.batch);
        let left = phases.iter().skip(state.phase).map(|(_, steps)| steps).sum::<u64>() - state.phase_step;
        let numbers = state.step..state.step + left;
        let prepare = prepare(&inputs, shuffle, lanes_for(config.training.batch), state.step);
        let len = inputs_len(config);
        let feeder = Feeder::start(scope, numbers, (ahead(replicas), len), prepare)?;
        while let Some((stages, steps)) = phases.get(state.phase) {
            let threads = (options.threads, replicas);
            run.train_until_checkpoint(&mut state, stages, *steps, threads, &feeder, &watch)?;
            if state.phase_step == *steps {
                state.phase += 1;
                state.phase_step = 0;
            }
            run.save(&state)?;
            if options.interrupted.load(Ordering::Relaxed) != 0 {
                break;
            }
        }
        Ok(())
    })?;
    let replica_seconds = replicas as f64 * (state.seconds - seconds_before);
    let stall = run.lock_monitor().stall().as_secs_f64() / replica_seconds.max(f64::MIN_POSITIVE);
    Ok(Summary {
        run: out.into(),
        finished: state.phase == phases.len(),
        steps: state.step,
        new_steps: state.step - steps_before,
        images: state.images,
        seconds: state.seconds,
        replicas,
        stall,
        frames: frames.len(),
        stages: summarise(&monitor::read_log(&log)?),
    })
}

/// Minibatches prepared before they are taken: one for each replica, as many again for when it is slow, and one at work.
fn ahead(replicas: usize) -> usize {
    2 * replicas + 1
}

/// Numbers in the input of a minibatch.
fn inputs_len(config: &RunConfig) -> usize {
    config.input_shape().len() * lanes_for(config.training.batch)
}

/// What prepares the minibatches of a run, in turn from number `first`.
fn prepare<'a>(
    inputs: &'a Inputs,
    mut shuffle: Shuffle,
    lanes: usize,
    first: u64,
) -> impl FnMut(u64, &mut Buffer) -> Result<()> + Send + 'a {
    let (mut indices, mut following, mut scratch) = (Vec::new(), Vec::new(), Scratch::default());
    shuffle.batch(first, &mut following);
    move |number, buffer| {
        std::mem::swap(&mut indices, &mut following);
        shuffle.batch(number + 1, &mut following);
        inputs.announce(&following);
        inputs.fill_minibatch(number, &indices, lanes, buffer, &mut scratch);
        Ok(())
    }
}

impl Run<'_> {
    /// Trains one phase to its end, the next checkpoint, or an interruption.
    fn train_until_checkpoint(
        &self,
        state: &mut State,
        stages: &Range<usize>,
        steps: u64,
        (threads, replicas): (usize, usize),
        feeder: &Feeder,
        watch: &(impl Fn(u64, Option<&LogLine>) + Sync),
    ) -> Result<()> {
        let training = &self.config.training;
        let begun = Instant::now();
        let until = Duration::from_secs_f64(60.0 * training.checkpoint_minutes);
        let (first_step, first_phase_step) = (state.step, state.phase_step);
        let phase_step_of = |number: u64| first_phase_step + number - first_step;
        let end = first_step + steps - first_phase_step;
        let failed = Mutex::new(None);
        let stop = AtomicBool::new(false);
        self.lock_monitor().start();
        let position = |phase_step: u64| Position {
            step: first_step + phase_step - first_phase_step,
            images: (first_step + phase_step - first_phase_step) * training.batch as u64,
            seconds: state.seconds + begun.elapsed().as_secs_f64(),
            rate: training.rate * schedule(training, phase_step, steps),
            first_stage: stages.start,
        };
        // What is left of the threads is shared out within each replica.
        let each = threads / replicas;
        let rows = if each > 1 { Rows::Shared } else { Rows::InTurn };
        let replica = || -> Result<()> {
            let mut work = self.network.workspace(training.batch).with_rows(rows);
            loop {
                let interrupted = self.interrupted.load(Ordering::Relaxed) != 0;
                if interrupted || stop.load(Ordering::Relaxed) || begun.elapsed() > until {
                    return Ok(());
                }
                // Whoever is faster takes more.
                let waiting = Instant::now();
                let Some(number) = feeder.take(end, &mut work.input)? else { return Ok(()) };
                let stall = waiting.elapsed();
                let phase_step = phase_step_of(number);
                let factor = schedule(training, phase_step, steps);
                let update = Step::new(self.network.cpu, training, factor, number);
                let losses = self.network.learn(&mut work, stages.clone(), training.objective, &update);
                if let Some(bad) = losses.iter().position(|loss| !loss.total().is_finite()) {
                    return Err(Error::Diverged { stage: stages.start + bad + 1, step: number });
                }
                let at = position(phase_step + 1);
                let line = self.lock_monitor().add(losses, training.batch, stall, &at)?;
                watch(at.step, line.as_ref());
            }
        };
        let pooled = if each > 1 { replicas } else { 0 };
        let pools = (0..pooled).map(|_| rayon::ThreadPoolBuilder::new().num_threads(each).build());
        let pools = pools.collect::<std::result::Result<Vec<_>, _>>();
        let pools = pools.map_err(|e| Error::Mismatch(format!("cannot start threads: {e}")))?;
        std::thread::scope(|scope| {
            for number in 0..replicas {
                let pool = pools.get(number);
                let (replica, stop, failed) = (&replica, &stop, &failed);
                scope.spawn(move || {
                    let outcome = pool.map_or_else(replica, |pool| pool.install(replica));
                    if let Err(error) = outcome {
                        stop.store(true, Ordering::Relaxed);
                        failed.lock().expect("no replica panics").get_or_insert(error);
                    }
                });
            }
        });
        if let Some(error) = failed.into_inner().expect("no replica panics") {
            return Err(error);
        }
        let done = phase_step_of(feeder.next());
        let at = position(done);
        let line = self.lock_monitor().flush(&at)?;
        watch(at.step, line.as_ref());
        (state.phase_step, state.step, state.images, state.seconds) = (done, at.step, at.images, at.seconds);
        state.log_bytes = self.lock_monitor().bytes()?;
        Ok(())
    }

    fn lock_monitor(&self) -> std::sync::MutexGuard<'_, Monitor> {
        self.monitor.lock().expect("no replica panics")
    }

    /// Writes a checkpoint and removes older ones.
    fn save(&self, state: &State) -> Result<()> {
        let folder = self.out.join("checkpoints").join(format!("step-{:010}", state.step));
        if folder.exists() {
            return Ok(()); // interrupted before a single step since the last one
        }
        // The last update may have been the one too large: no loss has seen it yet.
        if let Some(bad) = self.network.stages.iter().position(|stage| !stage.is_finite()) {
            return Err(Error::Diverged { stage: bad + 1, step: state.step });
        }
        checkpoint::save(&folder, self.config, &self.network, self.whitening, state)?;
        // Two where they are small; of large ones the disk may not hold more than the one.
        let (weights, sums, _) = training_bytes(self.config, 1);
        let keep = if weights + sums > 5_000_000_000 { 1 } else { 2 };
        let mut old = checkpoint::all(self.out);
        old.truncate(old.len().saturating_sub(keep));
        old.iter().try_for_each(|path| fs::remove_dir_all(path).map_err(Error::io(path, "remove")))
    }
}

/// Refuses a folder that a run cannot be written to: one that holds something, unless a run in it is to be continued.
///
/// # Errors
/// As said.
pub fn check_folder(out: &Path, resume: bool) -> Result<()> {
    let is_run = checkpoint::latest(out).is_some() || out.join("config.toml").is_file();
    let problem = match (is_occupied(out), resume) {
        (true, false) => "holds something already; continue a run with --resume, or choose another folder",
        (true, true) if !is_run => "holds something, but no run to continue; choose another folder",
        _ => return Ok(()),
    };
    Err(Error::bad_file(out, problem))
}

/// True if the folder holds anything but decoded frames: those alone are what an interruption before the first step leaves.
fn is_occupied(out: &Path) -> bool {
    let other = |entry: fs::DirEntry| !entry.file_name().to_str().is_some_and(is_cache_file);
    fs::read_dir(out).is_ok_and(|entries| entries.flatten().any(other))
}

fn has_contrast(pixels: &[u8]) -> bool {
    pixels.iter().any(|pixel| *pixel != pixels[0])
}

/// Threads and replicas of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Parallel {
    /// Threads in all.
    pub threads: usize,
    /// Replicas that share them.
    pub replicas: usize,
    /// Why so many.
    pub reason: String,
}

impl Parallel {
    /// As many replicas as the config asks for; where it leaves that open (0), one for each thread, or fewer if so many do
    /// not fit in memory beside the weights.
    pub fn new(config: &RunConfig, threads: usize) -> Parallel {
        let (asked, threads) = (config.training.replicas, threads.max(1));
        if asked > 0 {
            let reason = format!("training.replicas = {asked}; threads are divided among them");
            return Parallel { threads, replicas: asked, reason };
        }
        let have = available_memory();
        let fits = |replicas: &usize| need_bytes(config, *replicas).iter().sum::<u64>() <= have;
        let replicas = (1..=threads).rev().find(fits).unwrap_or(1);
        let reason = if replicas == threads {
            "one for each thread, since replicas need not wait for each other".into()
        } else {
            format!("no more fit in {:.1} GB of memory; threads are divided among them", have as f64 / 1e9)
        };
        Parallel { threads, replicas, reason }
    }
}

/// Bytes of weights, optimiser, activations and minibatches prepared ahead.
fn need_bytes(config: &RunConfig, replicas: usize) -> [u64; 4] {
    let (weights, sums, maps) = training_bytes(config, replicas);
    [weights, sums, maps, 4 * (inputs_len(config) * ahead(replicas)) as u64]
}

/// Refuses what does not fit in memory.
///
/// # Errors
/// As said, with what it would need and what there is.
pub fn check_memory(config: &RunConfig, replicas: usize) -> Result<()> {
    let (needs, have_bytes) = (need_bytes(config, replicas), available_memory());
    let need_bytes = needs.iter().sum();
    if need_bytes > have_bytes {
        let [weights, sums, maps, prepared] = needs.map(|bytes| bytes as f64 / 1e9);
        let what = format!(
            "training (weights {weights:.1} GB, optimiser {sums:.1} GB, activations of {replicas} replicas \
             {maps:.1} GB, minibatches prepared ahead {prepared:.1} GB)"
        );
        return Err(Error::NoRoom { what, need_bytes, have_bytes });
    }
    Ok(())
}

/// The run in a checkpoint, if settings and frames are those it was begun with.
fn resume(folder: &Path, config: &RunConfig, used: &FramesUsed) -> Result<(Network, Whitening, State)> {
    let state: State = checkpoint::read_state(folder)?;
    let Checkpoint { config: before, network, whitening } = Checkpoint::load(folder, true)?;
    let changed = before.differences(config);
    if !changed.is_empty() {
        let problem = format!("the run was begun with other settings: {}", changed.join("; "));
        return Err(Error::bad_file(folder, problem));
    }
    let left = config.phases().get(state.phase).map_or(0, |(_, steps)| *steps);
    if state.phase > config.phases().len() || state.phase_step > left {
        let (phase, step) = (state.phase, state.phase_step);
        let problem =
            format!("state.json is at step {step} of phase {phase}, which the settings do not have");
        return Err(Error::bad_file(folder, problem));
    }
    if (state.frames.count, &state.frames.fingerprint) != (used.count, &used.fingerprint) {
        let (then, now) = (state.frames.count, used.count);
        let path = state.frames.path.display();
        let problem =
            format!("the run was begun with other frames: {then} of {path}, now {now} of another content");
        return Err(Error::bad_file(folder, problem));
    }
    Ok((network, whitening, state))
}

fn summarise(log: &[LogLine]) -> Vec<StageSummary> {
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
            }),
        }
    }
    stages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::preprocess::Transform;

    #[test]
    fn a_minibatch_that_cannot_be_prepared_ends_the_run_with_its_error() {
        let text = "[input]\nheight = 8\nwidth = 8\npreprocess = \"none\"\n[[stages]]\nmaps = 3\nfield = 5\npool = 2\n\
                    lcn = 3\n[training]\nsteps = [1000]\nbatch = 16\n";
        let config = RunConfig::parse(text, &[]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let whitening = Whitening { shape: config.input_shape(), transform: Transform::None };
        let run = Run {
            config: &config,
            out: folder.path(),
            network: Network::new(&config, 0).unwrap(),
            whitening: &whitening,
            monitor: Mutex::new(Monitor::open(&folder.path().join("log.jsonl"), 0, 5).unwrap()),
            interrupted: &AtomicUsize::new(0),
        };
        let frames = FramesUsed { path: "frames".into(), count: 1, fingerprint: String::new() };
        let (phase, phase_step, step, images, seconds, log_bytes, seed) = (0, 0, 0, 0, 0.0, 0, 0);
        let mut state = State { phase, phase_step, step, images, seconds, log_bytes, seed, frames };
        for threads in [3, 6] {
            let outcome = std::thread::scope(|scope| {
                let prepare = |number, input: &mut Buffer| match number {
                    20 => Err(Error::Mismatch("the disk is gone".into())),
                    _ => {
                        input
                            .iter_mut()
                            .zip((0u8..=255).cycle())
                            .for_each(|(x, value)| *x = f32::from(value));
                        Ok(())
                    }
                };
                let feeder = Feeder::start(scope, 0..1000, (ahead(3), inputs_len(&config)), prepare).unwrap();
                run.train_until_checkpoint(&mut state, &(0..1), 1000, (threads, 3), &feeder, &|_, _| ())
            });
            let error = outcome.unwrap_err().to_string();
            assert_eq!((error.as_str(), state.step), ("the disk is gone", 0), "{threads} threads");
        }
    }
}
