//! How much of a unit's response is left when pictures are moved, scaled, turned, dimmed, blurred or hidden in part (paper §4.5).
//!
//! A unit's resting value is its mean over frames of all kinds, those it was trained on or others. Of an average response at some
//! change, `(response - rest) / (response to the unchanged pictures - rest)` is what is left: 1 all of it, 0 no more than to any frame,
//! below 0 less than that.

#[cfg(test)]
mod tests;
pub mod transform;

use std::borrow::Cow;

use image::DynamicImage;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::screen::Screen;
use super::{BATCH, UnitName, quantile};
use crate::dataset::{Window, available_memory, pixels_of};
use crate::error::{Error, Result};
use crate::frames::{Colour, to_colour};
use crate::geometry::{Kind, MapShape};
use crate::network::preprocess::Inputs;
use crate::network::{Network, Unit, Workspace};
use crate::video::synth;
use transform::{Edges, MAP_SIDE, Transformation, occluded};

/// Batches whose sums are held at a time.
const TOGETHER: usize = 8;

/// A unit whose response to the unchanged pictures lies no more than this many deviations above rest has nothing to lose.
const RESPONDS: f64 = 0.1;

/// Turns of a head, in degrees.
const YAWS: (i32, i32, usize) = (-90, 90, 15);

/// Mean and standard deviation of a unit's value over pictures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Moments {
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub deviation: f64,
}

/// A unit, and what it does to pictures that are not changed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// Which unit.
    #[serde(flatten)]
    pub name: UnitName,
    /// Over frames of all kinds; the mean is its resting value.
    pub frames: Moments,
    /// Over the unchanged pictures.
    pub pictures: Moments,
    /// `(mean over pictures - mean over frames) / deviation over frames`; 0 where it does not vary.
    pub selectivity: f64,
}

/// Mean and deviation of all units of all stages over pictures, `[stage][unit]`, units as [`Network::units`] has them. Depends
/// on no number of threads. `progress` is told how many pictures have been seen.
pub fn moments(
    network: &Network,
    kind: Kind,
    inputs: &Inputs,
    pictures: &[usize],
    progress: impl Fn(usize) + Sync,
) -> Vec<Vec<Moments>> {
    let units: Vec<(usize, Unit)> = (0..network.stages.len())
        .flat_map(|stage| network.units(stage, kind).into_iter().map(move |unit| (stage, unit)))
        .collect();
    let of_batch = |work: &mut Workspace, batch: &[usize]| -> Vec<(f64, f64)> {
        inputs.load(batch, work);
        network.forward(work, network.stages.len() - 1);
        progress(batch.len());
        let sums = |&(stage, unit): &(usize, Unit)| {
            let values = work.unit_values(network, stage, kind, unit).iter().map(|&v| f64::from(v));
            values.fold((0.0, 0.0), |(sum, square), v| (sum + v, square + v * v))
        };
        units.iter().map(sums).collect()
    };
    let mut totals = vec![(0.0, 0.0); units.len()];
    for group in pictures.chunks(TOGETHER * BATCH) {
        let sums: Vec<Vec<(f64, f64)>> =
            group.par_chunks(BATCH).map_init(|| network.workspace(BATCH), of_batch).collect();
        for sums in sums {
            totals.iter_mut().zip(sums).for_each(|(total, sum)| *total = (total.0 + sum.0, total.1 + sum.1));
        }
    }
    let count = pictures.len() as f64;
    let mut all = totals.into_iter().map(|(sum, square)| {
        let mean = sum / count;
        Moments { mean, deviation: (square / count - mean * mean).max(0.0).sqrt() }
    });
    (0..network.stages.len())
        .map(|stage| all.by_ref().take(network.shape(stage, kind).len()).collect())
        .collect()
}

/// A unit with its moments over frames and over the unchanged pictures.
pub fn subject(
    network: &Network,
    kind: Kind,
    name: UnitName,
    frames: &[Vec<Moments>],
    pictures: &[Vec<Moments>],
) -> Subject {
    let MapShape { rows, cols, .. } = network.shape(name.stage - 1, kind);
    let at = (name.unit.map * rows + name.unit.row) * cols + name.unit.col;
    let (frames, pictures) = (frames[name.stage - 1][at], pictures[name.stage - 1][at]);
    let above = pictures.mean - frames.mean;
    let selectivity = if frames.deviation > 0.0 { above / frames.deviation } else { 0.0 };
    Subject { name, frames, pictures, selectivity }
}

/// The `top` units of each stage whose mean over the pictures lies highest above that over frames, in deviations over frames; of
/// equal ones the first.
pub fn most_selective(
    network: &Network,
    kind: Kind,
    top: usize,
    frames: &[Vec<Moments>],
    pictures: &[Vec<Moments>],
) -> Vec<Subject> {
    let of_stage = |stage: usize| {
        let name = |unit| UnitName { stage: stage + 1, unit };
        let units = network.units(stage, kind).into_iter();
        let mut all: Vec<Subject> =
            units.map(|unit| subject(network, kind, name(unit), frames, pictures)).collect();
        all.sort_by(|a, b| b.selectivity.total_cmp(&a.selectivity));
        all.truncate(top);
        all
    };
    (0..network.stages.len()).flat_map(of_stage).collect()
}

/// What is left of responses over the amounts of one change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Curves {
    /// Name of the change: `shift-x`, ..., or `yaw` of drawn heads.
    pub change: String,
    /// Amounts, see [`Transformation`]; degrees of `yaw`.
    pub amounts: Vec<f64>,
    /// The amount that changes nothing.
    pub identity: f64,
    /// Pictures that each mean is of.
    pub pictures: usize,
    /// One for each unit, in order.
    pub units: Vec<UnitCurve>,
}

/// One unit's responses over the amounts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnitCurve {
    /// Mean value over pictures.
    pub mean: Vec<f64>,
    /// Quartiles of the value over pictures: a quarter, half and three quarters lie below.
    pub quartiles: Vec<[f64; 3]>,
    /// What is left of the mean, 1 where nothing is changed; none if the unit answers the unchanged pictures no more than any frame (less
    /// than 0.1 deviations above rest).
    pub left: Option<Vec<f64>>,
    /// The quartiles on the same scale.
    pub left_quartiles: Option<Vec<[f64; 3]>>,
    /// The amounts around no change within which at least half is left, of those tried.
    pub half_left: Option<[f64; 2]>,
}

/// What was found out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Invariance {
    /// The units.
    pub subjects: Vec<Subject>,
    /// A part for each change.
    pub curves: Vec<Curves>,
    /// For each unit what is left when a square hides a part: rows of `[map_side]` by as many places; none as in
    /// [`UnitCurve::left`].
    pub occlusion: Vec<Option<Vec<f64>>>,
    /// Places along each side of that map.
    pub map_side: usize,
}

/// Where pictures come from, and what is beyond their borders.
pub struct Pictures<'a> {
    /// How many there are.
    pub count: usize,
    /// Reads one.
    pub read: &'a (dyn Fn(usize) -> Result<DynamicImage> + Sync),
    /// What lies beyond the border.
    pub edges: Edges,
    /// Pixels that are kept beyond the network's input, `input.margin`: it sees the middle.
    pub margin: usize,
}

/// An 8-bit picture as the network is shown it: the middle of what `margin` keeps.
pub fn shown(picture: &DynamicImage, shape: MapShape, margin: usize) -> Vec<u8> {
    let kept = shape.with_margin(margin);
    let pixels = pixels_of(picture, kept);
    let mut middle = vec![0; shape.len()];
    Window::middle(margin).cut(&pixels, kept, &mut middle, shape);
    middle
}

/// Width and height of what the network sees of a picture, in the picture's pixels.
fn seen(picture: &DynamicImage, shape: MapShape, margin: usize) -> [f64; 2] {
    let kept = shape.with_margin(margin);
    let across = f64::from(picture.width()) / kept.cols as f64;
    let scale = across.min(f64::from(picture.height()) / kept.rows as f64);
    [scale * shape.cols as f64, scale * shape.rows as f64]
}

/// Changes pictures in every way and measures what is left of the units' responses. `progress` is told of each picture done.
///
/// # Errors
/// A picture cannot be read, or all answers take more than half of the free memory.
pub fn invariance(
    screen: &Screen,
    kind: Kind,
    subjects: &[Subject],
    pictures: &Pictures,
    progress: impl Fn() + Sync,
) -> Result<Invariance> {
    let changes: Vec<(Transformation, f64)> = Transformation::ALL
        .iter()
        .flat_map(|&change| change.amounts().into_iter().map(move |amount| (change, amount)))
        .collect();
    let places: Vec<(usize, usize)> =
        (0..MAP_SIDE).flat_map(|row| (0..MAP_SIDE).map(move |col| (row, col))).collect();
    // Quartiles need every answer.
    let need_bytes = 4 * (pictures.count * subjects.len() * (changes.len() + places.len())) as u64;
    let have_bytes = available_memory();
    if need_bytes > have_bytes / 2 {
        let what = format!("answers of {} units to {} changed pictures", subjects.len(), pictures.count);
        return Err(Error::NoRoom { what, need_bytes, have_bytes });
    }
    let shape = screen.network.input;
    let colour = if shape.channels == 1 { Colour::Grey } else { Colour::Rgb };
    let variants = |number: usize| -> Result<Vec<Vec<u8>>> {
        let picture = (pictures.read)(number)?;
        let picture = to_colour(Cow::Owned(picture), colour);
        let seen = seen(&picture, shape, pictures.margin);
        let changed =
            changes.iter().map(|&(change, amount)| change.apply(&picture, amount, seen, pictures.edges));
        let hidden = places.iter().map(|&(row, col)| occluded(&picture, row, col, seen));
        Ok(changed.chain(hidden).map(|picture| shown(&picture, shape, pictures.margin)).collect())
    };
    let answers = answers(screen, kind, subjects, pictures.count, variants, progress)?;
    let rests: Vec<Moments> = subjects.iter().map(|subject| subject.frames).collect();
    let mut first = 0;
    let mut curves = Vec::new();
    for change in Transformation::ALL {
        let amounts = change.amounts();
        let range = first..first + amounts.len();
        first = range.end;
        let name = serde_json::to_value(change).expect("a name");
        let name = name.as_str().expect("a name").to_owned();
        curves.push(curves_of(name, amounts, change.identity(), &answers, range, &rests));
    }
    let occlusion = |at: usize| {
        let rest = &rests[at];
        let mean = |variant: usize| {
            answers.iter().map(|of| f64::from(of[at][variant])).sum::<f64>() / answers.len() as f64
        };
        // The first change's amount that changes nothing.
        let base = curves[0].units[at].mean[position_of(&curves[0])];
        responds(rest, base).then(|| {
            (first..first + places.len())
                .map(|place| (mean(place) - rest.mean) / (base - rest.mean))
                .collect()
        })
    };
    let occlusion = (0..subjects.len()).map(occlusion).collect();
    Ok(Invariance { subjects: subjects.to_vec(), curves, occlusion, map_side: MAP_SIDE })
}

/// The same for heads of `people` drawn people, turned about their vertical axis: out of the picture plane.
pub fn yaw(
    screen: &Screen,
    kind: Kind,
    subjects: &[Subject],
    people: usize,
    margin: usize,
    seed: u64,
    progress: impl Fn() + Sync,
) -> Curves {
    let (from, to, step) = YAWS;
    let amounts: Vec<f64> = (from..=to).step_by(step).map(f64::from).collect();
    let shape = screen.network.input;
    // Large enough that scaling down smooths what drawing leaves.
    let size = 3 * (shape.rows.max(shape.cols) + margin) as u32;
    let variants = |person: usize| {
        let head = |&yaw: &f64| DynamicImage::from(synth::head(seed, person as u64, yaw as f32, size));
        Ok(amounts.iter().map(|yaw| shown(&head(yaw), shape, margin)).collect())
    };
    let answers = answers(screen, kind, subjects, people, variants, progress).expect("drawing cannot fail");
    let rests: Vec<Moments> = subjects.iter().map(|subject| subject.frames).collect();
    let range = 0..amounts.len();
    curves_of("yaw".into(), amounts, 0.0, &answers, range, &rests)
}

/// Values `[picture][unit][variant]` for all variants of `count` pictures.
fn answers(
    screen: &Screen,
    kind: Kind,
    subjects: &[Subject],
    count: usize,
    variants: impl Fn(usize) -> Result<Vec<Vec<u8>>> + Sync,
    progress: impl Fn() + Sync,
) -> Result<Vec<Vec<Vec<f32>>>> {
    let one = |work: &mut Workspace, number: usize| -> Result<Vec<Vec<f32>>> {
        let mut values = vec![Vec::new(); subjects.len()];
        for batch in variants(number)?.chunks(BATCH) {
            screen.show(work, batch.concat());
            for (values, Subject { name, .. }) in values.iter_mut().zip(subjects) {
                values.extend(work.unit_values(screen.network, name.stage - 1, kind, name.unit));
            }
        }
        progress();
        Ok(values)
    };
    (0..count).into_par_iter().map_init(|| screen.network.workspace(BATCH), one).collect()
}

fn responds(rest: &Moments, base: f64) -> bool {
    base - rest.mean > RESPONDS * rest.deviation
}

fn position_of(curves: &Curves) -> usize {
    curves.amounts.iter().position(|&amount| amount == curves.identity).expect("it is among them")
}

fn curves_of(
    change: String,
    amounts: Vec<f64>,
    identity: f64,
    answers: &[Vec<Vec<f32>>],
    range: std::ops::Range<usize>,
    rests: &[Moments],
) -> Curves {
    let mut curves = Curves { change, amounts, identity, pictures: answers.len(), units: Vec::new() };
    let unchanged = position_of(&curves);
    let unit = |(at, rest): (usize, &Moments)| {
        let of_amount = |variant: usize| {
            let mut values: Vec<f64> = answers.iter().map(|of| f64::from(of[at][variant])).collect();
            values.sort_by(f64::total_cmp);
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            (mean, [0.25, 0.5, 0.75].map(|part| quantile(&values, part)))
        };
        let (mean, quartiles): (Vec<f64>, Vec<[f64; 3]>) = range.clone().map(of_amount).unzip();
        let base = mean[unchanged];
        let scaled = |value: f64| (value - rest.mean) / (base - rest.mean);
        let answered = responds(rest, base);
        let left: Option<Vec<f64>> = answered.then(|| mean.iter().map(|&mean| scaled(mean)).collect());
        let half_left = left.as_ref().map(|left| half_left(left, unchanged, &curves.amounts));
        let left_quartiles = answered.then(|| quartiles.iter().map(|q| q.map(scaled)).collect());
        UnitCurve { mean, quartiles, left, left_quartiles, half_left }
    };
    curves.units = rests.iter().enumerate().map(unit).collect();
    curves
}

/// From the unchanged picture to the last amount on either side up to which at least half is left.
fn half_left(left: &[f64], unchanged: usize, amounts: &[f64]) -> [f64; 2] {
    let holds = |&at: &usize| left[at] >= 0.5;
    let low = (0..=unchanged).rev().take_while(holds).last().unwrap_or(unchanged);
    let high = (unchanged..left.len()).take_while(holds).last().unwrap_or(unchanged);
    [amounts[low], amounts[high]]
}
