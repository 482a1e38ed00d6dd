//! Simple units at one position: response, its transpose, and the gradient of their weights (paper §3.2).
//!
//! A position has `maps` filters over the same receptive field. Their weights are stored `[tap, map]`, maps innermost
//! and padded with zeros to a multiple of [`MAP_PAD`]; a tap is one input value `(channel, dy, dx)` of the field. The
//! plain definitions are in the tests; the vector variants add in another order and match them within rounding.
//! None of them allocates.

use super::{Cpu, Kernel, LANES, Simd};
use crate::geometry::StageShape;

/// Maps are padded to a multiple of this in the storage of weights.
pub const MAP_PAD: usize = 8;

/// Where the taps of a receptive field lie in the input maps.
#[derive(Debug, Clone)]
pub struct Taps {
    /// Distance of each tap from the field's first value.
    offsets: Vec<usize>,
    lanes: usize,
    /// Steps in the input between neighbouring positions, along rows and columns.
    step: (usize, usize),
    /// Values in the input.
    input_len: usize,
}

impl Taps {
    /// The taps `(channel, dy, dx)` of `shape` in input maps with this many lanes.
    pub fn new(shape: &StageShape, lanes: usize) -> Taps {
        assert!(lanes.is_multiple_of(LANES) && lanes > 0, "lanes come in multiples of {LANES}");
        let (rows, cols, side) = (shape.input.rows, shape.input.cols, 0..shape.field);
        let offsets = (0..shape.input.channels)
            .flat_map(|c| side.clone().flat_map(move |dy| (0..shape.field).map(move |dx| (c, dy, dx))))
            .map(|(c, dy, dx)| ((c * rows + dy) * cols + dx) * lanes)
            .collect();
        let step = (shape.stride * cols * lanes, shape.stride * lanes);
        Taps { offsets, lanes, step, input_len: shape.input.len() * lanes }
    }

    /// First value of the receptive field at position `(row, col)`.
    pub fn base(&self, row: usize, col: usize) -> usize {
        row * self.step.0 + col * self.step.1
    }

    /// Lanes of the maps.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// The pointers below rest on these.
    fn check(&self, base: usize, maps: usize, weights: &[f32], input: &[f32]) {
        assert_eq!(
            weights.len(),
            self.offsets.len() * maps.next_multiple_of(MAP_PAD),
            "weights are not [taps, maps]"
        );
        assert_eq!(input.len(), self.input_len, "input is not of the size that the taps were made for");
        let last = self.offsets.last().expect("a field has taps");
        assert!(base + last + self.lanes <= input.len(), "the field leaves the map");
    }
}

/// Adds the responses of one position's units to `out`: `out[m, :] += Σ_t weights[t, m] · input[t, :]`.
///
/// `out` starts at map 0 of the position, maps `out_step` values apart; it must reach the last map's lanes.
#[allow(clippy::too_many_arguments)]
pub fn respond(
    cpu: Cpu,
    taps: &Taps,
    base: usize,
    maps: usize,
    weights: &[f32],
    input: &[f32],
    out: &mut [f32],
    out_step: usize,
) {
    taps.check(base, maps, weights, input);
    assert!((maps - 1) * out_step + taps.lanes <= out.len(), "output too short");
    cpu.run(Respond { taps, base, maps, weights, input, out, out_step });
}

struct Respond<'a> {
    taps: &'a Taps,
    base: usize,
    maps: usize,
    weights: &'a [f32],
    input: &'a [f32],
    out: &'a mut [f32],
    out_step: usize,
}

/// Calls `$self.$block::<S, maps, vectors>(map, lane)` over all maps and lanes in the largest blocks that fit.
macro_rules! in_blocks {
    ($self:ident, $block:ident) => {{
        let mut lane = 0;
        while lane < $self.taps.lanes {
            let left = ($self.taps.lanes - lane) / S::WIDTH;
            let mut map = 0;
            while map < $self.maps {
                // SAFETY: blocks stay within `maps` and `lanes`; `check` and the asserts hold the slices to that.
                map += unsafe {
                    match ($self.maps - map, left) {
                        (8.., 3..) if S::MAPS >= 8 => $self.$block::<S, 8, 3>(map, lane),
                        (8.., 2) if S::MAPS >= 8 => $self.$block::<S, 8, 2>(map, lane),
                        (8.., _) if S::MAPS >= 8 => $self.$block::<S, 8, 1>(map, lane),
                        (4.., 3..) if S::MAPS >= 4 => $self.$block::<S, 4, 3>(map, lane),
                        (4.., 2) if S::MAPS >= 4 => $self.$block::<S, 4, 2>(map, lane),
                        (4.., _) if S::MAPS >= 4 => $self.$block::<S, 4, 1>(map, lane),
                        (2.., 3..) => $self.$block::<S, 2, 3>(map, lane),
                        (2.., 2) => $self.$block::<S, 2, 2>(map, lane),
                        (2.., _) => $self.$block::<S, 2, 1>(map, lane),
                        (_, 3..) => $self.$block::<S, 1, 3>(map, lane),
                        (_, 2) => $self.$block::<S, 1, 2>(map, lane),
                        _ => $self.$block::<S, 1, 1>(map, lane),
                    }
                };
            }
            lane += left.min(3) * S::WIDTH;
        }
    }};
}

impl Kernel for Respond<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        in_blocks!(self, block)
    }
}

impl Respond<'_> {
    /// Sums all taps of `M` maps and `V` vectors of lanes in registers.
    #[inline(always)]
    unsafe fn block<S: Simd, const M: usize, const V: usize>(&mut self, map: usize, lane: usize) -> usize {
        unsafe {
            let input = self.input.as_ptr().add(self.base + lane);
            let padded = self.maps.next_multiple_of(MAP_PAD);
            let mut weights = self.weights.as_ptr().add(map);
            let mut sum = [[S::zero(); V]; M];
            for &offset in &self.taps.offsets {
                let mut x = [S::zero(); V];
                for (v, x) in x.iter_mut().enumerate() {
                    *x = S::load(input.add(offset + v * S::WIDTH));
                }
                for (m, sum) in sum.iter_mut().enumerate() {
                    let w = S::splat(weights.add(m));
                    for (sum, &x) in sum.iter_mut().zip(&x) {
                        *sum = S::mul_add(w, x, *sum);
                    }
                }
                weights = weights.add(padded);
            }
            for (m, sum) in sum.iter().enumerate() {
                for (v, &sum) in sum.iter().enumerate() {
                    let out = self.out.as_mut_ptr().add((map + m) * self.out_step + lane + v * S::WIDTH);
                    S::store(out, S::add(S::load(out), sum));
                }
            }
        }
        M
    }
}

/// Adds what one position's units give back to their field: `out[t, :] += Σ_m weights[t, m] · response[m, :]`.
///
/// The transpose of [`respond`]; `response` starts at map 0 of the position, maps `response_step` values apart.
#[allow(clippy::too_many_arguments)]
pub fn scatter(
    cpu: Cpu,
    taps: &Taps,
    base: usize,
    maps: usize,
    weights: &[f32],
    response: &[f32],
    response_step: usize,
    out: &mut [f32],
) {
    taps.check(base, maps, weights, out);
    assert!((maps - 1) * response_step + taps.lanes <= response.len(), "responses too short");
    cpu.run(Scatter { taps, base, maps, weights, response, response_step, out });
}

struct Scatter<'a> {
    taps: &'a Taps,
    base: usize,
    maps: usize,
    weights: &'a [f32],
    response: &'a [f32],
    response_step: usize,
    out: &'a mut [f32],
}

impl Kernel for Scatter<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        in_blocks!(self, block)
    }
}

impl Scatter<'_> {
    /// Holds the responses of `M` maps and `V` vectors of lanes in registers while the taps pass by.
    #[inline(always)]
    unsafe fn block<S: Simd, const M: usize, const V: usize>(&mut self, map: usize, lane: usize) -> usize {
        unsafe {
            let mut response = [[S::zero(); V]; M];
            for (m, response) in response.iter_mut().enumerate() {
                for (v, response) in response.iter_mut().enumerate() {
                    let from = (map + m) * self.response_step + lane + v * S::WIDTH;
                    *response = S::load(self.response.as_ptr().add(from));
                }
            }
            let out = self.out.as_mut_ptr().add(self.base + lane);
            let padded = self.maps.next_multiple_of(MAP_PAD);
            let mut weights = self.weights.as_ptr().add(map);
            for &offset in &self.taps.offsets {
                let mut sum = [S::zero(); V];
                for (v, sum) in sum.iter_mut().enumerate() {
                    *sum = S::load(out.add(offset + v * S::WIDTH));
                }
                for (m, response) in response.iter().enumerate() {
                    let w = S::splat(weights.add(m));
                    for (sum, &response) in sum.iter_mut().zip(response) {
                        *sum = S::mul_add(w, response, *sum);
                    }
                }
                for (v, &sum) in sum.iter().enumerate() {
                    S::store(out.add(offset + v * S::WIDTH), sum);
                }
                weights = weights.add(padded);
            }
        }
        M
    }
}

/// Writes the weight gradient of one position: `gradient[t, m] = Σ_lane field[t, lane] · response[m, lane]`.
///
/// `gradient` is laid out like the weights. `pairs` is scratch of at least `padded maps x lanes` values: the responses
/// with two lanes of a map side by side, so that vectors run over maps and no sum across a vector is needed.
#[allow(clippy::too_many_arguments)]
pub fn weight_gradient(
    cpu: Cpu,
    taps: &Taps,
    base: usize,
    maps: usize,
    field: &[f32],
    response: &[f32],
    response_step: usize,
    pairs: &mut [f32],
    gradient: &mut [f32],
) {
    taps.check(base, maps, gradient, field);
    assert!((maps - 1) * response_step + taps.lanes <= response.len(), "responses too short");
    let padded = maps.next_multiple_of(MAP_PAD);
    let pairs = &mut pairs[..padded * taps.lanes];
    for (pair, row) in pairs.chunks_exact_mut(2 * padded).enumerate() {
        let (used, spare) = row.split_at_mut(2 * maps);
        for (map, out) in used.chunks_exact_mut(2).enumerate() {
            out.copy_from_slice(&response[map * response_step + 2 * pair..][..2]);
        }
        spare.fill(0.0);
    }
    cpu.run(WeightGradient { taps, base, padded, field, pairs, gradient });
}

struct WeightGradient<'a> {
    taps: &'a Taps,
    base: usize,
    padded: usize,
    field: &'a [f32],
    pairs: &'a [f32],
    gradient: &'a mut [f32],
}

impl Kernel for WeightGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        // A vector holds two lanes of `WIDTH / 2` maps.
        let vectors = 2 * self.padded / S::WIDTH;
        let mut vector = 0;
        while vector < vectors {
            let wide = if vectors - vector >= 2 { 2 } else { 1 };
            let mut tap = 0;
            while tap < self.taps.offsets.len() {
                // SAFETY: blocks stay within the taps and padded maps; the asserts above hold the slices to that.
                tap += unsafe {
                    match (self.taps.offsets.len() - tap, wide) {
                        (8.., 2) if S::MAPS >= 8 => self.block::<S, 8, 2>(tap, vector),
                        (8.., 1) => self.block::<S, 8, 1>(tap, vector),
                        (4.., 2) => self.block::<S, 4, 2>(tap, vector),
                        (4.., 1) => self.block::<S, 4, 1>(tap, vector),
                        (_, 2) => self.block::<S, 1, 2>(tap, vector),
                        _ => self.block::<S, 1, 1>(tap, vector),
                    }
                };
            }
            vector += wide;
        }
    }
}

impl WeightGradient<'_> {
    /// Sums `T` taps of `V` vectors over all lanes.
    #[inline(always)]
    unsafe fn block<S: Simd, const T: usize, const V: usize>(&mut self, tap: usize, vector: usize) -> usize {
        unsafe {
            let mut field = [self.field.as_ptr(); T];
            for (t, field) in field.iter_mut().enumerate() {
                *field = field.add(self.base + self.taps.offsets[tap + t]);
            }
            let pairs = self.pairs.as_ptr().add(vector * S::WIDTH);
            let row = 2 * self.padded;
            // Even and odd pairs have their own sums: enough independent chains for narrow maps.
            let mut even = [[S::zero(); V]; T];
            let mut odd = [[S::zero(); V]; T];
            for quad in 0..self.taps.lanes / 4 {
                for (half, sum) in [&mut even, &mut odd].into_iter().enumerate() {
                    let pair = 2 * quad + half;
                    let mut r = [S::zero(); V];
                    for (v, r) in r.iter_mut().enumerate() {
                        *r = S::load(pairs.add(pair * row + v * S::WIDTH));
                    }
                    for (sum, field) in sum.iter_mut().zip(&field) {
                        let x = S::splat_pair(field.add(2 * pair));
                        for (sum, &r) in sum.iter_mut().zip(&r) {
                            *sum = S::mul_add(x, r, *sum);
                        }
                    }
                }
            }
            for t in 0..T {
                for v in 0..V {
                    let out = (tap + t) * self.padded + (vector + v) * S::WIDTH / 2;
                    S::store_pair_sums(self.gradient.as_mut_ptr().add(out), S::add(even[t][v], odd[t][v]));
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
        taps: Taps,
        at: (usize, usize),
        weights: Vec<f32>,
        input: Vec<f32>,
        response: Vec<f32>,
    }

    impl Case {
        fn new(windows: Windows, channels: usize, size: (usize, usize), batch: usize, seed: u64) -> Case {
            let (rows, cols) = (windows.field + size.0, windows.field + size.1);
            let shape = StageShape::new(1, MapShape { channels, rows, cols }, windows).unwrap();
            let taps = Taps::new(&shape, lanes_for(batch));
            let mut rng = rng::stream(seed, "kernel test", 0);
            let at = (rng.random_range(0..shape.filtered.rows), rng.random_range(0..shape.filtered.cols));
            let mut draw = |n: usize| (0..n).map(|_| rng.random_range(-1.0..1.0f32)).collect::<Vec<_>>();
            let lanes = taps.lanes;
            let padded = shape.filtered.channels.next_multiple_of(MAP_PAD);
            let mut weights = draw(shape.taps() * padded);
            for row in weights.chunks_mut(padded) {
                row[windows.maps..].fill(0.0);
            }
            let (input, response) = (draw(shape.input.len() * lanes), draw(shape.filtered.len() * lanes));
            Case { shape, taps, at, weights, input, response }
        }

        fn base(&self) -> usize {
            self.taps.base(self.at.0, self.at.1)
        }

        /// Every `(tap, index of its lane 0 in the input)`, from the definition of a receptive field.
        fn field(&self) -> Vec<(usize, usize)> {
            let (s, k) = (&self.shape, self.shape.field);
            (0..s.taps())
                .map(|t| {
                    let (c, dy, dx) = (t / (k * k), t / k % k, t % k);
                    let (y, x) = (self.at.0 * s.stride + dy, self.at.1 * s.stride + dx);
                    (t, ((c * s.input.rows + y) * s.input.cols + x) * self.taps.lanes)
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
            let (lanes, taps, padded) = (case.taps.lanes, case.shape.taps(), maps.next_multiple_of(MAP_PAD));
            let step = lanes; // responses of one position, map after map
            let w = |t: usize, m: usize| f64::from(case.weights[t * padded + m]);
            let x = |index: usize| f64::from(case.input[index]);
            let r = |m: usize, b: usize| f64::from(case.response[m * step + b]);

            let mut responses = vec![0.0; maps * lanes];
            let mut gradient = vec![0.0; taps * padded];
            let mut given_back: Vec<f64> = case.input.iter().map(|&x| f64::from(x)).collect();
            for (t, at) in case.field() {
                for m in 0..maps {
                    for b in 0..lanes {
                        responses[m * step + b] += w(t, m) * x(at + b);
                        gradient[t * padded + m] += x(at + b) * r(m, b);
                        given_back[at + b] += w(t, m) * r(m, b);
                    }
                }
            }
            for cpu in Cpu::available() {
                let mut got = vec![0.0; maps * lanes];
                respond(cpu, &case.taps, case.base(), maps, &case.weights, &case.input, &mut got, step);
                assert_close(&got, &responses, taps, cpu.name());

                let mut got = vec![f32::NAN; taps * padded];
                let mut pairs = vec![f32::NAN; padded * lanes];
                weight_gradient(
                    cpu, &case.taps, case.base(), maps, &case.input, &case.response, step, &mut pairs, &mut got,
                );
                assert_close(&got, &gradient, lanes, cpu.name());

                let mut got = case.input.clone();
                scatter(cpu, &case.taps, case.base(), maps, &case.weights, &case.response, step, &mut got);
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
                let mut forward = vec![0.0; maps * case.taps.lanes];
                let mut back = vec![0.0; case.input.len()];
                let (base, lanes) = (case.base(), case.taps.lanes);
                respond(cpu, &case.taps, base, maps, &case.weights, &case.input, &mut forward, lanes);
                scatter(cpu, &case.taps, base, maps, &case.weights, &case.response, lanes, &mut back);
                let (left, right) = (dot(&forward, &case.response), dot(&case.input, &back));
                prop_assert!((left - right).abs() < 1e-3 * (1.0 + left.abs()), "{}: {left} != {right}", cpu.name());
            }
        }
    }
}
