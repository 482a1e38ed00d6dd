//! Gradients of heads, and of encoders below them, against central differences of plain f64 definitions; and what attention looks at.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use ndarray::{Array3, Array4, Array6, Axis};
use rand::Rng;

use super::*;
use crate::analysis::evaluate::Group;
use crate::classify::tune::{Lesson, Line, Settings, Tuner, all_flops, flops, tune};
use crate::config::RunConfig;
use crate::dataset::Dataset;
use crate::geometry;
use crate::kernels::lanes_for;
use crate::network::plain::PlainNetwork;
use crate::network::preprocess::{Inputs, Transform, Whitening};
use crate::network::{Network, Stage, Weights};

const KINDS: [Kind; 3] = [Kind::Full, Kind::Mean, Kind::Attention(5)];

fn config() -> RunConfig {
    let text = "[input]\nchannels = 3\nheight = 12\nwidth = 10\npreprocess = \"none\"\n\
                [[stages]]\nmaps = 3\nfield = 4\npool = 2\nepsilon = 1e-3\nlcn = 3\nlcn_floor = 0.1\n\
                [[stages]]\nmaps = 4\nfield = 3\npool = 2\nepsilon = 1e-3\nlcn = 3\nlcn_floor = 0.1\n\
                [training]\noptimiser = \"momentum\"\nsteps = [1, 1]\n";
    RunConfig::parse(text, &[]).unwrap()
}

/// Keeps gradients of encoders, `[stage][weights in the order of files]`.
struct Keep<'a> {
    network: &'a Network,
    gradients: Mutex<Vec<(At, usize, Vec<f32>)>>,
}

impl WeightUpdate for Keep<'_> {
    fn update(&self, at: At, maps: usize, _: &mut [f32], _: &mut [f32], gradient: &mut [f32]) {
        self.gradients.lock().unwrap().push((at, maps, gradient.to_vec()));
    }
}

impl Keep<'_> {
    /// The gradient of an encoder's weight `[row, column, map, channel, dy, dx]`.
    fn of(&self, stage: usize, [row, col, map, channel, dy, dx]: [usize; 6]) -> f32 {
        let whole: &Stage = &self.network.stages[stage];
        let tap = (dy * whole.shape.field + dx) * whole.shape.input.channels + channel;
        let gradients = self.gradients.lock().unwrap();
        let mut found =
            gradients.iter().filter(|(at, ..)| at.stage == stage).filter_map(|(at, padded, gradient)| {
                let place = &whole.blocks.all()[at.block].place;
                let here =
                    place.row == row && place.cols.start + at.position == col && place.maps.contains(&map);
                here.then(|| gradient[tap * padded + map - place.maps.start])
            });
        let gradient = found.next().expect("a gradient of each weight");
        assert!(found.next().is_none(), "one gradient of each weight");
        gradient
    }
}

/// Log-loss of a head's weights for maps `[channel, row, column]` of one picture.
fn plain_loss(head: &Head, values: &[Vec<f64>], maps: &Array3<f64>, class: usize) -> f64 {
    let (channels, rows, cols) = maps.dim();
    let at = |parameter: usize, input: usize, output: usize| {
        values[parameter][input * head.parameters[parameter].padded() + output]
    };
    let x = |p: usize, c: usize| {
        let (mean, inverse) = head.standard[c];
        (maps[[c, p / cols, p % cols]] - f64::from(mean)) * f64::from(inverse)
    };
    let positions = rows * cols;
    let weights: Vec<f64> = match head.kind {
        Kind::Full => Vec::new(),
        Kind::Mean => vec![1.0 / positions as f64; positions],
        Kind::Attention(hidden) => {
            let energy = |p: usize| -> f64 {
                let unit = |k: usize| {
                    let sum: f64 = (0..channels).map(|c| at(HIDDEN, c, k) * x(p, c)).sum();
                    at(QUERY, 0, k) * (sum + at(HIDDEN_BIAS, 0, k)).tanh()
                };
                (0..hidden).map(unit).sum()
            };
            let all: Vec<f64> = (0..positions).map(|p| energy(p).exp()).collect();
            let sum: f64 = all.iter().sum();
            all.into_iter().map(|e| e / sum).collect()
        }
    };
    let number = |k: usize| -> f64 {
        let seen: f64 = match head.kind {
            Kind::Full => {
                (0..positions * channels).map(|f| at(CLASSES, f, k) * x(f / channels, f % channels)).sum()
            }
            _ => (0..channels)
                .map(|c| at(CLASSES, c, k) * (0..positions).map(|p| weights[p] * x(p, c)).sum::<f64>())
                .sum(),
        };
        seen + at(BIAS, 0, k)
    };
    let numbers: Vec<f64> = (0..head.classes).map(number).collect();
    numbers.iter().map(|x| x.exp()).sum::<f64>().ln() - numbers[class]
}

fn values(head: &Head) -> Vec<Vec<f64>> {
    head.parameters.iter().map(|p| p.values.iter().map(|&x| f64::from(x)).collect()).collect()
}

#[test]
fn gradients_of_fine_tuning_and_attention_meet_central_differences() {
    let (config, classes) = (config(), [1, 0, 2, 1, 2]);
    let mut rng = rng::stream(3, "head", 0);
    let mut normal = || -> f32 { StandardNormal.sample(&mut rng) };
    let pictures = Array4::from_shape_simple_fn((5, 3, 12, 10), &mut normal);
    for kind in KINDS {
        for (stage, of) in [(1, geometry::Kind::Y), (1, geometry::Kind::H), (0, geometry::Kind::Y)] {
            let network = Network::new(&config, 4).unwrap();
            let shape = network.shape(stage, of);
            let standard = (0..shape.channels).map(|c| (0.1 * c as f32, 1.0 + 0.2 * c as f32)).collect();
            let mut head = Head::new(kind, shape, 3, standard, 7);
            for parameter in &mut head.parameters {
                let (padded, outputs) = (parameter.padded(), parameter.outputs);
                for row in parameter.values.chunks_exact_mut(padded) {
                    row[..outputs].iter_mut().for_each(|x| *x += 0.5 * normal());
                }
            }
            let mut work = network.workspace(5);
            work.load(pictures.view());
            network.forward_to(&mut work, stage, of);
            let (keep, lanes) = (Keep { network: &network, gradients: Mutex::default() }, work.lanes);
            head.forward(work.maps(stage, of), lanes);
            let mut loss = Loss::default();
            network.learn_by(&mut work, (0, stage, of), &keep, |work| {
                loss = head.gradient(&classes, lanes, Some(work.seeds(stage, of)));
            });

            let encoders: Vec<Array6<f64>> =
                network.stages.iter().map(|s| s.weights(Weights::Encoder).mapv(f64::from)).collect();
            let total = |encoders: &[Array6<f64>], values: &[Vec<f64>]| {
                let weights = encoders.iter().map(|w| (w.clone(), w.clone())).collect();
                let plain = PlainNetwork::new(&config, weights);
                let of_picture = |(picture, &class): (ndarray::ArrayView3<f32>, &usize)| {
                    let acts = plain.forward(picture.mapv(f64::from).view());
                    let maps = if of == geometry::Kind::H { &acts[stage].h } else { &acts[stage].y };
                    plain_loss(&head, values, maps, class) / 5.0
                };
                pictures.axis_iter(Axis(0)).zip(&classes).map(of_picture).sum::<f64>()
            };
            let own = values(&head);
            let plain = total(&encoders, &own);
            assert!((loss.value - plain).abs() < 1e-5, "{kind:?}: {}, not {plain}", loss.value);
            let step = 1e-5;
            let mut checked = 0;
            for (number, parameter) in head.parameters.iter().enumerate() {
                let padded = parameter.padded();
                let real = (0..parameter.values.len()).filter(|at| at % padded < parameter.outputs);
                for at in real.step_by(parameter.inputs.div_ceil(9)) {
                    let beside = |by: f64| {
                        let mut values = own.clone();
                        values[number][at] += by;
                        total(&encoders, &values)
                    };
                    let wanted = (beside(step) - beside(-step)) / (2.0 * step);
                    let got = f64::from(parameter.gradient[at]);
                    let bound = 1e-5 + 1e-4 * wanted.abs();
                    assert!(
                        (got - wanted).abs() < bound,
                        "{kind:?} {}[{at}]: {got}, not {wanted}",
                        parameter.name
                    );
                    checked += 1;
                }
            }
            for stage in 0..=stage {
                let all = encoders[stage].len();
                let sizes: [usize; 6] = encoders[stage].shape().try_into().unwrap();
                for at in (0..all).step_by(all / 23) {
                    let mut rest = at;
                    let mut place = sizes.map(|_| 0);
                    for (place, size) in place.iter_mut().zip(sizes).rev() {
                        (*place, rest) = (rest % size, rest / size);
                    }
                    let beside = |by: f64| {
                        let mut encoders = encoders.clone();
                        encoders[stage][place] += by;
                        total(&encoders, &own)
                    };
                    let wanted = (beside(step) - beside(-step)) / (2.0 * step);
                    let got = f64::from(keep.of(stage, place));
                    let bound = 1e-5 + 1e-4 * wanted.abs();
                    assert!(
                        (got - wanted).abs() < bound,
                        "{kind:?} stage {stage} {place:?}: {got}, not {wanted}"
                    );
                    checked += 1;
                }
            }
            assert!(checked > 30, "only {checked} weights");
        }
    }
}

/// The loss of powers of errors, and its gradient with respect to the classes' weights, against central differences.
#[test]
fn gradients_of_powers_of_errors_meet_central_differences() {
    let shape = MapShape { channels: 2, rows: 2, cols: 1 };
    let mut rng = rng::stream(5, "powers", 0);
    let mut normal = || -> f32 { StandardNormal.sample(&mut rng) };
    let lanes = lanes_for(3);
    let mut maps = vec![0.0; shape.len() * lanes];
    maps.chunks_exact_mut(lanes).for_each(|lanes| lanes[..3].iter_mut().for_each(|x| *x = normal()));
    let class = [1, 0, 1];
    for power in [2.0, 3.0, 4.0] {
        let mut head = Head::new(Kind::Full, shape, 2, vec![(0.1, 0.9); 2], 0);
        head.criterion = Criterion::Power(power);
        head.draw(1.0, 6);
        head.forward(&maps, lanes);
        let loss = head.gradient(&class, lanes, None);
        let plain = |values: &[f32]| -> f64 {
            let padded = head.parameters[CLASSES].padded();
            let of = |lane: usize, c: usize| {
                let seen = (0..shape.len()).map(|input| {
                    let x = (f64::from(maps[input * lanes + lane]) - f64::from(0.1f32)) * f64::from(0.9f32);
                    x * f64::from(values[input * padded + c])
                });
                let error: f64 = seen.sum::<f64>() - if c == class[lane] { 1.0 } else { 0.0 };
                error.abs().powf(power) / power
            };
            (0..3).map(|lane| of(lane, 0) + of(lane, 1)).sum::<f64>() / 3.0
        };
        let own = head.parameters[CLASSES].values.clone();
        assert!((loss.value - plain(&own)).abs() < 1e-5, "{}, not {}", loss.value, plain(&own));
        let padded = head.parameters[CLASSES].padded();
        for at in (0..shape.len()).flat_map(|input| [input * padded, input * padded + 1]) {
            let beside = |by: f32| {
                let mut values = own.clone();
                values[at] += by;
                plain(&values)
            };
            let (wanted, got) =
                ((beside(1e-2) - beside(-1e-2)) / 2e-2, head.parameters[CLASSES].gradient[at]);
            assert!(
                (f64::from(got) - wanted).abs() < 1e-3 + 1e-3 * wanted.abs(),
                "p = {power}: {got}, not {wanted}"
            );
        }
    }
}

/// Noise with a bright bar at one place, upright or lying: the class, and nothing else tells it.
fn planted(count: usize, seed: u64) -> (Dataset, Vec<usize>, Vec<(usize, usize)>) {
    let shape = MapShape { channels: 1, rows: SIDE, cols: SIDE };
    let mut rng = rng::stream(seed, "planted", 0);
    let (mut pixels, mut class, mut places) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..count {
        let mut picture: Vec<u8> = (0..SIDE * SIDE).map(|_| rng.random_range(108..148)).collect();
        let (row, col) = (rng.random_range(0..=SIDE - BAR), rng.random_range(0..=SIDE - BAR));
        for (y, x) in (0..BAR).flat_map(|y| (0..BAR).map(move |x| (y, x))) {
            let across = if number % 2 == 0 { x } else { y };
            picture[(row + y) * SIDE + col + x] = if across.abs_diff(BAR / 2) <= 1 { 255 } else { 0 };
        }
        class.push(number % 2);
        places.push((row, col));
        pixels.extend(picture);
    }
    (Dataset::from_pixels(shape, pixels), class, places)
}

/// A network of one stage that sees such pictures.
fn seer(maps: usize) -> (Network, Whitening) {
    let text = format!(
        "[input]\nheight = {SIDE}\nwidth = {SIDE}\npreprocess = \"contrast\"\n\
         [[stages]]\nmaps = {maps}\nfield = 5\npool = 2\nlcn = 0\n[training]\noptimiser = \"momentum\"\nsteps = [1]\n"
    );
    let network = Network::new(&RunConfig::parse(&text, &[]).unwrap(), 4).unwrap();
    let whitening = Whitening { shape: network.input, transform: Transform::Contrast { scale: 1.0 } };
    (network, whitening)
}

#[test]
fn in_the_first_steps_only_the_head_learns() {
    let (network, whitening) = seer(8);
    let (dataset, class, _) = planted(40, 1);
    let group = Group { stage: 0, kind: geometry::Kind::H };
    let settings = Settings { group, steps: 6, batch: 16, head_first: 4, ..Settings::default() };
    let all: Vec<usize> = (0..dataset.len()).collect();
    let lesson = Lesson::new(&dataset, &all, (&class, 2), &settings).unwrap();
    let mut tuner = Tuner::new(&network, &whitening, &lesson, &settings);
    let encoder = || network.stages[0].weights(Weights::Encoder);
    let before = encoder();
    for step in 0..settings.steps {
        let head = tuner.head.parameters[0].values.clone();
        tuner.step().unwrap();
        assert!(tuner.head.parameters[0].values != head, "step {step}");
        assert_eq!(encoder() == before, step < 4, "step {step}");
    }
    let still = Settings { network_rate: 0.0, ..settings.clone() };
    let of = |settings: &Settings| flops(&network, &whitening, &tuner.head, settings);
    let all = all_flops(&network, &whitening, &tuner.head, &settings);
    assert!(of(&still) < of(&settings) && all == 16 * (4 * of(&still) + 2 * of(&settings)));
}

const SIDE: usize = 28;
const BAR: usize = 7;

#[test]
fn attention_lies_on_the_one_place_that_tells_the_class() {
    let (network, whitening) = seer(16);
    let (dataset, class, _) = planted(2000, 1);
    let group = Group { stage: 0, kind: geometry::Kind::H };
    let settings = Settings {
        head: Kind::Attention(16),
        group,
        steps: 400,
        rate: 0.8,
        network_rate: 0.01,
        shift: 0,
        flip: false,
        ..Settings::default()
    };
    let all: Vec<usize> = (0..dataset.len()).collect();
    let lesson = Lesson::new(&dataset, &all, (&class, 2), &settings).unwrap();
    let (stop, told) = (AtomicUsize::new(0), |line: &Line| eprintln!("{line:?}"));
    let tuned = tune(&network, &whitening, &lesson, &settings, (&stop, told));
    let mut head = tuned.unwrap().head;
    let (test, class, places) = planted(96, 2);
    let (inputs, mut work) = (Inputs::new(&test, &whitening, 0), network.workspace(96));
    inputs.load(&all[..96], &mut work);
    network.forward_to(&mut work, 0, group.kind);
    head.forward(work.maps(0, group.kind), work.lanes);
    let (shape, lanes) = (head.shape, work.lanes);
    let weights = head.weights_of_positions().to_vec();
    // A pooled unit sees 6 pixels each way from its own row and column on.
    let sees = |at: usize, from: usize| (from.saturating_sub(5)..from + BAR).contains(&at);
    let on_it = |lane: usize| -> f32 {
        let (row, col) = places[lane];
        let seeing =
            (0..shape.rows * shape.cols).filter(|p| sees(p / shape.cols, row) && sees(p % shape.cols, col));
        seeing.map(|p| weights[p * lanes + lane]).sum()
    };
    let shares: Vec<f32> = (0..96).map(on_it).collect();
    let mean = shares.iter().sum::<f32>() / 96.0;
    let loss = head.gradient(&class, lanes, None);
    assert!(loss.accuracy > 0.95, "{loss:?}");
    assert!(mean >= 0.9, "{mean} of the weight lies on the bar, by picture {shares:?}");
}
