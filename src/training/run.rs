//! A run in progress: stretches of training between validations and checkpoints.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rayon::ThreadPool;

use super::board::Board;
use super::cluster::lead::{Lead, News, Order, Report};
use super::engine::Engine;
use super::feeder::Feeder;
use super::health::Health;
use super::monitor::{Done, LogLine, Monitor, Position};
use super::optimiser::{Plan, Step};
use super::replica::{Job, Norms, Replica, learn_together};
use super::server::{Own, ParameterServer};
use super::state::{Best, FramesUsed, State, load};
use super::validate::{StageValidation, Validation, validate};
use super::{Happened, Options, Skipped};
use crate::config::{DeadUnits, Mode, OnFullDisk, RunConfig};
use crate::dataset::Split;
use crate::error::{Error, Result};
use crate::kernels::Rows;
use crate::network::objective::Loss;
use crate::network::preprocess::{Inputs, Whitening};
use crate::network::{Network, StageCost, checkpoint, learn_flops, training_bytes};

/// A run in progress.
pub(super) struct Run<'a, W> {
    pub config: &'a RunConfig,
    pub out: &'a Path,
    /// Where the weights are that replicas share, and who learns.
    pub engine: Engine<'a>,
    /// Those weights, as far as they are known here: between stretches, as they are.
    pub weights: Arc<Network>,
    pub whitening: &'a Whitening,
    pub inputs: &'a Inputs<'a>,
    pub split: &'a Split,
    pub replicas: Vec<Replica>,
    pub pools: Pools,
    pub monitor: Mutex<Monitor>,
    pub health: Mutex<Health>,
    pub board: Mutex<Board>,
    /// Pictures that the feeder passed over.
    pub skipped: &'a Skipped,
    pub options: &'a Options<'a>,
    pub watch: &'a W,
    /// When the last checkpoint was written.
    pub saved: Instant,
    pub costs: Vec<StageCost>,
    /// Floating-point operations a second that all threads could do.
    pub peak: f64,
}

/// Threads.
pub(super) struct Pools {
    /// All of them together.
    pub all: ThreadPool,
    /// Those of each replica, where it has several.
    pub each: Vec<ThreadPool>,
}

impl Pools {
    pub fn new(threads: usize, replicas: usize, mode: Mode) -> Result<Pools> {
        let pool = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.map_err(|e| Error::Mismatch(format!("cannot start threads: {e}")))
        };
        let each = threads / replicas;
        let of_their_own = if each > 1 && !together(mode, replicas) { replicas } else { 0 };
        let each = (0..of_their_own).map(|_| pool(each)).collect::<Result<_>>()?;
        Ok(Pools { all: pool(threads.max(1))?, each })
    }
}

/// True if replicas change the weights together.
pub(super) fn together(mode: Mode, replicas: usize) -> bool {
    mode == Mode::Sync && replicas > 1
}

/// Where a stretch of training lies.
struct Stretch {
    plan: Plan,
    /// Step of the run at which the stretch ends.
    end: u64,
    begun: Instant,
    /// Seconds of training before.
    seconds: f64,
}

impl<W: Fn(Happened) + Sync> Run<'_, W> {
    /// Trains what is left of the phases, or until it is interrupted, at `rate_factor` times the rate of the settings.
    pub fn train(&mut self, state: &mut State, feeder: &Feeder, rate_factor: f64) -> Result<()> {
        let phases = self.config.phases();
        while let Some((stages, steps)) = phases.get(state.phase) {
            if state.best.as_ref().is_some_and(|best| best.phase != state.phase) {
                state.best = None;
            }
            let training = &self.config.training;
            let phase_end = state.step + steps - state.phase_step;
            let next = |every: u64| (state.step / every.max(1) + 1) * every.max(1);
            let every =
                [training.validate_every, training.checkpoint_steps].into_iter().filter(|&every| every > 0);
            let end = every.map(next).fold(phase_end, u64::min);
            let (stages, phase_start) = (stages.clone(), state.step - state.phase_step);
            let plan = Plan { stages: stages.clone(), steps: *steps, phase_start, rate_factor };
            let stretch = Stretch { plan, end, begun: Instant::now(), seconds: state.seconds };
            let before = state.step;
            self.train_stretch(&stretch, state, feeder)?;
            // Without a step, all that is due was done when the last one was made.
            let moved = state.step > before;
            let at_end = state.phase_step == *steps;
            let due = |every: u64| every > 0 && state.step.is_multiple_of(every);
            let late = self.saved.elapsed().as_secs_f64() >= 60.0 * training.checkpoint_minutes;
            let interrupted = self.options.interrupted.load(Ordering::Relaxed) != 0;
            let save = at_end || late || interrupted || due(training.checkpoint_steps);
            // What is done about dead units does not depend on the clock, and repeats.
            let by_step = moved && (at_end || due(training.validate_every));
            let validation = match by_step || (save && moved) {
                true => self.validate(state, &stages, (by_step, save))?,
                false => None,
            };
            if at_end {
                state.phase += 1;
                state.phase_step = 0;
            }
            if save {
                let last = interrupted || state.phase == phases.len();
                self.save(state, validation.as_ref(), last)?;
            }
            if interrupted {
                break;
            }
        }
        Ok(())
    }

    /// Trains to the end of the stretch, until a checkpoint is due by the clock, or until interrupted.
    fn train_stretch(&mut self, stretch: &Stretch, state: &mut State, feeder: &Feeder) -> Result<()> {
        let training = &self.config.training;
        let left = 60.0 * training.checkpoint_minutes - self.saved.elapsed().as_secs_f64();
        let until = stretch.begun + Duration::from_secs_f64(left.clamp(0.0, 1e9));
        let mut replicas = std::mem::take(&mut self.replicas);
        self.lock_monitor().start();
        if state.phase_step == 0 {
            self.health = Mutex::default();
        }
        let norms = Norms::new(self.config.stages.len());
        let shift = Shared { run: self, stretch, feeder, until, norms: &norms };
        let outcome = match &self.engine {
            Engine::Threads(_) if together(training.mode, replicas.len()) => {
                self.pools.all.install(|| shift.in_rounds(&mut replicas))
            }
            Engine::Threads(_) => shift.each_for_itself(&mut replicas),
            Engine::Cluster(lead) => shift.with_others(lead, state, &mut replicas),
        };
        self.replicas = replicas;
        outcome?;
        state.step = self.engine.next(feeder);
        state.phase_step = state.step - stretch.plan.phase_start;
        state.images = state.step * training.batch as u64;
        state.seconds = stretch.seconds + stretch.begun.elapsed().as_secs_f64();
        let line = self.lock_monitor().flush(|done| self.position(stretch, done))?;
        self.logged(state.step, line)?;
        (state.log_bytes, state.validation_bytes) = self.lock_monitor().bytes()?;
        Ok(())
    }

    fn position(&self, stretch: &Stretch, done: u64) -> Position {
        let (training, plan) = (&self.config.training, &stretch.plan);
        Position {
            seconds: stretch.seconds + stretch.begun.elapsed().as_secs_f64(),
            rate: training.rate * plan.factor(training, done.max(plan.phase_start + 1) - 1),
            first_stage: plan.stages.start,
            filters: self.costs[plan.stages.clone()].iter().map(|cost| cost.shape.filtered.len()).collect(),
            flops: learn_flops(&self.costs, plan.stages.clone()),
            peak: self.peak,
        }
    }

    pub fn lock_monitor(&self) -> MutexGuard<'_, Monitor> {
        self.monitor.lock().expect("no replica panics")
    }

    /// Tells of a step, and of a line of the log if there is one.
    fn logged(&self, step: u64, line: Option<LogLine>) -> Result<()> {
        (self.watch)(Happened::Step(step));
        if let Some(line) = line {
            self.on_board(|board| board.log(&line))?;
            (self.watch)(Happened::Line(&line));
        }
        Ok(())
    }

    /// Lets `show` write for TensorBoard; on a full disk that is left out, where the run is to go on.
    fn on_board(&self, show: impl FnOnce(&mut Board) -> Result<()>) -> Result<()> {
        let shown = show(&mut self.board.lock().expect("no replica panics"));
        let goes_on = self.config.training.on_full_disk == OnFullDisk::GoOn;
        if goes_on && shown.as_ref().is_err_and(Error::is_full_disk) { Ok(()) } else { shown }
    }

    /// Writes down what is no news to who watches.
    pub fn note_quietly(&self, step: u64, note: &str) -> Result<()> {
        self.lock_monitor().note(step, note)
    }

    /// Goes back to the last checkpoint, or to the beginning.
    pub fn roll_back(&mut self, used: &FramesUsed) -> Result<State> {
        let (network, state) = match checkpoint::latest(self.out) {
            Some(folder) => {
                let (found, state) = load(&folder, self.config, self.options)?;
                (found.network, state)
            }
            None => {
                let network = self.options.empty(self.config)?;
                network.draw(self.options.seed);
                (network, State::new(self.options.seed, used.clone()))
            }
        };
        self.weights = Arc::new(network);
        self.engine.begin_from(&self.weights, self.out, self.options.seed)?;
        let how = (self.replicas.len(), self.replicas[0].work.rows());
        self.replicas = self.engine.replicas(&self.weights, self.config, how);
        let bytes = (state.log_bytes, state.validation_bytes);
        let (batch, every) = (self.config.training.batch as u64, self.config.training.log_every);
        let mut monitor = Monitor::open(self.out, bytes, (state.step, batch), every)?;
        monitor.goes_on_when_full(self.config.training.on_full_disk == OnFullDisk::GoOn);
        monitor.carry(self.lock_monitor().totals().clone());
        *self.lock_monitor() = monitor;
        *self.board.lock().expect("no replica panics") = Board::create(self.out, self.config, state.step)?;
        self.health = Mutex::default();
        Ok(state)
    }

    /// Writes down that something happened.
    pub fn note(&self, step: u64, note: &str) -> Result<()> {
        self.lock_monitor().note(step, note)?;
        (self.watch)(Happened::Note(note));
        Ok(())
    }

    /// Measures on frames that are held out; `by_step` if this does not depend on the clock, so that something may be done
    /// about dead units; shows the filters if `pictures`.
    fn validate(
        &mut self,
        state: &mut State,
        stages: &Range<usize>,
        (by_step, pictures): (bool, bool),
    ) -> Result<Option<Validation>> {
        let held_out = !self.split.held_out.is_empty();
        let frames: Vec<usize> = match held_out {
            true => self.split.held_out.iter().map(|&n| n as usize).collect(),
            // No frames are held out of few: these tell of units at least.
            false => self.split.training.iter().take(500).map(|&n| n as usize).collect(),
        };
        let Run { weights, replicas, inputs, pools, engine, .. } = self;
        engine.look(&frames)?;
        let found = pools.all.install(|| validate(weights, replicas, inputs, &frames, stages));
        engine.check()?;
        let reviving = self.config.training.dead_units == DeadUnits::Revive && by_step && state.step > 0;
        if found.is_empty() {
            return Ok(None);
        }
        if let Some((bad, _)) = found.iter().find(|(stage, _)| !stage.loss.is_finite()) {
            let what = "on held-out frames is no number".into();
            return Err(Error::Diverged { stage: bad.stage, what, step: state.step, good: None });
        }
        let mut of_stages: Vec<StageValidation> = Vec::new();
        for (mut stage, dead) in found {
            if reviving && !dead.is_empty() {
                let count = dead.len();
                self.engine.revive(&self.weights, (stage.stage - 1, dead), (state.seed, state.step))?;
                stage.revived = count;
                let (count, all) = (count, self.costs[stage.stage - 1].shape.filtered.len());
                let (number, what) = (stage.stage, "responded to no frame and were drawn anew");
                self.note(state.step, &format!("stage {number}: {count} of {all} filters {what}"))?;
            }
            of_stages.push(stage);
        }
        let (step, images, seconds) = (state.step, state.images, state.seconds);
        let validation =
            Validation { step, images, seconds, frames: frames.len(), held_out, stages: of_stages };
        self.lock_monitor().validated(&validation)?;
        self.on_board(|board| board.validation(&validation, &self.weights, pictures))?;
        (self.watch)(Happened::Validation(&validation));
        (state.log_bytes, state.validation_bytes) = self.lock_monitor().bytes()?;
        Ok(Some(validation))
    }

    /// Writes a checkpoint and removes those that are not to be kept. The `last` one of a run must be written.
    pub fn save(&mut self, state: &mut State, validation: Option<&Validation>, last: bool) -> Result<()> {
        let checkpoints = self.out.join("checkpoints");
        let name = |step: u64| checkpoints.join(format!("step-{step:010}"));
        let folder = name(state.step);
        if folder.exists() {
            // Interrupted before a single step since the last one.
            self.saved = Instant::now();
            return Ok(());
        }
        // The last update may have been the one too large: no loss has seen it yet.
        if let Some(bad) = self.weights.stages.iter().position(|stage| !stage.is_finite()) {
            let what = "is no number any more: its weights are none".into();
            return Err(Error::Diverged { stage: bad + 1, what, step: state.step, good: None });
        }
        let before = state.best.clone();
        let phase = state.phase - usize::from(state.phase_step == 0 && state.phase > 0);
        if let Some(loss) = validation.filter(|v| v.is_of_weights()).map(Validation::loss) {
            let better = |best: &Best| best.phase != phase || loss < best.loss;
            if state.best.as_ref().is_none_or(better) {
                state.best = Some(Best { phase, step: state.step, loss });
            }
        }
        let goes_on = self.config.training.on_full_disk == OnFullDisk::GoOn && !last;
        match self.engine.save(&folder, self.config, &self.weights, self.whitening, state) {
            Err(error) if error.is_full_disk() && goes_on => {
                state.best = before;
                self.saved = Instant::now();
                return self.note(
                    state.step,
                    &format!("no checkpoint was written, the one before is good: {error}"),
                );
            }
            outcome => outcome?,
        }
        self.saved = Instant::now();
        // Several where they are small; of large ones the disk may not hold more than the one.
        let bytes = training_bytes(self.config, 1);
        let large = bytes.weights + bytes.optimiser > 5_000_000_000;
        let keep = if large { 1 } else { self.config.training.keep_last };
        let best = state
            .best
            .as_ref()
            .filter(|_| self.config.training.keep_best && !large)
            .map(|best| name(best.step));
        let mut old = checkpoint::all(self.out);
        old.truncate(old.len().saturating_sub(keep));
        old.iter().filter(|path| Some(*path) != best.as_ref()).try_for_each(|path| checkpoint::remove(path))
    }
}

/// So often it is looked at whether a stretch is over while other ranks have nothing to tell.
const HEARING: Duration = Duration::from_millis(200);

/// What the replicas of a stretch share.
struct Shared<'a, 'r, W> {
    run: &'a Run<'r, W>,
    stretch: &'a Stretch,
    feeder: &'a Feeder,
    until: Instant,
    norms: &'a Norms,
}

impl<W: Fn(Happened) + Sync> Shared<'_, '_, W> {
    fn is_over(&self) -> bool {
        self.run.options.interrupted.load(Ordering::Relaxed) != 0 || Instant::now() > self.until
    }

    fn job(&self) -> Job<'_> {
        Job { training: &self.run.config.training, stages: self.stretch.plan.stages.clone() }
    }

    fn step(&self, number: u64) -> Step {
        self.stretch.plan.step(self.run.weights.cpu, &self.run.config.training, number)
    }

    /// Takes the losses of `steps` steps up to `number`.
    fn record(&self, number: u64, steps: u64, losses: &[Loss], stall: Duration, norms: bool) -> Result<()> {
        let (stages, jump) = (&self.stretch.plan.stages, self.run.config.training.loss_jump);
        self.run.health.lock().expect("no replica panics").check(losses, stages.start, number, jump)?;
        let skipped = self.run.skipped.take() as u64;
        if skipped > 0 && !self.run.skipped.noted.swap(true, Ordering::Relaxed) {
            let (readable, all) = (self.run.inputs.readable(), self.run.inputs.len());
            let what = "pictures can no longer be read, and others take their place";
            self.run.note(number, &format!("frames.u8 was cut short: {} of {all} {what}", all - readable))?;
        }
        let done = Done { steps, losses, stall, skipped };
        let mut monitor = self.run.lock_monitor();
        if norms {
            monitor.add_norms(stages.clone().map(|stage| self.norms.take(stage)).collect());
        }
        let line = monitor.add(&done, |done| self.run.position(self.stretch, done))?;
        let done = monitor.done();
        drop(monitor);
        self.run.logged(done, line)
    }

    /// No replica waits for another.
    fn each_for_itself(&self, replicas: &mut [Replica]) -> Result<()> {
        let (failed, stop) = (Mutex::new(None), AtomicBool::new(false));
        let crowded = std::thread::available_parallelism().is_ok_and(|cores| replicas.len() > cores.get());
        let work = |replica: &mut Replica| -> Result<()> {
            let (job, server) = (self.job(), self.run.engine.server());
            let mut last = None;
            let outcome = loop {
                if self.is_over() || stop.load(Ordering::Relaxed) {
                    break Ok(());
                }
                // Whoever is faster takes more.
                let waiting = Instant::now();
                let number =
                    match self.run.engine.take(self.feeder, self.stretch.end, &mut replica.work.input) {
                        Ok(Some(number)) => number,
                        Ok(None) => break Ok(()),
                        Err(error) => break Err(error),
                    };
                let stall = waiting.elapsed();
                // Of a part of a replica they would say nothing.
                let whole = self.run.weights.is_whole();
                let wants_norms = whole && self.run.lock_monitor().claim_norms();
                let norms = wants_norms.then_some(self.norms);
                let pushed = |age| self.run.lock_monitor().add_staleness(age);
                let learned = replica.learn(server, &job, self.step(number), norms, pushed);
                last = Some(number);
                let recorded = learned.and_then(|losses| self.record(number, 1, losses, stall, wants_norms));
                if let Err(error) = recorded {
                    break Err(error);
                }
                if crowded {
                    // Another's turn now, when no weights are in hand that would grow old meanwhile.
                    std::thread::yield_now();
                }
            };
            if let (Some(last), Ok(())) = (last, &outcome) {
                let pushed = |age| self.run.lock_monitor().add_staleness(age);
                return replica.finish(server, &job, self.step(last), pushed);
            }
            outcome
        };
        std::thread::scope(|scope| {
            for (number, replica) in replicas.iter_mut().enumerate() {
                let (work, failed, stop) = (&work, &failed, &stop);
                scope.spawn(move || {
                    let pool = self.run.pools.each.get(number);
                    let outcome = match pool {
                        Some(pool) => pool.install(|| work(replica)),
                        None => work(replica),
                    };
                    if let Err(error) = outcome {
                        stop.store(true, Ordering::Relaxed);
                        failed.lock().expect("no replica panics").get_or_insert(error);
                    }
                });
            }
        });
        failed.into_inner().expect("no replica panics").map_or(Ok(()), Err)
    }

    /// The leader's part, with other workers on other ranks: hears how their minibatches went, until all have done their parts.
    fn with_others(&self, lead: &Lead, state: &State, replicas: &mut [Replica]) -> Result<()> {
        let order = Order {
            seed: state.seed,
            plan: self.stretch.plan.clone(),
            begin: state.step,
            checkpoint: checkpoint::latest_of(self.run.out)?,
        };
        lead.begin(&order, self.stretch.end)?;
        std::thread::scope(|scope| {
            let hearing = scope.spawn(|| {
                let (mut working, mut outcome) = (lead.ranks().workers - 1, Ok(()));
                while working > 0 {
                    match lead.hear(HEARING)? {
                        Some(News::Settled) => working -= 1,
                        Some(News::Report(report)) if outcome.is_ok() => outcome = self.hear(report),
                        Some(News::Report(_)) | None => {}
                    }
                    if outcome.is_err() || self.is_over() {
                        lead.desk().stop();
                    }
                }
                outcome
            });
            let own = self.each_for_itself(replicas);
            // Where it has stopped for another reason than that all is done.
            lead.desk().stop();
            lead.group.stop()?;
            hearing.join().expect("it does not panic").and(own)
        })?;
        // As they are now that all have settled.
        let (network, rows) = (Some(&*self.run.weights), replicas[0].work.rows());
        lead.remote.settle(&Own { network, end: self.stretch.plan.stages.end, rows }, &mut |_| ())
    }

    /// Takes down how a minibatch of another rank went.
    fn hear(&self, report: Report) -> Result<()> {
        let Report { number, losses, stall, skipped, ages } = report;
        self.run.skipped.add(skipped);
        ages.into_iter().for_each(|age| self.run.lock_monitor().add_staleness(age));
        self.record(number, 1, &losses, Duration::from_secs_f64(stall), false)
    }

    /// All replicas change the weights together, a minibatch each.
    fn in_rounds(&self, replicas: &mut [Replica]) -> Result<()> {
        let job = self.job();
        while !self.is_over() {
            let waiting = Instant::now();
            let (mut first, mut count) = (None, 0);
            for replica in replicas.iter_mut() {
                let Some(number) = self.feeder.take(self.stretch.end, &mut replica.work.input)? else {
                    break;
                };
                first = first.or(Some(number));
                count += 1;
            }
            let Some(first) = first else { break };
            // Each replica waited as long as all did.
            let stall = waiting.elapsed() * replicas.len() as u32;
            let wants_norms = self.run.lock_monitor().claim_norms();
            let norms = wants_norms.then_some(self.norms);
            let taking_part = &mut replicas[..count];
            learn_together(taking_part, self.run.engine.server(), &job, self.step(first), norms)?;
            let mut mean = vec![Loss::default(); self.stretch.plan.stages.len()];
            for replica in taking_part.iter() {
                mean.iter_mut().zip(replica.work.losses()).for_each(|(mean, loss)| *mean += *loss);
            }
            let share = 1.0 / count as f64;
            for loss in &mut mean {
                let [reconstruction, sparsity, signal] =
                    [loss.reconstruction, loss.sparsity, loss.signal].map(|part| share * part);
                *loss = Loss { reconstruction, sparsity, signal };
            }
            self.record(first + count as u64 - 1, count as u64, &mean, stall, wants_norms)?;
        }
        Ok(())
    }
}

/// Removes checkpoints and other things that were not complete when a run was killed.
pub(super) fn clear_unfinished(out: &Path) -> Result<()> {
    let entries = fs::read_dir(out.join("checkpoints")).into_iter().flatten().flatten();
    let unfinished = |path: &std::path::PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("step-") && name.ends_with(".partial"))
    };
    let mut paths = entries.map(|entry| entry.path()).filter(unfinished);
    paths.try_for_each(|path| fs::remove_dir_all(&path).map_err(Error::io(&path, "remove")))
}

/// How replicas of this config share out the rows of their maps.
pub(super) fn rows(config: &RunConfig, threads: usize, replicas: usize) -> Rows {
    let shared = if together(config.training.mode, replicas) { threads > 1 } else { threads / replicas > 1 };
    if shared { Rows::Shared } else { Rows::InTurn }
}
