//! Who works on the rows of maps.

use std::ops::Range;

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

    /// As [`each`](Self::each), of some rows of `len` numbers only.
    pub fn each_in(
        self,
        out: &mut [f32],
        len: usize,
        rows: &Range<usize>,
        work: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let some = &mut out[rows.start * len..rows.end * len];
        self.each(some, len, |row, piece| work(rows.start + row, piece));
    }

    /// As [`each`](Self::each), with pieces of different lengths: those numbered `pieces`, each from its `start` to that of the next.
    pub fn each_of(
        self,
        out: &mut [f32],
        pieces: Range<usize>,
        start: &(impl Fn(usize) -> usize + Sync),
        work: &(impl Fn(usize, &mut [f32]) + Sync),
    ) {
        match pieces.len() {
            0 => {}
            1 => work(pieces.start, out),
            count => {
                let middle = pieces.start + count / 2;
                let (left, right) = out.split_at_mut(start(middle) - start(pieces.start));
                let mut first = || self.each_of(left, pieces.start..middle, start, work);
                let mut second = || self.each_of(right, middle..pieces.end, start, work);
                match self {
                    Rows::InTurn => (first(), second()),
                    Rows::Shared => rayon::join(first, second),
                };
            }
        }
    }

    /// Calls `work` with each number below `count`.
    pub fn each_number(self, count: usize, work: impl Fn(usize) + Sync) {
        match self {
            Rows::InTurn => (0..count).for_each(&work),
            Rows::Shared => (0..count).into_par_iter().for_each(&work),
        }
    }

    /// How many of `rows` rows to work on at once: `most`, or fewer where each thread would not get several pieces.
    pub fn at_once(self, rows: usize, most: usize) -> usize {
        match self {
            Rows::InTurn => most,
            Rows::Shared => (rows / (4 * rayon::current_num_threads())).clamp(1, most),
        }
    }

    /// As [`each_in`](Self::each_in), with the rows of two arrays.
    pub fn each_pair_in(
        self,
        (a, a_len): (&mut [f32], usize),
        (b, b_len): (&mut [f32], usize),
        rows: &Range<usize>,
        work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
    ) {
        let a = &mut a[rows.start * a_len..rows.end * a_len];
        let b = &mut b[rows.start * b_len..rows.end * b_len];
        self.each_pair((a, a_len), (b, b_len), |row, a, b| work(rows.start + row, a, b));
    }

    fn each_pair(
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
