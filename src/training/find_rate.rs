//! A learning rate to begin with: the rate rises from step to step, and the loss tells where it helps and where it harms
//! (the range test of Smith, "Cyclical learning rates for training neural networks", 2017).

use std::fmt;
use std::ops::Range;

use serde::Serialize;

use super::optimiser::Step;
use super::parallel::check_memory;
use super::replica::{Job, Replica, Store};
use super::run::Pools;
use crate::config::{Mode, RunConfig, Training};
use crate::dataset::{Dataset, Shuffle, available_memory};
use crate::error::Result;
use crate::kernels::Rows;
use crate::network::Network;
use crate::network::preprocess::{Inputs, Scratch, Whitening};
use crate::network::shared::Clock;

/// Rates that are tried.
const RATES: Range<f64> = 1e-5..10.0;

/// Steps in which the rate goes from the least to the largest.
const STEPS: u64 = 150;

/// Steps at the rate found, so that the stages above have something to learn from.
const SETTLING: u64 = 200;

/// Part of a new loss in the smoothed one.
const NEW: f64 = 0.15;

/// A smoothed loss so many times its least ends the search.
const TOO_HIGH: f64 = 4.0;

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct FoundRates {
    /// For each phase of the schedule.
    pub phases: Vec<FoundRate>,
    /// The least of the phases' rates.
    pub rate: f64,
    /// The rate in the settings.
    pub configured: f64,
}

/// What came of it for a phase.
#[derive(Debug, Clone, Serialize)]
pub struct FoundRate {
    /// The stages that learn, from 1.
    pub stages: Vec<usize>,
    /// The rate at which the loss fell fastest: one to begin with.
    pub rate: f64,
    /// The rate at which it was lowest: too large already, if it was the last before it rose.
    pub lowest: f64,
    /// The rate at which it was no number, or four times its least, if it came to that.
    pub diverged: Option<f64>,
    /// Rates and smoothed losses.
    pub curve: Vec<(f64, f64)>,
}

impl fmt::Display for FoundRates {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for phase in &self.phases {
            let stages: Vec<String> = phase.stages.iter().map(ToString::to_string).collect();
            let end =
                phase.diverged.map_or("did not diverge".into(), |rate| format!("diverged at {rate:.2}"));
            let (rate, lowest) = (phase.rate, phase.lowest);
            writeln!(
                f,
                "stage {}: the loss fell fastest at rate {rate:.4}, was lowest at {lowest:.4}, and {end}",
                stages.join(", ")
            )?;
        }
        write!(f, "try --set training.rate={:.4} (it is {})", self.rate, self.configured)
    }
}

/// Searches a rate for each phase of `config`, on `frames`; `progress` is told of the steps done and of all. Nothing is kept.
///
/// # Errors
/// Too few frames, or too little memory.
pub fn find_rate(
    config: &RunConfig,
    frames: &Dataset,
    seed: u64,
    threads: usize,
    progress: impl Fn(u64, u64),
) -> Result<FoundRates> {
    super::health::check_frames(config, frames)?;
    check_memory(config, 1)?;
    let whitening = Whitening::fit(&config.input, frames, seed)?;
    let inputs = Inputs::new(frames, &whitening, (available_memory() / 4) as usize);
    let pools = Pools::new(threads, 1, Mode::Sync)?;
    let mut store = Store { network: Network::new(config, seed)?, clock: Clock::new() };
    // The weights change step by step, whatever a run does.
    let training = Training { fetch_every: 1, push_every: 1, ..config.training.clone() };
    let rows = if threads > 1 { Rows::Shared } else { Rows::InTurn };
    let mut replica = Replica::new(&store.network, &training, 1, rows);
    let mut shuffle = Shuffle::new(seed, frames.len(), training.batch);
    let (mut indices, mut scratch, mut done) = (Vec::new(), Scratch::default(), 0);
    let phases = config.phases();
    let all = phases.len() as u64 * (STEPS + SETTLING);
    let mut found = Vec::new();
    for (stages, _) in &phases {
        let job = Job { training: &training, stages: stages.clone() };
        let mut learn = |store: &Store, rate: f64| {
            shuffle.batch(done, &mut indices);
            done += 1;
            progress(done, all);
            pools.all.install(|| {
                inputs.fill(&indices, replica.work.lanes, &mut replica.work.input, &mut scratch);
                let step = Step::new(store.network.cpu, &Training { rate, ..training.clone() }, 1.0, done);
                replica.learn(store, &job, step, None, |_| ()).iter().map(|loss| loss.total()).sum::<f64>()
            })
        };
        let ratio = (RATES.end / RATES.start).powf(1.0 / (STEPS - 1) as f64);
        let (mut curve, mut smoothed, mut diverged) = (Vec::new(), None, None);
        for number in 0..STEPS {
            let rate = RATES.start * ratio.powi(number as i32);
            let loss = learn(&store, rate);
            let before = smoothed.unwrap_or(loss);
            let now = before + NEW * (loss - before);
            let least = curve.iter().map(|&(_, loss)| loss).fold(now, f64::min);
            if !now.is_finite() || now > TOO_HIGH * least {
                diverged = Some(rate);
                break;
            }
            smoothed = Some(now);
            curve.push((rate, now));
        }
        let (rate, lowest) = read(&curve);
        for index in stages.clone() {
            let stage = &mut store.network.stages[index];
            stage.blocks.draw(stage.number, seed);
        }
        (0..SETTLING).for_each(|_| {
            learn(&store, rate);
        });
        let stages = stages.clone().map(|stage| stage + 1).collect();
        found.push(FoundRate { stages, rate, lowest, diverged, curve });
    }
    let rate = found.iter().map(|phase| phase.rate).fold(f64::INFINITY, f64::min);
    Ok(FoundRates { phases: found, rate, configured: config.training.rate })
}

/// The rates at which the loss fell fastest, by the logarithm of the rate, and at which it was lowest.
fn read(curve: &[(f64, f64)]) -> (f64, f64) {
    /// Steps over which the fall is measured: more than the noise of minibatches.
    const SPAN: usize = 10;
    let Some(lowest) = (0..curve.len()).min_by(|&a, &b| curve[a].1.total_cmp(&curve[b].1)) else {
        return (RATES.start, RATES.start);
    };
    let fall = |&at: &usize| curve[at - SPAN].1 - curve[at].1;
    let fastest = (SPAN..=lowest).max_by(|a, b| fall(a).total_cmp(&fall(b))).unwrap_or(lowest);
    (curve[fastest].0, curve[lowest].0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_where_the_loss_falls_fastest() {
        // Flat to 1e-3, falling to 1e-1, rising beyond.
        let loss = |rate: f64| {
            let x = rate.log10();
            if x < -3.0 {
                10.0
            } else if x < -1.0 {
                10.0 - 3.0 * (x + 3.0).powi(2) / 2.0
            } else {
                4.0 + 5.0 * (x + 1.0)
            }
        };
        let curve: Vec<(f64, f64)> = (0..120).map(|n| 1e-5 * 1.1f64.powi(n)).map(|r| (r, loss(r))).collect();
        let (fastest, lowest) = read(&curve);
        assert!((0.05..0.12).contains(&fastest) && (0.08..0.12).contains(&lowest), "{fastest} {lowest}");
        assert_eq!(read(&[]), (RATES.start, RATES.start));
    }
}
