//! The picture under construction, in linear light.
//!
//! Clutter behind the figures is painted front to back, which skips what is hidden; all else is painted over it.

use std::sync::OnceLock;

use image::RgbImage;
use rand::Rng;

use crate::rng;

/// Red, green and blue, proportional to light.
pub(super) type Rgb = [f32; 3];
/// A point or direction: x right, y down on screen and up in a model, z towards the viewer.
pub(super) type Vec3 = [f32; 3];

pub(super) fn mix(a: Rgb, b: Rgb, share: f32) -> Rgb {
    std::array::from_fn(|c| a[c] + (b[c] - a[c]) * share)
}

pub(super) fn scale(a: Rgb, factor: f32) -> Rgb {
    a.map(|v| v * factor)
}

pub(super) fn tint(a: Rgb, b: Rgb) -> Rgb {
    std::array::from_fn(|c| a[c] * b[c])
}

pub(super) fn dot(a: Vec3, b: Vec3) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

pub(super) fn unit(a: Vec3) -> Vec3 {
    scale(a, 1.0 / dot(a, a).sqrt().max(1e-12))
}

/// The whole number below and what is left; faster than `floor` where that is a library call.
#[inline]
pub(super) fn split(x: f32) -> (i32, f32) {
    let whole = x as i32 - i32::from(x < 0.0);
    (whole, x - whole as f32)
}

/// 0 below `from`, 1 above `to`, smooth between.
pub(super) fn ramp(from: f32, to: f32, x: f32) -> f32 {
    let t = ((x - from) / (to - from)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// `sin(2π·turns)` to 0.1 %, several times faster than the exact one.
#[inline]
pub(super) fn wave(turns: f32) -> f32 {
    let x = split(turns).1 - 0.5;
    let y = x * (8.0 - 16.0 * x.abs());
    -y * (0.775 + 0.225 * y.abs())
}

/// Where light comes from and how it colours things.
#[derive(Debug, Clone, Copy)]
pub(super) struct Light {
    /// Unit vector towards the light, screen axes.
    pub towards: Vec3,
    /// Share that reaches surfaces turned away from it.
    pub ambient: f32,
    /// Colour times strength.
    pub colour: Rgb,
}

impl Light {
    /// Light on a surface with unit normal `normal`; 1 on average over a sphere's near half, more or less.
    pub fn on(&self, normal: Vec3) -> f32 {
        self.ambient + (1.0 - self.ambient) * 1.5 * dot(normal, self.towards).max(0.0)
    }
}

/// A picture being painted, with what is still to be seen of each tracked object.
pub(super) struct Canvas {
    pub width: usize,
    pub height: usize,
    pub pixels: Vec<Rgb>,
    /// For each tracked object, how much of it shows in each pixel; what is painted later takes away from it.
    pub masks: Vec<Vec<f32>>,
    /// The share of each pixel that nothing is painted on yet, while painting goes from front to back.
    bare: Vec<f32>,
}

impl Canvas {
    pub fn new(width: usize, height: usize) -> Canvas {
        Canvas {
            width,
            height,
            pixels: vec![[0.0; 3]; width * height],
            masks: Vec::new(),
            bare: vec![1.0; width * height],
        }
    }

    /// Paints one pixel, `cover` of it.
    #[inline]
    pub fn paint(&mut self, at: usize, colour: Rgb, cover: f32) {
        let pixel = &mut self.pixels[at];
        *pixel = mix(*pixel, colour, cover);
        for mask in &mut self.masks {
            mask[at] *= 1.0 - cover;
        }
    }

    /// Whether anything painted behind what is there would show.
    #[inline]
    pub fn is_bare(&self, at: usize) -> bool {
        self.bare[at] > 0.004
    }

    /// Paints `cover` of one pixel behind what is there.
    #[inline]
    pub fn paint_behind(&mut self, at: usize, colour: Rgb, cover: f32) {
        let share = self.bare[at] * cover;
        let pixel = &mut self.pixels[at];
        *pixel = std::array::from_fn(|c| pixel[c] + colour[c] * share);
        self.bare[at] -= share;
    }

    /// Rows or columns whose pixel centres lie within `radius` of `centre`, plus one on either side.
    pub fn span(centre: f32, radius: f32, len: usize) -> std::ops::Range<usize> {
        let from = (centre - radius - 1.0).floor().clamp(0.0, len as f32) as usize;
        let to = (centre + radius + 2.0).ceil().clamp(0.0, len as f32) as usize;
        from..to.max(from)
    }

    /// The 8-bit picture: gamma 2, bright parts compressed rather than cut off.
    pub fn to_image(&self) -> RgbImage {
        let to_byte = |v: f32| {
            let v = v.max(0.0);
            let v = if v > 0.7 { 1.0 - 0.09 / (v - 0.4) } else { v };
            (v.sqrt() * 255.0 + 0.5) as u8
        };
        let bytes = self.pixels.iter().flat_map(|pixel| pixel.map(to_byte)).collect();
        RgbImage::from_raw(self.width as u32, self.height as u32, bytes).expect("three bytes per pixel")
    }
}

const TILE: usize = 256;

/// Noise with a 1/f amplitude spectrum, mean 0, standard deviation near ½; repeats every 256 units.
#[inline]
pub(super) fn noise(x: f32, y: f32) -> f32 {
    static NOISE: OnceLock<Vec<f32>> = OnceLock::new();
    let tile = NOISE.get_or_init(make_noise);
    let ((left, fx), (top, fy)) = (split(x), split(y));
    let (x0, y0) = (left as usize % TILE, top as usize % TILE);
    let (x1, y1) = ((x0 + 1) % TILE, (y0 + 1) % TILE);
    let upper = tile[y0 * TILE + x0] * (1.0 - fx) + tile[y0 * TILE + x1] * fx;
    let lower = tile[y1 * TILE + x0] * (1.0 - fx) + tile[y1 * TILE + x1] * fx;
    upper * (1.0 - fy) + lower * fy
}

/// Octaves of interpolated random lattices; each octave down halves the amplitude, which gives 1/f in two
/// dimensions once the octaves' own widths are counted.
fn make_noise() -> Vec<f32> {
    let mut rng = rng::stream(0, "synth noise", 0);
    let mut tile = vec![0.0f32; TILE * TILE];
    for octave in 1..=8 {
        let cells = 1usize << octave;
        let lattice: Vec<f32> = (0..cells * cells).map(|_| rng.random_range(-1.0..1.0)).collect();
        let cell = TILE / cells;
        for y in 0..TILE {
            for x in 0..TILE {
                let (cx, cy) = (x / cell, y / cell);
                let fx = ramp(0.0, 1.0, (x % cell) as f32 / cell as f32);
                let fy = ramp(0.0, 1.0, (y % cell) as f32 / cell as f32);
                let at = |dx: usize, dy: usize| lattice[(cy + dy) % cells * cells + (cx + dx) % cells];
                let upper = at(0, 0) * (1.0 - fx) + at(1, 0) * fx;
                let lower = at(0, 1) * (1.0 - fx) + at(1, 1) * fx;
                tile[y * TILE + x] += (upper * (1.0 - fy) + lower * fy) * 1.4 * 0.72f32.powi(octave);
            }
        }
    }
    tile
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wave_is_a_sine() {
        for i in -300..300 {
            let turns = i as f32 / 97.0;
            let exact = (turns * std::f32::consts::TAU).sin();
            assert!((wave(turns) - exact).abs() < 2e-3, "at {turns} turns: {} and {exact}", wave(turns));
        }
    }

    #[test]
    fn noise_repeats_and_has_the_promised_mean_and_spread() {
        let values: Vec<f32> =
            (0..TILE * TILE).map(|i| noise((i % TILE) as f32, (i / TILE) as f32)).collect();
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.35 && (0.3..0.7).contains(&variance.sqrt()), "{mean} {}", variance.sqrt());
        assert_eq!(noise(3.25, -7.5), noise(3.25 - 256.0, 256.0 - 7.5));
    }
}
