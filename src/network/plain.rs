//! The definition of the network in plain f64 loops, one picture at a time: what the fast code must match.
//!
//! Slow on purpose. `verify` climbs with it, because a fixed-step ascent that crosses ridges can magnify the rounding of
//! f32 a million times; tests take central differences of it.

use ndarray::{Array2, Array3, Array6, ArrayView3, Axis, s};

use crate::config::{LcnBorder, Reconstruction, RunConfig, Stage};
use crate::geometry::{Kind, StageShape};
use crate::network::Unit;

/// A network of f64 weights.
pub struct PlainNetwork {
    /// The stages, from the picture upwards.
    pub stages: Vec<PlainStage>,
}

/// One stage.
pub struct PlainStage {
    shape: StageShape,
    settings: Stage,
    /// W1, `[row, column, map, channel, dy, dx]`.
    pub encoder: Array6<f64>,
    /// W2, the same.
    pub decoder: Array6<f64>,
}

/// A stage's activations for one picture, `[map, row, column]`.
pub struct PlainActivations {
    /// Simple units.
    pub a: Array3<f64>,
    /// Complex units.
    pub h: Array3<f64>,
    /// Output of the stage.
    pub y: Array3<f64>,
    /// `max(floor, deviation)` at each position.
    divisor: Array2<f64>,
}

impl PlainNetwork {
    /// From settings and each stage's `(encoder, decoder)`.
    pub fn new(config: &RunConfig, weights: Vec<(Array6<f64>, Array6<f64>)>) -> PlainNetwork {
        let parts = config.shapes().into_iter().zip(config.stages.clone()).zip(weights);
        let stage =
            |((shape, settings), (encoder, decoder))| PlainStage { shape, settings, encoder, decoder };
        PlainNetwork { stages: parts.map(stage).collect() }
    }

    /// All activations for one picture `[channel, row, column]`.
    pub fn forward(&self, picture: ArrayView3<f64>) -> Vec<PlainActivations> {
        let mut acts: Vec<PlainActivations> = Vec::new();
        for stage in &self.stages {
            let input = acts.last().map_or(picture, |below| below.y.view());
            acts.push(stage.forward(input));
        }
        acts
    }

    /// A top-stage unit's value and its gradient with respect to the picture.
    pub fn unit_gradient(&self, picture: ArrayView3<f64>, kind: Kind, unit: Unit) -> (f64, Array3<f64>) {
        let acts = self.forward(picture);
        let at = [unit.map, unit.row, unit.col];
        let top = acts.last().expect("a network has stages");
        let mut gradient = Array3::zeros(top.h.raw_dim());
        gradient[at] = 1.0;
        let value = if kind == Kind::Y { top.y[at] } else { top.h[at] };
        for (index, (stage, acts)) in self.stages.iter().zip(&acts).enumerate().rev() {
            if index + 1 < self.stages.len() || kind == Kind::Y {
                gradient = stage.lcn_gradient(acts, &gradient);
            }
            gradient = stage.filter_gradient(&stage.pool_gradient(acts, &gradient));
        }
        (value, gradient)
    }

    /// Fixed-step ascent on the unit sphere: the points it visits, the start first, and the value at the last.
    pub fn climb(
        &self,
        start: ArrayView3<f64>,
        kind: Kind,
        unit: Unit,
        step: f64,
        steps: usize,
    ) -> (Vec<Array3<f64>>, f64) {
        let norm = |x: &Array3<f64>| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let unit_length = |x: Array3<f64>| &x / norm(&x);
        let mut path = vec![unit_length(start.to_owned())];
        for _ in 0..steps {
            let x = path.last().expect("it starts somewhere");
            let (_, gradient) = self.unit_gradient(x.view(), kind, unit);
            let along = &gradient - &(x * (&gradient * x).sum());
            path.push(unit_length(x + &(&along * (step / norm(&along).max(1e-12)))));
        }
        let value = self.unit_gradient(path.last().expect("it ends somewhere").view(), kind, unit).0;
        (path, value)
    }
}

impl PlainStage {
    /// Filtering and pooling: `a` and `h`.
    pub fn respond(&self, x: ArrayView3<f64>) -> (Array3<f64>, Array3<f64>) {
        let (s, p, k) = (&self.shape, self.shape.pool, self.shape.field);
        let size = |m: crate::geometry::MapShape| (m.channels, m.rows, m.cols);
        let a = Array3::from_shape_fn(size(s.filtered), |(m, i, j)| {
            let (y0, x0) = (i * s.stride, j * s.stride);
            (&x.slice(s![.., y0..y0 + k, x0..x0 + k]) * &self.encoder.slice(s![i, j, m, .., .., ..])).sum()
        });
        let h = Array3::from_shape_fn(size(s.pooled), |(m, i, j)| {
            let (i, j) = (i * s.pool_stride, j * s.pool_stride);
            let squares = a.slice(s![m, i..i + p, j..j + p]).mapv(|a| a * a).sum();
            (self.settings.epsilon + squares).sqrt()
        });
        (a, h)
    }

    fn forward(&self, x: ArrayView3<f64>) -> PlainActivations {
        let (a, h) = self.respond(x);
        if self.shape.lcn == 0 {
            return PlainActivations { a, y: h.clone(), h, divisor: Array2::zeros((0, 0)) };
        }
        let g = &h - &self.mean(&h);
        let floor = self.settings.lcn_floor;
        let divisor = self.mean(&(&g * &g)).mapv(|v| v.sqrt().max(floor));
        PlainActivations { y: &g / &divisor, a, h, divisor }
    }

    /// `r = W2 a`, divided by the coverage if the settings say so.
    pub fn decode(&self, a: &Array3<f64>) -> Array3<f64> {
        let mut r = self.scatter(&self.decoder, a);
        if self.settings.reconstruction == Reconstruction::Coverage {
            let (rows, cols) = (self.shape.coverage(true), self.shape.coverage(false));
            for ((_, y, x), r) in r.indexed_iter_mut() {
                *r /= (rows[y] * cols[x]).max(1) as f64;
            }
        }
        r
    }

    /// What units of values `a` give to their receptive fields.
    fn scatter(&self, weights: &Array6<f64>, a: &Array3<f64>) -> Array3<f64> {
        let (s, k) = (&self.shape, self.shape.field);
        let mut out = Array3::zeros((s.input.channels, s.input.rows, s.input.cols));
        for ((m, i, j), &a) in a.indexed_iter() {
            let (y0, x0) = (i * s.stride, j * s.stride);
            out.slice_mut(s![.., y0..y0 + k, x0..x0 + k])
                .scaled_add(a, &weights.slice(s![i, j, m, .., .., ..]));
        }
        out
    }

    fn filter_gradient(&self, da: &Array3<f64>) -> Array3<f64> {
        self.scatter(&self.encoder, da)
    }

    fn pool_gradient(&self, acts: &PlainActivations, dh: &Array3<f64>) -> Array3<f64> {
        let (p, step) = (self.shape.pool, self.shape.pool_stride);
        let mut da = Array3::zeros(acts.a.raw_dim());
        for ((m, i, j), &dh) in dh.indexed_iter() {
            let window = s![m, i * step..i * step + p, j * step..j * step + p];
            da.slice_mut(window).scaled_add(dh / acts.h[(m, i, j)], &acts.a.slice(window));
        }
        da
    }

    fn lcn_gradient(&self, acts: &PlainActivations, dy: &Array3<f64>) -> Array3<f64> {
        if self.shape.lcn == 0 {
            return dy.clone();
        }
        let floor = self.settings.lcn_floor;
        let mut dv = -(dy * &acts.y).sum_axis(Axis(0));
        dv.zip_mut_with(&acts.divisor, |dv, &d| *dv = if d > floor { *dv / (2.0 * d * d) } else { 0.0 });
        let maps = acts.y.len_of(Axis(0)) as f64;
        let dg = dy / &acts.divisor + 2.0 * (&acts.y * &acts.divisor) * &(self.mean_transposed(&dv) / maps);
        let total = self.mean_transposed(&dg.sum_axis(Axis(0))) / maps;
        dg - &total
    }

    /// Weight of position `(y, x)` in the mean at `(i, j)`.
    fn weight(&self, (i, j): (usize, usize), (y, x): (usize, usize)) -> f64 {
        let (side, rows, cols) = (self.shape.lcn, self.shape.pooled.rows, self.shape.pooled.cols);
        let one = |from: usize, at: usize, len: usize| {
            let bell = |u: isize| (-0.5 * (u as f64 / (0.25 * side as f64)).powi(2)).exp();
            let half = (side / 2) as isize;
            let offset = at as isize - from as isize;
            if offset.abs() > half {
                return 0.0;
            }
            let inside = |u: &isize| {
                self.settings.lcn_border == LcnBorder::Zero
                    || (0..len as isize).contains(&(from as isize + u))
            };
            bell(offset) / (-half..=half).filter(inside).map(bell).sum::<f64>()
        };
        one(i, y, rows) * one(j, x, cols)
    }

    /// Gaussian-weighted mean over the window and all maps.
    fn mean(&self, z: &Array3<f64>) -> Array2<f64> {
        let flat = z.mean_axis(Axis(0)).expect("a stage has maps");
        Array2::from_shape_fn(flat.raw_dim(), |at| {
            flat.indexed_iter().map(|(from, z)| self.weight(at, from) * z).sum()
        })
    }

    /// The transpose of the mean over space.
    fn mean_transposed(&self, z: &Array2<f64>) -> Array2<f64> {
        Array2::from_shape_fn(z.raw_dim(), |to| z.indexed_iter().map(|(at, z)| self.weight(at, to) * z).sum())
    }
}
