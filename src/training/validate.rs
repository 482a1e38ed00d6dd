//! The objective on frames that training never sees, and units that respond to nothing or to everything.

use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::replica::Replica;
use crate::network::objective::Loss;
use crate::network::preprocess::{Inputs, Scratch};
use crate::network::{Activations, Network, Stage};
use crate::rng;

/// A line of `validation.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Steps of the whole run so far.
    pub step: u64,
    /// Frames learned from so far.
    pub images: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Frames it was measured on.
    pub frames: usize,
    /// False if there were none to hold out: then these are training frames, and units are counted only.
    pub held_out: bool,
    /// The stages that were learning.
    pub stages: Vec<StageValidation>,
}

/// One stage's part of a [`Validation`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageValidation {
    /// Number of the stage, from 1.
    pub stage: usize,
    /// What is minimised: reconstruction and sparsity.
    pub loss: f64,
    /// `||r - x||²`.
    pub reconstruction: f64,
    /// `λ Σ h`.
    pub sparsity: f64,
    /// Reconstruction error as a share of `||x||²`.
    pub unexplained: f64,
    /// Complex units `h` of the stage.
    pub units: usize,
    /// Those that respond to no frame: `h` stays below `2 √ε`.
    pub dead: usize,
    /// Those that respond to every frame much alike: `h` never falls below half of its largest value.
    pub saturated: usize,
    /// Simple units that respond to no frame, `a² < 3 ε`.
    pub dead_filters: usize,
    /// Of these, filters that were drawn anew.
    pub revived: usize,
}

impl Validation {
    /// True if its loss is of the weights as they are now: on frames held out, and no filter drawn anew since.
    pub fn is_of_weights(&self) -> bool {
        self.held_out && self.stages.iter().all(|stage| stage.revived == 0)
    }

    /// The loss of all stages that were learning.
    pub fn loss(&self) -> f64 {
        self.stages.iter().map(|stage| stage.loss).sum()
    }
}

/// Smallest and largest responses of a stage's units.
#[derive(Clone)]
struct Extremes {
    largest_a: Vec<f32>,
    smallest_h: Vec<f32>,
    largest_h: Vec<f32>,
}

impl Extremes {
    fn none(stage: &Stage) -> Extremes {
        let (a, h) = (stage.shape.filtered.len(), stage.shape.pooled.len());
        Extremes { largest_a: vec![0.0; a], smallest_h: vec![f32::INFINITY; h], largest_h: vec![0.0; h] }
    }

    /// Those of the units that are made here.
    fn add(&mut self, stage: &Stage, acts: &Activations, lanes: usize, pictures: usize) {
        let (s, strip) = (&stage.shape, &stage.strip);
        let units = |rows: &Range<usize>, row: usize| rows.start * row..rows.end * row;
        let of_a = units(&strip.filtered, s.filtered.row_len());
        let of_h = units(&strip.pooled, s.pooled.row_len());
        let a = acts.a[of_a.start * lanes..].chunks_exact(lanes);
        for (largest, a) in self.largest_a[of_a].iter_mut().zip(a) {
            *largest = a[..pictures].iter().fold(*largest, |most, a| most.max(a.abs()));
        }
        let h = acts.h[of_h.start * lanes..].chunks_exact(lanes).map(|h| &h[..pictures]);
        let extremes = self.smallest_h[of_h.clone()].iter_mut().zip(&mut self.largest_h[of_h]);
        for ((smallest, largest), h) in extremes.zip(h) {
            *smallest = h.iter().fold(*smallest, |least, h| least.min(*h));
            *largest = h.iter().fold(*largest, |most, h| most.max(*h));
        }
    }

    /// Gets those of the units that are made elsewhere.
    fn complete(&mut self, stage: &Stage) {
        let (s, strip) = (&stage.shape, &stage.strip);
        strip.gather_simple(&mut self.largest_a, s.filtered.row_len());
        strip.gather_complex(&mut self.smallest_h, s.pooled.row_len());
        strip.gather_complex(&mut self.largest_h, s.pooled.row_len());
    }

    /// The same whatever the order.
    fn merge(mut self, other: &Extremes) -> Extremes {
        let pairs = |mine: &mut [f32], others: &[f32], pick: fn(f32, f32) -> f32| {
            mine.iter_mut().zip(others).for_each(|(a, b)| *a = pick(*a, *b));
        };
        pairs(&mut self.largest_a, &other.largest_a, f32::max);
        pairs(&mut self.smallest_h, &other.smallest_h, f32::min);
        pairs(&mut self.largest_h, &other.largest_h, f32::max);
        self
    }
}

/// Losses and unit counts of stages on some frames; and for each stage the simple units, in the order `[row, column, map]`, that
/// respond to none of them. Replicas share the minibatches; the result does not depend on how. None if
/// no frame can be read.
pub fn validate(
    network: &Network,
    replicas: &mut [Replica],
    inputs: &Inputs,
    frames: &[usize],
    stages: &Range<usize>,
) -> Vec<(StageValidation, Vec<usize>)> {
    let batch = replicas[0].work.lanes;
    let minibatches: Vec<&[usize]> = frames.chunks(batch).collect();
    let count = replicas.len();
    let work = |(first, replica): (usize, &mut Replica)| {
        let work = &mut replica.work;
        let mut extremes: Vec<_> = network.stages[stages.clone()].iter().map(Extremes::none).collect();
        let (mut losses, mut scratch, whole) = (Vec::new(), Scratch::default(), work.pictures);
        for number in (first..minibatches.len()).step_by(count) {
            let indices = minibatches[number];
            work.start(indices.len());
            // Frames that can no longer be read tell nothing.
            if inputs.fill_minibatch(None, indices, work.lanes, &mut work.input, &mut scratch).is_err() {
                continue;
            }
            losses.push((number, network.losses(work, stages.clone())));
            let of_stages = network.stages[stages.clone()].iter().zip(&work.stages[stages.clone()]);
            for (extremes, (stage, acts)) in extremes.iter_mut().zip(of_stages) {
                extremes.add(stage, acts, work.lanes, work.pictures);
            }
        }
        for (extremes, stage) in extremes.iter_mut().zip(&network.stages[stages.clone()]) {
            extremes.complete(stage);
        }
        // Training goes on with whole minibatches.
        work.start(whole);
        (losses, extremes)
    };
    let parts: Vec<_> = replicas.par_iter_mut().enumerate().map(work).collect();
    let mut losses: Vec<(usize, Vec<Loss>)> = parts.iter().flat_map(|(losses, _)| losses.clone()).collect();
    losses.sort_by_key(|(number, _)| *number);
    let seen: usize = losses.iter().map(|(number, _)| minibatches[*number].len()).sum();
    if seen == 0 {
        return Vec::new();
    }
    let of_stage = |at: usize| {
        let stage = &network.stages[stages.start + at];
        let mut total = Loss::default();
        for (number, losses) in &losses {
            let (share, loss) = (minibatches[*number].len() as f64 / seen as f64, losses[at]);
            let parts = [loss.reconstruction, loss.sparsity, loss.signal].map(|part| share * part);
            let [reconstruction, sparsity, signal] = parts;
            total += Loss { reconstruction, sparsity, signal };
        }
        let mut extremes = parts.iter().map(|(_, extremes)| &extremes[at]);
        let first = extremes.next().expect("a replica").clone();
        let extremes = extremes.fold(first, Extremes::merge);
        let root = (stage.settings.epsilon as f32).sqrt();
        let silent = |a: &f32| a * a < 3.0 * root * root;
        let dead_filters: Vec<usize> =
            extremes.largest_a.iter().enumerate().filter(|(_, a)| silent(a)).map(|(unit, _)| unit).collect();
        let h = || extremes.largest_h.iter().zip(&extremes.smallest_h);
        let dead = |most: f32| most < 2.0 * root;
        let validation = StageValidation {
            stage: stage.number,
            loss: total.total(),
            reconstruction: total.reconstruction,
            sparsity: total.sparsity,
            unexplained: total.reconstruction / total.signal.max(f64::MIN_POSITIVE),
            units: extremes.largest_h.len(),
            dead: h().filter(|(most, _)| dead(**most)).count(),
            saturated: h().filter(|(most, least)| !dead(**most) && **least > 0.5 * **most).count(),
            dead_filters: dead_filters.len(),
            revived: 0,
        };
        (validation, dead_filters)
    };
    (0..stages.len()).map(of_stage).collect()
}

/// Draws filters that respond to nothing anew, by the streams `revive` of `seed`, in the order of units.
pub fn revive(stage: &Stage, units: &[usize], seed: u64, step: u64) {
    let mut rng = rng::stream(seed, &format!("revive {}", stage.number), step);
    units.iter().for_each(|&unit| stage.blocks.redraw(unit, &mut rng));
}
