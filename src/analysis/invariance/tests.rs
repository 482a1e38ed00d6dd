use super::*;
use crate::analysis::UnitName;
use crate::config::RunConfig;
use crate::dataset::Dataset;
use crate::network::Weights;
use crate::network::preprocess::{Transform, Whitening};
use image::{GrayImage, Luma};

const SHAPE: MapShape = MapShape { channels: 1, rows: 24, cols: 24 };

/// A network with one simple unit that sees all of 24x24 pixels, each with the weight `of(row, col)`.
fn network(of: impl Fn(usize, usize) -> f32) -> Network {
    let config = "[input]\nheight = 24\nwidth = 24\npreprocess = \"none\"\n[[stages]]\nmaps = 1\nfield = 24\npool = 1\n\
                  lcn = 0\n[training]\nsteps = [1]\n";
    let network = Network::new(&RunConfig::parse(config, &[]).unwrap(), 0).unwrap();
    let weights = (0..24).flat_map(|row| (0..24).map(move |col| (row, col))).map(|(row, col)| of(row, col));
    network.stages[0].set_weights(Weights::Encoder, 0, weights.collect::<Vec<_>>().into_iter());
    network
}

/// A bright blob in the middle of a dark picture.
fn blob(number: usize) -> DynamicImage {
    let size = 1.5 + 0.25 * number as f64;
    let level = |x: f64, y: f64| {
        20.0 + 150.0 * (-0.5 * ((x - 11.5).powi(2) + (y - 11.5).powi(2)) / size.powi(2)).exp()
    };
    GrayImage::from_fn(24, 24, |x, y| Luma([level(f64::from(x), f64::from(y)).round() as u8])).into()
}

/// What is left over the changes of three blobs of a unit with these weights; for frames that are even and dark.
fn measure(of: impl Fn(usize, usize) -> f32, transform: Transform) -> Invariance {
    let network = network(of);
    let whitening = Whitening { shape: SHAPE, transform };
    let of_level = |level: u8| vec![level; SHAPE.len()];
    let frames = Dataset::from_pixels(SHAPE, [18, 20, 22, 20].map(of_level).concat());
    let blobs =
        Dataset::from_pixels(SHAPE, (0..3).flat_map(|number| shown(&blob(number), SHAPE, 0)).collect());
    let over = |dataset: &Dataset| {
        let numbers: Vec<usize> = (0..dataset.len()).collect();
        moments(&network, Kind::A, &Inputs::new(dataset, &whitening, usize::MAX), &numbers, |_| ())
    };
    let subjects = most_selective(&network, Kind::A, 4, &over(&frames), &over(&blobs));
    assert_eq!(subjects.len(), 1);
    let screen = Screen { network: &network, whitening: &whitening, last: 0 };
    let pictures = Pictures { count: 3, read: &|number| Ok(blob(number)), edges: Edges::Border, margin: 0 };
    invariance(&screen, Kind::A, &subjects, &pictures, || ()).unwrap()
}

fn left<'a>(found: &'a Invariance, change: &str) -> (&'a Curves, &'a [f64]) {
    let curves = found.curves.iter().find(|curves| curves.change == change).unwrap();
    (curves, curves.units[0].left.as_ref().unwrap())
}

fn middle_row(row: usize, _: usize) -> f32 {
    if row == 11 { 1.0 } else { 0.0 }
}

#[test]
fn the_least_blur_leaves_a_picture_where_it_is() {
    let picture = blob(0);
    let middle = |picture: &DynamicImage| {
        let levels = picture.to_luma8();
        let (mut sum, mut at) = (0.0, [0.0; 2]);
        for (x, y, Luma([level])) in levels.enumerate_pixels() {
            let level = f64::from(*level) - 20.0;
            sum += level;
            at = [at[0] + level * f64::from(x), at[1] + level * f64::from(y)];
        }
        at.map(|at| at / sum)
    };
    for amount in [0.1, 0.5, 1.0, 1.1, 2.0, 5.0] {
        let blurred = Transformation::Blur.apply(&picture, amount, [24.0; 2], Edges::Border);
        let moved = middle(&blurred).into_iter().zip(middle(&picture)).map(|(a, b)| (a - b).abs());
        assert!(moved.fold(0.0, f64::max) < 0.1, "σ of {amount} % of 24 pixels moves it");
        if amount <= 1.0 {
            assert_eq!(blurred.as_bytes(), picture.as_bytes(), "σ of {amount} %");
        }
    }
}

#[test]
fn a_sum_over_a_row_does_not_mind_moving_along_it_and_loses_all_across_it() {
    let found = measure(middle_row, Transform::None);
    let (curves, along) = left(&found, "shift-x");
    assert!(along.iter().all(|left| (left - 1.0).abs() < 0.02), "{along:?}");
    assert_eq!(curves.units[0].half_left, Some([-30.0, 30.0]));
    let (curves, across) = left(&found, "shift-y");
    assert!(across[0] < 0.05 && across[12] < 0.05 && (across[6] - 1.0).abs() < 1e-9, "{across:?}");
    // 5 % of 24 pixels is 1.2: of blobs with σ from 1.5 to 2 more than half is left, at 3.6 pixels less.
    let [low, high] = curves.units[0].half_left.unwrap();
    assert!((-10.0..=-5.0).contains(&low) && (5.0..=10.0).contains(&high), "{low} to {high}");
    // Half a turn brings the row onto the next; a quarter leaves the middle of it only.
    let (_, turned) = left(&found, "rotation");
    assert!((turned[0] - 1.0).abs() < 0.1, "{turned:?}");
}

#[test]
fn the_raw_values_and_quartiles_are_those_of_the_pictures() {
    let found = measure(middle_row, Transform::None);
    let row_sum = |number: usize| -> f64 {
        (0..24).map(|x| f64::from(blob(number).to_luma8().get_pixel(x, 11).0[0]) / 255.0).sum()
    };
    let sums = [0, 1, 2].map(row_sum);
    let (curves, _) = left(&found, "scale");
    let unit = &curves.units[0];
    assert_eq!((curves.pictures, curves.amounts[4], curves.identity), (3, 1.0, 1.0));
    assert!((unit.mean[4] - sums.iter().sum::<f64>() / 3.0).abs() < 1e-4, "{} {sums:?}", unit.mean[4]);
    let expected = [(sums[0] + sums[1]) / 2.0, sums[1], (sums[1] + sums[2]) / 2.0];
    assert!(
        unit.quartiles[4].iter().zip(expected).all(|(q, want)| (q - want).abs() < 1e-4),
        "{:?}",
        unit.quartiles[4]
    );
    // Even frames of 18 to 22: a resting value of 24 times 20.
    let subject = found.subjects[0];
    assert!((subject.frames.mean - 24.0 * 20.0 / 255.0).abs() < 1e-4, "{subject:?}");
    let deviation = 24.0 * 2f64.sqrt() / 255.0;
    assert!((subject.frames.deviation - deviation).abs() < 1e-4, "{subject:?}");
    let selectivity = (subject.pictures.mean - subject.frames.mean) / deviation;
    assert!(
        (subject.selectivity / selectivity - 1.0).abs() < 1e-3 && subject.selectivity > 10.0,
        "{subject:?}"
    );
}

#[test]
fn brightness_and_contrast_matter_only_where_preprocessing_leaves_them() {
    let raw = measure(middle_row, Transform::None);
    let (_, bright) = left(&raw, "brightness");
    let (_, contrast) = left(&raw, "contrast");
    assert!(bright.last().unwrap() > &1.5 && contrast[0] < 0.5, "{bright:?} {contrast:?}");
    // Frames without contrast become 0 there, and so does rest.
    let normal = measure(middle_row, Transform::Contrast { scale: 1.0 });
    let (curves, bright) = left(&normal, "brightness");
    // Brighter up to the end: the blob reaches 170. Darker, the ground is cut off at black.
    let brighter = curves.amounts.iter().zip(bright).filter(|(amount, _)| (0.0..=30.0).contains(*amount));
    assert!(
        brighter.clone().count() == 4 && brighter.clone().all(|(_, left)| (left - 1.0).abs() < 0.03),
        "{bright:?}"
    );
    // Contrast is divided by itself plus a floor of 0.02: of a deviation s, c times it leaves c (s + floor) / (c s + floor).
    let (curves, contrast) = left(&normal, "contrast");
    let deviation = |number: usize| {
        let levels: Vec<f64> =
            blob(number).as_bytes().iter().map(|&level| f64::from(level) / 255.0).collect();
        let mean = levels.iter().sum::<f64>() / 576.0;
        (levels.iter().map(|level| (level - mean).powi(2)).sum::<f64>() / 576.0).sqrt()
    };
    let s = [0, 1, 2].map(deviation).iter().sum::<f64>() / 3.0;
    for (&c, &left) in curves.amounts.iter().zip(contrast).filter(|(c, _)| **c <= 1.0) {
        let expected = c * (s + 0.02) / (c * s + 0.02);
        assert!((left - expected).abs() < 0.04, "{c}: {left}, not {expected}");
    }
}

#[test]
fn hiding_what_a_unit_looks_at_takes_its_response_and_hiding_the_rest_does_not() {
    // A spot on the left: the filter is the difference of the middle and a place where nothing is.
    let spot = |row: usize, col: usize| if row.abs_diff(11) < 3 && col.abs_diff(11) < 3 { 1.0 } else { 0.0 };
    let found = measure(spot, Transform::None);
    let map = found.occlusion[0].as_ref().unwrap();
    assert_eq!((map.len(), found.map_side), (64, 8));
    let at = |row: usize, col: usize| map[row * 8 + col];
    // Corners are far from the spot; grey over it is darker than the blob and brighter than the frames.
    assert!([(0, 0), (0, 7), (7, 0), (7, 7)].iter().all(|&(r, c)| (at(r, c) - 1.0).abs() < 1e-6), "{map:?}");
    assert!((at(3, 3) - 1.0).abs() > 0.05, "{map:?}");
    let (curves, hidden) = left(&found, "occlusion");
    assert!(
        curves.amounts.windows(2).all(|a| a[0] < a[1]) && (hidden[8] - hidden[7]).abs() < 1e-6,
        "{hidden:?}"
    );
}

#[test]
fn a_unit_that_does_not_respond_has_raw_values_only() {
    let found = measure(|row, col| -middle_row(row, col), Transform::None);
    let unit = &found.curves[0].units[0];
    assert!(
        unit.mean[0] < 0.0
            && unit.left.is_none()
            && unit.left_quartiles.is_none()
            && unit.half_left.is_none()
    );
    assert!(found.occlusion[0].is_none() && found.subjects[0].selectivity < 0.0);
}

#[test]
fn turned_heads_give_curves_and_repeat() {
    let network = network(middle_row);
    let whitening = Whitening { shape: SHAPE, transform: Transform::None };
    let screen = Screen { network: &network, whitening: &whitening, last: 0 };
    let rest = Moments { mean: 0.0, deviation: 1.0 };
    let name: UnitName = "1:0:0:0".parse().unwrap();
    let subject = Subject { name, frames: rest, pictures: rest, selectivity: 0.0 };
    let curves = |seed| yaw(&screen, Kind::A, &[subject], 3, 4, seed, || ());
    let found = curves(1);
    assert_eq!((found.amounts.len(), found.amounts[6], found.pictures), (13, 0.0, 3));
    assert_eq!(found.units[0].left.as_ref().unwrap()[6], 1.0);
    assert!(found == curves(1) && found != curves(2));
}

#[test]
fn units_are_named_and_those_that_are_not_there_refused() {
    let network = network(middle_row);
    let name = |text: &str| text.parse::<UnitName>();
    assert_eq!(name("1:2:3:4").unwrap(), UnitName { stage: 1, unit: Unit { map: 2, row: 3, col: 4 } });
    for bad in ["", "1:2:3", "1:2:3:4:5", "a:0:0:0", "1:-1:0:0"] {
        assert!(name(bad).is_err(), "{bad}");
    }
    let error = |text: &str| name(text).unwrap().check(&network, Kind::A).unwrap_err().to_string();
    assert_eq!(error("2:0:0:0"), "setting `--units` is 2:0:0:0, expected a stage from 1 to 1");
    assert!(error("1:0:1:0").contains("a row below 1"), "{}", error("1:0:1:0"));
    assert!(
        error("0:0:0:0").contains("from 1 to 1") && name("1:0:0:0").unwrap().check(&network, Kind::A).is_ok()
    );
}

#[test]
fn quantiles_lie_between_neighbours() {
    assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), 2.0);
    assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
    assert_eq!(quantile(&[7.0], 0.25), 7.0);
    assert_eq!(half_left(&[0.9, 0.4, 0.6, 1.0, 0.5, 0.7], 3, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), [2.0, 5.0]);
}
