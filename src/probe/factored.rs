//! An extra linear factor: weights kept as a product of two matrices, which learn in their place (Arora et al. 2018).

use std::collections::HashMap;
use std::sync::Mutex;

use faer::{Accum, Mat, MatRef};

use crate::kernels::product;
use crate::network::{At, WeightUpdate};

/// Descent of weights as they are: what a factor is compared with.
pub struct Plain {
    /// Learning rate.
    pub rate: f32,
}

impl WeightUpdate for Plain {
    fn update(&self, _: At, _: usize, weights: &mut [f32], _: &mut [f32], gradient: &mut [f32]) {
        weights.iter_mut().zip(gradient).for_each(|(weight, g)| *weight -= self.rate * *g);
    }
}

/// Descent of two factors of the weights of each position, which are their product `[tap, inner] · [inner, map]`. They begin balanced, as
/// theory has it: with the singular value decomposition `U S Vᵀ` of the weights, `U √S` and `√S Vᵀ`.
///
/// It must see every update from the first on: the weights it is shown after that are its own.
pub struct Factored {
    rate: f32,
    /// Whether the weights here have factors; others learn as they are.
    has: fn(At) -> bool,
    places: Mutex<HashMap<(usize, usize, usize), Factors>>,
}

struct Factors {
    inner: usize,
    left: Vec<f32>,
    right: Vec<f32>,
    d_left: Vec<f32>,
    d_right: Vec<f32>,
}

impl Factored {
    /// With a learning rate, for those weights of which `has` is true.
    pub fn new(rate: f32, has: fn(At) -> bool) -> Factored {
        Factored { rate, has, places: Mutex::default() }
    }

    /// Arithmetic of an update of weights `[taps, maps]` beyond that of plain descent, in floating-point operations: three products.
    pub fn flops(taps: usize, maps: usize) -> u64 {
        3 * 2 * (taps * maps * taps.min(maps)) as u64
    }
}

impl Factors {
    fn of(weights: &[f32], maps: usize) -> Factors {
        let taps = weights.len() / maps;
        let matrix = Mat::from_fn(taps, maps, |tap, map| f64::from(weights[tap * maps + map]));
        let svd = matrix.thin_svd().expect("weights are finite");
        let (values, inner) = (svd.S().column_vector(), taps.min(maps));
        let root = |at: usize| values[at].max(0.0).sqrt();
        let left = (0..taps * inner).map(|at| (svd.U()[(at / inner, at % inner)] * root(at % inner)) as f32);
        let right = (0..inner * maps).map(|at| (svd.V()[(at % maps, at / maps)] * root(at / maps)) as f32);
        let (left, right): (Vec<f32>, Vec<f32>) = (left.collect(), right.collect());
        Factors { inner, d_left: vec![0.0; left.len()], d_right: vec![0.0; right.len()], left, right }
    }

    fn step(&mut self, rate: f32, maps: usize, weights: &mut [f32], gradient: &[f32]) {
        let Factors { inner, left, right, d_left, d_right } = self;
        let (taps, inner) = (weights.len() / maps, *inner);
        let set = |out: &mut [f32], cols: usize, a: MatRef<f32>, b: MatRef<f32>| {
            let rows = out.len() / cols;
            product(out, (rows, cols), Accum::Replace, a, b);
        };
        let gradient = MatRef::from_row_major_slice(gradient, taps, maps);
        set(d_left, inner, gradient, MatRef::from_row_major_slice(right, inner, maps).transpose());
        set(d_right, maps, MatRef::from_row_major_slice(left, taps, inner).transpose(), gradient);
        left.iter_mut().zip(d_left).for_each(|(x, g)| *x -= rate * *g);
        right.iter_mut().zip(d_right).for_each(|(x, g)| *x -= rate * *g);
        let left = MatRef::from_row_major_slice(left, taps, inner);
        set(weights, maps, left, MatRef::from_row_major_slice(right, inner, maps));
    }
}

impl WeightUpdate for Factored {
    fn update(&self, at: At, maps: usize, weights: &mut [f32], sums: &mut [f32], gradient: &mut [f32]) {
        if !(self.has)(at) {
            return Plain { rate: self.rate }.update(at, maps, weights, sums, gradient);
        }
        let key = (at.stage, at.block, at.position);
        let known = self.places.lock().expect("no update panics").remove(&key);
        let mut factors = known.unwrap_or_else(|| Factors::of(weights, maps));
        factors.step(self.rate, maps, weights, gradient);
        self.places.lock().expect("no update panics").insert(key, factors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Weights;

    const HERE: At = At { stage: 0, block: 0, position: 0, which: Weights::Encoder, tied: false };

    /// `W ← W − r ([WWᵀ]^½ G + G [WᵀW]^½)` to first order in the rate: the end-to-end rule of two balanced factors (Arora et al. 2018, theorem 1).
    #[test]
    fn two_factors_move_their_product_as_theory_says() {
        let (taps, maps) = (7, 5);
        let weights: Vec<f32> = (0..35).map(|i| ((i * 17 % 23) as f32 - 11.0) / 10.0).collect();
        let gradient: Vec<f32> = (0..35).map(|i| ((i * 13 % 29) as f32 - 14.0) / 10.0).collect();
        let of = |values: &[f32]| Mat::from_fn(taps, maps, |i, j| f64::from(values[i * maps + j]));
        let root = |square: Mat<f64>| {
            let eigen = square.self_adjoint_eigen(faer::Side::Lower).unwrap();
            let values = eigen.S().column_vector();
            let scaled = Mat::from_fn(square.nrows(), square.nrows(), |i, j| {
                eigen.U()[(i, j)] * values[j].max(0.0).sqrt()
            });
            scaled * eigen.U().transpose()
        };
        let (w, g) = (of(&weights), of(&gradient));
        let wanted = root(&w * w.transpose()) * &g + &g * root(w.transpose() * &w);
        let rate = 1e-3;
        let mut own = weights.clone();
        Factored::new(rate, |_| true).update(HERE, maps, &mut own, &mut [], &mut gradient.clone());
        for i in 0..taps {
            for j in 0..maps {
                let moved = f64::from(weights[i * maps + j] - own[i * maps + j]) / f64::from(rate);
                assert!((moved - wanted[(i, j)]).abs() < 0.02, "{i} {j}: {moved}, not {}", wanted[(i, j)]);
            }
        }
    }

    #[test]
    fn weights_without_factors_learn_as_they_are() {
        let (mut weights, mut gradient) = (vec![1.0, 2.0], vec![0.5, -1.0]);
        Factored::new(0.1, |_| false).update(HERE, 2, &mut weights, &mut [], &mut gradient);
        assert_eq!(weights, [0.95, 2.1]);
    }
}
