//! Where in the picture a unit looks: its receptive field, mapped with noise.

use ndarray::{Array2, Array3, Axis, Zip};
use ndarray_rand::rand_distr::{Distribution, Normal};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::analysis::BATCH;
use crate::analysis::screen::Screen;
use crate::geometry::Kind;
use crate::network::preprocess::Transform;
use crate::network::{Unit, Workspace};
use crate::rng;

/// Pictures of noise for the gradient; it needs far fewer than an average of noise does.
const GRADIENT_PICTURES: usize = 192;

/// A unit's receptive field, in the network's input space: where whitening mixes pixels, a little wider in true pixels.
#[derive(Debug, Clone)]
pub struct ReceptiveField {
    /// The unit.
    pub unit: Unit,
    /// Mean over noise pictures of the squared gradient of its value with respect to each pixel, summed over
    /// channels; `[row, column]`.
    pub energy: Array2<f64>,
    /// Where it lies; none if the value depends on no pixel.
    pub place: Option<Place>,
    /// Spike-triggered average, `Σ (value - mean value) · picture` over noise, `[channel, row, column]`: of linear units (`a` of the
    /// first stage), whose filter it approaches.
    pub average: Option<Array3<f32>>,
}

/// Place and size of a receptive field.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// Energy-weighted mean row, counted from 0.
    pub row: f64,
    /// Energy-weighted mean column, counted from 0.
    pub col: f64,
    /// Energy-weighted root mean square distance from there, in pixels.
    pub radius_px: f64,
}

impl Place {
    /// Of a map of energy; none if there is no energy.
    pub fn of(energy: &Array2<f64>) -> Option<Place> {
        let total = energy.sum();
        let mean = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
            energy.indexed_iter().map(|((row, col), e)| e * of(row as f64, col as f64)).sum::<f64>() / total
        };
        (total > 0.0).then(|| {
            let (row, col) = (mean(&|row, _| row), mean(&|_, col| col));
            let radius_px = mean(&|r, c| (r - row).powi(2) + (c - col).powi(2)).sqrt();
            Place { row, col, radius_px }
        })
    }
}

/// Maps the receptive fields of units of stage `screen.last` with Gaussian noise: as strong as preprocessed frames (variance 1); without
/// preprocessing of mean ½ and deviation ¼. `average_over` pictures make the average of linear units. `progress` is told
/// of each unit done.
pub fn receptive_fields(
    screen: &Screen,
    kind: Kind,
    units: &[Unit],
    average_over: usize,
    seed: u64,
    progress: impl Fn() + Sync,
) -> Vec<ReceptiveField> {
    let noise = Noise::new(screen, seed);
    let averages = match kind {
        Kind::A if screen.last == 0 => averages(screen, units, average_over, &noise),
        _ => vec![None; units.len()],
    };
    let field = |(&unit, average): (&Unit, Option<Array3<f32>>)| {
        let energy = gradient_energy(screen, kind, unit, &noise);
        progress();
        ReceptiveField { unit, place: Place::of(&energy), energy, average }
    };
    units.par_iter().zip(averages).map(field).collect()
}

/// Pictures of noise, each its own whoever asks.
struct Noise {
    seed: u64,
    level: Normal<f32>,
    shape: (usize, usize, usize),
}

impl Noise {
    fn new(screen: &Screen, seed: u64) -> Noise {
        let raw = matches!(screen.whitening.transform, Transform::None);
        let (mean, deviation) = if raw { (0.5, 0.25) } else { (0.0, 1.0) };
        let input = screen.network.input;
        Noise {
            seed,
            level: Normal::new(mean, deviation).expect("a finite deviation"),
            shape: (input.channels, input.rows, input.cols),
        }
    }

    fn picture(&self, number: usize) -> Array3<f32> {
        let mut rng = rng::stream(self.seed, "receptive fields", number as u64);
        Array3::from_shape_simple_fn(self.shape, || self.level.sample(&mut rng))
    }

    /// Pictures `first..first + count` through the network; returns them.
    fn show(&self, screen: &Screen, work: &mut Workspace, first: usize, count: usize) -> Vec<Array3<f32>> {
        let pictures: Vec<Array3<f32>> = (first..first + count).map(|number| self.picture(number)).collect();
        work.start(count);
        pictures.iter().enumerate().for_each(|(lane, p)| work.load_picture(lane, p.iter().copied()));
        screen.network.forward(work, screen.last);
        pictures
    }
}

fn gradient_energy(screen: &Screen, kind: Kind, unit: Unit, noise: &Noise) -> Array2<f64> {
    let network = screen.network;
    let mut work = network.workspace(BATCH);
    let mut energy = Array2::zeros((network.input.rows, network.input.cols));
    for first in (0..GRADIENT_PICTURES).step_by(BATCH) {
        let count = BATCH.min(GRADIENT_PICTURES - first);
        noise.show(screen, &mut work, first, count);
        network.input_gradient(&mut work, screen.last, kind, &vec![unit; count]);
        for gradient in work.unpack(&work.input_gradient, network.input).outer_iter() {
            let square = gradient.mapv(|g| f64::from(g).powi(2)).sum_axis(Axis(0));
            Zip::from(&mut energy)
                .and(&square)
                .for_each(|sum, square| *sum += square / GRADIENT_PICTURES as f64);
        }
    }
    energy
}

/// The spike-triggered average of each unit.
fn averages(screen: &Screen, units: &[Unit], pictures: usize, noise: &Noise) -> Vec<Option<Array3<f32>>> {
    let mut work = screen.network.workspace(BATCH);
    let zeros = || Array3::<f64>::zeros(noise.shape);
    // Sums of value, of picture, and of their product.
    let mut sums: Vec<(f64, Array3<f64>)> = units.iter().map(|_| (0.0, zeros())).collect();
    let mut picture_sum = zeros();
    for first in (0..pictures).step_by(BATCH) {
        let shown = noise.show(screen, &mut work, first, BATCH.min(pictures - first));
        shown.iter().for_each(|p| Zip::from(&mut picture_sum).and(p).for_each(|s, &x| *s += f64::from(x)));
        units.par_iter().zip(&mut sums).for_each(|(&unit, (total, product))| {
            let values = work.unit_values(screen.network, screen.last, Kind::A, unit);
            for (picture, value) in shown.iter().zip(values.iter().map(|&v| f64::from(v))) {
                *total += value;
                Zip::from(&mut *product).and(picture).for_each(|p, &x| *p += value * f64::from(x));
            }
        });
    }
    let average = |(total, product): (f64, Array3<f64>)| {
        let mean = total / pictures as f64;
        Some((product - &picture_sum * mean).mapv(|x| (x / pictures as f64) as f32))
    };
    sums.into_iter().map(average).collect()
}
