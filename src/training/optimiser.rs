//! From gradients to steps: SGD and Adagrad, decay of the encoder, the bound on the decoder, the schedule.

use crate::config::{Optimiser, Training};
use crate::kernels::filter::MAP_PAD;
use crate::kernels::{Cpu, Kernel, Simd};
use crate::network::WeightUpdate;

/// Factor of the learning rate at a step of a phase: rising to 1, holding, then linearly down to the end.
pub fn schedule(training: &Training, step: u64, steps: u64) -> f64 {
    let (hold, end) = (training.rate_hold, training.rate_end);
    let rise = (step + 1) as f64 / training.warmup.max(1) as f64;
    let done = step as f64 / steps.max(1) as f64;
    let fall = if done <= hold { 1.0 } else { 1.0 + (end - 1.0) * ((done - hold) / (1.0 - hold)).min(1.0) };
    fall.min(rise)
}

/// The update of one step.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    cpu: Cpu,
    optimiser: Optimiser,
    rate: f32,
    /// The encoder keeps this share of itself.
    keep: f32,
    norm_bound: f32,
    max_step: f32,
}

impl Step {
    /// With the schedule at `factor`.
    pub fn new(cpu: Cpu, training: &Training, factor: f64) -> Step {
        Step {
            cpu,
            optimiser: training.optimiser,
            rate: (training.rate * factor) as f32,
            keep: (1.0 - training.encoder_decay * factor) as f32,
            norm_bound: training.decoder_norm_bound as f32,
            max_step: training.max_step as f32,
        }
    }
}

impl WeightUpdate for Step {
    fn encoder(&self, maps: usize, weights: &mut [f32], sums: &mut [f32], gradient: &mut [f32]) {
        self.cpu.run(Update { step: self, maps, keep: self.keep, weights, sums, gradient });
    }

    fn decoder(&self, maps: usize, weights: &mut [f32], sums: &mut [f32], gradient: &mut [f32]) {
        self.cpu.run(Update { step: self, maps, keep: 1.0, weights, sums, gradient });
        if self.norm_bound > 0.0 {
            self.cpu.run(BoundNorms { maps, weights, bound: self.norm_bound });
        }
    }
}

struct Update<'a> {
    step: &'a Step,
    maps: usize,
    keep: f32,
    weights: &'a mut [f32],
    sums: &'a mut [f32],
    gradient: &'a mut [f32],
}

impl Kernel for Update<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Update { step, maps, keep, weights, sums, gradient } = self;
        let rate = step.rate;
        match step.optimiser {
            Optimiser::Sgd => gradient.iter_mut().for_each(|g| *g *= rate),
            Optimiser::Adagrad => {
                for (g, sum) in gradient.iter_mut().zip(sums) {
                    *sum += *g * *g;
                    *g = rate * *g / (sum.sqrt() + 1e-8);
                }
            }
        }
        // `gradient` is the change now; each filter's is held to a share of the filter.
        if step.max_step > 0.0 {
            for first in (0..maps).step_by(MAP_PAD) {
                let change = squares(gradient, maps, first);
                let norm = squares(weights, maps, first);
                let mut scale = [1f32; MAP_PAD];
                for ((scale, change), norm) in scale.iter_mut().zip(change).zip(norm) {
                    let limit = step.max_step * norm.sqrt().max(SMALL_FILTER);
                    if change > limit * limit {
                        *scale = limit / change.sqrt();
                    }
                }
                if scale != [1.0; MAP_PAD] {
                    rescale(gradient, maps, first, &scale);
                }
            }
        }
        for (w, &change) in weights.iter_mut().zip(gradient.iter()) {
            *w = keep * *w - change;
        }
    }
}

/// A filter below this norm may change as much as one of this norm, so that none is stuck at 0.
const SMALL_FILTER: f32 = 1e-3;

/// Squared norms of [`MAP_PAD`] filters of `[tap, map]`, from map `first` on.
#[inline(always)]
fn squares(weights: &[f32], maps: usize, first: usize) -> [f32; MAP_PAD] {
    let mut squares = [0f32; MAP_PAD];
    for tap in weights.chunks_exact(maps) {
        for (square, w) in squares.iter_mut().zip(&tap[first..first + MAP_PAD]) {
            *square += w * w;
        }
    }
    squares
}

/// Multiplies each of [`MAP_PAD`] filters of `[tap, map]`, from map `first` on, by its scale.
#[inline(always)]
fn rescale(weights: &mut [f32], maps: usize, first: usize, scale: &[f32; MAP_PAD]) {
    for tap in weights.chunks_exact_mut(maps) {
        for (w, scale) in tap[first..first + MAP_PAD].iter_mut().zip(scale) {
            *w *= scale;
        }
    }
}

/// Rescales filters whose norm is above the bound; weights are `[tap, map]`.
struct BoundNorms<'a> {
    maps: usize,
    weights: &'a mut [f32],
    bound: f32,
}

impl Kernel for BoundNorms<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let BoundNorms { maps, weights, bound } = self;
        for first in (0..maps).step_by(MAP_PAD) {
            let squares = squares(weights, maps, first);
            if squares.iter().any(|&square| square > bound * bound) {
                let scale =
                    squares.map(|square| if square > bound * bound { bound / square.sqrt() } else { 1.0 });
                rescale(weights, maps, first, &scale);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(optimiser: Optimiser) -> Training {
        Training { optimiser, rate: 0.5, encoder_decay: 0.1, max_step: 0.0, ..Training::default() }
    }

    #[test]
    fn adagrad_divides_by_the_root_of_all_squares_so_far() {
        for cpu in Cpu::available() {
            let step = Step::new(cpu, &training(Optimiser::Adagrad), 1.0);
            let (mut w, mut sums) = ([1.0; 8], [16.0; 8]);
            step.encoder(8, &mut w, &mut sums, &mut [3.0; 8]);
            assert_eq!((sums[0], w[0]), (25.0, 0.9 - 0.5 * 3.0 / 5.0), "{}", cpu.name());
        }
    }

    #[test]
    fn no_filter_changes_by_more_than_its_share() {
        for cpu in Cpu::available() {
            let training = Training { max_step: 0.1, encoder_decay: 0.0, ..training(Optimiser::Sgd) };
            let step = Step::new(cpu, &training, 1.0);
            let (mut w, mut gradient) = ([0.0; 16], [0.0; 16]);
            (w[0], w[8], gradient[8]) = (3.0, 4.0, 100.0); // a filter of norm 5: its change is held to 0.5
            (w[1], gradient[1]) = (5.0, 0.5);
            step.encoder(8, &mut w, &mut [], &mut gradient);
            assert_eq!((w[0], w[8], w[1]), (3.0, 3.5, 4.75), "{}", cpu.name());
        }
    }

    #[test]
    fn decoder_filters_are_brought_back_to_the_bound_and_shorter_ones_left() {
        for cpu in Cpu::available() {
            let step = Step::new(cpu, &training(Optimiser::Sgd), 1.0);
            let mut w = [0.0; 3 * 16];
            (w[2], w[16 + 2], w[9]) = (3.0, 4.0, 0.5);
            step.decoder(16, &mut w, &mut [], &mut [0.0; 48]);
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
