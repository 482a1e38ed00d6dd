//! `striate probe overparam`: does an extra linear factor speed learning at equal cost (Arora et al. 2018)?
//!
//! Theory says of linear regression with the loss `|f − t|^p`: for p above 2 it can, for p = 2 it hardly does. Here the same network learns the same
//! labels from the same minibatches by plain gradient descent, once with its weights as they are and once with each position's filters
//! kept as a product of two matrices, each with the best of the same rates.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::factored::{Factored, Plain};
use crate::classify::head::{Criterion, Head};
use crate::classify::tune::{self, Lesson, Tuner, flops};
use crate::error::{Error, Result};
use crate::network::preprocess::Whitening;
use crate::network::{At, Network, WeightUpdate};

/// Which weights have an extra factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// The encoders, at each position; all weights learn.
    Encoder,
    /// The head; encoders stay as they are: linear regression on features, the case of the theory.
    Head,
}

/// What to compare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Which weights get the factor.
    pub layer: Layer,
    /// p of the loss `Σ |f − t|^p / p`.
    pub powers: Vec<f64>,
    /// Learning rates tried for each; that of the head is as a multiple of one over its inputs.
    pub rates: Vec<f64>,
    /// Head, values, minibatches and augmentation; its rates, momentum and decay play no part.
    pub tune: tune::Settings,
}

/// A stretch of the way.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Steps done.
    pub step: u64,
    /// Mean loss over the minibatches since the last point, each before its step.
    pub loss: f64,
    /// Arithmetic since the beginning, in floating-point operations.
    pub flops: f64,
    /// Seconds since the beginning.
    pub seconds: f64,
}

/// One way to learn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// p of the loss.
    pub power: f64,
    /// With the extra factor, or without.
    pub factored: bool,
    /// Learning rate.
    pub rate: f64,
    /// The way; it ends early where the loss is no number any more.
    pub points: Vec<Point>,
    /// Whether it came to its end.
    pub whole: bool,
}

/// Both ways with one loss, each at the best of the rates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// p of the loss.
    pub power: f64,
    /// Rate that was best without the factor.
    pub plain_rate: f64,
    /// Rate that was best with it.
    pub factored_rate: f64,
    /// Loss at the end without it.
    pub plain_loss: f64,
    /// Loss at the end with it.
    pub factored_loss: f64,
    /// How many times less arithmetic the factor takes to the higher of these losses; below 1 it takes more.
    pub speed_by_flops: f64,
    /// The same in time.
    pub speed_by_seconds: f64,
}

/// Points of a curve.
const POINTS: u64 = 30;

/// Deviation of the classes' numbers before the first step: a head of zeros has no factors that could learn.
const DEVIATION: f32 = 0.3;

fn is_encoder(_: At) -> bool {
    true
}

/// The classes' weights are the first of a head.
fn is_of_classes(at: At) -> bool {
    at.position == 0
}

/// All curves, for each power without and with the factor, at each rate; `fresh` gives the network that each begins with, with room for the
/// optimiser's sums, all 0. `progress` is told of each curve's steps and of each that is done. None if `stop` is set before the end.
///
/// # Errors
/// Pictures cannot be read, or `fresh` fails.
pub fn probe(
    fresh: impl Fn() -> Result<Network>,
    whitening: &Whitening,
    lesson: &Lesson,
    settings: &Settings,
    (stop, mut progress): (&AtomicUsize, impl FnMut(Option<&Curve>)),
) -> Result<Option<Vec<Curve>>> {
    let mut curves = Vec::new();
    for &power in &settings.powers {
        for factored in [false, true] {
            for &rate in &settings.rates {
                let network = fresh()?;
                let of = (power, factored, rate);
                let Some(curve) = curve(&network, whitening, lesson, settings, of, (stop, &mut progress))?
                else {
                    return Ok(None);
                };
                progress(Some(&curve));
                curves.push(curve);
            }
        }
    }
    Ok(Some(curves))
}

fn curve(
    network: &Network,
    whitening: &Whitening,
    lesson: &Lesson,
    settings: &Settings,
    (power, factored, rate): (f64, bool, f64),
    (stop, progress): (&AtomicUsize, &mut impl FnMut(Option<&Curve>)),
) -> Result<Option<Curve>> {
    let of_network = if settings.layer == Layer::Encoder { rate } else { 0.0 };
    let tune = tune::Settings { network_rate: of_network, rate, ..settings.tune.clone() };
    let mut tuner = Tuner::new(network, whitening, lesson, &tune);
    tuner.head.draw(DEVIATION, tune.seed);
    tuner.head.criterion = Criterion::Power(power);
    let of_head = rate / tuner.head.parameters[0].inputs as f64;
    let update = |layer: Layer, rate: f64, has: fn(At) -> bool| -> Box<dyn WeightUpdate> {
        match factored && layer == settings.layer {
            true => Box::new(Factored::new(rate as f32, has)),
            false => Box::new(Plain { rate: rate as f32 }),
        }
    };
    let encoders = update(Layer::Encoder, of_network, is_encoder);
    let head = update(Layer::Head, of_head, is_of_classes);
    let encoders = (settings.layer == Layer::Encoder).then_some(&*encoders);
    let for_step = flops(network, whitening, &tuner.head, &tune) * tune.batch as u64
        + if factored { extra(network, &tuner.head, settings) } else { 0 };
    let mut curve = Curve { power, factored, rate, points: Vec::new(), whole: true };
    let (begun, every, mut sum, mut since) = (Instant::now(), (tune.steps / POINTS).max(1), 0.0, 0);
    while tuner.number < tune.steps {
        if stop.load(Ordering::Relaxed) != 0 {
            return Ok(None);
        }
        sum += tuner.step_by(encoders, &*head)?.value;
        since += 1;
        progress(None);
        if !sum.is_finite() {
            curve.whole = false;
            break;
        }
        if tuner.number.is_multiple_of(every) || tuner.number == tune.steps {
            curve.points.push(Point {
                step: tuner.number,
                loss: sum / f64::from(since),
                flops: (for_step * tuner.number) as f64,
                seconds: begun.elapsed().as_secs_f64(),
            });
            (sum, since) = (0.0, 0);
        }
    }
    Ok(Some(curve))
}

/// What the factors add to the arithmetic of a step.
fn extra(network: &Network, head: &Head, settings: &Settings) -> u64 {
    match settings.layer {
        Layer::Head => Factored::flops(head.parameters[0].inputs, head.parameters[0].padded()),
        Layer::Encoder => {
            let of = |stage: &crate::network::Stage| {
                stage.shape.positions() as u64
                    * Factored::flops(stage.shape.taps(), stage.shape.filtered.channels)
            };
            network.stages[..=settings.tune.group.stage].iter().map(of).sum()
        }
    }
}

/// The best curves of each power beside each other, and what is wrong with the powers that have none: all rates were too high, with the
/// factor or without it.
///
/// # Errors
/// That is so for every power.
pub fn outcomes(curves: &[Curve]) -> Result<(Vec<Outcome>, Vec<String>)> {
    let mut powers: Vec<f64> = curves.iter().map(|curve| curve.power).collect();
    powers.dedup();
    let best = |power: f64, factored: bool| {
        let whole =
            curves.iter().filter(|curve| curve.whole && (curve.power, curve.factored) == (power, factored));
        let at_end = |curve: &&Curve| curve.points.last().map_or(f64::MAX, |point| point.loss);
        whole.min_by(|a, b| at_end(a).total_cmp(&at_end(b))).ok_or_else(|| {
            let with = if factored { "with" } else { "without" };
            format!(
                "--rates: for p = {power} {with} the factor every rate is too high: the loss became no number"
            )
        })
    };
    let (mut outcomes, mut problems) = (Vec::new(), Vec::new());
    for power in powers {
        match best(power, false).and_then(|plain| Ok(outcome(plain, best(power, true)?))) {
            Ok(found) => outcomes.push(found),
            Err(problem) => problems.push(problem),
        }
    }
    match problems.first() {
        Some(problem) if outcomes.is_empty() => Err(Error::Mismatch(problem.clone())),
        _ => Ok((outcomes, problems)),
    }
}

fn outcome(plain: &Curve, factored: &Curve) -> Outcome {
    let (of_plain, of_factored) = (end(plain), end(factored));
    let aim = of_plain.loss.max(of_factored.loss);
    let speed = |cost: fn(&Point) -> f64| reached(plain, aim, cost) / reached(factored, aim, cost);
    Outcome {
        power: plain.power,
        plain_rate: plain.rate,
        factored_rate: factored.rate,
        plain_loss: of_plain.loss,
        factored_loss: of_factored.loss,
        speed_by_flops: speed(|point| point.flops),
        speed_by_seconds: speed(|point| point.seconds),
    }
}

fn end(curve: &Curve) -> Point {
    *curve.points.last().expect("a whole curve has points")
}

/// The cost at which a curve first comes to a loss, between its points in proportion.
fn reached(curve: &Curve, aim: f64, cost: fn(&Point) -> f64) -> f64 {
    let after = curve.points.iter().position(|point| point.loss <= aim);
    let after = after.unwrap_or(curve.points.len() - 1);
    let (to, Some(before)) = (curve.points[after], after.checked_sub(1)) else {
        return cost(&curve.points[after]);
    };
    let from = curve.points[before];
    let share = ((from.loss - aim) / (from.loss - to.loss)).clamp(0.0, 1.0);
    cost(&from) + share * (cost(&to) - cost(&from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(factored: bool, rate: f64, losses: &[f64]) -> Curve {
        let point = |(at, &loss): (usize, &f64)| {
            let step = at as u64 + 1;
            Point {
                step,
                loss,
                flops: step as f64 * if factored { 200.0 } else { 100.0 },
                seconds: step as f64,
            }
        };
        let points = losses.iter().enumerate().map(point).collect();
        Curve { power: 4.0, factored, rate, points, whole: true }
    }

    #[test]
    fn speed_is_told_by_what_it_costs_to_come_to_the_same_loss() {
        let plain = [curve(false, 0.1, &[1.0, 0.8, 0.6, 0.5]), curve(false, 1.0, &[1.0, 0.9, 0.9, 0.9])];
        let factored = [curve(true, 0.1, &[1.0, 0.4, 0.3, 0.2])];
        let (all, problems) = outcomes(&[&plain[..], &factored[..]].concat()).unwrap();
        assert!(problems.is_empty());
        let Outcome { plain_rate, plain_loss, factored_loss, speed_by_flops, speed_by_seconds, .. } = all[0];
        assert_eq!((plain_rate, plain_loss, factored_loss), (0.1, 0.5, 0.2));
        // Loss 0.5 lies five sixths of the way from its first point to its second.
        let at = 1.0 + 5.0 / 6.0;
        assert!((speed_by_seconds - 4.0 / at).abs() < 1e-12);
        assert!((speed_by_flops - 2.0 / at).abs() < 1e-12);
    }

    #[test]
    fn rates_that_are_all_too_high_are_told_and_an_error_if_nothing_else_is_there() {
        let broken = Curve { whole: false, points: Vec::new(), ..curve(true, 9.0, &[]) };
        let problem = "p = 4 with the factor every rate is too high";
        let of_four = [curve(false, 0.1, &[1.0]), broken];
        let error = outcomes(&of_four).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
        // What came of other powers is not lost.
        let of_two = [false, true].map(|factored| Curve { power: 2.0, ..curve(factored, 0.1, &[1.0]) });
        let (all, problems) = outcomes(&[of_two, of_four].concat()).unwrap();
        assert!(all.len() == 1 && all[0].power == 2.0);
        assert!(problems.len() == 1 && problems[0].contains(problem), "{problems:?}");
    }
}
