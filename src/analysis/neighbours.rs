//! The frames that a network sees as most like a picture: those whose features point most nearly in the same direction.
//!
//! Exact, by comparison with every frame. Features are compared as they are, uncentred: the value is their cosine.

use ndarray::{ArrayView2, Axis};
use rayon::prelude::*;

use super::BATCH;
use super::stimulus::Sign;
use super::top::{Answer, Ranking, most};
use crate::geometry::Kind;
use crate::network::preprocess::{Inputs, Scratch};
use crate::network::{Network, Workspace};

/// The `keep` frames most like each of `queries`, [query, unit], which are features of the same `stage` and `kind`, from the most
/// like; of equal ones the earlier frame first. A value is the cosine, 0 where there is no direction: for features that are all 0.
/// `progress` is told how many frames have been seen. Memory does not grow with the number of frames.
pub fn nearest(
    network: &Network,
    inputs: &Inputs,
    (stage, kind): (usize, Kind),
    queries: ArrayView2<f32>,
    keep: usize,
    progress: impl Fn(usize) + Sync,
) -> Vec<Vec<Answer>> {
    let units = network.shape(stage, kind).len();
    assert_eq!(queries.len_of(Axis(1)), units, "queries of another sublayer");
    let queries = Directions::of(queries);
    let begin = || (network.workspace(BATCH), Scratch::default(), Vec::new());
    let of_batch = |(work, scratch, rows): &mut (Workspace, Scratch, Vec<f32>), indices: &[usize]| {
        work.start(indices.len());
        inputs.fill(indices, work.lanes, &mut work.input, scratch);
        network.forward_to(work, stage, kind);
        rows.resize(indices.len() * units, 0.0);
        work.copy_values(network, stage, kind, rows);
        progress(indices.len());
        let rows = ArrayView2::from_shape((indices.len(), units), rows).expect("a row for each picture");
        let frames = Directions::of(rows);
        let of_query = |query: usize| {
            let answer = |(row, &frame)| Answer { frame, value: queries.cosine(query, &frames, row) };
            best(indices.iter().enumerate().map(answer).collect(), keep)
        };
        (0..queries.len()).map(of_query).collect::<Vec<_>>()
    };
    let merge = |a: Vec<Vec<Answer>>, b: Vec<Vec<Answer>>| {
        a.into_iter().zip(b).map(|(a, b)| best([a, b].concat(), keep)).collect()
    };
    let frames: Vec<usize> = (0..inputs.len()).collect();
    let none = || vec![Vec::new(); queries.len()];
    frames.par_chunks(BATCH).map_init(begin, of_batch).reduce(none, merge)
}

/// The same for features of frames that are in memory already, [frame, unit].
pub fn nearest_of(queries: ArrayView2<f32>, features: ArrayView2<f32>, keep: usize) -> Vec<Vec<Answer>> {
    assert_eq!(queries.len_of(Axis(1)), features.len_of(Axis(1)), "queries of another sublayer");
    let (queries, all) = (Directions::of(queries), Directions::of(features));
    let of_query = |query: usize| {
        let answers = (0..all.len()).map(|frame| Answer { frame, value: queries.cosine(query, &all, frame) });
        best(answers.collect(), keep)
    };
    (0..queries.len()).into_par_iter().map(of_query).collect()
}

/// The same among some features, [picture, unit]: for each picture the others that are most like it, by number.
pub fn nearest_among(
    features: ArrayView2<f32>,
    keep: usize,
    progress: impl Fn(usize) + Sync,
) -> Vec<Vec<Answer>> {
    let all = Directions::of(features);
    let of_picture = |picture: usize| {
        let others = (0..all.len()).filter(|&other| other != picture);
        let answers = others.map(|frame| Answer { frame, value: all.cosine(picture, &all, frame) });
        let nearest = best(answers.collect(), keep);
        progress(1);
        nearest
    };
    (0..all.len()).into_par_iter().map(of_picture).collect()
}

fn best(answers: Vec<Answer>, keep: usize) -> Vec<Answer> {
    most(answers, Ranking { sign: Sign::Positive, norm: None, keep })
}

/// Rows and their lengths.
struct Directions<'a> {
    rows: ArrayView2<'a, f32>,
    norms: Vec<f64>,
}

impl<'a> Directions<'a> {
    fn of(rows: ArrayView2<'a, f32>) -> Directions<'a> {
        assert!(rows.is_standard_layout(), "rows lie one after the other");
        let norm = |row: ndarray::ArrayView1<f32>| {
            let row = row.to_slice().expect("checked above");
            dot(row, row).sqrt()
        };
        Directions { norms: rows.outer_iter().map(norm).collect(), rows }
    }

    fn len(&self) -> usize {
        self.norms.len()
    }

    fn row(&self, at: usize) -> &[f32] {
        self.rows.index_axis(Axis(0), at).to_slice().expect("checked when it was made")
    }

    fn cosine(&self, at: usize, others: &Directions, other: usize) -> f32 {
        let norms = self.norms[at] * others.norms[other];
        if norms > 0.0 { (dot(self.row(at), others.row(other)) / norms) as f32 } else { 0.0 }
    }
}

/// `Σ aᵢ bᵢ`, in an order that depends on the length only.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 8;
    let product = |(&a, &b): (&f32, &f32)| f64::from(a) * f64::from(b);
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in whole_a.iter().zip(whole_b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, pair)| *sum += product(pair));
    }
    sums.iter().sum::<f64>() + rest_a.iter().zip(rest_b).map(product).sum::<f64>()
}

#[cfg(test)]
mod tests;
