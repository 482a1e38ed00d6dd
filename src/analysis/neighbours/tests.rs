use super::*;
use crate::analysis::features::features;
use crate::config::RunConfig;
use crate::dataset::Dataset;
use crate::network::preprocess::{Transform, Whitening};
use crate::rng;
use ndarray::{Array2, concatenate, s};
use rand::Rng;

/// By the definition, with a full sort.
fn brute_force(queries: &Array2<f32>, frames: &Array2<f32>, keep: usize) -> Vec<Vec<Answer>> {
    let cosine = |a: &[f32], b: &[f32]| {
        let sum =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let norms = (sum(a, a) * sum(b, b)).sqrt();
        if norms == 0.0 { 0.0 } else { (sum(a, b) / norms) as f32 }
    };
    let of_query = |query: ndarray::ArrayView1<f32>| {
        let frames = frames.outer_iter().enumerate();
        let mut all: Vec<Answer> = frames
            .map(|(frame, row)| Answer {
                frame,
                value: cosine(query.to_slice().unwrap(), row.to_slice().unwrap()),
            })
            .collect();
        all.sort_by(|a, b| b.value.total_cmp(&a.value).then(a.frame.cmp(&b.frame)));
        all.truncate(keep);
        all
    };
    queries.outer_iter().map(of_query).collect()
}

fn same(got: &[Vec<Answer>], want: &[Vec<Answer>]) -> bool {
    let close =
        |(got, want): (&Answer, &Answer)| got.frame == want.frame && (got.value - want.value).abs() < 1e-6;
    let rows = |(got, want): (&Vec<Answer>, &Vec<Answer>)| {
        got.len() == want.len() && got.iter().zip(want).all(close)
    };
    got.len() == want.len() && got.iter().zip(want).all(rows)
}

#[test]
fn the_nearest_frames_are_those_of_brute_force_on_any_number_of_threads() {
    let text = "[input]\nheight = 8\nwidth = 8\npreprocess = \"none\"\n[[stages]]\nmaps = 3\nfield = 5\npool = 2\n\
                lcn = 3\n[training]\nsteps = [1]\n";
    let network = Network::new(&RunConfig::parse(text, &[]).unwrap(), 2).unwrap();
    let mut rng = rng::stream(1, "neighbours", 0);
    // More frames than one batch, and every frame twice: the earlier comes first.
    let once: Vec<u8> = (0..120 * 64).map(|_| rng.random()).collect();
    let dataset = Dataset::from_pixels(network.input, [once.clone(), once].concat());
    let whitening = Whitening { shape: network.input, transform: Transform::None };
    let inputs = Inputs::new(&dataset, &whitening, 0);
    let all: Vec<usize> = (0..dataset.len()).collect();
    for group in [(0, Kind::A), (0, Kind::Y)] {
        let frames = features(&network, &inputs, &all, group, |_| ()).unwrap();
        let nothing = Array2::zeros((1, frames.ncols()));
        let queries = concatenate![Axis(0), frames.slice(s![5..8, ..]), nothing];
        let want = brute_force(&queries, &frames, 6);
        for threads in [1, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let got = pool.install(|| nearest(&network, &inputs, group, queries.view(), 6, |_| ()));
            assert!(same(&got, &want), "{group:?}: {got:?} {want:?}");
            // A frame finds itself and its copy first; what has no direction is like nothing.
            assert!((0..3).all(|at| got[at][0].frame == 5 + at && got[at][1].frame == 125 + at));
            assert_eq!(got[0][0].value, 1.0);
            let first = |frame| Answer { frame, value: 0.0 };
            assert_eq!(got[3], [0, 1, 2, 3, 4, 5].map(first));
        }
    }
}

#[test]
fn among_some_features_each_has_the_others_of_brute_force() {
    let mut rng = rng::stream(2, "neighbours", 0);
    let rows = Array2::from_shape_fn((60, 19), |_| rng.random_range(-1.0f32..1.0));
    let mut want = brute_force(&rows, &rows, 8);
    for (number, answers) in want.iter_mut().enumerate() {
        assert_eq!(answers.remove(0).frame, number);
    }
    assert!(same(&nearest_among(rows.view(), 7, |_| ()), &want));
    // Of three there are two others.
    let few = nearest_among(rows.slice(s![..3, ..]), 7, |_| ());
    assert!(
        few.iter()
            .enumerate()
            .all(|(at, answers)| answers.len() == 2 && answers.iter().all(|a| a.frame != at))
    );
}
