//! `striate sample`: videos -> frame set.
//!
//! Threads take one video each and hand over compressed frames; one thread writes them in the order of the videos.
//! How far they may run ahead of it is bounded, and with it the memory.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Global;
use striate::error::Result;
use striate::frames::{Colour, FrameMetadata, FrameWriter, PictureFormat, WriterOptions, fit};
use striate::rng::stable_hash;
use striate::video::sampler::{self, Input};

/// Takes frames at random instants from videos and stores them as tar shards.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct SampleArgs {
    /// Video files, and folders that are searched for videos.
    #[arg(required = true, value_name = "VIDEOS")]
    videos: Vec<PathBuf>,
    /// Folder for the frame set.
    #[arg(long, value_name = "FRAMES")]
    out: PathBuf,
    /// Frames to take from each video, at random instants; the paper takes one.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    per_video: u32,
    /// Size of the stored pictures; the middle of each frame is cut to this shape.
    #[arg(long, default_value = "200", value_name = "W[xH]", value_parser = parse_size)]
    size: (u32, u32),
    /// Store grey pictures.
    #[arg(long)]
    grey: bool,
    /// Compression of the pictures.
    #[arg(long, value_enum, default_value_t = Format::Jpg)]
    format: Format,
    /// Quality of JPEG pictures, 1 to 100.
    #[arg(long, default_value_t = 95, value_name = "Q", value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
    /// Fail with exit code 3 if any video had to be skipped; the others are stored all the same.
    #[arg(long)]
    strict: bool,
    /// Replace the frame set in the folder, once the new one is complete.
    #[arg(long)]
    overwrite: bool,
    /// Videos to decode at the same time; the result is the same for any number [default: all cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

const EXAMPLES: &str = "\
Example, 20 frames of 64x64 pixels from every video below a folder:
  striate sample my-videos/ --out outputs/frames --size 64 --per-video 20

The folder then holds tar shards (WebDataset: key.jpg and key.json), index.jsonl with a line for
every frame, inputs.jsonl with a line for every video, and frames.json once it is complete.";

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Jpg,
    Png,
}

fn parse_size(text: &str) -> Result<(u32, u32), String> {
    let (width, height) = text.split_once('x').unwrap_or((text, text));
    let side = |text: &str| text.parse().ok().filter(|side| (1..=4096).contains(side));
    match (side(width), side(height)) {
        (Some(width), Some(height)) => Ok((width, height)),
        _ => Err("expected W or WxH, each from 1 to 4096".into()),
    }
}

/// What `striate sample` did.
#[derive(Serialize)]
struct Report {
    files: usize,
    sampled: usize,
    skipped: usize,
    frames: u64,
    shards: u64,
    bytes: u64,
    out: PathBuf,
    skipped_files: Vec<Skipped>,
}

#[derive(Serialize)]
struct Skipped {
    path: String,
    reason: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Report { files, sampled, skipped, frames, shards, .. } = self;
        let plural = |n: u64| if n == 1 { "" } else { "s" };
        let megabytes = self.bytes as f64 / 1e6;
        writeln!(f, "{frames} frame{} from {sampled} of {files} files, {skipped} skipped", plural(*frames))?;
        write!(f, "{shards} shard{}, {megabytes:.1} MB in {}", plural(*shards), self.out.display())
    }
}

/// A line of `inputs.jsonl`. Only `took_seconds` differs between runs with the same seed.
#[derive(Serialize)]
struct InputLine {
    path: String,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    frames: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    codec: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
    took_seconds: f64,
}

/// A video after its turn: frames ready to be written, or why there are none.
struct Done {
    line: InputLine,
    frames: Vec<(Vec<u8>, FrameMetadata)>,
}

pub fn run(args: SampleArgs, global: Global) -> anyhow::Result<ExitCode> {
    let inputs = sampler::collect(&args.videos)?;
    let format = match args.format {
        Format::Jpg => PictureFormat::Jpg(args.quality),
        Format::Png => PictureFormat::Png,
    };
    let options = WriterOptions { format, overwrite: args.overwrite, ..Default::default() };
    let mut writer = FrameWriter::create(&args.out, options)?;
    let colour = if args.grey { Colour::Grey } else { Colour::Rgb };
    let job = Job { count: args.per_video as usize, seed: global.seed, size: args.size, colour, format };
    let threads = args.threads.map(usize::from);
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));

    let progress = global.progress(inputs.len() as u64, "sample");
    let keys = unique_keys(&inputs);
    let mut skipped_files = Vec::new();
    in_order(
        inputs.len(),
        threads,
        |i| job.run(&inputs[i]),
        |i, done| {
            for (number, (picture, metadata)) in done.frames.iter().enumerate() {
                writer.add(&format!("{:016x}-{number:06}", keys[i]), picture, metadata)?;
            }
            if let Some(reason) = &done.line.reason {
                progress.suspend(|| eprintln!("skipped: {}: {reason}", done.line.path));
                skipped_files.push(Skipped { path: done.line.path.clone(), reason: reason.clone() });
            } else if let Some(damage) = &done.line.damage {
                progress.suspend(|| eprintln!("warning: {}: {damage}", done.line.path));
            }
            progress.inc(1);
            writer.add_input(&done.line)
        },
    )?;
    progress.finish();

    let (files, skipped) = (inputs.len(), skipped_files.len());
    if writer.frames() == 0 {
        bail!("no frame could be sampled: all {files} files were skipped, each named above");
    }
    let summary = writer.finish(serde_json::json!({
        "seed": job.seed, "per_video": job.count, "width": job.size.0, "height": job.size.1,
        "colour": colour, "format": format, "files": files, "skipped": skipped,
    }))?;
    let (frames, shards, bytes) = (summary.frames, summary.shards, summary.bytes);
    let sampled = files - skipped;
    global.print(&Report { files, sampled, skipped, frames, shards, bytes, out: args.out, skipped_files })?;
    if args.strict && skipped > 0 {
        eprintln!("error: {skipped} of {files} files were skipped, which --strict does not allow");
        return Ok(ExitCode::from(3));
    }
    Ok(ExitCode::SUCCESS)
}

/// What is done to every video.
struct Job {
    count: usize,
    seed: u64,
    size: (u32, u32),
    colour: Colour,
    format: PictureFormat,
}

impl Job {
    fn run(&self, input: &Input) -> Done {
        let start = Instant::now();
        let path = input.path.display().to_string();
        let sampled = sampler::sample_file(input, self.count, self.seed, |_, picture| {
            let fitted = fit(&picture.into(), self.size.0, self.size.1, self.colour);
            let hash = format!("{:016x}", stable_hash(fitted.image.as_bytes()));
            Ok((self.format.encode(&fitted.image)?, fitted.crop, hash))
        });
        let mut line = InputLine {
            path: path.clone(),
            outcome: "ok",
            reason: None,
            frames: 0,
            codec: None,
            damage: None,
            took_seconds: 0.0,
        };
        let mut frames = Vec::new();
        match sampled {
            Err(e) => {
                line.outcome = "skipped";
                let reason = e.to_string();
                let prefix = format!("{path}: ");
                line.reason = Some(reason.strip_prefix(&prefix).unwrap_or(&reason).to_string());
            }
            Ok(sample) => {
                line.frames = sample.frames.len();
                line.damage = sample.damage.map(|(n, reason)| format!("{n} damaged packets, last: {reason}"));
                for (at, (bytes, crop, hash)) in sample.frames {
                    let metadata = FrameMetadata {
                        source: path.clone(),
                        name: input.name.clone(),
                        stream: sample.info.stream,
                        pts: at.pts,
                        seconds: at.seconds,
                        original_width: sample.info.coded_width,
                        original_height: sample.info.coded_height,
                        rotation: sample.info.orientation.degrees(),
                        mirrored: sample.info.orientation.mirrored,
                        strategy: sample.strategy,
                        seed: self.seed,
                        crop,
                        hash,
                    };
                    frames.push((bytes, metadata));
                }
                line.codec = Some(sample.info.codec);
            }
        }
        line.took_seconds = start.elapsed().as_secs_f64();
        Done { line, frames }
    }
}

/// A number for each input that depends on its name only, or for equal names under several roots also on how many
/// came before.
fn unique_keys(inputs: &[Input]) -> Vec<u64> {
    let mut seen = std::collections::HashSet::new();
    let key = |input: &Input| {
        let names = std::iter::once(input.name.clone()).chain((2..).map(|n| format!("{}#{n}", input.name)));
        let mut keys = names.map(|name| stable_hash(name.as_bytes()));
        keys.find(|&key| seen.insert(key)).expect("names without end")
    };
    inputs.iter().map(key).collect()
}

/// Does `work(0)`, `work(1)`... on several threads and gives the results to `take` in this order, on this thread.
///
/// At most four results per thread are in memory. Stops at the first error of `take`.
fn in_order<T: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> T + Sync,
    mut take: impl FnMut(usize, T) -> Result<()>,
) -> Result<()> {
    struct State<T> {
        started: usize,
        taken: usize,
        stop: bool,
        done: BTreeMap<usize, std::thread::Result<T>>,
    }
    let state = Mutex::new(State { started: 0, taken: 0, stop: false, done: BTreeMap::new() });
    let changed = Condvar::new();
    let lock = || state.lock().expect("no thread panics while it holds the lock");
    let wait = |guard| changed.wait(guard).expect("no thread panics while it holds the lock");
    std::thread::scope(|scope| {
        for _ in 0..threads.min(count) {
            scope.spawn(|| {
                loop {
                    let mut now = lock();
                    while !now.stop && now.started < count && now.started >= now.taken + 4 * threads {
                        now = wait(now);
                    }
                    if now.stop || now.started == count {
                        return;
                    }
                    let index = now.started;
                    now.started += 1;
                    drop(now);
                    // A bug must reach the waiting thread instead of leaving it to wait for ever.
                    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(index)));
                    lock().done.insert(index, result);
                    changed.notify_all();
                }
            });
        }
        for index in 0..count {
            let mut now = lock();
            let result = loop {
                match now.done.remove(&index) {
                    Some(result) => break result,
                    None => now = wait(now),
                }
            };
            now.taken = index + 1;
            drop(now);
            changed.notify_all();
            let stop = |()| {
                lock().stop = true;
                changed.notify_all();
            };
            let result = result.unwrap_or_else(|panic| {
                stop(());
                std::panic::resume_unwind(panic)
            });
            if let Err(e) = take(index, result) {
                stop(());
                return Err(e);
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn results_come_in_order_and_never_far_ahead() {
        let (ahead, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        for threads in [1, 3, 8] {
            let mut seen = Vec::new();
            let work = |i: usize| {
                most.fetch_max(ahead.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_micros(if i == 0 { 20_000 } else { 10 }));
                i * i
            };
            in_order(200, threads, work, |i, square| {
                ahead.fetch_sub(1, Ordering::SeqCst);
                seen.push((i, square));
                Ok(())
            })
            .unwrap();
            assert_eq!(seen, (0..200).map(|i| (i, i * i)).collect::<Vec<_>>());
        }
        assert!(most.into_inner() <= 4 * 8 + 8);
    }

    #[test]
    fn an_error_while_writing_ends_the_work() {
        let started = AtomicUsize::new(0);
        let result = in_order(
            1_000_000,
            4,
            |_| started.fetch_add(1, Ordering::SeqCst),
            |i, _| {
                if i == 5 { Err(striate::Error::Mismatch("full".into())) } else { Ok(()) }
            },
        );
        assert!(result.is_err() && started.into_inner() < 100);
    }

    #[test]
    fn sizes_are_one_number_or_two() {
        assert_eq!((parse_size("64"), parse_size("64x48")), (Ok((64, 64)), Ok((64, 48))));
        for wrong in ["", "0", "x", "64x", "64x48x3", "-1", "5000", "1e3"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
