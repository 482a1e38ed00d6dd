//! Complex units: L2 pooling inside one map, and its gradient (paper §3.2).
//!
//! `h = sqrt(ε + Σ a²)` over a window. The sum is separable, so a row costs `pool` additions for each value down and as many
//! across. Rows are made one by one, so that threads can share them out.

use super::{Cpu, Kernel, Simd, with_scratch};
use crate::geometry::StageShape;

/// Makes a row of `h[i, j, m, :] = sqrt(epsilon + Σ_{u,v<pool} a[i·s + u, j·s + v, m, :]²)`.
///
/// `a`: all simple units, `[rows, cols, maps, lanes]`; `h`: row `row` of the complex units.
pub fn pool_row(cpu: Cpu, shape: &StageShape, epsilon: f32, a: &[f32], row: usize, h: &mut [f32]) {
    cpu.run(PoolRow { shape, epsilon, a, row, h });
}

struct PoolRow<'a> {
    shape: &'a StageShape,
    epsilon: f32,
    a: &'a [f32],
    row: usize,
    h: &'a mut [f32],
}

impl Kernel for PoolRow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (s, window, step) = (self.shape, self.shape.pool, self.shape.pool_stride);
        let cell = self.h.len() / s.pooled.cols;
        let width = s.filtered.cols * cell;
        with_scratch([width], |[sums]| {
            sums.fill(0.0);
            for a in self.a[self.row * step * width..][..window * width].chunks_exact(width) {
                for (sum, &a) in sums.iter_mut().zip(a) {
                    *sum += a * a;
                }
            }
            for (col, h) in self.h.chunks_exact_mut(cell).enumerate() {
                h.fill(self.epsilon);
                for sums in sums[col * step * cell..][..window * cell].chunks_exact(cell) {
                    for (h, &sum) in h.iter_mut().zip(sums) {
                        *h += sum;
                    }
                }
                for h in h {
                    *h = h.sqrt();
                }
            }
        });
    }
}

/// Divides `dh` by `h`: see [`pool_gradient_row`].
pub fn divide(cpu: Cpu, dh: &mut [f32], h: &[f32]) {
    cpu.run(Divide { dh, h });
}

struct Divide<'a> {
    dh: &'a mut [f32],
    h: &'a [f32],
}

impl Kernel for Divide<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        self.dh.iter_mut().zip(self.h).for_each(|(dh, h)| *dh /= h);
    }
}

/// Makes a row of `da[y, x, m, :] = a[y, x, m, :] · Σ_{(i,j) covering (y,x)} q[i, j, m, :]`, where `q = dh / h`.
///
/// `q`: all of it, `[rows, cols, maps, lanes]` of the complex units; `a` and `da`: row `row` of the simple units.
pub fn pool_gradient_row(cpu: Cpu, shape: &StageShape, q: &[f32], row: usize, a: &[f32], da: &mut [f32]) {
    cpu.run(PoolGradientRow { shape, q, row, a, da });
}

struct PoolGradientRow<'a> {
    shape: &'a StageShape,
    q: &'a [f32],
    row: usize,
    a: &'a [f32],
    da: &'a mut [f32],
}

impl Kernel for PoolGradientRow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (s, window, step) = (self.shape, self.shape.pool, self.shape.pool_stride);
        let cell = self.a.len() / s.filtered.cols;
        let width = s.pooled.cols * cell;
        with_scratch([width], |[sums]| {
            sums.fill(0.0);
            // Windows that cover this row: `i·step <= row < i·step + window`.
            let first = (self.row + 1).saturating_sub(window).div_ceil(step);
            let last = (self.row / step + 1).min(s.pooled.rows);
            for q in (first..last).map(|i| &self.q[i * width..][..width]) {
                for (sum, &q) in sums.iter_mut().zip(q) {
                    *sum += q;
                }
            }
            for (col, (da, a)) in self.da.chunks_exact_mut(cell).zip(self.a.chunks_exact(cell)).enumerate() {
                da.fill(0.0);
                let first = (col + 1).saturating_sub(window).div_ceil(step);
                let last = (col / step + 1).min(s.pooled.cols);
                for sums in (first..last).map(|j| &sums[j * cell..][..cell]) {
                    for (da, &sum) in da.iter_mut().zip(sums) {
                        *da += sum;
                    }
                }
                for (da, &a) in da.iter_mut().zip(a) {
                    *da *= a;
                }
            }
        });
    }
}
