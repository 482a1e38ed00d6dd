//! What happens to a picture before the first stage: its mean and contrast are removed, then it is whitened.
//!
//! Without whitening the filters become blobs, and without its floor checkerboards. It is fitted on the training frames,
//! saved with the weights, and undone for display.

use faer::{Mat, Side};
use ndarray::linalg::{general_mat_mul, general_mat_vec_mul};
use ndarray::{
    Array1, Array2, Array3, Array4, ArrayView2, ArrayView3, ArrayViewMut2, Axis, aview_mut1, aview1,
};
use rand::Rng;
use rayon::prelude::*;

use crate::config::{self, Preprocess};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::geometry::MapShape;
use crate::kernels::{LANES, with_scratch};
use crate::network::Workspace;
use crate::network::convolve::{convolve, deconvolve};
use crate::rng;

/// Added to a picture's contrast (pixels from 0 to 1) before dividing by it, so that flat pictures stay quiet.
const CONTRAST_FLOOR: f64 = 0.02;

/// Most numbers held while fitting.
const FIT_VALUES: usize = 32_000_000;

/// Preprocessing, fitted.
#[derive(Debug, Clone, PartialEq)]
pub struct Whitening {
    /// Size of a picture.
    pub shape: MapShape,
    /// What is done.
    pub transform: Transform,
}

/// What is done to the values of a picture, `[channel, row, column]`.
#[derive(Debug, Clone, PartialEq)]
pub enum Transform {
    /// Pixels from 0 to 1 as they are.
    None,
    /// `matrix · (normalised - mean)`: symmetric, so that whitened pictures still look like pictures.
    Zca {
        /// Mean of each normalised pixel.
        mean: Array1<f32>,
        /// `s E (Λ + floor)^-1/2 Eᵀ`, with `s` such that values have variance 1.
        matrix: Array2<f32>,
        /// Its inverse.
        inverse: Array2<f32>,
    },
    /// The centre of the ZCA of patches, as a convolution: `[channel out, channel in, row, column]`.
    Conv {
        /// The filter; outside, the picture goes on mirrored.
        filter: Array4<f32>,
    },
}

impl Whitening {
    /// Floating-point operations for a picture.
    pub fn flops(&self) -> u64 {
        let len = self.shape.len() as u64;
        match &self.transform {
            Transform::None => 0,
            Transform::Zca { .. } => 2 * len * len,
            Transform::Conv { filter } => 2 * len * (filter.len() / self.shape.channels) as u64,
        }
    }

    /// Fits the transform that `input` asks for on some of the pictures.
    ///
    /// # Errors
    /// Too few pictures to estimate anything.
    pub fn fit(input: &config::Input, pictures: &Dataset, seed: u64) -> Result<Whitening> {
        let shape = pictures.shape;
        let floor = input.floor;
        let count = pictures.len().min(FIT_VALUES / shape.len()).min(20_000);
        if input.preprocess != Preprocess::None && count < 2 {
            let problem =
                format!("{} frames are too few to fit the whitening, at least 2 are needed", pictures.len());
            return Err(Error::Mismatch(problem));
        }
        let mut rng = rng::stream(seed, "whitening", 0);
        let chosen = rand::seq::index::sample(&mut rng, pictures.len(), count).into_vec();
        let rows = || chosen.par_iter().map(|&index| normalise(pictures.pixels(index)));
        let transform = match input.preprocess {
            Preprocess::None => Transform::None,
            Preprocess::Zca => {
                let values: Vec<f32> = rows().flat_map_iter(|row| row).collect();
                let mut x = Array2::from_shape_vec((count, shape.len()), values).expect("rows of one length");
                let mean = x.mean_axis(Axis(0)).expect("at least two pictures");
                x -= &mean;
                let spectrum = Spectrum::of(x);
                let scale = spectrum.scale(floor);
                Transform::Zca {
                    mean,
                    matrix: spectrum.function(|variance| scale / (variance + floor).sqrt()),
                    inverse: spectrum.function(|variance| (variance + floor).sqrt() / scale),
                }
            }
            Preprocess::Conv => {
                let side = input.whitening_side();
                let len = shape.channels * side * side;
                // Ten patches for each value of a patch, spread over the pictures.
                let each = (20 * len).div_ceil(count).max(1);
                let patches: Vec<f32> = rows()
                    .enumerate()
                    .flat_map_iter(|(index, row)| {
                        let picture = Array3::from_shape_vec(dims(shape), row).expect("a picture's values");
                        let mut rng = rng::stream(seed, "whitening patches", index as u64);
                        let mut patches = Vec::with_capacity(each * len);
                        for _ in 0..each {
                            let y = rng.random_range(0..=shape.rows - side);
                            let x = rng.random_range(0..=shape.cols - side);
                            patches.extend(picture.slice(ndarray::s![.., y..y + side, x..x + side]));
                        }
                        patches
                    })
                    .collect();
                let patches =
                    Array2::from_shape_vec((count * each, len), patches).expect("patches of one length");
                let spectrum = Spectrum::of(patches);
                let matrix = spectrum.function(|variance| 1.0 / (variance + floor).sqrt());
                let centre = side * side / 2;
                let size = (shape.channels, shape.channels, side, side);
                let mut filter = Array4::from_shape_fn(size, |(to, from, y, x)| {
                    matrix[(to * side * side + centre, (from * side + y) * side + x)]
                });
                // Variance 1, measured on whole pictures.
                let some = &chosen[..count.min(200)];
                let power = |&index: &usize| {
                    let mut white = vec![0.0; shape.len()];
                    convolve(&filter, shape, &normalise(pictures.pixels(index)), &mut white);
                    white.iter().map(|x| x * x).sum::<f32>() / white.len() as f32
                };
                let variance = some.par_iter().map(power).sum::<f32>() / some.len() as f32;
                filter /= variance.sqrt().max(f32::MIN_POSITIVE);
                Transform::Conv { filter }
            }
        };
        Ok(Whitening { shape, transform })
    }

    /// One picture's 8-bit pixels, `[channel, row, column]`, as the network takes them.
    pub fn apply(&self, pixels: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; self.shape.len()];
        self.apply_to(pixels, &mut values);
        values
    }

    fn apply_to(&self, pixels: &[u8], out: &mut [f32]) {
        assert_eq!(pixels.len(), self.shape.len(), "a picture of another size");
        match &self.transform {
            Transform::None => out.iter_mut().zip(pixels).for_each(|(x, &p)| *x = f32::from(p) / 255.0),
            Transform::Zca { mean, matrix, .. } => with_scratch([pixels.len()], |[normal]| {
                normalise_to(pixels, normal);
                normal.iter_mut().zip(mean).for_each(|(x, mean)| *x -= mean);
                general_mat_vec_mul(1.0, matrix, &aview1(normal), 0.0, &mut aview_mut1(out));
            }),
            Transform::Conv { filter } => with_scratch([pixels.len()], |[normal]| {
                normalise_to(pixels, normal);
                convolve(filter, self.shape, normal, out);
            }),
        }
    }

    /// Pictures of a dataset as the network takes them, one a row.
    pub fn apply_all(&self, pictures: &Dataset, indices: &[usize]) -> Array2<f32> {
        let mut scratch = Scratch::default();
        self.apply_rows(pictures, indices, &mut scratch);
        let size = (indices.len(), self.shape.len());
        Array2::from_shape_vec(size, scratch.white).expect("rows of one length")
    }

    /// The same, left in `scratch.white`; the threads of the pool share the pictures.
    fn apply_rows(&self, pictures: &Dataset, indices: &[usize], scratch: &mut Scratch) {
        let len = self.shape.len();
        let Scratch { normal, white } = scratch;
        white.resize(indices.len() * len, 0.0);
        let each = |rows: &mut [f32], work: &(dyn Fn(&[u8], &mut [f32]) + Sync)| {
            let rows = rows.par_chunks_exact_mut(len).zip(indices);
            rows.for_each(|(row, &index)| work(pictures.pixels(index), row));
        };
        let Transform::Zca { mean, matrix, .. } = &self.transform else {
            return each(white, &|pixels, row| self.apply_to(pixels, row));
        };
        normal.resize(indices.len() * len, 0.0);
        each(normal, &|pixels, row| {
            normalise_to(pixels, row);
            row.iter_mut().zip(mean).for_each(|(x, mean)| *x -= mean);
        });
        let size = (indices.len(), len);
        let x = ArrayView2::from_shape(size, normal).expect("rows of one length");
        let mut out = ArrayViewMut2::from_shape(size, white).expect("rows of one length");
        general_mat_mul(1.0, &x, matrix, 0.0, &mut out);
    }

    /// The change of the picture that changes its preprocessed values by `values`: what a filter or stimulus looks like in
    /// pixels, 0 for no change. Exact for ZCA; for a convolution the least-squares solution.
    pub fn unwhiten(&self, values: ArrayView3<f32>) -> Array3<f32> {
        match &self.transform {
            Transform::None => values.to_owned(),
            Transform::Zca { inverse, .. } => {
                let x = inverse.dot(&Array1::from_iter(values.iter().copied()));
                x.into_shape_with_order(dims(self.shape)).expect("a picture's values")
            }
            Transform::Conv { filter } => deconvolve(filter, values),
        }
    }
}

/// Pixels with the picture's mean and contrast removed.
fn normalise(pixels: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; pixels.len()];
    normalise_to(pixels, &mut out);
    out
}

fn normalise_to(pixels: &[u8], out: &mut [f32]) {
    // Pieces whose sums fit in 32 bits, which vectors add fastest; whole numbers, so that a flat picture becomes 0.
    let sum = |f: fn(u32) -> u32| -> u64 {
        let piece = |piece: &[u8]| u64::from(piece.iter().map(|&p| f(u32::from(p))).sum::<u32>());
        pixels.chunks(1 << 15).map(piece).sum()
    };
    let count = pixels.len() as f64;
    let (mean, square) = (sum(|p| p) as f64 / count, sum(|p| p * p) as f64 / count);
    let deviation = (square - mean * mean).max(0.0).sqrt();
    let scale = (1.0 / (deviation + 255.0 * CONTRAST_FLOOR)) as f32;
    let mean = mean as f32;
    out.iter_mut().zip(pixels).for_each(|(x, &p)| *x = (f32::from(p) - mean) * scale);
}

fn dims(shape: MapShape) -> (usize, usize, usize) {
    (shape.channels, shape.rows, shape.cols)
}

/// Eigenvalues and eigenvectors of the covariance of some rows.
struct Spectrum {
    variances: Vec<f64>,
    vectors: Mat<f64>,
}

impl Spectrum {
    fn of(rows: Array2<f32>) -> Spectrum {
        let covariance = rows.t().dot(&rows) / rows.len_of(Axis(0)) as f32;
        let n = covariance.len_of(Axis(0));
        let symmetric = Mat::from_fn(n, n, |i, j| 0.5 * f64::from(covariance[(i, j)] + covariance[(j, i)]));
        let eigen = symmetric.self_adjoint_eigen(Side::Lower).expect("a covariance is finite and symmetric");
        let variances = eigen.S().column_vector().iter().map(|&v| v.max(0.0)).collect();
        Spectrum { variances, vectors: eigen.U().to_owned() }
    }

    /// What makes the mean variance 1 after whitening with this floor.
    fn scale(&self, floor: f64) -> f64 {
        let total: f64 = self.variances.iter().map(|v| v / (v + floor)).sum();
        (self.variances.len() as f64 / total.max(1e-12)).sqrt()
    }

    /// `E f(Λ) Eᵀ`.
    fn function(&self, f: impl Fn(f64) -> f64) -> Array2<f32> {
        let n = self.variances.len();
        let scaled = Mat::from_fn(n, n, |i, j| self.vectors[(i, j)] * f(self.variances[j]));
        let product = scaled * self.vectors.transpose();
        Array2::from_shape_fn((n, n), |(i, j)| product[(i, j)] as f32)
    }
}

/// Memory for preprocessing, kept so that nothing is allocated from the second minibatch on.
#[derive(Default)]
pub struct Scratch {
    /// Pictures with mean and contrast removed, one a row.
    normal: Vec<f32>,
    /// Preprocessed pictures, one a row.
    white: Vec<f32>,
}

/// Pictures of a dataset as the network takes them: preprocessed once where that fits in memory, else when asked for.
pub struct Inputs<'a> {
    dataset: &'a Dataset,
    whitening: &'a Whitening,
    /// All of them, one a row.
    ready: Option<Vec<f32>>,
}

impl<'a> Inputs<'a> {
    /// Preprocesses all pictures now if they take at most `budget` bytes.
    pub fn new(dataset: &'a Dataset, whitening: &'a Whitening, budget: usize) -> Inputs<'a> {
        let fits = 4 * dataset.len() * dataset.shape.len() <= budget;
        let all = || {
            let mut scratch = Scratch::default();
            whitening.apply_rows(dataset, &(0..dataset.len()).collect::<Vec<_>>(), &mut scratch);
            scratch.white
        };
        Inputs { dataset, whitening, ready: fits.then(all) }
    }

    /// Pictures there are.
    pub fn len(&self) -> usize {
        self.dataset.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One picture's values.
    pub fn picture(&self, index: usize) -> Array3<f32> {
        let len = self.dataset.shape.len();
        let values = match &self.ready {
            Some(ready) => ready[index * len..][..len].to_vec(),
            None => self.whitening.apply(self.dataset.pixels(index)),
        };
        Array3::from_shape_vec(dims(self.dataset.shape), values).expect("a picture's values")
    }

    /// Makes these pictures the minibatch of `work`.
    pub fn load(&self, indices: &[usize], work: &mut Workspace) {
        work.start(indices.len());
        self.fill(indices, work.lanes, &mut work.input, &mut Scratch::default());
    }

    /// Writes these pictures into the first of `lanes` lanes of `input`, `[row, column, channel, lane]`.
    pub fn fill(&self, indices: &[usize], lanes: usize, input: &mut [f32], scratch: &mut Scratch) {
        /// Places that are done together: each row is read, and each line of the cache written, in one go.
        const RUN: usize = 64;
        let MapShape { channels, .. } = self.dataset.shape;
        let len = self.dataset.shape.len();
        assert!(indices.len() <= lanes && input.len() == len * lanes, "a minibatch of another size");
        if self.ready.is_none() {
            self.whitening.apply_rows(self.dataset, indices, scratch);
        }
        let row = |lane: usize| match &self.ready {
            Some(ready) => &ready[indices[lane] * len..][..len],
            None => &scratch.white[lane * len..][..len],
        };
        let plane = len / channels;
        for (number, places) in input.chunks_mut(RUN * channels * lanes).enumerate() {
            for (channel, group) in (0..channels).flat_map(|c| (0..lanes).step_by(LANES).map(move |g| (c, g)))
            {
                for lane in group..indices.len().min(group + LANES) {
                    let values = &row(lane)[channel * plane + number * RUN..];
                    let places = places[channel * lanes + lane..].iter_mut().step_by(channels * lanes);
                    places.zip(values).for_each(|(place, value)| *place = *value);
                }
            }
        }
    }

    /// Tells the system which pictures [`fill`](Self::fill) is about to read.
    pub fn announce(&self, indices: &[usize]) {
        if self.ready.is_none() {
            indices.iter().for_each(|&index| self.dataset.announce(index));
        }
    }

    /// Mean norm of the first pictures: the size of a natural picture.
    pub fn natural_norm(&self) -> f32 {
        let count = self.len().min(1000);
        let norm = |index| self.picture(index).iter().map(|x| x * x).sum::<f32>().sqrt();
        (0..count).into_par_iter().map(norm).sum::<f32>() / count as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Input;

    /// Smooth random pictures: neighbouring pixels agree.
    fn pictures(shape: MapShape, count: usize) -> Dataset {
        let mut rng = rng::stream(1, "test pictures", 0);
        let (rows, cols) = (shape.rows as f32, shape.cols as f32);
        let mut pixels = Vec::new();
        for _ in 0..count {
            let waves: Vec<[f32; 4]> = (0..6).map(|_| rng.random::<[f32; 4]>()).collect();
            for c in 0..shape.channels {
                for y in 0..shape.rows {
                    for x in 0..shape.cols {
                        let wave = |[fy, fx, phase, size]: &[f32; 4]| {
                            let angle =
                                9.0 * (fy * y as f32 / rows + fx * x as f32 / cols + phase + 0.1 * c as f32);
                            size * angle.sin()
                        };
                        let value =
                            128.0 + 40.0 * waves.iter().map(wave).sum::<f32>() + 10.0 * rng.random::<f32>();
                        pixels.push(value.clamp(0.0, 255.0) as u8);
                    }
                }
            }
        }
        Dataset::from_pixels(shape, pixels)
    }

    fn fitted(preprocess: Preprocess, shape: MapShape) -> (Dataset, Whitening) {
        let pictures = pictures(shape, 600);
        let input = Input {
            channels: shape.channels,
            height: shape.rows,
            width: shape.cols,
            preprocess,
            floor: 0.05,
            ..Input::default()
        };
        let whitening = Whitening::fit(&input, &pictures, 0).unwrap();
        (pictures, whitening)
    }

    #[test]
    fn whitened_pictures_have_variance_1_and_come_back() {
        for (preprocess, error) in [(Preprocess::Zca, 0.01), (Preprocess::Conv, 0.1)] {
            let shape = MapShape { channels: 3, rows: 14, cols: 11 };
            let (pictures, whitening) = fitted(preprocess, shape);
            let all: Vec<usize> = (0..pictures.len()).collect();
            let white = whitening.apply_all(&pictures, &all);
            let variance = white.iter().map(|x| x * x).sum::<f32>() / white.len() as f32;
            assert!((0.8..1.25).contains(&variance), "{preprocess:?}: variance {variance}");
            let one = Array3::from_shape_vec(dims(shape), whitening.apply(pictures.pixels(7))).unwrap();
            let mut back = whitening.unwhiten(one.view());
            if let Transform::Zca { mean, .. } = &whitening.transform {
                back += &mean.view().into_shape_with_order(dims(shape)).unwrap();
            }
            let wanted = normalise(pictures.pixels(7));
            let worst =
                back.iter().zip(&wanted).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / wanted.len() as f32;
            assert!(worst < error, "{preprocess:?}: mean squared error {worst}");
        }
    }

    #[test]
    fn minibatches_are_the_same_whether_pictures_are_kept_or_made_when_asked_for() {
        for preprocess in [Preprocess::None, Preprocess::Zca, Preprocess::Conv] {
            let shape = MapShape { channels: 3, rows: 13, cols: 11 };
            let (pictures, whitening) = fitted(preprocess, shape);
            let indices: Vec<usize> = (0..21).map(|n| 17 * n % 600).collect();
            for budget in [0, usize::MAX] {
                let inputs = Inputs::new(&pictures, &whitening, budget);
                let mut input = vec![0.0; shape.len() * 32];
                inputs.fill(&indices, 32, &mut input, &mut Scratch::default());
                for (lane, &index) in indices.iter().enumerate() {
                    let wanted = whitening.apply(pictures.pixels(index));
                    for (at, &want) in wanted.iter().enumerate() {
                        let (channel, place) = (at / (13 * 11), at % (13 * 11));
                        let got = input[(place * 3 + channel) * 32 + lane];
                        assert!((got - want).abs() < 1e-4, "{preprocess:?} {budget}: {got} != {want}");
                    }
                }
                assert!(input.chunks(32).all(|lanes| lanes[21..].iter().all(|&x| x == 0.0)));
            }
        }
    }

    #[test]
    fn a_flat_picture_becomes_zero_not_nan() {
        let (_, whitening) = fitted(Preprocess::Conv, MapShape { channels: 1, rows: 12, cols: 12 });
        assert!(whitening.apply(&[77; 144]).iter().all(|x| x.abs() < 1e-3));
    }
}
