//! Products of dense matrices that lie row by row: all that is not filtering.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

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

/// Columns that a thread takes at a time: many to each thread, and enough for it to work at full speed.
const COLUMNS: usize = 256;

/// Puts `left · right` into `out`, whose columns the threads of the pool share. Each number has its terms in the same order, however many
/// threads there are.
pub fn product_by_columns(out: &mut [f32], left: MatRef<f32>, right: MatRef<f32>) {
    let out = MatMut::from_row_major_slice_mut(out, left.nrows(), right.ncols());
    let columns = out.par_col_chunks_mut(COLUMNS).zip(right.par_col_chunks(COLUMNS));
    columns.for_each(|(out, right)| matmul(out, Accum::Replace, left, right, 1.0, Par::Seq));
}
