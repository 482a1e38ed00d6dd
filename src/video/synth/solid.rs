//! Rounded bodies made of balls and limbs, seen from far away and lit from one side.
//!
//! Each part is a unit ball or a unit cone stretched and turned by a matrix, so that a line of sight meets it
//! where a quadratic equation says. The nearest part wins; parts are then coloured by a function of the point on
//! their own unit shape, which turns with them. That makes poses out of the picture plane come for free.

use std::sync::Arc;

use super::camera::View;
use super::raster::{Canvas, Light, Rgb, Vec3, dot, scale, tint, unit};

/// Colour of a surface at a point of the unit shape.
pub(super) type Paint = Arc<dyn Fn(Vec3) -> Rgb + Send + Sync>;

/// A linear map, by columns.
pub(super) type Matrix = [Vec3; 3];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    Ball,
    /// Radius 1 at `y = 0`, this radius at `y = 1`, open at both ends.
    Cone(f32),
}

/// One piece of a figure: the image of a unit shape under `axes` and `centre`.
#[derive(Clone)]
pub(super) struct Part {
    shape: Shape,
    axes: Matrix,
    centre: Vec3,
    paint: Paint,
    /// Whether it belongs to the head.
    pub head: bool,
}

pub(super) fn apply(m: &Matrix, v: Vec3) -> Vec3 {
    std::array::from_fn(|i| m[0][i] * v[0] + m[1][i] * v[1] + m[2][i] * v[2])
}

fn compose(a: &Matrix, b: &Matrix) -> Matrix {
    b.map(|column| apply(a, column))
}

/// Turns about the vertical (positive: to the viewer's right), then nods (positive: up), then leans in the
/// picture plane (positive: clockwise), all in radians, for a model with y up.
pub(super) fn rotation(yaw: f32, pitch: f32, roll: f32) -> Matrix {
    let (s, c) = yaw.sin_cos();
    let turn = [[c, 0.0, -s], [0.0, 1.0, 0.0], [s, 0.0, c]];
    let (s, c) = pitch.sin_cos();
    let nod = [[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]];
    let (s, c) = roll.sin_cos();
    let lean = [[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]];
    compose(&lean, &compose(&nod, &turn))
}

pub(super) fn plain(colour: Rgb) -> Paint {
    Arc::new(move |_| colour)
}

impl Part {
    /// An ellipsoid with the given half-axes.
    pub fn ball(centre: Vec3, half_axes: Vec3, paint: &Paint) -> Part {
        let axes = std::array::from_fn(|i| std::array::from_fn(|j| if i == j { half_axes[i] } else { 0.0 }));
        Part { shape: Shape::Ball, axes, centre, paint: paint.clone(), head: false }
    }

    /// A round limb from one point to another, with the radius at each end; `flat` squeezes it front to back.
    pub fn limb(from: Vec3, to: Vec3, radii: [f32; 2], flat: f32, paint: &Paint) -> Part {
        let along: Vec3 = std::array::from_fn(|i| to[i] - from[i]);
        let y = unit(along);
        let helper = if y[2].abs() < 0.9 { [0.0, 0.0, 1.0] } else { [1.0, 0.0, 0.0] };
        let x = unit(cross(y, helper));
        let z = cross(x, y);
        let axes = [scale(x, radii[0]), along, scale(z, radii[0] * flat)];
        let shape = Shape::Cone(radii[1] / radii[0]);
        Part { shape, axes, centre: from, paint: paint.clone(), head: false }
    }

    /// The part after `turn` and then `shift`.
    pub fn moved(mut self, turn: &Matrix, shift: Vec3) -> Part {
        self.axes = compose(turn, &self.axes);
        self.centre = std::array::from_fn(|i| apply(turn, self.centre)[i] + shift[i]);
        self
    }

    /// Half of its extent along screen axis `i` and the middle of it.
    fn extent(&self, i: usize) -> (f32, f32) {
        let [x, y, z] = self.axes.map(|axis| axis[i]);
        match self.shape {
            Shape::Ball => (self.centre[i], (x * x + y * y + z * z).sqrt()),
            Shape::Cone(narrow) => {
                let wide = (x * x + z * z).sqrt();
                let (from, to) = (self.centre[i], self.centre[i] + y);
                let low = (from - wide).min(to - wide * narrow);
                let high = (from + wide).max(to + wide * narrow);
                ((low + high) / 2.0, (high - low) / 2.0)
            }
        }
    }
}

fn cross(a: Vec3, b: Vec3) -> Vec3 {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

/// A part in screen coordinates, ready for lines of sight.
struct Placed<'a> {
    part: &'a Part,
    shape: Shape,
    /// `across·x + down·y + origin` is where the line of sight through `(x, y)` meets `z = 0`, in the unit shape.
    origin: Vec3,
    inverse: Matrix,
    x: (f32, f32),
    y: (f32, f32),
}

impl Placed<'_> {
    fn new<'a>(part: &'a Part, screen: &Part) -> Placed<'a> {
        let [a, b, c] = screen.axes;
        let volume = dot(a, cross(b, c));
        let rows = [cross(b, c), cross(c, a), cross(a, b)].map(|row| scale(row, 1.0 / volume));
        let inverse = std::array::from_fn(|column| rows.map(|row| row[column]));
        let origin = scale(apply(&inverse, screen.centre), -1.0);
        Placed { part, shape: part.shape, origin, inverse, x: screen.extent(0), y: screen.extent(1) }
    }

    fn start(&self, x: f32, y: f32) -> Vec3 {
        let [across, down, _] = &self.inverse;
        std::array::from_fn(|i| self.origin[i] + across[i] * x + down[i] * y)
    }

    /// The depth at which the line of sight that starts at `o` first meets the part.
    #[inline]
    fn depth(&self, o: Vec3) -> Option<f32> {
        let d = self.inverse[2];
        match self.shape {
            Shape::Ball => {
                let (a, b, c) = (dot(d, d), dot(o, d), dot(o, o) - 1.0);
                let square = b * b - a * c;
                (square >= 0.0).then(|| (square.sqrt() - b) / a)
            }
            Shape::Cone(narrow) => {
                let k = 1.0 - narrow;
                let (r, dr) = (1.0 - k * o[1], -k * d[1]);
                let a = d[0] * d[0] + d[2] * d[2] - dr * dr;
                let b = o[0] * d[0] + o[2] * d[2] - r * dr;
                let c = o[0] * o[0] + o[2] * o[2] - r * r;
                let square = b * b - a * c;
                if square < 0.0 || a.abs() < 1e-9 {
                    return None;
                }
                let root = square.sqrt();
                let (near, far) = ((root - b) / a, (-root - b) / a);
                let inside = |z: f32| (0.0..=1.0).contains(&(o[1] + d[1] * z));
                [near.max(far), near.min(far)].into_iter().find(|&z| inside(z))
            }
        }
    }

    fn shade(&self, x: f32, y: f32, z: f32, light: &Light) -> Rgb {
        let o = self.start(x, y);
        let d = self.inverse[2];
        let p: Vec3 = std::array::from_fn(|i| o[i] + d[i] * z);
        let slope = match self.shape {
            Shape::Ball => p,
            Shape::Cone(narrow) => [p[0], (1.0 - narrow) * (1.0 - (1.0 - narrow) * p[1]), p[2]],
        };
        let normal = unit(self.inverse.map(|column| dot(column, slope)));
        scale(tint((self.part.paint)(p), light.colour), light.on(normal))
    }
}

/// What to keep track of while a figure is painted and painted over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Extent {
    /// All parts.
    Whole,
    /// The parts of the head.
    Head,
}

/// The place of a tracked object, whether inside the frame or not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    /// Left, top, right, bottom, in pixels.
    pub bounds: [f32; 4],
    /// Pixels that it would cover if the frame were large enough and nothing stood in front.
    pub area: f32,
}

/// A grid of lines of sight.
struct Grid {
    left: f32,
    top: f32,
    step: f32,
    columns: usize,
    rows: usize,
}

const NOTHING: u16 = u16::MAX;

impl Grid {
    fn point(&self, column: usize, row: usize) -> (f32, f32) {
        (self.left + (column as f32 + 0.5) * self.step, self.top + (row as f32 + 0.5) * self.step)
    }

    /// For each line of sight, the part it meets first and how near that is.
    fn trace(&self, parts: &[Placed]) -> Vec<(u16, f32)> {
        let mut hits = vec![(NOTHING, f32::NEG_INFINITY); self.columns * self.rows];
        for (index, part) in parts.iter().enumerate() {
            let range = |(centre, half): (f32, f32), start: f32, len: usize| {
                let from = ((centre - half - start) / self.step).floor().clamp(0.0, len as f32) as usize;
                let to = ((centre + half - start) / self.step).ceil().clamp(0.0, len as f32) as usize;
                from..to
            };
            for row in range(part.y, self.top, self.rows) {
                for column in range(part.x, self.left, self.columns) {
                    let (x, y) = self.point(column, row);
                    let hit = &mut hits[row * self.columns + column];
                    if let Some(z) = part.depth(part.start(x, y)).filter(|&z| z > hit.1) {
                        *hit = (index as u16, z);
                    }
                }
            }
        }
        hits
    }
}

/// Paints a figure given in model axes (y up) at `view`, turned by `turn`, and adds one mask per `tracked`.
pub(super) fn draw(
    canvas: &mut Canvas,
    parts: &[Part],
    turn: &Matrix,
    view: &View,
    light: &Light,
    tracked: &[Extent],
) -> Vec<Outcome> {
    // Model axes have y up and the screen has it down; a rotation in the plane follows for the camera's roll.
    let (sin, cos) = view.angle.sin_cos();
    let s = view.scale;
    let to_screen = [[cos * s, sin * s, 0.0], [sin * s, -cos * s, 0.0], [0.0, 0.0, s]];
    let whole = compose(&to_screen, turn);
    let placed: Vec<Placed> = parts
        .iter()
        .map(|part| Placed::new(part, &part.clone().moved(&whole, [view.x, view.y, 0.0])))
        .collect();
    let bounds_of = |extent: Extent| {
        let chosen = placed.iter().filter(|p| extent == Extent::Whole || p.part.head);
        chosen.fold([f32::MAX, f32::MAX, f32::MIN, f32::MIN], |[left, top, right, bottom], p| {
            let ((x, w), (y, h)) = (p.x, p.y);
            [left.min(x - w), top.min(y - h), right.max(x + w), bottom.max(y + h)]
        })
    };
    let [left, top, right, bottom] = bounds_of(Extent::Whole);
    let columns = Canvas::span((left + right) / 2.0, (right - left) / 2.0, canvas.width);
    let rows = Canvas::span((top + bottom) / 2.0, (bottom - top) / 2.0, canvas.height);

    // Small figures need finer sampling for the same quality.
    let fine = if (right - left).min(bottom - top) < 40.0 { 3 } else { 2 };
    let step = 1.0 / fine as f32;
    let grid = Grid {
        left: columns.start as f32,
        top: rows.start as f32,
        step,
        columns: columns.len() * fine,
        rows: rows.len() * fine,
    };
    let hits = grid.trace(&placed);
    let first_mask = canvas.masks.len();
    let mut masks = vec![vec![0.0f32; canvas.width * canvas.height]; tracked.len()];
    let share = step * step;
    for row in rows.clone() {
        for column in columns.clone() {
            let at = row * canvas.width + column;
            let (mut colour, mut cover) = ([0.0f32; 3], 0.0f32);
            for i in 0..fine * fine {
                let (c, r) =
                    ((column - columns.start) * fine + i % fine, (row - rows.start) * fine + i / fine);
                let (index, z) = hits[r * grid.columns + c];
                let Some(part) = placed.get(index as usize) else { continue };
                let (x, y) = grid.point(c, r);
                let sample = part.shade(x, y, z, light);
                colour = std::array::from_fn(|i| colour[i] + sample[i]);
                cover += 1.0;
                for (mask, &extent) in masks.iter_mut().zip(tracked) {
                    mask[at] += if extent == Extent::Whole || part.part.head { share } else { 0.0 };
                }
            }
            if cover > 0.0 {
                canvas.paint(at, scale(colour, 1.0 / cover), cover * share);
            }
        }
    }
    canvas.masks.extend(masks);

    let inside = left >= 0.0 && top >= 0.0 && right <= canvas.width as f32 && bottom <= canvas.height as f32;
    let areas: Vec<f32> = if inside {
        canvas.masks[first_mask..].iter().map(|mask| mask.iter().sum()).collect()
    } else {
        // Part of it lies outside the frame: a coarse look is enough for a fraction.
        let step = ((right - left) * (bottom - top) / 2_500.0).sqrt();
        let (columns, rows) =
            (((right - left) / step).ceil() as usize, ((bottom - top) / step).ceil() as usize);
        let hits = Grid { left, top, step, columns, rows }.trace(&placed);
        let count = |extent: Extent| {
            let belongs = |hit: &&(u16, f32)| {
                placed.get(hit.0 as usize).is_some_and(|p| extent == Extent::Whole || p.part.head)
            };
            hits.iter().filter(belongs).count() as f32 * step * step
        };
        tracked.iter().map(|&extent| count(extent)).collect()
    };
    let outcomes = tracked.iter().zip(areas);
    outcomes.map(|(&extent, area)| Outcome { bounds: bounds_of(extent), area }).collect()
}
