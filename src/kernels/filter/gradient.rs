//! The gradient of the weights of simple units.

use super::{Field, MAP_PAD, Piece, PieceWeights, Respond, Sweep};
use crate::kernels::stored::Slice;
use crate::kernels::{Cpu, Kernel, LANES, Simd, prefetch, with_scratch};

/// Writes the weight gradients of positions side by side: `gradient[p, t, m] = Σ_lane input[t of p, lane] · response[p, m, lane]`.
///
/// `gradient` is laid out like the weights; `input` starts with the first field's first number. Memory is asked for `soon`, what will be
/// changed by the gradient, in the meantime.
pub fn weight_gradient(
    cpu: Cpu,
    field: Field,
    maps: usize,
    input: &[f32],
    response: &[f32],
    soon: Soon,
    gradient: &mut [f32],
) {
    let positions = field.check(&(0..field.rows), maps, gradient.len(), input, response);
    with_pairs(cpu, maps, field.lanes, response, |pairs| {
        cpu.run(WeightGradient {
            field,
            positions,
            padded: maps.next_multiple_of(MAP_PAD),
            input,
            pairs,
            soon,
            gradient,
        });
    });
}

/// Arrays laid out like the weights, or empty ones.
pub type Soon<'a> = [Slice<'a>; 2];

/// [`respond`](super::respond) with `weights` into `out`, and [`weight_gradient`] with `response` into `gradient`, of the same input, which
/// passes by only once.
#[expect(clippy::too_many_arguments, reason = "two products of one input")]
pub fn respond_and_weight_gradient(
    cpu: Cpu,
    field: Field,
    maps: usize,
    weights: Slice,
    input: &[f32],
    out: &mut [f32],
    response: &[f32],
    soon: Soon,
    gradient: &mut [f32],
) {
    let positions = field.check(&(0..field.rows), maps, weights.len(), input, out);
    assert_eq!((gradient.len(), response.len()), (weights.len(), out.len()), "as many positions");
    with_pairs(cpu, maps, field.lanes, response, |pairs| {
        PieceWeights::lend(&field, maps, weights, |weights| {
            let padded = weights.padded;
            cpu.run(Both {
                respond: Respond { field, positions, maps, weights, input, out },
                gradient: WeightGradient { field, positions, padded, input, pairs, soon, gradient },
            });
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
            if response.len() == pairs.len() {
                const { assert!(MAP_PAD == 8 && LANES == 16, "as many maps and pairs as are transposed at once") };
                for lane in (0..lanes).step_by(LANES) {
                    // SAFETY: 8 maps of `lanes` lanes, a multiple of 16, are there, and as many numbers in `pairs`.
                    unsafe {
                        let pairs = pairs.as_mut_ptr().add(lane * MAP_PAD);
                        S::transpose_pairs(response.as_ptr().add(lane), lanes, pairs);
                    }
                }
                continue;
            }
            pairs.fill(0.0);
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
    soon: Soon<'a>,
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
        let first = (position * self.field.taps() + row * run + tap) * self.padded + vector * S::WIDTH / 2;
        for array in self.soon.iter().filter(|array| !array.is_empty()) {
            for t in 0..T {
                match array {
                    Slice::F32(all) => prefetch(all.as_ptr().wrapping_add(first + t * self.padded)),
                    Slice::Bf16(all) => prefetch(all.as_ptr().wrapping_add(first + t * self.padded)),
                }
            }
        }
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
