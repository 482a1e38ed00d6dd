//! Products of small dense matrices that lie row by row: all that is not filtering.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Puts `left · right` into `out`, of so many rows and columns, or adds it; on one thread, as callers share out what is around it.
pub fn product(
    out: &mut [f32],
    (rows, cols): (usize, usize),
    accumulate: Accum,
    left: MatRef<f32>,
    right: MatRef<f32>,
) {
    matmul(MatMut::from_row_major_slice_mut(out, rows, cols), accumulate, left, right, 1.0, Par::Seq);
}
