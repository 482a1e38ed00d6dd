//! Clutter with the statistics of natural scenes: occluding shapes of all sizes ("dead leaves").
//!
//! Radii have density `r⁻³`, which makes the pile look alike at every scale and gives it an amplitude spectrum
//! near 1/f. Lengths are in frame heights.

use rand::Rng;

use super::camera::Camera;
use super::palette::Palette;
use super::raster::{Canvas, Light, Rgb, mix, noise, scale, tint, unit, wave};
use crate::rng::ChaCha8Rng;

/// The smallest radius of a scene lies between these, the largest is one for all.
const SMALLEST: [f32; 2] = [0.012, 0.04];
const LARGEST: f32 = 0.6;

/// What the leaves of one scene have in common.
struct Habit {
    /// Which outlines, each as often as it is listed.
    outlines: Vec<u8>,
    /// Preferred direction, and how far leaves stray from it.
    grain: f32,
    stray: f32,
    /// Size of patches of one colour in frame heights, where in the noise they are, and how alike a patch is.
    patch: f32,
    salt: f32,
    alike: f32,
    /// The colours of patches, from one end of the noise to the other.
    tones: [Rgb; 4],
    sway: f32,
}

impl Habit {
    fn new(rng: &mut ChaCha8Rng, palette: &Palette) -> Habit {
        let kinds = rng.random_range(3..7);
        let straight = rng.random_bool(0.35);
        Habit {
            outlines: (0..kinds).map(|_| rng.random_range(0..10)).collect(),
            grain: if straight { 0.0 } else { rng.random_range(0.0..std::f32::consts::PI) },
            stray: if straight { rng.random_range(0.02..0.3) } else { rng.random_range(0.3..3.2) },
            patch: rng.random_range(0.08f32..0.5),
            salt: rng.random_range(0.0..256.0),
            alike: rng.random_range(0.5..0.9),
            tones: std::array::from_fn(|_| palette.ground(rng)),
            sway: if rng.random_bool(0.4) { 1.0 } else { 0.1 },
        }
    }

    /// Colour of the patch around `at`.
    fn tone(&self, at: [f32; 2]) -> Rgb {
        let value = noise(at[0] / self.patch + self.salt, at[1] / self.patch + self.salt);
        let place = ((value + 0.8) / 1.6).clamp(0.0, 0.999) * 3.0;
        let index = place as usize;
        mix(self.tones[index], self.tones[index + 1], place - index as f32)
    }
}

/// Polygons and blobs reach no farther from their centre than this, in radii.
const ROUND: f32 = 1.4;

/// Figures stand no farther than this, so that only leaves meant to hide them do.
pub(super) const FIGURES: f32 = 0.96;

/// What lies between things and the viewer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Air {
    pub haze: Rgb,
    /// How much of the haze's colour far things take on.
    pub haze_share: f32,
    /// Blur of far things, in frame heights.
    pub defocus: f32,
}

#[derive(Debug, Clone)]
enum Outline {
    /// An ellipse or disc; the second half-axis as a share of the first.
    Ellipse(f32),
    /// A rectangle; the second half-side as a share of the first.
    Bar(f32),
    /// The intersection of half-planes `x·cos + y·sin < offset` and of a disc that takes off far corners.
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
    fn new(rng: &mut ChaCha8Rng, palette: &Palette, habit: &Habit, radius: f32, at: [f32; 2]) -> Leaf {
        let kind = habit.outlines[rng.random_range(0..habit.outlines.len())];
        let outline = match kind {
            0..2 => Outline::Ellipse(1.0),
            2..5 => Outline::Ellipse(rng.random_range(0.25..1.0)),
            5 => Outline::Bar(rng.random_range(0.04..0.25)),
            6 => Outline::Bar(rng.random_range(0.3..1.0)),
            7 | 8 => Outline::Blob(std::array::from_fn(|_| rng.random_range(-0.18..0.18))),
            _ => {
                let sides = rng.random_range(3..8);
                let turn = std::f32::consts::TAU / sides as f32;
                let side = |i| {
                    let angle: f32 = (i as f32 + rng.random_range(-0.15..0.15)) * turn;
                    [angle.cos(), angle.sin(), rng.random_range(0.5..0.9)]
                };
                Outline::Polygon((0..sides).map(side).collect())
            }
        };
        // Neighbours resemble each other, small ones most: they are the texture of larger things.
        let own = palette.colour(rng);
        let alike = (habit.alike + 0.3 * (1.0 - radius / 0.1)).clamp(0.0, 0.92);
        let base = if rng.random_bool(0.06) {
            own
        } else {
            let brightness = 2.0f32.powf(rng.random_range(-0.6..0.5));
            scale(mix(own, habit.tone(at), alike), brightness)
        };
        let other = if rng.random_bool(0.6) {
            scale(base, rng.random_range(0.2..0.8))
        } else {
            mix(palette.colour(rng), habit.tone(at), 0.5)
        };
        let sways = rng.random_bool(0.4);
        let mut up_to = |most: f32| if sways { rng.random_range(-most..most) * habit.sway } else { 0.0 };
        let (drift, spin) = ([up_to(0.06), up_to(0.06)], up_to(0.5));
        let lean = rng.random_range(-habit.stray..habit.stray);
        let across = if rng.random_bool(0.5) { std::f32::consts::FRAC_PI_2 } else { 0.0 };
        Leaf {
            outline,
            at,
            drift,
            radius,
            angle: habit.grain + lean + across,
            spin,
            nearness: 0.0,
            base,
            other,
            gradient: rng.random_range(0.0..0.5),
            stripes: if rng.random_bool(0.22) { rng.random_range(0.2..0.7) } else { 0.0 },
            frequency: 2.0f32.powf(rng.random_range(-0.5..2.5)),
            mottle: rng.random_range(0.2f32..1.0).powi(2) * 1.1,
            grain: 2.0f32.powf(rng.random_range(1.0..5.5)),
            offset: rng.random_range(0.0..256.0),
            dome: if rng.random_bool(0.6) { rng.random_range(0.2..1.0) } else { 0.0 },
        }
    }

    /// Paints the leaf as seen at time `t`: behind what is there if it stands behind the figures, else over it.
    pub fn draw(&self, canvas: &mut Canvas, camera: &Camera, t: f32, light: &Light, air: &Air) {
        let at = [self.at[0] + self.drift[0] * t, self.at[1] + self.drift[1] * t];
        let behind = self.nearness <= FIGURES;
        let view = camera.project(at, self.nearness, t, canvas.width, canvas.height);
        let (cx, cy) = (view.x, view.y);
        let radius = self.radius * view.scale;
        let (sin, cos) = (self.angle + self.spin * t + view.angle).sin_cos();
        let reach = self.reach(sin, cos);
        let soft = air.defocus * (1.0 - self.nearness).abs() * canvas.height as f32;
        let rows = Canvas::span(cy, radius * reach[1] + soft, canvas.height);
        let columns = Canvas::span(cx, radius * reach[0] + soft, canvas.width);
        if rows.is_empty() || columns.is_empty() {
            return;
        }
        let veil = air.haze_share * (1.0 - self.nearness).clamp(0.0, 1.0);
        // Edges are one pixel wide in focus.
        let sharp = radius / (1.0 + soft).min(radius.max(1.0));
        let flat = radius < 2.5;
        let to_light = unit([light.towards[0], light.towards[1], light.towards[2] + 0.3]);
        let shine = tint(self.base, light.colour);
        let tone = tint(self.other, light.colour);
        for row in rows {
            for column in columns.clone() {
                let at = row * canvas.width + column;
                if behind && !canvas.is_bare(at) {
                    continue;
                }
                let (dx, dy) = ((column as f32 + 0.5 - cx) / radius, (row as f32 + 0.5 - cy) / radius);
                let (x, y) = (dx * cos + dy * sin, dy * cos - dx * sin);
                let cover = 0.5 - self.outside(x, y) * sharp;
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
                let colour = mix(colour, air.haze, veil).map(|v| v.max(0.0));
                match behind {
                    true => canvas.paint_behind(at, colour, cover.min(1.0)),
                    false => canvas.paint(at, colour, cover.min(1.0)),
                }
            }
        }
    }

    /// Half-width and half-height of the outline turned by an angle, in radii.
    fn reach(&self, sin: f32, cos: f32) -> [f32; 2] {
        match self.outline {
            Outline::Ellipse(ratio) => [cos.hypot(ratio * sin), sin.hypot(ratio * cos)],
            Outline::Bar(ratio) => [cos.abs() + ratio * sin.abs(), sin.abs() + ratio * cos.abs()],
            Outline::Polygon(_) | Outline::Blob(_) => [ROUND; 2],
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
                let rim = (x * x + y * y).sqrt() - ROUND;
                sides.iter().map(|[nx, ny, o]| x * nx + y * ny - o).fold(rim, f32::max)
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
    let habit = Habit::new(rng, palette);
    // How many times over the leaves would cover the frame. Few leave open ground, many fill it.
    let depth = rng.random_range(0.7f32..2.8);
    let least = rng.random_range(SMALLEST[0].ln()..SMALLEST[1].ln()).exp();
    let mean_square = 2.0 * (LARGEST / least).ln() / (least.powi(-2) - LARGEST.powi(-2));
    let widest = camera.reach(2.0, aspect);
    let area = 4.0 * widest[0] * widest[1];
    let behind = (depth * area / (0.55 * std::f32::consts::PI * mean_square)) as usize;
    // Leaves in front hide parts of figures, not all of them.
    let front = (rng.random_range(0.0f32..3.0) * area) as usize;
    let mut leaves = Vec::new();
    for number in 0..behind.min(20_000) + front.min(100) {
        let in_front = number >= behind.min(20_000);
        let nearness = if in_front { rng.random_range(1.0..1.8) } else { rng.random_range(0.1..FIGURES) };
        let reach = camera.reach(nearness, aspect);
        let at = [rng.random_range(-widest[0]..widest[0]), rng.random_range(-widest[1]..widest[1])];
        if at[0].abs() > reach[0] || at[1].abs() > reach[1] {
            continue;
        }
        let radius = if in_front { radius(rng, 0.05, 0.3) } else { radius(rng, least, LARGEST) };
        let leaf = Leaf::new(rng, palette, &habit, radius, at);
        leaves.push(Leaf { nearness, ..leaf });
    }
    leaves.sort_by(|a, b| a.nearness.total_cmp(&b.nearness));
    leaves
}
