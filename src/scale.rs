//! Larger networks within a budget: pictures, maps and stages grow together, by one coefficient φ (compound scaling, Tan and Le 2019,
//! "EfficientNet", §3.3).
//!
//! [`scaled`] is the definition. [`fit`] looks for the largest φ whose training takes at most so many times the arithmetic of the config's
//! own, and fits in memory; [`fit_measured`] holds it to its time on this machine as well, which [`measure`] takes from
//! [`bench`](mod@crate::bench). Windows, λ and the optimiser's settings stay as they are.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::bench;
use crate::config::{RunConfig, Schedule};
use crate::error::{Error, Result};
use crate::kernels::filter::MAP_PAD;
use crate::network::{StageCost, costs, schedule_flops};
use crate::training::{Parallel, memory_bytes};

/// One of the best of those that `scripts/scale_search` tried at twice the cost, from two sizes; see docs/scale.md.
pub const BASE_RATIOS: Ratios = Ratios { resolution: 1.15, maps: 1.2, stages: 1.1 };

/// From one φ that is tried to the next, what grows fastest grows by this factor.
const FINENESS: f64 = 1.002;

/// φ is tried until what grows fastest has grown by so many times the budget: stages that do not fit cost nothing and would go on forever.
const EXTENT: f64 = 1000.0;

/// A measured time may be this factor above the budget: it is never the same twice.
const TOLERANCE: f64 = 1.1;

/// How much each dimension grows for one unit of φ: each 1 or more, and not all 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratios {
    /// The sides of the pictures.
    pub resolution: f64,
    /// The maps of every stage.
    pub maps: f64,
    /// The number of stages.
    pub stages: f64,
}

/// What can grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dimension {
    /// The sides of the pictures.
    Resolution,
    /// The maps of every stage.
    Maps,
    /// The number of stages.
    Stages,
}

impl Ratios {
    /// One dimension alone, which doubles with each unit of φ.
    pub fn only(dimension: Dimension) -> Ratios {
        let ratio = |one| if one == dimension { 2.0 } else { 1.0 };
        Ratios {
            resolution: ratio(Dimension::Resolution),
            maps: ratio(Dimension::Maps),
            stages: ratio(Dimension::Stages),
        }
    }

    /// Themselves, if something grows and nothing shrinks.
    ///
    /// # Errors
    /// [`Error::Setting`] otherwise.
    pub fn checked(self) -> Result<Ratios> {
        let Ratios { resolution, maps, stages } = self;
        let valid = [resolution, maps, stages].iter().all(|ratio| (1.0..=10.0).contains(ratio));
        match valid && self.greatest() > 1.0 {
            true => Ok(self),
            false => Err(setting("--ratios", self, "three numbers from 1 to 10, not all 1")),
        }
    }

    fn greatest(self) -> f64 {
        self.resolution.max(self.maps).max(self.stages)
    }
}

impl FromStr for Ratios {
    type Err = String;

    /// `RESOLUTION,MAPS,STAGES`.
    fn from_str(text: &str) -> Result<Ratios, String> {
        let numbers: Option<Vec<f64>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[resolution, maps, stages]) => {
                Ratios { resolution, maps, stages }.checked().map_err(|e| e.to_string())
            }
            _ => Err("expected three numbers, for resolution, maps and stages, such as 1.15,1.2,1.1".into()),
        }
    }
}

impl fmt::Display for Ratios {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "resolution {}, maps {}, stages {}", self.resolution, self.maps, self.stages)
    }
}

/// What a network may cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Training in all, as a multiple of what the config itself takes: arithmetic, and time where that is measured.
    pub cost: f64,
    /// Memory for training with one replica, in bytes.
    pub memory: u64,
    /// Whether what rounding leaves of `cost` is spent on more steps.
    pub fill: bool,
}

impl Budget {
    fn check(&self) -> Result<()> {
        match self.cost > 1.0 && self.cost <= 1e6 {
            true => Ok(()),
            false => Err(setting("--budget", self.cost, "a number above 1, at most 1000000")),
        }
    }
}

/// How fast a replica trains.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speed {
    /// Pictures a second, the mean of the schedule.
    pub images_per_second: f64,
    /// All steps of the schedule, one after the other.
    pub seconds: f64,
}

/// What a config is and takes.
#[derive(Debug, Clone, Serialize)]
pub struct Size {
    /// Size of the pictures: channels, rows, columns.
    pub picture: [usize; 3],
    /// Maps of each stage.
    pub maps: Vec<usize>,
    /// Units of all stages.
    pub units: usize,
    /// Weights that are learned.
    pub weights: u64,
    /// Steps of each phase.
    pub steps: Vec<u64>,
    /// Floating-point operations to learn from a picture, the mean of the schedule.
    pub learn_flops: f64,
    /// Floating-point operations of all training.
    pub training_flops: f64,
    /// Memory to train with one replica, in bytes.
    pub memory: u64,
    /// As measured on this machine.
    pub speed: Option<Speed>,
}

impl Size {
    fn new(config: &RunConfig, speed: Option<Speed>) -> Size {
        let (stages, training) = (costs(config), &config.training);
        let (input, steps) = (config.input_shape(), training.steps.iter().sum::<u64>());
        let flops = flops(config, &stages);
        Size {
            picture: [input.channels, input.rows, input.cols],
            maps: config.stages.iter().map(|stage| stage.maps).collect(),
            units: stages.iter().map(|stage| stage.units).sum(),
            weights: stages.iter().map(|stage| stage.weights).sum(),
            steps: training.steps.clone(),
            learn_flops: flops / (steps as f64 * training.batch as f64),
            training_flops: flops,
            memory: memory_bytes(config, 1),
            speed,
        }
    }
}

/// A config that has grown.
#[derive(Debug, Clone, Serialize)]
pub struct Scaled {
    /// The coefficient.
    pub phi: f64,
    /// What it grew by.
    pub ratios: Ratios,
    /// The most that it may cost, as a multiple of what the config itself costs.
    pub budget: f64,
    /// The multiple of arithmetic that its training takes.
    pub cost: f64,
    /// The multiple of time, where it was measured.
    pub time: Option<f64>,
    /// The config itself.
    pub before: Size,
    /// The larger one.
    pub after: Size,
    /// What a user should know: what did not fit, and why it is not larger.
    pub notes: Vec<String>,
    /// The larger one's settings.
    pub config: RunConfig,
}

/// The config that a coefficient gives.
///
/// - Sides of pictures, and their margin, times `resolution^φ`, to whole pixels; less what the first stage's receptive fields and pooling
///   windows would not reach.
/// - Maps of each stage times `maps^φ`, to the nearest multiple of 8, which is what kernels fill up to; never fewer than there are.
/// - As many stages as there are times `stages^φ`, to a whole number, or as many as fit: those on top are like the last, and learn for as
///   many steps.
///
/// # Errors
/// A setting is beyond what is allowed, such as the size of pictures for full whitening.
pub fn scaled(config: &RunConfig, ratios: Ratios, phi: f64) -> Result<RunConfig> {
    let (resolution, maps) = (ratios.resolution.powf(phi), ratios.maps.powf(phi));
    let mut grown = config.clone();
    let first = &config.stages[0];
    let side = |side: usize| {
        let wanted = (side as f64 * resolution).round() as usize;
        let beyond = wanted.saturating_sub(first.field);
        let positions = beyond / first.stride + 1;
        let unpooled = positions.saturating_sub(first.pool) % first.pool_stride;
        side.max(wanted - beyond % first.stride - unpooled * first.stride)
    };
    let input = &mut grown.input;
    (input.height, input.width) = (side(input.height), side(input.width));
    input.margin = (input.margin as f64 * resolution).round() as usize;
    if maps > 1.0 {
        for stage in &mut grown.stages {
            let multiples = (stage.maps as f64 * maps / MAP_PAD as f64).round() as usize;
            stage.maps = stage.maps.max(multiples.saturating_mul(MAP_PAD));
        }
    }
    let mut grown = grown.checked()?;
    for _ in config.stages.len()..stages_wanted(config, ratios, phi) {
        match taller(&grown) {
            Ok(taller) => grown = taller,
            Err(Error::FieldTooLarge { .. }) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(grown)
}

/// Stages that a coefficient asks for, whether they fit or not.
fn stages_wanted(config: &RunConfig, ratios: Ratios, phi: f64) -> usize {
    (config.stages.len() as f64 * ratios.stages.powf(phi)).round() as usize
}

/// The same with a stage on top like the last.
///
/// # Errors
/// It does not fit.
fn taller(config: &RunConfig) -> Result<RunConfig> {
    let mut taller = config.clone();
    taller.stages.extend(config.stages.last().cloned());
    if config.training.schedule == Schedule::Greedy {
        taller.training.steps.extend(config.training.steps.last());
    }
    taller.checked()
}

/// The largest config within the budget, by arithmetic and memory.
///
/// # Errors
/// Ratios or budget are none, or nothing larger fits: then it says what would be needed.
pub fn fit(config: &RunConfig, ratios: Ratios, budget: &Budget) -> Result<Scaled> {
    choose(config, ratios, budget, None)
}

/// The same, where `measure` says how fast a config trains: one that takes more than 1.1 times the budget's time gives way to a
/// smaller one.
///
/// # Errors
/// As [`fit`], and what `measure` meets.
pub fn fit_measured(
    config: &RunConfig,
    ratios: Ratios,
    budget: &Budget,
    mut measure: impl FnMut(&RunConfig) -> Result<Speed>,
) -> Result<Scaled> {
    choose(config, ratios, budget, Some(&mut measure))
}

/// Measures how fast a replica trains on its share of `cores` threads, `seconds` for each phase of the schedule.
///
/// # Errors
/// As [`bench::run`].
pub fn measure(config: &RunConfig, cores: usize, seconds: f64) -> Result<Speed> {
    let Parallel { threads, replicas, .. } = Parallel::new(config, cores);
    let only = [bench::PHASE.to_owned()];
    let threads = vec![(threads / replicas).max(1)];
    let report = bench::run(config, &bench::Options { threads, only: &only, seconds, rounds: 1 }, |_| ())?;
    let steps = config.phases().into_iter().map(|(_, steps)| steps as f64);
    let times = report.entries.iter().map(|entry| entry.milliseconds / 1e3);
    let seconds: f64 = steps.clone().zip(times).map(|(steps, time)| steps * time).sum();
    let images = config.training.batch as f64 * steps.sum::<f64>();
    Ok(Speed { images_per_second: images / seconds, seconds })
}

type Measure<'a> = &'a mut dyn FnMut(&RunConfig) -> Result<Speed>;

fn choose(config: &RunConfig, ratios: Ratios, budget: &Budget, measure: Option<Measure>) -> Result<Scaled> {
    let ratios = ratios.checked()?;
    budget.check()?;
    let (mut found, end) = scan(config, ratios, budget);
    if found.is_empty() {
        return Err(end.error(config, budget));
    }
    let mut notes = Vec::new();
    let timed = measure.map(|measure| within_time(config, &mut found, budget, measure, &mut notes));
    let mut timed = timed.transpose()?;
    if notes.is_empty() {
        notes.push(end.note());
    }
    let Candidate { phi, config: mut grown, cost } = found.pop().expect("one was found");
    let wanted = stages_wanted(config, ratios, phi);
    if wanted > grown.stages.len() && !matches!(end, End::Stages(_)) {
        let reason = taller(&grown).err().map_or(String::new(), |e| format!(": {e}"));
        notes.push(format!("{wanted} stages were asked for, {} fit{reason}", grown.stages.len()));
    }
    let time = |(before, after): (Speed, Speed)| after.seconds / before.seconds;
    let left = budget.cost / timed.map_or(cost, |speeds| cost.max(time(speeds)));
    if budget.fill && left > 1.0 {
        grown.training.steps.iter_mut().for_each(|steps| *steps = (*steps as f64 * left) as u64);
        timed = timed.map(|(before, after)| (before, Speed { seconds: left * after.seconds, ..after }));
    }
    let before = Size::new(config, timed.map(|(before, _)| before));
    let after = Size::new(&grown, timed.map(|(_, after)| after));
    let (cost, time) = (after.training_flops / before.training_flops, timed.map(time));
    Ok(Scaled { phi, ratios, budget: budget.cost, cost, time, before, after, notes, config: grown })
}

/// Drops what takes too much time, the largest first; returns the speeds of the config itself and of the largest that is left.
fn within_time(
    config: &RunConfig,
    found: &mut Vec<Candidate>,
    budget: &Budget,
    measure: Measure,
    notes: &mut Vec<String>,
) -> Result<(Speed, Speed)> {
    let before = measure(config)?;
    loop {
        let chosen = found.last().expect("one is left");
        let after = measure(&chosen.config)?;
        let time = after.seconds / before.seconds;
        if time <= TOLERANCE * budget.cost {
            return Ok((before, after));
        }
        let (cost, what) = (chosen.cost, describe(&chosen.config));
        if found.len() == 1 {
            let want =
                format!("at least {}, the time that the smallest step takes: {what}", two_digits_up(time));
            return Err(setting("--budget", budget.cost, want));
        }
        notes.push(format!(
            "a smaller one was taken: {what} took {time:.2} times the time, {cost:.2} times the arithmetic"
        ));
        found.pop();
        // Time grows about as arithmetic does.
        let most = cost * budget.cost / time;
        while found.len() > 1 && found.last().is_some_and(|one| one.cost > most) {
            found.pop();
        }
    }
}

/// A config that some φ gives: the smallest such φ.
struct Candidate {
    phi: f64,
    config: RunConfig,
    cost: f64,
}

/// Why there is no larger one.
enum End {
    /// It would cost too much: what, and how many times as much.
    Cost(String, f64),
    /// It would take too much memory: what, and how much.
    Memory(String, u64, u64),
    /// A setting would be beyond what is allowed.
    Refused(Error),
    /// Only stages grow, and no more fit.
    Stages(Option<Error>),
}

impl End {
    /// Where nothing is larger than the config itself.
    fn error(self, config: &RunConfig, budget: &Budget) -> Error {
        match self {
            End::Cost(what, cost) => {
                let want = format!("at least {}, what the smallest step costs: {what}", two_digits_up(cost));
                setting("--budget", budget.cost, want)
            }
            End::Memory(what, need_bytes, have_bytes) => {
                Error::NoRoom { what: format!("training with {what}"), need_bytes, have_bytes }
            }
            End::Refused(error) | End::Stages(Some(error)) => error,
            End::Stages(None) => {
                setting("--ratios", describe(config), "ratios by which something grows within the budget")
            }
        }
    }

    /// Where something is.
    fn note(&self) -> String {
        match self {
            End::Cost(what, cost) => format!("the next larger costs {cost:.2} times as much: {what}"),
            End::Memory(what, need, have) => {
                format!("the next larger needs {need} bytes, and may take {have}: {what}")
            }
            End::Refused(error) => format!("nothing larger is allowed: {error}"),
            End::Stages(error) => {
                let reason = error.as_ref().map_or(String::new(), |e| format!(": {e}"));
                format!("no more stages fit{reason}")
            }
        }
    }
}

/// Every larger config within the budget, in order, and why there are no more.
fn scan(config: &RunConfig, ratios: Ratios, budget: &Budget) -> (Vec<Candidate>, End) {
    let mut found: Vec<Candidate> = Vec::new();
    let own = flops(config, &costs(config));
    let fastest = ratios.greatest().ln();
    let tries = (EXTENT * budget.cost).ln() / FINENESS.ln();
    for number in 1..=tries as u32 {
        let phi = f64::from(number) * FINENESS.ln() / fastest;
        let grown = match scaled(config, ratios, phi) {
            Ok(grown) => grown,
            Err(error) => return (found, End::Refused(error)),
        };
        if grown == *found.last().map_or(config, |one| &one.config) {
            continue;
        }
        let cost = flops(&grown, &costs(&grown)) / own;
        if cost > budget.cost {
            return (found, End::Cost(describe(&grown), cost));
        }
        let memory = memory_bytes(&grown, 1);
        if memory > budget.memory {
            return (found, End::Memory(describe(&grown), memory, budget.memory));
        }
        found.push(Candidate { phi, config: grown, cost });
    }
    let last = found.last().map_or(config, |one| &one.config);
    let error = taller(last).err();
    (found, End::Stages(error))
}

/// Floating-point operations of all training.
fn flops(config: &RunConfig, stages: &[StageCost]) -> f64 {
    schedule_flops(config, stages) as f64 * config.training.batch as f64
}

/// `36x36 pictures, maps 8, 16, 160`.
fn describe(config: &RunConfig) -> String {
    let maps: Vec<String> = config.stages.iter().map(|stage| stage.maps.to_string()).collect();
    format!("{}x{} pictures, maps {}", config.input.width, config.input.height, maps.join(", "))
}

/// Two digits after the point, rounded up: a budget of that much is enough.
fn two_digits_up(number: f64) -> f64 {
    (100.0 * number).ceil() / 100.0
}

fn setting(key: &str, got: impl ToString, want: impl ToString) -> Error {
    Error::Setting { key: key.into(), got: got.to_string(), want: want.to_string() }
}

#[cfg(test)]
mod tests;
