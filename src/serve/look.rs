//! Which units fire for a picture, what it is like, and why one of them answers as it does.

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::DynamicImage;
use ndarray::{Array2, ArrayView2};
use serde::Serialize;

use super::upload::Refused;
use crate::analysis::features::features;
use crate::analysis::invariance::{Moments, moments, shown};
use crate::analysis::neighbours::nearest_of;
use crate::analysis::{Progress, UnitName};
use crate::dataset::Dataset;
use crate::error::Result;
use crate::geometry::Kind;
use crate::network::checkpoint::Checkpoint;
use crate::network::preprocess::Inputs;
use crate::picture::{pixel_tile, png};

/// Units named for each stage.
const UNITS: usize = 12;

/// Frames named that are most like it.
const NEIGHBOURS: usize = 8;

/// A network that looks at pictures, and what it usually sees.
pub struct Viewer {
    checkpoint: Checkpoint,
    frames: Dataset,
    /// Of every unit's value y over the frames, `[stage][unit]`.
    usual: Vec<Vec<Moments>>,
    /// Top-stage features of the frames, [frame, unit].
    features: Array2<f32>,
}

/// What a network makes of a picture.
#[derive(Serialize)]
pub struct Look {
    /// The picture as it was sent.
    width: u32,
    height: u32,
    /// What the network sees of it, as the address of a PNG.
    seen: String,
    /// For each stage, the top first, the units that answer it most unusually.
    stages: Vec<StageLook>,
    neighbours: Vec<NeighbourShown>,
}

#[derive(Serialize)]
struct StageLook {
    stage: usize,
    units: Vec<Firing>,
}

#[derive(Serialize)]
struct Firing {
    name: String,
    value: f32,
    /// Deviations above its mean over the frames.
    above: f64,
}

#[derive(Serialize)]
struct NeighbourShown {
    key: String,
    similarity: f32,
    picture: String,
}

impl Viewer {
    /// Shows the network all `frames` once.
    ///
    /// # Errors
    /// Their features do not fit in memory.
    pub fn new(checkpoint: Checkpoint, frames: Dataset, progress: &Progress) -> Result<Viewer> {
        let Checkpoint { network, whitening, .. } = &checkpoint;
        let all: Vec<usize> = (0..frames.len()).collect();
        let inputs = Inputs::new(&frames, whitening, 0);
        progress.begin("what is usual", all.len());
        let usual = moments(network, Kind::Y, &inputs, &all, |count| progress.add(count));
        progress.begin("features", all.len());
        let top = network.stages.len() - 1;
        let features = features(network, &inputs, &all, (top, Kind::Y), |count| progress.add(count))?;
        Ok(Viewer { checkpoint, frames, usual, features })
    }

    /// The network's preprocessed view of a picture, and the 8-bit pixels that it is of.
    fn seen(&self, picture: &DynamicImage) -> (Vec<f32>, Vec<u8>) {
        let Checkpoint { network, whitening, config, .. } = &self.checkpoint;
        let pixels = shown(picture, network.input, config.input.margin);
        (whitening.apply(&pixels), pixels)
    }

    /// Which units fire for a picture, and the frames most like it.
    pub(super) fn look(&self, picture: &DynamicImage) -> Result<Look, Refused> {
        let network = &self.checkpoint.network;
        let (values, pixels) = self.seen(picture);
        let mut work = network.workspace(1);
        work.start(1);
        work.load_picture(0, values.iter().copied());
        let last = network.stages.len() - 1;
        network.forward(&mut work, last);
        let stage = |stage: usize| {
            let units = network.units(stage, Kind::Y).into_iter().zip(&self.usual[stage]);
            let mut all: Vec<Firing> = units
                .map(|(unit, usual)| {
                    let value = work.unit_values(network, stage, Kind::Y, unit)[0];
                    let above = (f64::from(value) - usual.mean) / usual.deviation;
                    let above = if usual.deviation > 0.0 { above } else { 0.0 };
                    Firing { name: UnitName { stage: stage + 1, unit }.to_string(), value, above }
                })
                .collect();
            all.sort_by(|a, b| b.above.total_cmp(&a.above));
            all.truncate(UNITS);
            StageLook { stage: stage + 1, units: all }
        };
        let query: Vec<f32> = work.values(network, last, Kind::Y).into_iter().collect();
        let query = ArrayView2::from_shape((1, query.len()), &query).expect("one row");
        let nearest = nearest_of(query, self.features.view(), NEIGHBOURS);
        let neighbour = |answer: &crate::analysis::top::Answer| NeighbourShown {
            key: self.frames.keys[answer.frame].clone(),
            similarity: answer.value,
            picture: self.address(&self.frames.pixels(answer.frame)),
        };
        Ok(Look {
            width: picture.width(),
            height: picture.height(),
            seen: self.address(&pixels),
            stages: (0..=last).rev().map(stage).collect(),
            neighbours: nearest[0].iter().map(neighbour).collect(),
        })
    }

    /// 8-bit pixels as the address of a PNG.
    fn address(&self, pixels: &[u8]) -> String {
        let shape = self.checkpoint.network.input;
        let tile = pixel_tile(pixels, shape.channels, shape.rows, shape.cols);
        format!("data:image/png;base64,{}", STANDARD.encode(png(&tile)))
    }

    /// Refuses a unit that is not there.
    fn check(&self, name: UnitName) -> Result<(), Refused> {
        let refused = |e: crate::Error| Refused::new(StatusCode::NOT_FOUND, e.to_string());
        name.check(&self.checkpoint.network, Kind::Y).map_err(refused)
    }
}
