use super::*;
use crate::config::RunConfig;
use crate::dataset::Dataset;
use crate::network::preprocess::{Transform, Whitening};
use ndarray::{Array1, Array2, Axis};
use ndarray_rand::rand_distr::{Distribution, StandardNormal};

fn normal(rng: &mut rng::ChaCha8Rng) -> f32 {
    StandardNormal.sample(rng)
}

/// `mean + 5 u p + 2 v q` and noise of 0.01, with `u` and `v` normal, `p` and `q` at right angles.
fn planted(rows: usize, columns: usize) -> (Array2<f32>, [Array1<f64>; 2]) {
    let mut rng = rng::stream(3, "planted", 0);
    let p = Array1::from_shape_fn(columns, |i| if i == 1 { -3.0 } else { 1.0 / (1.0 + i as f64) });
    let mut q = Array1::from_shape_fn(columns, |i| (i as f64).sin());
    q = &q - &(&p * (p.dot(&q) / p.dot(&p)));
    let axes = [p, q].map(|axis| &axis / axis.dot(&axis).sqrt());
    let mut x = Array2::zeros((rows, columns));
    for mut row in x.outer_iter_mut() {
        let (u, v) = (5.0 * normal(&mut rng), 2.0 * normal(&mut rng));
        for (i, x) in row.iter_mut().enumerate() {
            *x = 7.0 + u * axes[0][i] as f32 + v * axes[1][i] as f32 + 0.01 * normal(&mut rng);
        }
    }
    (x, axes)
}

#[test]
fn the_components_of_planted_data_are_the_planted_axes() {
    // By the columns' covariance, and by the rows' products.
    for (rows, columns) in [(400, 30), (150, 600)] {
        let (x, axes) = planted(rows, columns);
        let found = pca(x.view(), 10);
        assert_eq!((found.axes.dim(), found.scores.dim()), ((10, columns), (rows, 10)));
        for (number, axis) in axes.iter().enumerate() {
            let cosine = found.axes.row(number).dot(axis);
            assert!(cosine.abs() > 0.98, "{rows}x{columns}, axis {number}: {cosine}");
        }
        // The part of the first axis in the plane of both does not depend on how their samples are correlated.
        let plane = (0..2).map(|n| found.axes.row(0).dot(&axes[n]).powi(2)).sum::<f64>();
        assert!(plane > 0.9999, "{plane}");
        let two: f64 = found.explained[..2].iter().sum();
        let noise = 1e-4 * columns as f64;
        assert!((two - (1.0 - noise / (29.0 + noise))).abs() < 2e-3, "{two}");
        assert!(found.explained.windows(2).all(|pair| pair[0] >= pair[1]));
        assert!(found.mean.iter().all(|mean| (mean - 7.0).abs() < 1.5));
        for (number, axis) in found.axes.outer_iter().enumerate() {
            let largest =
                axis.iter().copied().fold(0.0, |most: f64, v| if v.abs() > most.abs() { v } else { most });
            assert!(largest > 0.0 && (axis.dot(&axis) - 1.0).abs() < 1e-9, "axis {number}");
            let variance = found.scores.column(number).mapv(|s| s * s).mean().unwrap();
            let all = (&x.mapv(f64::from) - &found.mean).mapv(|x| x * x).sum() / rows as f64;
            assert!((variance / all - found.explained[number]).abs() < 1e-9);
        }
    }
}

#[test]
fn there_are_no_more_components_than_directions() {
    let line = Array2::from_shape_fn((9, 4), |(row, column)| (row * (column + 1)) as f32);
    let found = pca(line.view(), 50);
    assert_eq!((found.axes.nrows(), found.explained.len()), (1, 1));
    assert!((found.explained[0] - 1.0).abs() < 1e-12);
    let point = pca(Array2::ones((5, 3)).view(), 50);
    assert_eq!((point.axes.dim(), point.scores.dim()), ((0, 3), (5, 0)));
    assert_eq!(first_two(point.scores.view()), [[0.0; 2]; 5]);
}

/// Two groups of points far from each other.
fn groups(each: usize) -> Array2<f64> {
    let mut rng = rng::stream(4, "groups", 0);
    Array2::from_shape_fn((2 * each, 6), |(row, column)| {
        let middle = if row < each && column == 0 { 20.0 } else { 0.0 };
        middle + f64::from(normal(&mut rng))
    })
}

/// Whether a line divides the first half of the points from the second: that in the middle between their means.
fn divided(points: &[[f64; 2]]) -> bool {
    let half = points.len() / 2;
    let mean = |points: &[[f64; 2]]| {
        [0, 1].map(|axis| points.iter().map(|point| point[axis]).sum::<f64>() / points.len() as f64)
    };
    let (a, b) = (mean(&points[..half]), mean(&points[half..]));
    let side = |point: &[f64; 2]| {
        (0..2).map(|axis| (point[axis] - 0.5 * (a[axis] + b[axis])) * (a[axis] - b[axis])).sum::<f64>()
    };
    points[..half].iter().all(|point| side(point) > 0.0)
        && points[half..].iter().all(|point| side(point) < 0.0)
}

#[test]
fn t_sne_keeps_groups_apart_and_repeats_on_any_number_of_threads() {
    let points = groups(50);
    let on = |threads, seed| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| tsne(points.view(), 12.0, seed, &Progress::none()).unwrap())
    };
    let (places, divergence) = on(1, 5);
    assert!(divided(&places) && divergence > 0.0 && divergence < 1.5, "{divergence} {places:?}");
    assert!((places.clone(), divergence) == on(4, 5));
    assert_ne!(places, on(1, 6).0);
}

#[test]
fn points_that_are_the_same_or_in_a_line_have_places() {
    let copies = Array2::from_shape_fn((40, 3), |(row, _)| f64::from(row as u32 / 20));
    let line = Array2::from_shape_fn((40, 1), |(row, _)| row as f64 - 19.5);
    for points in [copies, line, Array2::zeros((40, 0))] {
        let (places, _) = tsne(points.view(), 5.0, 0, &Progress::none()).unwrap();
        assert!(places.iter().flatten().all(|x| x.is_finite()), "{places:?}");
        let spread = |axis: usize| places.iter().map(|place| place[axis].abs()).fold(0.0, f64::max);
        assert!(spread(0) > 1e-9 && spread(1) > 1e-9, "{places:?}");
    }
}

#[test]
fn places_fill_the_unit_square_in_the_longer_direction() {
    let placed = in_unit_square(&[[-2.0, 1.0], [2.0, 2.0], [0.0, 3.0]]);
    assert_eq!(placed, [[0.0, 0.25], [1.0, 0.5], [0.5, 0.75]]);
    assert_eq!(in_unit_square(&[[3.0, 3.0]; 2]), [[0.5; 2]; 2]);
}

#[test]
fn frames_are_drawn_evenly_and_by_the_seed() {
    let drawn = sample(1000, 100, 1);
    assert!(drawn.iter().enumerate().all(|(part, frame)| frame / 10 == part), "{drawn:?}");
    assert_eq!(drawn, sample(1000, 100, 1));
    assert_ne!(drawn, sample(1000, 100, 2));
    assert_eq!(sample(7, 100, 1), [0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn frames_of_two_kinds_are_apart_on_both_maps() {
    let text = "[input]\nheight = 10\nwidth = 10\npreprocess = \"contrast\"\n[[stages]]\nmaps = 6\nfield = 5\npool = 2\n\
                lcn = 3\n[training]\nsteps = [1]\n";
    let network = Network::new(&RunConfig::parse(text, &[]).unwrap(), 2).unwrap();
    let mut rng = rng::stream(5, "kinds", 0);
    // Stripes that lie, and stripes that stand.
    let (each, side) = (40, 10);
    let mut pixels = Vec::new();
    for picture in 0..2 * each {
        for (row, column) in (0..side).flat_map(|row| (0..side).map(move |column| (row, column))) {
            let along = if picture < each { row } else { column };
            pixels.push((60 + along / 2 % 2 * 120 + rng.random_range(0..40)) as u8);
        }
    }
    let dataset = Dataset::from_pixels(network.input, pixels);
    let whitening = Whitening { shape: network.input, transform: Transform::Contrast { scale: 1.0 } };
    let inputs = Inputs::new(&dataset, &whitening, 0);
    let methods = vec![Method::Pca, Method::Tsne];
    let group = (0, Kind::H);
    let settings = Settings { shown: 1000, group, methods, perplexity: None, seed: 0 };
    let made = map(&network, &inputs, &settings, &Progress::none()).unwrap();
    assert_eq!((made.frame_count, made.frames.len(), made.units), (80, 80, 6 * 5 * 5));
    assert_eq!(made.layouts.len(), 2);
    for Layout { method, positions, perplexity, .. } in &made.layouts {
        assert_eq!(*perplexity, (*method == Method::Tsne).then_some(79.0 / 3.0));
        let positions: Vec<[f64; 2]> = positions.iter().map(|p| p.map(f64::from)).collect();
        assert!(divided(&positions), "{method:?}: {positions:?}");
    }
    let all = features(&network, &inputs, &made.frames, group, |_| ()).unwrap();
    for (frame, (neighbours, answers)) in
        made.neighbours.iter().zip(nearest_among(all.view(), 8, |_| ())).enumerate()
    {
        let same = |(near, answer): (&Neighbour, &crate::analysis::top::Answer)| {
            (near.index, near.similarity) == (answer.frame, answer.value)
        };
        assert!(neighbours.len() == 8 && neighbours.iter().zip(&answers).all(same));
        assert!(
            neighbours.iter().all(|near| (near.index < each) == (frame < each)),
            "{frame}: {neighbours:?}"
        );
    }
    let text = serde_json::to_string(&made).unwrap();
    assert!(serde_json::from_str::<Map>(&text).unwrap() == made && text.contains("\"stage\":1"));

    let refused = |shown, perplexity| {
        let settings = Settings { shown, perplexity, ..settings.clone() };
        map(&network, &inputs, &settings, &Progress::none()).unwrap_err()
    };
    let error = refused(31, Some(10.5));
    assert!(error.is_usage() && error.to_string().contains("from 1 to 10.0 with 31 frames"), "{error}");
    assert!(refused(3, None).to_string().contains("3 frames make no map"));
    assert_eq!(all.len_of(Axis(0)), 80);
}
