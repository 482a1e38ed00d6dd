//! Simple units at one position: response, its transpose, and the gradient of their weights (paper §3.2).
//!
//! A position has `maps` filters over the same receptive field. Their weights are stored `[tap, map]`, maps innermost
//! and padded with zeros to a multiple of [`MAP_PAD`]; a tap is one input value `(dy, dx, channel)` of the field. The
//! plain definitions are in the tests; the vector variants add in another order and match them within rounding.
//! None of them allocates in the steady state.

use super::{Cpu, Kernel, LANES, Simd, with_scratch};
use crate::geometry::StageShape;

/// Maps are padded to a multiple of this in the storage of weights.
pub const MAP_PAD: usize = 8;

/// A receptive field, or some rows of one, in maps `[row, column, channel, lane]`: each of its rows is contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Rows.
    pub rows: usize,
    /// Taps of a row: columns times channels.
    pub run: usize,
    /// Distance between the starts of rows, in numbers.
    pub pitch: usize,
    /// Lanes of the maps.
    pub lanes: usize,
}

impl Field {
    /// The receptive fields of a stage whose maps have this many lanes.
    pub fn new(shape: &StageShape, lanes: usize) -> Field {
        assert!(lanes.is_multiple_of(LANES) && lanes > 0, "lanes come in multiples of {LANES}");
        let run = shape.field * shape.input.channels;
        Field { rows: shape.field, run, pitch: shape.input.row_len() * lanes, lanes }
    }

    /// Taps in all its rows.
    pub fn taps(&self) -> usize {
        self.rows * self.run
    }

    /// Numbers from its first to its last.
    fn span(&self) -> usize {
        (self.rows - 1) * self.pitch + self.run * self.lanes
    }

    /// The pointers below rest on these.
    fn check(&self, maps: usize, weights: &[f32], input: &[f32], response: &[f32]) {
        let padded = maps.next_multiple_of(MAP_PAD);
        assert!(self.rows > 0 && self.run > 0 && self.lanes.is_multiple_of(LANES), "{self:?}");
        assert_eq!(weights.len(), self.taps() * padded, "weights are not [taps, maps]");
        assert!(self.span() <= input.len(), "the field leaves the maps");
        assert_eq!(response.len(), maps * self.lanes, "responses are not [maps, lanes]");
    }
}

/// Adds the responses of one position's units to `out`: `out[m, :] += Σ_t weights[t, m] · input[t, :]`.
///
/// `input` starts with the field's first number.
pub fn respond(cpu: Cpu, field: Field, maps: usize, weights: &[f32], input: &[f32], out: &mut [f32]) {
    field.check(maps, weights, input, out);
    cpu.run(Respond { field, maps, weights, input, out });
}

struct Respond<'a> {
    field: Field,
    maps: usize,
    weights: &'a [f32],
    input: &'a [f32],
    out: &'a mut [f32],
}

/// Taps that are worked on for all maps and lanes before the next: so many that their numbers stay in the first-level cache.
const CACHED_BYTES: usize = 22 << 10;

/// Some taps of one row of a field.
#[derive(Clone, Copy)]
struct Piece {
    row: usize,
    first: usize,
    taps: usize,
}

impl Field {
    /// The field in pieces of which each stays in the cache.
    #[inline(always)]
    fn pieces(self) -> impl Iterator<Item = Piece> {
        let count = (self.run * self.lanes * size_of::<f32>()).div_ceil(CACHED_BYTES);
        let most = self.run.div_ceil(count);
        (0..self.rows).flat_map(move |row| {
            (0..count).map(move |number| {
                let first = (number * most).min(self.run);
                Piece { row, first, taps: most.min(self.run - first) }
            })
        })
    }
}

/// Calls `$self.block::<S, maps, vectors>($piece, map, lane)` over all maps and lanes in the largest blocks that fit, of at
/// most `$most` vectors.
macro_rules! in_blocks {
    ($self:ident, $piece:ident, $most:expr) => {{
        let mut lane = 0;
        while lane < $self.field.lanes {
            // Two blocks of two vectors keep more sums in flight than one of three and one of one.
            let wide = match ($self.field.lanes - lane) / S::WIDTH {
                4 => 2,
                left => left.min($most),
            };
            let mut map = 0;
            while map < $self.maps {
                // SAFETY: blocks stay within the lanes and maps that `Field::check` held the slices to.
                map += unsafe {
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

impl Kernel for Respond<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        for piece in self.field.pieces() {
            in_blocks!(self, piece, S::VECTORS)
        }
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
        let Field { run, pitch, lanes, .. } = self.field;
        let padded = self.maps.next_multiple_of(MAP_PAD);
        unsafe {
            let mut weights = self.weights.as_ptr().add((piece.row * run + piece.first) * padded + map);
            let mut input = self.input.as_ptr().add(piece.row * pitch + piece.first * lanes + lane);
            let mut sum = [[S::zero(); V]; M];
            for _ in 0..piece.taps {
                let mut x = [S::zero(); V];
                for (v, x) in x.iter_mut().enumerate() {
                    *x = S::load(input.add(v * S::WIDTH));
                }
                for (m, sum) in sum.iter_mut().enumerate() {
                    let w = S::splat(weights.add(m));
                    for (sum, &x) in sum.iter_mut().zip(&x) {
                        *sum = S::mul_add(w, x, *sum);
                    }
                }
                input = input.wrapping_add(lanes);
                weights = weights.wrapping_add(padded);
            }
            for (m, sum) in sum.iter().enumerate() {
                for (v, &sum) in sum.iter().enumerate() {
                    let out = self.out.as_mut_ptr().add((map + m) * lanes + lane + v * S::WIDTH);
                    S::store(out, S::add(S::load(out), sum));
                }
            }
        }
        M
    }
}

/// Adds what one position's units give back to their field: `out[t, :] += Σ_m weights[t, m] · response[m, :]`.
///
/// The transpose of [`respond`]; `out` starts with the field's first number.
pub fn scatter(cpu: Cpu, field: Field, maps: usize, weights: &[f32], response: &[f32], out: &mut [f32]) {
    field.check(maps, weights, out, response);
    cpu.run(Scatter { field, maps, weights, response, out });
}

struct Scatter<'a> {
    field: Field,
    maps: usize,
    weights: &'a [f32],
    response: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Scatter<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        for piece in self.field.pieces() {
            in_blocks!(self, piece, 3)
        }
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
        let Field { run, pitch, lanes, .. } = self.field;
        let padded = self.maps.next_multiple_of(MAP_PAD);
        unsafe {
            let mut response = [[S::zero(); V]; M];
            for (m, response) in response.iter_mut().enumerate() {
                for (v, response) in response.iter_mut().enumerate() {
                    *response = S::load(self.response.as_ptr().add((map + m) * lanes + lane + v * S::WIDTH));
                }
            }
            let mut weights = self.weights.as_ptr().add((piece.row * run + piece.first) * padded + map);
            let mut out = self.out.as_mut_ptr().add(piece.row * pitch + piece.first * lanes + lane);
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
        }
        M
    }
}

/// Writes the weight gradient of one position: `gradient[t, m] = Σ_lane input[t, lane] · response[m, lane]`.
///
/// `gradient` is laid out like the weights; `input` starts with the field's first number.
pub fn weight_gradient(
    cpu: Cpu,
    field: Field,
    maps: usize,
    input: &[f32],
    response: &[f32],
    gradient: &mut [f32],
) {
    field.check(maps, gradient, input, response);
    let (padded, lanes) = (maps.next_multiple_of(MAP_PAD), field.lanes);
    // The responses with two lanes of a map side by side, `[pair of lanes, map, 2]`: vectors then run over maps, and no
    // sum across a vector is needed but that of two neighbours at the end.
    with_scratch([padded * lanes], |[pairs]| {
        for (pair, row) in pairs.chunks_exact_mut(2 * padded).enumerate() {
            let (used, spare) = row.split_at_mut(2 * maps);
            for (out, response) in used.chunks_exact_mut(2).zip(response.chunks_exact(lanes)) {
                out.copy_from_slice(&response[2 * pair..][..2]);
            }
            spare.fill(0.0);
        }
        cpu.run(WeightGradient { field, padded, input, pairs, gradient });
    });
}

struct WeightGradient<'a> {
    field: Field,
    padded: usize,
    input: &'a [f32],
    pairs: &'a [f32],
    gradient: &'a mut [f32],
}

impl Kernel for WeightGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        // A vector holds two lanes of `WIDTH / 2` maps.
        let vectors = 2 * self.padded / S::WIDTH;
        let large = S::MAPS >= 8;
        let mut vector = 0;
        while vector < vectors {
            let wide = if vectors - vector >= 2 { 2 } else { 1 };
            for row in 0..self.field.rows {
                let mut tap = 0;
                while tap < self.field.run {
                    let at = (row, tap);
                    // SAFETY: blocks stay within the taps and padded maps that `Field::check` held the slices to.
                    tap += unsafe {
                        match (self.field.run - tap, wide) {
                            (12.., 2) if large => self.block::<S, 12, 2, 1>(at, vector),
                            (12.., 1) if large => self.block::<S, 12, 1, 2>(at, vector),
                            (6.., 2) => self.block::<S, 6, 2, 1>(at, vector),
                            (6.., _) => self.block::<S, 6, 1, 2>(at, vector),
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
        (row, tap): (usize, usize),
        vector: usize,
    ) -> usize {
        const { assert!(LANES.is_multiple_of(2 * E)) };
        let Field { run, pitch, lanes, .. } = self.field;
        unsafe {
            let mut input = self.input.as_ptr().add(row * pitch + tap * lanes);
            let mut pairs = self.pairs.as_ptr().add(vector * S::WIDTH);
            let mut sum = [[[S::zero(); V]; T]; E];
            for _ in 0..lanes / (2 * E) {
                for sum in &mut sum {
                    let mut r = [S::zero(); V];
                    for (v, r) in r.iter_mut().enumerate() {
                        *r = S::load(pairs.add(v * S::WIDTH));
                    }
                    for (t, sum) in sum.iter_mut().enumerate() {
                        let x = S::splat_pair(input.add(t * lanes));
                        for (sum, &r) in sum.iter_mut().zip(&r) {
                            *sum = S::mul_add(x, r, *sum);
                        }
                    }
                    input = input.wrapping_add(2);
                    pairs = pairs.wrapping_add(2 * self.padded);
                }
            }
            for t in 0..T {
                for v in 0..V {
                    let mut total = sum[0][t][v];
                    for other in &sum[1..] {
                        total = S::add(total, other[t][v]);
                    }
                    let out = (row * run + tap + t) * self.padded + (vector + v) * S::WIDTH / 2;
                    S::store_pair_sums(self.gradient.as_mut_ptr().add(out), total);
                }
            }
        }
        T
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{MapShape, Windows};
    use crate::kernels::lanes_for;
    use crate::rng;
    use proptest::prelude::*;
    use rand::Rng;

    /// One position of a random small stage with random numbers in every array.
    struct Case {
        shape: StageShape,
        field: Field,
        /// Where the field begins in the input.
        base: usize,
        at: (usize, usize),
        weights: Vec<f32>,
        input: Vec<f32>,
        response: Vec<f32>,
    }

    impl Case {
        fn new(windows: Windows, channels: usize, size: (usize, usize), batch: usize, seed: u64) -> Case {
            let stride = windows.stride;
            let (rows, cols) = (windows.field + size.0, windows.field + size.1);
            let shape = StageShape::new(1, MapShape { channels, rows, cols }, windows).unwrap();
            let field = Field::new(&shape, lanes_for(batch));
            let mut rng = rng::stream(seed, "kernel test", 0);
            let at = (rng.random_range(0..shape.filtered.rows), rng.random_range(0..shape.filtered.cols));
            let mut draw = |n: usize| (0..n).map(|_| rng.random_range(-1.0..1.0f32)).collect::<Vec<_>>();
            let (maps, lanes) = (windows.maps, field.lanes);
            let padded = maps.next_multiple_of(MAP_PAD);
            let mut weights = draw(shape.taps() * padded);
            for row in weights.chunks_mut(padded) {
                row[maps..].fill(0.0);
            }
            let (input, response) = (draw(shape.input.len() * lanes), draw(maps * lanes));
            let base = shape.input.place(0, at.0 * stride, at.1 * stride) * lanes;
            Case { shape, field, base, at, weights, input, response }
        }

        /// Every `(tap, index of its lane 0 in the input)`, from the definition of a receptive field.
        fn places(&self) -> Vec<(usize, usize)> {
            let (s, k, channels) = (&self.shape, self.shape.field, self.shape.input.channels);
            (0..s.taps())
                .map(|t| {
                    let (dy, dx, c) = (t / channels / k, t / channels % k, t % channels);
                    let (y, x) = (self.at.0 * s.stride + dy, self.at.1 * s.stride + dx);
                    (t, ((y * s.input.cols + x) * channels + c) * self.field.lanes)
                })
                .collect()
        }
    }

    fn assert_close(got: &[f32], want: &[f64], terms: usize, what: &str) {
        for (&g, &w) in got.iter().zip(want) {
            let bound = (terms + 2) as f64 * f64::from(f32::EPSILON) * (terms as f64).sqrt().max(1.0);
            assert!((f64::from(g) - w).abs() <= bound, "{what}: {g} instead of {w}, bound {bound:e}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]
        #[test]
        fn every_cpu_level_matches_the_definition(
            field in 1usize..=20, maps in 1usize..=128, stride in 1usize..=4, channels in 1usize..=3,
            size in (0usize..5, 0usize..5), batch in 1usize..=100, seed in any::<u64>(),
        ) {
            // Large fields with many maps and lanes add nothing but time.
            prop_assume!(field * field * channels * maps * batch < 2_000_000);
            let windows = Windows { maps, field, stride, pool: 1, pool_stride: 1, lcn: 0 };
            let case = Case::new(windows, channels, size, batch, seed);
            let (lanes, taps, padded) = (case.field.lanes, case.shape.taps(), maps.next_multiple_of(MAP_PAD));
            let w = |t: usize, m: usize| f64::from(case.weights[t * padded + m]);
            let x = |index: usize| f64::from(case.input[index]);
            let r = |m: usize, b: usize| f64::from(case.response[m * lanes + b]);

            let mut responses = vec![0.0; maps * lanes];
            let mut gradient = vec![0.0; taps * padded];
            let mut given_back: Vec<f64> = case.input.iter().map(|&x| f64::from(x)).collect();
            for (t, at) in case.places() {
                for m in 0..maps {
                    for b in 0..lanes {
                        responses[m * lanes + b] += w(t, m) * x(at + b);
                        gradient[t * padded + m] += x(at + b) * r(m, b);
                        given_back[at + b] += w(t, m) * r(m, b);
                    }
                }
            }
            let field = &case.input[case.base..];
            for cpu in Cpu::available() {
                let mut got = vec![0.0; maps * lanes];
                respond(cpu, case.field, maps, &case.weights, field, &mut got);
                assert_close(&got, &responses, taps, cpu.name());

                let mut got = vec![f32::NAN; taps * padded];
                weight_gradient(cpu, case.field, maps, field, &case.response, &mut got);
                assert_close(&got, &gradient, lanes, cpu.name());

                let mut got = case.input.clone();
                scatter(cpu, case.field, maps, &case.weights, &case.response, &mut got[case.base..]);
                assert_close(&got, &given_back, maps, cpu.name());

                // Two halves of the field's rows, one after the other, are the whole.
                let mut got = case.input.clone();
                for rows in [0..case.field.rows / 2, case.field.rows / 2..case.field.rows] {
                    if rows.is_empty() {
                        continue;
                    }
                    let part = Field { rows: rows.len(), ..case.field };
                    let weights = &case.weights[rows.start * part.run * padded..][..part.taps() * padded];
                    let first = case.base + rows.start * part.pitch;
                    scatter(cpu, part, maps, weights, &case.response, &mut got[first..]);
                }
                assert_close(&got, &given_back, maps, cpu.name());
            }
        }

        /// `⟨respond(x), r⟩ = ⟨x, scatter(r)⟩` for all x and r.
        #[test]
        fn scatter_is_the_adjoint_of_respond(
            field in 1usize..=9, maps in 1usize..=20, stride in 1usize..=3, seed in any::<u64>(),
        ) {
            let windows = Windows { maps, field, stride, pool: 1, pool_stride: 1, lcn: 0 };
            let case = Case::new(windows, 2, (3, 4), 16, seed);
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
            for cpu in Cpu::available() {
                let mut forward = vec![0.0; maps * case.field.lanes];
                let mut back = vec![0.0; case.input.len()];
                let (base, r) = (case.base, &case.response);
                respond(cpu, case.field, maps, &case.weights, &case.input[base..], &mut forward);
                scatter(cpu, case.field, maps, &case.weights, r, &mut back[base..]);
                let (left, right) = (dot(&forward, &case.response), dot(&case.input, &back));
                prop_assert!((left - right).abs() < 1e-3 * (1.0 + left.abs()), "{}: {left} != {right}", cpu.name());
            }
        }
    }
}
