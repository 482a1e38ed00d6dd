//! A kernel's spectrum, what of the labels lies along it, and ridge regression in it.

use faer::linalg::solvers::Solve;
use faer::{Mat, Par, Side};
use serde::{Deserialize, Serialize};

use super::tangent::Tangent;

/// Parts that the decomposition is made in, on any number of threads, so that it is the same to the last bit.
const PARTS: usize = 16;

/// Ridges that are tried, as multiples of the mean eigenvalue.
pub const RIDGES: [f64; 8] = [1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5];

/// Eigenvalues and eigenvectors of a kernel among the pictures of its columns.
pub struct Spectrum {
    classes: usize,
    /// From the largest.
    pub values: Vec<f64>,
    /// A column for each.
    vectors: Mat<f64>,
}

/// Targets: 1 for the true class and 0 for others, less the mean; `[picture, class]`.
pub fn targets(class: &[usize], classes: usize) -> Vec<f64> {
    let of = |&own: &usize| (0..classes).map(move |c| f64::from(u8::from(c == own)) - 1.0 / classes as f64);
    class.iter().flat_map(of).collect()
}

/// What ridge regression came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ridge {
    /// The ridge, as a multiple of the mean eigenvalue.
    pub ridge: f64,
    /// Share that is right of the pictures of the columns, each left out of the fit that it is tested by.
    pub held_out: f64,
    /// Share that is right of the other pictures, if there are any.
    pub test: Option<f64>,
}

/// Share of pictures whose greatest number is that of their class.
pub fn right(numbers: impl Iterator<Item = f64>, class: &[usize], classes: usize) -> f64 {
    let numbers: Vec<f64> = numbers.collect();
    let is_right = |(row, &class): (&[f64], &usize)| {
        let rival = (0..classes).filter(|&c| c != class).map(|c| row[c]).fold(f64::MIN, f64::max);
        row[class] > rival
    };
    let count = numbers.chunks_exact(classes).zip(class).filter(|pair| is_right(*pair)).count();
    count as f64 / class.len() as f64
}

impl Spectrum {
    /// Of the rows of a kernel that are columns too.
    pub fn of(kernel: &Tangent) -> Spectrum {
        let side = kernel.cols * kernel.classes;
        let at = |i: usize, j: usize| kernel.values[i * side + j];
        faer::set_global_parallelism(Par::rayon(PARTS));
        let symmetric = Mat::from_fn(side, side, |i, j| 0.5 * (at(i, j) + at(j, i)));
        let eigen = symmetric.self_adjoint_eigen(Side::Lower).expect("a kernel is finite and symmetric");
        // Those of faer ascend.
        let values: Vec<f64> = eigen.S().column_vector().iter().rev().map(|&value| value.max(0.0)).collect();
        let vectors = eigen.U();
        let vectors = Mat::from_fn(side, side, |i, j| vectors[(i, side - 1 - j)]);
        Spectrum { classes: kernel.classes, values, vectors }
    }

    /// `exp` of the entropy of the eigenvalues' shares: along about how many directions the kernel lies.
    pub fn effective_rank(&self) -> f64 {
        let total: f64 = self.values.iter().sum();
        let shares = self.values.iter().map(|value| value / total).filter(|&share| share > 0.0);
        shares.map(|share| -share * share.ln()).sum::<f64>().exp()
    }

    /// Projections of `targets` on the eigenvectors.
    fn projections(&self, targets: &[f64]) -> Vec<f64> {
        let along = |at: usize| (0..targets.len()).map(|i| self.vectors[(i, at)] * targets[i]).sum();
        (0..targets.len()).map(along).collect()
    }

    /// Share of the targets' square that lies along each eigenvector.
    pub fn of_targets(&self, targets: &[f64]) -> Vec<f64> {
        let square: f64 = targets.iter().map(|y| y * y).sum();
        self.projections(targets).into_iter().map(|along| along * along / square).collect()
    }

    /// How much the kernel is one of the labels: `<Θ, y yᵀ> / (‖Θ‖ ‖y yᵀ‖)` for centred targets y, from 0 to 1.
    pub fn alignment(&self, targets: &[f64]) -> f64 {
        let square: f64 = targets.iter().map(|y| y * y).sum();
        let along = self.projections(targets).into_iter().zip(&self.values);
        let product: f64 = along.map(|(along, value)| value * along * along).sum();
        let norm = self.values.iter().map(|value| value * value).sum::<f64>().sqrt();
        product / (norm * square).max(f64::MIN_POSITIVE)
    }

    /// Numbers by which ridge regression weighs the pictures of the columns, `[picture, class]`.
    fn weights(&self, projections: &[f64], ridge: f64) -> Vec<f64> {
        let side = projections.len();
        let scaled: Vec<f64> =
            projections.iter().zip(&self.values).map(|(p, value)| p / (value + ridge)).collect();
        (0..side).map(|i| (0..side).map(|at| self.vectors[(i, at)] * scaled[at]).sum()).collect()
    }

    /// What the regression says of each picture when it is left out, `[picture, class]`: its own targets less `(B⁻¹ α)` of the block of
    /// `B = (Θ + ridge)⁻¹` that belongs to it, where `α = B y`.
    fn left_out(&self, targets: &[f64], weights: &[f64], ridge: f64) -> Vec<f64> {
        let (classes, side) = (self.classes, targets.len());
        let inverse: Vec<f64> = self.values.iter().map(|value| 1.0 / (value + ridge)).collect();
        let mut found = Vec::with_capacity(side);
        for first in (0..side).step_by(classes) {
            let rows = self.vectors.as_ref().subrows(first, classes);
            let scaled = Mat::from_fn(side, classes, |at, i| rows[(i, at)] * inverse[at]);
            let block = rows * &scaled;
            let own = Mat::from_fn(classes, 1, |i, _| weights[first + i]);
            let errors = block.partial_piv_lu().solve(&own);
            found.extend((0..classes).map(|i| targets[first + i] - errors[(i, 0)]));
        }
        found
    }

    /// Ridge regression of the labels, with the ridge under which most pictures are right when they are left out, of several the greatest.
    /// `class` has the classes of all pictures of the kernel's rows, those of the columns first.
    pub fn regression(&self, kernel: &Tangent, class: &[usize]) -> Ridge {
        let (cols, classes) = (kernel.cols, kernel.classes);
        let targets = targets(&class[..cols], classes);
        let projections = self.projections(&targets);
        let mean = self.values.iter().sum::<f64>() / self.values.len() as f64;
        let tried = RIDGES.map(|ridge| {
            let weights = self.weights(&projections, ridge * mean);
            let left_out = self.left_out(&targets, &weights, ridge * mean);
            (right(left_out.into_iter(), &class[..cols], classes), ridge, weights)
        });
        let best = tried.into_iter().reduce(|best, one| if one.0 > best.0 { one } else { best });
        let (held_out, ridge, weights) = best.expect("ridges were tried");
        let others = kernel.values[weights.len() * weights.len()..].chunks_exact(weights.len());
        let answer = |row: &[f64]| row.iter().zip(&weights).map(|(k, weight)| k * weight).sum();
        let test = (kernel.rows > cols).then(|| right(others.map(answer), &class[cols..], classes));
        Ridge { ridge, held_out, test }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use rand::Rng;

    /// A kernel of features drawn at random, of some pictures with the first of them.
    fn kernel(rows: usize, cols: usize, classes: usize) -> Tangent {
        let mut rng = rng::stream(1, "kernel", 0);
        let features: Vec<[f64; 9]> =
            (0..rows * classes).map(|_| std::array::from_fn(|_| rng.random::<f64>() - 0.5)).collect();
        let product = |a: &[f64; 9], b: &[f64; 9]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let row = |a: &[f64; 9]| features[..cols * classes].iter().map(|b| product(a, b)).collect::<Vec<_>>();
        let values = features.iter().flat_map(row).collect();
        Tangent { classes, rows, cols, values, head_share: 0.5, numbers: vec![0.0; rows * classes] }
    }

    #[test]
    fn a_picture_left_out_is_answered_as_if_it_had_never_been_seen() {
        let (classes, class) = (3, [0, 1, 2, 1, 0, 2, 0]);
        let kernel = kernel(7, 7, classes);
        let (spectrum, targets, ridge) = (Spectrum::of(&kernel), targets(&class, classes), 0.2);
        let projections = spectrum.projections(&targets);
        let weights = spectrum.weights(&projections, ridge);
        let found = spectrum.left_out(&targets, &weights, ridge);
        let side = 7 * classes;
        for picture in 0..7 {
            let kept: Vec<usize> = (0..side).filter(|at| at / classes != picture).collect();
            let at = |i: usize, j: usize| kernel.values[i * side + j];
            let own = Mat::from_fn(kept.len(), kept.len(), |i, j| {
                at(kept[i], kept[j]) + if i == j { ridge } else { 0.0 }
            });
            let wanted = Mat::from_fn(kept.len(), 1, |i, _| targets[kept[i]]);
            let fitted = own.partial_piv_lu().solve(&wanted);
            for class in 0..classes {
                let row = picture * classes + class;
                let answer: f64 = kept.iter().enumerate().map(|(i, &j)| at(row, j) * fitted[(i, 0)]).sum();
                assert!((found[row] - answer).abs() < 1e-9, "{}, not {answer}", found[row]);
            }
        }
    }

    #[test]
    fn a_kernel_of_the_labels_is_aligned_with_them_and_others_less() {
        let (classes, class) = (2, [0, 1, 1, 0]);
        let y = targets(&class, classes);
        let values = y.iter().flat_map(|a| y.iter().map(move |b| a * b)).collect();
        let own = Tangent { classes, rows: 4, cols: 4, values, head_share: 0.0, numbers: vec![0.0; 8] };
        let spectrum = Spectrum::of(&own);
        assert!((spectrum.alignment(&y) - 1.0).abs() < 1e-9);
        assert!((spectrum.effective_rank() - 1.0).abs() < 1e-6);
        assert!((spectrum.of_targets(&y)[0] - 1.0).abs() < 1e-9);
        let identity = (0..64).map(|at| f64::from(u8::from(at % 9 == 0))).collect();
        let spectrum = Spectrum::of(&Tangent { values: identity, ..own });
        assert!((spectrum.alignment(&y) - 8f64.powf(-0.5)).abs() < 1e-9);
        assert!((spectrum.effective_rank() - 8.0).abs() < 1e-9);
    }

    #[test]
    fn regression_answers_others_by_the_pictures_it_knows() {
        // The kernel says of each other picture which one it is like.
        let (classes, class) = (2, [0, 1, 1, 0]);
        let like = [0, 1, 1, 0];
        let at = |i: usize, j: usize| {
            let (a, b) = (i / classes, j / classes);
            let same = like[a] == like[b] && i % classes == j % classes;
            f64::from(u8::from(same)) + if i == j { 0.1 } else { 0.0 }
        };
        let values = (0..8).flat_map(|i| (0..4).map(move |j| at(i, j))).collect();
        let kernel = Tangent { classes, rows: 4, cols: 2, values, head_share: 0.0, numbers: vec![0.0; 8] };
        assert_eq!(Spectrum::of(&kernel).regression(&kernel, &class).test, Some(1.0));
    }
}
