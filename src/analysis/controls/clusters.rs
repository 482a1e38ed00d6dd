//! K-means, for comparison: each cluster is a detector of what is near its mean (paper §4.3).

use std::ops::Range;
use std::path::Path;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rand::Rng;
use rand::distr::{Distribution, weighted::WeightedIndex};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::model;
use crate::error::{Error, Result};
use crate::rng;

/// Most steps of Lloyd's algorithm.
const STEPS: usize = 20;

/// Pictures that a thread compares with all means at a time.
const TOGETHER: usize = 512;

/// What clusters are made from. Those that lie on the disk are used only if all of it is the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Values of a picture.
    pub len: usize,
    /// Frames that are sorted.
    pub frames: usize,
    /// Clusters asked for.
    pub count: usize,
    /// Seed of the choice of frames and of the first means.
    pub seed: u64,
    /// The checkpoint of the network that they are compared with.
    pub checkpoint: String,
}

/// Means of clusters of pictures.
pub struct Clusters {
    /// `[cluster, value of a picture]`.
    means: Vec<f32>,
    /// Squared norm of each.
    squares: Vec<f32>,
    /// Values of a picture.
    len: usize,
}

impl Clusters {
    /// Sorts pictures of `len` values, one a row, into at most `count` clusters: k-means++ (Arthur & Vassilvitskii 2007), then Lloyd's
    /// algorithm. Those that stay empty are left out.
    ///
    /// # Errors
    /// Fewer than 2 clusters, or fewer pictures than clusters.
    pub fn new(pictures: &[f32], len: usize, count: usize, seed: u64) -> Result<Clusters> {
        let rows = pictures.len() / len;
        if count < 2 || rows < count {
            let problem = format!("{rows} pictures cannot be sorted into {count} clusters");
            return Err(Error::Mismatch(problem));
        }
        let mut clusters = Self::first(pictures, len, count, seed);
        let mut labels = Vec::new();
        for _ in 0..STEPS {
            let before = std::mem::replace(&mut labels, clusters.labels(pictures));
            if labels == before {
                break;
            }
            let (mut sums, mut sizes) = (vec![0f64; clusters.means.len()], vec![0usize; clusters.count()]);
            for (picture, &cluster) in pictures.chunks_exact(len).zip(&labels) {
                let sum = &mut sums[cluster * len..][..len];
                sum.iter_mut().zip(picture).for_each(|(sum, x)| *sum += f64::from(*x));
                sizes[cluster] += 1;
            }
            let full = sums.chunks_exact(len).zip(&sizes).filter(|(_, size)| **size > 0);
            let mean = |(sum, size): (&[f64], &usize)| -> Vec<f32> {
                sum.iter().map(|sum| (sum / *size as f64) as f32).collect()
            };
            clusters = Self::of(full.flat_map(mean).collect(), len);
        }
        Ok(clusters)
    }

    /// Pictures to begin with, each chosen by the square of its distance from those before. Fewer, if no more differ.
    fn first(pictures: &[f32], len: usize, count: usize, seed: u64) -> Clusters {
        let mut rng = rng::stream(seed, "k-means", 0);
        let mut squares = vec![f32::INFINITY; pictures.len() / len];
        let mut chosen = vec![rng.random_range(0..squares.len())];
        loop {
            let newest = *chosen.last().expect("the first");
            let one = Self::of(pictures[newest * len..][..len].to_vec(), len);
            let parts = squares.par_chunks_mut(TOGETHER).zip(pictures.par_chunks(TOGETHER * len));
            parts.for_each(|(squares, pictures)| {
                let distances = one.nearness(pictures, 0..1);
                squares.iter_mut().zip(distances).for_each(|(least, d)| *least = least.min(d * d));
            });
            // What is chosen is not chosen again, whatever rounding left of its distance from itself.
            squares[newest] = 0.0;
            let Ok(by_square) = WeightedIndex::new(&squares) else { break };
            if chosen.len() == count {
                break;
            }
            chosen.push(by_square.sample(&mut rng));
        }
        Self::of(chosen.iter().flat_map(|&at| &pictures[at * len..][..len]).copied().collect(), len)
    }

    /// The nearest cluster of each picture.
    fn labels(&self, pictures: &[f32]) -> Vec<usize> {
        let of_some = |pictures: &[f32]| -> Vec<usize> {
            let rows = pictures.len() / self.len;
            let nearness = self.nearness(pictures, 0..self.count());
            let nearest = |row: usize| {
                let of = |cluster: &usize| nearness[cluster * rows + row];
                (0..self.count()).max_by(|a, b| of(a).total_cmp(&of(b))).expect("a cluster")
            };
            (0..rows).map(nearest).collect()
        };
        pictures.par_chunks(TOGETHER * self.len).flat_map_iter(of_some).collect()
    }

    fn of(means: Vec<f32>, len: usize) -> Clusters {
        let squares = means.chunks_exact(len).map(|mean| mean.iter().map(|x| x * x).sum()).collect();
        Clusters { means, squares, len }
    }

    /// Writes the means to a file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path, plan: &Plan) -> Result<()> {
        let means = ("means".to_owned(), vec![self.count(), self.len], &self.means[..]);
        model::save(path, plan, 1, &[means])
    }

    /// Those in a file, if there is a file and they were made from `plan`.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn load(path: &Path, plan: &Plan) -> Result<Option<Clusters>> {
        let Some((_, mut tensors)) = model::load(path, plan)? else { return Ok(None) };
        // Clusters that stayed empty are not there.
        let count = tensors.get("means").map_or(0, |(shape, _)| shape[0]);
        let means = model::take(path, &mut tensors, "means", &[count, plan.len])?;
        Ok(Some(Self::of(means, plan.len)))
    }

    /// Clusters there are.
    pub fn count(&self) -> usize {
        self.squares.len()
    }

    /// Minus the distance of each picture, one a row, from some of the means: `[cluster, picture]`.
    pub fn nearness(&self, pictures: &[f32], clusters: Range<usize>) -> Vec<f32> {
        let (rows, count) = (pictures.len() / self.len, clusters.len());
        let means = &self.means[clusters.start * self.len..clusters.end * self.len];
        let mut out = vec![0.0; count * rows];
        let (left, right) = (
            MatRef::from_row_major_slice(means, count, self.len),
            MatRef::from_row_major_slice(pictures, rows, self.len).transpose(),
        );
        let to = MatMut::from_row_major_slice_mut(&mut out, count, rows);
        matmul(to, Accum::Replace, left, right, 1.0, Par::Seq);
        let of_picture: Vec<f32> =
            pictures.chunks_exact(self.len).map(|picture| picture.iter().map(|x| x * x).sum()).collect();
        for (row, mean) in out.chunks_exact_mut(rows).zip(&self.squares[clusters]) {
            let each = row.iter_mut().zip(&of_picture);
            each.for_each(|(value, square)| *value = -(square + mean - 2.0 * *value).max(0.0).sqrt());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_clusters_are_found_and_nearness_is_minus_the_distance() {
        let mut rng = rng::stream(2, "clusters", 0);
        let centres = [[5.0f32, 0.0, 1.0], [-5.0, 3.0, 0.0], [0.0, -6.0, -4.0]];
        let pictures: Vec<f32> =
            (0..90).flat_map(|n| centres[n % 3].map(|x| x + rng.random_range(-0.5..0.5))).collect();
        let clusters = Clusters::new(&pictures, 3, 3, 1).unwrap();
        assert_eq!(clusters.count(), 3);
        let nearness = clusters.nearness(&pictures[..9], 0..3);
        for picture in 0..3 {
            let values: Vec<f32> = (0..3).map(|cluster| nearness[cluster * 3 + picture]).collect();
            // Near one, far from the others.
            assert_eq!(values.iter().filter(|value| **value > -1.0).count(), 1, "{values:?}");
            let cluster = values.iter().position(|value| *value > -1.0).unwrap();
            let mean = &clusters.means[cluster * 3..][..3];
            let distance: f32 =
                mean.iter().zip(&pictures[picture * 3..]).map(|(m, x)| (m - x).powi(2)).sum::<f32>().sqrt();
            assert!((values[cluster] + distance).abs() < 1e-3, "{values:?} {distance}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k-means.safetensors");
        let plan = Plan { len: 3, frames: 90, count: 3, seed: 1, checkpoint: "c".into() };
        assert!(Clusters::load(&path, &plan).unwrap().is_none());
        clusters.save(&path, &plan).unwrap();
        assert_eq!(Clusters::load(&path, &plan).unwrap().unwrap().means, clusters.means);
        assert!(Clusters::load(&path, &Plan { seed: 2, ..plan }).unwrap().is_none());
        assert!(Clusters::new(&pictures, 3, 91, 1).is_err());
        // No more clusters than pictures that differ.
        assert_eq!(Clusters::new(&pictures[..6].repeat(4), 3, 5, 1).unwrap().count(), 2);
    }
}
