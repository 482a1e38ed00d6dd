//! Who works on the rows of maps.

use rayon::prelude::*;

/// How the rows of maps are worked on. The result is the same: each row is made by one thread, from what was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// One after the other, by the calling thread.
    InTurn,
    /// Shared out among the threads of the pool that the caller runs in.
    Shared,
}

impl Rows {
    /// Calls `work` with the number of each piece of `len` numbers, and the piece; the last may be shorter.
    pub fn each(self, out: &mut [f32], len: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
        match self {
            Rows::InTurn => out.chunks_mut(len).enumerate().for_each(|(row, piece)| work(row, piece)),
            Rows::Shared => out.par_chunks_mut(len).enumerate().for_each(|(row, piece)| work(row, piece)),
        }
    }

    /// As [`each`](Self::each), with the pieces of two arrays.
    pub fn each_pair(
        self,
        (a, a_len): (&mut [f32], usize),
        (b, b_len): (&mut [f32], usize),
        work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
    ) {
        debug_assert_eq!(a.len().div_ceil(a_len), b.len().div_ceil(b_len), "rows that belong together");
        match self {
            Rows::InTurn => {
                let pieces = a.chunks_mut(a_len).zip(b.chunks_mut(b_len)).enumerate();
                pieces.for_each(|(row, (a, b))| work(row, a, b));
            }
            Rows::Shared => {
                let pieces = a.par_chunks_mut(a_len).zip(b.par_chunks_mut(b_len)).enumerate();
                pieces.for_each(|(row, (a, b))| work(row, a, b));
            }
        }
    }

    /// Writes what `sum` makes of each piece of `len` numbers into `sums`.
    pub fn sums(self, of: &[f32], len: usize, sums: &mut [f64], sum: impl Fn(&[f32]) -> f64 + Sync) {
        match self {
            Rows::InTurn => sums.iter_mut().zip(of.chunks(len)).for_each(|(out, piece)| *out = sum(piece)),
            Rows::Shared => {
                sums.par_iter_mut().zip(of.par_chunks(len)).for_each(|(out, piece)| *out = sum(piece));
            }
        }
    }
}
