//! Which instants to take from a video.
//!
//! Random instants are uniform over the time that a video is shown, not over its frames: a frame that stays on the
//! screen twice as long is twice as likely. Each video has a random stream of its own, named after the file, so that
//! adding videos changes no other's frames.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::ffmpeg::VideoFile;
use super::still::{Opened, Still};
use super::{Instant, Interlaced, Picture, VideoInfo, VideoSource};
use crate::error::Result;
use crate::rng;

/// Draws that fell on a frame already taken, or after the real end, are repeated this often before we give up
/// jumping and look at every frame.
const ROUNDS: usize = 8;

/// Which frames of a video are taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// So many at random instants, or all if there are fewer.
    Random {
        /// How many.
        per_video: usize,
    },
    /// The frame shown at the start and after every such time.
    Every {
        /// The time in seconds, more than zero.
        seconds: f64,
    },
    /// All key frames.
    Keyframes,
    /// The frame in the middle of each shot.
    Scenes,
    /// The frames shown at these times after the start; times after the end are passed over.
    Times {
        /// The times in seconds.
        seconds: Vec<f64>,
    },
}

impl Strategy {
    /// `random`, `every`, `keyframes`, `scenes` or `times`.
    pub fn name(&self) -> &'static str {
        match self {
            Strategy::Random { .. } => "random",
            Strategy::Every { .. } => "every",
            Strategy::Keyframes => "keyframes",
            Strategy::Scenes => "scenes",
            Strategy::Times { .. } => "times",
        }
    }
}

/// From which video streams of a file frames are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Streams {
    /// The one that players choose.
    Best,
    /// Each, as if it were a video of its own.
    All,
}

/// What is asked of a file.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// A video or a picture.
    pub path: &'a Path,
    /// What its random numbers depend on, with the seed and the stream.
    pub name: &'a str,
    /// Seed of all random choices.
    pub seed: u64,
    /// Which frames.
    pub strategy: &'a Strategy,
    /// Of which streams.
    pub streams: Streams,
    /// How interlaced frames are shown.
    pub interlaced: Interlaced,
}

/// What was met on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sampled {
    /// Codec of the first stream that was used, or format of the picture.
    pub codec: String,
    /// Packets that could not be read or decoded, and the reason of the last.
    pub damage: Option<(u32, String)>,
}

/// Takes frames of a file; `keep` makes of each picture what is to be remembered of it, and `emit` gets that in the
/// order of display, stream by stream.
///
/// Random frames are remembered until all are found; others are emitted at once.
///
/// # Errors
/// If no frame of the file can be decoded or converted, or `keep` or `emit` fails. Of several streams, those that cannot
/// be used are only damage.
pub fn sample_file<T>(
    request: &Request,
    mut keep: impl FnMut(&VideoInfo, Instant, Picture) -> Result<T>,
    mut emit: impl FnMut(T) -> Result<()>,
) -> Result<Sampled> {
    let mut damage: Option<(u32, String)> = None;
    match Still::open(request.path)? {
        Opened::Still(mut still) => {
            let codec = still.info().codec.clone();
            sample(&mut still, request, &mut keep, &mut emit)?;
            return Ok(Sampled { codec, damage: None });
        }
        Opened::Damaged => damage = Some((1, "the picture breaks off or is garbled".into())),
        Opened::Other => {}
    }
    let video = VideoFile::open(request.path)?;
    let codec = video.info().codec.clone();
    let mut others = Vec::new();
    if request.streams == Streams::All {
        others = video.streams();
        others.retain(|&stream| stream != video.info().stream);
    }
    let mut add = |count: u32, reason: String| {
        let before = damage.as_ref().map_or(0, |(count, _)| *count);
        damage = Some((before.saturating_add(count), reason));
    };
    let (emitted, sink_failed, mut first_problem) = (Cell::new(false), Cell::new(false), None);
    let mut emit = |item| {
        emitted.set(true);
        emit(item).inspect_err(|_| sink_failed.set(true))
    };
    let streams: Vec<usize> = std::iter::once(video.info().stream).chain(others).collect();
    let mut opened = Some(video);
    for &stream in &streams {
        let mut sample_stream = || {
            let mut video = match opened.take() {
                Some(video) => video,
                None => VideoFile::open_stream(request.path, Some(stream))?,
            };
            video.show(request.interlaced);
            let sampled = sample(&mut video, request, &mut keep, &mut emit);
            if let Some((count, reason)) = video.damage() {
                add(count, reason.to_string());
            }
            sampled
        };
        if let Err(problem) = sample_stream() {
            if sink_failed.get() || streams.len() == 1 {
                return Err(problem);
            }
            add(1, format!("stream {stream}: {problem}"));
            first_problem.get_or_insert(problem);
        }
    }
    match first_problem {
        Some(problem) if !emitted.get() => Err(problem),
        _ => Ok(Sampled { codec, damage }),
    }
}

/// As [`sample_file`], from a source that stands before its first frame.
///
/// # Errors
/// As [`sample_file`].
pub fn sample<T>(
    source: &mut impl VideoSource,
    request: &Request,
    keep: &mut impl FnMut(&VideoInfo, Instant, Picture) -> Result<T>,
    emit: &mut impl FnMut(T) -> Result<()>,
) -> Result<()> {
    match request.strategy {
        Strategy::Random { per_video } => {
            let stream = source.info().stream as u64;
            let mut rng = rng::stream(request.seed, &format!("sample/{}", request.name), stream);
            random(source, *per_video, &mut rng, keep)?.into_iter().try_for_each(emit)
        }
        Strategy::Every { seconds } => {
            let times = (0u64..).map(|number| number as f64 * seconds);
            at_times(source, times, keep, emit)
        }
        Strategy::Times { seconds } => {
            let mut seconds = seconds.clone();
            seconds.sort_by(f64::total_cmp);
            at_times(source, seconds.into_iter(), keep, emit)
        }
        Strategy::Scenes => {
            for (start, end) in source.shots()? {
                let at = source.seek(start.midpoint(end))?;
                let picture = source.picture()?;
                emit(keep(source.info(), at, picture)?)?;
            }
            Ok(())
        }
        Strategy::Keyframes => {
            while let Some(at) = source.next_key()? {
                let picture = source.picture()?;
                emit(keep(source.info(), at, picture)?)?;
            }
            Ok(())
        }
    }
}

/// The frames shown at `times`, seconds after the start that do not decrease, each frame once.
fn at_times<T>(
    source: &mut impl VideoSource,
    times: impl Iterator<Item = f64>,
    keep: &mut impl FnMut(&VideoInfo, Instant, Picture) -> Result<T>,
    emit: &mut impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let (first, time_base) = (source.info().first_pts, source.info().time_base);
    let mut shown: Option<Instant> = None;
    for time in times {
        // Numbers such as 0.1 s have no exact value in binary, nor have they in most time bases.
        let target = first.saturating_add((time / time_base + 1e-6).floor() as i64);
        if shown.is_some_and(|at| target < at.pts.saturating_add(at.length)) {
            continue;
        }
        let at = source.seek(target)?;
        if target >= at.pts.saturating_add(at.length) {
            return Ok(());
        }
        // Packets may announce a frame in between that is not shown.
        if shown.replace(at).is_some_and(|before| before.pts == at.pts) {
            continue;
        }
        let picture = source.picture()?;
        emit(keep(source.info(), at, picture)?)?;
    }
    Ok(())
}

/// Takes `count` frames at random instants, or all if there are fewer.
fn random<T>(
    source: &mut impl VideoSource,
    count: usize,
    rng: &mut rng::ChaCha8Rng,
    keep: &mut impl FnMut(&VideoInfo, Instant, Picture) -> Result<T>,
) -> Result<Vec<T>> {
    let first = source.info().first_pts;
    let Some(mut end) = source.info().end_pts.filter(|&end| end > first) else {
        return pass(source, count, rng, keep);
    };
    // Where about half of the frames are wanted, each has to be decoded anyway.
    if count as u64 > end.abs_diff(first) / source.info().usual_length.unsigned_abs().max(1) / 2 + 1 {
        return pass(source, count, rng, keep);
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
                place.insert((at, keep(source.info(), at, picture)?));
            }
        }
        if taken.len() == count {
            return Ok(taken.into_values().map(|(_, item)| item).collect());
        }
    }
    source.rewind()?;
    pass(source, count, rng, keep)
}

/// One look at every frame: a weighted reservoir (Efraimidis and Spirakis 2006), the weight being the time that a
/// frame is shown. This draws from the same distribution as repeated draws without those already taken.
fn pass<T>(
    source: &mut impl VideoSource,
    count: usize,
    rng: &mut rng::ChaCha8Rng,
    keep: &mut impl FnMut(&VideoInfo, Instant, Picture) -> Result<T>,
) -> Result<Vec<T>> {
    let mut reservoir: Vec<(f64, Instant, T)> = Vec::new();
    while let Some(at) = source.advance()? {
        let key = (1.0 - rng.random::<f64>()).ln() / at.length as f64;
        if count == 0 || reservoir.len() == count && reservoir[count - 1].0 >= key {
            continue;
        }
        let picture = source.picture()?;
        let item = keep(source.info(), at, picture)?;
        reservoir.truncate(count - 1);
        let place = reservoir.partition_point(|(other, ..)| *other >= key);
        reservoir.insert(place, (key, at, item));
    }
    reservoir.sort_by_key(|(_, at, _)| at.pts);
    reservoir.dedup_by_key(|(_, at, _)| at.pts);
    Ok(reservoir.into_iter().map(|(.., item)| item).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::video::Orientation;
    use image::RgbImage;

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
        fn next_key(&mut self) -> Result<Option<Instant>> {
            loop {
                // Every third frame is a key frame.
                match self.advance()? {
                    Some(_) if !self.at.unwrap().is_multiple_of(3) => {}
                    found => return Ok(found),
                }
            }
        }
        fn shots(&mut self) -> Result<Vec<(i64, i64)>> {
            // Cut after every fourth frame.
            let starts: Vec<i64> = (0..=self.lengths.len())
                .filter(|&f| f.is_multiple_of(4) || f == self.lengths.len())
                .map(|f| 100 + self.lengths[..f].iter().sum::<i64>())
                .collect();
            self.at = None;
            Ok(starts.windows(2).map(|pair| (pair[0], pair[1])).collect())
        }
        fn picture(&mut self) -> Result<Picture> {
            let image = RgbImage::from_pixel(1, 1, image::Rgb([self.at.unwrap() as u8; 3]));
            let orientation = Orientation::default();
            Ok(Picture { image, coded_width: 1, coded_height: 1, orientation, interlaced: false })
        }
    }

    fn frames(clip: &mut Clip, strategy: Strategy, seed: u64) -> Vec<u8> {
        let request = Request {
            path: Path::new("clip"),
            name: "clip",
            seed,
            strategy: &strategy,
            streams: Streams::Best,
            interlaced: Interlaced::Field,
        };
        let mut found = Vec::new();
        let mut emit = |frame| {
            found.push(frame);
            Ok(())
        };
        sample(clip, &request, &mut |_, _, picture| Ok(picture.image.as_raw()[0]), &mut emit).unwrap();
        found
    }

    fn random(clip: &mut Clip, per_video: usize, seed: u64) -> Vec<u8> {
        frames(clip, Strategy::Random { per_video }, seed)
    }

    #[test]
    fn a_frame_is_as_likely_as_it_is_long_whatever_the_file_says_about_its_end() {
        let lengths = [1, 2, 4, 13];
        // Known, unknown, far too long.
        for end in [Some(120), None, Some(500)] {
            let mut hits = [0; 4];
            for seed in 0..4000 {
                let found = random(&mut clip(&lengths, end), 1, seed);
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
                let found = random(&mut clip(&[1; 50], end), 10, seed);
                assert_eq!(found.len(), 10);
                assert!(found.is_sorted_by(|a, b| a < b), "{found:?}");
            }
            assert_eq!(random(&mut clip(&[3, 1, 2], end), 10, 1), [0, 1, 2]);
        }
    }

    #[test]
    fn frames_at_given_times_are_those_shown_then_whatever_the_file_says_about_its_end() {
        // Shown from 0, 0.1, 0.3, 0.6 and 0.7 s after the start to 1.2 s.
        let lengths = [1, 2, 3, 1, 5];
        for end in [Some(112), None, Some(105), Some(500)] {
            let at = |seconds: &[f64]| {
                frames(&mut clip(&lengths, end), Strategy::Times { seconds: seconds.to_vec() }, 0)
            };
            assert_eq!(at(&[0.0, 0.1, 0.25, 0.3, 0.59, 0.6, 1.19]), [0, 1, 2, 3, 4], "end {end:?}");
            assert_eq!(at(&[1.3, 0.65, 0.2]), [1, 3], "end {end:?}");
            assert_eq!(at(&[99.0]), [] as [u8; 0]);
            let every = |seconds| frames(&mut clip(&lengths, end), Strategy::Every { seconds }, 0);
            assert_eq!(every(0.3), [0, 2, 3, 4], "end {end:?}");
            assert_eq!(every(0.01), [0, 1, 2, 3, 4]);
            assert_eq!(every(7.0), [0]);
        }
    }

    #[test]
    fn of_each_shot_the_frame_in_the_middle_of_its_time_is_taken() {
        let found = frames(&mut clip(&[1, 1, 1, 9, 2, 2, 2, 2, 1], None), Strategy::Scenes, 0);
        assert_eq!(found, [3, 6, 8]);
    }

    #[test]
    fn key_frames_are_all_taken_and_no_others() {
        assert_eq!(frames(&mut clip(&[1; 10], None), Strategy::Keyframes, 0), [0, 3, 6, 9]);
    }
}
