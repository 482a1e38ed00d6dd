//! Climbing a function of a direction: two methods, each a state machine that is told values and says where it wants the next.
//!
//! The function depends on the direction of its argument only, `F(z) = F(cz)`, so no constraint is left: a preferred
//! stimulus of norm r is `x = r z/|z|`. Many climbers go on side by side, one a lane of a minibatch, and none waits for another.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// How to climb.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// L-BFGS: steps along the gradient, turned and scaled by what the last steps tell of the curvature.
    Lbfgs,
    /// Projected gradient ascent, with steps as long as the curvature along the last one asks for; one that ends too low is taken
    /// back and tried shorter.
    Ascent,
    /// Projected gradient ascent with steps of one length, whatever comes of them: the reference.
    FixedSteps,
}

/// Why a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// Nothing is left to climb: the gradient or the steps have become small.
    Converged,
    /// As often as it was allowed to, the function was asked.
    Limit,
    /// There was no gradient where it began.
    Flat,
}

/// How long to climb and when to stop.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most evaluations of the function with its gradient.
    pub evaluations: usize,
    /// It has converged when the gradient on the unit sphere is this share of the value.
    pub tolerance: f64,
    /// Length of a step, in radians: of the first, of L-BFGS until it knows the curvature, of all for [`Method::FixedSteps`].
    pub step: f64,
}

/// Steps that L-BFGS remembers.
const MEMORY: usize = 16;

/// Longest step, in radians.
const LONGEST: f64 = 0.7;

/// Shortest step that single precision can tell from none.
const SHORTEST: f64 = 1e-5;

/// The search has converged if the last so many steps together gained less than [`STALLED`] of the value.
const STALL_STEPS: usize = 20;

/// Of gradient ascent: steps whose least value a step must beat.
const WINDOW: usize = 10;
const STALLED: f64 = 1e-5;

/// A step and the change of the gradient along it.
struct Pair {
    step: Vec<f32>,
    change: Vec<f32>,
    /// 1 / (step . change).
    inverse: f64,
}

/// One search.
pub struct Climber {
    method: Method,
    limits: Limits,
    /// The best point so far, its value, and the gradient there.
    point: Vec<f32>,
    value: f64,
    gradient: Vec<f32>,
    /// Where to, and how much the value grows along it at first.
    direction: Vec<f32>,
    slope: f64,
    /// Share of `direction` tried next.
    share: f64,
    /// Length of steps while the curvature is not known.
    length: f64,
    trial: Vec<f32>,
    memory: VecDeque<Pair>,
    /// The last values gone on from.
    recent: VecDeque<f64>,
    /// The best value at each of the last steps.
    gains: VecDeque<f64>,
    /// The best value so far; the point may be a little below it.
    best: f64,
    /// Evaluations so far.
    pub evaluations: usize,
    /// Why it has ended, if it has.
    pub ended: Option<Ended>,
}

impl Climber {
    /// A search that begins at `start`, which is not 0.
    pub fn new(method: Method, limits: Limits, start: Vec<f32>) -> Climber {
        let mut trial = start;
        let length = dot(&trial, &trial).sqrt();
        assert!(length > 0.0, "a start without a direction");
        trial.iter_mut().for_each(|z| *z = (f64::from(*z) / length) as f32);
        Climber {
            method,
            limits,
            point: Vec::new(),
            value: f64::NEG_INFINITY,
            gradient: Vec::new(),
            direction: vec![0.0; trial.len()],
            slope: 0.0,
            share: 1.0,
            length: limits.step,
            trial,
            memory: VecDeque::new(),
            recent: VecDeque::new(),
            gains: VecDeque::new(),
            best: f64::NEG_INFINITY,
            evaluations: 0,
            ended: None,
        }
    }

    /// Where the function and its gradient are wanted next.
    pub fn trial(&self) -> &[f32] {
        &self.trial
    }

    /// Takes the function's value and gradient at [`trial`](Self::trial). Returns true if that is what the search has to show for
    /// now: the best so far, or for [`Method::FixedSteps`] the last.
    pub fn told(&mut self, value: f64, gradient: &[f32]) -> bool {
        self.evaluations += 1;
        let first = self.point.is_empty();
        // Armijo's rule; for gradient ascent against the least of the last few values: ridges are climbed faster by one who may step
        // down a little (Grippo, Lampariello and Lucidi 1986).
        let low = match self.method {
            Method::Lbfgs => self.value,
            _ => self.recent.iter().copied().fold(self.value, f64::min),
        };
        let enough = low + 1e-4 * self.share * self.slope;
        let goes_on = first || self.method == Method::FixedSteps || (value > enough && value != self.value);
        let shown = value > self.best || self.method == Method::FixedSteps;
        self.best = self.best.max(value);
        if goes_on {
            if self.method != Method::FixedSteps && !first {
                self.remember(gradient);
            }
            self.point.clone_from(&self.trial);
            self.gradient.clear();
            self.gradient.extend_from_slice(gradient);
            (self.value, self.share) = (value, 1.0);
            if !first {
                self.length = match self.method {
                    Method::FixedSteps => self.length,
                    _ => (1.3 * self.length).min(LONGEST),
                };
            }
            self.note_progress(first);
            if self.ended.is_none() {
                self.aim();
            }
        } else {
            self.shorten(value);
        }
        if self.ended.is_none() && self.evaluations >= self.limits.evaluations {
            self.ended = Some(Ended::Limit);
        }
        if self.ended.is_some() {
            return shown;
        }
        self.trial.clear();
        let share = self.share as f32;
        self.trial.extend(self.point.iter().zip(&self.direction).map(|(z, d)| z + share * d));
        if self.method != Method::Lbfgs {
            // Others keep to the sphere; for L-BFGS the length is a coordinate like any other, along which nothing changes.
            let inverse = (1.0 / dot(&self.trial, &self.trial).sqrt()) as f32;
            self.trial.iter_mut().for_each(|z| *z *= inverse);
        }
        shown
    }

    /// Ends a search that has nothing left to climb.
    fn note_progress(&mut self, first: bool) {
        let steep = dot(&self.gradient, &self.gradient).sqrt() * dot(&self.point, &self.point).sqrt();
        if steep == 0.0 {
            self.ended = Some(if first { Ended::Flat } else { Ended::Converged });
        } else if self.method != Method::FixedSteps {
            self.recent.push_back(self.value);
            self.gains.push_back(self.best);
            if self.recent.len() > WINDOW {
                self.recent.pop_front();
            }
            let stalled = self.gains.len() > STALL_STEPS && {
                let before = self.gains.pop_front().expect("several");
                self.best - before < STALLED * self.best.abs()
            };
            if stalled || steep < self.limits.tolerance * self.value.abs() {
                self.ended = Some(Ended::Converged);
            }
        }
    }

    /// Takes back a step that did not climb: the next try is nearer, where a parabola has its top.
    fn shorten(&mut self, value: f64) {
        let gained = value - self.value;
        let top = 0.5 * self.slope * self.share / (self.slope * self.share - gained).max(f64::MIN_POSITIVE);
        self.share *= if top.is_finite() { top.clamp(0.1, 0.5) } else { 0.5 };
        self.length = (0.5 * self.length).max(SHORTEST);
        let radians =
            self.share * (dot(&self.direction, &self.direction) / dot(&self.point, &self.point)).sqrt();
        if radians < SHORTEST {
            if self.memory.is_empty() {
                self.ended = Some(Ended::Converged);
            } else {
                // What was remembered misleads here: begin again along the gradient.
                self.memory.clear();
                self.share = 1.0;
                self.aim();
            }
        }
    }

    /// Keeps the step to `trial`, where the gradient is `gradient`, for the curvature.
    fn remember(&mut self, gradient: &[f32]) {
        let memory = if self.method == Method::Lbfgs { MEMORY } else { 1 };
        let mut pair = if self.memory.len() == memory {
            self.memory.pop_front().expect("it is full")
        } else {
            Pair { step: Vec::new(), change: Vec::new(), inverse: 0.0 }
        };
        pair.step.clear();
        pair.step.extend(self.trial.iter().zip(&self.point).map(|(new, old)| new - old));
        // Of the function turned upside down, so that curvature is positive.
        pair.change.clear();
        pair.change.extend(self.gradient.iter().zip(gradient).map(|(old, new)| old - new));
        let product = dot(&pair.step, &pair.change);
        let size = (dot(&pair.step, &pair.step) * dot(&pair.change, &pair.change)).sqrt();
        if product > 1e-6 * size {
            pair.inverse = 1.0 / product;
            self.memory.push_back(pair);
        }
    }

    /// Chooses a direction at the point.
    fn aim(&mut self) {
        self.direction.clone_from(&self.gradient);
        let radius = dot(&self.point, &self.point).sqrt();
        let spectral = self.method != Method::Lbfgs;
        if let (true, Some(last)) = (spectral, self.memory.back()) {
            // The step that the curvature along the last one asks for (Barzilai and Borwein 1988).
            let scale = last.inverse * dot(&last.step, &last.step);
            self.direction.iter_mut().for_each(|d| *d *= scale as f32);
            self.limit(LONGEST * radius);
        } else if let Some(last) = self.memory.back() {
            // The two loops of L-BFGS (Nocedal 1980).
            let mut along = [0.0; MEMORY];
            for (pair, along) in self.memory.iter().zip(&mut along).rev() {
                *along = pair.inverse * dot(&pair.step, &self.direction);
                add(&mut self.direction, -*along, &pair.change);
            }
            let scale = 1.0 / (last.inverse * dot(&last.change, &last.change));
            self.direction.iter_mut().for_each(|d| *d *= scale as f32);
            for (pair, along) in self.memory.iter().zip(&along) {
                let back = pair.inverse * dot(&pair.change, &self.direction);
                add(&mut self.direction, along - back, &pair.step);
            }
            self.limit(LONGEST * radius);
        }
        self.slope = dot(&self.direction, &self.gradient);
        if self.memory.is_empty() || self.slope <= 0.0 {
            self.memory.clear();
            self.direction.clone_from(&self.gradient);
            let size = dot(&self.gradient, &self.gradient).sqrt();
            let scale = self.length * radius / size;
            self.direction.iter_mut().for_each(|d| *d *= scale as f32);
            self.slope = scale * size * size;
        }
    }

    /// Makes the direction at most this long.
    fn limit(&mut self, longest: f64) {
        let length = dot(&self.direction, &self.direction).sqrt();
        if length > longest {
            let scale = (longest / length) as f32;
            self.direction.iter_mut().for_each(|d| *d *= scale);
        }
    }
}

/// Scalar product; the sums of eight interleaved parts are in f32, so that they run on vectors.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    const RUN: usize = 512;
    let piece = |(a, b): (&[f32], &[f32])| -> f64 {
        let mut sums = [0f32; 16];
        let (mut a_parts, mut b_parts) = (a.chunks_exact(16), b.chunks_exact(16));
        for (a, b) in a_parts.by_ref().zip(b_parts.by_ref()) {
            for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                *sum += a * b;
            }
        }
        let rest = a_parts.remainder().iter().zip(b_parts.remainder()).map(|(a, b)| a * b).sum::<f32>();
        f64::from(sums.iter().sum::<f32>() + rest)
    };
    a.chunks(RUN).zip(b.chunks(RUN)).map(piece).sum()
}

/// `a += scale b`.
fn add(a: &mut [f32], scale: f64, b: &[f32]) {
    let scale = scale as f32;
    a.iter_mut().zip(b).for_each(|(a, b)| *a += scale * b);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use ndarray_rand::rand_distr::{Distribution, StandardNormal};

    const LIMITS: Limits = Limits { evaluations: 400, tolerance: 1e-3, step: 0.2 };

    /// Climbs `f(z/|z|)`, where `f` gives a value and a gradient.
    fn climb(
        method: Method,
        dims: usize,
        seed: u64,
        f: impl Fn(&[f64]) -> (f64, Vec<f64>),
    ) -> (Climber, Vec<f64>) {
        let mut rng = rng::stream(seed, "climb", 0);
        let start = (0..dims).map(|_| StandardNormal.sample(&mut rng)).collect();
        let mut climber = Climber::new(method, LIMITS, start);
        while climber.ended.is_none() {
            let z: Vec<f64> = climber.trial().iter().map(|&z| f64::from(z)).collect();
            let length = z.iter().map(|z| z * z).sum::<f64>().sqrt();
            let x: Vec<f64> = z.iter().map(|z| z / length).collect();
            let (value, gradient) = f(&x);
            let radial: f64 = gradient.iter().zip(&x).map(|(g, x)| g * x).sum();
            let gradient: Vec<f32> =
                gradient.iter().zip(&x).map(|(g, x)| ((g - radial * x) / length) as f32).collect();
            climber.told(value, &gradient);
        }
        let length = dot(&climber.point, &climber.point).sqrt();
        let x = climber.point.iter().map(|&z| f64::from(z) / length).collect();
        (climber, x)
    }

    /// `√Σ aᵢxᵢ²`: its maximum is √a of the largest, at that axis. A hundred axes of very different weight.
    fn ellipsoid(x: &[f64]) -> (f64, Vec<f64>) {
        let weight = |at: usize| 1.0 / (1.0 + at as f64);
        let value = x.iter().enumerate().map(|(at, x)| weight(at) * x * x).sum::<f64>().sqrt();
        (value, x.iter().enumerate().map(|(at, x)| weight(at) * x / value).collect())
    }

    #[test]
    fn both_methods_find_the_longest_axis_in_few_evaluations() {
        let mut needed = [0, 0];
        for seed in 0..20 {
            for (method, needed) in [Method::Lbfgs, Method::Ascent].into_iter().zip(&mut needed) {
                let (climber, x) = climb(method, 100, seed, ellipsoid);
                assert!(climber.value > 0.999, "{method:?}: {} after {}", climber.value, climber.evaluations);
                assert!(x[0].abs() > 0.99 && climber.ended == Some(Ended::Converged));
                *needed += climber.evaluations;
            }
        }
        // Twenty searches each.
        assert!(needed.iter().all(|&needed| needed < 20 * 25), "{needed:?}");
    }

    #[test]
    fn a_function_without_a_gradient_is_flat() {
        let (climber, _) = climb(Method::Lbfgs, 5, 1, |_| (1.0, vec![0.0; 5]));
        assert_eq!((climber.ended, climber.evaluations), (Some(Ended::Flat), 1));
    }

    #[test]
    fn the_scalar_product_is_that_of_the_definition() {
        let a: Vec<f32> = (0..1234).map(|i| (i as f32 * 0.37).sin()).collect();
        let b: Vec<f32> = (0..1234).map(|i| (i as f32 * 0.11).cos()).collect();
        let plain: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        assert!((dot(&a, &b) - plain).abs() < 1e-4);
    }
}
