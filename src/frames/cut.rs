//! Pictures of labelled objects, and others like them without, cut out of frames of drawn videos.

use std::fs;
use std::path::Path;

use image::DynamicImage;
use rand::Rng;
use rand::seq::IndexedRandom;
use rayon::prelude::*;
use serde::Serialize;

use super::labels::{Labels, VISIBLE};
use super::record::{FrameMetadata, Region};
use super::{FrameStore, PictureFormat};
use crate::error::{Error, Result};
use crate::files;
use crate::rng;
use crate::video::synth::{Kind, Label};

/// Side of the square around an object, in the longer sides of its box.
const SIDE: f64 = 1.15;

/// The square lies inside the frame: it may be so much smaller than that, ...
const SMALLER: f64 = 0.92;

/// ... and its middle so far from the object's, in its sides.
const OFF: f64 = 0.12;

/// What to cut out.
#[derive(Debug, Clone)]
pub struct Cutting {
    /// Objects of these kinds.
    pub kinds: Vec<Kind>,
    /// Least side of a square, in pixels.
    pub least: u32,
    /// Seed of the places and sizes of squares without objects.
    pub seed: u64,
}

/// How many pictures of a kind were cut.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cut {
    /// The kind.
    pub kind: Kind,
    /// Pictures of one.
    pub with: usize,
    /// Pictures without any.
    pub without: usize,
}

/// A square of a frame, in stored pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Square {
    left: f64,
    top: f64,
    side: f64,
}

impl Square {
    /// The one around a label, if a frame of this size shows it well enough.
    fn around(label: &Label, width: f64, height: f64) -> Option<Square> {
        let most = width.min(height);
        let wanted = SIDE * f64::from(label.width.max(label.height));
        let side = wanted.min(most);
        let (x, y) = (f64::from(label.x), f64::from(label.y));
        let start = |middle: f64, len: f64| (middle - side / 2.0).clamp(0.0, len - side);
        let (left, top) = (start(x, width), start(y, height));
        let off = (left + side / 2.0 - x).abs().max((top + side / 2.0 - y).abs());
        (label.visible >= VISIBLE && side >= SMALLER * wanted && off <= OFF * side).then_some(Square {
            left,
            top,
            side,
        })
    }

    /// Whether some of a label's box lies in it.
    fn touches(&self, label: &Label) -> bool {
        let meets = |middle: f32, len: f32, start: f64| {
            let (middle, half) = (f64::from(middle), f64::from(len) / 2.0);
            middle - half < start + self.side && middle + half > start
        };
        meets(label.x, label.width, self.left) && meets(label.y, label.height, self.top)
    }
}

/// A label in stored pixels of a frame that was cut and scaled.
fn stored(label: &Label, crop: Region, placed: Region) -> Label {
    let (across, down) = (placed.width / crop.width, placed.height / crop.height);
    let at = |x: f32, from: f64, scale: f64, to: f64| ((f64::from(x) - from) * scale + to) as f32;
    Label {
        x: at(label.x, crop.left, across, placed.left),
        y: at(label.y, crop.top, down, placed.top),
        width: (f64::from(label.width) * across) as f32,
        height: (f64::from(label.height) * down) as f32,
        ..*label
    }
}

/// Cuts out of the frames at `path` a square around every labelled object, 1.15 times the longer side of its box, and, at a random
/// place of every frame, one of a like size that shows nothing of that kind, where it does not. Writes `out/face/*.png`,
/// `out/no-face/*.png` and so on, and `out/cut.csv` with the label of each of the former. `progress` is told of every frame.
///
/// # Errors
/// A picture is no frame of a labelled video, or something cannot be read or written.
pub fn cut(
    (path, store): (&Path, &FrameStore),
    labels: &Labels,
    cutting: &Cutting,
    out: &Path,
    progress: impl Fn() + Sync,
) -> Result<Vec<Cut>> {
    let Cutting { kinds, least, seed } = cutting;
    let folder = |kind: Kind, shows: bool| {
        let name = kind.name();
        out.join(if shows { name } else { format!("no-{name}") })
    };
    for (&kind, shows) in kinds.iter().flat_map(|kind| [(kind, true), (kind, false)]) {
        let folder = folder(kind, shows);
        fs::create_dir_all(&folder).map_err(Error::io(&folder, "create"))?;
    }
    // What is labelled, in stored pixels.
    let of_frame = |index: usize| -> Result<Frame> {
        let (metadata, labelled) = labels.of_frame((path, store), index)?;
        let picture = store.picture(index)?;
        let (width, height) = (f64::from(picture.width()), f64::from(picture.height()));
        let FrameMetadata { crop, placed, .. } = metadata;
        let placed = placed.unwrap_or(Region { left: 0.0, top: 0.0, width, height });
        let objects: Vec<Label> = labelled.objects.iter().map(|label| stored(label, crop, placed)).collect();
        let least = f64::from(*least);
        let squares = objects.iter().map(|label| {
            let square = Square::around(label, width, height);
            square.filter(|square| kinds.contains(&label.kind) && square.side >= least)
        });
        let squares: Vec<Option<Square>> = squares.collect();
        let mut rows = Vec::new();
        for (number, (label, square)) in objects.iter().zip(&squares).enumerate() {
            if let Some(square) = square {
                let file = folder(label.kind, true).join(format!("{}-{number}.png", name(store, index)));
                write(&picture, *square, &file)?;
                rows.push(row(out, &file, label, *square));
            }
        }
        progress();
        Ok(Frame { index, width, height, objects, squares, rows })
    };
    let frames: Vec<Frame> = (0..store.len()).into_par_iter().map(of_frame).collect::<Result<_>>()?;

    let mut counts = Vec::new();
    for (number, &kind) in kinds.iter().enumerate() {
        let mut rng = rng::stream(*seed, "cut", number as u64);
        let sides: Vec<f64> = frames.iter().flat_map(|frame| frame.sides(kind)).collect();
        let mut squares = Vec::new();
        for frame in &frames {
            let Some(&side) = sides.choose(&mut rng) else { break };
            let side = side.min(frame.width).min(frame.height);
            let mut place = |len: f64| rng.random_range(0.0..=len - side);
            let square = Square { left: place(frame.width), top: place(frame.height), side };
            let is_there = |label: &Label| label.kind == kind && label.visible > 0.0 && square.touches(label);
            if !frame.objects.iter().any(is_there) {
                squares.push((frame.index, square));
            }
        }
        let one = |&(index, square): &(usize, Square)| {
            let file = folder(kind, false).join(format!("{}.png", name(store, index)));
            write(&store.picture(index)?, square, &file)
        };
        squares.par_iter().try_for_each(one)?;
        counts.push(Cut { kind, with: sides.len(), without: squares.len() });
    }
    let rows = frames.iter().flat_map(|frame| frame.rows.iter().map(String::as_str));
    let header = "picture,kind,side,left,top,width,height,roll_deg,yaw_deg,pitch_deg,visible";
    let lines: Vec<&str> = std::iter::once(header).chain(rows).collect();
    files::replace(&out.join("cut.csv"), lines.join("\n") + "\n")?;
    Ok(counts)
}

/// A frame, and what was cut out of it.
struct Frame {
    index: usize,
    width: f64,
    height: f64,
    objects: Vec<Label>,
    /// Of each object, if it was cut out.
    squares: Vec<Option<Square>>,
    /// Their lines of the table.
    rows: Vec<String>,
}

impl Frame {
    fn sides(&self, kind: Kind) -> impl Iterator<Item = f64> {
        let all = self.objects.iter().zip(&self.squares);
        all.filter(move |(label, _)| label.kind == kind).filter_map(|(_, square)| Some((*square)?.side))
    }
}

/// The key of a picture as the name of a file.
fn name(store: &FrameStore, index: usize) -> String {
    store.key(index).replace('/', "_")
}

/// The nearest whole pixels of a square.
fn pixels(square: Square) -> [u32; 3] {
    [square.left, square.top, square.side].map(|value| value.round() as u32)
}

fn write(picture: &DynamicImage, square: Square, file: &Path) -> Result<()> {
    let [left, top, side] = pixels(square);
    // Where both are halves, both are rounded up.
    let (left, top) = (left.min(picture.width() - side), top.min(picture.height() - side));
    // Without loss: it will be scaled and compressed as any other picture.
    let cut = picture.crop_imm(left, top, side, side);
    files::replace(file, PictureFormat::Png.encode(&cut)?)
}

/// A line of the table: the box in shares of the square.
fn row(out: &Path, file: &Path, label: &Label, square: Square) -> String {
    let file = file.strip_prefix(out).unwrap_or(file).display();
    let Square { left, top, side } = square;
    let share = |value: f64| value / side;
    let (width, height) = (f64::from(label.width), f64::from(label.height));
    let numbers = [
        share(f64::from(label.x) - width / 2.0 - left),
        share(f64::from(label.y) - height / 2.0 - top),
        share(width),
        share(height),
        label.roll.into(),
        label.yaw.into(),
        label.pitch.into(),
        label.visible.into(),
    ];
    let numbers = numbers.map(|number| format!("{number:.3}")).join(",");
    format!("{file},{},{},{numbers}", label.kind.name(), pixels(square)[2])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn face(x: f32, y: f32, height: f32, visible: f32) -> Label {
        Label { kind: Kind::Face, x, y, width: 30.0, height, roll: 5.0, yaw: 0.0, pitch: 0.0, visible }
    }

    #[test]
    fn squares_lie_around_objects_and_inside_the_frame() {
        let around = |x, y, height, visible| Square::around(&face(x, y, height, visible), 160.0, 120.0);
        assert_eq!(around(80.0, 60.0, 40.0, 1.0), Some(Square { left: 57.0, top: 37.0, side: 46.0 }));
        // Moved inside, if that is not far.
        let moved = around(20.0, 60.0, 40.0, 1.0).unwrap();
        assert_eq!((moved.left, moved.side), (0.0, 46.0));
        assert_eq!(around(15.0, 60.0, 40.0, 1.0), None);
        // A little larger than the frame, much larger, hidden.
        assert_eq!(around(80.0, 60.0, 110.0, 1.0).unwrap().side, 120.0);
        assert_eq!(around(80.0, 60.0, 120.0, 1.0), None);
        assert_eq!(around(80.0, 60.0, 40.0, 0.4), None);
        let square = Square { left: 0.0, top: 0.0, side: 40.0 };
        assert!(
            square.touches(&face(54.0, 20.0, 40.0, 1.0)) && !square.touches(&face(56.0, 20.0, 40.0, 1.0))
        );
    }

    #[test]
    fn labels_follow_a_frame_that_was_cut_and_scaled() {
        let whole = Region { left: 20.0, top: 0.0, width: 120.0, height: 120.0 };
        let small = Region { left: 0.0, top: 0.0, width: 60.0, height: 60.0 };
        let label = stored(&face(80.0, 60.0, 40.0, 1.0), whole, small);
        assert_eq!((label.x, label.y, label.width, label.height), (30.0, 30.0, 15.0, 20.0));
    }
}
