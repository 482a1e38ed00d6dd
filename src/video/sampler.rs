//! Which files to look into, and which instants to take from each.
//!
//! Instants are uniform over the time that a video is shown, not over its frames: a frame that stays on the screen
//! twice as long is twice as likely. Each video has a random stream of its own, named after the file, so that
//! adding videos changes no other's frames.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use image::RgbImage;
use rand::Rng;
use walkdir::WalkDir;

use super::ffmpeg::VideoFile;
use super::{Instant, VideoInfo, VideoSource};
use crate::error::{Error, Result};
use crate::rng;

/// Files with these endings are looked at inside folders. Sound files are among them, to be named as useless.
const MEDIA_ENDINGS: [&str; 43] = [
    "3g2", "3gp", "264", "265", "asf", "av1", "avi", "divx", "dv", "f4v", "flv", "gif", "h264", "h265",
    "hevc", "ivf", "m2ts", "m2v", "m4v", "mjpeg", "mjpg", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf",
    "nut", "obu", "ogv", "rm", "rmvb", "ts", "vob", "webm", "wmv", "y4m", "aac", "flac", "m4a", "mp3", "ogg",
];

/// Draws that fell on a frame already taken, or after the real end, are repeated this often before we give up
/// jumping and look at every frame.
const ROUNDS: usize = 8;

/// One file to take frames from.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Where it is.
    pub path: PathBuf,
    /// Its path relative to the folder that was named, or its file name: what its random numbers depend on.
    pub name: String,
    /// Why it cannot be read, where that is known already.
    pub problem: Option<String>,
}

/// The files to look into: those named, and those below the folders named that look like videos, each once.
///
/// Hidden files and folders inside folders are passed over.
///
/// # Errors
/// If a folder holds nothing that looks like a video.
pub fn collect(arguments: &[PathBuf]) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for argument in arguments {
        if !argument.is_dir() {
            let name = argument.file_name().unwrap_or(argument.as_os_str()).to_string_lossy().into_owned();
            inputs.push(Input { path: argument.clone(), name, problem: None });
            continue;
        }
        let before = inputs.len();
        let visible = |name: &std::ffi::OsStr| !name.as_encoded_bytes().starts_with(b".");
        let walk = WalkDir::new(argument).follow_links(true).sort_by_file_name().into_iter();
        for entry in walk.filter_entry(|entry| entry.depth() == 0 || visible(entry.file_name())) {
            let (path, problem) = match entry {
                Ok(entry) if entry.file_type().is_file() && looks_like_video(entry.path()) => {
                    (entry.into_path(), None)
                }
                Ok(_) => continue,
                Err(e) if e.loop_ancestor().is_some() => continue,
                Err(e) => {
                    let path = e.path().unwrap_or(argument).to_path_buf();
                    let reason = e.io_error().map_or_else(|| e.to_string(), |io| io.to_string());
                    (path, Some(format!("cannot read: {reason}")))
                }
            };
            let relative = path.strip_prefix(argument).unwrap_or(&path);
            let name = relative.to_string_lossy().into_owned();
            inputs.push(Input { path, name, problem });
        }
        if inputs.len() == before {
            let some = "mp4, mkv, webm, mov, avi and other video endings";
            return Err(Error::bad_file(argument, format!("the folder holds no video; looked for {some}")));
        }
    }
    let mut seen = HashSet::new();
    inputs.retain(|input| seen.insert(input.path.canonicalize().unwrap_or_else(|_| input.path.clone())));
    Ok(inputs)
}

fn looks_like_video(path: &Path) -> bool {
    let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|ending| MEDIA_ENDINGS.contains(&ending.as_str()))
}

/// How the frames of a video were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// By jumping to random instants.
    Jump,
    /// By one pass over all frames, where the length is not known or most frames are wanted.
    Pass,
}

/// The frames taken from one video, in order of display.
pub struct Sample<T> {
    /// The video stream that they are from.
    pub info: VideoInfo,
    /// How they were found.
    pub strategy: Strategy,
    /// When each is shown, and what was made of its picture.
    pub frames: Vec<(Instant, T)>,
    /// Packets that could not be read or decoded, and the reason of the last.
    pub damage: Option<(u32, String)>,
}

/// Takes `count` frames of a file, or all if it has fewer, each at a random instant; `keep` makes of each picture
/// what is to be remembered of it.
///
/// The instants depend on `seed`, on the name of the input and on the file.
///
/// # Errors
/// If no frame of the file can be decoded or converted, or `keep` fails.
pub fn sample_file<T>(
    input: &Input,
    count: usize,
    seed: u64,
    keep: impl FnMut(&VideoInfo, RgbImage) -> Result<T>,
) -> Result<Sample<T>> {
    if let Some(problem) = &input.problem {
        return Err(Error::bad_file(&input.path, problem));
    }
    let mut video = VideoFile::open(&input.path)?;
    let mut rng = rng::stream(seed, &format!("sample/{}", input.name), video.info().stream as u64);
    let (strategy, frames) = sample(&mut video, count, &mut rng, keep)?;
    let damage = video.damage().map(|(errors, reason)| (errors, reason.to_string()));
    Ok(Sample { info: video.info().clone(), strategy, frames, damage })
}

/// As [`sample_file`], from any source that stands before its first frame.
///
/// # Errors
/// As [`sample_file`].
pub fn sample<T>(
    source: &mut impl VideoSource,
    count: usize,
    rng: &mut rng::ChaCha8Rng,
    mut keep: impl FnMut(&VideoInfo, RgbImage) -> Result<T>,
) -> Result<(Strategy, Vec<(Instant, T)>)> {
    let first = source.info().first_pts;
    let Some(mut end) = source.info().end_pts.filter(|&end| end > first) else {
        return Ok((Strategy::Pass, pass(source, count, rng, keep)?));
    };
    // Where about half of the frames are wanted, each has to be decoded anyway.
    if count as u64 > end.abs_diff(first) / source.info().usual_length.unsigned_abs().max(1) / 2 + 1 {
        return Ok((Strategy::Pass, pass(source, count, rng, keep)?));
    }
    let mut taken: BTreeMap<i64, (Instant, T)> = BTreeMap::new();
    for _ in 0..ROUNDS {
        let missing = count - taken.len();
        let mut targets: Vec<i64> = (0..missing).map(|_| rng.random_range(first..end)).collect();
        targets.sort_unstable();
        for target in targets {
            let before = taken.range(..=target).next_back().map(|(_, (at, _))| at);
            if target >= end || before.is_some_and(|at| target < at.pts.saturating_add(at.length)) {
                continue;
            }
            let at = source.seek(target)?;
            let over = at.pts.saturating_add(at.length);
            if target >= over {
                // The file said it was longer. What was drawn after its real end is drawn again.
                end = over.max(first + 1);
            } else if let Entry::Vacant(place) = taken.entry(at.pts) {
                let picture = source.picture()?;
                place.insert((at, keep(source.info(), picture)?));
            }
        }
        if taken.len() == count {
            return Ok((Strategy::Jump, taken.into_values().collect()));
        }
    }
    source.rewind()?;
    Ok((Strategy::Pass, pass(source, count, rng, keep)?))
}

/// One look at every frame: a weighted reservoir (Efraimidis and Spirakis 2006), the weight being the time that a
/// frame is shown. This draws from the same distribution as repeated draws without those already taken.
fn pass<T>(
    source: &mut impl VideoSource,
    count: usize,
    rng: &mut rng::ChaCha8Rng,
    mut keep: impl FnMut(&VideoInfo, RgbImage) -> Result<T>,
) -> Result<Vec<(Instant, T)>> {
    let mut reservoir: Vec<(f64, Instant, T)> = Vec::new();
    while let Some(at) = source.advance()? {
        let key = (1.0 - rng.random::<f64>()).ln() / at.length as f64;
        if count == 0 || reservoir.len() == count && reservoir[count - 1].0 >= key {
            continue;
        }
        let picture = source.picture()?;
        let item = keep(source.info(), picture)?;
        reservoir.truncate(count - 1);
        let place = reservoir.partition_point(|(other, ..)| *other >= key);
        reservoir.insert(place, (key, at, item));
    }
    reservoir.sort_by_key(|(_, at, _)| at.pts);
    reservoir.dedup_by_key(|(_, at, _)| at.pts);
    Ok(reservoir.into_iter().map(|(_, at, item)| (at, item)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::video::Orientation;

    /// Frames of given lengths; the picture's only pixel tells which frame it is.
    struct Clip {
        info: VideoInfo,
        lengths: Vec<i64>,
        at: Option<usize>,
    }

    fn clip(lengths: &[i64], end_pts: Option<i64>) -> Clip {
        let info = VideoInfo {
            stream: 0,
            codec: "drawn".into(),
            coded_width: 1,
            coded_height: 1,
            orientation: Orientation::default(),
            time_base: 0.1,
            usual_length: 1,
            first_pts: 100,
            end_pts,
        };
        Clip { info, lengths: lengths.to_vec(), at: None }
    }

    impl Clip {
        fn instant(&self, frame: usize) -> Instant {
            let pts = 100 + self.lengths[..frame].iter().sum::<i64>();
            Instant { pts, seconds: pts as f64 * 0.1, length: self.lengths[frame] }
        }
    }

    impl VideoSource for Clip {
        fn info(&self) -> &VideoInfo {
            &self.info
        }
        fn advance(&mut self) -> Result<Option<Instant>> {
            let next = self.at.map_or(0, |at| at + 1);
            if next == self.lengths.len() {
                return Ok(None);
            }
            self.at = Some(next);
            Ok(Some(self.instant(next)))
        }
        fn seek(&mut self, pts: i64) -> Result<Instant> {
            let frame = (0..self.lengths.len()).rev().find(|&f| self.instant(f).pts <= pts).unwrap_or(0);
            self.at = Some(frame);
            Ok(self.instant(frame))
        }
        fn rewind(&mut self) -> Result<()> {
            self.at = None;
            Ok(())
        }
        fn picture(&mut self) -> Result<RgbImage> {
            Ok(RgbImage::from_pixel(1, 1, image::Rgb([self.at.unwrap() as u8; 3])))
        }
    }

    fn frames(clip: &mut Clip, count: usize, seed: u64) -> (Strategy, Vec<u8>) {
        let mut rng = rng::stream(seed, "sampler test", 0);
        let (strategy, frames) = sample(clip, count, &mut rng, |_, p| Ok(p.as_raw()[0])).unwrap();
        (strategy, frames.into_iter().map(|(_, frame)| frame).collect())
    }

    #[test]
    fn a_frame_is_as_likely_as_it_is_long_whatever_the_file_says_about_its_end() {
        let lengths = [1, 2, 4, 13];
        // Known, unknown, far too long.
        for end in [Some(120), None, Some(500)] {
            let mut hits = [0; 4];
            for seed in 0..4000 {
                let (_, found) = frames(&mut clip(&lengths, end), 1, seed);
                hits[usize::from(found[0])] += 1;
            }
            for (hit, length) in hits.into_iter().zip(lengths) {
                let expected = 4000.0 * length as f64 / 20.0;
                let deviation = (f64::from(hit) - expected) / expected.sqrt();
                assert!(deviation.abs() < 4.5, "end {end:?}: {hit} hits, expected {expected}");
            }
        }
    }

    #[test]
    fn frames_are_distinct_sorted_and_all_of_them_if_more_are_asked() {
        for end in [Some(150), None] {
            for seed in 0..50 {
                let (_, found) = frames(&mut clip(&[1; 50], end), 10, seed);
                assert_eq!(found.len(), 10);
                assert!(found.is_sorted_by(|a, b| a < b), "{found:?}");
            }
            let (strategy, found) = frames(&mut clip(&[3, 1, 2], end), 10, 1);
            assert_eq!((strategy, found), (Strategy::Pass, vec![0, 1, 2]));
        }
    }

    #[test]
    fn folders_are_searched_for_videos_and_every_file_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("deep/er")).unwrap();
        for name in ["b.mp4", "a.MKV", "notes.txt", ".hidden.mp4", "deep/er/c.webm"] {
            std::fs::write(at(name), "x").unwrap();
        }
        let names = |arguments: &[PathBuf]| -> Vec<String> {
            collect(arguments).unwrap().into_iter().map(|input| input.name).collect()
        };
        let root = folder.path().to_path_buf();
        assert_eq!(names(std::slice::from_ref(&root)), ["a.MKV", "b.mp4", "deep/er/c.webm"]);
        assert_eq!(
            names(&[at("notes.txt"), at("deep/../b.mp4"), root]),
            ["notes.txt", "b.mp4", "a.MKV", "deep/er/c.webm"]
        );
        std::fs::create_dir(at("empty")).unwrap();
        let error = collect(&[at("empty")]).unwrap_err().to_string();
        assert!(error.contains("empty") && error.contains("holds no video"), "{error}");
    }
}
