//! Faces, cats and bodies that pass through a scene, and unlabelled things made of the same stuff.

use rand::Rng;

use super::camera::Camera;
use super::cats::Cat;
use super::palette::{self, Palette};
use super::people::Person;
use super::raster::{Canvas, Light, noise, scale, wave};
use super::solid::{self, Extent, Paint, Part, rotation};
use super::{Kind, Label, leaves};
use crate::rng::ChaCha8Rng;

/// What is drawn.
#[derive(Clone)]
enum Subject {
    Bust(Box<Person>),
    Body(Box<Person>),
    CatHead(Box<Cat>),
    Cat(Box<Cat>),
    /// Balls and limbs in the colours of figures that depict nothing.
    Thing(Vec<Part>),
}

/// A subject with its place, size, pose and motion.
#[derive(Clone)]
pub(super) struct Figure {
    subject: Subject,
    at: [f32; 2],
    speed: [f32; 2],
    /// Frame heights per model unit.
    size: f32,
    growth: f32,
    yaw: [f32; 2],
    pitch: f32,
    roll: f32,
    nod: f32,
    nod_rate: f32,
    seconds: f32,
    pub nearness: f32,
}

/// What a scene holds besides leaves: of every 100 scenes, this many hold one of each.
const FACES: f64 = 0.27;
const CATS: f64 = 0.22;
const BODIES: f64 = 0.20;

/// The figures of one scene of `seconds`, for frames `aspect` times as wide as high.
pub(super) fn cast(rng: &mut ChaCha8Rng, palette: &Palette, seconds: f32, aspect: f32) -> Vec<Figure> {
    let mut figures = Vec::new();
    if rng.random_bool(FACES) {
        figures.push(Figure::of(rng, Kind::Face, seconds, aspect));
    }
    if rng.random_bool(CATS) {
        figures.push(Figure::of(rng, Kind::Cat, seconds, aspect));
    }
    if rng.random_bool(BODIES) {
        figures.push(Figure::of(rng, Kind::Body, seconds, aspect));
    }
    for _ in 0..rng.random_range(0..4) {
        figures.push(Figure::thing(rng, palette, seconds, aspect));
    }
    figures
}

impl Figure {
    /// A face, cat or body with random looks, pose, place and size.
    pub fn of(rng: &mut ChaCha8Rng, kind: Kind, seconds: f32, aspect: f32) -> Figure {
        // Half-height of the labelled box in model units, and its width over its height.
        let (subject, half, shape) = match kind {
            Kind::Face => (Subject::Bust(Box::new(Person::new(rng))), 1.1, 0.8),
            Kind::Body => (Subject::Body(Box::new(Person::new(rng))), 0.98, 0.4),
            Kind::Cat if rng.random_bool(0.5) => (Subject::CatHead(Box::new(Cat::new(rng))), 1.1, 1.0),
            Kind::Cat => (Subject::Cat(Box::new(Cat::new(rng))), 1.0, 1.0),
        };
        // The share of the frame that the box covers, evenly on a log scale; half of the draws are below 0.2.
        let small = rng.random_bool(0.5);
        let share = if small {
            rng.random_range(0.03f32.ln()..0.18f32.ln())
        } else {
            rng.random_range(0.22f32.ln()..0.6f32.ln())
        };
        let height = (share.exp() * aspect / shape).sqrt().min(1.6);
        let size = height / (2.0 * half);
        let facing = rng.random_bool(0.65);
        let spread = match (&subject, facing) {
            (Subject::Cat(_), _) => std::f32::consts::PI * 0.6,
            (_, true) => 0.45,
            (Subject::Body(_), false) => std::f32::consts::PI,
            (_, false) => 1.1,
        };
        let pitch = if matches!(subject, Subject::Bust(_) | Subject::CatHead(_)) { 0.35 } else { 0.15 };
        let figure = Figure::placed(rng, subject, size, seconds, aspect);
        Figure {
            yaw: [rng.random_range(-spread..spread), rng.random_range(-0.25..0.25)],
            pitch: rng.random_range(-pitch..pitch),
            ..figure
        }
    }

    fn thing(rng: &mut ChaCha8Rng, palette: &Palette, seconds: f32, aspect: f32) -> Figure {
        let mut parts = Vec::new();
        for _ in 0..rng.random_range(1..7) {
            let colour = match rng.random_range(0..5) {
                0 => palette::skin(rng),
                1 => palette::fur(rng),
                2 => palette::hair(rng),
                3 => palette::cloth(rng),
                _ => palette.ground(rng),
            };
            let dark = scale(colour, rng.random_range(0.1..0.9));
            let (salt, rate, amount) =
                (rng.random_range(0.0..200.0), rng.random_range(1.0..4.0), rng.random_range(-0.5f32..1.0));
            let paint: Paint = std::sync::Arc::new(move |[x, y, z]| {
                let bands = amount.max(0.0) * (0.5 + 0.5 * wave(y * rate + salt));
                let blotches = 0.5 * noise(x * 4.0 * rate + salt, (y + z) * 4.0 * rate + salt);
                super::raster::mix(colour, dark, (bands + blotches).clamp(0.0, 1.0))
            });
            let mut near = || -> [f32; 3] { std::array::from_fn(|_| rng.random_range(-0.8..0.8)) };
            let (centre, end) = (near(), near());
            let axes: [f32; 3] = std::array::from_fn(|_| rng.random_range(0.1..0.9));
            parts.push(match rng.random_bool(0.65) {
                true => Part::ball(centre, axes, &paint),
                false => Part::limb(centre, end, [axes[0] * 0.4, axes[1] * 0.3], 1.0, &paint),
            });
        }
        let size = rng.random_range(0.05f32.ln()..0.5f32.ln()).exp();
        let figure = Figure::placed(rng, Subject::Thing(parts), size, seconds, aspect);
        Figure { yaw: [rng.random_range(-3.0..3.0), rng.random_range(-0.4..0.4)], ..figure }
    }

    fn placed(rng: &mut ChaCha8Rng, subject: Subject, size: f32, seconds: f32, aspect: f32) -> Figure {
        let (wide, high) = (0.42 * aspect, 0.36);
        let upright = rng.random_bool(0.6);
        let lean = if upright { 0.12 } else { 0.5 };
        Figure {
            subject,
            at: [rng.random_range(-wide..wide), rng.random_range(-high..high)],
            speed: [rng.random_range(-0.25..0.25), rng.random_range(-0.06..0.06)],
            size,
            growth: rng.random_range(-0.12..0.12),
            yaw: [0.0; 2],
            pitch: 0.0,
            roll: rng.random_range(-lean..lean),
            nod: rng.random_range(0.0..0.08),
            nod_rate: rng.random_range(0.2..0.6),
            seconds,
            nearness: rng.random_range(leaves::FIGURES..1.0),
        }
    }

    /// Paints the figure as at time `t` and leaves a mask on the canvas for each object returned; `visible` of
    /// those objects holds their area in pixels until [`settle`].
    pub fn draw(&self, canvas: &mut Canvas, camera: &Camera, t: f32, light: &Light) -> Vec<Label> {
        let since = t - self.seconds / 2.0;
        let at = std::array::from_fn(|i| self.at[i] + self.speed[i] * since);
        let mut view = camera.project(at, 1.0, t, canvas.width, canvas.height);
        view.scale *= self.size * (self.growth * since).exp();
        let sway = wave(t * self.nod_rate);
        let yaw = self.yaw[0] + self.yaw[1] * since + self.nod * sway;
        let pitch = self.pitch + self.nod * wave(t * self.nod_rate * 1.3 + 0.2);
        let roll = self.roll + self.nod * sway;
        let whole = rotation(yaw, pitch, roll);
        let lean = rotation(0.0, 0.0, roll);
        let ([head_yaw, head_pitch], parts, turn) = match &self.subject {
            Subject::Bust(person) => ([0.0; 2], person.bust(t, yaw, pitch), lean),
            Subject::CatHead(cat) => ([0.0; 2], cat.bust(yaw, pitch), lean),
            Subject::Body(person) => (person.head_turn(), person.body(t), whole),
            Subject::Cat(cat) => (cat.head_turn(), cat.body(t), whole),
            Subject::Thing(parts) => ([0.0; 2], parts.clone(), whole),
        };
        let face_shows = (yaw + head_yaw).cos() > 0.25;
        let tracked: &[(Kind, Extent)] = match &self.subject {
            Subject::Bust(_) => &[(Kind::Face, Extent::Head)],
            Subject::CatHead(_) => &[(Kind::Cat, Extent::Head)],
            Subject::Body(_) if face_shows => &[(Kind::Body, Extent::Whole), (Kind::Face, Extent::Head)],
            Subject::Body(_) => &[(Kind::Body, Extent::Whole)],
            Subject::Cat(_) => &[(Kind::Cat, Extent::Whole)],
            Subject::Thing(_) => &[],
        };
        let extents: Vec<Extent> = tracked.iter().map(|&(_, extent)| extent).collect();
        let outcomes = solid::draw(canvas, &parts, &turn, &view, light, &extents);
        let degrees = |radians: f32| {
            let turns = radians / std::f32::consts::TAU;
            (turns - turns.round()) * 360.0
        };
        let labels = tracked.iter().zip(outcomes).map(|(&(kind, extent), outcome)| {
            let [left, top, right, bottom] = outcome.bounds;
            // A face on a body is posed as the head is.
            let of_head = kind == Kind::Face && extent == Extent::Head;
            let extra = if of_head { [head_yaw, head_pitch] } else { [0.0; 2] };
            Label {
                kind,
                x: (left + right) / 2.0,
                y: (top + bottom) / 2.0,
                width: right - left,
                height: bottom - top,
                roll: degrees(roll + view.angle),
                yaw: degrees(yaw + extra[0]),
                pitch: degrees(pitch + extra[1]),
                visible: outcome.area,
            }
        });
        labels.collect()
    }
}

/// Turns areas into visible fractions, once everything is painted, and drops what hardly shows.
pub(super) fn settle(labels: Vec<Label>, canvas: &Canvas) -> Vec<Label> {
    let fraction = |(mut label, mask): (Label, &Vec<f32>)| {
        let seen: f32 = mask.iter().sum();
        label.visible = (seen / label.visible.max(1e-6)).clamp(0.0, 1.0);
        // Less than a twentieth, or than three pixels, is no appearance.
        (label.visible >= 0.05 && seen >= 3.0).then_some(label)
    };
    labels.into_iter().zip(&canvas.masks).filter_map(fraction).collect()
}
