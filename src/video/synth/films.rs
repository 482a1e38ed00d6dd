//! Writes films to a folder: encoded videos and `labels.jsonl`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Film, Kind, Label};
use crate::error::{Error, Result};
use crate::video::encode::{self, Encoder, Format};

/// What to write.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Seed of everything drawn.
    pub seed: u64,
    /// How many videos; video 0 is the same however many follow.
    pub videos: u32,
    /// Length of each, in seconds.
    pub seconds: f64,
    /// Frames a second.
    pub fps: u32,
    /// Width in pixels, even.
    pub width: u32,
    /// Height in pixels, even.
    pub height: u32,
}

impl Settings {
    /// Frames of each video.
    pub fn frames(&self) -> u64 {
        (self.seconds * f64::from(self.fps)).round().max(1.0) as u64
    }

    /// Refuses what cannot be drawn or encoded, with [`Error::Setting`].
    pub fn check(&self) -> Result<()> {
        let refuse = |key: &str, got: String, want: &str| {
            Err(Error::Setting { key: key.into(), got, want: want.into() })
        };
        let &Settings { videos, seconds, fps, width, height, .. } = self;
        let side = |side: u32| side.is_multiple_of(2) && (16..=4096).contains(&side);
        if !side(width) || !side(height) {
            return refuse(
                "--size",
                format!("{width}x{height}"),
                "even sides from 16 to 4096, such as 160x120",
            );
        }
        if width > 4 * height || height > 4 * width {
            return refuse(
                "--size",
                format!("{width}x{height}"),
                "sides that differ by at most a factor of 4",
            );
        }
        if !(1..=1_000_000).contains(&videos) {
            return refuse("--videos", videos.to_string(), "a number from 1 to 1000000");
        }
        if !(1..=240).contains(&fps) {
            return refuse("--fps", fps.to_string(), "a number from 1 to 240");
        }
        if !(seconds > 0.0 && seconds <= 86_400.0) {
            return refuse("--seconds", seconds.to_string(), "more than 0 and at most 86400");
        }
        Ok(())
    }
}

/// One line of `labels.jsonl`: one frame and what is to be seen in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Labelled {
    /// File name of the video, in the same folder.
    pub video: String,
    /// The frame's number in the video, from 0.
    pub frame: u64,
    /// When it is shown.
    pub seconds: f64,
    /// Number of the scene it belongs to, from 0; frames of one scene resemble each other.
    pub scene: usize,
    /// Width of the frame, in pixels.
    pub width: u32,
    /// Height of the frame, in pixels.
    pub height: u32,
    /// Everything that shows, farthest first.
    pub objects: Vec<Label>,
}

/// What was written.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Number of videos.
    pub videos: u64,
    /// Number of frames in all videos together.
    pub frames: u64,
    /// Size of the videos.
    pub bytes: u64,
    /// Videos per encoder and container.
    pub formats: BTreeMap<String, u64>,
    /// Frames that show at least one object of a kind.
    pub frames_with: BTreeMap<Kind, u64>,
    /// Frames without any labelled object.
    pub frames_without: u64,
    /// Objects over all frames.
    pub objects: u64,
    /// Of these, those whose box covers at most a fifth of the frame.
    pub small_objects: u64,
}

impl Summary {
    fn add(&mut self, line: &Labelled) {
        self.frames += 1;
        self.objects += line.objects.len() as u64;
        let small = line.objects.iter().filter(|o| o.frame_share(line.width, line.height) <= 0.2);
        self.small_objects += small.count() as u64;
        self.frames_without += u64::from(line.objects.is_empty());
        for kind in [Kind::Face, Kind::Cat, Kind::Body] {
            let shown = line.objects.iter().any(|o| o.kind == kind);
            *self.frames_with.entry(kind).or_default() += u64::from(shown);
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let percent = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        writeln!(f, "{} videos, {} frames, {:.1} MB", self.videos, self.frames, self.bytes as f64 / 1e6)?;
        let formats: Vec<String> =
            self.formats.iter().map(|(name, count)| format!("{count} {name}")).collect();
        writeln!(f, "formats: {}", formats.join(", "))?;
        let with = |kind| percent(self.frames_with.get(&kind).copied().unwrap_or(0), self.frames);
        writeln!(
            f,
            "frames with a face {:.1} %, a cat {:.1} %, a body {:.1} %, none of these {:.1} %",
            with(Kind::Face),
            with(Kind::Cat),
            with(Kind::Body),
            percent(self.frames_without, self.frames)
        )?;
        let small = percent(self.small_objects, self.objects);
        writeln!(
            f,
            "{} labelled appearances, {small:.1} % of them on at most a fifth of the frame",
            self.objects
        )
    }
}

const LABELS: &str = "labels.jsonl";

/// True of the names that [`write`] gives, finished or not.
fn is_ours(name: &str) -> bool {
    let name = name.strip_suffix(".partial").unwrap_or(name);
    let number = name.strip_prefix("synth-").and_then(|rest| rest.split_once('.'));
    name == LABELS
        || number.is_some_and(|(number, _)| number.len() >= 5 && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Makes the folder `out`. One that holds something is refused, unless `overwrite`, which removes what an earlier
/// run wrote there and leaves other files alone.
///
/// # Errors
/// [`Error::BadFile`] if `out` is no folder or not empty, [`Error::Io`] if it cannot be made or cleared.
pub fn prepare(out: &Path, overwrite: bool) -> Result<()> {
    if out.exists() && !out.is_dir() {
        return Err(Error::bad_file(out, "is a file, expected a folder"));
    }
    fs::create_dir_all(out).map_err(Error::io(out, "create"))?;
    for entry in fs::read_dir(out).map_err(Error::io(out, "read"))? {
        let entry = entry.map_err(Error::io(out, "read"))?;
        if !overwrite {
            return Err(Error::bad_file(out, "is not empty; --overwrite replaces what an earlier run wrote"));
        }
        if entry.file_name().to_str().is_some_and(is_ours) {
            fs::remove_file(entry.path()).map_err(Error::io(entry.path(), "remove"))?;
        }
    }
    Ok(())
}

/// Videos between two writes of labels, so that memory does not grow with their number.
const BATCH: u32 = 256;

/// Writes the videos and their labels to the folder `out`, on the threads of the current rayon pool.
///
/// Frames and labels do not depend on the number of threads. `done` is told of frames as they are written. The
/// labels appear under their name when all is.
///
/// # Errors
/// Those of [`Settings::check`] and [`Encoder`].
pub fn write(out: &Path, settings: &Settings, done: impl Fn(u64) + Sync) -> Result<Summary> {
    settings.check()?;
    let partial = out.join(format!("{LABELS}.partial"));
    let written = write_all(out, &partial, settings, done);
    if written.is_err() {
        // Labels of some of the videos are of no use; the error that matters is the first.
        let _ = fs::remove_file(&partial);
    }
    written
}

fn write_all(out: &Path, partial: &Path, settings: &Settings, done: impl Fn(u64) + Sync) -> Result<Summary> {
    let formats = encode::formats()?;
    let path = out.join(LABELS);
    let file = File::create(partial).map_err(Error::io(partial, "create"))?;
    let mut file = BufWriter::new(file);
    let mut summary = Summary::default();
    for first in (0..settings.videos).step_by(BATCH as usize) {
        let batch = first..settings.videos.min(first.saturating_add(BATCH));
        let make = |index: u32| {
            let format = formats[index as usize % formats.len()];
            let lines = write_film(out, settings, index, format, &done)?;
            Ok((format, lines))
        };
        // One at a time, since neighbours differ in cost: encoders do.
        let written: Vec<(Format, Vec<Labelled>)> =
            batch.into_par_iter().with_max_len(1).map(make).collect::<Result<_>>()?;
        for (format, lines) in written {
            let name = format!("{} {}", format.encoder, format.extension);
            *summary.formats.entry(name).or_default() += 1;
            summary.videos += 1;
            let video = out.join(&lines[0].video);
            summary.bytes += fs::metadata(&video).map_err(Error::io(&video, "read"))?.len();
            for line in &lines {
                summary.add(line);
                serde_json::to_writer(&mut file, line).map_err(|e| Error::io(partial, "write")(e.into()))?;
                file.write_all(b"\n").map_err(Error::io(partial, "write"))?;
            }
        }
    }
    file.flush().map_err(Error::io(partial, "write"))?;
    fs::rename(partial, &path).map_err(Error::io(&path, "create"))?;
    Ok(summary)
}

fn write_film(
    out: &Path,
    settings: &Settings,
    index: u32,
    format: Format,
    done: &(impl Fn(u64) + Sync),
) -> Result<Vec<Labelled>> {
    let &Settings { seed, seconds, fps, width, height, .. } = settings;
    let video = format!("synth-{index:05}.{}", format.extension);
    let film = Film::new(seed, u64::from(index), seconds, width as f32 / height as f32);
    let mut encoder = Encoder::create(&out.join(&video), format, width, height, fps)?;
    let mut lines = Vec::new();
    let mut current = None;
    for frame in 0..settings.frames() {
        let seconds = frame as f64 / f64::from(fps);
        let (scene, since) = film.scene_at(seconds);
        if current.as_ref().is_none_or(|(on, _)| *on != scene) {
            current = Some((scene, film.scene(scene)));
        }
        let (_, shot) = current.as_ref().expect("just set");
        let (image, objects) = shot.render(since, height);
        encoder.push(&image)?;
        done(1);
        lines.push(Labelled { video: video.clone(), frame, seconds, scene, width, height, objects });
    }
    encoder.finish()?;
    Ok(lines)
}
