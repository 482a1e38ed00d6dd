//! What happens to a picture before the first stage: its mean and contrast are removed, then it is whitened.
//!
//! Without whitening the filters become blobs, and without its floor checkerboards. It is fitted on the training frames,
//! saved with the weights, and undone for display.

use faer::{Mat, Side};
use ndarray::{Array1, Array2, Array3, Array4, ArrayView2, ArrayView3, Axis};
use rand::Rng;
use rayon::prelude::*;

use crate::config::{self, Preprocess};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::geometry::MapShape;
use crate::network::Workspace;
use crate::rng;

/// Added to a picture's contrast (pixels from 0 to 1) before dividing by it, so that flat pictures stay quiet.
const CONTRAST_FLOOR: f32 = 0.02;

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
                    let x = Array3::from_shape_vec(dims(shape), normalise(pictures.pixels(index)));
                    convolve(&filter, x.expect("a picture's values").view())
                        .mapv(|x| x * x)
                        .mean()
                        .unwrap_or(0.0)
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
        assert_eq!(pixels.len(), self.shape.len(), "a picture of another size");
        match &self.transform {
            Transform::None => pixels.iter().map(|&p| f32::from(p) / 255.0).collect(),
            Transform::Zca { mean, matrix, .. } => {
                let x = Array1::from_vec(normalise(pixels)) - mean;
                matrix.dot(&x).into_raw_vec_and_offset().0
            }
            Transform::Conv { filter } => {
                let x =
                    Array3::from_shape_vec(dims(self.shape), normalise(pixels)).expect("a picture's values");
                convolve(filter, x.view()).into_raw_vec_and_offset().0
            }
        }
    }

    /// Pictures of a dataset as the network takes them, one a row.
    pub fn apply_all(&self, pictures: &Dataset, indices: &[usize]) -> Array2<f32> {
        let size = (indices.len(), self.shape.len());
        if let Transform::Zca { mean, matrix, .. } = &self.transform {
            let rows: Vec<f32> =
                indices.par_iter().flat_map_iter(|&i| normalise(pictures.pixels(i))).collect();
            let mut x = Array2::from_shape_vec(size, rows).expect("rows of one length");
            x -= mean;
            return x.dot(matrix);
        }
        let rows: Vec<f32> = indices.par_iter().flat_map_iter(|&i| self.apply(pictures.pixels(i))).collect();
        Array2::from_shape_vec(size, rows).expect("rows of one length")
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
    let count = pixels.len() as f32;
    let mean = pixels.iter().map(|&p| f32::from(p)).sum::<f32>() / count / 255.0;
    let square = pixels.iter().map(|&p| (f32::from(p) / 255.0 - mean).powi(2)).sum::<f32>();
    let contrast = (square / count).sqrt() + CONTRAST_FLOOR;
    pixels.iter().map(|&p| (f32::from(p) / 255.0 - mean) / contrast).collect()
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

/// Where a row or column outside the picture is mirrored to.
fn mirror(at: isize, len: usize) -> usize {
    let last = len as isize - 1;
    let at = at.abs();
    (if at > last { 2 * last - at } else { at }) as usize
}

/// Convolution of a picture that goes on mirrored outside; the size is kept.
fn convolve(filter: &Array4<f32>, x: ArrayView3<f32>) -> Array3<f32> {
    let (channels, rows, cols) = x.dim();
    let half = filter.len_of(Axis(2)) / 2;
    let outside = |at: usize, len| mirror(at as isize - half as isize, len);
    let padded = Array3::from_shape_fn((channels, rows + 2 * half, cols + 2 * half), |(c, y, x0)| {
        x[(c, outside(y, rows), outside(x0, cols))]
    });
    let mut out = Array3::zeros(x.raw_dim());
    for ((to, from, dy, dx), &weight) in filter.indexed_iter() {
        let source = padded.slice(ndarray::s![from, dy..dy + rows, dx..dx + cols]);
        out.index_axis_mut(Axis(0), to).scaled_add(weight, &source);
    }
    out
}

/// The transpose of [`convolve`].
fn convolve_transposed(filter: &Array4<f32>, z: ArrayView3<f32>) -> Array3<f32> {
    let (channels, rows, cols) = z.dim();
    let half = filter.len_of(Axis(2)) / 2;
    let mut padded = Array3::zeros((channels, rows + 2 * half, cols + 2 * half));
    for ((to, from, dy, dx), &weight) in filter.indexed_iter() {
        let mut target = padded.slice_mut(ndarray::s![from, dy..dy + rows, dx..dx + cols]);
        target.scaled_add(weight, &z.index_axis(Axis(0), to));
    }
    let mut out = Array3::zeros(z.raw_dim());
    let outside = |at: usize, len| mirror(at as isize - half as isize, len);
    for ((c, y, x), &value) in padded.indexed_iter() {
        out[(c, outside(y, rows), outside(x, cols))] += value;
    }
    out
}

/// Solves `convolve(filter, x) = values` for x by conjugate gradients on the damped normal equations.
fn deconvolve(filter: &Array4<f32>, values: ArrayView3<f32>) -> Array3<f32> {
    const STEPS: usize = 40;
    const DAMPING: f32 = 1e-4;
    let normal =
        |x: &Array3<f32>| convolve_transposed(filter, convolve(filter, x.view()).view()) + &(x * DAMPING);
    let dot = |a: &Array3<f32>, b: &Array3<f32>| (a * b).sum();
    let mut residual = convolve_transposed(filter, values);
    let mut x = Array3::zeros(residual.raw_dim());
    let mut direction = residual.clone();
    let mut size = dot(&residual, &residual);
    let small = 1e-10 * size;
    for _ in 0..STEPS {
        if size <= small {
            break;
        }
        let image = normal(&direction);
        let step = size / dot(&direction, &image);
        x.scaled_add(step, &direction);
        residual.scaled_add(-step, &image);
        let next = dot(&residual, &residual);
        direction = &residual + &(&direction * (next / size));
        size = next;
    }
    x
}

/// Pictures of a dataset as the network takes them: preprocessed once where that fits in memory, else when asked for.
pub struct Inputs<'a> {
    dataset: &'a Dataset,
    whitening: &'a Whitening,
    ready: Option<Array2<f32>>,
}

impl<'a> Inputs<'a> {
    /// Preprocesses all pictures now if they take at most `budget` bytes.
    pub fn new(dataset: &'a Dataset, whitening: &'a Whitening, budget: usize) -> Inputs<'a> {
        let fits = 4 * dataset.len() * dataset.shape.len() <= budget;
        let all: Vec<usize> = (0..dataset.len()).collect();
        Inputs { dataset, whitening, ready: fits.then(|| whitening.apply_all(dataset, &all)) }
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
        let values = match &self.ready {
            Some(ready) => ready.row(index).to_vec(),
            None => self.whitening.apply(self.dataset.pixels(index)),
        };
        Array3::from_shape_vec(dims(self.dataset.shape), values).expect("a picture's values")
    }

    /// Makes these pictures the minibatch of `work`.
    pub fn load(&self, indices: &[usize], work: &mut Workspace) {
        work.start(indices.len());
        let made = self.ready.is_none().then(|| self.whitening.apply_all(self.dataset, indices));
        let rows: Vec<&[f32]> = match (&self.ready, &made) {
            (Some(ready), _) => indices.iter().map(|&index| row(ready.view(), index)).collect(),
            (None, Some(made)) => (0..indices.len()).map(|index| row(made.view(), index)).collect(),
            (None, None) => unreachable!("made where not ready"),
        };
        let MapShape { channels, rows: height, cols } = self.dataset.shape;
        for (place, lanes) in work.input.chunks_exact_mut(work.lanes).enumerate() {
            let value = place % channels * height * cols + place / channels;
            lanes.iter_mut().zip(&rows).for_each(|(lane, row)| *lane = row[value]);
        }
    }

    /// Mean norm of the first pictures: the size of a natural picture.
    pub fn natural_norm(&self) -> f32 {
        let count = self.len().min(1000);
        let norm = |index| self.picture(index).iter().map(|x| x * x).sum::<f32>().sqrt();
        (0..count).into_par_iter().map(norm).sum::<f32>() / count as f32
    }
}

fn row<'a>(rows: ArrayView2<'a, f32>, index: usize) -> &'a [f32] {
    rows.index_axis_move(Axis(0), index).to_slice().expect("rows are contiguous")
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
    fn the_transposed_convolution_is_the_adjoint() {
        let (_, whitening) = fitted(Preprocess::Conv, MapShape { channels: 3, rows: 12, cols: 10 });
        let Transform::Conv { filter } = whitening.transform else { panic!("fitted as asked") };
        let mut rng = rng::stream(2, "adjoint", 0);
        let mut draw = || Array3::from_shape_simple_fn((3, 12, 10), || rng.random_range(-1.0..1.0f32));
        let (x, z) = (draw(), draw());
        let left = (&convolve(&filter, x.view()) * &z).sum();
        let right = (&x * &convolve_transposed(&filter, z.view())).sum();
        assert!((left - right).abs() < 1e-3 * (1.0 + left.abs()), "{left} != {right}");
    }

    #[test]
    fn a_flat_picture_becomes_zero_not_nan() {
        let (_, whitening) = fitted(Preprocess::Conv, MapShape { channels: 1, rows: 12, cols: 12 });
        assert!(whitening.apply(&[77; 144]).iter().all(|x| x.abs() < 1e-3));
    }
}
