//! Heads and whole bodies of people. Lengths of heads are in half head heights.

use std::sync::Arc;

use rand::Rng;

use super::palette;
use super::raster::{Rgb, Vec3, mix, noise, ramp, scale, wave};
use super::solid::{Paint, Part, plain, rotation};
use crate::rng::ChaCha8Rng;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Hair {
    Bald,
    Short,
    Long,
    Round,
    Bun,
    Hat(Rgb),
}

/// What a person's head looks like.
#[derive(Debug, Clone)]
pub(super) struct Face {
    skin: Rgb,
    lips: Rgb,
    hair: Rgb,
    iris: Rgb,
    style: Hair,
    width: f32,
    eye: [f32; 2],
    eye_size: [f32; 2],
    gaze: f32,
    brow: [f32; 2],
    mouth: [f32; 2],
    smile: f32,
    open: f32,
    nose: f32,
    /// How much a beard hides the skin.
    beard: f32,
    /// Frames' colour and how dark the glass is.
    glasses: Option<(Rgb, f32)>,
    hairline: f32,
    talks: bool,
}

impl Face {
    pub fn new(rng: &mut ChaCha8Rng) -> Face {
        let skin = palette::skin(rng);
        let hair = palette::hair(rng);
        let style = match rng.random_range(0..12) {
            0 => Hair::Bald,
            1..5 => Hair::Short,
            5..8 => Hair::Long,
            8 => Hair::Round,
            9 => Hair::Bun,
            _ => Hair::Hat(palette::cloth(rng)),
        };
        let red = [1.0, 0.45, 0.42];
        let lips = mix(skin, red, rng.random_range(0.15..0.5));
        let glasses = rng.random_bool(0.2).then(|| {
            let dark = if rng.random_bool(0.3) { 0.9 } else { 0.1 };
            (scale(palette::hair(rng), 0.5), dark)
        });
        Face {
            skin,
            lips: scale(lips, 0.7),
            hair,
            iris: palette::hex([0x3a2414, 0x2c1c10, 0x4c6a86, 0x5a6a3c][rng.random_range(0..4)]),
            style,
            width: rng.random_range(0.68..0.82),
            eye: [rng.random_range(0.38..0.46), rng.random_range(0.04..0.14)],
            eye_size: [rng.random_range(0.17..0.22), rng.random_range(0.07..0.1)],
            gaze: rng.random_range(-0.05..0.05),
            brow: [rng.random_range(0.20..0.27), rng.random_range(-0.25..0.25)],
            mouth: [rng.random_range(0.28..0.42), rng.random_range(-0.58..-0.48)],
            smile: rng.random_range(-0.08..0.22),
            open: rng.random_range(-0.15f32..0.16).max(0.0),
            nose: rng.random_range(0.8..1.2),
            beard: if rng.random_bool(0.18) { rng.random_range(0.4..0.95) } else { 0.0 },
            glasses,
            hairline: rng.random_range(0.55..0.8),
            talks: rng.random_bool(0.3),
        }
    }

    /// Colour of the skull's unit ball at `p`: x to the viewer's right, y up, z to the front.
    fn colour(&self, p: Vec3, open: f32) -> Rgb {
        let [x, y, z] = p;
        let mottle = 1.0 + 0.10 * noise(x * 9.0 + 40.0, y * 9.0 + z * 5.0 + 40.0);
        let mut colour = scale(self.skin, mottle);
        if z < -0.1 {
            return colour;
        }
        let side = x.abs();
        let bump = |dx: f32, dy: f32, wide: f32, high: f32| {
            let r = (dx / wide).powi(2) + (dy / high).powi(2);
            (1.0 - r * 0.4).max(0.0).powi(2)
        };
        let (ex, ey) = (side - self.eye[0], y - self.eye[1]);
        // Eyes lie in hollows, lips and nose cast a little shade, cheeks are redder.
        let shade = 0.42 * bump(ex, ey - 0.05, 0.24, 0.15)
            + 0.35 * bump(x, y + 0.36, 0.2, 0.06)
            + 0.25 * bump(x, y - self.mouth[1] + 0.14, 0.25, 0.05)
            + 0.15 * bump(side - 0.24, y + 0.15, 0.06, 0.3);
        colour = scale(colour, 1.0 - shade.min(0.6));
        let flush = 0.25 * bump(side - 0.48, y + 0.28, 0.22, 0.18);
        colour = mix(colour, [colour[0] * 1.05, colour[1] * 0.75, colour[2] * 0.7], flush);

        let strands = 1.0 + 0.5 * noise(x * 30.0 + 7.0, y * 8.0 + 90.0);
        let hair = scale(self.hair, strands);
        let jaw = ramp(-0.28, -0.42, y - 0.35 * side * side) * self.beard;
        let chops = ramp(0.62, 0.72, side) * ramp(0.0, -0.15, y) * self.beard;
        colour = mix(colour, hair, jaw.max(chops));
        if self.style != Hair::Bald {
            let line = self.hairline - 0.35 * side * side + 0.06 * noise(x * 12.0 + 3.0, 50.0);
            colour = mix(colour, hair, ramp(line, line + 0.05, y));
        }

        let along = ex / self.eye_size[0];
        let brow_y = ey - self.brow[0] - self.brow[1] * ex + 0.05 * along * along;
        let thick = 0.045 * (1.2 - 0.4 * along).clamp(0.3, 1.4);
        let brow = ramp(1.35, 1.1, along.abs()) * ramp(thick + 0.02, thick - 0.02, brow_y.abs());
        colour = mix(colour, scale(self.hair, 0.6), brow * 0.9);

        let lid = self.eye_size[1] * (1.0 - 0.75 * along * along).max(0.02);
        let eye = ramp(1.05, 0.95, along.abs()) * ramp(lid + 0.015, lid - 0.015, ey.abs());
        if eye > 0.0 {
            let gaze = if x < 0.0 { -self.gaze } else { self.gaze };
            let r = ((ex - gaze) * self.width).hypot(ey);
            let size = self.eye_size[1];
            let ball = mix([0.55, 0.52, 0.48], self.iris, ramp(size * 1.15, size * 0.95, r));
            let ball = mix(ball, [0.005; 3], ramp(size * 0.6, size * 0.45, r));
            colour = mix(colour, ball, eye);
        }
        let lash = ramp(1.25, 1.0, along.abs()) * ramp(0.035, 0.012, (ey - lid).abs());
        colour = mix(colour, scale(self.skin, 0.08), lash * 0.9);

        let across = x / self.mouth[0];
        if across.abs() < 1.1 {
            let dy = y - self.mouth[1] - self.smile * across * across * 0.6;
            let arch = (1.0 - across * across).max(0.0);
            let gap = open * arch;
            let lip = gap + 0.075 * arch.sqrt() + 0.005;
            colour = mix(colour, self.lips, ramp(lip + 0.015, lip - 0.015, dy.abs()) * 0.85);
            let edge = gap + 0.018;
            let inside = ramp(edge + 0.012, edge - 0.012, dy.abs()) * ramp(1.02, 0.9, across.abs());
            let teeth = if gap > 0.04 { ramp(0.1, 0.3, dy / gap) * 0.6 } else { 0.0 };
            colour = mix(colour, mix([0.03, 0.008, 0.008], [0.7, 0.68, 0.6], teeth), inside);
        }
        if let Some((frame, dark)) = self.glasses {
            let r = (ex / 0.31).hypot((ey + 0.02) / 0.23);
            colour = mix(colour, [0.02; 3], dark * ramp(1.02, 0.95, r));
            let ring = ramp(0.17, 0.10, (r - 1.0).abs());
            let bridge = ramp(0.16, 0.12, side) * ramp(0.05, 0.03, (ey - 0.04).abs());
            let arm = ramp(0.68, 0.72, side) * ramp(0.05, 0.03, (ey - 0.05).abs());
            colour = mix(colour, frame, ring.max(bridge).max(arm));
        }
        colour
    }

    /// The head's parts, facing the viewer, at time `t`.
    pub fn head(&self, t: f32) -> Vec<Part> {
        let face = self.clone();
        let open = if self.talks { (self.open + 0.06 * (1.0 + wave(t * 2.7))).min(0.2) } else { self.open };
        let skull: Paint = Arc::new(move |p| face.colour(p, open));
        let tone = self.skin;
        let nose: Paint = Arc::new(move |[x, y, _]| {
            let nostril = ramp(-0.25, -0.6, y) * ramp(0.5, 0.25, (x.abs() - 0.45).abs());
            scale(tone, 1.03 - 0.75 * nostril)
        });
        let (skin, w, n) = (plain(scale(tone, 0.85)), self.width, self.nose);
        let hair_colour = self.hair;
        let hair: Paint = Arc::new(move |[x, y, z]| {
            let strands = 1.0 + 0.6 * noise(x * 26.0 + 60.0, y * 6.0 + z * 9.0 + 60.0);
            scale(hair_colour, strands)
        });
        let mut parts = vec![
            Part::ball([0.0; 3], [w, 1.0, 0.86], &skull),
            Part::ball([0.0, -0.12, 0.78], [0.11 * n, 0.26, 0.2 * n], &nose),
            Part::ball([0.0, -0.29, 0.8], [0.18 * n, 0.1, 0.17 * n], &nose),
            Part::ball([-w, -0.02, -0.05], [0.1, 0.24, 0.16], &skin),
            Part::ball([w, -0.02, -0.05], [0.1, 0.24, 0.16], &skin),
        ];
        let mut add = |centre, axes, paint: &Paint| parts.push(Part::ball(centre, axes, paint));
        match self.style {
            Hair::Bald => {}
            Hair::Round => add([0.0, 0.36, -0.22], [w + 0.36, 0.98, 0.98], &hair),
            Hair::Hat(colour) => {
                let cloth = plain(colour);
                add([0.0, 0.05, -0.2], [w + 0.05, 0.9, 0.8], &hair);
                add([0.0, 0.46, -0.04], [w + 0.12, 0.72, 0.95], &cloth);
                add([0.0, 0.46, 0.35], [w + 0.08, 0.06, 0.9], &cloth);
            }
            _ => add([0.0, 0.22, -0.16], [w + 0.09, 0.93, 0.88], &hair),
        }
        if self.style == Hair::Long {
            add([-w * 0.88, -0.5, -0.2], [0.26, 0.95, 0.42], &hair);
            add([w * 0.88, -0.5, -0.2], [0.26, 0.95, 0.42], &hair);
            add([0.0, -0.4, -0.5], [w, 1.15, 0.45], &hair);
        }
        if self.style == Hair::Bun {
            add([0.0, 1.12, -0.25], [0.36, 0.34, 0.36], &hair);
        }
        for part in &mut parts {
            part.head = true;
        }
        parts
    }
}

fn clothing(rng: &mut ChaCha8Rng) -> Paint {
    let (a, b) = (palette::cloth(rng), palette::cloth(rng));
    let frequency = rng.random_range(2.0..6.0);
    match rng.random_range(0..4) {
        0 => Arc::new(move |p| mix(a, b, ramp(-0.2, 0.2, wave(p[1] * frequency)))),
        1 => Arc::new(move |p| mix(a, b, ramp(0.3, 0.5, noise(p[0] * 9.0 + 20.0, p[1] * 14.0 + 20.0)))),
        _ => Arc::new(move |p| scale(a, 1.0 + 0.35 * noise(p[0] * 5.0 + 99.0, p[1] * 11.0 + 99.0))),
    }
}

/// A person with clothes and a posture.
#[derive(Clone)]
pub(super) struct Person {
    pub face: Face,
    top: Paint,
    bottom: Paint,
    shoes: Paint,
    sleeves: bool,
    skirt: bool,
    shorts: bool,
    head_size: f32,
    build: f32,
    posture: Posture,
    arms: [[f32; 2]; 2],
    steps: f32,
    head_turn: [f32; 2],
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Posture {
    Standing,
    Walking,
    Sitting,
}

impl Person {
    pub fn new(rng: &mut ChaCha8Rng) -> Person {
        let face = Face::new(rng);
        let (top, bottom) = (clothing(rng), clothing(rng));
        let posture = match rng.random_range(0..10) {
            0..4 => Posture::Standing,
            4..8 => Posture::Walking,
            _ => Posture::Sitting,
        };
        // Upper arm and forearm, away from hanging straight down.
        let mut arm = || match rng.random_range(0..6) {
            0 => [2.2, rng.random_range(0.0..0.7)],
            1 => [0.8, -1.9],
            2 => [1.3, rng.random_range(0.0..1.2)],
            _ => [rng.random_range(0.08..0.35), rng.random_range(-0.2..0.15)],
        };
        let arms = [arm(), arm()];
        Person {
            face,
            top,
            bottom,
            shoes: plain(scale(palette::cloth(rng), 0.5)),
            sleeves: rng.random_bool(0.6),
            skirt: rng.random_bool(0.25),
            shorts: rng.random_bool(0.2),
            head_size: rng.random_range(0.128..0.17),
            build: rng.random_range(0.85..1.25),
            posture,
            arms,
            steps: rng.random_range(0.6..1.2),
            head_turn: [rng.random_range(-0.6..0.6), rng.random_range(-0.2..0.2)],
        }
    }

    /// Yaw and pitch of the head relative to the body.
    pub fn head_turn(&self) -> [f32; 2] {
        self.head_turn
    }

    /// A head with neck and shoulders, in head units; the head turns by `turn`, the shoulders half as far.
    pub fn bust(&self, t: f32, yaw: f32, pitch: f32) -> Vec<Part> {
        let turn = rotation(yaw, pitch, 0.0);
        let mut parts: Vec<Part> = self.face.head(t).into_iter().map(|p| p.moved(&turn, [0.0; 3])).collect();
        let half = rotation(yaw * 0.5, 0.0, 0.0);
        let b = self.build;
        let neck = plain(scale(self.face.skin, 0.6));
        let trunk = [
            Part::limb([0.0, -0.6, -0.12], [0.0, -1.7, -0.3], [0.40 * b, 0.46 * b], 1.0, &neck),
            Part::ball([0.0, -2.5, -0.35], [1.75 * b, 1.0, 0.75], &self.top),
            Part::limb([0.0, -2.6, -0.35], [0.0, -7.0, -0.3], [1.4 * b, 1.1 * b], 0.55, &self.top),
        ];
        let sleeve = if self.sleeves { self.top.clone() } else { plain(scale(self.face.skin, 0.85)) };
        let arms = [-1.0, 1.0].map(|side| {
            let (shoulder, elbow) = ([side * 1.4 * b, -2.4, -0.35], [side * 1.9 * b, -4.8, -0.2]);
            Part::limb(shoulder, elbow, [0.42 * b, 0.34 * b], 1.0, &sleeve)
        });
        parts.extend(trunk.into_iter().chain(arms).map(|p| p.moved(&half, [0.0; 3])));
        parts
    }

    /// The whole person, facing the viewer, about 2 high with the feet at -1.
    pub fn body(&self, t: f32) -> Vec<Part> {
        let size = self.head_size;
        let [yaw, pitch] = self.head_turn;
        let head_turn = rotation(yaw, pitch, 0.0).map(|column| scale(column, size));
        let sitting = self.posture == Posture::Sitting;
        let drop = if sitting { -0.38 } else { 0.0 };
        let b = self.build;
        let at = |x: f32, y: f32, z: f32| [x, y + drop, z];
        let head_at = at(0.0, 0.62 + size * 1.25, 0.03);
        let mut parts: Vec<Part> =
            self.face.head(t).into_iter().map(|p| p.moved(&head_turn, head_at)).collect();
        let skin = plain(self.face.skin);
        let neck = plain(scale(self.face.skin, 0.7));
        parts.push(Part::limb(at(0.0, 0.56, 0.0), at(0.0, 0.72, 0.01), [0.065 * b, 0.06], 1.0, &neck));
        parts.push(Part::limb(
            at(0.0, 0.08, 0.0),
            at(0.0, 0.52, 0.0),
            [0.145 * b, 0.19 * b],
            0.62,
            &self.top,
        ));
        parts.push(Part::ball(at(0.0, 0.51, 0.0), [0.2 * b, 0.085, 0.115], &self.top));
        parts.push(Part::ball(at(0.0, 0.06, 0.0), [0.155 * b, 0.12, 0.11], &self.bottom));

        let swing = if self.posture == Posture::Walking { wave(t * self.steps) } else { 0.15 };
        let sleeve = if self.sleeves { &self.top } else { &skin };
        for (side, [upper, fore]) in [-1.0f32, 1.0].into_iter().zip(self.arms) {
            let reach = |from: Vec3, length: f32, out: f32, forward: f32| {
                let (s, c) = out.sin_cos();
                let (fs, fc) = forward.sin_cos();
                [from[0] + side * s * length, from[1] - c * fc * length, from[2] + c.abs() * fs * length]
            };
            let shoulder = at(side * 0.19 * b, 0.51, 0.0);
            let elbow = reach(shoulder, 0.29, upper, swing * side * 0.5);
            let hand = reach(elbow, 0.27, upper + fore, swing * side * 0.5 + 0.35);
            parts.push(Part::ball(shoulder, [0.07 * b, 0.075, 0.07], &self.top));
            parts.push(Part::limb(shoulder, elbow, [0.06 * b, 0.048], 1.0, &self.top));
            parts.push(Part::ball(elbow, [0.048; 3], sleeve));
            parts.push(Part::limb(elbow, hand, [0.046, 0.034], 1.0, sleeve));
            parts.push(Part::ball(hand, [0.042, 0.055, 0.04], &skin));

            let (thigh, shin) = match self.posture {
                Posture::Sitting => (1.35, 0.0),
                _ => (-swing * side * 0.55, -swing * side * 0.55 - 0.3 * swing.abs()),
            };
            let hip = at(side * 0.085 * b, 0.03, 0.0);
            let knee = reach(hip, 0.46, 0.06, thigh);
            let ankle = reach(knee, 0.46, 0.0, shin);
            let lower = if self.skirt || self.shorts { &skin } else { &self.bottom };
            let thigh_cloth = if self.skirt { &skin } else { &self.bottom };
            parts.push(Part::limb(hip, knee, [0.098 * b, 0.066], 1.0, thigh_cloth));
            parts.push(Part::ball(knee, [0.066; 3], lower));
            parts.push(Part::limb(knee, ankle, [0.064, 0.042], 1.0, lower));
            let toe = [ankle[0] + side * 0.01, ankle[1] - 0.03, ankle[2] + 0.05];
            parts.push(Part::ball(toe, [0.048, 0.04, 0.11], &self.shoes));
        }
        if self.skirt && !sitting {
            parts.push(Part::limb(
                at(0.0, 0.12, 0.0),
                at(0.0, -0.42, 0.0),
                [0.14 * b, 0.25],
                0.75,
                &self.bottom,
            ));
        }
        parts
    }
}
