//! Searches for the picture each unit prefers (paper §4.4).
//!
//! A unit is a function from a picture to one number. The network stays fixed while we climb that function over the
//! sphere of pictures with one norm. A lane of the minibatch is a free slot, so many searches climb at once.

use ndarray::{Array3, ArrayView3, Axis};
use ndarray_rand::rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::geometry::Kind;
use crate::network::{Network, Unit, Workspace};
use crate::rng;

/// How to climb.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub struct Ascent {
    /// Most steps of one search.
    pub steps: usize,
    /// Length of a step on the sphere of radius 1, before the result is put back on the sphere.
    pub step: f32,
    /// Norm of the pictures.
    pub norm: f32,
    /// `false`: every step as long as the first, whatever comes of it (the reference). `true`: a step that does not
    /// climb is taken back and the next is half as long; a search ends when its steps have become tiny.
    pub adapt: bool,
}

/// A step below this is the end of an adaptive search.
const CONVERGED: f32 = 1e-4;

/// Searches that climb side by side: enough lanes to fill the vectors, few enough for the caches.
const LANES: usize = 32;

/// A unit's preferred picture, as the search left it.
#[derive(Debug, Clone)]
pub struct Stimulus {
    /// The unit.
    pub unit: Unit,
    /// The picture, `[channel, row, column]`, as the network takes it: after preprocessing.
    pub image: Array3<f32>,
    /// The unit's value for it.
    pub value: f32,
    /// The unit's value where the search began, at the same norm.
    pub start_value: f32,
    /// Steps taken.
    pub steps: usize,
    /// True if the gradient vanished at the start: the unit does not see that picture.
    pub flat: bool,
}

/// Maximises `f(x)` subject to `||x||₂ = norm` for each `(unit, start)` of one stage.
///
/// One step along `∇f` with its radial part removed, then back onto the sphere. Starts are shaped `[channel, row,
/// column]`; their scale is ignored.
///
/// # Errors
/// A start that is zero everywhere.
pub fn preferred_stimuli(
    network: &Network,
    stage: usize,
    kind: Kind,
    searches: &[(Unit, ArrayView3<f32>)],
    ascent: &Ascent,
) -> Result<Vec<Stimulus>> {
    if searches.iter().any(|(_, start)| start.iter().all(|&x| x == 0.0)) {
        return Err(Error::Mismatch("a search cannot start from a picture that is zero everywhere".into()));
    }
    let group = |searches: &[(Unit, ArrayView3<f32>)]| {
        Climb::new(network, stage, kind, searches, ascent.norm).run(ascent)
    };
    Ok(searches.par_chunks(LANES).flat_map_iter(group).collect())
}

/// Where a search began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// Gaussian noise.
    Noise,
    /// One of the frames that drive the unit most.
    TopFrame,
}

/// The best of several searches for each unit: `restarts` from different noise, and one from each of its `frames`.
/// `progress` is told of every unit done.
///
/// # Errors
/// As [`preferred_stimuli`].
#[allow(clippy::too_many_arguments)]
pub fn best_stimuli(
    network: &Network,
    stage: usize,
    kind: Kind,
    units: &[(Unit, Vec<Array3<f32>>)],
    ascent: &Ascent,
    restarts: usize,
    seed: u64,
    progress: impl Fn(usize) + Sync,
) -> Result<Vec<(Stimulus, Start)>> {
    let shape = (network.input.channels, network.input.rows, network.input.cols);
    let noise = |unit: &Unit, restart: usize| -> Array3<f32> {
        let name = format!("stimulus {stage} {} {} {}", unit.map, unit.row, unit.col);
        let mut rng = rng::stream(seed, &name, restart as u64);
        Array3::from_shape_simple_fn(shape, || StandardNormal.sample(&mut rng))
    };
    let each = restarts + units.iter().map(|(_, frames)| frames.len()).max().unwrap_or(0);
    let found: Vec<Result<Vec<(Stimulus, Start)>>> = units
        .par_chunks((LANES / each.max(1)).max(1))
        .map(|units| {
            let mut starts = Vec::new();
            for (unit, frames) in units {
                starts.extend((0..restarts).map(|restart| (*unit, noise(unit, restart), Start::Noise)));
                starts.extend(frames.iter().map(|frame| (*unit, frame.clone(), Start::TopFrame)));
            }
            let searches: Vec<_> = starts.iter().map(|(unit, start, _)| (*unit, start.view())).collect();
            let found = preferred_stimuli(network, stage, kind, &searches, ascent)?;
            progress(units.len());
            let tries: Vec<(Stimulus, Start)> = found.into_iter().zip(starts.iter().map(|s| s.2)).collect();
            let best = |(unit, _): &(Unit, _)| {
                let of_unit = tries.iter().filter(|(found, _)| found.unit == *unit);
                of_unit.max_by(|a, b| a.0.value.total_cmp(&b.0.value)).expect("at least one search").clone()
            };
            Ok(units.iter().map(best).collect())
        })
        .collect();
    found.into_iter().collect::<Result<Vec<_>>>().map(|groups| groups.concat())
}

/// Searches in the lanes of one workspace.
struct Climb<'a> {
    network: &'a Network,
    stage: usize,
    kind: Kind,
    units: Vec<Unit>,
    norm: f32,
    work: Workspace,
    /// Where each lane stands, on the sphere of radius 1; `[value, lane]`.
    x: Vec<f32>,
    values: Vec<f32>,
    start_values: Vec<f32>,
    flat: Vec<bool>,
}

impl<'a> Climb<'a> {
    fn new(
        network: &'a Network,
        stage: usize,
        kind: Kind,
        searches: &[(Unit, ArrayView3<f32>)],
        norm: f32,
    ) -> Climb<'a> {
        let mut work = network.workspace(searches.len());
        for (lane, (_, start)) in searches.iter().enumerate() {
            work.load_picture(lane, start.iter().copied());
        }
        let mut climb = Climb {
            network,
            stage,
            kind,
            units: searches.iter().map(|(unit, _)| *unit).collect(),
            norm,
            x: work.input.to_vec(),
            values: Vec::new(),
            start_values: Vec::new(),
            flat: vec![false; searches.len()],
            work,
        };
        climb.rescale();
        climb
    }

    /// Puts every lane back on the sphere.
    fn rescale(&mut self) {
        let lanes = self.work.lanes;
        let inverse: Vec<f32> = dots(&self.x, &self.x, lanes)
            .iter()
            .map(|&square| if square > 0.0 { (1.0 / square.sqrt()) as f32 } else { 0.0 })
            .collect();
        for place in self.x.chunks_exact_mut(lanes) {
            place.iter_mut().zip(&inverse).for_each(|(x, scale)| *x *= scale);
        }
    }

    /// The units' values where the lanes stand.
    fn evaluate(&mut self) -> Vec<f32> {
        let norm = self.norm;
        self.work.input.iter_mut().zip(&self.x).for_each(|(input, x)| *input = norm * x);
        self.network.forward(&mut self.work, self.stage);
        let value = |(lane, unit)| self.work.unit_values(self.network, self.stage, self.kind, unit)[lane];
        self.units.iter().copied().enumerate().map(value).collect()
    }

    /// The direction of steepest ascent on the sphere: the gradient without its radial part, length 1 in each lane. Lanes
    /// without one get zeros.
    fn direction(&mut self) -> Vec<f32> {
        self.network.input_gradient(&mut self.work, self.stage, self.kind, &self.units);
        let lanes = self.work.lanes;
        let mut gradient = self.work.input_gradient.to_vec();
        let size = dots(&gradient, &gradient, lanes);
        let radial: Vec<f32> = dots(&gradient, &self.x, lanes).iter().map(|&dot| dot as f32).collect();
        for (place, x) in gradient.chunks_exact_mut(lanes).zip(self.x.chunks_exact(lanes)) {
            for ((d, x), radial) in place.iter_mut().zip(x).zip(&radial) {
                *d -= radial * x;
            }
        }
        let inverse: Vec<f32> = dots(&gradient, &gradient, lanes)
            .iter()
            .zip(&size)
            // What rounding leaves of a purely radial gradient is no direction.
            .map(|(&square, &size)| if square > 1e-10 * size { (1.0 / square.sqrt()) as f32 } else { 0.0 })
            .collect();
        for place in gradient.chunks_exact_mut(lanes) {
            place.iter_mut().zip(&inverse).for_each(|(d, scale)| *d *= scale);
        }
        gradient
    }

    fn run(mut self, ascent: &Ascent) -> Vec<Stimulus> {
        let (lanes, pictures) = (self.work.lanes, self.units.len());
        let mut step = vec![ascent.step; pictures];
        let mut taken = vec![0; pictures];
        self.values = self.evaluate();
        self.start_values = self.values.clone();
        let mut direction = self.direction();
        let no_direction = dots(&direction, &direction, lanes);
        self.flat = no_direction[..pictures].iter().map(|&size| size == 0.0).collect();
        for _ in 0..ascent.steps {
            let before = self.x.clone();
            for (x, d) in self.x.chunks_exact_mut(lanes).zip(direction.chunks_exact(lanes)) {
                for lane in 0..pictures {
                    x[lane] += step[lane] * d[lane];
                }
            }
            self.rescale();
            let values = self.evaluate();
            for lane in 0..pictures {
                // A lane that has converged steps by 0 and stays.
                let climbed = values[lane] > self.values[lane];
                if climbed || !ascent.adapt {
                    self.values[lane] = values[lane];
                    taken[lane] += usize::from(step[lane] > 0.0);
                    if ascent.adapt {
                        step[lane] = (1.2 * step[lane]).min(ascent.step);
                    }
                } else {
                    let places = self.x.chunks_exact_mut(lanes).zip(before.chunks_exact(lanes));
                    places.for_each(|(x, before)| x[lane] = before[lane]);
                    step[lane] = if step[lane] < CONVERGED { 0.0 } else { 0.5 * step[lane] };
                }
            }
            if step.iter().all(|&step| step == 0.0) {
                break;
            }
            if ascent.adapt && values.iter().zip(&self.values).any(|(new, kept)| new != kept) {
                self.evaluate(); // the gradient is wanted where the lanes stand, not where some have just been
            }
            direction = self.direction();
        }
        self.evaluate();
        let images = self.work.unpack(&self.work.input, self.network.input);
        (0..pictures)
            .map(|lane| Stimulus {
                unit: self.units[lane],
                image: images.index_axis(Axis(0), lane).to_owned(),
                value: self.values[lane],
                start_value: self.start_values[lane],
                steps: taken[lane],
                flat: self.flat[lane],
            })
            .collect()
    }
}

/// The scalar product of each lane, in f64.
fn dots(a: &[f32], b: &[f32], lanes: usize) -> Vec<f64> {
    let mut out = vec![0f64; lanes];
    for (a, b) in a.chunks_exact(lanes).zip(b.chunks_exact(lanes)) {
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            *out += f64::from(a) * f64::from(b);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;
    use crate::network::Weights;
    use crate::network::plain::PlainNetwork;

    const CONFIG: &str = "[input]\nheight = 9\nwidth = 8\npreprocess = \"none\"\n\
        [[stages]]\nmaps = 2\nfield = 6\npool = 2\nlcn = 0\nepsilon = 1e-6\n[training]\nsteps = [1]\n";

    fn network() -> Network {
        Network::new(&RunConfig::parse(CONFIG, &[]).unwrap(), 7).unwrap()
    }

    fn noise(network: &Network, count: usize) -> Vec<Array3<f32>> {
        let shape = (network.input.channels, network.input.rows, network.input.cols);
        let draw = |index| {
            let mut rng = rng::stream(9, "starts", index as u64);
            Array3::from_shape_simple_fn(shape, || StandardNormal.sample(&mut rng))
        };
        (0..count).map(draw).collect()
    }

    #[test]
    fn a_filter_prefers_itself_from_every_start() {
        let network = network();
        let unit = Unit { map: 1, row: 2, col: 1 };
        let starts = noise(&network, 20);
        let searches: Vec<_> = starts.iter().map(|start| (unit, start.view())).collect();
        let ascent = Ascent { steps: 300, step: 0.2, norm: 2.5, adapt: true };
        let weights = network.stages[0].weights(Weights::Encoder);
        let filter = weights.slice(ndarray::s![2, 1, 1, .., .., ..]);
        let length = filter.iter().map(|w| w * w).sum::<f32>().sqrt();
        for found in preferred_stimuli(&network, 0, Kind::A, &searches, &ascent).unwrap() {
            let norm = found.image.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            assert!((norm / 2.5 - 1.0).abs() < 1e-6, "norm {norm}");
            assert!(found.value > 0.999 * 2.5 * length, "{} of {}", found.value, 2.5 * length);
            let seen = found.image.slice(ndarray::s![.., 2..8, 1..7]);
            let cosine = (&seen * &filter).sum() / (2.5 * length);
            assert!(cosine > 0.999, "cosine {cosine}");
        }
    }

    /// `h² - ε` is a quadratic form of the filters in its window: the maximum is its largest singular value.
    #[test]
    fn a_pooled_unit_reaches_the_largest_singular_value_of_its_filters() {
        let network = network();
        let unit = Unit { map: 0, row: 1, col: 0 };
        let weights = network.stages[0].weights(Weights::Encoder);
        let mut filters = Vec::new();
        for (row, col) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
            let mut placed = Array3::<f32>::zeros((1, 9, 8));
            let place = ndarray::s![.., row..row + 6, col..col + 6];
            placed.slice_mut(place).assign(&weights.slice(ndarray::s![row, col, 0, .., .., ..]));
            filters.push(placed);
        }
        let gram = faer::Mat::from_fn(4, 4, |i, j| f64::from((&filters[i] * &filters[j]).sum()));
        let largest =
            gram.self_adjoint_eigenvalues(faer::Side::Lower).unwrap().into_iter().fold(0.0, f64::max);
        let starts = noise(&network, 5);
        let searches: Vec<_> = starts.iter().map(|start| (unit, start.view())).collect();
        let ascent = Ascent { steps: 500, step: 0.2, norm: 1.0, adapt: true };
        for found in preferred_stimuli(&network, 0, Kind::H, &searches, &ascent).unwrap() {
            let ratio = f64::from(found.value) / (largest + 1e-6).sqrt();
            assert!((0.999..1.0001).contains(&ratio), "{ratio} of the maximum");
        }
    }

    #[test]
    fn fixed_steps_follow_the_plain_definition() {
        let network = network();
        let (unit, start) = (Unit { map: 0, row: 1, col: 0 }, noise(&network, 1).remove(0));
        let ascent = Ascent { steps: 20, step: 0.1, norm: 1.0, adapt: false };
        let found =
            preferred_stimuli(&network, 0, Kind::H, &[(unit, start.view())], &ascent).unwrap().remove(0);
        let weights = |which| network.stages[0].weights(which).mapv(f64::from);
        let pairs = vec![(weights(Weights::Encoder), weights(Weights::Decoder))];
        let plain = PlainNetwork::new(&RunConfig::parse(CONFIG, &[]).unwrap(), pairs);
        let (path, value) = plain.climb(start.mapv(f64::from).view(), Kind::H, unit, 0.1, 20);
        assert!((f64::from(found.value) / value - 1.0).abs() < 1e-4, "{} instead of {value}", found.value);
        let worst = found
            .image
            .iter()
            .zip(&path[20])
            .map(|(&x, want)| (f64::from(x) - want).abs())
            .fold(0.0, f64::max);
        assert!(worst < 1e-3 && found.steps == 20, "off by {worst} after {} steps", found.steps);
    }

    #[test]
    fn the_same_seed_gives_the_same_picture_and_a_blind_unit_says_so() {
        let network = network();
        let units: Vec<_> =
            network.units(0, Kind::Y).into_iter().take(5).map(|unit| (unit, Vec::new())).collect();
        let ascent = Ascent { steps: 20, step: 0.2, norm: 1.0, adapt: true };
        let search = |seed| best_stimuli(&network, 0, Kind::Y, &units, &ascent, 2, seed, |_| ()).unwrap();
        let pictures = |seed| search(seed).into_iter().map(|(found, _)| found.image).collect::<Vec<_>>();
        assert_eq!(pictures(1), pictures(1));
        assert_ne!(pictures(1), pictures(2));

        let stage = &network.stages[0];
        (0..stage.shape.filtered.rows)
            .for_each(|row| stage.set_weights(Weights::Encoder, row, std::iter::repeat(0.0)));
        assert!(search(1).iter().all(|(found, _)| found.flat && found.steps == 0));
    }
}
