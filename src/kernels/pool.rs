//! Complex units: L2 pooling inside one map, and its gradient (paper §3.2).
//!
//! `h = sqrt(ε + Σ a²)` over a window. The sum is separable, so it costs two passes of `pool` additions.

use super::{Cpu, Kernel, Simd};
use crate::geometry::StageShape;

/// `h[m, i, j, :] = sqrt(epsilon + Σ_{u,v<pool} a[m, i·s + u, j·s + v, :]²)`.
///
/// `a`: `[maps, rows, cols, lanes]` filtered; `h`: the same, pooled; `scratch`: at least one pooled row of filtered
/// width, `filtered cols x lanes`.
pub fn pool(cpu: Cpu, shape: &StageShape, epsilon: f32, a: &[f32], h: &mut [f32], scratch: &mut [f32]) {
    cpu.run(Pool { shape, epsilon, a, h, scratch });
}

struct Pool<'a> {
    shape: &'a StageShape,
    epsilon: f32,
    a: &'a [f32],
    h: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl Kernel for Pool<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (s, window, step) = (self.shape, self.shape.pool, self.shape.pool_stride);
        let lanes = self.a.len() / s.filtered.len();
        let width = s.filtered.cols * lanes;
        let column_sums = &mut self.scratch[..width];
        for (index, h) in self.h.chunks_exact_mut(s.pooled.cols * lanes).enumerate() {
            let (map, row) = (index / s.pooled.rows, index % s.pooled.rows);
            let first = (map * s.filtered.rows + row * step) * width;
            column_sums.fill(0.0);
            for a in self.a[first..first + window * width].chunks_exact(width) {
                for (sum, &a) in column_sums.iter_mut().zip(a) {
                    *sum += a * a;
                }
            }
            for (col, h) in h.chunks_exact_mut(lanes).enumerate() {
                h.fill(self.epsilon);
                let first = col * step * lanes;
                for sums in column_sums[first..first + window * lanes].chunks_exact(lanes) {
                    for (h, &sum) in h.iter_mut().zip(sums) {
                        *h += sum;
                    }
                }
                for h in h {
                    *h = h.sqrt();
                }
            }
        }
    }
}

/// `da[m, y, x, :] = a[m, y, x, :] · Σ_{(i,j) covering (y,x)} dh[m, i, j, :] / h[m, i, j, :]`.
///
/// `dh` is overwritten by `dh / h`; `scratch` as in [`pool`].
pub fn pool_gradient(
    cpu: Cpu,
    shape: &StageShape,
    a: &[f32],
    h: &[f32],
    dh: &mut [f32],
    da: &mut [f32],
    scratch: &mut [f32],
) {
    cpu.run(PoolGradient { shape, a, h, dh, da, scratch });
}

struct PoolGradient<'a> {
    shape: &'a StageShape,
    a: &'a [f32],
    h: &'a [f32],
    dh: &'a mut [f32],
    da: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl Kernel for PoolGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (s, window, step) = (self.shape, self.shape.pool, self.shape.pool_stride);
        let lanes = self.a.len() / s.filtered.len();
        let width = s.filtered.cols * lanes;
        for (dh, &h) in self.dh.iter_mut().zip(self.h) {
            *dh /= h;
        }
        self.da.fill(0.0);
        let spread = &mut self.scratch[..width];
        for (index, q) in self.dh.chunks_exact(s.pooled.cols * lanes).enumerate() {
            let (map, row) = (index / s.pooled.rows, index % s.pooled.rows);
            spread.fill(0.0);
            for (col, q) in q.chunks_exact(lanes).enumerate() {
                let first = col * step * lanes;
                for spread in spread[first..first + window * lanes].chunks_exact_mut(lanes) {
                    for (spread, &q) in spread.iter_mut().zip(q) {
                        *spread += q;
                    }
                }
            }
            let first = (map * s.filtered.rows + row * step) * width;
            for da in self.da[first..first + window * width].chunks_exact_mut(width) {
                for (da, &spread) in da.iter_mut().zip(spread.iter()) {
                    *da += spread;
                }
            }
        }
        for (da, &a) in self.da.iter_mut().zip(self.a) {
            *da *= a;
        }
    }
}
