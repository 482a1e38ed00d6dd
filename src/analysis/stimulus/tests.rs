//! Units whose best picture is known.

use argmin::core::{CostFunction, Executor, Gradient};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use ndarray::s;

use super::*;
use crate::config::RunConfig;
use crate::network::plain::PlainNetwork;
use crate::network::preprocess::Transform;

/// Pooling unit 2x2 over fields of 6x6.
const POOLED: &str = "[input]\nheight = 9\nwidth = 8\npreprocess = \"none\"\n\
    [[stages]]\nmaps = 2\nfield = 6\npool = 2\nlcn = 0\nepsilon = 1e-6\n[training]\nsteps = [1]\n";

/// Two stages that see 3x3 patches of 4x4 pixels, without pooling.
const TWO_STAGES: &str = "[input]\nheight = 12\nwidth = 12\npreprocess = \"none\"\n\
    [[stages]]\nmaps = 2\nfield = 4\nstride = 4\npool = 1\nlcn = 0\nepsilon = 1e-8\n\
    [[stages]]\nmaps = 1\nfield = 3\npool = 1\nlcn = 0\nepsilon = 1e-8\n[training]\nsteps = [1, 1]\n";

fn network(text: &str) -> Network {
    Network::new(&RunConfig::parse(text, &[]).unwrap(), 7).unwrap()
}

fn no_preprocessing(network: &Network) -> Whitening {
    Whitening { shape: network.input, transform: Transform::None }
}

fn noise(network: &Network, count: usize) -> Vec<Array3<f32>> {
    let shape = (network.input.channels, network.input.rows, network.input.cols);
    let draw = |index| {
        let mut rng = rng::stream(9, "starts", index as u64);
        Array3::from_shape_simple_fn(shape, || StandardNormal.sample(&mut rng))
    };
    (0..count).map(draw).collect()
}

fn search(network: &Network, at: (usize, Kind), requests: &[Request], search: &Search) -> Vec<Stimulus> {
    preferred_stimuli(network, &no_preprocessing(network), at, requests, search, |_| ()).unwrap()
}

/// From 20 random starts, by both methods; norms are checked.
fn from_all_starts(network: &Network, at: (usize, Kind), unit: Unit, norm: f32) -> Vec<Stimulus> {
    let requests: Vec<_> = noise(network, 20).into_iter().map(|start| Request::new(unit, start)).collect();
    let methods = [Method::Lbfgs, Method::Ascent];
    let found = methods.map(|method| {
        search(network, at, &requests, &Search { method, evaluations: 500, ..Search::new(norm) })
    });
    let found = found.concat();
    for stimulus in &found {
        let length = stimulus.image.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        assert!((length / f64::from(norm) - 1.0).abs() < 1e-6, "norm {length}");
        assert_eq!(stimulus.ended, Ended::Converged, "after {}", stimulus.evaluations);
    }
    found
}

#[test]
fn a_filter_prefers_itself_from_every_start() {
    let network = network(POOLED);
    let unit = Unit { map: 1, row: 2, col: 1 };
    let filter = network.stages[0].filter(Weights::Encoder, unit);
    let length = filter.iter().map(|w| w * w).sum::<f32>().sqrt();
    for found in from_all_starts(&network, (0, Kind::A), unit, 2.5) {
        assert!(found.value > 0.999 * 2.5 * length, "{} of {}", found.value, 2.5 * length);
        let seen = found.image.slice(s![.., 2..8, 1..7]);
        let cosine = (&seen * &filter).sum() / (2.5 * length);
        assert!(cosine > 0.999, "cosine {cosine}");
    }
    let start = noise(&network, 1).remove(0);
    let opposite = Request { sign: Sign::Negative, ..Request::new(unit, start) };
    let found = search(&network, (0, Kind::A), &[opposite], &Search::new(2.5)).remove(0);
    assert!(found.value < -0.999 * 2.5 * length, "{} of {}", found.value, -2.5 * length);
}

/// The mean of a linear unit over moves is linear too: its best picture is the mean of the moved filters.
#[test]
fn over_moves_a_filter_prefers_the_mean_of_itself_moved() {
    let network = network(POOLED);
    let unit = Unit { map: 1, row: 2, col: 1 };
    let filter = network.stages[0].filter(Weights::Encoder, unit);
    let mirrored = |at: usize, by: isize| match at as isize + by {
        -1 => 1,
        6 => 4,
        inside => inside as usize,
    };
    let mut mean = Array3::<f32>::zeros((1, 6, 6));
    for (down, right) in (-1..=1).flat_map(|down| (-1..=1).map(move |right| (down, right))) {
        for ((channel, y, x), w) in filter.indexed_iter() {
            mean[[channel, mirrored(y, down), mirrored(x, right)]] += w / 9.0;
        }
    }
    let length = |picture: &Array3<f32>| picture.iter().map(|w| w * w).sum::<f32>().sqrt();
    let view = View { moves: 1, ..View::default() };
    let requests: Vec<_> = noise(&network, 4).into_iter().map(|start| Request::new(unit, start)).collect();
    for found in search(&network, (0, Kind::A), &requests, &Search { view, ..Search::new(2.5) }) {
        let seen = found.image.slice(s![.., 2..8, 1..7]).to_owned();
        let cosine = (&seen * &mean).sum() / (2.5 * length(&mean));
        assert!(cosine > 0.999, "cosine {cosine}");
        // The value told is that where nothing is moved.
        let value = (&seen * &filter).sum();
        assert!((found.value - value).abs() < 1e-4 * value.abs().max(1.0), "{} {value}", found.value);
    }
    assert!(view.label().unwrap().contains("moves of up to 1"));
}

/// `h² - ε` is a quadratic form of the filters in its window: the maximum is its largest singular value.
#[test]
fn a_pooled_unit_reaches_the_largest_singular_value_of_its_filters() {
    let network = network(POOLED);
    let unit = Unit { map: 0, row: 1, col: 0 };
    let mut filters = Vec::new();
    for (row, col) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
        let mut placed = Array3::<f32>::zeros((1, 9, 8));
        let filter = network.stages[0].filter(Weights::Encoder, Unit { map: 0, row, col });
        placed.slice_mut(s![.., row..row + 6, col..col + 6]).assign(&filter);
        filters.push(placed);
    }
    let gram = faer::Mat::from_fn(4, 4, |i, j| f64::from((&filters[i] * &filters[j]).sum()));
    let largest = gram.self_adjoint_eigenvalues(faer::Side::Lower).unwrap().into_iter().fold(0.0, f64::max);
    for found in from_all_starts(&network, (0, Kind::H), unit, 1.0) {
        let ratio = f64::from(found.value) / (largest + 1e-6).sqrt();
        assert!((0.999..1.0001).contains(&ratio), "{ratio} of the maximum");
    }
}

/// Two filters a quarter of a cycle apart: every phase is as good, and the value is their common length.
#[test]
fn a_quadrature_pair_reaches_its_length_and_repulsion_finds_another_phase() {
    let text = "[input]\nheight = 8\nwidth = 9\npreprocess = \"none\"\n\
        [[stages]]\nmaps = 1\nfield = 8\npool = 1\nlcn = 0\nepsilon = 1e-8\n[training]\nsteps = [1]\n";
    let mut config = RunConfig::parse(text, &[]).unwrap();
    config.stages[0].pool = 2;
    // A pool of 2x2 over one row of two positions does not fit, so both filters get a second row of nothing.
    config.input.height = 9;
    let network = Network::new(&config, 7).unwrap();
    let wave = |phase: f32| move |x: usize| (std::f32::consts::TAU * x as f32 / 4.0 + phase).cos();
    let filters = |col: usize| {
        // Position `col` begins a pixel further, which must not turn the phase.
        let wave = wave(if col == 0 { 0.0 } else { std::f32::consts::FRAC_PI_2 });
        (0..64).map(move |tap| wave(tap % 8 + col) / 32f32.sqrt())
    };
    network.stages[0].set_weights(Weights::Encoder, 0, filters(0).chain(filters(1)));
    network.stages[0].set_weights(Weights::Encoder, 1, std::iter::repeat_n(0.0, 128));
    // The filters see columns 0 to 7 and 1 to 8: they are orthogonal and of length 1.
    let unit = Unit { map: 0, row: 0, col: 0 };
    for found in from_all_starts(&network, (0, Kind::H), unit, 1.0) {
        assert!((0.999..1.0001).contains(&found.value), "{}", found.value);
    }
    let wanted = Wanted { sign: Sign::Positive, restarts: 2, optima: 2, repulsion: 0.5, seed: 3 };
    let white = no_preprocessing(&network);
    let search = Search::new(1.0);
    let units = [(unit, Vec::new())];
    let (found, effort) =
        best_stimuli(&network, &white, (0, Kind::H), &units, &search, &wanted, |_| ()).unwrap();
    assert!(effort.searches == 4 && effort.evaluations >= 4);
    let [(first, _), (second, _)] = &found[0][..] else { panic!("{} optima", found[0].len()) };
    let cosine = (&first.image * &second.image).sum();
    assert!(cosine.abs() < 0.05 && second.value > 0.999, "cosine {cosine}, value {}", second.value);
}

/// A horizontal edge left of the middle and in it, a vertical one above it and in it: `Σ c|w.x|` over orthogonal filters, whose
/// maximum is `√Σ c²|w|²`.
#[test]
fn a_corner_detector_of_two_stages_gets_its_corner() {
    let network = network(TWO_STAGES);
    let edge = |tap: usize, vertical: bool| {
        let along = if vertical { tap % 4 } else { tap / 4 };
        if along < 2 { 0.5 } else { -0.5 }
    };
    for row in 0..3 {
        let taps =
            (0..3).flat_map(|_| [false, true].map(|vertical| (0..16).map(move |tap| edge(tap, vertical))));
        network.stages[0].set_weights(Weights::Encoder, row, taps.flatten());
    }
    let corner = [[[0.0, 0.0, 0.0], [0.7, 1.2, 0.0], [0.0; 3]], [[0.0, 0.9, 0.0], [0.0, 0.4, 0.0], [0.0; 3]]];
    network.stages[1].set_weights(Weights::Encoder, 0, corner.into_iter().flatten().flatten());
    let wanted = 2.0 * (0.7f32 * 0.7 + 1.2 * 1.2 + 0.9 * 0.9 + 0.4 * 0.4).sqrt();
    for found in from_all_starts(&network, (1, Kind::H), Unit { map: 0, row: 0, col: 0 }, 1.0) {
        assert!((found.value / wanted - 1.0).abs() < 1e-3, "{} of {wanted}", found.value);
        let elsewhere = found.image.slice(s![0, 8.., ..]);
        assert!(elsewhere.iter().all(|x| x.abs() < 0.02), "{elsewhere}");
    }
}

#[test]
fn fixed_steps_follow_the_plain_definition() {
    let network = network(POOLED);
    let (unit, start) = (Unit { map: 0, row: 1, col: 0 }, noise(&network, 1).remove(0));
    let fixed = Search { method: Method::FixedSteps, evaluations: 20, step: 0.1, ..Search::new(1.0) };
    let found = search(&network, (0, Kind::H), &[Request::new(unit, start.clone())], &fixed).remove(0);
    let weights = |which| network.stages[0].weights(which).mapv(f64::from);
    let pairs = vec![(weights(Weights::Encoder), weights(Weights::Decoder))];
    let plain = PlainNetwork::new(&RunConfig::parse(POOLED, &[]).unwrap(), pairs);
    // The plain climb moves over what the unit does not see, too, and never comes back to zero there.
    let mut start = start.mapv(f64::from);
    for ((_, row, col), x) in start.indexed_iter_mut() {
        *x = if (1..8).contains(&row) && col < 7 { *x } else { 0.0 };
    }
    let (path, value) = plain.climb(start.view(), Kind::H, unit, 0.1, 20);
    assert!((f64::from(found.value) / value - 1.0).abs() < 1e-4, "{} instead of {value}", found.value);
    let off = found.image.iter().zip(&path[20]).map(|(&x, want)| (f64::from(x) - want).abs());
    let worst = off.fold(0.0, f64::max);
    assert!(worst < 1e-3 && found.ended == Ended::Limit, "off by {worst}, {:?}", found.ended);
}

#[test]
fn the_same_seed_gives_the_same_picture_and_a_blind_unit_says_so() {
    let network = network(POOLED);
    let white = no_preprocessing(&network);
    let units: Vec<_> = network.units(0, Kind::Y).into_iter().map(|unit| (unit, Vec::new())).collect();
    let pictures = |seed| -> Vec<Stimulus> {
        let wanted = Wanted { sign: Sign::Positive, restarts: 3, optima: 1, repulsion: 0.0, seed };
        let at = (0, Kind::Y);
        let (found, _) =
            best_stimuli(&network, &white, at, &units, &Search::new(1.0), &wanted, |_| ()).unwrap();
        found.into_iter().flatten().map(|(found, _)| found).collect()
    };
    let images = |seed| pictures(seed).into_iter().map(|found| found.image).collect::<Vec<_>>();
    let on = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    assert_eq!(on(1).install(|| images(1)), on(3).install(|| images(1)));
    assert_ne!(images(1), images(2));

    let stage = &network.stages[0];
    (0..stage.shape.filtered.rows)
        .for_each(|row| stage.set_weights(Weights::Encoder, row, std::iter::repeat(0.0)));
    let found = pictures(1);
    assert!(
        found.len() == units.len() && found.iter().all(|found| found.is_flat() && found.evaluations == 1)
    );
    assert!(why_flat(&network, 0, Kind::Y, units[0].0).contains("dead unit"));
}

/// The largest value of a unit at a norm that argmin finds from a start.
fn second_opinion(plain: &PlainNetwork, unit: Unit, norm: f64, start: &Array3<f32>) -> f64 {
    struct Problem<'a>(&'a PlainNetwork, Unit, f64, (usize, usize, usize));
    impl Problem<'_> {
        /// Value of the unit turned upside down, and its gradient, for the picture of that norm in the direction `z`.
        fn at(&self, z: &[f64]) -> (f64, Vec<f64>) {
            let Problem(plain, unit, norm, dims) = self;
            let length = z.iter().map(|z| z * z).sum::<f64>().sqrt();
            let x = Array3::from_shape_vec(*dims, z.iter().map(|z| norm * z / length).collect()).unwrap();
            let (value, gradient) = plain.unit_gradient(x.view(), Kind::Y, *unit);
            let radial = (&gradient * &x).sum() / (norm * norm);
            let tangent = gradient.iter().zip(&x).map(|(g, x)| -(g - radial * x) * norm / length);
            (-value, tangent.collect())
        }
    }
    impl CostFunction for Problem<'_> {
        type Param = Vec<f64>;
        type Output = f64;
        fn cost(&self, z: &Vec<f64>) -> Result<f64, argmin::core::Error> {
            Ok(self.at(z).0)
        }
    }
    impl Gradient for Problem<'_> {
        type Param = Vec<f64>;
        type Gradient = Vec<f64>;
        fn gradient(&self, z: &Vec<f64>) -> Result<Vec<f64>, argmin::core::Error> {
            Ok(self.at(z).1)
        }
    }
    let solver = LBFGS::new(MoreThuenteLineSearch::new(), 16);
    let z: Vec<f64> = start.iter().map(|&x| x.into()).collect();
    let executor = Executor::new(Problem(plain, unit, norm, start.dim()), solver);
    let result = executor.configure(|state| state.param(z).max_iters(300)).run().unwrap();
    -result.state().best_cost
}

#[test]
fn most_searches_by_both_methods_end_at_the_same_top_and_a_start_of_another_size_is_refused() {
    let text = "[input]\nheight = 20\nwidth = 18\npreprocess = \"none\"\n[[stages]]\nmaps = 4\nfield = 6\nstride = 2\npool = 2\n\
        lcn = 3\n[[stages]]\nmaps = 5\nfield = 3\npool = 2\nlcn = 3\n[training]\nsteps = [1, 1]\n";
    let network = network(text);
    let units = network.units(1, Kind::Y);
    let starts = noise(&network, 1);
    let requests: Vec<_> = units.iter().map(|unit| Request::new(*unit, starts[0].clone())).collect();
    let of = |method| {
        let settings = Search { method, evaluations: 2000, tolerance: 1e-4, ..Search::new(4.0) };
        search(&network, (1, Kind::Y), &requests, &settings)
    };
    let (lbfgs, ascent) = (of(Method::Lbfgs), of(Method::Ascent));
    // From one start they may go to different tops: most go to the same.
    let same = lbfgs.iter().zip(&ascent).filter(|(a, b)| (a.value / b.value - 1.0).abs() < 0.01).count();
    assert!(same * 10 >= units.len() * 7, "{same} of {}", units.len());

    // argmin's L-BFGS over a plain f64 definition, too, and nothing better is near where ours ended.
    let weights = |stage: usize, which| network.stages[stage].weights(which).mapv(f64::from);
    let pairs = [0, 1].map(|stage| (weights(stage, Weights::Encoder), weights(stage, Weights::Decoder)));
    let plain = PlainNetwork::new(&RunConfig::parse(text, &[]).unwrap(), pairs.into());
    let mut same = 0;
    for found in lbfgs.iter().step_by(units.len() / 8) {
        let from = |start: &Array3<f32>| second_opinion(&plain, found.unit, 4.0, start);
        let near = from(&found.image);
        let ours = f64::from(found.value);
        assert!((near / ours - 1.0).abs() < 1e-3, "{:?}: {ours}, argmin {near}", found.unit);
        same += usize::from((from(&starts[0]) / ours - 1.0).abs() < 0.01);
    }
    assert!(same >= 5, "{same} of 8 or 9");

    let small = [Request::new(units[0], Array3::ones((1, 3, 3)))];
    let white = no_preprocessing(&network);
    let error = preferred_stimuli(&network, &white, (1, Kind::Y), &small, &Search::new(1.0), |_| ());
    assert!(error.unwrap_err().to_string().contains("(1, 3, 3)"));
}
