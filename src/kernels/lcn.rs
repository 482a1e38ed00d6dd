//! Local contrast normalisation over space and all maps of a stage, and its gradient (paper §3.2; Jarrett et al. 2009).
//!
//! With `mean(z)` the Gaussian-weighted mean of `z` over the window and all maps: `g = h - mean(h)` and
//! `y = g / max(floor, sqrt(mean(g²)))`. The Gaussian is separable and the mean shared by all maps, so it costs
//! two passes over a single map.

use super::{Buffer, Cpu, Kernel, Simd};
use crate::geometry::MapShape;

/// The normalisation of one stage for maps of one size.
#[derive(Debug, Clone)]
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

/// Memory that normalisation and its gradient work in, each one map of `[rows, cols, lanes]`.
#[derive(Clone, Default)]
pub struct LcnScratch {
    /// `max(floor, deviation)` at each position: made by [`Lcn::normalise`], needed by [`Lcn::gradient`].
    divisor: Buffer,
    map: Buffer,
    pass: Buffer,
}

impl LcnScratch {
    /// For one map of `rows x cols` positions.
    pub fn new(shape: MapShape, lanes: usize) -> LcnScratch {
        let map = || Buffer::zeros(shape.rows * shape.cols * lanes);
        LcnScratch { divisor: map(), map: map(), pass: map() }
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

    /// `y = g / max(floor, deviation)`; `h` and `y`: `[maps, rows, cols, lanes]`.
    pub fn normalise(&self, cpu: Cpu, h: &[f32], y: &mut [f32], scratch: &mut LcnScratch) {
        assert_eq!((h.len(), y.len()), (self.shape.len() * self.lanes, h.len()));
        cpu.run(Normalise { lcn: self, h, y, scratch });
    }

    /// Gradient with respect to `h` where that with respect to `y` is `dy`; both `[maps, rows, cols, lanes]`.
    ///
    /// `y` and `scratch` are as [`Lcn::normalise`] left them. Adds to `dh`; `dy` is overwritten.
    pub fn gradient(&self, cpu: Cpu, y: &[f32], dy: &mut [f32], dh: &mut [f32], scratch: &mut LcnScratch) {
        assert_eq!((y.len(), dy.len(), dh.len()), (self.shape.len() * self.lanes, y.len(), y.len()));
        cpu.run(Gradient { lcn: self, y, dy, dh, scratch });
    }

    /// Replaces `map` by its Gaussian-weighted mean, or, `transposed`, applies the transpose of that.
    #[inline(always)]
    fn blur(&self, map: &mut [f32], pass: &mut [f32], transposed: bool) {
        if transposed {
            self.divide_by_weight(map);
        }
        let (rows, cols, half) = (self.shape.rows, self.shape.cols, self.gaussian.len() / 2);
        let width = cols * self.lanes;
        for (row, out) in pass.chunks_exact_mut(width).enumerate() {
            out.fill(0.0);
            for from in row.saturating_sub(half)..(row + half + 1).min(rows) {
                let weight = self.gaussian[from + half - row];
                for (out, &z) in out.iter_mut().zip(&map[from * width..(from + 1) * width]) {
                    *out += weight * z;
                }
            }
        }
        for (from_row, out_row) in pass.chunks_exact(width).zip(map.chunks_exact_mut(width)) {
            for (col, out) in out_row.chunks_exact_mut(self.lanes).enumerate() {
                out.fill(0.0);
                for from in col.saturating_sub(half)..(col + half + 1).min(cols) {
                    let weight = self.gaussian[from + half - col];
                    for (out, &z) in out.iter_mut().zip(&from_row[from * self.lanes..(from + 1) * self.lanes])
                    {
                        *out += weight * z;
                    }
                }
            }
        }
        if !transposed {
            self.divide_by_weight(map);
        }
    }

    #[inline(always)]
    fn divide_by_weight(&self, map: &mut [f32]) {
        for (index, out) in map.chunks_exact_mut(self.lanes).enumerate() {
            let (row, col) = (index / self.shape.cols, index % self.shape.cols);
            let scale = 1.0 / (self.row_weight[row] * self.col_weight[col]);
            out.iter_mut().for_each(|z| *z *= scale);
        }
    }
}

struct Normalise<'a> {
    lcn: &'a Lcn,
    h: &'a [f32],
    y: &'a mut [f32],
    scratch: &'a mut LcnScratch,
}

impl Kernel for Normalise<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let LcnScratch { divisor, map, pass } = self.scratch;
        let (size, share) = (map.len(), 1.0 / self.lcn.shape.channels as f32);
        map.fill(0.0);
        for h in self.h.chunks_exact(size) {
            for (mean, &h) in map.iter_mut().zip(h) {
                *mean += share * h;
            }
        }
        self.lcn.blur(map, pass, false);
        divisor.fill(0.0);
        for (h, g) in self.h.chunks_exact(size).zip(self.y.chunks_exact_mut(size)) {
            for (((g, &h), &mean), square) in g.iter_mut().zip(h).zip(map.iter()).zip(divisor.iter_mut()) {
                *g = h - mean;
                *square += share * *g * *g;
            }
        }
        self.lcn.blur(divisor, pass, false);
        let floor = self.lcn.floor;
        for divisor in divisor.iter_mut() {
            *divisor = divisor.sqrt().max(floor);
        }
        for y in self.y.chunks_exact_mut(size) {
            for (y, &divisor) in y.iter_mut().zip(divisor.iter()) {
                *y /= divisor;
            }
        }
    }
}

struct Gradient<'a> {
    lcn: &'a Lcn,
    y: &'a [f32],
    dy: &'a mut [f32],
    dh: &'a mut [f32],
    scratch: &'a mut LcnScratch,
}

impl Kernel for Gradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let LcnScratch { divisor, map, pass } = self.scratch;
        let (size, share) = (map.len(), 1.0 / self.lcn.shape.channels as f32);
        // The divisor d = sqrt(v) passes a gradient where it is above its floor; with g = y·d,
        // dL/dv = Σ_m dy·(-g/d²)·1/(2d) = -Σ_m dy·y / (2 d²).
        map.fill(0.0);
        for (y, dy) in self.y.chunks_exact(size).zip(self.dy.chunks_exact(size)) {
            for ((dv, &y), &dy) in map.iter_mut().zip(y).zip(dy) {
                *dv -= dy * y;
            }
        }
        let floor = self.lcn.floor;
        for (dv, &d) in map.iter_mut().zip(divisor.iter()) {
            *dv = if d > floor { *dv / (2.0 * d * d) } else { 0.0 };
        }
        self.lcn.blur(map, pass, true);
        // dg = dy / d + 2 g · (transposed mean of dv); the mean over maps gives each its share.
        for (y, dy) in self.y.chunks_exact(size).zip(self.dy.chunks_exact_mut(size)) {
            for (((dy, &y), &dv), &d) in dy.iter_mut().zip(y).zip(map.iter()).zip(divisor.iter()) {
                *dy = *dy / d + 2.0 * share * y * d * dv;
            }
        }
        // g = h - mean(h): dh = dg - transposed mean of Σ_m dg.
        map.fill(0.0);
        for dg in self.dy.chunks_exact(size) {
            for (sum, &dg) in map.iter_mut().zip(dg) {
                *sum += dg;
            }
        }
        self.lcn.blur(map, pass, true);
        for (dg, dh) in self.dy.chunks_exact(size).zip(self.dh.chunks_exact_mut(size)) {
            for ((dh, &dg), &mean) in dh.iter_mut().zip(dg).zip(map.iter()) {
                *dh += dg - share * mean;
            }
        }
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
        lcn.normalise(cpu, h, &mut y, &mut LcnScratch::new(lcn.shape, LANES));
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
