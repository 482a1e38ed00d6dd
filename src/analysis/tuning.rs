//! What a unit is tuned to: orientation, spatial frequency, phase and position (Hubel and Wiesel 1962).
//!
//! Pictures of gratings and bars pass through the run's preprocessing and the network like any picture. A unit's response is
//! its value minus its resting value (that for a uniform grey picture), and 0 where that is negative: half-wave rectified, as firing
//! rates are. Values may be negative (`a` and `y`) where rates cannot, and a unit that is only suppressed does not
//! respond. Over the phases of a grating F0 is the mean of the response and F1 the amplitude of its first harmonic. A linear unit
//! follows the phase: its half-rectified sinusoid has F1/F0 = π/2. A unit with F1/F0 above 1 is simple, else complex (Skottun
//! et al. 1991). A unit's strength is the larger of F0 and F1 at its best grating, and its curves are of that harmonic.

pub mod fields;
mod fits;
pub mod gratings;
#[cfg(test)]
mod tests;

use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::BATCH;
use super::screen::Screen;
use crate::geometry::Kind;
use crate::network::{Unit, Workspace};
use fits::{bandwidth_octaves, circular_variance, half_width_deg, log_gaussian, von_mises};
use gratings::{Bar, Grating, Grid, grey};

/// Units whose responses are held at a time: 16 bytes for each of them and each grating.
const BLOCK: usize = 16_384;

/// Change of a value, as a share of the resting value, that counts as none: what rounding may leave.
const NOTHING: f32 = 1e-5;

/// What one unit is tuned to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnitTuning {
    /// The unit.
    pub unit: Unit,
    /// Its value for a uniform grey picture.
    pub rest: f32,
    /// Why it has no tuning, if it has none.
    pub silent: Option<Silence>,
    /// Its tuning.
    pub tuning: Option<Tuning>,
}

/// Why a unit has no tuning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Silence {
    /// Its value is the same for all gratings and for grey.
    Constant,
    /// Gratings only lower its value.
    OnlySuppressed,
}

/// Simple or complex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// The response follows the phase: F1/F0 above 1.
    Simple,
    /// It does not.
    Complex,
}

/// Tuning of a unit that responds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuning {
    /// The larger of F0 and F1 at its best grating.
    pub strength: f64,
    /// Mean response there over phases.
    pub f0: f64,
    /// Amplitude there of the first harmonic over phases.
    pub f1: f64,
    /// `f1 / f0`.
    pub modulation: f64,
    /// Simple or complex.
    pub class: Class,
    /// Orientation of the best grating shown, in degrees.
    pub grating_orientation_deg: f64,
    /// Frequency of the best grating shown, in cycles per pixel.
    pub grating_frequency_per_px: f64,
    /// Phase of the response there, in degrees; of a complex unit it means little.
    pub phase_deg: f64,
    /// Over orientation, at the best frequency.
    pub orientation: OrientationTuning,
    /// Over frequency, at the best orientation.
    pub frequency: FrequencyTuning,
    /// Over position of a bar of the best orientation; none if no bar drives the unit.
    pub position: Option<PositionTuning>,
}

/// Tuning to orientation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrientationTuning {
    /// Preferred orientation by the fit, in degrees from 0 to 180.
    pub preferred_deg: f64,
    /// Half width at half height of the fitted von Mises curve, above its offset; none if it never falls so low.
    pub half_width_deg: Option<f64>,
    /// κ of the fit.
    pub kappa: f64,
    /// Share of the curve's variance that the fit explains.
    pub r_squared: f64,
    /// `(best - orthogonal) / (best + orthogonal)` of the responses themselves.
    pub selectivity_index: f64,
    /// Circular variance of the responses: 0 sharp, 1 flat.
    pub circular_variance: f64,
    /// Responses at the grid's orientations.
    pub responses: Vec<f64>,
}

/// Tuning to spatial frequency.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrequencyTuning {
    /// Preferred frequency by the fit, in cycles per pixel; at most a step beyond those shown.
    pub preferred_per_px: f64,
    /// The same in cycles per width of the picture.
    pub preferred_per_width: f64,
    /// Full width at half height of the fitted log-Gaussian, in octaves.
    pub bandwidth_octaves: f64,
    /// Share of the curve's variance that the fit explains.
    pub r_squared: f64,
    /// Set if the best of the frequencies shown is the lowest or the highest: the peak may lie beyond.
    pub edge: Option<Edge>,
    /// Responses at the grid's frequencies.
    pub responses: Vec<f64>,
}

/// An end of the frequencies shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Edge {
    /// The lowest.
    Lowest,
    /// The highest.
    Highest,
}

/// Response to a bar of the best orientation, across the picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PositionTuning {
    /// Whether the white bar drives the unit more than the black one.
    pub light: bool,
    /// Where it does most, in pixels across the bar from the middle of the picture; see [`gratings`].
    pub preferred_px: f64,
    /// Width of the peak at half its height, in pixels; none if an end of the sweep comes first.
    pub width_px: Option<f64>,
    /// The highest response.
    pub strength: f64,
    /// Highest response to the other bar as a share of that: near 1 for complex units.
    pub other_share: f64,
    /// Responses at the grid's positions.
    pub responses: Vec<f64>,
}

/// Responses to one grating over its phases.
#[derive(Debug, Clone, Copy, Default)]
struct Harmonics {
    f0: f32,
    cosine: f32,
    sine: f32,
    /// How far any value lies below rest.
    below: f32,
}

impl Harmonics {
    fn f1(&self) -> f32 {
        self.cosine.hypot(self.sine)
    }
}

/// Measures the tuning of units of stage `screen.last`, in the order given. `progress` is told how many pictures have been
/// shown, of [`pictures`].
pub fn tune(
    screen: &Screen,
    kind: Kind,
    units: &[Unit],
    grid: &Grid,
    progress: impl Fn(usize) + Sync,
) -> Vec<UnitTuning> {
    units.chunks(BLOCK).flat_map(|units| Measurement { screen, kind, units, grid }.run(&progress)).collect()
}

/// Pictures that [`tune`] shows for so many units.
pub fn pictures(grid: &Grid, units: usize) -> usize {
    let bars = 2 * grid.orientations_deg.len() * grid.bar_positions_px.len();
    units.div_ceil(BLOCK) * (1 + grid.conditions() * grid.phases_deg.len() + bars)
}

/// A block of units.
struct Measurement<'a> {
    screen: &'a Screen<'a>,
    kind: Kind,
    units: &'a [Unit],
    grid: &'a Grid,
}

impl Measurement<'_> {
    fn values<'w>(&self, work: &'w Workspace, unit: Unit) -> &'w [f32] {
        work.unit_values(self.screen.network, self.screen.last, self.kind, unit)
    }

    fn run(&self, progress: &(impl Fn(usize) + Sync)) -> Vec<UnitTuning> {
        let shape = self.screen.network.input;
        let rest = |work: &Workspace, _| self.units.iter().map(|&unit| self.values(work, unit)[0]).collect();
        let rests: Vec<f32> = self.screen.batches(1, 1, |_| grey(shape), rest).remove(0);
        progress(1);
        let gratings = self.gratings(&rests, progress);
        let tuned: Vec<UnitTuning> = (0..self.units.len())
            .into_par_iter()
            .map(|at| {
                let harmonics: Vec<Harmonics> = gratings.iter().map(|of_units| of_units[at]).collect();
                self.tuning(self.units[at], rests[at], &harmonics)
            })
            .collect();
        self.with_bars(tuned, progress)
    }

    /// Harmonics of each grating, `[orientation and frequency][unit]`.
    fn gratings(&self, rests: &[f32], progress: &(impl Fn(usize) + Sync)) -> Vec<Vec<Harmonics>> {
        let (grid, shape, phases) = (self.grid, self.screen.network.input, self.grid.phases_deg.len());
        let together = (BATCH / phases).max(1);
        let of_batch = |batch: usize| batch * together..grid.conditions().min((batch + 1) * together);
        let pictures = |batch: usize| {
            let grating = |condition: usize| {
                let (orientation, frequency) = grid.condition(condition);
                let (orientation_deg, frequency_per_px) =
                    (grid.orientations_deg[orientation], grid.frequencies_per_px[frequency]);
                let phases = grid.phases_deg.iter();
                phases.map(move |&phase_deg| Grating { orientation_deg, frequency_per_px, phase_deg })
            };
            of_batch(batch).flat_map(grating).flat_map(|grating| grating.pixels(shape)).collect()
        };
        let waves: Vec<(f32, f32)> = grid
            .phases_deg
            .iter()
            .map(|phase| phase.to_radians().sin_cos())
            .map(|(sin, cos)| (2.0 * cos as f32 / phases as f32, 2.0 * sin as f32 / phases as f32))
            .collect();
        let read = |work: &Workspace, batch: usize| -> Vec<Vec<Harmonics>> {
            let conditions = of_batch(batch).len();
            progress(conditions * phases);
            let one = |condition: usize| {
                let lanes = condition * phases..(condition + 1) * phases;
                let each = self.units.iter().zip(rests);
                each.map(|(&unit, &rest)| harmonics(&self.values(work, unit)[lanes.clone()], rest, &waves))
                    .collect()
            };
            (0..conditions).map(one).collect()
        };
        let batches = grid.conditions().div_ceil(together);
        self.screen.batches(batches, together * phases, pictures, read).concat()
    }

    fn tuning(&self, unit: Unit, rest: f32, harmonics: &[Harmonics]) -> UnitTuning {
        let strength = |h: &Harmonics| h.f0.max(h.f1());
        let best = (0..harmonics.len())
            .reduce(|a, b| if strength(&harmonics[b]) > strength(&harmonics[a]) { b } else { a })
            .expect("a grid is not empty");
        let nothing = NOTHING * rest.abs();
        if strength(&harmonics[best]) <= nothing {
            let lowered = harmonics.iter().any(|h| h.below > nothing);
            let reason = if lowered { Silence::OnlySuppressed } else { Silence::Constant };
            return UnitTuning { unit, rest, silent: Some(reason), tuning: None };
        }
        let grid = self.grid;
        let (orientation, frequency) = grid.condition(best);
        let (f0, f1) = (f64::from(harmonics[best].f0), f64::from(harmonics[best].f1()));
        let class = if f1 > f0 { Class::Simple } else { Class::Complex };
        let response = |orientation: usize, frequency: usize| {
            let h = &harmonics[orientation * grid.frequencies_per_px.len() + frequency];
            f64::from(if class == Class::Simple { h.f1() } else { h.f0 })
        };
        let orientations = (0..grid.orientations_deg.len()).map(|at| response(at, frequency)).collect();
        let frequencies = (0..grid.frequencies_per_px.len()).map(|at| response(orientation, at)).collect();
        let phase = f64::from(harmonics[best].sine).atan2(f64::from(harmonics[best].cosine));
        let width = self.screen.network.input.cols as f64;
        let tuning = Tuning {
            strength: f0.max(f1),
            f0,
            f1,
            modulation: f1 / f0,
            class,
            grating_orientation_deg: grid.orientations_deg[orientation],
            grating_frequency_per_px: grid.frequencies_per_px[frequency],
            phase_deg: phase.to_degrees().rem_euclid(360.0),
            orientation: orientation_tuning(&grid.orientations_deg, orientation, orientations),
            frequency: frequency_tuning(&grid.frequencies_per_px, frequency, frequencies, width),
            position: None,
        };
        UnitTuning { unit, rest, silent: None, tuning: Some(tuning) }
    }

    /// Shows bars of every orientation; each unit takes those of its own.
    fn with_bars(&self, mut tuned: Vec<UnitTuning>, progress: &(impl Fn(usize) + Sync)) -> Vec<UnitTuning> {
        let (grid, shape, positions) =
            (self.grid, self.screen.network.input, self.grid.bar_positions_px.len());
        let pieces = positions.div_ceil(BATCH);
        let piece = |batch: usize| -> (usize, bool, Range<usize>) {
            let (orientation, rest) = (batch / (2 * pieces), batch % (2 * pieces));
            let first = rest / 2 * BATCH;
            (orientation, rest % 2 == 0, first..positions.min(first + BATCH))
        };
        let pictures = |batch: usize| {
            let (orientation, light, range) = piece(batch);
            let orientation_deg = grid.orientations_deg[orientation];
            let bar = |&position_px| Bar { orientation_deg, position_px, width_px: grid.bar_width_px, light };
            grid.bar_positions_px[range].iter().map(bar).flat_map(|bar| bar.pixels(shape)).collect()
        };
        let prefers = |tuning: &UnitTuning, orientation: usize| {
            let own = tuning.tuning.as_ref().map(|tuning| tuning.grating_orientation_deg);
            own == Some(grid.orientations_deg[orientation])
        };
        let read = |work: &Workspace, batch: usize| -> Vec<(usize, Vec<f64>)> {
            let (orientation, _, range) = piece(batch);
            progress(range.len());
            let own = tuned.iter().enumerate().filter(|(_, tuning)| prefers(tuning, orientation));
            let responses = |(at, tuning): (usize, &UnitTuning)| {
                let values = self.values(work, tuning.unit).iter();
                (at, values.map(|value| f64::from((value - tuning.rest).max(0.0))).collect())
            };
            own.map(responses).collect()
        };
        let batches = 2 * pieces * grid.orientations_deg.len();
        let shown = self.screen.batches(batches, positions.min(BATCH), pictures, read);
        let mut curves = vec![[Vec::new(), Vec::new()]; tuned.len()];
        for (batch, responses) in shown.into_iter().enumerate() {
            let light = piece(batch).1;
            responses.into_iter().for_each(|(at, values)| curves[at][usize::from(!light)].extend(values));
        }
        for (tuned, [light, dark]) in tuned.iter_mut().zip(curves) {
            let nothing = f64::from(NOTHING * tuned.rest.abs());
            if let Some(tuning) = &mut tuned.tuning {
                tuning.position = position_tuning(&grid.bar_positions_px, light, dark, nothing);
            }
        }
        tuned
    }
}

fn harmonics(values: &[f32], rest: f32, waves: &[(f32, f32)]) -> Harmonics {
    let mut sum = Harmonics::default();
    for (value, (cosine, sine)) in values.iter().zip(waves) {
        let response = (value - rest).max(0.0);
        sum.f0 += response / values.len() as f32;
        sum.cosine += cosine * response;
        sum.sine += sine * response;
        sum.below = sum.below.max(rest - value);
    }
    sum
}

fn orientation_tuning(at: &[f64], best: usize, responses: Vec<f64>) -> OrientationTuning {
    let fit = von_mises(at, &responses);
    let (highest, orthogonal) = (responses[best], responses[(best + at.len() / 2) % at.len()]);
    OrientationTuning {
        preferred_deg: fit.centre,
        half_width_deg: half_width_deg(fit.width),
        kappa: fit.width,
        r_squared: fit.r_squared,
        selectivity_index: (highest - orthogonal) / (highest + orthogonal),
        circular_variance: circular_variance(at, &responses),
        responses,
    }
}

fn frequency_tuning(at: &[f64], best: usize, responses: Vec<f64>, width: f64) -> FrequencyTuning {
    let fit = log_gaussian(at, &responses);
    let edge = match best {
        0 => Some(Edge::Lowest),
        last if last + 1 == at.len() => Some(Edge::Highest),
        _ => None,
    };
    FrequencyTuning {
        preferred_per_px: fit.centre,
        preferred_per_width: fit.centre * width,
        bandwidth_octaves: bandwidth_octaves(fit.width),
        r_squared: fit.r_squared,
        edge,
        responses,
    }
}

/// The better of both bars, its peak by a parabola through the three highest neighbours, and where it falls to half.
fn position_tuning(at: &[f64], light: Vec<f64>, dark: Vec<f64>, nothing: f64) -> Option<PositionTuning> {
    let highest = |curve: &[f64]| curve.iter().copied().fold(0.0, f64::max);
    let (of_light, of_dark) = (highest(&light), highest(&dark));
    let (responses, strength, other) =
        if of_light >= of_dark { (light, of_light, of_dark) } else { (dark, of_dark, of_light) };
    if strength <= nothing {
        return None;
    }
    let peak = responses.iter().position(|&r| r == strength).expect("it has a highest response");
    let step = at[1] - at[0];
    let shift = match (peak.checked_sub(1).map(|before| responses[before]), responses.get(peak + 1)) {
        (Some(before), Some(after)) if before + after < 2.0 * strength => {
            0.5 * (before - after) / (before + after - 2.0 * strength)
        }
        _ => 0.0,
    };
    // Steps from the peak to where a line between neighbours crosses half of it.
    let half = strength / 2.0;
    let fall = |side: &mut dyn Iterator<Item = f64>| {
        let mut last = strength;
        for (steps, next) in side.enumerate() {
            if next <= half {
                return Some(steps as f64 + (last - half) / (last - next));
            }
            last = next;
        }
        None
    };
    let before = fall(&mut responses[..peak].iter().rev().copied());
    let after = fall(&mut responses[peak + 1..].iter().copied());
    Some(PositionTuning {
        light: of_light >= of_dark,
        preferred_px: at[peak] + shift * step,
        width_px: before.zip(after).map(|(before, after)| step * (before + after)),
        strength,
        other_share: other / strength,
        responses,
    })
}
