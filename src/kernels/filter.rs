//! Simple units at positions side by side in a row: responses, their transpose, and the gradient of their weights (paper §3.2).
//!
//! A position has `maps` filters over the same receptive field. Weights are stored `[position, tap, map]`, maps innermost
//! and padded with zeros to a multiple of [`MAP_PAD`]; a tap is one input value `(dy, dx, channel)` of the field. The
//! plain definitions are in the tests; the vector variants add in another order and match them within rounding.
//!
//! Fields of neighbours overlap, and a field is larger than the first-level cache. So a few positions are worked on
//! together, piece by piece of the maps: each piece is brought into that cache once for all of them.
//! None of the functions allocates in the steady state.

mod gradient;

use std::ops::Range;

use super::stored::{Slice, widen};
use super::{Cpu, Kernel, LANES, Simd, prefetch, with_scratch};
use crate::geometry::StageShape;
pub use gradient::{Soon, respond_and_weight_gradient, weight_gradient};

/// Maps are padded to a multiple of this in the storage of weights.
pub const MAP_PAD: usize = 8;

/// Positions that share each piece of the maps.
pub const TOGETHER: usize = 4;

/// The receptive fields of a row of positions, in maps `[row, column, channel, lane]`: each row of a field is contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Rows.
    pub rows: usize,
    /// Taps of a row: columns times channels.
    pub run: usize,
    /// Taps from the start of a field to the start of the next.
    pub step: usize,
    /// Distance between the starts of rows, in numbers.
    pub pitch: usize,
    /// Lanes of the maps.
    pub lanes: usize,
}

impl Field {
    /// The receptive fields of a stage whose maps have this many lanes.
    pub fn new(shape: &StageShape, lanes: usize) -> Field {
        assert!(lanes.is_multiple_of(LANES) && lanes > 0, "lanes come in multiples of {LANES}");
        let channels = shape.input.channels;
        Field {
            rows: shape.field,
            run: shape.field * channels,
            step: shape.stride * channels,
            pitch: shape.input.row_len() * lanes,
            lanes,
        }
    }

    /// Taps in all its rows.
    pub fn taps(&self) -> usize {
        self.rows * self.run
    }

    /// Holds slices to what the pointers below rest on; `maps` begin with row `rows.start` of the first field. Returns the
    /// number of positions.
    fn check(
        &self,
        rows: &Range<usize>,
        count: usize,
        weights: usize,
        maps: &[f32],
        response: &[f32],
    ) -> usize {
        assert!(self.run > 0 && self.step > 0 && self.lanes.is_multiple_of(LANES), "{self:?}");
        assert!(rows.start < rows.end && rows.end <= self.rows, "rows {rows:?} of {self:?}");
        let positions = response.len() / (count * self.lanes);
        assert!(positions > 0, "at least one position");
        assert_eq!(response.len(), positions * count * self.lanes, "responses are not [position, map, lane]");
        let padded = count.next_multiple_of(MAP_PAD);
        assert_eq!(weights, positions * self.taps() * padded, "weights are not [position, tap, map]");
        let span = (rows.len() - 1) * self.pitch + ((positions - 1) * self.step + self.run) * self.lanes;
        assert!(span <= maps.len(), "the fields leave the maps");
        positions
    }

    /// Taps of a piece, at most.
    #[inline(always)]
    fn most_taps(&self, padded: usize) -> usize {
        (CACHED_BYTES / (size_of::<f32>() * (self.lanes + padded))).max(LEAST_TAPS)
    }

    /// Shows `work` some of its rows at these positions in pieces that stay in the first-level cache, together with the weights of
    /// as many taps: for each piece those positions, one after the other, that see some of it.
    #[inline(always)]
    fn sweep<S: Simd>(&self, rows: Range<usize>, positions: usize, padded: usize, work: &mut impl Sweep) {
        let together = if self.step < self.run { TOGETHER } else { 1 };
        let most = self.most_taps(padded);
        for first in (0..positions).step_by(together) {
            let last = (first + together).min(positions);
            let (left, right) = (first * self.step, (last - 1) * self.step + self.run);
            let width = (right - left).div_ceil((right - left).div_ceil(most));
            let whole = width.next_multiple_of(self.step);
            let width = if whole <= most { whole } else { width };
            let height = (most / width).clamp(1, rows.len());
            for row in rows.clone().step_by(height) {
                for left in (left..right).step_by(width) {
                    for position in first..last {
                        let start = position * self.step;
                        let taps =
                            left.max(start) - start..(left + width).saturating_sub(start).min(self.run);
                        if !taps.is_empty() {
                            let rows = height.min(rows.end - row);
                            work.piece::<S>(Piece {
                                position,
                                row,
                                rows,
                                first: taps.start,
                                taps: taps.len(),
                            });
                        }
                    }
                }
            }
        }
    }
}

/// What is done with each piece of [`Field::sweep`].
trait Sweep {
    /// For all maps and lanes.
    fn piece<S: Simd>(&mut self, piece: Piece);
}

/// Weights to ask memory for while a piece is worked on: those of the next piece like it, below or, where there is none, of the
/// next positions. Otherwise each piece would wait for memory, as pieces of different positions do not follow each other there.
struct Ahead {
    next: *const u8,
    /// Bytes left in this row of the piece, of all its weights in a row, and from row to row.
    left: usize,
    row: usize,
    pitch: usize,
    /// Lines for each block of arithmetic: asked for all at once, they would fill the queue of loads.
    lines: usize,
}

const LINE_BYTES: usize = 64;

impl Ahead {
    #[inline(always)]
    fn new(field: &Field, weights: &PieceWeights, piece: Piece, blocks: usize) -> Ahead {
        let below = piece.row + piece.rows;
        let (position, top) =
            if below < field.rows { (piece.position, below) } else { (piece.position + TOGETHER, 0) };
        let (start, bytes) = match weights.stored {
            Slice::F32(all) => (all.as_ptr().cast::<u8>(), weights.padded * size_of::<f32>()),
            Slice::Bf16(all) => (all.as_ptr().cast::<u8>(), weights.padded * size_of::<u16>()),
        };
        let row = piece.taps * bytes;
        Ahead {
            next: start.wrapping_add((position * field.taps() + top * field.run + piece.first) * bytes),
            left: row,
            row,
            pitch: field.run * bytes,
            lines: (piece.rows * row).div_ceil(LINE_BYTES * blocks),
        }
    }

    #[inline(always)]
    fn ask(&mut self) {
        for _ in 0..self.lines {
            prefetch(self.next);
            if self.left > LINE_BYTES {
                self.left -= LINE_BYTES;
                self.next = self.next.wrapping_add(LINE_BYTES);
            } else {
                self.next = self.next.wrapping_add(self.left).wrapping_add(self.pitch - self.row);
                self.left = self.row;
            }
        }
    }
}

/// The weights of some positions, and room for those of a piece as f32 where they are not stored so.
struct PieceWeights<'a> {
    stored: Slice<'a>,
    padded: usize,
    widened: &'a mut [f32],
}

impl PieceWeights<'_> {
    /// Lends them to `work`.
    fn lend<T>(field: &Field, maps: usize, stored: Slice, work: impl FnOnce(PieceWeights) -> T) -> T {
        let padded = maps.next_multiple_of(MAP_PAD);
        let room = match stored {
            Slice::F32(_) => 0,
            Slice::Bf16(_) => field.most_taps(padded) * padded,
        };
        with_scratch([room], |[widened]| work(PieceWeights { stored, padded, widened }))
    }

    /// Where the weights of a piece begin, and the numbers from row to row.
    #[inline(always)]
    fn of<S: Simd>(&mut self, field: &Field, piece: Piece) -> (*const f32, usize) {
        let first = (piece.position * field.taps() + piece.row * field.run + piece.first) * self.padded;
        let (pitch, len) = (field.run * self.padded, piece.taps * self.padded);
        match self.stored {
            Slice::F32(weights) => (weights[first..].as_ptr(), pitch),
            Slice::Bf16(weights) => {
                for row in 0..piece.rows {
                    let to = &mut self.widened[row * len..][..len];
                    widen::<S>(&weights[first + row * pitch..][..len], to);
                }
                (self.widened.as_ptr(), len)
            }
        }
    }
}

/// What [`Field::sweep`] may take of a cache of 32 KB; the rest is left to responses and to what streams past.
const CACHED_BYTES: usize = 26 << 10;

/// Taps of a piece however many lanes and maps there are: fewer would leave nothing to do between loads of the sums.
const LEAST_TAPS: usize = 8;

/// Some taps of some rows of the field at a position.
#[derive(Clone, Copy)]
struct Piece {
    position: usize,
    row: usize,
    rows: usize,
    first: usize,
    taps: usize,
}

/// Calls `$self.block::<S, maps, vectors>($piece, weights, map, lane)` over all maps and lanes in the largest blocks that fit.
macro_rules! in_blocks {
    ($self:ident, $piece:ident) => {{
        let blocks = $self.maps.div_ceil(S::MAPS) * $self.field.lanes.div_ceil(S::WIDTH * 3);
        let mut ahead = Ahead::new(&$self.field, &$self.weights, $piece, blocks);
        let weights = $self.weights.of::<S>(&$self.field, $piece);
        let mut lane = 0;
        while lane < $self.field.lanes {
            // Two blocks of two vectors keep more sums in flight than one of three and one of one.
            let wide = match ($self.field.lanes - lane) / S::WIDTH {
                4 => 2,
                left => left.min(3),
            };
            let mut map = 0;
            while map < $self.maps {
                // SAFETY: blocks stay within the lanes and maps that `Field::check` held the slices to.
                map += unsafe {
                    ahead.ask();
                    match ($self.maps - map, wide) {
                        (8.., 3) if S::MAPS >= 8 => $self.block::<S, 8, 3>($piece, weights, map, lane),
                        (8.., 2) if S::MAPS >= 8 => $self.block::<S, 8, 2>($piece, weights, map, lane),
                        (8.., 1) if S::MAPS >= 8 => $self.block::<S, 8, 1>($piece, weights, map, lane),
                        (4.., 3) if S::MAPS >= 4 => $self.block::<S, 4, 3>($piece, weights, map, lane),
                        (4.., 2) if S::MAPS >= 4 => $self.block::<S, 4, 2>($piece, weights, map, lane),
                        (4.., 1) => $self.block::<S, 4, 1>($piece, weights, map, lane),
                        (2.., 3) => $self.block::<S, 2, 3>($piece, weights, map, lane),
                        (2.., 2) => $self.block::<S, 2, 2>($piece, weights, map, lane),
                        (2.., 1) => $self.block::<S, 2, 1>($piece, weights, map, lane),
                        (_, 3) => $self.block::<S, 1, 3>($piece, weights, map, lane),
                        (_, 2) => $self.block::<S, 1, 2>($piece, weights, map, lane),
                        _ => $self.block::<S, 1, 1>($piece, weights, map, lane),
                    }
                };
            }
            lane += wide * S::WIDTH;
        }
    }};
}

/// Adds the responses of the units at positions side by side to `out`:
/// `out[p, m, :] += Σ_t weights[p, t, m] · input[t of p, :]`.
///
/// `weights`: `[position, tap, map]`; `input` starts with the first field's first number; `out`: `[position, map, lane]`.
pub fn respond(cpu: Cpu, field: Field, maps: usize, weights: Slice, input: &[f32], out: &mut [f32]) {
    let positions = field.check(&(0..field.rows), maps, weights.len(), input, out);
    PieceWeights::lend(&field, maps, weights, |weights| {
        cpu.run(Respond { field, positions, maps, weights, input, out });
    });
}

struct Respond<'a> {
    field: Field,
    positions: usize,
    maps: usize,
    weights: PieceWeights<'a>,
    input: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Respond<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let field = self.field;
        field.sweep::<S>(0..field.rows, self.positions, self.weights.padded, &mut self);
    }
}

impl Sweep for Respond<'_> {
    #[inline(always)]
    fn piece<S: Simd>(&mut self, piece: Piece) {
        in_blocks!(self, piece);
    }
}

impl Respond<'_> {
    /// Sums the taps of a piece in registers, for `M` maps and `V` vectors of lanes.
    #[inline(always)]
    unsafe fn block<S: Simd, const M: usize, const V: usize>(
        &mut self,
        piece: Piece,
        (weights, weights_pitch): (*const f32, usize),
        map: usize,
        lane: usize,
    ) -> usize {
        let Piece { position, .. } = piece;
        let (Field { step, pitch, lanes, .. }, padded) = (self.field, self.weights.padded);
        unsafe {
            let mut weights_row = weights.add(map);
            let first = piece.row * pitch + (position * step + piece.first) * lanes + lane;
            let mut input_row = self.input.as_ptr().add(first);
            let mut sum = [[S::zero(); V]; M];
            for _ in 0..piece.rows {
                S::sum_taps(piece.taps, (weights_row, padded), (input_row, lanes), &mut sum);
                weights_row = weights_row.wrapping_add(weights_pitch);
                input_row = input_row.wrapping_add(pitch);
            }
            for (m, sum) in sum.iter().enumerate() {
                for (v, &sum) in sum.iter().enumerate() {
                    let at = (position * self.maps + map + m) * lanes + lane + v * S::WIDTH;
                    let out = self.out.as_mut_ptr().add(at);
                    S::store(out, S::add(S::load(out), sum));
                }
            }
        }
        M
    }
}

/// Adds what the units at positions side by side give back to these rows of their fields:
/// `out[t of p, :] += Σ_m weights[p, t, m] · response[p, m, :]`.
///
/// The transpose of [`respond`]; `out` starts with the first number of row `rows.start` of the first field.
pub fn scatter(
    cpu: Cpu,
    field: Field,
    rows: Range<usize>,
    maps: usize,
    weights: Slice,
    response: &[f32],
    out: &mut [f32],
) {
    let positions = field.check(&rows, maps, weights.len(), out, response);
    PieceWeights::lend(&field, maps, weights, |weights| {
        cpu.run(Scatter { field, rows, positions, maps, weights, response, out });
    });
}

struct Scatter<'a> {
    field: Field,
    rows: Range<usize>,
    positions: usize,
    maps: usize,
    weights: PieceWeights<'a>,
    response: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Scatter<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let field = self.field;
        field.sweep::<S>(self.rows.clone(), self.positions, self.weights.padded, &mut self);
    }
}

impl Sweep for Scatter<'_> {
    #[inline(always)]
    fn piece<S: Simd>(&mut self, piece: Piece) {
        in_blocks!(self, piece);
    }
}

impl Scatter<'_> {
    /// Holds the responses of `M` maps and `V` vectors of lanes in registers while the taps of a piece pass by.
    #[inline(always)]
    unsafe fn block<S: Simd, const M: usize, const V: usize>(
        &mut self,
        piece: Piece,
        (weights, weights_pitch): (*const f32, usize),
        map: usize,
        lane: usize,
    ) -> usize {
        let Piece { position, .. } = piece;
        let (Field { step, pitch, lanes, .. }, padded) = (self.field, self.weights.padded);
        unsafe {
            let mut response = [[S::zero(); V]; M];
            for (m, response) in response.iter_mut().enumerate() {
                for (v, response) in response.iter_mut().enumerate() {
                    let at = (position * self.maps + map + m) * lanes + lane + v * S::WIDTH;
                    *response = S::load(self.response.as_ptr().add(at));
                }
            }
            let mut weights_row = weights.add(map);
            let down = piece.row - self.rows.start;
            let mut out_row =
                self.out.as_mut_ptr().add(down * pitch + (position * step + piece.first) * lanes + lane);
            for _ in 0..piece.rows {
                let (mut weights, mut out) = (weights_row, out_row);
                for _ in 0..piece.taps {
                    let mut sum = [S::zero(); V];
                    for (v, sum) in sum.iter_mut().enumerate() {
                        *sum = S::load(out.add(v * S::WIDTH));
                    }
                    for (m, response) in response.iter().enumerate() {
                        let w = S::splat(weights.add(m));
                        for (sum, &response) in sum.iter_mut().zip(response) {
                            *sum = S::mul_add(w, response, *sum);
                        }
                    }
                    for (v, &sum) in sum.iter().enumerate() {
                        S::store(out.add(v * S::WIDTH), sum);
                    }
                    out = out.wrapping_add(lanes);
                    weights = weights.wrapping_add(padded);
                }
                weights_row = weights_row.wrapping_add(weights_pitch);
                out_row = out_row.wrapping_add(pitch);
            }
        }
        M
    }
}

#[cfg(test)]
mod tests;
