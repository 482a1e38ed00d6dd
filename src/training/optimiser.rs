//! From gradients to steps: SGD, momentum and Adagrad, clipping, decay of the encoder, the bound on the decoder, the schedule.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::config::{Optimiser, Training};
use crate::kernels::{Cpu, Kernel, Simd, prefetch, with_scratch};
use crate::network::{At, WeightUpdate, Weights};

/// Factor of the learning rate at a step of a phase: rising to 1, holding, then linearly down to the end.
pub fn schedule(training: &Training, step: u64, steps: u64) -> f64 {
    let (hold, end) = (training.rate_hold, training.rate_end);
    let rise = (step + 1) as f64 / training.warmup.max(1) as f64;
    let done = step as f64 / steps.max(1) as f64;
    let fall = if done <= hold { 1.0 } else { 1.0 + (end - 1.0) * ((done - hold) / (1.0 - hold)).min(1.0) };
    fall.min(rise)
}

/// What a while of training is about.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The stages that learn.
    pub stages: Range<usize>,
    /// Steps of their phase.
    pub steps: u64,
    /// Step of the run at which the phase began.
    pub phase_start: u64,
    /// What the schedule is multiplied by.
    pub rate_factor: f64,
}

impl Plan {
    /// The schedule's factor at a step of the run.
    pub fn factor(&self, training: &Training, number: u64) -> f64 {
        self.rate_factor * schedule(training, number - self.phase_start, self.steps)
    }

    /// What makes new weights of a gradient at a step of the run.
    pub fn step(&self, cpu: Cpu, training: &Training, number: u64) -> Step {
        Step::new(cpu, training, self.factor(training, number), number)
    }
}

/// The update of one step.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    cpu: Cpu,
    optimiser: Optimiser,
    rate: f32,
    momentum: f32,
    /// Largest norm of a filter's gradient; 0 for none.
    clip: f32,
    /// The encoder keeps this share of itself.
    keep: f32,
    norm_bound: f32,
    max_step: f32,
    factor: f64,
    minibatches: u64,
    number: u64,
}

impl Step {
    /// With the schedule at `factor`; `number` tells the updates of a run apart.
    pub fn new(cpu: Cpu, training: &Training, factor: f64, number: u64) -> Step {
        Step {
            cpu,
            optimiser: training.optimiser,
            rate: (training.rate * factor) as f32,
            momentum: training.momentum as f32,
            clip: training.gradient_clip as f32,
            keep: (1.0 - training.encoder_decay * factor) as f32,
            norm_bound: training.decoder_norm_bound as f32,
            max_step: training.max_step as f32,
            factor,
            minibatches: 1,
            number,
        }
    }

    /// The instruction set that it uses.
    pub fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// The same for the gradient of `minibatches` minibatches at once: so much more of the encoder decays.
    #[must_use]
    pub fn of(self, minibatches: u64) -> Step {
        Step { keep: self.keep.powi(minibatches.min(1 << 20) as i32), minibatches, ..self }
    }

    /// What [`new`](Self::new) and [`of`](Self::of) make the same step of again: the schedule's factor, and how many minibatches.
    pub fn made_of(&self) -> (f64, u64) {
        (self.factor, self.minibatches)
    }
}

impl WeightUpdate for Step {
    fn update(&self, at: At, maps: usize, weights: &mut [f32], sums: &mut [f32], gradient: &mut [f32]) {
        let (encoder, decoder) = (at.which == Weights::Encoder, at.which == Weights::Decoder || at.tied);
        let keep = if encoder { self.keep } else { 1.0 };
        let bound = if decoder { self.norm_bound } else { 0.0 };
        self.cpu.run(Update { step: self, maps, keep, bound, weights, sums, gradient });
    }

    fn number(&self) -> u64 {
        self.number
    }
}

/// New weights of a position, in at most two passes over them: where the change of a filter or its norm is bounded, the first
/// finds by how much, the second applies it.
struct Update<'a> {
    step: &'a Step,
    maps: usize,
    keep: f32,
    /// Largest norm of a filter; 0 for none.
    bound: f32,
    weights: &'a mut [f32],
    sums: &'a mut [f32],
    gradient: &'a mut [f32],
}

impl Kernel for Update<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Update { step, maps, keep, bound, weights, sums, gradient } = self;
        let len = (CHUNK / maps).max(1) * maps;
        let all = gradient.len();
        if step.clip > 0.0 {
            clip_filters(maps, step.clip, gradient);
        }
        let chunks = (0..all).step_by(len).map(|first| first..(first + len).min(all));
        if step.max_step == 0.0 && bound == 0.0 {
            for part in chunks {
                step.turn_into_change::<S>(&mut gradient[part.clone()], weights, sums, part.start);
                for (w, &change) in weights[part.clone()].iter_mut().zip(&gradient[part]) {
                    *w = keep * *w - change;
                }
            }
            return;
        }
        with_scratch([maps, maps, maps], |[changes, norms, products]| {
            changes.fill(0.0);
            norms.fill(0.0);
            products.fill(0.0);
            for part in chunks {
                step.turn_into_change::<S>(&mut gradient[part.clone()], weights, sums, part.start);
                add_products::<S::Narrow>(
                    &weights[part.clone()],
                    &gradient[part],
                    [changes, norms, products],
                );
            }
            // What filters keep of themselves, and take of their change.
            let (keeps, shares) = (products, norms);
            for ((keeps, shares), &changes) in keeps.iter_mut().zip(shares.iter_mut()).zip(changes.iter()) {
                (*keeps, *shares) = factors(step.max_step, bound, keep, (changes, *shares, *keeps));
            }
            apply::<S::Narrow>(weights, gradient, keeps, shares);
        });
    }
}

/// Scales the gradients of filters whose norm is above `limit` down to it; `[tap, map]`.
#[inline(always)]
fn clip_filters(maps: usize, limit: f32, gradient: &mut [f32]) {
    with_scratch([maps], |[factors]| {
        factors.fill(0.0);
        for tap in gradient.chunks_exact(maps) {
            factors.iter_mut().zip(tap).for_each(|(sum, g)| *sum += g * g);
        }
        factors.iter_mut().for_each(|sum| *sum = (limit / sum.sqrt().max(f32::MIN_POSITIVE)).min(1.0));
        for tap in gradient.chunks_exact_mut(maps) {
            tap.iter_mut().zip(factors.iter()).for_each(|(g, factor)| *g *= factor);
        }
    });
}

/// Numbers that are worked on at a time: few enough to stay in the first-level cache.
const CHUNK: usize = 1024;

/// A filter below this norm may change as much as one of this norm, so that none is stuck at 0.
const SMALL_FILTER: f32 = 1e-3;

/// What Adagrad adds to its sums, so that a weight that never had a gradient can be divided by their root.
const SMALL_SUM: f32 = 1e-16;

impl Step {
    /// Makes of a gradient what is to be taken from the weights; its sums, if they are kept, are those from `first` on.
    ///
    /// Asks memory for sums and weights of the next chunk.
    #[inline(always)]
    fn turn_into_change<S: Simd>(
        &self,
        gradient: &mut [f32],
        weights: &[f32],
        sums: &mut [f32],
        first: usize,
    ) {
        let rate = self.rate;
        match self.optimiser {
            Optimiser::Sgd => return gradient.iter_mut().for_each(|g| *g *= rate),
            Optimiser::Momentum => {
                let velocities = &mut sums[first..][..gradient.len()];
                for (g, velocity) in gradient.iter_mut().zip(velocities) {
                    *velocity = self.momentum * *velocity + *g;
                    *g = rate * *velocity;
                }
                return;
            }
            Optimiser::Adagrad => {}
        }
        let sums = &mut sums[first..][..gradient.len()];
        let whole = gradient.len() / S::WIDTH * S::WIDTH;
        for at in (0..whole).step_by(S::WIDTH) {
            // SAFETY: both slices have `WIDTH` numbers from `at` on.
            unsafe {
                let (gradient, sums) = (gradient.as_mut_ptr().add(at), sums.as_mut_ptr().add(at));
                prefetch(sums.wrapping_add(CHUNK));
                prefetch(weights.as_ptr().wrapping_add(first + at + CHUNK));
                let g = S::load(gradient);
                let sum = S::mul_add(g, g, S::load(sums));
                S::store(sums, sum);
                let root = S::rsqrt(S::add(sum, S::splat(&SMALL_SUM)));
                S::store(gradient, S::mul(S::mul(S::splat(&rate), g), root));
            }
        }
        for (g, sum) in gradient[whole..].iter_mut().zip(&mut sums[whole..]) {
            *sum += *g * *g;
            *g = rate * *g / (*sum + SMALL_SUM).sqrt();
        }
    }
}

/// Adds sums over taps of weights and their change, both `[tap, map]`, to arrays of `[map]`: of the squared change, of the squared
/// weights, and of both multiplied.
#[inline(always)]
fn add_products<S: Simd>(weights: &[f32], change: &[f32], mut sums: [&mut [f32]; 3]) {
    let (maps, len) = (sums[0].len(), weights.len());
    assert!(
        change.len() == len && sums.iter().all(|sums| sums.len() == maps && maps.is_multiple_of(S::WIDTH))
    );
    for map in (0..maps).step_by(S::WIDTH) {
        // SAFETY: a vector from `map` on is in the sums and in each tap.
        unsafe {
            // Every other tap has sums of its own: an addition would wait for the last to the same sum.
            let mut two = [[S::zero(); 3]; 2];
            let mut at = map;
            while at + maps < len {
                for (sums, at) in two.iter_mut().zip([at, at + maps]) {
                    add_product::<S>(weights.as_ptr().add(at), change.as_ptr().add(at), sums);
                }
                at += 2 * maps;
            }
            if at < len {
                add_product::<S>(weights.as_ptr().add(at), change.as_ptr().add(at), &mut two[0]);
            }
            let [even, odd] = two;
            for ((total, even), odd) in sums.iter_mut().zip(even).zip(odd) {
                let total = total.as_mut_ptr().add(map);
                S::store(total, S::add(S::load(total), S::add(even, odd)));
            }
        }
    }
}

#[inline(always)]
unsafe fn add_product<S: Simd>(w: *const f32, c: *const f32, [changes, norms, products]: &mut [S::V; 3]) {
    unsafe {
        let (w, c) = (S::load(w), S::load(c));
        *changes = S::mul_add(c, c, *changes);
        *norms = S::mul_add(w, w, *norms);
        *products = S::mul_add(w, c, *products);
    }
}

/// `weights = keeps · weights - shares · change`: arrays `[tap, map]`, factors `[map]`.
#[inline(always)]
fn apply<S: Simd>(weights: &mut [f32], change: &[f32], keeps: &[f32], shares: &[f32]) {
    let (maps, len) = (keeps.len(), weights.len());
    assert!(change.len() == len && shares.len() == maps && maps.is_multiple_of(S::WIDTH));
    for map in (0..maps).step_by(S::WIDTH) {
        // SAFETY: a vector from `map` on is in the factors and in each tap.
        unsafe {
            let (keeps, shares) = (S::load(keeps.as_ptr().add(map)), S::load(shares.as_ptr().add(map)));
            for at in (map..len).step_by(maps) {
                let (w, c) = (weights.as_mut_ptr().add(at), S::load(change.as_ptr().add(at)));
                S::store(w, S::sub(S::mul(keeps, S::load(w)), S::mul(shares, c)));
            }
        }
    }
}

/// What a filter keeps of itself and takes of its change, from the squared norms of the change and of the filter and their
/// product.
fn factors(max_step: f32, bound: f32, keep: f32, (change, norm, product): (f32, f32, f32)) -> (f32, f32) {
    let (mut keep, mut share) = (keep, 1.0);
    let limit = max_step * norm.sqrt().max(SMALL_FILTER);
    if max_step > 0.0 && change > limit * limit {
        share = limit / change.sqrt();
    }
    let new = keep * keep * norm - 2.0 * keep * share * product + share * share * change;
    if bound > 0.0 && new > bound * bound {
        let scale = bound / new.sqrt();
        keep *= scale;
        share *= scale;
    }
    (keep, share)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENCODER: At = At { stage: 0, block: 0, position: 0, which: Weights::Encoder, tied: false };

    fn training(optimiser: Optimiser) -> Training {
        Training { optimiser, rate: 0.5, encoder_decay: 0.1, max_step: 0.0, ..Training::default() }
    }

    #[test]
    fn adagrad_divides_by_the_root_of_all_squares_so_far() {
        for cpu in Cpu::available() {
            let step = Step::new(cpu, &training(Optimiser::Adagrad), 1.0, 0);
            let (mut w, mut sums, mut gradient) = ([1.0; 24], [16.0; 24], [3.0; 24]);
            (w[5], sums[5], gradient[5]) = (0.0, 0.0, 0.0); // a weight that never had a gradient
            step.update(ENCODER, 8, &mut w, &mut sums, &mut gradient);
            for (at, (w, sum)) in w.into_iter().zip(sums).enumerate() {
                let (want, want_sum) = if at == 5 { (0.0, 0.0) } else { (0.9 - 0.5 * 3.0 / 5.0, 25.0) };
                assert!((w - want).abs() < 1e-6 && sum == want_sum, "{}: {w}, {sum} at {at}", cpu.name());
            }
        }
    }

    #[test]
    fn momentum_goes_on_with_a_share_of_its_velocity() {
        for cpu in Cpu::available() {
            let training = Training { momentum: 0.9, encoder_decay: 0.0, ..training(Optimiser::Momentum) };
            let step = Step::new(cpu, &training, 1.0, 0);
            let (mut w, mut velocity) = ([0.0; 24], [2.0; 24]);
            for (want, want_velocity) in [(-1.4, 2.8), (-1.4 - 1.76, 3.52)] {
                step.update(ENCODER, 8, &mut w, &mut velocity, &mut [1.0; 24]);
                let near = |x: f32, want: f32| (x - want).abs() < 1e-5;
                assert!(w.iter().all(|&w| near(w, want)), "{}: {w:?}", cpu.name());
                assert!(velocity.iter().all(|&v| near(v, want_velocity)), "{}: {velocity:?}", cpu.name());
            }
        }
    }

    #[test]
    fn the_gradient_of_each_filter_is_clipped_by_itself() {
        for cpu in Cpu::available() {
            let training = Training { gradient_clip: 5.0, encoder_decay: 0.0, ..training(Optimiser::Sgd) };
            let (mut w, mut gradient) = ([0.0; 16], [0.0; 16]);
            (gradient[0], gradient[8], gradient[1]) = (30.0, 40.0, 2.0);
            Step::new(cpu, &training, 1.0, 0).update(ENCODER, 8, &mut w, &mut [], &mut gradient);
            assert_eq!((w[0], w[8], w[1], w[2]), (-1.5, -2.0, -1.0, 0.0), "{}", cpu.name());
        }
    }

    #[test]
    fn a_tied_filter_decays_as_an_encoder_and_is_bounded_as_a_decoder() {
        let cpu = Cpu::available()[0];
        let step = Step::new(cpu, &training(Optimiser::Sgd), 1.0, 0);
        let mut w = [0.0; 16];
        (w[0], w[8], w[1]) = (30.0, 40.0, 0.5);
        step.update(At { tied: true, ..ENCODER }, 8, &mut w, &mut [], &mut [0.0; 16]);
        let near = |x: f32, want: f32| (x - want).abs() < 1e-6;
        assert!(near(w[0], 0.6) && near(w[8], 0.8) && near(w[1], 0.45), "{w:?}");
    }

    #[test]
    fn no_filter_changes_by_more_than_its_share() {
        for cpu in Cpu::available() {
            let training = Training { max_step: 0.1, encoder_decay: 0.0, ..training(Optimiser::Sgd) };
            let step = Step::new(cpu, &training, 1.0, 0);
            let (mut w, mut gradient) = ([0.0; 16], [0.0; 16]);
            (w[0], w[8], gradient[8]) = (3.0, 4.0, 100.0); // a filter of norm 5: its change is held to 0.5
            (w[1], gradient[1]) = (5.0, 0.5);
            step.update(ENCODER, 8, &mut w, &mut [], &mut gradient);
            assert_eq!((w[0], w[8], w[1]), (3.0, 3.5, 4.75), "{}", cpu.name());
        }
    }

    #[test]
    fn decoder_filters_are_brought_back_to_the_bound_and_shorter_ones_left() {
        for cpu in Cpu::available() {
            let step = Step::new(cpu, &training(Optimiser::Sgd), 1.0, 0);
            let mut w = [0.0; 3 * 16];
            (w[2], w[16 + 2], w[9]) = (3.0, 4.0, 0.5);
            step.update(At { which: Weights::Decoder, ..ENCODER }, 16, &mut w, &mut [], &mut [0.0; 48]);
            assert_eq!((w[2], w[16 + 2], w[9]), (0.6, 0.8, 0.5), "{}", cpu.name());
        }
    }

    #[test]
    fn the_rate_rises_holds_then_falls_to_its_end() {
        let training = Training { warmup: 10, rate_hold: 0.6, rate_end: 0.05, ..Training::default() };
        for (step, factor) in [(0, 0.1), (4, 0.5), (9, 1.0), (300, 1.0), (800, 0.525), (1000, 0.05)] {
            assert!((schedule(&training, step, 1000) - factor).abs() < 1e-12, "step {step}");
        }
    }
}
