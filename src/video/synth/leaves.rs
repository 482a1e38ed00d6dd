//! Clutter with the statistics of natural scenes: occluding shapes of all sizes ("dead leaves").
//!
//! Radii have density `r⁻³`, which makes the pile look alike at every scale and gives it an amplitude spectrum
//! near 1/f. Lengths are in frame heights.

use rand::Rng;

use super::camera::Camera;
use super::palette::Palette;
use super::raster::{Canvas, Light, Rgb, mix, noise, scale, tint, unit, wave};
use crate::rng::ChaCha8Rng;

const SMALLEST: f32 = 0.010;
const LARGEST: f32 = 0.55;

#[derive(Debug, Clone)]
enum Outline {
    /// An ellipse or disc; the second half-axis as a share of the first.
    Ellipse(f32),
    /// A rectangle; the second half-side as a share of the first.
    Bar(f32),
    /// The intersection of half-planes `x·cos + y·sin < offset`.
    Polygon(Vec<[f32; 3]>),
    /// A circle with its radius modulated two and three times around: amplitudes and phases as cos, sin pairs.
    Blob([f32; 4]),
}

/// One shape: where it is, how it moves, how it looks.
#[derive(Debug, Clone)]
pub(super) struct Leaf {
    outline: Outline,
    at: [f32; 2],
    drift: [f32; 2],
    radius: f32,
    angle: f32,
    spin: f32,
    /// Parallax: 0 at infinity, 1 where the figures are, above 1 in front of them.
    pub nearness: f32,
    base: Rgb,
    other: Rgb,
    gradient: f32,
    stripes: f32,
    /// Stripes per radius.
    frequency: f32,
    mottle: f32,
    /// Noise lattice points per radius.
    grain: f32,
    offset: f32,
    dome: f32,
}

/// A radius between two bounds, with density `r⁻³`.
fn radius(rng: &mut ChaCha8Rng, least: f32, most: f32) -> f32 {
    let u: f32 = rng.random();
    1.0 / (least.powi(-2) * (1.0 - u) + most.powi(-2) * u).sqrt()
}

impl Leaf {
    fn new(rng: &mut ChaCha8Rng, palette: &Palette, least: f32, most: f32, nearness: f32) -> Leaf {
        let outline = match rng.random_range(0..10) {
            0..2 => Outline::Ellipse(1.0),
            2..5 => Outline::Ellipse(rng.random_range(0.25..1.0)),
            5 => Outline::Bar(rng.random_range(0.04..0.25)),
            6 => Outline::Bar(rng.random_range(0.3..1.0)),
            7 | 8 => Outline::Blob(std::array::from_fn(|_| rng.random_range(-0.25..0.25))),
            _ => {
                let sides = rng.random_range(3..8);
                let turn = std::f32::consts::TAU / sides as f32;
                let side = |i| {
                    let angle: f32 = (i as f32 + rng.random_range(-0.25..0.25)) * turn;
                    [angle.cos(), angle.sin(), rng.random_range(0.5..0.9)]
                };
                Outline::Polygon((0..sides).map(side).collect())
            }
        };
        let base = palette.colour(rng);
        let other =
            if rng.random_bool(0.5) { scale(base, rng.random_range(0.2..0.8)) } else { palette.colour(rng) };
        let sways = rng.random_bool(0.25);
        let mut up_to = |most: f32| if sways { rng.random_range(-most..most) } else { 0.0 };
        let (drift, spin) = ([up_to(0.06), up_to(0.06)], up_to(0.5));
        Leaf {
            outline,
            at: [0.0; 2],
            drift,
            radius: radius(rng, least, most),
            angle: rng.random_range(0.0..std::f32::consts::TAU),
            spin,
            nearness,
            base,
            other,
            gradient: rng.random_range(0.0..0.5),
            stripes: if rng.random_bool(0.22) { rng.random_range(0.2..0.7) } else { 0.0 },
            frequency: 2.0f32.powf(rng.random_range(-0.5..2.5)),
            mottle: rng.random_range(0.0f32..1.0).powi(2) * 0.9,
            grain: 2.0f32.powf(rng.random_range(1.0..5.5)),
            offset: rng.random_range(0.0..256.0),
            dome: if rng.random_bool(0.6) { rng.random_range(0.2..1.0) } else { 0.0 },
        }
    }

    /// Paints the leaf as seen at time `t`.
    pub fn draw(&self, canvas: &mut Canvas, camera: &Camera, t: f32, light: &Light, haze: Rgb) {
        let at = [self.at[0] + self.drift[0] * t, self.at[1] + self.drift[1] * t];
        let view = camera.project(at, self.nearness, t, canvas.width, canvas.height);
        let (cx, cy) = (view.x, view.y);
        let radius = self.radius * view.scale;
        let (sin, cos) = (self.angle + self.spin * t + view.angle).sin_cos();
        let rows = Canvas::span(cy, radius * 1.5, canvas.height);
        let columns = Canvas::span(cx, radius * 1.5, canvas.width);
        if rows.is_empty() || columns.is_empty() {
            return;
        }
        // Distance washes contrast out, as air does.
        let air = 0.45 * (1.0 - self.nearness).clamp(0.0, 1.0).powi(2);
        let flat = radius < 2.5;
        let to_light = unit([light.towards[0], light.towards[1], light.towards[2] + 0.3]);
        let shine = tint(self.base, light.colour);
        let tone = tint(self.other, light.colour);
        for row in rows {
            for column in columns.clone() {
                let (dx, dy) = ((column as f32 + 0.5 - cx) / radius, (row as f32 + 0.5 - cy) / radius);
                let (x, y) = (dx * cos + dy * sin, dy * cos - dx * sin);
                let cover = 0.5 - self.outside(x, y) * radius;
                if cover <= 0.0 {
                    continue;
                }
                let mut colour = shine;
                if !flat {
                    let mut share = self.gradient * (0.5 + 0.5 * x);
                    if self.stripes > 0.0 {
                        share += self.stripes * (0.5 + 0.5 * wave(y * self.frequency + self.offset));
                    }
                    if self.mottle > 0.05 {
                        let (u, v) = (x * self.grain + self.offset, y * self.grain - self.offset);
                        share += self.mottle * noise(u, v);
                    }
                    colour = mix(colour, tone, share.clamp(-0.3, 1.2));
                    let bulge = (dx * to_light[0] + dy * to_light[1]) * self.dome;
                    colour = scale(colour, (1.0 + bulge * (1.0 - light.ambient)).max(0.1));
                }
                let colour = mix(colour, haze, air).map(|v| v.max(0.0));
                canvas.paint(row * canvas.width + column, colour, cover.min(1.0));
            }
        }
    }

    /// Distance outside the outline (negative inside), in radii, exact to first order near the edge.
    fn outside(&self, x: f32, y: f32) -> f32 {
        match &self.outline {
            Outline::Ellipse(ratio) => {
                let v = y / ratio;
                let f = (x * x + v * v).sqrt();
                let slope = (x * x + (v / ratio).powi(2)).sqrt();
                (f - 1.0) * f / slope.max(1e-6)
            }
            Outline::Bar(ratio) => (x.abs() - 1.0).max(y.abs() - ratio),
            Outline::Polygon(sides) => {
                sides.iter().map(|[nx, ny, o]| x * nx + y * ny - o).fold(f32::NEG_INFINITY, f32::max)
            }
            Outline::Blob([a, b, c, d]) => {
                let r = (x * x + y * y).sqrt();
                let (u, v) = (x / r.max(1e-6), y / r.max(1e-6));
                let (u2, v2) = (u * u - v * v, 2.0 * u * v);
                let (u3, v3) = (u * u2 - v * v2, u * v2 + v * u2);
                (r - 0.9 - a * u2 - b * v2 - c * u3 - d * v3) * 0.8
            }
        }
    }
}

/// A pile of leaves behind and in front of the figures, farthest first, over all that the camera will see.
pub(super) fn pile(rng: &mut ChaCha8Rng, palette: &Palette, camera: &Camera, aspect: f32) -> Vec<Leaf> {
    // How many times over the leaves would cover the frame. Few leave open ground, many fill it.
    let depth = rng.random_range(0.5f32..2.6);
    let front = rng.random_range(0.0f32..0.06);
    let mean_area = 0.55 * std::f32::consts::PI * 2.0 * (LARGEST / SMALLEST).ln()
        / (SMALLEST.powi(-2) - LARGEST.powi(-2));
    let widest = camera.reach(2.0, aspect);
    let count = (depth * 4.0 * widest[0] * widest[1] / mean_area) as usize;
    let mut leaves = Vec::new();
    for _ in 0..count.min(20_000) {
        let in_front = rng.random_bool(f64::from(front));
        let nearness = if in_front { rng.random_range(1.0..1.8) } else { rng.random_range(0.1..1.0) };
        let reach = camera.reach(nearness, aspect);
        let at = [rng.random_range(-widest[0]..widest[0]), rng.random_range(-widest[1]..widest[1])];
        if at[0].abs() > reach[0] || at[1].abs() > reach[1] {
            continue;
        }
        // Leaves in front hide parts of figures, not all of them.
        let most = if in_front { LARGEST * 0.35 } else { LARGEST };
        let leaf = Leaf::new(rng, palette, SMALLEST, most, nearness);
        leaves.push(Leaf { at, ..leaf });
    }
    leaves.sort_by(|a, b| a.nearness.total_cmp(&b.nearness));
    leaves
}
