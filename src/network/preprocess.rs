//! What happens to a picture before the first stage: its mean and contrast are removed, then it is whitened, or its contrast is
//! made the same everywhere.
//!
//! Without whitening the filters become blobs, and without its floor checkerboards. It is fitted on the training frames,
//! saved with the weights, and undone for display as far as it can be.

mod inputs;
mod local;

use std::borrow::Cow;
use std::sync::LazyLock;

use faer::{Mat, MatRef, Side};
use ndarray::linalg::general_mat_vec_mul;
use ndarray::{Array1, Array2, Array3, Array4, ArrayView2, ArrayView3, Axis, aview_mut1, aview1};
use rand::Rng;
use rayon::prelude::*;

use crate::config::{self, Preprocess};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::geometry::MapShape;
use crate::kernels::lcn::Lcn;
use crate::kernels::{Cpu, product_by_columns, with_scratch};
use crate::network::convolve::{convolve, convolve_transposed, deconvolve};
use crate::rng;
pub use inputs::{Inputs, Scratch};
pub(crate) use local::window;

/// A wrong `STRIATE_CPU` is refused where a network is built, so that here it need not be.
pub(super) static CPU: LazyLock<Cpu> =
    LazyLock::new(|| Cpu::detect().unwrap_or_else(|_| Cpu::available()[0]));

/// Added to a picture's contrast (pixels from 0 to 1) before dividing by it, so that flat pictures stay quiet.
const CONTRAST_FLOOR: f64 = 0.02;

/// Parts that matrix products are divided into.
const PARTS: usize = 8;

/// Most numbers held while fitting.
const FIT_VALUES: usize = 32_000_000;

/// Most pictures on which the variance of preprocessed values is measured.
const SCALE_PICTURES: usize = 1000;

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
    /// Mean and contrast of the picture removed.
    Contrast {
        /// What makes the variance of all values 1.
        scale: f32,
    },
    /// The same, then local contrast normalisation over all channels: see [`Lcn`].
    Lcn {
        /// Its window, for pictures of this size.
        window: Lcn,
        /// What makes the variance of all values 1.
        scale: f32,
    },
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
        // Two sums, mean and scale.
        let contrast = 5 * len;
        match &self.transform {
            Transform::None => 0,
            Transform::Contrast { .. } => contrast,
            // Two blurs of one map, each along both dimensions; both means over channels; what is made of them.
            Transform::Lcn { window, .. } => {
                let plane = (self.shape.rows * self.shape.cols) as u64;
                contrast + 8 * window.gaussian().len() as u64 * plane + 6 * len
            }
            Transform::Zca { .. } => 2 * len * len,
            Transform::Conv { filter } => 2 * len * (filter.len() / self.shape.channels) as u64,
        }
    }

    /// Fits the transform that `input` asks for on some of the pictures.
    ///
    /// # Errors
    /// Too few pictures to estimate anything.
    pub fn fit(input: &config::Input, pictures: &Dataset, seed: u64) -> Result<Whitening> {
        Self::fit_on(input, pictures, &(0..pictures.len() as u32).collect::<Vec<_>>(), seed)
    }

    /// The same on some of the pictures numbered `from`.
    ///
    /// # Errors
    /// Too few of them to estimate anything.
    pub fn fit_on(input: &config::Input, pictures: &Dataset, from: &[u32], seed: u64) -> Result<Whitening> {
        let shape = pictures.shape;
        let floor = input.floor;
        let count = from.len().min(FIT_VALUES / shape.len()).min(20_000);
        if input.preprocess != Preprocess::None && count < 2 {
            let problem =
                format!("{} frames are too few to fit the whitening, at least 2 are needed", from.len());
            return Err(Error::Mismatch(problem));
        }
        let mut rng = rng::stream(seed, "whitening", 0);
        let chosen = rand::seq::index::sample(&mut rng, from.len(), count);
        let chosen: Vec<usize> = chosen.into_iter().map(|at| from[at] as usize).collect();
        let rows = || chosen.par_iter().map(|&index| normalise(&pictures.pixels(index)));
        let transform = match input.preprocess {
            Preprocess::None => Transform::None,
            Preprocess::Contrast => Transform::Contrast { scale: 1.0 },
            Preprocess::Lcn => Transform::Lcn { window: window(input, shape), scale: 1.0 },
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
                let filter = Array4::from_shape_fn(size, |(to, from, y, x)| {
                    matrix[(to * side * side + centre, (from * side + y) * side + x)]
                });
                Transform::Conv { filter }
            }
        };
        let mut whitening = Whitening { shape, transform };
        whitening.rescale(pictures, &chosen[..count.min(SCALE_PICTURES)]);
        Ok(whitening)
    }

    /// Makes the variance of all values of these pictures 1, where that is not so already by the way the transform is made.
    fn rescale(&mut self, pictures: &Dataset, some: &[usize]) {
        if matches!(self.transform, Transform::None | Transform::Zca { .. }) {
            return;
        }
        let white = self.apply_all(pictures, some);
        // In one order whatever the threads do: a run repeats.
        let square = white.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        // Of flat pictures nothing can be learned: they stay 0.
        let factor = if square > 0.0 { (white.len() as f64 / square).sqrt() as f32 } else { 1.0 };
        match &mut self.transform {
            Transform::Contrast { scale } | Transform::Lcn { scale, .. } => *scale *= factor,
            Transform::Conv { filter } => *filter *= factor,
            Transform::None | Transform::Zca { .. } => {}
        }
    }

    /// True if a value is made of several pixels, so that what a network sees has to be [mapped back](Self::unwhiten) to look
    /// like a picture.
    pub fn mixes_pixels(&self) -> bool {
        !matches!(self.transform, Transform::None | Transform::Contrast { .. })
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
            Transform::Contrast { scale } => {
                normalise_to(pixels, out);
                out.iter_mut().for_each(|x| *x *= scale);
            }
            Transform::Lcn { window, scale } => with_scratch([pixels.len()], |[normal]| {
                normalise_to(pixels, normal);
                local::normalise(window, self.shape, *scale, normal, out, &mut Default::default());
            }),
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
        self.apply_rows(indices.len(), &|row| pictures.pixels(indices[row]), &mut scratch);
        let size = (indices.len(), self.shape.len());
        Array2::from_shape_vec(size, scratch.white).expect("rows of one length")
    }

    /// The same of `count` pictures, of which `pixels` gives each, left in `scratch.white`; the threads of the pool share them.
    fn apply_rows<'p>(
        &self,
        count: usize,
        pixels: &(dyn Fn(usize) -> Cow<'p, [u8]> + Sync),
        scratch: &mut Scratch,
    ) {
        let len = self.shape.len();
        let Scratch { normal, white, room, .. } = scratch;
        white.resize(count * len, 0.0);
        let each = |rows: &mut [f32], work: &(dyn Fn(&[u8], &mut [f32]) + Sync)| {
            let rows = rows.par_chunks_exact_mut(len).enumerate();
            rows.for_each(|(number, row)| work(&pixels(number), row));
        };
        match &self.transform {
            Transform::None | Transform::Contrast { .. } | Transform::Conv { .. } => {
                each(white, &|pixels, row| self.apply_to(pixels, row));
            }
            Transform::Lcn { window, scale } => {
                normal.resize(count * len, 0.0);
                each(normal, &normalise_to);
                local::normalise(window, self.shape, *scale, normal, white, room);
            }
            Transform::Zca { mean, matrix, .. } => {
                normal.resize(count * len, 0.0);
                each(normal, &|pixels, row| {
                    normalise_to(pixels, row);
                    row.iter_mut().zip(mean).for_each(|(x, mean)| *x -= mean);
                });
                let x = MatRef::from_row_major_slice(normal, count, len);
                let matrix = matrix.as_slice().expect("a matrix in order");
                product_by_columns(white, x, MatRef::from_row_major_slice(matrix, len, len));
            }
        }
    }

    /// What small changes of pixels, in units of the picture's contrast, change in the network's input: the linear part of
    /// preprocessing. One picture `(channel, row, column)` a row.
    pub fn whiten(&self, changes: ArrayView2<f32>) -> Array2<f32> {
        self.linear(changes, |filter, change| {
            let mut out = Array3::zeros(change.raw_dim());
            let to = out.as_slice_mut().expect("contiguous");
            convolve(filter, self.shape, change.as_slice().expect("contiguous"), to);
            out
        })
    }

    /// The transpose of [`whiten`](Self::whiten): it takes gradients with respect to the network's input to those with respect to
    /// pixels.
    pub fn whiten_transposed(&self, gradients: ArrayView2<f32>) -> Array2<f32> {
        self.linear(gradients, |filter, gradient| convolve_transposed(filter, gradient.view()))
    }

    fn linear(
        &self,
        rows: ArrayView2<f32>,
        convolve: impl Fn(&Array4<f32>, Array3<f32>) -> Array3<f32> + Sync,
    ) -> Array2<f32> {
        let by = |filter: &Array4<f32>| {
            let mut out = rows.to_owned();
            for mut row in out.outer_iter_mut() {
                let picture =
                    Array3::from_shape_vec(dims(self.shape), row.to_vec()).expect("a picture a row");
                row.iter_mut().zip(&convolve(filter, picture)).for_each(|(to, &from)| *to = from);
            }
            out
        };
        match &self.transform {
            Transform::None => rows.to_owned(),
            Transform::Contrast { scale } => rows.map(|x| x * scale),
            Transform::Lcn { window, scale } => {
                by(&local::subtraction(window, self.shape.channels).map(|x| x * scale))
            }
            Transform::Zca { matrix, .. } => rows.dot(matrix),
            Transform::Conv { filter } => by(filter),
        }
    }

    /// The change of the picture that changes its preprocessed values by `values`: what a filter or stimulus looks like in
    /// pixels, 0 for no change, in units of the picture's contrast. Exact without whitening and for ZCA; for a convolution
    /// the least-squares solution. Local contrast normalisation divides by what it finds in each picture, and that cannot be
    /// undone: what is undone, by least squares, is the subtraction of the local mean, so contrast stays the same everywhere.
    pub fn unwhiten(&self, values: ArrayView3<f32>) -> Array3<f32> {
        match &self.transform {
            Transform::None => values.to_owned(),
            Transform::Contrast { scale } => values.map(|x| x / scale),
            Transform::Lcn { window, scale } => {
                let before = values.map(|x| x / scale);
                deconvolve(&local::subtraction(window, self.shape.channels), before.view())
            }
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
        // As many parts on any number of threads, so that the result is the same to the last bit.
        faer::set_global_parallelism(faer::Par::rayon(PARTS));
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

#[cfg(test)]
mod tests;
