//! Cats, whole and heads only. Lengths of heads are in half head heights.

use std::sync::Arc;

use rand::Rng;

use super::palette;
use super::raster::{Rgb, Vec3, mix, noise, ramp, scale, wave};
use super::solid::{Matrix, Paint, Part, apply, plain, rotation};
use crate::rng::ChaCha8Rng;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Pattern {
    Solid,
    Tabby,
    Patches,
    /// Dark face, ears, legs and tail.
    Points,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Posture {
    Sitting,
    Standing,
    Walking,
}

/// What a cat looks like and does.
#[derive(Debug, Clone)]
pub(super) struct Cat {
    coat: Rgb,
    marks: Rgb,
    pattern: Pattern,
    /// White muzzle, chest and feet.
    white: bool,
    eyes: Rgb,
    pupil: f32,
    eye_size: f32,
    nose: Rgb,
    ear: [f32; 2],
    width: f32,
    posture: Posture,
    tail: f32,
    steps: f32,
    head_turn: [f32; 2],
    salt: f32,
}

impl Cat {
    pub fn new(rng: &mut ChaCha8Rng) -> Cat {
        let coat = palette::fur(rng);
        let pattern = match rng.random_range(0..8) {
            0..3 => Pattern::Tabby,
            3 => Pattern::Points,
            4..6 => Pattern::Patches,
            _ => Pattern::Solid,
        };
        let marks = match pattern {
            Pattern::Patches => palette::fur(rng),
            Pattern::Points => scale(coat, rng.random_range(0.08..0.2)),
            _ => scale(coat, rng.random_range(0.25..0.6)),
        };
        let posture = match rng.random_range(0..3) {
            0 => Posture::Sitting,
            1 => Posture::Standing,
            _ => Posture::Walking,
        };
        let eyes = [0xa8b83c, 0xd8a828, 0x58a048, 0x7ab0d0, 0xc87820][rng.random_range(0..5)];
        Cat {
            coat,
            marks,
            pattern,
            white: rng.random_bool(0.45),
            eyes: palette::hex(eyes),
            pupil: rng.random_range(0.15..0.8),
            eye_size: rng.random_range(0.19..0.25),
            nose: palette::hex([0xc87878, 0x6a3a34, 0x2a2020][rng.random_range(0..3)]),
            ear: [rng.random_range(0.75..1.05), rng.random_range(0.3..0.42)],
            width: rng.random_range(0.98..1.15),
            posture,
            tail: rng.random_range(-0.6..1.0),
            steps: rng.random_range(0.7..1.4),
            head_turn: [rng.random_range(-0.9..0.9), rng.random_range(-0.2..0.25)],
            salt: rng.random_range(0.0..200.0),
        }
    }

    /// Yaw and pitch of the head relative to the body.
    pub fn head_turn(&self) -> [f32; 2] {
        self.head_turn
    }

    fn fur(&self, p: Vec3, stripes: f32) -> Rgb {
        let [x, y, z] = p;
        let s = self.salt;
        let hairs = 1.0 + 0.3 * noise(x * 16.0 + z * 5.0 + s, y * 16.0 + z * 7.0 + s);
        let marked = match self.pattern {
            Pattern::Solid | Pattern::Points => 0.0,
            Pattern::Tabby => {
                0.75 * ramp(0.0, 0.6, wave(stripes + 0.35 * noise(x * 5.0 + s, y * 5.0 + z * 3.0 + s)))
            }
            Pattern::Patches => ramp(0.0, 0.12, noise(x * 3.0 + s, y * 3.0 + z * 2.5 + s)),
        };
        scale(mix(self.coat, self.marks, marked), hairs)
    }

    fn face(&self, p: Vec3) -> Rgb {
        let [x, y, z] = p;
        let side = x.abs();
        // The stripes of the forehead run up, those of the cheeks back.
        let stripes = if y > 0.25 && z > -0.2 { x * 3.2 + 0.25 } else { y * 3.0 + side * 0.8 };
        let mut colour = self.fur(p, stripes);
        if z < -0.1 {
            return colour;
        }
        if self.pattern == Pattern::Points {
            colour = mix(colour, self.marks, 0.9 * ramp(0.85, 0.35, x.hypot(y + 0.15)));
        }
        if self.white {
            let blaze = ramp(0.05, 0.0, side - 0.10 - 0.35 * ramp(0.2, -0.4, y));
            colour = mix(colour, palette::hex(0xe8e4dc), blaze * ramp(0.6, 0.3, y));
        }
        let (ex, ey) = (side - 0.43, y - 0.10);
        // Eyes slant up and out.
        let (u, v) = (ex * 0.95 + ey * 0.3, ey * 0.95 - ex * 0.3);
        let r = (u / self.eye_size).hypot(v / (self.eye_size * 0.8));
        colour = mix(colour, scale(self.coat, 0.04), ramp(1.3, 1.15, r));
        colour = mix(colour, self.eyes, ramp(1.02, 0.92, r));
        let slit = (u / (self.eye_size * self.pupil)).hypot(v / (self.eye_size * 0.75));
        colour = mix(colour, [0.004; 3], ramp(1.1, 0.9, slit));
        let glint = ramp(0.05, 0.03, (x + 0.06 - 0.43 * x.signum()).hypot(y - 0.17));
        mix(colour, [0.9; 3], glint)
    }

    /// The head's parts, facing the viewer.
    pub fn head(&self) -> Vec<Part> {
        let cat = self.clone();
        let skull: Paint = Arc::new(move |p| cat.face(p));
        let pale = if self.white || self.pattern == Pattern::Tabby {
            mix(self.coat, palette::hex(0xe8e4dc), 0.75)
        } else if self.pattern == Pattern::Points {
            scale(self.marks, 1.3)
        } else {
            scale(self.coat, 1.15)
        };
        let muzzle: Paint = Arc::new(move |[x, y, _]| {
            let dots = 1.0 - 0.5 * ramp(0.6, 0.9, wave(x * 2.0) * wave(y * 2.5 + 0.1));
            scale(pale, dots)
        });
        let dark = self.pattern == Pattern::Points;
        let back = if dark { self.marks } else { scale(self.coat, 0.8) };
        let inner = mix(scale(self.coat, 0.6), palette::hex(0xd89890), 0.6);
        let ear: Paint = Arc::new(move |[x, y, z]| {
            let inside = ramp(0.0, 0.15, z) * ramp(0.75, 0.55, x.abs() / (1.05 - y).max(0.05));
            mix(back, inner, inside)
        });
        let (nose, mouth) = (plain(self.nose), plain(scale(self.nose, 0.15)));
        let [tall, wide] = self.ear;
        let w = self.width;
        let mut parts = vec![
            Part::ball([0.0; 3], [w, 0.88, 0.85], &skull),
            Part::ball([-0.2, -0.42, 0.66], [0.29, 0.22, 0.28], &muzzle),
            Part::ball([0.2, -0.42, 0.66], [0.29, 0.22, 0.28], &muzzle),
            Part::ball([0.0, -0.62, 0.55], [0.24, 0.17, 0.25], &muzzle),
            Part::ball([0.0, -0.26, 0.88], [0.14, 0.085, 0.09], &nose),
            Part::ball([0.0, -0.41, 0.88], [0.022, 0.14, 0.05], &mouth),
        ];
        let whiskers = plain([0.75; 3]);
        for side in [-1.0, 1.0] {
            let tip = [side * (w * 0.62 + 0.22), 0.5 + tall, -0.08];
            parts.push(Part::limb([side * w * 0.60, 0.38, 0.02], tip, [wide, 0.01], 0.5, &ear));
            for (rise, droop) in [(0.12, 0.06), (0.0, -0.1), (-0.12, -0.28)] {
                let root = [side * 0.3, -0.42 + rise * 0.5, 0.85];
                let end = [side * 1.35, -0.42 + droop, 0.7];
                parts.push(Part::limb(root, end, [0.014, 0.006], 1.0, &whiskers));
            }
        }
        for part in &mut parts {
            part.head = true;
        }
        parts
    }

    fn coat(&self, along: usize, rate: f32) -> Paint {
        let cat = self.clone();
        Arc::new(move |p| cat.fur(p, p[along] * rate))
    }

    fn limb_paint(&self) -> Paint {
        if self.pattern == Pattern::Points { plain(self.marks) } else { self.coat(1, 2.5) }
    }

    /// A head with neck and chest, in head units; the head turns, the chest half as far.
    pub fn bust(&self, yaw: f32, pitch: f32) -> Vec<Part> {
        let turn = rotation(yaw, pitch, 0.0);
        let half = rotation(yaw * 0.5, 0.0, 0.0);
        let coat = self.coat(1, 2.0);
        let chest = if self.white { plain(palette::hex(0xdcd8d0)) } else { coat.clone() };
        let trunk = [
            Part::ball([0.0, -1.1, -0.5], [0.85, 1.0, 0.75], &coat),
            Part::ball([0.0, -2.1, -0.6], [1.15, 1.4, 1.1], &coat),
            Part::ball([0.0, -1.5, -0.05], [0.5, 0.8, 0.5], &chest),
        ];
        let head = self.head().into_iter().map(|p| p.moved(&turn, [0.0; 3]));
        head.chain(trunk.into_iter().map(|p| p.moved(&half, [0.0; 3]))).collect()
    }

    fn tail(&self, from: Vec3, start: Vec3, parts: &mut Vec<Part>, t: f32) {
        let paint = self.limb_paint();
        let (mut at, mut heading) = (from, start);
        let bend = self.tail + 0.25 * wave(t * 0.5);
        for i in 0..6 {
            let turn: Matrix = rotation(0.25 * bend, -0.35 * bend, 0.0);
            heading = apply(&turn, heading);
            let next = std::array::from_fn(|k| at[k] + heading[k]);
            let thick = 0.095 - 0.008 * i as f32;
            parts.push(Part::limb(at, next, [thick, thick - 0.008], 1.0, &paint));
            parts.push(Part::ball(next, [thick - 0.008; 3], &paint));
            at = next;
        }
    }

    /// The whole cat, facing the viewer, about 2 high or long.
    pub fn body(&self, t: f32) -> Vec<Part> {
        let coat = self.coat(2, 3.0);
        let legs = self.limb_paint();
        let paws = if self.white { plain(palette::hex(0xe0dcd4)) } else { legs.clone() };
        let mut parts = Vec::new();
        let sitting = self.posture == Posture::Sitting;
        let head_at = if sitting { [0.0, 0.62, 0.30] } else { [0.0, 0.42, 0.88] };
        let [yaw, pitch] = self.head_turn;
        let turn = rotation(yaw, pitch, 0.0).map(|column| scale(column, 0.33));
        parts.extend(self.head().into_iter().map(|p| p.moved(&turn, head_at)));
        let mut leg = |x: f32, top: [f32; 2], bottom: [f32; 2], thick: f32| {
            parts.push(Part::limb(
                [x, top[0], top[1]],
                [x, bottom[0], bottom[1]],
                [thick, 0.075],
                1.0,
                &legs,
            ));
            parts.push(Part::ball([x, bottom[0], bottom[1] + 0.05], [0.085, 0.07, 0.13], &paws));
        };
        if sitting {
            for x in [-0.15, 0.15] {
                leg(x, [0.1, 0.28], [-0.9, 0.36], 0.14);
            }
            let upright = rotation(0.0, 0.45, 0.0);
            parts.push(Part::ball([0.0; 3], [0.37, 0.68, 0.42], &coat).moved(&upright, [0.0, -0.2, 0.0]));
            parts.push(Part::ball([0.0, 0.2, 0.2], [0.28, 0.45, 0.26], &coat));
            for x in [-0.3, 0.3] {
                parts.push(Part::ball([x, -0.62, -0.05], [0.2, 0.33, 0.4], &coat));
                parts.push(Part::ball([x * 1.15, -0.92, 0.3], [0.1, 0.07, 0.2], &paws));
            }
            self.tail([0.25, -0.85, -0.35], [0.2, 0.02, 0.0], &mut parts, t);
        } else {
            let swing = if self.posture == Posture::Walking { wave(t * self.steps) } else { 0.2 };
            for x in [-0.17f32, 0.17] {
                let step = swing * x.signum() * 0.28;
                leg(x, [-0.1, 0.6], [-0.88, 0.6 + step], 0.15);
                leg(x, [-0.1, -0.62], [-0.88, -0.62 - step], 0.19);
            }
            parts.push(Part::ball([0.0, 0.0, -0.05], [0.29, 0.32, 0.86], &coat));
            parts.push(Part::ball([0.0, 0.02, 0.55], [0.27, 0.33, 0.32], &coat));
            parts.push(Part::ball([0.0, 0.0, -0.6], [0.28, 0.34, 0.34], &coat));
            parts.push(Part::limb([0.0, 0.1, 0.6], [0.0, 0.4, 0.84], [0.24, 0.2], 1.0, &coat));
            self.tail([0.0, 0.15, -0.88], [0.0, 0.14, -0.16], &mut parts, t);
        }
        parts
    }
}
