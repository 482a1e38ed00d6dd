//! The objective `1/B Σ_b [ ||W2 W1ᵀx - x||² + λ Σ_j h_j ]` of each stage, and gradients (paper §3.1).
//!
//! The three modes differ in what is a constant: see [`Objective`]. They agree for the values and for a single stage.

use std::ops::Range;

use super::strip::rows_of;
use super::{Activations, Network, Unit, WeightUpdate, Workspace};
use crate::config::Objective;
use crate::geometry::Kind;
use crate::kernels::{Rows, with_scratch};

/// A stage's objective on one minibatch, means over its pictures.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Loss {
    /// `||r - x||²`.
    pub reconstruction: f64,
    /// `λ Σ h`.
    pub sparsity: f64,
    /// `||x||²`: what the reconstruction is measured against.
    pub signal: f64,
}

impl Loss {
    /// What is minimised.
    pub fn total(&self) -> f64 {
        self.reconstruction + self.sparsity
    }
}

impl std::ops::AddAssign for Loss {
    fn add_assign(&mut self, other: Loss) {
        self.reconstruction += other.reconstruction;
        self.sparsity += other.sparsity;
        self.signal += other.signal;
    }
}

impl Network {
    /// The objective of `stages` on the loaded minibatch, without learning. Leaves `residual` behind.
    pub fn losses(&self, work: &mut Workspace, stages: Range<usize>) -> Vec<Loss> {
        self.forward(work, stages.end - 1);
        let first = &self.stages[stages.start];
        let mut losses: Vec<Loss> = stages.map(|index| self.decode(work, index)).collect();
        first.strip.add_losses(&mut losses);
        losses
    }

    /// One step of `stages` on the loaded minibatch: forward, then from the top down gradients that `update` turns into
    /// new weights, position by position. Returns the loss of each of `stages` before the step.
    ///
    /// Once a step of the same kind was made with `work`, nothing is allocated.
    pub fn learn<'a>(
        &self,
        work: &'a mut Workspace,
        stages: Range<usize>,
        objective: Objective,
        update: &dyn WeightUpdate,
    ) -> &'a [Loss] {
        let top = stages.end - 1;
        self.forward_to(work, top, Kind::H);

        let joint = objective != Objective::Local;
        work.losses.clear();
        work.losses.resize(stages.len(), Loss::default());
        for index in stages.clone().rev() {
            work.losses[index - stages.start] = self.decode(work, index);
            let (stage, kernels, pictures) = (&self.stages[index], self.kernels(), work.pictures);
            let (input, acts, dx) = work.split_gradient(index);
            let into_input = joint && index > stages.start;

            let target = into_input && objective == Objective::JointFull;
            let (input_row, row) = (
                stage.shape.input.row_len() * acts.field.lanes,
                stage.shape.pooled.row_len() * acts.field.lanes,
            );
            if into_input && !target {
                rows_of(dx, &stage.strip.input, input_row).fill(0.0);
            }
            kernels.residual_gradient(stage, acts, pictures, target.then_some(&mut *dx));

            let sparsity = stage.settings.sparsity_weight as f32 / pictures as f32;
            rows_of(&mut acts.dh, &stage.strip.pooled, row).fill(sparsity);
            if joint && index < top {
                kernels.normalisation_gradient(stage, acts);
            }
            kernels.pooling_gradient(stage, acts);
            kernels.learn(stage, input, acts, into_input.then_some(dx), update);
        }
        self.stages[stages.start].strip.add_losses(&mut work.losses);
        &work.losses
    }

    /// Gradient of one unit's value with respect to each picture, into `work.input_gradient`.
    ///
    /// `units` names a unit of `stage` for each picture; [`Network::forward`] to that stage must have been run.
    pub fn input_gradient(&self, work: &mut Workspace, stage: usize, kind: Kind, units: &[Unit]) {
        self.gradient_to(work, 0, stage, kind, units);
    }

    /// The same with respect to what stage `first` takes, into [`Workspace::input_gradient_of`] it.
    pub fn gradient_to(&self, work: &mut Workspace, first: usize, stage: usize, kind: Kind, units: &[Unit]) {
        assert_eq!(units.len(), work.pictures, "one unit for each picture");
        let (shape, lanes) = (self.shape(stage, kind), work.lanes);
        let seeds = work.seeds(stage, kind);
        seeds.fill(0.0);
        for (lane, unit) in units.iter().enumerate() {
            seeds[shape.place(unit.map, unit.row, unit.col) * lanes + lane] = 1.0;
        }
        for index in (first..=stage).rev() {
            let (layer, kernels) = (&self.stages[index], self.kernels());
            let (_, acts, dx) = work.split_gradient(index);
            if index < stage || kind == Kind::Y {
                acts.dh.fill(0.0);
                kernels.normalisation_gradient(layer, acts);
            }
            if index < stage || kind != Kind::A {
                kernels.pooling_gradient(layer, acts);
            }
            dx.fill(0.0);
            kernels.filtering_gradient(layer, acts, dx);
        }
    }

    /// One step of the encoders of stages `first` to `last` (from 0) by the gradient of what somebody else makes of the units' values: `seed` adds
    /// that with respect to the values `kind` of stage `last` to its `da`, `dh` or `dy`, and may add to `dh` and `dy` of those below.
    /// [`Network::forward_to`] these values must have been run on the minibatch.
    ///
    /// # Panics
    /// If the network is a [part](Self::part) of one.
    pub fn learn_by(
        &self,
        work: &mut Workspace,
        (first, last, kind): (usize, usize, Kind),
        update: &dyn WeightUpdate,
        seed: impl FnOnce(&mut Workspace),
    ) {
        self.go_back(work, (first, last, kind), seed, |index, input, acts| {
            self.kernels().learn_encoder(&self.stages[index], input, acts, update);
        });
    }

    /// The same gradient, by way of the filters' responses, shown to `see` and followed by nobody: for each stage from `last` down its number
    /// (from 0), what it takes, and the gradient with respect to its filters' responses, maps `[row, column, channel, lane]`.
    ///
    /// # Panics
    /// If the network is a [part](Self::part) of one.
    pub fn gradient_by(
        &self,
        work: &mut Workspace,
        (last, kind): (usize, Kind),
        seed: impl FnOnce(&mut Workspace),
        mut see: impl FnMut(usize, &[f32], &[f32]),
    ) {
        self.go_back(work, (0, last, kind), seed, |index, input, acts| see(index, input, &acts.da));
    }

    /// Goes down from what `seed` adds to the gradients of stage `last`, as far as stage `first`; `at_stage` is given each stage's number, what it takes and its
    /// activations, when the gradient with respect to its filters' responses is there.
    fn go_back(
        &self,
        work: &mut Workspace,
        (first, last, kind): (usize, usize, Kind),
        seed: impl FnOnce(&mut Workspace),
        mut at_stage: impl FnMut(usize, &[f32], &mut Activations),
    ) {
        assert!(self.is_whole(), "parts of a network learn without labels only");
        for Activations { rows, dh, dy, .. } in &mut work.stages[first..=last] {
            for map in [dh, dy] {
                rows.each(map, FILLED, |_, piece| piece.fill(0.0));
            }
        }
        if kind == Kind::A {
            work.stages[last].da.fill(0.0);
        }
        seed(work);
        for index in (first..=last).rev() {
            let (stage, kernels) = (&self.stages[index], self.kernels());
            let (input, acts, dx) = work.split_gradient(index);
            if index < last || kind == Kind::Y {
                kernels.normalisation_gradient(stage, acts);
            }
            if index < last || kind != Kind::A {
                kernels.pooling_gradient(stage, acts);
            }
            if index > first {
                // By the weights as they are before their update.
                kernels.filtering_gradient(stage, acts, dx);
            }
            at_stage(index, input, acts);
        }
    }

    /// Makes `residual` of an encoded stage and takes its loss.
    fn decode(&self, work: &mut Workspace, index: usize) -> Loss {
        let (pictures, lanes) = (work.pictures, work.lanes);
        let stage = &self.stages[index];
        let (input, acts) = work.split(index);
        self.kernels().decode(stage, input, acts);
        let mean = 1.0 / pictures as f64;
        let total = |maps: &[f32], made: &Range<usize>, row: usize, f: fn(f32) -> f32| {
            sum(acts.rows, &maps[made.start * row..made.end * row], lanes, pictures, f)
        };
        let (s, strip) = (&stage.shape, &stage.strip);
        let (input_row, row) = (s.input.row_len() * lanes, s.pooled.row_len() * lanes);
        Loss {
            reconstruction: mean * total(&acts.residual, &strip.input, input_row, |r| r * r),
            sparsity: mean * stage.settings.sparsity_weight * total(&acts.h, &strip.pooled, row, |h| h),
            signal: mean * total(input, &strip.input, input_row, |x| x * x),
        }
    }
}

/// Numbers that a thread fills at once.
const FILLED: usize = 1 << 15;

/// Pieces that a sum is made of: a fixed number, so that it does not depend on threads.
const PIECES: usize = 32;

/// `Σ f(x)` over the lanes that hold pictures: in f32 for a few values of each lane, in f64 beyond.
fn sum(rows: Rows, maps: &[f32], lanes: usize, pictures: usize, f: impl Fn(f32) -> f32 + Sync) -> f64 {
    let mut sums = [0.0; PIECES];
    let piece = (maps.len() / lanes).div_ceil(PIECES).max(1) * lanes;
    rows.sums(maps, piece, &mut sums, |piece| {
        with_scratch([lanes], |[by_lane]| {
            let mut total = 0.0;
            for places in piece.chunks(64 * lanes) {
                by_lane.fill(0.0);
                for place in places.chunks_exact(lanes) {
                    by_lane.iter_mut().zip(place).for_each(|(sum, &x)| *sum += f(x));
                }
                total += by_lane[..pictures].iter().map(|&sum| f64::from(sum)).sum::<f64>();
            }
            total
        })
    });
    sums.iter().sum()
}
