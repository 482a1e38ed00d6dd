//! The kernel against Jacobians that are made weight by weight.

use std::collections::BTreeMap;
use std::sync::Mutex;

use ndarray::{Array4, s};
use ndarray_rand::rand_distr::{Distribution, StandardNormal};
use rand::Rng;

use super::*;
use crate::config::RunConfig;
use crate::dataset::Dataset;
use crate::geometry::Kind;
use crate::network::preprocess::{Transform, Whitening};
use crate::network::{At, WeightUpdate};
use crate::rng;

/// Gradients of encoders, in the order of stage, block and position.
#[derive(Default)]
struct Record(Mutex<BTreeMap<(usize, usize, usize), Vec<f32>>>);

impl WeightUpdate for Record {
    fn update(&self, at: At, _: usize, _: &mut [f32], _: &mut [f32], gradient: &mut [f32]) {
        let before = self.0.lock().unwrap().insert((at.stage, at.block, at.position), gradient.to_vec());
        assert!(before.is_none(), "one gradient of each position");
    }
}

const CLASSES: usize = 3;
const PICTURES: usize = 5;

#[test]
fn the_kernel_meets_explicit_jacobians() {
    let text = "[input]\nchannels = 3\nheight = 12\nwidth = 11\npreprocess = \"contrast\"\n\
                [[stages]]\nmaps = 3\nfield = 4\nstride = 2\npool = 2\nepsilon = 1e-3\nlcn = 3\nlcn_floor = 0.1\n\
                [[stages]]\nmaps = 5\nfield = 2\npool = 2\nepsilon = 1e-3\nlcn = 3\nlcn_floor = 0.1\n\
                [training]\nsteps = [1, 1]\n";
    let config = RunConfig::parse(text, &[]).unwrap();
    let mut rng = rng::stream(2, "tangent", 0);
    let pixels = (0..PICTURES * config.input_shape().len()).map(|_| rng.random::<u8>()).collect();
    let dataset = Dataset::from_pixels(config.input_shape(), pixels);
    let whitening = Whitening { shape: config.input_shape(), transform: Transform::Contrast { scale: 1.0 } };
    let inputs = Inputs::new(&dataset, &whitening, 0);
    let mut normal = || -> f32 { StandardNormal.sample(&mut rng) };
    for head_kind in [HeadKind::Full, HeadKind::Mean] {
        for (stage, kind) in [(1, Kind::Y), (1, Kind::H), (0, Kind::Y)] {
            let network = Network::new(&config, 5).unwrap();
            let shape = network.shape(stage, kind);
            let standard: Vec<(f32, f32)> =
                (0..shape.channels).map(|c| (0.1 * c as f32, 1.0 + 0.2 * c as f32)).collect();
            let mut head = Head::new(head_kind, shape, CLASSES, standard.clone(), 7);
            let padded = head.parameters[0].padded();
            let rows = head.parameters[0].values.chunks_exact_mut(padded);
            rows.for_each(|row| row[..CLASSES].iter_mut().for_each(|x| *x = normal()));
            let rates = Rates { network: 0.03, head: 0.7 };
            let group = Group { stage, kind };
            let kernel = tangent(&network, &mut head, group, &inputs, 3, rates).unwrap();
            assert_eq!((kernel.rows, kernel.cols, kernel.classes), (PICTURES, 3, CLASSES));

            // The square root of each weight's rate times its derivative, of each picture and class.
            let (mut jacobian, mut of_head, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
            for picture in 0..PICTURES {
                let mut work = network.workspace(1);
                for class in 0..CLASSES {
                    inputs.load(&[picture], &mut work);
                    network.forward_to(&mut work, stage, kind);
                    let lanes = work.lanes;
                    numbers.push(head.forward(work.maps(stage, kind), lanes)[class * lanes]);
                    let maps: Array4<f32> = work.values(&network, stage, kind);
                    let positions = shape.rows * shape.cols;
                    let x = |c: usize, p: usize| {
                        let value = maps[[0, c, p / shape.cols, p % shape.cols]];
                        f64::from(value - standard[c].0) * f64::from(standard[c].1)
                    };
                    let seen: Vec<f64> = match head_kind {
                        HeadKind::Full => (0..positions)
                            .flat_map(|p| (0..shape.channels).map(move |c| (c, p)))
                            .map(|(c, p)| x(c, p))
                            .collect(),
                        _ => {
                            let mean = |c| (0..positions).map(|p| x(c, p)).sum::<f64>() / positions as f64;
                            (0..shape.channels).map(mean).collect()
                        }
                    };
                    let record = Record::default();
                    network.learn_by(&mut work, (0, stage, kind), &record, |work| {
                        head.derivative(class, lanes, work.seeds(stage, kind));
                    });
                    let mut row = vec![0.0; (seen.len() + 1) * CLASSES];
                    row[class * (seen.len() + 1)..][..seen.len()].copy_from_slice(&seen);
                    row[class * (seen.len() + 1) + seen.len()] = 1.0;
                    row.iter_mut().for_each(|x| *x *= rates.head.sqrt());
                    of_head.push(row.iter().map(|x| x * x).sum::<f64>());
                    let encoders = record.0.into_inner().unwrap().into_values().flatten();
                    row.extend(encoders.map(|g| f64::from(g) * rates.network.sqrt()));
                    jacobian.push(row);
                }
            }
            let weights = jacobian[0].len();
            let j =
                ndarray::Array2::from_shape_vec((PICTURES * CLASSES, weights), jacobian.concat()).unwrap();
            let wanted = j.dot(&j.slice(s![..3 * CLASSES, ..]).t());
            let largest = wanted.iter().fold(0.0f64, |most, x| most.max(x.abs()));
            for (got, wanted) in kernel.values.iter().zip(&wanted) {
                assert!(
                    (got - wanted).abs() < 1e-5 * largest,
                    "{head_kind:?} {group:?}: {got}, not {wanted}"
                );
            }
            let trace: f64 = (0..3 * CLASSES).map(|at| wanted[[at, at]]).sum();
            let share = of_head[..3 * CLASSES].iter().sum::<f64>() / trace;
            assert!(
                (kernel.head_share - share).abs() < 1e-4,
                "{} of the trace, not {share}",
                kernel.head_share
            );
            assert!(share > 1e-3 && share < 0.999, "both parts count: {share}");
            let off = kernel.numbers.iter().zip(&numbers).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-4, "numbers differ by {off}");
        }
    }
}

#[test]
fn attention_is_refused() {
    let text = "[input]\nheight = 8\nwidth = 8\n[[stages]]\nmaps = 2\nfield = 3\npool = 2\n[training]\nsteps = [1]\n";
    let config = RunConfig::parse(text, &[]).unwrap();
    let network = Network::new(&config, 0).unwrap();
    let group = Group { stage: 0, kind: Kind::Y };
    let shape = network.shape(0, Kind::Y);
    let mut head = Head::new(HeadKind::Attention(2), shape, 2, vec![(0.0, 1.0); shape.channels], 0);
    let dataset = Dataset::from_pixels(config.input_shape(), vec![0; 64]);
    let whitening = Whitening { shape: config.input_shape(), transform: Transform::None };
    let inputs = Inputs::new(&dataset, &whitening, 0);
    let error =
        tangent(&network, &mut head, group, &inputs, 1, Rates { network: 1.0, head: 1.0 }).unwrap_err();
    assert!(error.to_string().contains("`--head` is attention"), "{error}");
}
