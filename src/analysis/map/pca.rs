//! Principal components.

use faer::{Mat, Side};
use ndarray::{Array1, Array2, ArrayView2, Axis};

/// Parts that the search for eigenvectors is divided into: as many on any number of threads, so that the result is the same.
const PARTS: usize = 8;

/// A component with less than this share of the variance is rounding.
const LEAST_SHARE: f64 = 1e-12;

/// Principal components of some rows.
#[derive(Debug, Clone)]
pub struct Pca {
    /// Mean of the rows.
    pub mean: Array1<f64>,
    /// Directions of most variance, [component, column], of length 1 and at right angles. The sign is such that the value of the
    /// greatest size, of several the first, is positive.
    pub axes: Array2<f64>,
    /// Shares of all variance that they explain, from the most.
    pub explained: Vec<f64>,
    /// Rows along the axes, [row, component].
    pub scores: Array2<f64>,
}

/// The first principal components of `rows`: as many as asked for, or as there are directions with any variance.
pub fn pca(rows: ArrayView2<f32>, components: usize) -> Pca {
    let (count, columns) = rows.dim();
    assert!(count > 0, "the components of nothing");
    let mut x = rows.mapv(f64::from);
    let mean = x.mean_axis(Axis(0)).expect("at least one row");
    x -= &mean;
    // Eigenvectors of the smaller of both products: the columns' covariance, or the rows' products, which have the same eigenvalues.
    let by_columns = columns <= count;
    let products = if by_columns { x.t().dot(&x) } else { x.dot(&x.t()) };
    faer::set_global_parallelism(faer::Par::rayon(PARTS));
    let side = products.len_of(Axis(0));
    let symmetric = Mat::from_fn(side, side, |i, j| 0.5 * (products[(i, j)] + products[(j, i)]));
    let eigen = symmetric.self_adjoint_eigen(Side::Lower).expect("products are finite and symmetric");
    let values: Vec<f64> = eigen.S().column_vector().iter().map(|&value| value.max(0.0)).collect();
    let total: f64 = values.iter().sum();
    // Eigenvalues are in ascending order.
    let chosen = (0..side).rev().take(components).take_while(|&at| values[at] > LEAST_SHARE * total);
    let (mut axes, mut explained) = (Vec::new(), Vec::new());
    for at in chosen {
        let vector = Array1::from_shape_fn(side, |i| eigen.U()[(i, at)]);
        let mut axis = if by_columns { vector } else { x.t().dot(&vector) };
        let largest =
            axis.iter().fold(0.0f64, |largest, &v| if v.abs() > largest.abs() { v } else { largest });
        let length = axis.dot(&axis).sqrt().copysign(largest);
        axis /= length;
        axes.push(axis);
        explained.push(values[at] / total);
    }
    let axes = Array2::from_shape_fn((axes.len(), columns), |(component, column)| axes[component][column]);
    let scores = x.dot(&axes.t());
    Pca { mean, axes, explained, scores }
}
