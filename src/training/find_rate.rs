//! A learning rate to begin with: each of several is tried for some steps, from the same weights on the same minibatches.
//!
//! Not the range test, in which one run's rate rises from step to step: what Adagrad remembers of the low rates makes the high
//! ones look harmless, and where the loss falls fastest said 0.005 where runs were best at 0.16.

use std::fmt;

use serde::Serialize;

use super::optimiser::Step;
use super::parallel::check_memory;
use super::replica::{Job, Replica};
use super::run::Pools;
use super::server::Store;
use crate::config::{Mode, RunConfig, Training};
use crate::dataset::{Dataset, Shuffle, available_memory};
use crate::error::Result;
use crate::kernels::Rows;
use crate::network::Network;
use crate::network::preprocess::{Inputs, Scratch, Whitening};

/// Rates that are tried: the least, and how many, each twice the one before.
const RATES: (f64, u32) = (1e-3, 11);

/// Steps at each of them, always from the same weights on the same minibatches.
const STEPS: u64 = 60;

/// Of these the last, whose mean loss counts.
const COUNTED: u64 = 15;

/// Steps at the rate found, so that the stages above have something to learn from.
const SETTLING: u64 = 200;

/// A loss so near to the lowest is as good: the least such rate is taken.
const AS_GOOD: f64 = 1.02;

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct FoundRates {
    /// For each phase of the schedule.
    pub phases: Vec<FoundRate>,
    /// The least of the phases' rates: what is too low for a stage costs time, what is too high may cost the stage.
    pub rate: f64,
    /// The rate in the settings.
    pub configured: f64,
}

/// What came of it for a phase.
#[derive(Debug, Clone, Serialize)]
pub struct FoundRate {
    /// The stages that learn, from 1.
    pub stages: Vec<usize>,
    /// The least rate whose loss is as good as the lowest.
    pub rate: f64,
    /// The loss of the first minibatches, before learning.
    pub before: f64,
    /// Rates and the mean loss of their last steps, none where it was no number.
    pub tried: Vec<(f64, Option<f64>)>,
}

impl fmt::Display for FoundRates {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for phase in &self.phases {
            let stages: Vec<String> = phase.stages.iter().map(ToString::to_string).collect();
            writeln!(
                f,
                "stage {}: loss {:.2} before, after {STEPS} steps at rate",
                stages.join(", "),
                phase.before
            )?;
            for (rate, loss) in &phase.tried {
                let loss = loss.map_or("no number".into(), |loss| format!("{loss:.2}"));
                let mark =
                    if *rate == phase.rate { "  <- the least that is as good as the best" } else { "" };
                writeln!(f, "  {rate:<7} {loss}{mark}")?;
            }
        }
        write!(f, "try --set training.rate={} (it is {})", self.rate, self.configured)
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
    let store = Store::new(Network::new(config, seed)?);
    // The weights change step by step, whatever a run does.
    let training = Training { fetch_every: 1, push_every: 1, ..config.training.clone() };
    let rows = if threads > 1 { Rows::Shared } else { Rows::InTurn };
    let mut replica = Replica::new(&store.network, &training, 1, rows);
    let mut shuffle = Shuffle::new(seed, frames.len(), training.batch);
    let (mut indices, mut scratch, mut done) = (Vec::new(), Scratch::default(), 0);
    let phases = config.phases();
    let all = phases.len() as u64 * (u64::from(RATES.1) * STEPS + SETTLING);
    let mut found = Vec::new();
    for (stages, _) in &phases {
        let job = Job { training: &training, stages: stages.clone() };
        // Mean losses of the first and of the last steps, from the stages' first weights.
        let mut try_rate = |store: &Store, rate: f64, steps: u64| -> Result<(f64, f64)> {
            for index in stages.clone() {
                let stage = &store.network.stages[index];
                stage.blocks.draw(stage.number, seed);
            }
            let training = Training { rate, ..training.clone() };
            let losses: Result<Vec<f64>> = (0..steps)
                .map(|number| {
                    shuffle.batch(number, &mut indices);
                    done += 1;
                    progress(done, all);
                    pools.all.install(|| {
                        inputs.fill(&indices, replica.work.lanes, &mut replica.work.input, &mut scratch);
                        let step = Step::new(store.network.cpu, &training, 1.0, number);
                        let losses = replica.learn(store, &job, step, None, |_| ())?;
                        Ok(losses.iter().map(|loss| loss.total()).sum::<f64>())
                    })
                })
                .collect();
            let losses = losses?;
            let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
            Ok((losses[0], mean(&losses[losses.len() - COUNTED as usize..])))
        };
        let (mut tried, mut before) = (Vec::new(), 0.0);
        for rate in (0..RATES.1).map(|doubled| RATES.0 * f64::from(1 << doubled)) {
            let (first, last) = try_rate(&store, rate, STEPS)?;
            before = first;
            tried.push((rate, Some(last).filter(|loss| loss.is_finite())));
        }
        let rate = choose(&tried);
        try_rate(&store, rate, SETTLING)?;
        let stages = stages.clone().map(|stage| stage + 1).collect();
        found.push(FoundRate { stages, rate, before, tried });
    }
    let rate = found.iter().map(|phase| phase.rate).fold(f64::INFINITY, f64::min);
    Ok(FoundRates { phases: found, rate, configured: config.training.rate })
}

/// The least rate whose loss is as good as the lowest.
fn choose(tried: &[(f64, Option<f64>)]) -> f64 {
    let lowest = tried.iter().filter_map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min);
    let good = |loss: &Option<f64>| loss.is_some_and(|loss| loss <= AS_GOOD * lowest);
    tried.iter().find(|(_, loss)| good(loss)).map_or(RATES.0, |(rate, _)| *rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_rate_that_is_as_good_as_the_best_is_chosen() {
        let tried = [(0.1, Some(9.0)), (0.2, Some(5.05)), (0.4, Some(5.0)), (0.8, Some(7.0)), (1.6, None)];
        assert_eq!(choose(&tried), 0.2);
        assert_eq!(choose(&[(0.1, None)]), RATES.0);
    }
}
