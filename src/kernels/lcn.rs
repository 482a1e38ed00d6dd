//! Local contrast normalisation over space and all maps of a stage, and its gradient (paper §3.2; Jarrett et al. 2009).
//!
//! With `mean(z)` the Gaussian-weighted mean of `z` over the window and all maps: `g = h - mean(h)` and
//! `y = g / max(floor, sqrt(mean(g²)))`. The Gaussian is separable and the mean shared by all maps, so it costs
//! two passes over a single map.
//!
//! Each direction is three passes over rows, which threads share out: sum over maps and blur along each row; blur down the
//! columns, use the mean, and begin the second mean; blur that down the columns and use it.

use std::ops::Range;

use super::rows::Rows;
use super::{Buffer, Cpu, Kernel, Simd, with_scratch};
use crate::geometry::MapShape;

/// The normalisation of one stage, or of pictures, for maps of one size.
#[derive(Debug, Clone, PartialEq)]
pub struct Lcn {
    shape: MapShape,
    lanes: usize,
    /// One dimension of the Gaussian, standard deviation a quarter of the side, sum 1.
    gaussian: Vec<f32>,
    /// What the mean at a row (column) is divided by: the weight inside the map, or 1.
    row_weight: Vec<f32>,
    col_weight: Vec<f32>,
    floor: f32,
}

/// The rows of maps that are made here, and what gets those around them, within half a window, where they are made elsewhere: it is
/// given a single map and the length of its rows.
#[derive(Clone, Copy)]
pub struct Within<'a> {
    /// How they are worked on.
    pub rows: Rows,
    /// The rows.
    pub made: &'a Range<usize>,
    /// See above.
    pub fill: &'a dyn Fn(&mut [f32], usize),
}

/// Memory that normalisation and its gradient work in, each one map of `[rows, cols, lanes]`.
#[derive(Clone, Default)]
pub struct LcnScratch {
    /// `max(floor, deviation)` at each position: made by [`Lcn::normalise`], needed by [`Lcn::gradient`].
    divisor: Buffer,
    /// Sums over maps, blurred along rows: of the first mean and of the second.
    first: Buffer,
    second: Buffer,
}

impl LcnScratch {
    /// For one map of `rows x cols` positions.
    pub fn new(shape: MapShape, lanes: usize) -> LcnScratch {
        let map = || Buffer::zeros(shape.rows * shape.cols * lanes);
        LcnScratch { divisor: map(), first: map(), second: map() }
    }
}

impl Lcn {
    /// Window of `side` (odd) positions on maps of `shape`; `renormalise` at borders, or count outside as zero.
    pub fn new(shape: MapShape, lanes: usize, side: usize, floor: f32, renormalise: bool) -> Lcn {
        assert!(side % 2 == 1, "the window has a centre");
        let half = side / 2;
        let weight = |u: usize| (-0.5 * ((u as f64 - half as f64) / (0.25 * side as f64)).powi(2)).exp();
        let sum: f64 = (0..side).map(weight).sum();
        let gaussian: Vec<f64> = (0..side).map(|u| weight(u) / sum).collect();
        let inside = |len: usize| -> Vec<f32> {
            (0..len)
                .map(|at| {
                    let weights = (0..side).filter(|u| (at + u >= half) && (at + u - half < len));
                    if renormalise { weights.map(|u| gaussian[u]).sum::<f64>() as f32 } else { 1.0 }
                })
                .collect()
        };
        let (row_weight, col_weight) = (inside(shape.rows), inside(shape.cols));
        let gaussian = gaussian.iter().map(|&g| g as f32).collect();
        Lcn { shape, lanes, gaussian, row_weight, col_weight, floor }
    }

    /// One dimension of the Gaussian: a number for each place of the window's side, sum 1.
    pub fn gaussian(&self) -> &[f32] {
        &self.gaussian
    }

    /// Numbers in a row of the maps, and in a row of a single map.
    fn row_lens(&self) -> (usize, usize) {
        (self.shape.row_len() * self.lanes, self.shape.cols * self.lanes)
    }

    /// `y = g / max(floor, deviation)`; `h` and `y`: `[rows, cols, maps, lanes]`.
    pub fn normalise(&self, cpu: Cpu, within: &Within, h: &[f32], y: &mut [f32], scratch: &mut LcnScratch) {
        assert_eq!((h.len(), y.len()), (self.shape.len() * self.lanes, h.len()));
        let (LcnScratch { divisor, first, second }, rows) = (scratch, within.rows);
        let (wide, narrow) = self.row_lens();
        rows.each_in(first, narrow, within.made, |row, first| {
            cpu.run(Sum { lcn: self, h: &h[row * wide..][..wide], out: first });
        });
        (within.fill)(first, narrow);
        rows.each_pair_in((y, wide), (second, narrow), within.made, |row, g, second| {
            cpu.run(Centre { lcn: self, row, means: first, h: &h[row * wide..][..wide], g, squares: second });
        });
        (within.fill)(second, narrow);
        rows.each_pair_in((y, wide), (divisor, narrow), within.made, |row, y, divisor| {
            cpu.run(Divide { lcn: self, row, squares: second, divisor, y });
        });
    }

    /// Gradient with respect to `h` where that with respect to `y` is `dy`; both `[rows, cols, maps, lanes]`.
    ///
    /// `y` and `scratch` are as [`Lcn::normalise`] left them. Adds to `dh`; `dy` is overwritten.
    pub fn gradient(
        &self,
        cpu: Cpu,
        within: &Within,
        y: &[f32],
        dy: &mut [f32],
        dh: &mut [f32],
        scratch: &mut LcnScratch,
    ) {
        assert_eq!((y.len(), dy.len(), dh.len()), (self.shape.len() * self.lanes, y.len(), y.len()));
        let (LcnScratch { divisor, first, second }, rows) = (scratch, within.rows);
        let (divisor, (wide, narrow)) = (&divisor[..], self.row_lens());
        let dy_before = &dy[..];
        rows.each_in(first, narrow, within.made, |row, first| {
            let (y, dy) = (&y[row * wide..][..wide], &dy_before[row * wide..][..wide]);
            cpu.run(DivisorGradient {
                lcn: self,
                row,
                y,
                dy,
                divisor: &divisor[row * narrow..][..narrow],
                out: first,
            });
        });
        (within.fill)(first, narrow);
        rows.each_pair_in((dy, wide), (second, narrow), within.made, |row, dy, second| {
            let (y, divisor) = (&y[row * wide..][..wide], &divisor[row * narrow..][..narrow]);
            cpu.run(CentredGradient { lcn: self, row, means: first, y, divisor, dg: dy, sums: second });
        });
        (within.fill)(second, narrow);
        rows.each_in(dh, wide, within.made, |row, dh| {
            cpu.run(MeanGradient { lcn: self, row, means: second, dg: &dy[row * wide..][..wide], dh });
        });
    }

    /// Blurs a row of one map along the row; outside counts as zero.
    #[inline(always)]
    fn blur_along(&self, row: &[f32], out: &mut [f32]) {
        let (cols, half, lanes) = (self.shape.cols, self.gaussian.len() / 2, self.lanes);
        for (col, out) in out.chunks_exact_mut(lanes).enumerate() {
            out.fill(0.0);
            for from in col.saturating_sub(half)..(col + half + 1).min(cols) {
                let weight = self.gaussian[from + half - col];
                for (out, &z) in out.iter_mut().zip(&row[from * lanes..][..lanes]) {
                    *out += weight * z;
                }
            }
        }
    }

    /// Row `row` of a map that is blurred along rows, now blurred down the columns; outside counts as zero.
    #[inline(always)]
    fn blur_down(&self, map: &[f32], row: usize, out: &mut [f32]) {
        let (rows, half, width) = (self.shape.rows, self.gaussian.len() / 2, out.len());
        out.fill(0.0);
        for from in row.saturating_sub(half)..(row + half + 1).min(rows) {
            let weight = self.gaussian[from + half - row];
            for (out, &z) in out.iter_mut().zip(&map[from * width..][..width]) {
                *out += weight * z;
            }
        }
    }

    /// Divides a row of one map by the weight that the Gaussian has inside the map.
    #[inline(always)]
    fn divide_by_weight(&self, row: usize, map: &mut [f32]) {
        for (out, weight) in map.chunks_exact_mut(self.lanes).zip(&self.col_weight) {
            let scale = 1.0 / (self.row_weight[row] * weight);
            out.iter_mut().for_each(|z| *z *= scale);
        }
    }

    fn share(&self) -> f32 {
        1.0 / self.shape.channels as f32
    }
}

struct Sum<'a> {
    lcn: &'a Lcn,
    h: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Sum<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (lcn, lanes, share) = (self.lcn, self.lcn.lanes, self.lcn.share());
        with_scratch([self.out.len()], |[sum]| {
            for (sum, h) in sum.chunks_exact_mut(lanes).zip(self.h.chunks_exact(lcn.shape.channels * lanes)) {
                sum.fill(0.0);
                for h in h.chunks_exact(lanes) {
                    for (sum, &h) in sum.iter_mut().zip(h) {
                        *sum += share * h;
                    }
                }
            }
            lcn.blur_along(sum, self.out);
        });
    }
}

struct Centre<'a> {
    lcn: &'a Lcn,
    row: usize,
    means: &'a [f32],
    h: &'a [f32],
    g: &'a mut [f32],
    squares: &'a mut [f32],
}

impl Kernel for Centre<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (lcn, lanes, share) = (self.lcn, self.lcn.lanes, self.lcn.share());
        let (cell, narrow) = (lcn.shape.channels * lanes, self.squares.len());
        with_scratch([narrow, narrow], |[mean, square]| {
            lcn.blur_down(self.means, self.row, mean);
            lcn.divide_by_weight(self.row, mean);
            let columns = self.g.chunks_exact_mut(cell).zip(self.h.chunks_exact(cell));
            let narrow = mean.chunks_exact(lanes).zip(square.chunks_exact_mut(lanes));
            for ((g, h), (mean, square)) in columns.zip(narrow) {
                square.fill(0.0);
                for (g, h) in g.chunks_exact_mut(lanes).zip(h.chunks_exact(lanes)) {
                    for (((g, &h), &mean), square) in g.iter_mut().zip(h).zip(mean).zip(square.iter_mut()) {
                        *g = h - mean;
                        *square += share * *g * *g;
                    }
                }
            }
            lcn.blur_along(square, self.squares);
        });
    }
}

struct Divide<'a> {
    lcn: &'a Lcn,
    row: usize,
    squares: &'a [f32],
    divisor: &'a mut [f32],
    y: &'a mut [f32],
}

impl Kernel for Divide<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (lcn, lanes, floor) = (self.lcn, self.lcn.lanes, self.lcn.floor);
        lcn.blur_down(self.squares, self.row, self.divisor);
        lcn.divide_by_weight(self.row, self.divisor);
        let columns = self.y.chunks_exact_mut(lcn.shape.channels * lanes);
        for (y, divisor) in columns.zip(self.divisor.chunks_exact_mut(lanes)) {
            for divisor in divisor.iter_mut() {
                *divisor = divisor.sqrt().max(floor);
            }
            for y in y.chunks_exact_mut(lanes) {
                for (y, &divisor) in y.iter_mut().zip(divisor.iter()) {
                    *y /= divisor;
                }
            }
        }
    }
}

/// The gradient of the variance, blurred along the row.
struct DivisorGradient<'a> {
    lcn: &'a Lcn,
    row: usize,
    y: &'a [f32],
    dy: &'a [f32],
    divisor: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for DivisorGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (lcn, lanes, floor) = (self.lcn, self.lcn.lanes, self.lcn.floor);
        let cell = lcn.shape.channels * lanes;
        // The divisor d = sqrt(v) passes a gradient where it is above its floor; with g = y·d,
        // dL/dv = Σ_m dy·(-g/d²)·1/(2d) = -Σ_m dy·y / (2 d²).
        with_scratch([self.out.len()], |[dv]| {
            let columns = self.y.chunks_exact(cell).zip(self.dy.chunks_exact(cell));
            let narrow = dv.chunks_exact_mut(lanes).zip(self.divisor.chunks_exact(lanes));
            for ((y, dy), (dv, divisor)) in columns.zip(narrow) {
                dv.fill(0.0);
                for (y, dy) in y.chunks_exact(lanes).zip(dy.chunks_exact(lanes)) {
                    for ((dv, &y), &dy) in dv.iter_mut().zip(y).zip(dy) {
                        *dv -= dy * y;
                    }
                }
                for (dv, &d) in dv.iter_mut().zip(divisor) {
                    *dv = if d > floor { *dv / (2.0 * d * d) } else { 0.0 };
                }
            }
            lcn.divide_by_weight(self.row, dv);
            lcn.blur_along(dv, self.out);
        });
    }
}

/// `dg = dy / d + 2 g · (transposed mean of dv)`, where the mean over maps gives each its share; and `Σ_m dg`, blurred along
/// the row.
struct CentredGradient<'a> {
    lcn: &'a Lcn,
    row: usize,
    means: &'a [f32],
    y: &'a [f32],
    divisor: &'a [f32],
    dg: &'a mut [f32],
    sums: &'a mut [f32],
}

impl Kernel for CentredGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (lcn, lanes, share) = (self.lcn, self.lcn.lanes, self.lcn.share());
        let (cell, narrow) = (lcn.shape.channels * lanes, self.sums.len());
        with_scratch([narrow, narrow], |[dv, sum]| {
            lcn.blur_down(self.means, self.row, dv);
            let columns = self.dg.chunks_exact_mut(cell).zip(self.y.chunks_exact(cell));
            let narrow = dv.chunks_exact(lanes).zip(self.divisor.chunks_exact(lanes));
            for (((dg, y), (dv, divisor)), sum) in columns.zip(narrow).zip(sum.chunks_exact_mut(lanes)) {
                sum.fill(0.0);
                for (dg, y) in dg.chunks_exact_mut(lanes).zip(y.chunks_exact(lanes)) {
                    let places = dg.iter_mut().zip(y).zip(dv).zip(divisor).zip(sum.iter_mut());
                    for ((((dg, &y), &dv), &d), sum) in places {
                        *dg = *dg / d + 2.0 * share * y * d * dv;
                        *sum += *dg;
                    }
                }
            }
            lcn.divide_by_weight(self.row, sum);
            lcn.blur_along(sum, self.sums);
        });
    }
}

/// `g = h - mean(h)`: `dh += dg - transposed mean of Σ_m dg`.
struct MeanGradient<'a> {
    lcn: &'a Lcn,
    row: usize,
    means: &'a [f32],
    dg: &'a [f32],
    dh: &'a mut [f32],
}

impl Kernel for MeanGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (lcn, lanes, share) = (self.lcn, self.lcn.lanes, self.lcn.share());
        let cell = lcn.shape.channels * lanes;
        with_scratch([lcn.shape.cols * lanes], |[mean]| {
            lcn.blur_down(self.means, self.row, mean);
            let columns = self.dh.chunks_exact_mut(cell).zip(self.dg.chunks_exact(cell));
            for ((dh, dg), mean) in columns.zip(mean.chunks_exact(lanes)) {
                for (dh, dg) in dh.chunks_exact_mut(lanes).zip(dg.chunks_exact(lanes)) {
                    for ((dh, &dg), &mean) in dh.iter_mut().zip(dg).zip(mean) {
                        *dh += dg - share * mean;
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use proptest::prelude::*;
    use rand::Rng;

    const LANES: usize = 16;

    fn normalised(lcn: &Lcn, cpu: Cpu, h: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; h.len()];
        let within = Within { rows: Rows::InTurn, made: &(0..lcn.shape.rows), fill: &|_, _| () };
        lcn.normalise(cpu, &within, h, &mut y, &mut LcnScratch::new(lcn.shape, LANES));
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..Default::default() })]
        /// Above the floor, with renormalised borders, `y` does not change when the input gains an offset or contrast.
        #[test]
        fn contrast_and_offset_do_not_matter_above_the_floor(
            maps in 1usize..6, rows in 2usize..9, cols in 2usize..9, half in 1usize..4,
            contrast in 0.5f32..20.0, offset in -5.0f32..5.0, seed in any::<u64>(),
        ) {
            let shape = MapShape { channels: maps, rows, cols };
            let lcn = Lcn::new(shape, LANES, 2 * half + 1, 1e-6, true);
            let mut rng = rng::stream(seed, "lcn test", 0);
            let h: Vec<f32> = (0..shape.len() * LANES).map(|_| rng.random_range(0.0..1.0)).collect();
            let changed: Vec<f32> = h.iter().map(|h| contrast * h + offset).collect();
            for cpu in Cpu::available() {
                for (y, other) in normalised(&lcn, cpu, &h).iter().zip(normalised(&lcn, cpu, &changed)) {
                    prop_assert!((y - other).abs() < 2e-3 * (1.0 + y.abs()), "{}: {y} became {other}", cpu.name());
                }
            }
        }
    }

    #[test]
    fn a_flat_map_gives_zero_and_no_nan() {
        let shape = MapShape { channels: 3, rows: 4, cols: 5 };
        let lcn = Lcn::new(shape, LANES, 5, 0.01, true);
        for cpu in Cpu::available() {
            let y = normalised(&lcn, cpu, &vec![0.7; shape.len() * LANES]);
            assert!(y.iter().all(|y| y.abs() < 1e-4), "{}", cpu.name());
        }
    }
}
