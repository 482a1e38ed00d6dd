//! Gradients against central differences of the plain f64 definition, in every mode.

use ndarray::{Array3, Array4, Array6, Axis};
use ndarray_rand::rand_distr::{Distribution, StandardNormal};
use rand::Rng;

use striate::config::{Objective, Precision, RunConfig};
use striate::geometry::Kind;
use striate::kernels::Rows;
use striate::network::plain::PlainNetwork;
use striate::network::{At, Network, Unit, WeightUpdate, Weights};
use striate::rng;
use striate::training::optimiser::Step;

/// Two stages with everything that gradients can trip over: strides, an uncovered row, coverage, no normalisation in the
/// first stage's place of the second config, borders counted as zero; in the third so many maps at so few positions that blocks
/// of weights hold some of the maps of one.
fn configs() -> Vec<RunConfig> {
    let text = |stage1: &str, stage2: &str| {
        format!(
            "[input]\nchannels = 3\nheight = 12\nwidth = 10\npreprocess = \"none\"\n\
             [[stages]]\nmaps = 3\nfield = 4\nstride = 2\npool = 2\nepsilon = 1e-3\n{stage1}\n\
             [[stages]]\nmaps = 2\nfield = 2\npool = 2\nepsilon = 1e-3\n{stage2}\n\
             [training]\nobjective = \"joint-full\"\nschedule = \"together\"\nsteps = [1]\n"
        )
    };
    let texts = [
        text("lcn = 3\nlcn_floor = 0.1\nreconstruction = \"coverage\"", "lcn = 3"),
        text("lcn = 0", "lcn = 5\nlcn_border = \"zero\"\nlcn_floor = 0.3"),
    ];
    let mut configs: Vec<_> = texts.iter().map(|text| RunConfig::parse(text, &[]).unwrap()).collect();
    let mut many = configs[0].clone();
    many.stages[1].maps = 21;
    let mut tied = many.clone();
    tied.stages.iter_mut().for_each(|stage| stage.tied = true);
    configs.extend([many, tied]);
    configs
}

struct KeepGradient;

impl WeightUpdate for KeepGradient {
    fn update(&self, _: At, _: usize, _: &mut [f32], sums: &mut [f32], gradient: &mut [f32]) {
        sums.copy_from_slice(gradient);
    }
}

type Pair = (Array6<f64>, Array6<f64>);

fn weights(network: &Network) -> Vec<Pair> {
    let of = |stage: &striate::network::Stage, which| stage.weights(which).mapv(f64::from);
    network.stages.iter().map(|stage| (of(stage, Weights::Encoder), of(stage, Weights::Decoder))).collect()
}

/// The objective of all stages, with the inputs that the mode treats as constants taken from `frozen`.
fn objective(
    config: &RunConfig,
    weights: &[Pair],
    pictures: &Array4<f64>,
    mode: Objective,
    frozen: &[Vec<Array3<f64>>],
) -> f64 {
    let plain = PlainNetwork::new(config, weights.to_vec());
    let each = pictures.outer_iter().zip(frozen).map(|(picture, constant)| {
        let acts = plain.forward(picture);
        let mut total = 0.0;
        for (index, stage) in plain.stages.iter().enumerate() {
            let live = if index == 0 { picture.to_owned() } else { acts[index - 1].y.clone() };
            // In `local` mode the whole stage sees a constant, so its responses come from that.
            let (a, h) = match mode {
                Objective::Local => stage.respond(constant[index].view()),
                _ => (acts[index].a.clone(), acts[index].h.clone()),
            };
            let target = if mode == Objective::JointFull { live } else { constant[index].clone() };
            let residual = stage.decode(&a) - target;
            total += residual.mapv(|r| r * r).sum() + config.stages[index].sparsity_weight * h.sum();
        }
        total
    });
    each.sum::<f64>() / pictures.len_of(Axis(0)) as f64
}

#[test]
fn weight_gradients_meet_central_differences_in_every_mode() {
    for (number, config) in configs().iter().enumerate() {
        let mut rng = rng::stream(5, "gradients", number as u64);
        let network = Network::new(config, 3).unwrap();
        let pictures = Array4::from_shape_simple_fn((3, 3, 12, 10), || StandardNormal.sample(&mut rng));
        let pictures: Array4<f64> = pictures.mapv(|x: f32| f64::from(x));
        let base = weights(&network);
        let plain = PlainNetwork::new(config, base.clone());
        let frozen: Vec<Vec<Array3<f64>>> = pictures
            .outer_iter()
            .map(|picture| {
                let acts = plain.forward(picture);
                let inputs = acts[..acts.len() - 1].iter().map(|acts| acts.y.clone());
                std::iter::once(picture.to_owned()).chain(inputs).collect()
            })
            .collect();
        let mut work = network.workspace(3);
        work.load(pictures.mapv(|x| x as f32).view());
        for mode in Objective::ALL {
            network.learn(&mut work, 0..2, mode, &KeepGradient);
            for stage in 0..2 {
                for &(name, sums) in network.stages[stage].sum_arrays() {
                    let gradient = network.stages[stage].weights(sums).mapv(f64::from);
                    let direction = gradient.mapv(|_| rng.random_range(-1.0..1.0));
                    let moved = |step: f64| {
                        let mut moved = base.clone();
                        let (encoder, decoder) = &mut moved[stage];
                        let both = network.stages[stage].is_tied();
                        let arrays = [
                            (both || name == "W1").then_some(encoder),
                            (both || name == "W2").then_some(decoder),
                        ];
                        arrays.into_iter().flatten().for_each(|array| array.scaled_add(step, &direction));
                        objective(config, &moved, &pictures, mode, &frozen)
                    };
                    let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                    let analytic = (&gradient * &direction).sum();
                    let scale = gradient.mapv(|g| g * g).sum().sqrt();
                    assert!(
                        (difference - analytic).abs() < 1e-4 * scale,
                        "config {number}, {}, stage {stage}, {name}: {analytic} instead of {difference}",
                        mode.name()
                    );
                }
            }
        }
    }
}

#[test]
fn threads_that_share_the_rows_of_a_replica_change_no_bit() {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let precisions = [Precision::F32, Precision::Bf16];
    for (number, config) in precisions
        .iter()
        .flat_map(|&precision| {
            configs().into_iter().map(move |mut config| {
                config.training.precision = precision;
                config
            })
        })
        .enumerate()
    {
        let mut rng = rng::stream(7, "rows", number as u64);
        let pictures = Array4::from_shape_simple_fn((20, 3, 12, 10), || StandardNormal.sample(&mut rng));
        for mode in Objective::ALL {
            let learn = |rows: Rows| {
                let network = Network::new(&config, 3).unwrap();
                let mut work = network.workspace(20).with_rows(rows);
                work.load(pictures.view());
                let step = Step::new(network.cpu, &config.training, 1.0, 0);
                let losses: Vec<_> =
                    (0..3).map(|_| network.learn(&mut work, 0..2, mode, &step).to_vec()).collect();
                network.forward(&mut work, 1);
                network.input_gradient(&mut work, 1, Kind::Y, &[Unit { map: 1, row: 0, col: 0 }; 20]);
                let gradient = work.unpack(&work.input_gradient, network.input);
                (losses, weights(&network), gradient)
            };
            let alone = learn(Rows::InTurn);
            assert!(alone.2.iter().any(|x| *x != 0.0));
            assert!(threads.install(|| learn(Rows::Shared)) == alone, "config {number}, {}", mode.name());
        }
    }
}

#[test]
fn unit_gradients_meet_central_differences() {
    for (number, config) in configs().iter().enumerate() {
        let mut rng = rng::stream(6, "unit gradients", number as u64);
        let network = Network::new(config, 4).unwrap();
        let plain = PlainNetwork::new(config, weights(&network));
        let picture = Array4::from_shape_simple_fn((1, 3, 12, 10), || StandardNormal.sample(&mut rng));
        let picture: Array4<f64> = picture.mapv(|x: f32| f64::from(x));
        let unit = Unit { map: 1, row: 0, col: 0 };
        let mut work = network.workspace(1);
        work.load(picture.mapv(|x| x as f32).view());
        for kind in [Kind::H, Kind::Y] {
            network.forward(&mut work, 1);
            network.input_gradient(&mut work, 1, kind, &[unit]);
            let gradient = work.unpack(&work.input_gradient, network.input).mapv(f64::from);
            let direction = gradient.mapv(|_| rng.random_range(-1.0..1.0));
            let value = |step: f64| {
                let moved = &picture + &(&direction * step);
                plain.unit_gradient(moved.index_axis(Axis(0), 0), kind, unit).0
            };
            let difference = (value(1e-5) - value(-1e-5)) / 2e-5;
            let analytic = (&gradient * &direction).sum();
            let scale = gradient.mapv(|g| g * g).sum().sqrt();
            assert!(
                (difference - analytic).abs() < 1e-4 * scale,
                "{kind:?}: {analytic} instead of {difference}"
            );
        }
    }
}
