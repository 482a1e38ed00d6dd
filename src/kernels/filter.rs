//! Simple units at positions side by side in a row: responses, their transpose, and the gradient of their weights (paper §3.2).
//!
//! A position has `maps` filters over the same receptive field. Weights are stored `[position, tap, map]`, maps innermost
//! and padded with zeros to a multiple of [`MAP_PAD`]; a tap is one input value `(dy, dx, channel)` of the field. The
//! plain definitions are in the tests; the vector variants add in another order and match them within rounding.
//!
//! Fields of neighbours overlap, and a field is larger than the first-level cache. So a few positions are worked on
//! together, piece by piece of the maps: each piece is brought into that cache once for all of them.
//! None of the functions allocates in the steady state.

use std::ops::Range;

use super::{Cpu, Kernel, LANES, Simd, with_scratch};
use crate::geometry::StageShape;

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
        weights: &[f32],
        maps: &[f32],
        response: &[f32],
    ) -> usize {
        assert!(self.run > 0 && self.step > 0 && self.lanes.is_multiple_of(LANES), "{self:?}");
        assert!(rows.start < rows.end && rows.end <= self.rows, "rows {rows:?} of {self:?}");
        let positions = response.len() / (count * self.lanes);
        assert!(positions > 0, "at least one position");
        assert_eq!(response.len(), positions * count * self.lanes, "responses are not [position, map, lane]");
        let padded = count.next_multiple_of(MAP_PAD);
        assert_eq!(weights.len(), positions * self.taps() * padded, "weights are not [position, tap, map]");
        let span = (rows.len() - 1) * self.pitch + ((positions - 1) * self.step + self.run) * self.lanes;
        assert!(span <= maps.len(), "the fields leave the maps");
        positions
    }

    /// Shows `work` some of its rows at these positions in pieces that stay in the first-level cache, together with the weights of
    /// as many taps: for each piece those positions, one after the other, that see some of it.
    #[inline(always)]
    fn sweep<S: Simd>(&self, rows: Range<usize>, positions: usize, padded: usize, work: &mut impl Sweep) {
        let together = if self.step < self.run { TOGETHER } else { 1 };
        let most = (CACHED_BYTES / (size_of::<f32>() * (self.lanes + padded))).max(LEAST_TAPS);
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
    next: *const f32,
    /// Numbers left in this row of the piece, of all its numbers in a row, and from row to row.
    left: usize,
    row: usize,
    pitch: usize,
    /// Lines for each block of arithmetic: asked for all at once, they would fill the queue of loads.
    lines: usize,
}

impl Ahead {
    #[inline(always)]
    fn new(field: &Field, weights: &[f32], maps: usize, piece: Piece, blocks: usize) -> Ahead {
        let padded = maps.next_multiple_of(MAP_PAD);
        let below = piece.row + piece.rows;
        let (position, top) =
            if below < field.rows { (piece.position, below) } else { (piece.position + TOGETHER, 0) };
        let first = (position * field.taps() + top * field.run + piece.first) * padded;
        let row = piece.taps * padded;
        Ahead {
            next: weights.as_ptr().wrapping_add(first),
            left: row,
            row,
            pitch: field.run * padded,
            lines: (piece.rows * row).div_ceil(16 * blocks),
        }
    }

    #[inline(always)]
    unsafe fn ask<S: Simd>(&mut self) {
        for _ in 0..self.lines {
            unsafe { S::prefetch(self.next) };
            if self.left > 16 {
                self.left -= 16;
                self.next = self.next.wrapping_add(16);
            } else {
                self.next = self.next.wrapping_add(self.left).wrapping_add(self.pitch - self.row);
                self.left = self.row;
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

/// Calls `$self.block::<S, maps, vectors>($piece, map, lane)` over all maps and lanes in the largest blocks that fit.
macro_rules! in_blocks {
    ($self:ident, $piece:ident) => {{
        let blocks = $self.maps.div_ceil(S::MAPS) * $self.field.lanes.div_ceil(S::WIDTH * 3);
        let mut ahead = Ahead::new(&$self.field, $self.weights, $self.maps, $piece, blocks);
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
                    ahead.ask::<S>();
                    match ($self.maps - map, wide) {
                        (8.., 3) if S::MAPS >= 8 => $self.block::<S, 8, 3>($piece, map, lane),
                        (8.., 2) if S::MAPS >= 8 => $self.block::<S, 8, 2>($piece, map, lane),
                        (8.., 1) if S::MAPS >= 8 => $self.block::<S, 8, 1>($piece, map, lane),
                        (4.., 3) if S::MAPS >= 4 => $self.block::<S, 4, 3>($piece, map, lane),
                        (4.., 2) if S::MAPS >= 4 => $self.block::<S, 4, 2>($piece, map, lane),
                        (4.., 1) => $self.block::<S, 4, 1>($piece, map, lane),
                        (2.., 3) => $self.block::<S, 2, 3>($piece, map, lane),
                        (2.., 2) => $self.block::<S, 2, 2>($piece, map, lane),
                        (2.., 1) => $self.block::<S, 2, 1>($piece, map, lane),
                        (_, 3) => $self.block::<S, 1, 3>($piece, map, lane),
                        (_, 2) => $self.block::<S, 1, 2>($piece, map, lane),
                        _ => $self.block::<S, 1, 1>($piece, map, lane),
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
pub fn respond(cpu: Cpu, field: Field, maps: usize, weights: &[f32], input: &[f32], out: &mut [f32]) {
    let positions = field.check(&(0..field.rows), maps, weights, input, out);
    cpu.run(Respond { field, positions, maps, weights, input, out });
}

struct Respond<'a> {
    field: Field,
    positions: usize,
    maps: usize,
    weights: &'a [f32],
    input: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Respond<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let (field, padded) = (self.field, self.maps.next_multiple_of(MAP_PAD));
        field.sweep::<S>(0..field.rows, self.positions, padded, &mut self);
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
        map: usize,
        lane: usize,
    ) -> usize {
        let Piece { position, .. } = piece;
        let Field { run, step, pitch, lanes, .. } = self.field;
        let (padded, taps) = (self.maps.next_multiple_of(MAP_PAD), self.field.taps());
        unsafe {
            let first = (position * taps + piece.row * run + piece.first) * padded + map;
            let mut weights_row = self.weights.as_ptr().add(first);
            let first = piece.row * pitch + (position * step + piece.first) * lanes + lane;
            let mut input_row = self.input.as_ptr().add(first);
            let mut sum = [[S::zero(); V]; M];
            for _ in 0..piece.rows {
                S::sum_taps(piece.taps, (weights_row, padded), (input_row, lanes), &mut sum);
                weights_row = weights_row.wrapping_add(run * padded);
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
    weights: &[f32],
    response: &[f32],
    out: &mut [f32],
) {
    let positions = field.check(&rows, maps, weights, out, response);
    cpu.run(Scatter { field, rows, positions, maps, weights, response, out });
}

struct Scatter<'a> {
    field: Field,
    rows: Range<usize>,
    positions: usize,
    maps: usize,
    weights: &'a [f32],
    response: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Scatter<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let (field, padded) = (self.field, self.maps.next_multiple_of(MAP_PAD));
        field.sweep::<S>(self.rows.clone(), self.positions, padded, &mut self);
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
        map: usize,
        lane: usize,
    ) -> usize {
        let Piece { position, .. } = piece;
        let Field { run, step, pitch, lanes, .. } = self.field;
        let (padded, taps) = (self.maps.next_multiple_of(MAP_PAD), self.field.taps());
        unsafe {
            let mut response = [[S::zero(); V]; M];
            for (m, response) in response.iter_mut().enumerate() {
                for (v, response) in response.iter_mut().enumerate() {
                    let at = (position * self.maps + map + m) * lanes + lane + v * S::WIDTH;
                    *response = S::load(self.response.as_ptr().add(at));
                }
            }
            let first = (position * taps + piece.row * run + piece.first) * padded + map;
            let mut weights_row = self.weights.as_ptr().add(first);
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
                weights_row = weights_row.wrapping_add(run * padded);
                out_row = out_row.wrapping_add(pitch);
            }
        }
        M
    }
}

/// Writes the weight gradients of positions side by side: `gradient[p, t, m] = Σ_lane input[t of p, lane] · response[p, m, lane]`.
///
/// `gradient` is laid out like the weights; `input` starts with the first field's first number.
pub fn weight_gradient(
    cpu: Cpu,
    field: Field,
    maps: usize,
    input: &[f32],
    response: &[f32],
    gradient: &mut [f32],
) {
    let positions = field.check(&(0..field.rows), maps, gradient, input, response);
    with_pairs(cpu, maps, field.lanes, response, |pairs| {
        cpu.run(WeightGradient {
            field,
            positions,
            padded: maps.next_multiple_of(MAP_PAD),
            input,
            pairs,
            gradient,
        });
    });
}

/// [`respond`] with `weights` into `out`, and [`weight_gradient`] with `response` into `gradient`, of the same input, which
/// passes by only once.
#[expect(clippy::too_many_arguments, reason = "two products of one input")]
pub fn respond_and_weight_gradient(
    cpu: Cpu,
    field: Field,
    maps: usize,
    weights: &[f32],
    input: &[f32],
    out: &mut [f32],
    response: &[f32],
    gradient: &mut [f32],
) {
    let positions = field.check(&(0..field.rows), maps, weights, input, out);
    assert_eq!((gradient.len(), response.len()), (weights.len(), out.len()), "as many positions");
    with_pairs(cpu, maps, field.lanes, response, |pairs| {
        let padded = maps.next_multiple_of(MAP_PAD);
        cpu.run(Both {
            respond: Respond { field, positions, maps, weights, input, out },
            gradient: WeightGradient { field, positions, padded, input, pairs, gradient },
        });
    });
}

struct Both<'a> {
    respond: Respond<'a>,
    gradient: WeightGradient<'a>,
}

impl Kernel for Both<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let WeightGradient { field, positions, padded, .. } = self.gradient;
        field.sweep::<S>(0..field.rows, positions, padded, &mut self);
    }
}

impl Sweep for Both<'_> {
    #[inline(always)]
    fn piece<S: Simd>(&mut self, piece: Piece) {
        self.respond.piece::<S>(piece);
        self.gradient.piece::<S>(piece);
    }
}

/// Lends `work` the responses with two lanes of a map side by side, `[position, 8 maps, pair of lanes, map, 2]`: vectors then run
/// over maps, and no sum across a vector is needed but that of two neighbours at the end.
fn with_pairs(cpu: Cpu, maps: usize, lanes: usize, response: &[f32], work: impl FnOnce(&[f32])) {
    let padded = maps.next_multiple_of(MAP_PAD);
    let positions = response.len() / (maps * lanes);
    with_scratch([positions * padded * lanes], |[pairs]| {
        cpu.run(Pack { maps, lanes, response, pairs });
        work(pairs);
    });
}

struct Pack<'a> {
    maps: usize,
    lanes: usize,
    response: &'a [f32],
    pairs: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Pack { maps, lanes, response, pairs } = self;
        let eights = response.chunks_exact(maps * lanes).flat_map(|maps| maps.chunks(MAP_PAD * lanes));
        for (response, pairs) in eights.zip(pairs.chunks_exact_mut(MAP_PAD * lanes)) {
            if response.len() < pairs.len() {
                pairs.fill(0.0);
            }
            let (pairs, _) = pairs.as_chunks_mut::<{ 2 * MAP_PAD }>();
            for (map, response) in response.chunks_exact(lanes).enumerate() {
                for (pairs, pair) in pairs.iter_mut().zip(response.as_chunks::<2>().0) {
                    pairs[2 * map..2 * map + 2].copy_from_slice(pair);
                }
            }
        }
    }
}

struct WeightGradient<'a> {
    field: Field,
    positions: usize,
    padded: usize,
    input: &'a [f32],
    pairs: &'a [f32],
    gradient: &'a mut [f32],
}

impl Kernel for WeightGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let field = self.field;
        field.sweep::<S>(0..field.rows, self.positions, self.padded, &mut self);
    }
}

impl Sweep for WeightGradient<'_> {
    #[inline(always)]
    fn piece<S: Simd>(&mut self, piece: Piece) {
        // A vector holds two lanes of `WIDTH / 2` maps.
        let vectors = 2 * self.padded / S::WIDTH;
        let large = S::MAPS >= 8;
        let mut vector = 0;
        while vector < vectors {
            let wide = if vectors - vector >= 2 { 2 } else { 1 };
            for row in piece.row..piece.row + piece.rows {
                let (mut tap, end) = (piece.first, piece.first + piece.taps);
                while tap < end {
                    let at = (piece.position, row, tap);
                    // SAFETY: blocks stay within the taps and padded maps that `Field::check` held the slices to.
                    tap += unsafe {
                        match (end - tap, wide) {
                            (12.., 2) if large => self.block::<S, 12, 2, 1>(at, vector),
                            (12.., 1) if large => self.block::<S, 12, 1, 2>(at, vector),
                            // Two blocks of four are faster than one of six and one of two.
                            (6..8 | 9.., 2) => self.block::<S, 6, 2, 1>(at, vector),
                            (6..8 | 9.., _) => self.block::<S, 6, 1, 2>(at, vector),
                            (4.., 2) => self.block::<S, 4, 2, 1>(at, vector),
                            (4.., _) => self.block::<S, 4, 1, 2>(at, vector),
                            (2.., 2) => self.block::<S, 2, 2, 2>(at, vector),
                            (2.., _) => self.block::<S, 2, 1, 4>(at, vector),
                            (_, 2) => self.block::<S, 1, 2, 4>(at, vector),
                            _ => self.block::<S, 1, 1, 8>(at, vector),
                        }
                    };
                }
            }
            vector += wide;
        }
    }
}

impl WeightGradient<'_> {
    /// Sums `T` taps of a row of the field, of `V` vectors, over all lanes; each in `E` independent sums, so that enough are
    /// in flight.
    #[inline(always)]
    unsafe fn block<S: Simd, const T: usize, const V: usize, const E: usize>(
        &mut self,
        (position, row, tap): (usize, usize, usize),
        vector: usize,
    ) -> usize {
        const { assert!(LANES.is_multiple_of(2 * E) && (2 * MAP_PAD).is_multiple_of(S::WIDTH)) };
        let Field { run, step, pitch, lanes, .. } = self.field;
        // Vectors that lie side by side for eight maps.
        let near = 2 * MAP_PAD / S::WIDTH;
        unsafe {
            let mut input = self.input.as_ptr().add(row * pitch + (position * step + tap) * lanes);
            let mut pairs: [*const f32; V] = std::array::from_fn(|v| {
                let (eight, within) = ((vector + v) / near, (vector + v) % near);
                let at = position * self.padded * lanes + eight * MAP_PAD * lanes + within * S::WIDTH;
                self.pairs.as_ptr().add(at)
            });
            let mut sum = [[[S::zero(); V]; T]; E];
            for _ in 0..lanes / (2 * E) {
                for sum in &mut sum {
                    let mut r = [S::zero(); V];
                    for (r, pairs) in r.iter_mut().zip(&mut pairs) {
                        *r = S::load(*pairs);
                        *pairs = pairs.wrapping_add(2 * MAP_PAD);
                    }
                    for (t, sum) in sum.iter_mut().enumerate() {
                        let x = S::splat_pair(input.add(t * lanes));
                        for (sum, &r) in sum.iter_mut().zip(&r) {
                            *sum = S::mul_add(x, r, *sum);
                        }
                    }
                    input = input.wrapping_add(2);
                }
            }
            let taps = self.field.taps();
            for t in 0..T {
                for v in 0..V {
                    let mut total = sum[0][t][v];
                    for other in &sum[1..] {
                        total = S::add(total, other[t][v]);
                    }
                    let tap = position * taps + row * run + tap + t;
                    let out = tap * self.padded + (vector + v) * S::WIDTH / 2;
                    S::store_pair_sums(self.gradient.as_mut_ptr().add(out), total);
                }
            }
        }
        T
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
