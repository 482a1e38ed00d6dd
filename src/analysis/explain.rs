//! Why did a unit answer as it did? Where in the picture the answer comes from, and through which units of the stages below.
//!
//! Gradient x input, integrated gradients (Sundararajan et al. 2017) and occlusion (Zeiler & Fergus 2014) say where. Integrated
//! gradients along the outputs of a stage below say through which units. Both sums must be the answer less that to a baseline, which is
//! checked. What an explanation says must depend on what was learned: it is compared with those of networks with random weights in
//! place of some stages (Adebayo et al. 2018).

mod path;
#[cfg(test)]
mod tests;

use ndarray::{Array2, Axis, Zip};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::responses::Probe;
use super::screen::Screen;
use super::{BATCH, UnitName};
use crate::config::RunConfig;
use crate::dataset::available_memory;
use crate::error::{Error, Result};
use crate::geometry::{Kind, MapShape};
use crate::network::checkpoint::Checkpoint;
use crate::network::{Network, Unit, costs};
use path::{EXACT, ROUGH, integrate};

/// Units named for each stage below, of those that raise the answer and of those that lower it.
const NAMED: usize = 12;

/// What an answer is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Baseline {
    /// All of the network's input 0: the mean frame after preprocessing.
    #[default]
    Zero,
    /// A picture of one grey.
    Grey,
}

/// How to explain.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// What the answer is compared with.
    pub baseline: Baseline,
    /// Side of the square that hides a part of the picture, in pixels; none for about a fifth of the shorter side.
    pub occlude_px: Option<usize>,
    /// Whether to compare with random weights.
    pub sanity: bool,
    /// Seed of these.
    pub seed: u64,
}

/// Why a unit answered as it did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Which value of which unit.
    #[serde(flatten)]
    pub probe: Probe,
    /// Its value for the picture.
    pub value: f64,
    /// Its value for the baseline.
    pub baseline_value: f64,
    /// Gradient times input at every place, summed over channels: to first order, what the place adds.
    pub gradient_input: HeatMap,
    /// What each place adds on the straight way from the baseline to the picture.
    pub integrated: HeatMap,
    /// How well that adds up.
    pub completeness: Completeness,
    /// By how much the value falls when a grey square hides a place, the mean over the squares that do.
    pub occlusion: HeatMap,
    /// Side of the square, in pixels.
    pub occlude_px: usize,
    /// The stages below, the nearest first.
    pub below: Vec<Through>,
    /// The same with random weights in place of what was learned; empty if that was not asked for.
    pub sanity: Vec<Sanity>,
}

impl Explanation {
    /// The value for the baseline, without what rounding leaves of 0.
    pub fn baseline_shown(&self) -> f64 {
        if self.baseline_value.abs() < 1e-5 * self.value.abs() { 0.0 } else { self.baseline_value }
    }
}

/// A number for every pixel of the network's input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeatMap {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// `[row, column]`, in units of the unit's value.
    pub values: Vec<f32>,
}

/// What integrated gradients add up to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Completeness {
    /// Their sum.
    pub sum: f64,
    /// What it should be: value for the picture less value for the baseline.
    pub difference: f64,
    /// By how much it is off, as a share of the difference.
    pub gap: f64,
    /// Gradients taken.
    pub evaluations: usize,
}

/// What comes through the units of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Through {
    /// The stage, from 1.
    pub stage: usize,
    /// How well its units' parts add up.
    pub completeness: Completeness,
    /// Those that raise the answer most, from the most.
    pub raise: Vec<Part>,
    /// Those that lower it most, from the most.
    pub lower: Vec<Part>,
    /// Share of all that raises and lowers it that the named ones have.
    pub named_share: f64,
    /// Sums over each map.
    pub maps: Vec<f64>,
    /// Sums over all maps at each of its positions.
    pub positions: HeatMap,
}

/// A unit's part in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The unit.
    #[serde(flatten)]
    pub name: UnitName,
    /// Its value y for the picture.
    pub value: f32,
    /// What it adds to the answer.
    pub adds: f64,
}

/// An explanation by a network with random weights in some stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sanity {
    /// The stages with random weights, from 1.
    pub random_stages: Vec<usize>,
    /// Spearman's rank correlation of its integrated gradients with those of the run.
    pub correlation: f64,
    /// The same of their sizes, without sign.
    pub correlation_of_sizes: f64,
}

/// Explains the answers of a network.
pub struct Explainer<'a> {
    checkpoint: &'a Checkpoint,
    settings: Settings,
}

impl Explainer<'_> {
    /// For the network of a checkpoint.
    ///
    /// # Errors
    /// A square that does not fit into the picture, or no room for networks with random weights.
    pub fn new(checkpoint: &Checkpoint, settings: Settings) -> Result<Explainer<'_>> {
        let MapShape { rows, cols, .. } = checkpoint.network.input;
        let most = rows.min(cols);
        if let Some(side) = settings.occlude_px
            && !(1..=most).contains(&side)
        {
            let (key, got) = ("--occlude".into(), side.to_string());
            return Err(Error::Setting { key, got, want: format!("a whole number from 1 to {most}") });
        }
        let need_bytes = if settings.sanity { random_bytes(&checkpoint.config) } else { 0 };
        let have_bytes = available_memory();
        if need_bytes > have_bytes {
            let what = "a copy of the network with random weights (--no-sanity does without)".into();
            return Err(Error::NoRoom { what, need_bytes, have_bytes });
        }
        Ok(Explainer { checkpoint, settings })
    }

    /// Why a unit answers as it does to a picture of 8-bit pixels `[channel, row, column]`, of the network's input size.
    ///
    /// # Errors
    /// The network with random weights cannot be made.
    ///
    /// # Panics
    /// If the picture has another size or the network no such unit.
    pub fn explain(&self, pixels: &[u8], probe: Probe) -> Result<Explanation> {
        let Checkpoint { network, whitening, .. } = self.checkpoint;
        assert_eq!(pixels.len(), network.input.len(), "a picture of another size");
        let picture = self.places(&whitening.apply(pixels));
        let baseline = match self.settings.baseline {
            Baseline::Zero => vec![0.0; picture.len()],
            Baseline::Grey => self.places(&whitening.apply(&vec![128; pixels.len()])),
        };
        let whole = integrate(network, 0, probe, (&baseline, &picture), EXACT);
        let gradient = path::gradient(network, probe, &picture);
        let gradient_input: Vec<f64> =
            gradient.iter().zip(&picture).map(|(g, x)| f64::from(*g) * f64::from(*x)).collect();
        let occlude_px = self.settings.occlude_px.unwrap_or_else(|| {
            let MapShape { rows, cols, .. } = network.input;
            (rows.min(cols) / 5).max(1)
        });
        let through = |stage| self.through(stage, probe, &baseline, &picture);
        let below = (0..probe.stage).into_par_iter().rev().map(through).collect();
        let sanity = match self.settings.sanity {
            true => self.sanity(probe, (&baseline, &picture), &whole.parts)?,
            false => Vec::new(),
        };
        Ok(Explanation {
            probe,
            value: whole.value,
            baseline_value: whole.baseline_value,
            gradient_input: HeatMap::of(network.input, &gradient_input),
            integrated: HeatMap::of(network.input, &whole.parts),
            completeness: whole.completeness(),
            occlusion: self.occlusion(pixels, probe, occlude_px, whole.value),
            occlude_px,
            below,
            sanity,
        })
    }

    /// Values `[channel, row, column]` in the order of a network's maps, `[row, column, channel]`.
    fn places(&self, values: &[f32]) -> Vec<f32> {
        let MapShape { channels, rows, cols } = self.checkpoint.network.input;
        (0..rows * cols).flat_map(|at| (0..channels).map(move |c| values[c * rows * cols + at])).collect()
    }

    /// What comes through the outputs of a stage below the unit's.
    fn through(&self, stage: usize, probe: Probe, baseline: &[f32], picture: &[f32]) -> Through {
        let network = &self.checkpoint.network;
        let [from, to] = path::outputs(network, stage, [baseline, picture]);
        let found = integrate(network, stage + 1, probe, (&from, &to), EXACT);
        let shape = network.shape(stage, Kind::Y);
        let place = |unit: Unit| shape.place(unit.map, unit.row, unit.col);
        let mut parts: Vec<Part> = network
            .units(stage, Kind::Y)
            .into_iter()
            .map(|unit| {
                let name = UnitName { stage: stage + 1, unit };
                Part { name, value: to[place(unit)], adds: found.parts[place(unit)] }
            })
            .collect();
        let mut maps = vec![0.0; shape.channels];
        parts.iter().for_each(|part| maps[part.name.unit.map] += part.adds);
        let all: f64 = parts.iter().map(|part| part.adds.abs()).sum();
        parts.sort_by(|a, b| b.adds.total_cmp(&a.adds));
        let raise: Vec<Part> = parts.iter().take(NAMED).filter(|part| part.adds > 0.0).copied().collect();
        let lower: Vec<Part> =
            parts.iter().rev().take(NAMED).filter(|part| part.adds < 0.0).copied().collect();
        let named: f64 = raise.iter().chain(&lower).map(|part| part.adds.abs()).sum();
        Through {
            stage: stage + 1,
            completeness: found.completeness(),
            raise,
            lower,
            named_share: if all > 0.0 { named / all } else { 0.0 },
            maps,
            positions: HeatMap::of(shape, &found.parts),
        }
    }

    /// See [`Explanation::occlusion`]. Squares are moved by half their side, and end at the borders.
    fn occlusion(&self, pixels: &[u8], probe: Probe, side: usize, value: f64) -> HeatMap {
        let Checkpoint { network, whitening, .. } = self.checkpoint;
        let MapShape { channels, rows, cols } = network.input;
        let starts = |len: usize| -> Vec<usize> {
            let step = (side / 2).max(1);
            (0..len - side).step_by(step).chain([len - side]).collect()
        };
        let squares: Vec<(usize, usize)> = starts(rows)
            .into_iter()
            .flat_map(|top| starts(cols).into_iter().map(move |left| (top, left)))
            .collect();
        // Each channel's mean, so that the square has the picture's own brightness.
        let means: Vec<u8> = pixels
            .chunks_exact(rows * cols)
            .map(|plane| (plane.iter().map(|&p| u64::from(p)).sum::<u64>() / plane.len() as u64) as u8)
            .collect();
        let hidden = |&(top, left): &(usize, usize)| {
            let mut hidden = pixels.to_vec();
            for (c, y) in (0..channels).flat_map(|c| (top..top + side).map(move |y| (c, y))) {
                hidden[(c * rows + y) * cols + left..][..side].fill(means[c]);
            }
            hidden
        };
        let screen = Screen { network, whitening, last: probe.stage };
        let batch = |number: usize| &squares[number * BATCH..squares.len().min((number + 1) * BATCH)];
        let answers: Vec<Vec<f32>> = screen.batches(
            squares.len().div_ceil(BATCH),
            BATCH,
            |number| batch(number).iter().flat_map(hidden).collect(),
            |work, _| work.unit_values(network, probe.stage, probe.kind, probe.unit).to_vec(),
        );
        let (mut falls, mut times) = (Array2::<f64>::zeros((rows, cols)), Array2::<f64>::zeros((rows, cols)));
        for (&(top, left), answer) in squares.iter().zip(answers.into_iter().flatten()) {
            let area = ndarray::s![top..top + side, left..left + side];
            falls.slice_mut(area).mapv_inplace(|fall| fall + value - f64::from(answer));
            times.slice_mut(area).mapv_inplace(|times| times + 1.0);
        }
        Zip::from(&mut falls).and(&times).for_each(|fall, &times| *fall /= times);
        HeatMap { rows, cols, values: falls.iter().map(|&fall| fall as f32).collect() }
    }

    /// Integrated gradients again with random weights: from the top stage down more and more of them, and each alone.
    fn sanity(
        &self,
        probe: Probe,
        (baseline, picture): (&[f32], &[f32]),
        learned: &[f64],
    ) -> Result<Vec<Sanity>> {
        let Checkpoint { network, config, .. } = self.checkpoint;
        let random = Network::new(config, self.settings.seed)?;
        let cascade = (0..=probe.stage).rev().map(|first| (first..=probe.stage).collect::<Vec<_>>());
        let alone = (0..probe.stage).map(|stage| vec![stage]);
        let compare = |stages: Vec<usize>| {
            let mixed = network.with_stages_of(&random, &stages);
            let parts = integrate(&mixed, 0, probe, (baseline, picture), ROUGH).parts;
            let channels = network.input.channels;
            let sums = |parts: &[f64]| -> Vec<f64> {
                parts.chunks_exact(channels).map(|p| p.iter().sum()).collect()
            };
            let (learned, parts) = (sums(learned), sums(&parts));
            let sizes = |parts: &[f64]| -> Vec<f64> { parts.iter().map(|part| part.abs()).collect() };
            Sanity {
                random_stages: stages.iter().map(|stage| stage + 1).collect(),
                correlation: spearman(&learned, &parts),
                correlation_of_sizes: spearman(&sizes(&learned), &sizes(&parts)),
            }
        };
        Ok(cascade.chain(alone).collect::<Vec<_>>().into_par_iter().map(compare).collect())
    }
}

impl HeatMap {
    /// Sums over channels of values `[row, column, channel]`.
    fn of(shape: MapShape, values: &[f64]) -> HeatMap {
        let size = (shape.rows * shape.cols, shape.channels);
        let values = ndarray::ArrayView2::from_shape(size, values).expect("a value for each place");
        let values = values.sum_axis(Axis(1)).iter().map(|&value| value as f32).collect();
        HeatMap { rows: shape.rows, cols: shape.cols, values }
    }
}

/// Bytes of networks with random weights: a whole one and a mixed one for each thread.
fn random_bytes(config: &RunConfig) -> u64 {
    let weights: u64 = costs(config).iter().map(|stage| stage.weights).sum();
    4 * 2 * weights * rayon::current_num_threads() as u64
}

/// Spearman's rank correlation; equal values share the mean of their ranks. 0 where one of both is constant.
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "as many values");
    let ranks = |values: &[f64]| -> Vec<f64> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
        let (mut ranks, mut first) = (vec![0.0; values.len()], 0);
        for group in order.chunk_by(|&i, &j| values[i] == values[j]) {
            group.iter().for_each(|&at| ranks[at] = first as f64 + (group.len() - 1) as f64 / 2.0);
            first += group.len();
        }
        let mean = (values.len() as f64 - 1.0) / 2.0;
        ranks.iter_mut().for_each(|rank| *rank -= mean);
        ranks
    };
    let (a, b) = (ranks(a), ranks(b));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norm = (dot(&a, &a) * dot(&b, &b)).sqrt();
    if norm > 0.0 { dot(&a, &b) / norm } else { 0.0 }
}
