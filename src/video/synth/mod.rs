//! Drawn scenes with ground truth: faces, cats and bodies among clutter with natural statistics.
//!
//! A [`Film`] is a sequence of [`Scene`]s joined by cuts. A scene is a pile of occluding leaves of all sizes
//! (`leaves`) seen by a moving camera (`camera`), among which figures (`figures`: `people` and `cats`, made of
//! lit ellipsoids by `solid`) pass by. `films` writes films to disk as encoded video with labels.
//!
//! Everything is drawn in units of the frame's height, so a scene looks the same at every size.

mod camera;
mod cats;
mod figures;
mod films;
mod heads;
mod leaves;
mod palette;
mod people;
mod raster;
mod solid;
#[cfg(test)]
mod tests;

use clap::ValueEnum;
use image::RgbImage;
use rand::Rng;
use serde::{Deserialize, Serialize};

pub use films::{Labelled, Settings, Summary, prepare, write};
pub use heads::head;

use self::camera::Camera;
use self::figures::Figure;
use self::leaves::{Air, Leaf};
use self::palette::Palette;
use self::raster::{Canvas, Light, Rgb, mix, noise, scale, tint, unit, wave};
use crate::rng::{self, ChaCha8Rng};

/// What a label is about.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A human head that shows its face; the box is the head's, hair and hat included.
    Face,
    /// A cat: the whole animal, or its head where no more than head and chest are drawn.
    Cat,
    /// A whole person.
    Body,
}

impl Kind {
    /// As files and the command line call it.
    pub fn name(self) -> String {
        self.to_possible_value().expect("no kind is hidden").get_name().to_owned()
    }
}

/// One object in one frame. Lengths are in pixels from the frame's top left corner, angles in degrees.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// What it is.
    pub kind: Kind,
    /// Centre of its bounding box; the box is of the whole object and may reach beyond the frame.
    pub x: f32,
    /// Centre of its bounding box, downwards.
    pub y: f32,
    /// Width of its bounding box.
    pub width: f32,
    /// Height of its bounding box.
    pub height: f32,
    /// Rotation in the picture plane, clockwise.
    #[serde(rename = "roll_deg")]
    pub roll: f32,
    /// Turn about its vertical axis: 0 faces the viewer, 90 looks to the viewer's right.
    #[serde(rename = "yaw_deg")]
    pub yaw: f32,
    /// Nod: positive looks up.
    #[serde(rename = "pitch_deg")]
    pub pitch: f32,
    /// Share of its silhouette that is inside the frame and not hidden by something in front.
    pub visible: f32,
}

impl Label {
    /// The share of a `width` by `height` frame that the part of the box inside the frame covers.
    pub fn frame_share(&self, width: u32, height: u32) -> f32 {
        let along = |centre: f32, len: f32, most: u32| {
            let most = most as f32;
            (centre + len / 2.0).clamp(0.0, most) - (centre - len / 2.0).clamp(0.0, most)
        };
        along(self.x, self.width, width) * along(self.y, self.height, height) / (width * height) as f32
    }
}

/// One continuous shot.
pub struct Scene {
    seconds: f32,
    aspect: f32,
    camera: Camera,
    leaves: Vec<Leaf>,
    figures: Vec<Figure>,
    ground: [Rgb; 2],
    air: Air,
    texture: [f32; 4],
    light: Light,
    /// How light changes: amount and turns per second of brightness, and of direction.
    flicker: [f32; 4],
}

impl Scene {
    /// A scene of `seconds` for frames `aspect` times as wide as high, with everything about it drawn from `rng`.
    pub fn new(rng: &mut ChaCha8Rng, seconds: f32, aspect: f32) -> Scene {
        let palette = Palette::new(rng);
        let camera = Camera::new(rng, seconds);
        let leaves = leaves::pile(rng, &palette, &camera, aspect);
        let mut figures = figures::cast(rng, &palette, seconds, aspect);
        figures.sort_by(|a, b| a.nearness.total_cmp(&b.nearness));
        let side: f32 = rng.random_range(-1.0..1.0);
        let warm = rng.random_range(-0.12..0.13);
        let strength = 2.0f32.powf(rng.random_range(-0.7..0.5));
        let ground = [palette.ground(rng), palette.ground(rng)];
        Scene {
            seconds,
            aspect,
            camera,
            leaves,
            figures,
            ground,
            air: Air {
                haze: mix(palette.ground(rng), [0.5; 3], 0.5),
                haze_share: rng.random_range(0.0..0.5),
                defocus: rng.random_range(-0.02f32..0.035).max(0.0),
            },
            texture: [rng.random_range(4.0..30.0), rng.random(), rng.random_range(0.2..0.9), rng.random()],
            light: Light {
                towards: unit([side, rng.random_range(-1.0..0.1), rng.random_range(0.35..1.2)]),
                ambient: rng.random_range(0.15..0.65),
                colour: scale([1.0 + warm, 1.0, 1.0 - warm], strength),
            },
            flicker: [
                rng.random_range(0.0..0.25),
                rng.random_range(0.1..0.5),
                rng.random_range(0.0..0.4),
                rng.random_range(0.05..0.3),
            ],
        }
    }

    /// How long the scene is, in seconds.
    pub fn seconds(&self) -> f32 {
        self.seconds
    }

    /// The frame at `t` seconds into the scene, `height` pixels high, and what is to be seen in it.
    ///
    /// Depends on nothing but the scene, `t` and `height`: frames may be rendered in any order.
    pub fn render(&self, t: f32, height: u32) -> (RgbImage, Vec<Label>) {
        let width = ((height as f32 * self.aspect).round() as usize).max(1);
        let mut canvas = Canvas::new(width, height as usize);
        let [amount, rate, swing, swing_rate] = self.flicker;
        let mut light = self.light;
        light.colour = scale(light.colour, 1.0 + amount * wave(t * rate));
        light.towards[0] += swing * wave(t * swing_rate);
        light.towards = unit(light.towards);
        let air = Air { haze: tint(self.air.haze, light.colour), ..self.air };

        let behind = self.leaves.partition_point(|leaf| leaf.nearness <= leaves::FIGURES);
        for leaf in self.leaves[..behind].iter().rev() {
            leaf.draw(&mut canvas, &self.camera, t, &light, &air);
        }
        self.paint_ground(&mut canvas, t, &light, &air);
        let mut labels = Vec::new();
        for figure in &self.figures {
            labels.extend(figure.draw(&mut canvas, &self.camera, t, &light));
        }
        for leaf in &self.leaves[behind..] {
            leaf.draw(&mut canvas, &self.camera, t, &light, &air);
        }
        let labels = figures::settle(labels, &canvas);
        (canvas.to_image(), labels)
    }

    /// What is behind all leaves: one colour above, another below, and 1/f mottle.
    fn paint_ground(&self, canvas: &mut Canvas, t: f32, light: &Light, air: &Air) {
        let view = self.camera.project([0.0; 2], 0.1, t, canvas.width, canvas.height);
        let (sin, cos) = view.angle.sin_cos();
        let [grain, offset, mottle, horizon] = self.texture;
        for row in 0..canvas.height {
            for column in 0..canvas.width {
                let at = row * canvas.width + column;
                if !canvas.is_bare(at) {
                    continue;
                }
                let (dx, dy) =
                    ((column as f32 + 0.5 - view.x) / view.scale, (row as f32 + 0.5 - view.y) / view.scale);
                let (x, y) = (dx * cos + dy * sin, dy * cos - dx * sin);
                let clouds = noise(x * grain + offset * 256.0, y * grain + 99.0 * offset);
                let share = raster::ramp(-0.25, 0.25, y + horizon * 0.8 - 0.4) + mottle * clouds;
                let colour = mix(self.ground[0], self.ground[1], share.clamp(-0.2, 1.2)).map(|v| v.max(0.0));
                canvas.paint_behind(at, mix(tint(colour, light.colour), air.haze, 0.7 * air.haze_share), 1.0);
            }
        }
    }
}

/// A video: scenes of 1 to 3 seconds, cut together.
pub struct Film {
    shots: Vec<Shot>,
    aspect: f32,
}

/// A scene before it is made. A long film has many, each as large as a picture.
struct Shot {
    start: f64,
    seconds: f32,
    seed: u64,
}

impl Film {
    /// Film `index` of `seed`, `seconds` long, for frames `aspect` times as wide as high.
    ///
    /// A longer film starts with the same scenes; only the last of the shorter one is cut off earlier.
    pub fn new(seed: u64, index: u64, seconds: f64, aspect: f32) -> Film {
        let mut rng = rng::stream(seed, "synth", index);
        let (mut shots, mut start) = (Vec::new(), 0.0);
        while start < seconds {
            let length = rng.random_range(1.0f32..3.0);
            shots.push(Shot { start, seconds: length, seed: rng.random() });
            start += f64::from(length);
        }
        Film { shots, aspect }
    }

    /// How many scenes the film has.
    pub fn scenes(&self) -> usize {
        self.shots.len()
    }

    /// Which scene is on at `seconds`, counted from 0, and how long it has been on.
    pub fn scene_at(&self, seconds: f64) -> (usize, f32) {
        let index = self.shots.partition_point(|shot| shot.start <= seconds).saturating_sub(1);
        (index, (seconds - self.shots[index].start) as f32)
    }

    /// Scene `index`, ready to be rendered at any time within it.
    ///
    /// # Panics
    /// If the film has no more than `index` scenes.
    pub fn scene(&self, index: usize) -> Scene {
        let shot = &self.shots[index];
        Scene::new(&mut rng::stream(shot.seed, "scene", 0), shot.seconds, self.aspect)
    }

    /// The frame at `seconds`, `height` pixels high, and what is to be seen in it. For many frames of one scene,
    /// [`Film::scene`] and [`Scene::render`] save building it each time.
    pub fn render(&self, seconds: f64, height: u32) -> (RgbImage, Vec<Label>) {
        let (index, since) = self.scene_at(seconds);
        self.scene(index).render(since, height)
    }
}
