//! t-SNE by the crate `bhtsne`, so that it repeats.
//!
//! What would depend on chance or on threads is taken from it: it begins at the principal components with a little noise of the seed,
//! neighbours are exact, and it runs on one thread, since on several its sums depend on which thread was first.

use bhtsne::{Neighbor, tSNE};
use ndarray::ArrayView2;
use ndarray_rand::rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use super::first_two;
use crate::analysis::Progress;
use crate::error::{Error, Result};
use crate::rng;

/// Steps of the descent; in the first quarter neighbours pull each other harder.
const EPOCHS: usize = 1000;

/// Neighbours that pull, for each one of the perplexity.
const REACH: usize = 3;

/// How coarsely far groups are taken together; 0 would be exact.
const THETA: f64 = 0.5;

/// Deviation of the places at the start, and of the noise in them, without which frames in a line would stay in it.
const START: [f64; 2] = [1e-4, 1e-6];

/// The greatest perplexity that so many points can have.
pub fn most_perplexity(count: usize) -> f64 {
    count.saturating_sub(1) as f64 / REACH as f64
}

/// Places of `points`, a row each, in two dimensions, and the divergence that is left. The same on any number of threads.
///
/// # Errors
/// No thread can be started.
///
/// # Panics
/// If `perplexity` is below 1 or above [`most_perplexity`].
pub fn tsne(
    points: ArrayView2<f64>,
    perplexity: f64,
    seed: u64,
    progress: &Progress,
) -> Result<(Vec<[f64; 2]>, f64)> {
    let count = points.nrows();
    assert!((1.0..=most_perplexity(count)).contains(&perplexity), "{perplexity} for {count} points");
    let neighbours = neighbours(points, REACH * perplexity as usize);
    let start = start(points, seed);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let pool = pool.map_err(|e| Error::Mismatch(format!("cannot start a thread: {e}")))?;
    progress.begin("t-SNE", EPOCHS);
    Ok(pool.install(|| {
        // Points are known by their neighbours only.
        let points = vec![(); count];
        let mut tsne: tSNE<f64, ()> = tSNE::new(&points);
        tsne.perplexity(perplexity).epochs(EPOCHS).initial_embedding(start);
        tsne.epoch_callback(|_, _| progress.add(1));
        tsne.barnes_hut_with_neighbors(THETA, &neighbours);
        let places = tsne.embedding().chunks_exact(2).map(|place| [place[0], place[1]]).collect();
        (places, tsne.kl_divergence().expect("it was run"))
    }))
}

/// The nearest other points of each, from the nearest; of equal ones the earlier first.
fn neighbours(points: ArrayView2<f64>, keep: usize) -> Vec<Vec<Neighbor<f64>>> {
    let distance = |a: usize, b: usize| {
        let pairs = points.row(a).into_iter().zip(points.row(b));
        pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
    };
    let of_point = |point: usize| {
        let others = (0..points.nrows()).filter(|&other| other != point);
        let mut all: Vec<_> =
            others.map(|index| Neighbor { index, distance: distance(point, index) }).collect();
        let order = |a: &Neighbor<f64>, b: &Neighbor<f64>| {
            a.distance.total_cmp(&b.distance).then(a.index.cmp(&b.index))
        };
        if keep < all.len() {
            all.select_nth_unstable_by(keep, order);
            all.truncate(keep);
        }
        all.sort_by(order);
        all
    };
    (0..points.nrows()).into_par_iter().map(of_point).collect()
}

/// The first two components, made small, with noise that is smaller still.
fn start(points: ArrayView2<f64>, seed: u64) -> Vec<f64> {
    let places = first_two(points);
    let variance = places.iter().map(|place| place[0] * place[0]).sum::<f64>() / places.len() as f64;
    let scale = if variance > 0.0 { START[0] / variance.sqrt() } else { 0.0 };
    let mut rng = rng::stream(seed, "t-sne", 0);
    let mut noise = || {
        let drawn: f64 = StandardNormal.sample(&mut rng);
        START[1] * drawn
    };
    places.into_iter().flatten().map(|x| scale * x + noise()).collect()
}
