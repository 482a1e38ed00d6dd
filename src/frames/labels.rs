//! Which frames of drawn videos show a face, a cat or a body: `labels.jsonl` of `striate synth`, and what a frame kept of the picture.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::FrameStore;
use super::record::{FrameMetadata, Region};
use crate::error::{Error, Result};
use crate::geometry::MapShape;
use crate::video::synth::{Kind, Label, Labelled};

/// A frame shows an object of which at least this share of the silhouette is inside the frame and not hidden, ...
pub(super) const VISIBLE: f32 = 0.5;

/// ... and whose height is at least this share of that of what the network sees.
const HEIGHT: f64 = 0.125;

/// Labels further than this from a frame's time are not its own: two thirds of a frame at 15 frames a second.
const SECONDS: f64 = 0.045;

/// What is known of an object in a picture. Lengths are shares of the sides of what the network sees, angles degrees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Truth {
    /// Its middle, from the left.
    pub x: f64,
    /// Its middle, from the top.
    pub y: f64,
    /// Height of its box.
    pub height: f64,
    /// Rotation in the picture plane, clockwise.
    pub roll: f64,
    /// Turn about its vertical axis; 0 faces the viewer.
    pub yaw: f64,
    /// Share of its silhouette that shows.
    pub visible: f64,
}

/// Whether a picture shows an object of some kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shown {
    /// It does; of several this is the largest.
    Clearly(Truth),
    /// Too little of one to be called either.
    Hardly,
    /// It does not.
    Not,
}

/// What is to be seen in every frame of some videos.
pub struct Labels {
    path: PathBuf,
    /// Of each video by its file name, in order of time.
    videos: HashMap<String, Vec<Labelled>>,
}

impl Labels {
    /// Reads `labels.jsonl`.
    ///
    /// # Errors
    /// It cannot be read, or a line is none of `striate synth`.
    pub fn read(path: &Path) -> Result<Labels> {
        let file = File::open(path).map_err(Error::io(path, "read"))?;
        let mut videos: HashMap<String, Vec<Labelled>> = HashMap::new();
        for (number, line) in (1..).zip(BufReader::new(file).lines()) {
            let line = line.map_err(Error::io(path, "read"))?;
            let label: Labelled = serde_json::from_str(&line).map_err(|e| {
                Error::bad_file(path, format!("line {number} is no label of `striate synth`: {e}"))
            })?;
            videos.entry(label.video.clone()).or_default().push(label);
        }
        videos.values_mut().for_each(|labels| labels.sort_by(|a, b| a.seconds.total_cmp(&b.seconds)));
        Ok(Labels { path: path.into(), videos })
    }

    /// Whether each picture of a frame set shows an object of this kind to a network that sees the middle `shape` of it.
    ///
    /// # Errors
    /// A picture is no frame of a labelled video.
    pub fn shown(&self, frames: (&Path, &FrameStore), kind: Kind, shape: MapShape) -> Result<Vec<Shown>> {
        let of_frame = |index: usize| {
            let (frame, labelled) = self.of_frame(frames, index)?;
            Ok(shows(labelled, kind, seen(frame.crop, shape)))
        };
        (0..frames.1.len()).map(of_frame).collect()
    }

    /// Where a picture of a frame set is from, and what is to be seen there.
    ///
    /// # Errors
    /// It is no frame of a labelled video.
    pub(super) fn of_frame(
        &self,
        (path, store): (&Path, &FrameStore),
        index: usize,
    ) -> Result<(FrameMetadata, &Labelled)> {
        let bad = |problem: String| Error::bad_file(path, format!("{}: {problem}", store.key(index)));
        let metadata =
            store.metadata(index)?.ok_or_else(|| bad("has no JSON that says where it is from".into()))?;
        let frame: FrameMetadata = serde_json::from_value(metadata)
            .map_err(|e| bad(format!("its JSON does not say where it is from: {e}")))?;
        let labelled = self.at(&frame.name, frame.seconds).ok_or_else(|| {
            let (name, at) = (&frame.name, frame.seconds);
            bad(format!("{} has no label for {name} at {at:.3} s", self.path.display()))
        })?;
        Ok((frame, labelled))
    }

    /// The label nearest in time.
    fn at(&self, name: &str, seconds: f64) -> Option<&Labelled> {
        // Where videos lie in folders, their labels lie beside them and name the file alone.
        let file = Path::new(name).file_name()?.to_str()?;
        let labels = self.videos.get(file)?;
        let after = labels.partition_point(|label| label.seconds < seconds);
        let near = labels[after.saturating_sub(1)..labels.len().min(after + 1)].iter();
        let distance = |label: &Labelled| (label.seconds - seconds).abs();
        near.min_by(|a, b| distance(a).total_cmp(&distance(b))).filter(|label| distance(label) <= SECONDS)
    }
}

/// The largest part of the shape `shape` in the middle of what a frame kept.
fn seen(crop: Region, shape: MapShape) -> Region {
    let scale = (crop.width / shape.cols as f64).min(crop.height / shape.rows as f64);
    let (width, height) = (scale * shape.cols as f64, scale * shape.rows as f64);
    let (left, top) = (crop.left + (crop.width - width) / 2.0, crop.top + (crop.height - height) / 2.0);
    Region { left, top, width, height }
}

fn shows(labelled: &Labelled, kind: Kind, seen: Region) -> Shown {
    let range = |from: f64, len: f64| from..from + len;
    let (columns, rows) = (range(seen.left, seen.width), range(seen.top, seen.height));
    let is_clear = |label: &&Label| {
        label.visible >= VISIBLE
            && columns.contains(&label.x.into())
            && rows.contains(&label.y.into())
            && f64::from(label.height) >= HEIGHT * seen.height
    };
    let overlaps = |centre: f32, len: f32, range: &std::ops::Range<f64>| {
        let (centre, half) = (f64::from(centre), f64::from(len) / 2.0);
        centre - half < range.end && centre + half > range.start
    };
    let is_there =
        |label: &&Label| overlaps(label.x, label.width, &columns) && overlaps(label.y, label.height, &rows);
    let of_kind = || labelled.objects.iter().filter(|label| label.kind == kind && label.visible > 0.0);
    match of_kind().filter(is_clear).max_by(|a, b| a.height.total_cmp(&b.height)) {
        Some(label) => Shown::Clearly(Truth {
            x: (f64::from(label.x) - seen.left) / seen.width,
            y: (f64::from(label.y) - seen.top) / seen.height,
            height: f64::from(label.height) / seen.height,
            roll: label.roll.into(),
            yaw: label.yaw.into(),
            visible: label.visible.into(),
        }),
        None if of_kind().any(|label| is_there(&label)) => Shown::Hardly,
        None => Shown::Not,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: MapShape = MapShape { channels: 1, rows: 32, cols: 32 };

    fn label(kind: Kind, x: f32, y: f32, height: f32, visible: f32) -> Label {
        Label { kind, x, y, width: 30.0, height, roll: 0.0, yaw: 0.0, pitch: 0.0, visible }
    }

    fn answer(shown: Shown) -> Option<bool> {
        match shown {
            Shown::Clearly(_) => Some(true),
            Shown::Hardly => None,
            Shown::Not => Some(false),
        }
    }

    fn frame(objects: Vec<Label>) -> Labelled {
        let video = "v.mp4".into();
        Labelled { video, frame: 0, seconds: 0.0, scene: 0, width: 160, height: 120, objects }
    }

    #[test]
    fn a_frame_shows_what_is_large_central_and_not_hidden_and_not_what_is_not_there() {
        // Of 160x120 the middle 120x120 is seen.
        let seen = seen(Region { left: 0.0, top: 0.0, width: 160.0, height: 120.0 }, SHAPE);
        assert_eq!((seen.left, seen.top, seen.width, seen.height), (20.0, 0.0, 120.0, 120.0));
        let face = |x, y, height, visible| {
            answer(shows(&frame(vec![label(Kind::Face, x, y, height, visible)]), Kind::Face, seen))
        };
        assert_eq!(face(80.0, 60.0, 40.0, 1.0), Some(true));
        assert_eq!(shows(&frame(Vec::new()), Kind::Face, seen), Shown::Not);
        // Half outside, small, or hidden: neither.
        assert_eq!(face(15.0, 60.0, 40.0, 1.0), None);
        assert_eq!(face(80.0, 60.0, 14.0, 1.0), None);
        assert_eq!(face(80.0, 60.0, 40.0, 0.4), None);
        // Beside what is seen, or hidden altogether: no.
        assert_eq!(face(4.0, 60.0, 40.0, 1.0), Some(false));
        assert_eq!(face(80.0, 60.0, 40.0, 0.0), Some(false));
        // Another kind does not matter, and one that is clear is enough.
        let both =
            frame(vec![label(Kind::Face, 15.0, 60.0, 40.0, 1.0), label(Kind::Cat, 80.0, 60.0, 40.0, 1.0)]);
        assert_eq!(
            (answer(shows(&both, Kind::Cat, seen)), answer(shows(&both, Kind::Body, seen))),
            (Some(true), Some(false))
        );
        let two =
            frame(vec![label(Kind::Face, 80.0, 60.0, 30.0, 1.0), label(Kind::Face, 110.0, 30.0, 60.0, 0.9)]);
        let truth = Truth { x: 0.75, y: 0.25, height: 0.5, roll: 0.0, yaw: 0.0, visible: f64::from(0.9f32) };
        assert_eq!(shows(&two, Kind::Face, seen), Shown::Clearly(truth), "the larger of two");
    }

    #[test]
    fn the_label_nearest_in_time_is_taken_and_none_that_is_far() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.jsonl");
        let line = |number: u64| {
            let labelled = Labelled { frame: number, seconds: number as f64 / 12.0, ..frame(Vec::new()) };
            serde_json::to_string(&labelled).unwrap()
        };
        std::fs::write(&path, [3, 0, 1, 2].map(line).join("\n")).unwrap();
        let labels = Labels::read(&path).unwrap();
        let at = |name: &str, seconds: f64| labels.at(name, seconds).map(|label| label.frame);
        assert_eq!([0.0, 0.083, 0.165, 0.29].map(|seconds| at("in/v.mp4", seconds)), [0, 1, 2, 3].map(Some));
        assert_eq!((at("v.mp4", 0.5), at("w.mp4", 0.0)), (None, None));
        std::fs::write(&path, "{\"video\":\"v\"}\n").unwrap();
        let error = Labels::read(&path).err().unwrap().to_string();
        assert!(error.contains("labels.jsonl: line 1 is no label"), "{error}");
    }
}
