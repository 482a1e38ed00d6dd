//! A map of frames: those that the network sees as alike lie together.
//!
//! Features of some frames are reduced to their principal components, and these to two dimensions: the first two of them, or t-SNE (van
//! der Maaten & Hinton 2008; Barnes-Hut). Nearest neighbours are those by all features, not by their places on the map.

mod pca;
mod tsne;

use ndarray::ArrayView2;
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::Progress;
use super::features::features;
use super::neighbours::nearest_among;
use crate::dataset::available_memory;
use crate::error::{Error, Result};
use crate::geometry::Kind;
use crate::network::Network;
use crate::network::preprocess::Inputs;
use crate::rng;
pub use pca::{Pca, pca};
pub use tsne::{most_perplexity, tsne};

/// Principal components that t-SNE is given, at most.
pub const COMPONENTS: usize = 50;

/// Neighbours named for each frame.
pub const NEIGHBOURS: usize = 8;

/// Perplexity where none is asked for, if there are frames enough.
pub const PERPLEXITY: f64 = 30.0;

/// How features become places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The first two principal components.
    Pca,
    /// t-SNE: neighbours stay neighbours; distances between groups mean little.
    Tsne,
}

/// What to map, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Frames shown, by chance but evenly spread over all.
    pub shown: usize,
    /// Which values of which stage, from 0.
    pub group: (usize, Kind),
    /// Each of them is made.
    pub methods: Vec<Method>,
    /// Of t-SNE: about how many neighbours each frame has. If none is asked for, [`PERPLEXITY`], or less where frames are few.
    pub perplexity: Option<f64>,
    /// Which frames are shown, and where t-SNE begins.
    pub seed: u64,
}

/// Where every frame lies by one method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layout {
    /// The method.
    pub method: Method,
    /// Of t-SNE, as used.
    pub perplexity: Option<f64>,
    /// Of t-SNE: what it minimises, the Kullback-Leibler divergence of neighbourhoods, by the Barnes-Hut approximation.
    pub divergence: Option<f64>,
    /// A place for each frame, to the right and down, in the unit square, of which the longer side of all places takes the whole.
    pub positions: Vec<[f32; 2]>,
}

/// A frame like another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its number among those shown.
    pub index: usize,
    /// Cosine of the features of both.
    pub similarity: f32,
}

/// A map of frames.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Map {
    /// Stage, from 0; in files from 1.
    #[serde(with = "super::responses::from_1")]
    pub stage: usize,
    /// Which values of its units.
    pub kind: Kind,
    /// How many values of each frame.
    pub units: usize,
    /// Frames there are.
    pub frame_count: usize,
    /// Seed of the choice of frames, and of t-SNE.
    pub seed: u64,
    /// Shares of the variance of the features that principal components explain, from the most.
    pub explained_variance: Vec<f64>,
    /// Numbers of the frames shown.
    pub frames: Vec<usize>,
    /// Where they are.
    pub layouts: Vec<Layout>,
    /// For each the others most like it by all features, from the most like.
    pub neighbours: Vec<Vec<Neighbour>>,
}

/// Maps some of the frames.
///
/// # Errors
/// A perplexity that so few frames cannot have, fewer than two frames, or no room for their features.
pub fn map(network: &Network, inputs: &Inputs, settings: &Settings, progress: &Progress) -> Result<Map> {
    let Settings { group, seed, .. } = *settings;
    let frames = sample(inputs.len(), settings.shown, seed);
    let units = network.shape(group.0, group.1).len();
    let perplexity = perplexity(settings, frames.len())?;
    check_room(frames.len(), units)?;
    progress.begin("features", frames.len());
    let features = features(network, inputs, &frames, group, |count| progress.add(count))?;
    progress.begin("neighbours", frames.len());
    let nearest = nearest_among(features.view(), NEIGHBOURS, |count| progress.add(count));
    progress.begin("principal components", 1);
    let Pca { explained, scores, .. } = pca(features.view(), COMPONENTS);
    progress.add(1);
    let mut layouts = Vec::new();
    for &method in &settings.methods {
        layouts.push(match method {
            Method::Pca => {
                let positions = in_unit_square(&first_two(scores.view()));
                Layout { method, perplexity: None, divergence: None, positions }
            }
            Method::Tsne => {
                let (places, divergence) = tsne(scores.view(), perplexity, seed, progress)?;
                let positions = in_unit_square(&places);
                Layout { method, perplexity: Some(perplexity), divergence: Some(divergence), positions }
            }
        });
    }
    let neighbour = |answer: &super::top::Answer| Neighbour { index: answer.frame, similarity: answer.value };
    let neighbours = nearest.iter().map(|answers| answers.iter().map(neighbour).collect()).collect();
    let (stage, kind) = group;
    let (frame_count, explained_variance) = (inputs.len(), explained);
    Ok(Map { stage, kind, units, frame_count, seed, explained_variance, frames, layouts, neighbours })
}

/// The perplexity to use with so many frames.
fn perplexity(settings: &Settings, shown: usize) -> Result<f64> {
    let most = most_perplexity(shown);
    let wants = settings.methods.contains(&Method::Tsne);
    if shown < 2 || (wants && most < 1.0) {
        let least = if wants { 4 } else { 2 };
        return Err(Error::Mismatch(format!("{shown} frames make no map, at least {least} are needed")));
    }
    match settings.perplexity {
        Some(asked) if wants && !(1.0..=most).contains(&asked) => {
            let want = format!("from 1 to {most:.1} with {shown} frames shown, a third of the others");
            Err(Error::Setting { key: "--perplexity".into(), got: asked.to_string(), want })
        }
        asked => Ok(asked.unwrap_or(PERPLEXITY.min(most))),
    }
}

/// Refuses what does not fit into memory: features, these centred, a matrix of products and its eigenvectors.
fn check_room(shown: usize, units: usize) -> Result<()> {
    let (values, side) = ((shown * units) as u64, shown.min(units) as u64);
    let (need_bytes, have_bytes) = (12 * values + 4 * 8 * side * side, available_memory());
    if need_bytes > have_bytes {
        let what = format!("a map of {shown} frames with {units} values each");
        return Err(Error::NoRoom { what, need_bytes, have_bytes });
    }
    Ok(())
}

/// Numbers of `shown` of `count` frames: one by chance of each of as many parts.
fn sample(count: usize, shown: usize, seed: u64) -> Vec<usize> {
    let shown = shown.min(count);
    let mut rng = rng::stream(seed, "map", 0);
    (0..shown).map(|part| rng.random_range(part * count / shown..(part + 1) * count / shown)).collect()
}

/// The first two columns; what is not there is 0.
fn first_two(scores: ArrayView2<f64>) -> Vec<[f64; 2]> {
    let at = |row: ndarray::ArrayView1<f64>, column: usize| row.get(column).copied().unwrap_or(0.0);
    scores.outer_iter().map(|row| [at(row, 0), at(row, 1)]).collect()
}

/// Moved and scaled, both directions alike, so that the longer side of all takes the unit square's and the shorter lies in the middle.
fn in_unit_square(places: &[[f64; 2]]) -> Vec<[f32; 2]> {
    let ends = |axis: usize| {
        let along = places.iter().map(|place| place[axis]);
        along.fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)))
    };
    let ends = [ends(0), ends(1)];
    let side = ends.iter().map(|(low, high)| high - low).fold(0.0, f64::max);
    let scale = if side > 0.0 { 1.0 / side } else { 0.0 };
    let place = |place: &[f64; 2]| {
        [0, 1].map(|axis| {
            let middle = 0.5 * (ends[axis].0 + ends[axis].1);
            (0.5 + scale * (place[axis] - middle)).clamp(0.0, 1.0) as f32
        })
    };
    places.iter().map(place).collect()
}

#[cfg(test)]
mod tests;
