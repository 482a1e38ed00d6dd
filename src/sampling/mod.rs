//! From a collection of videos and pictures to a frame set: parallel over files, in a fixed order, safe against
//! hostile files.
//!
//! Each input is sampled by itself, in a worker process where a crash, a hang or a hunger for memory costs that one
//! file. What it gave waits in a spool until all inputs before it are written, so the set is the same for any number
//! of workers.

pub mod inputs;
mod pool;
mod worker;

use std::cell::RefCell;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::frames::{
    DropCounts, Dropped, Duplicates, Filters, FrameMetadata, FrameWriter, InputRecord, Outcome,
    PictureFormat, Region, Shape, Spool, fit, quality,
};
use crate::rng::{self, stable_hash};
use crate::video::Interlaced;
use crate::video::sampler::{Request, Strategy, Streams, sample_file};

use inputs::Input;
use pool::Turn;

pub use pool::{Isolation, TimeLimit};
pub use worker::serve;

/// What is done to every input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Seed of all random choices.
    pub seed: u64,
    /// Which frames are taken.
    pub strategy: Strategy,
    /// From which of its video streams.
    pub streams: Streams,
    /// What becomes of interlaced frames.
    pub interlaced: Interlaced,
    /// What a frame becomes.
    pub shape: Shape,
    /// How it is compressed.
    pub format: PictureFormat,
    /// Which are left out.
    pub filters: Filters,
}

/// A frame ready to be stored.
struct Frame {
    metadata: FrameMetadata,
    picture: Vec<u8>,
    perceptual_hash: u64,
}

/// What came of one input besides its frames.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Findings {
    /// Why nothing of it can be used.
    problem: Option<String>,
    codec: Option<String>,
    damage: Option<String>,
    dropped: DropCounts,
}

impl Job {
    /// Samples one input; `sink` gets its frames in order of display. A failure of `sink` ends it.
    fn sample(
        &self,
        path: &Path,
        name: &str,
        mut sink: impl FnMut(Frame) -> std::io::Result<()>,
    ) -> std::io::Result<Findings> {
        let mut dropped = DropCounts::default();
        let broken = RefCell::new(None);
        let give_up = |e: std::io::Error| {
            *broken.borrow_mut() = Some(e);
            Error::Mismatch("the frames have nowhere to go".into())
        };
        // Random frames wait until all are found: not in memory if they are many or large.
        let random = matches!(self.strategy, Strategy::Random { .. });
        let waiting = RefCell::new(Spool::new(&std::env::temp_dir()));
        let request = Request {
            path,
            name,
            seed: self.seed,
            strategy: &self.strategy,
            streams: self.streams,
            interlaced: self.interlaced,
        };
        let sampled = sample_file(
            &request,
            |info, at, picture| {
                let upright = picture.image.dimensions();
                let place = format!("crop/{name}/{}", info.stream);
                let mut rng = rng::stream(self.seed, &place, at.pts as u64);
                let fitted = fit(&picture.image.into(), &self.shape, &mut rng);
                let quality = quality(&fitted.image);
                if let Some(reason) = self.filters.reject(upright, &quality) {
                    return Ok(Err(reason));
                }
                let [left, top, width, height] = fitted.crop;
                let placed = fitted.placed.map(|box_px| {
                    let [left, top, width, height] = box_px.map(f64::from);
                    Region { left, top, width, height }
                });
                let rounded = |value: f32| (f64::from(value) * 1000.0).round() / 1000.0;
                let metadata = FrameMetadata {
                    source: inputs::in_words(path.as_os_str()),
                    name: name.to_string(),
                    stream: info.stream,
                    pts: at.pts,
                    seconds: at.seconds,
                    original_width: picture.coded_width,
                    original_height: picture.coded_height,
                    rotation: picture.orientation.degrees(),
                    mirrored: picture.orientation.mirrored,
                    interlaced: picture.interlaced,
                    strategy: self.strategy.name().to_string(),
                    seed: self.seed,
                    crop: Region { left, top, width, height },
                    placed,
                    brightness: rounded(quality.brightness),
                    contrast: rounded(quality.contrast),
                    sharpness: rounded(quality.sharpness),
                    perceptual_hash: format!("{:016x}", quality.perceptual_hash),
                    hash: format!("{:016x}", stable_hash(fitted.image.as_bytes())),
                };
                let perceptual_hash = quality.perceptual_hash;
                let picture = self.format.encode(&fitted.image)?;
                if random {
                    waiting.borrow_mut().push(&[], &picture, perceptual_hash).map_err(give_up)?;
                    let number = waiting.borrow().frames().len() - 1;
                    return Ok(Ok((Frame { metadata, picture: Vec::new(), perceptual_hash }, Some(number))));
                }
                Ok(Ok((Frame { metadata, picture, perceptual_hash }, None)))
            },
            |frame| {
                match frame {
                    Err(reason) => dropped.add(reason),
                    Ok((mut frame, number)) => {
                        if let Some(number) = number {
                            frame.picture = waiting.borrow_mut().read(number).map_err(give_up)?.1;
                        }
                        sink(frame).map_err(give_up)?;
                    }
                }
                Ok(())
            },
        );
        if let Some(broken) = broken.into_inner() {
            return Err(broken);
        }
        Ok(match sampled {
            Ok(sampled) => {
                let damage = sampled
                    .damage
                    .map(|(count, reason)| format!("met damaged data {count} times, last: {reason}"));
                Findings { problem: None, codec: Some(sampled.codec), damage, dropped }
            }
            Err(e) => {
                let (reason, prefix) = (e.to_string(), format!("{}: ", path.display()));
                let problem = Some(reason.strip_prefix(&prefix).unwrap_or(&reason).to_string());
                Findings { problem, ..Findings::default() }
            }
        })
    }
}

/// How the work is spread.
pub struct Options {
    /// Inputs that are sampled at the same time.
    pub workers: usize,
    /// Worker processes and their limits; without, inputs are sampled by threads of this process.
    pub isolation: Option<Isolation>,
    /// Hashes of pictures: frames that look like one of them are left out.
    pub unlike: Option<Duplicates>,
}

/// Samples all `inputs` that are not in the set yet, in their order; `observe` sees each when it is written.
///
/// `seen` are the frames that the set has already, as perceptual hash and key of the input, for the filter of
/// duplicates. Returns whether all is done: not if `stop` was set. The writer is to be finished by the caller.
///
/// # Errors
/// If the set cannot be written or no worker can be started. What is wrong with an input is in its record instead.
pub fn run(
    job: &Job,
    inputs: &[Input],
    seen: &[(u64, String)],
    writer: &mut FrameWriter,
    options: &Options,
    stop: &AtomicBool,
    mut observe: impl FnMut(&InputRecord),
) -> Result<bool> {
    let mut duplicates = job.filters.duplicates.map(Duplicates::new);
    if let Some(duplicates) = &mut duplicates {
        seen.iter().for_each(|(hash, key)| duplicates.insert(*hash, stable_hash(key.as_bytes())));
    }
    let todo: Vec<&Input> = inputs.iter().filter(|i| !writer.is_done(&i.absolute)).collect();
    let keys = unique_keys(&todo, writer);
    let folder = writer.folder().to_path_buf();
    pool::in_order(
        todo.len(),
        options.workers,
        stop,
        || pool::Slot::new(job, options.isolation.as_ref(), &folder, stop),
        |slot, index| slot.sample(todo[index]),
        |index, turn| {
            let Turn::Done(done) = turn? else { return Ok(false) };
            let mut done = *done;
            let (input, key) = (todo[index], &keys[index]);
            let mut dropped = done.findings.dropped;
            let video = stable_hash(key.as_bytes());
            let skipped = done.findings.problem.is_some();
            let mut keep = vec![!skipped; done.spool.frames().len()];
            if let Some(unlike) = options.unlike.as_ref().filter(|_| !skipped) {
                for (keep, frame) in keep.iter_mut().zip(done.spool.frames()) {
                    if unlike.find(frame.perceptual_hash, 0).is_some() {
                        *keep = false;
                        dropped.add(Dropped::Known);
                    }
                }
            }
            if let Some(duplicates) = duplicates.as_mut().filter(|_| !skipped) {
                let kept = keep.iter_mut().zip(done.spool.frames()).filter(|(keep, _)| **keep);
                for (keep, frame) in kept {
                    match duplicates.find(frame.perceptual_hash, video) {
                        Some(other) => {
                            *keep = false;
                            let within = other == video;
                            dropped.add(if within { Dropped::Duplicate } else { Dropped::DuplicateAcross });
                        }
                        None => duplicates.insert(frame.perceptual_hash, video),
                    }
                }
            }
            let record = InputRecord {
                path: inputs::in_words(input.path.as_os_str()),
                name: input.name.clone(),
                absolute_path: input.absolute.clone(),
                key: key.clone(),
                outcome: if skipped { Outcome::Skipped } else { Outcome::Ok },
                reason: done.findings.problem,
                bytes: done.bytes,
                codec: done.findings.codec,
                damage: done.findings.damage,
                frames: 0,
                dropped,
                seconds_spent: done.seconds,
            };
            observe(writer.add_input(record, &mut done.spool, &keep)?);
            Ok(true)
        },
    )
}

/// What the keys of each input's frames begin with: a hash of its name, or for equal names in several folders also of
/// how many came before.
fn unique_keys(inputs: &[&Input], writer: &FrameWriter) -> Vec<String> {
    let mut taken = std::collections::HashSet::new();
    let mut key = |input: &Input| {
        let names = std::iter::once(input.name.clone()).chain((2..).map(|n| format!("{}#{n}", input.name)));
        let mut keys = names.map(|name| format!("{:016x}", stable_hash(name.as_bytes())));
        keys.find(|key| !writer.has_key(key) && taken.insert(key.clone())).expect("names without end")
    };
    inputs.iter().map(|input| key(input)).collect()
}
