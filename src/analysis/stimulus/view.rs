//! What a search moves, and what it is charged for: the network's input itself, or pixels, or their frequencies.
//!
//! The plain search climbs over the network's input. Whitening makes natural pictures white, so in that space no direction is
//! easier than another; that is the decorrelated parametrisation of the pixels. The other parameters, and the penalties on
//! pixels, give pictures that are easier to look at. They are no longer what the unit prefers most, so
//! their pictures always say how they were made.

use std::f32::consts::PI;

use ndarray::{Array1, Array2, Array3, ArrayView2, ArrayView3, ArrayViewMut2, Axis};
use serde::{Deserialize, Serialize};

use crate::geometry::{MapShape, Part};
use crate::network::preprocess::Whitening;

/// What a search moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Parameters {
    /// The network's input, after preprocessing.
    #[default]
    Input,
    /// Pixels, from which preprocessing makes the input.
    Pixels,
    /// Cosine frequencies of the pixels, each in proportion to its amplitude in natural pictures, 1/f.
    Fourier,
}

/// What pictures are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct View {
    /// What is moved.
    pub parameters: Parameters,
    /// Weight of the total variation of the pixels, their mean absolute difference to neighbours, in shares of the unit's
    /// value for one unit of contrast; 0 for none.
    pub total_variation: f32,
    /// Pixels are charged for what they are beyond this many units of a picture's contrast from its mean; 0 for no bound.
    pub pixel_box: f32,
    /// The mean of the unit's values is looked for while what it sees is moved by up to so many pixels each way, mirrored at its
    /// borders; 0 for the value itself. What is left is what does not depend on the place of each pixel.
    #[serde(default)]
    pub moves: usize,
}

impl View {
    /// True for the plain search.
    pub fn is_plain(&self) -> bool {
        *self == View::default()
    }

    /// How the pictures were made, for captions; none for the plain search.
    pub fn label(&self) -> Option<String> {
        if self.is_plain() {
            return None;
        }
        let parameters = match self.parameters {
            Parameters::Input => "network input",
            Parameters::Pixels => "pixels",
            Parameters::Fourier => "frequencies, 1/f",
        };
        let mut label = format!("enhanced view: optimised as {parameters}");
        if self.total_variation > 0.0 {
            label += &format!(", total variation {}", self.total_variation);
        }
        if self.pixel_box > 0.0 {
            label += &format!(", pixels kept within {} contrasts", self.pixel_box);
        }
        if self.moves > 0 {
            label += &format!(", mean over moves of up to {} pixels", self.moves);
        }
        Some(label)
    }
}

/// What the crop sees, moved: for each of its values, the place of the value that takes its place.
pub(super) fn moves(crop: &Part, channels: usize, most: usize) -> Vec<Vec<usize>> {
    let (rows, cols) = (crop.rows.len(), crop.cols.len());
    let mirrored = |at: usize, by: usize, len: usize| {
        // `by` counts from `most` places back.
        let last = len as isize - 1;
        let at = (at + by) as isize - most as isize;
        let at = if at < 0 {
            -at
        } else if at > last {
            2 * last - at
        } else {
            at
        };
        at.clamp(0, last) as usize
    };
    let way = |(down, right): (usize, usize)| {
        let places = (0..rows).flat_map(|y| (0..cols).map(move |x| (y, x)));
        let from = places.map(|(y, x)| mirrored(y, down, rows) * cols + mirrored(x, right, cols));
        from.flat_map(|place| (0..channels).map(move |c| place * channels + c)).collect()
    };
    let ways = (0..=2 * most).flat_map(|down| (0..=2 * most).map(move |right| (down, right)));
    ways.map(way).collect()
}

/// Turns parameters into what a crop of the network sees, and gradients back. Rows of the arrays are searches.
pub(super) struct Canvas<'a> {
    view: View,
    whitening: &'a Whitening,
    /// Where the crop's values `(row, column, channel)` are in a picture's `(channel, row, column)`.
    places: Vec<usize>,
    /// For [`Parameters::Fourier`].
    fourier: Option<Fourier>,
}

struct Fourier {
    /// Cosines of rows and of columns, `[frequency, place]`, orthonormal.
    rows: Array2<f32>,
    cols: Array2<f32>,
    /// Amplitude of each frequency.
    scales: Array2<f32>,
}

impl<'a> Canvas<'a> {
    pub fn new(view: View, whitening: &'a Whitening, crop: &Part) -> Canvas<'a> {
        let MapShape { channels, rows, cols } = whitening.shape;
        let of_place = |(y, x)| (0..channels).map(move |c| (c * rows + y) * cols + x);
        let places = crop.rows.clone().flat_map(|y| crop.cols.clone().map(move |x| (y, x)));
        let places = places.flat_map(of_place).collect();
        let fourier = || Fourier { rows: cosines(rows), cols: cosines(cols), scales: scales((rows, cols)) };
        let fourier = (view.parameters == Parameters::Fourier).then(fourier);
        Canvas { view, whitening, places, fourier }
    }

    /// True if parameters are the network's input; then there are no pixels to be charged for.
    fn on_input(&self) -> bool {
        self.view.parameters == Parameters::Input
    }

    /// Parameters whose input is that of `picture`, the values `[channel, row, column]` of a preprocessed picture, as far as the
    /// crop sees it.
    pub fn parameters_of(&self, picture: ArrayView3<f32>) -> Vec<f32> {
        if self.on_input() {
            return self.seen(picture);
        }
        let pixels = self.whitening.unwhiten(picture);
        let pixels = Array1::from_iter(pixels.iter().copied()).insert_axis(Axis(0));
        self.to_frequencies(pixels.view(), true).into_raw_vec_and_offset().0
    }

    /// What the crop sees of a picture, `(row, column, channel)`.
    pub fn seen(&self, picture: ArrayView3<f32>) -> Vec<f32> {
        let picture = picture.as_standard_layout();
        let picture = picture.as_slice().expect("in standard layout");
        self.places.iter().map(|&at| picture[at]).collect()
    }

    /// What the crop sees as a picture, zero elsewhere.
    pub fn placed(&self, seen: &[f32]) -> Array3<f32> {
        let MapShape { channels, rows, cols } = self.whitening.shape;
        let mut picture = vec![0.0; self.whitening.shape.len()];
        self.places.iter().zip(seen).for_each(|(&at, &x)| picture[at] = x);
        Array3::from_shape_vec((channels, rows, cols), picture).expect("a picture's values")
    }

    /// Input of the crop, `[search, (row, column, channel)]`, and pixels `[search, (channel, row, column)]` where there are any.
    pub fn show(&self, parameters: Array2<f32>) -> (Array2<f32>, Option<Array2<f32>>) {
        if self.on_input() {
            return (parameters, None);
        }
        let pixels = self.to_pixels(parameters);
        let white = self.whitening.whiten(pixels.view());
        let mut input = Array2::zeros((white.nrows(), self.places.len()));
        for (mut to, from) in input.outer_iter_mut().zip(white.outer_iter()) {
            to.iter_mut().zip(&self.places).for_each(|(to, &at)| *to = from[at]);
        }
        (input, Some(pixels))
    }

    /// The gradient with respect to parameters of what has the gradient `input` with respect to the crop's input and `pixels` to
    /// the pixels: the transpose of [`show`](Self::show).
    pub fn back(&self, input: Array2<f32>, pixels: Option<Array2<f32>>) -> Array2<f32> {
        if self.on_input() {
            return input;
        }
        let mut white = Array2::zeros((input.nrows(), self.whitening.shape.len()));
        for (mut to, from) in white.outer_iter_mut().zip(input.outer_iter()) {
            from.iter().zip(&self.places).for_each(|(&from, &at)| to[at] = from);
        }
        let mut gradient = self.whitening.whiten_transposed(white.view());
        if let Some(pixels) = pixels {
            gradient += &pixels;
        }
        self.to_frequencies(gradient.view(), false)
    }

    fn to_pixels(&self, parameters: Array2<f32>) -> Array2<f32> {
        let Some(Fourier { rows, cols, scales }) = &self.fourier else { return parameters };
        let mut pixels = parameters;
        self.each_plane(&mut pixels, |plane| {
            let scaled = &*plane * scales;
            plane.assign(&rows.t().dot(&scaled).dot(cols));
        });
        pixels
    }

    /// Frequencies of pixels (`inverse`), or the transpose of [`to_pixels`](Self::to_pixels).
    fn to_frequencies(&self, pixels: ArrayView2<f32>, inverse: bool) -> Array2<f32> {
        let mut out = pixels.to_owned();
        let Some(Fourier { rows, cols, scales }) = &self.fourier else { return out };
        self.each_plane(&mut out, |plane| {
            let transformed = rows.dot(&*plane).dot(&cols.t());
            plane.assign(&if inverse { transformed / scales } else { transformed * scales });
        });
        out
    }

    fn each_plane(&self, pictures: &mut Array2<f32>, work: impl Fn(&mut ArrayViewMut2<f32>)) {
        let MapShape { rows, cols, .. } = self.whitening.shape;
        for plane in pictures.as_slice_mut().expect("rows of pictures").chunks_exact_mut(rows * cols) {
            work(&mut ArrayViewMut2::from_shape((rows, cols), plane).expect("a channel"));
        }
    }

    /// What a search is charged for its pixels, `[channel, row, column]`; takes the gradient of that from `gradient`.
    pub fn charge(&self, pixels: &[f32], gradient: &mut [f32]) -> f64 {
        /// Charged for a unit beyond the box, squared.
        const BEYOND: f32 = 10.0;
        /// Differences below this are as good as none.
        const SMOOTH: f32 = 1e-3;
        let MapShape { rows, cols, .. } = self.whitening.shape;
        let View { total_variation, pixel_box, .. } = self.view;
        let share = 1.0 / pixels.len() as f32;
        let mut total = 0.0;
        if total_variation > 0.0 {
            let weight = share * total_variation;
            for at in 0..pixels.len() {
                let (row, col) = (at / cols % rows, at % cols);
                for next in [(col + 1 < cols).then_some(at + 1), (row + 1 < rows).then_some(at + cols)] {
                    let Some(next) = next else { continue };
                    let difference = pixels[next] - pixels[at];
                    let size = (difference * difference + SMOOTH * SMOOTH).sqrt();
                    total += f64::from(weight * (size - SMOOTH));
                    gradient[next] -= weight * difference / size;
                    gradient[at] += weight * difference / size;
                }
            }
        }
        if pixel_box > 0.0 {
            for (pixel, gradient) in pixels.iter().zip(gradient) {
                let beyond = pixel.abs() - pixel_box;
                if beyond > 0.0 {
                    total += f64::from(share * BEYOND * beyond * beyond);
                    *gradient -= share * 2.0 * BEYOND * beyond * pixel.signum();
                }
            }
        }
        total
    }
}

/// The orthonormal cosine transform (DCT-II), `[frequency, place]`.
fn cosines(len: usize) -> Array2<f32> {
    Array2::from_shape_fn((len, len), |(frequency, place)| {
        let scale = if frequency == 0 { 1.0 } else { 2f32.sqrt() } / (len as f32).sqrt();
        scale * (PI * frequency as f32 * (place as f32 + 0.5) / len as f32).cos()
    })
}

/// Amplitude of each frequency in natural pictures, that of the lowest being 1.
fn scales((rows, cols): (usize, usize)) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(y, x)| {
        // In half cycles of the larger side.
        let side = rows.max(cols) as f32;
        let (y, x) = (y as f32 * side / rows as f32, x as f32 * side / cols as f32);
        1.0 / (y * y + x * x).sqrt().max(1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::preprocess::Transform;
    use crate::rng;
    use ndarray::Array4;
    use ndarray_rand::rand_distr::{Distribution, StandardNormal};

    fn drawn(shape: (usize, usize), index: u64) -> Array2<f32> {
        let mut rng = rng::stream(8, "view", index);
        Array2::from_shape_simple_fn(shape, || StandardNormal.sample(&mut rng))
    }

    /// A convolution over three channels of 7x9 pixels.
    fn whitening() -> Whitening {
        let mut rng = rng::stream(9, "view", 0);
        let filter = Array4::from_shape_simple_fn((3, 3, 3, 3), || StandardNormal.sample(&mut rng));
        Whitening { shape: MapShape { channels: 3, rows: 7, cols: 9 }, transform: Transform::Conv { filter } }
    }

    #[test]
    fn back_is_the_transpose_of_show_for_all_parameters() {
        let whitening = whitening();
        let crop = Part { rows: 1..6, cols: 2..9 };
        for parameters in [Parameters::Input, Parameters::Pixels, Parameters::Fourier] {
            let canvas = Canvas::new(View { parameters, ..View::default() }, &whitening, &crop);
            let plain = parameters == Parameters::Input;
            let len = if plain { 5 * 7 * 3 } else { 7 * 9 * 3 };
            let (z, g) = (drawn((2, len), 1), drawn((2, 5 * 7 * 3), 2));
            let (input, pixels) = canvas.show(z.clone());
            assert_eq!(pixels.is_none(), plain);
            let of_pixels = pixels.as_ref().map(|pixels| drawn(pixels.dim(), 3));
            let left =
                (&input * &g).sum() + pixels.zip(of_pixels.as_ref()).map_or(0.0, |(p, g)| (&p * g).sum());
            let right = (&z * &canvas.back(g, of_pixels)).sum();
            assert!((left - right).abs() < 1e-3 * left.abs().max(1.0), "{parameters:?}: {left} != {right}");
        }
    }

    #[test]
    fn a_picture_is_found_again_from_its_parameters() {
        let shape = MapShape { channels: 1, rows: 8, cols: 6 };
        let whitening = Whitening { shape, transform: Transform::Contrast { scale: 2.0 } };
        let mut rng = rng::stream(9, "view", 1);
        let picture = Array3::from_shape_simple_fn((1, 8, 6), || StandardNormal.sample(&mut rng));
        for parameters in [Parameters::Input, Parameters::Pixels, Parameters::Fourier] {
            let crop = Part { rows: 2..7, cols: 0..5 };
            let canvas = Canvas::new(View { parameters, ..View::default() }, &whitening, &crop);
            let z = Array1::from(canvas.parameters_of(picture.view())).insert_axis(Axis(0));
            let seen = canvas.show(z).0;
            let wanted = picture.slice(ndarray::s![0, 2..7, 0..5]);
            let worst = seen
                .iter()
                .zip(wanted)
                .map(|(got, want): (&f32, &f32)| (got - want).abs())
                .fold(0.0, f32::max);
            assert!(worst < 1e-5, "{parameters:?}: off by {worst}");
        }
    }

    #[test]
    fn charges_meet_central_differences_and_a_flat_picture_costs_nothing() {
        let whitening = whitening();
        let view = View { parameters: Parameters::Pixels, total_variation: 0.7, pixel_box: 0.8, moves: 0 };
        let canvas = Canvas::new(view, &whitening, &Part { rows: 0..7, cols: 0..9 });
        let pixels = drawn((1, 189), 4).into_raw_vec_and_offset().0;
        let mut gradient = vec![0.0; 189];
        canvas.charge(&pixels, &mut gradient);
        let direction = drawn((1, 189), 5).into_raw_vec_and_offset().0;
        let at = |step: f32| {
            let moved: Vec<f32> = pixels.iter().zip(&direction).map(|(p, d)| p + step * d).collect();
            canvas.charge(&moved, &mut [0.0; 189])
        };
        // The gradient of what is left when the charge is taken off.
        let analytic: f32 = gradient.iter().zip(&direction).map(|(g, d)| -g * d).sum();
        let difference = (at(1e-3) - at(-1e-3)) / 2e-3;
        assert!(
            (difference - f64::from(analytic)).abs() < 0.02 * difference.abs(),
            "{analytic} {difference}"
        );
        assert_eq!(canvas.charge(&[0.5; 189], &mut [0.0; 189]), 0.0);
    }
}
