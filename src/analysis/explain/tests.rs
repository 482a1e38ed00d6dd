use rand::Rng;

use super::*;
use crate::network::Weights;
use crate::network::preprocess::{Transform, Whitening};
use crate::rng;

fn checkpoint(text: &str) -> Checkpoint {
    let config = RunConfig::parse(&format!("[input]\nheight = 12\nwidth = 12\n{text}"), &[]).unwrap();
    let network = Network::new(&config, 3).unwrap();
    let whitening = Whitening { shape: network.input, transform: Transform::Contrast { scale: 1.0 } };
    Checkpoint { config, network, whitening }
}

/// Two stages with everything that bends: pooling, normalisation with a floor, borders.
fn two_stages() -> Checkpoint {
    checkpoint(
        "channels = 3\npreprocess = \"contrast\"\n[[stages]]\nmaps = 3\nfield = 5\npool = 3\nlcn = 3\nepsilon = 1e-4\n[[stages]]\nmaps = 4\n\
         field = 4\npool = 2\nlcn = 3\nepsilon = 1e-4\n[training]\nsteps = [1, 1]\n",
    )
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = rng::stream(seed, "explain", 0);
    (0..len).map(|_| rng.random()).collect()
}

const PLAIN: Settings = Settings { baseline: Baseline::Zero, occlude_px: None, sanity: false, seed: 0 };

#[test]
fn of_a_linear_unit_every_place_adds_its_weight_times_its_value() {
    let checkpoint = checkpoint(
        "preprocess = \"contrast\"\n[[stages]]\nmaps = 2\nfield = 5\npool = 2\n[training]\nsteps = [1]\n",
    );
    let pixels = noise(1, 144);
    let unit = Unit { map: 1, row: 2, col: 4 };
    let probe = Probe { stage: 0, kind: Kind::A, unit };
    let found = Explainer::new(&checkpoint, PLAIN).unwrap().explain(&pixels, probe).unwrap();
    let picture = checkpoint.whitening.apply(&pixels);
    let filter = checkpoint.network.stages[0].filter(Weights::Encoder, unit);
    let (mut sum, mut seen) = (0.0, 0);
    for (at, &value) in picture.iter().enumerate() {
        let (row, col) = (at / 12, at % 12);
        let inside = (2..7).contains(&row) && (4..9).contains(&col);
        let want = if inside { filter[(0, row - 2, col - 4)] * value } else { 0.0 };
        for got in [found.gradient_input.values[at], found.integrated.values[at]] {
            assert!((got - want).abs() < 1e-5, "{row} {col}: {got}, not {want}");
        }
        sum += f64::from(want);
        seen += usize::from(inside);
    }
    assert_eq!(seen, 25);
    assert!((found.value - sum).abs() < 1e-5 && found.baseline_value == 0.0, "{} {sum}", found.value);
    assert!(found.completeness.gap < 1e-5, "{:?}", found.completeness);
}

#[test]
fn parts_add_up_to_the_answer_for_every_kind_of_unit_and_every_stage_below() {
    let checkpoint = two_stages();
    let network = &checkpoint.network;
    let mut checked = 0;
    for baseline in [Baseline::Zero, Baseline::Grey] {
        let explainer = Explainer::new(&checkpoint, Settings { baseline, ..PLAIN }).unwrap();
        for (stage, kind) in [(0, Kind::H), (0, Kind::Y), (1, Kind::A), (1, Kind::H), (1, Kind::Y)] {
            let units = network.units(stage, kind);
            for (seed, &unit) in (0..).zip(units.iter().step_by(units.len() / 5)) {
                let pixels = noise(seed, network.input.len());
                let found = explainer.explain(&pixels, Probe { stage, kind, unit }).unwrap();
                let of_stages = found.below.iter().map(|through| through.completeness);
                for Completeness { sum, difference, gap, .. } in of_stages.chain([found.completeness]) {
                    assert!(gap < 0.01, "{stage} {kind} {unit:?}: {sum} of {difference}");
                    assert!(
                        (difference - (found.value - found.baseline_value)).abs()
                            < 1e-5 * (1.0 + difference.abs())
                    );
                    checked += 1;
                }
                let total: f32 = found.integrated.values.iter().sum();
                assert!((f64::from(total) - found.completeness.sum).abs() < 1e-4, "{total}");
                for through in &found.below {
                    let maps: f64 = through.maps.iter().sum();
                    let positions: f32 = through.positions.values.iter().sum();
                    assert!((maps - through.completeness.sum).abs() < 1e-6, "{maps}");
                    assert!((f64::from(positions) - maps).abs() < 1e-4, "{positions}");
                    assert!(through.raise.windows(2).all(|pair| pair[0].adds >= pair[1].adds));
                }
            }
        }
    }
    assert!(checked > 60, "only {checked}");
}

/// One filter at one place of the first stage, all others 0, and a second stage that adds up what the first gives.
#[test]
fn a_planted_filter_is_where_every_explanation_points_and_random_weights_point_elsewhere() {
    let checkpoint = checkpoint(
        "preprocess = \"contrast\"\n[[stages]]\nmaps = 2\nfield = 4\npool = 1\nlcn = 0\n[[stages]]\nmaps = 1\nfield = 9\n\
         pool = 1\nlcn = 0\n[training]\nsteps = [1, 1]\n",
    );
    let network = &checkpoint.network;
    // Of 9x9 positions the one at row 2, column 5; the first map.
    let (row, col) = (2, 5);
    for position_row in 0..9 {
        let filters = (0..9 * 2 * 16)
            .map(|at| if position_row == row && at / 32 == col && at / 16 % 2 == 0 { 0.5 } else { 0.0 });
        network.stages[0].set_weights(Weights::Encoder, position_row, filters);
    }
    network.stages[1].set_weights(Weights::Encoder, 0, std::iter::repeat_n(1.0, 162));
    let mut pixels = noise(5, 144);
    (row..row + 4).flat_map(|y| (col..col + 4).map(move |x| y * 12 + x)).for_each(|at| pixels[at] = 255);
    let settings = Settings { occlude_px: Some(3), sanity: true, ..PLAIN };
    let probe = Probe { stage: 1, kind: Kind::H, unit: Unit { map: 0, row: 0, col: 0 } };
    let found = Explainer::new(&checkpoint, settings).unwrap().explain(&pixels, probe).unwrap();
    let inside = |at: usize| (row..row + 4).contains(&(at / 12)) && (col..col + 4).contains(&(at % 12));
    for map in [&found.gradient_input, &found.integrated] {
        let sum = |wanted: bool| {
            (0..144).filter(|&at| inside(at) == wanted).map(|at| map.values[at].abs()).sum::<f32>()
        };
        assert!(sum(true) > 0.1 && sum(false) < 1e-5 * sum(true), "{} {}", sum(true), sum(false));
    }
    let most =
        (0..144).max_by(|&a, &b| found.occlusion.values[a].total_cmp(&found.occlusion.values[b])).unwrap();
    assert!(inside(most), "row {}, column {}", most / 12, most % 12);
    let through = &found.below[0];
    let best = through.raise[0];
    assert_eq!(best.name, UnitName { stage: 1, unit: Unit { map: 0, row, col } });
    assert!(best.adds > 0.99 * (found.value - found.baseline_value), "{best:?} of {}", found.value);
    // Both stages, the upper alone, the lower alone.
    let stages: Vec<&[usize]> = found.sanity.iter().map(|sanity| &sanity.random_stages[..]).collect();
    assert_eq!(stages, [&[2][..], &[1, 2], &[1]]);
    // With a random second stage the planted filter is still the only one; with a random first stage nothing is as it was.
    assert!(found.sanity[0].correlation_of_sizes > 0.99, "{:?}", found.sanity);
    assert!(found.sanity[1..].iter().all(|sanity| sanity.correlation_of_sizes < 0.5), "{:?}", found.sanity);
}

#[test]
fn a_square_that_does_not_fit_is_refused() {
    for side in [0, 13] {
        let settings = Settings { occlude_px: Some(side), ..PLAIN };
        let error = Explainer::new(&two_stages(), settings).err().unwrap().to_string();
        assert_eq!(error, format!("setting `--occlude` is {side}, expected a whole number from 1 to 12"));
    }
}

#[test]
fn ranks_agree_whatever_the_values_and_ties_share_theirs() {
    assert_eq!(spearman(&[1.0, 2.0, 30.0], &[-5.0, 0.0, 1.0]), 1.0);
    assert_eq!(spearman(&[1.0, 2.0, 3.0], &[9.0, 8.0, -1.0]), -1.0);
    assert_eq!(spearman(&[1.0, 2.0, 3.0], &[4.0, 4.0, 4.0]), 0.0);
    // Ranks -1.5, 0, 0, 1.5 and -1.5, -0.5, 0.5, 1.5: 4.5 / sqrt(4.5 * 5).
    let with_ties = spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 4.0]);
    assert!((with_ties - 4.5 / 22.5f64.sqrt()).abs() < 1e-12, "{with_ties}");
}
