//! `striate sample`: videos and pictures -> frame set.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::bail;
use clap::{ArgAction, Args, ValueEnum};
use rayon::prelude::*;
use serde::Serialize;

use super::{Global, bytes, number_with_unit};
use striate::frames::{
    Colour, DropCounts, Duplicates, Filters, Fit, FrameRecord, FrameStore, FrameWriter, InputRecord, Outcome,
    Part, PictureFormat, Shape, WriterOptions, quality,
};
use striate::sampling::{self, Isolation, Job, TimeLimit, inputs};
use striate::video::Interlaced;
use striate::video::sampler::{Strategy, Streams};

/// Takes frames from videos and pictures and stores them as tar shards.
///
/// The same command again continues what was interrupted, or adds videos that are new.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct SampleArgs {
    /// Videos and pictures, folders that are searched for them, and patterns such as "day*/**/*.mp4".
    #[arg(required_unless_present = "list", value_name = "INPUTS")]
    inputs: Vec<PathBuf>,
    /// A file that names inputs, one to a line (or separated by zero bytes); `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Folder for the frame set.
    #[arg(long, value_name = "FRAMES")]
    out: PathBuf,

    /// Frames to take from each video, at random instants; the paper takes one.
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = WHICH, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    per_video: u32,
    /// Take the frames shown at the start and after every such time instead: 2s, 500ms, 1m.
    #[arg(long, value_name = "TIME", help_heading = WHICH, value_parser = parse_duration, conflicts_with = "per_video")]
    every: Option<Duration>,
    /// Take all key frames instead; others are not decoded.
    #[arg(long, help_heading = WHICH, conflicts_with_all = ["per_video", "every"])]
    keyframes: bool,
    /// Take the frame in the middle of each shot instead.
    #[arg(long, help_heading = WHICH, conflicts_with_all = ["per_video", "every", "keyframes"])]
    scenes: bool,
    /// Take the frames shown at these times after the start instead: 1.5,00:01:30.
    #[arg(long, value_name = "TIMES", help_heading = WHICH, value_delimiter = ',', value_parser = parse_time,
        conflicts_with_all = ["per_video", "every", "keyframes", "scenes"])]
    at: Vec<f64>,
    /// Video streams of a file to look into.
    #[arg(long, value_enum, default_value_t = StreamsArg::Best, help_heading = WHICH)]
    streams: StreamsArg,
    /// Take only the inputs that belong to part I of N, counted from 0: every machine of N takes its own. `auto`: as the task of a Slurm job
    /// array or of srun; `auto/N`: as the pod of an indexed Kubernetes job of N.
    #[arg(long, value_name = "I/N", help_heading = WHICH, value_parser = parse_shard)]
    shard: Option<(u64, u64)>,

    /// Size of the stored pictures.
    #[arg(long, default_value = "200", value_name = "W[xH]", help_heading = WHAT, value_parser = parse_size)]
    size: (u32, u32),
    /// Look at this part of the upright picture only: left, top, width and height as shares of its own.
    #[arg(long, value_name = "L,T,W,H", help_heading = WHAT, value_parser = parse_part)]
    part: Option<Part>,
    /// How a frame gets this shape.
    #[arg(long, value_enum, default_value_t = FitArg::Crop, help_heading = WHAT)]
    fit: FitArg,
    /// Store grey pictures.
    #[arg(long, help_heading = WHAT)]
    grey: bool,
    /// What becomes of interlaced frames.
    #[arg(long, value_enum, default_value_t = InterlacedArg::Field, help_heading = WHAT)]
    interlaced: InterlacedArg,
    /// Compression of the pictures; png and webp are without loss.
    #[arg(long, value_enum, default_value_t = Format::Jpg, help_heading = WHAT)]
    format: Format,
    /// Quality of JPEG pictures, 1 to 100.
    #[arg(long, default_value_t = 95, value_name = "Q", help_heading = WHAT, value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,

    /// Leave out such frames; they are counted, and no others are taken in their place.
    #[arg(long, value_name = "KINDS", value_enum, value_delimiter = ',', help_heading = FILTERS)]
    drop: Vec<DropArg>,
    /// Leave out frames whose upright original is smaller.
    #[arg(long, value_name = "W[xH]", help_heading = FILTERS, value_parser = parse_size)]
    min_size: Option<(u32, u32)>,
    /// "dark": the mean luma of the stored picture is below this, of 255.
    #[arg(long, value_name = "LUMA", default_value_t = Filters::DARK, help_heading = FILTERS)]
    dark_below: f32,
    /// "uniform": the standard deviation of the luma is below this.
    #[arg(long, value_name = "LUMA", default_value_t = Filters::UNIFORM, help_heading = FILTERS)]
    uniform_below: f32,
    /// "blurred": the sharpness is below this.
    #[arg(long, value_name = "SHARPNESS", default_value_t = Filters::BLURRED, help_heading = FILTERS)]
    blurred_below: f32,
    /// "duplicates": the perceptual hash differs from an earlier frame's in at most so many of 64 bits.
    #[arg(long, value_name = "BITS", default_value_t = Filters::DUPLICATES, help_heading = FILTERS, value_parser = clap::value_parser!(u32).range(0..=16))]
    duplicate_bits: u32,
    /// Leave out frames that look like a picture of this frame set, tar or folder, by the same measure: the pictures that a
    /// network will be tested on, say. They are compared as they are stored. May be repeated.
    #[arg(long, value_name = "PATH", help_heading = FILTERS)]
    unlike: Vec<PathBuf>,

    /// Decode in worker processes, so that a file that crashes the decoder costs that file only.
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true,
        action = ArgAction::Set, value_name = "BOOL", help_heading = FAULTS)]
    isolate: bool,
    /// Longest time for a file [default: a minute and 50 s for each megabyte, at most 6 h].
    #[arg(long, value_name = "TIME", help_heading = FAULTS, value_parser = parse_duration)]
    time_limit: Option<Duration>,
    /// Most memory of a worker process: 500MB, 2GB.
    #[arg(long, value_name = "BYTES", default_value = "2GB", help_heading = FAULTS, value_parser = parse_bytes)]
    memory_limit: u64,
    /// Fail with exit code 3 if any file had to be skipped; the others are stored all the same.
    #[arg(long, help_heading = FAULTS)]
    strict: bool,
    /// Replace the frame set in the folder, once the new one is complete.
    #[arg(long, help_heading = FAULTS)]
    overwrite: bool,
    /// Frames of a tar shard; a shard is what an interruption can cost at most.
    #[arg(long, value_name = "N", default_value_t = 1000, help_heading = FAULTS, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    frames_per_shard: u64,
    /// Files to decode at the same time; the result is the same for any number [default: all cores].
    #[arg(long, value_name = "N", help_heading = FAULTS, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

const WHICH: &str = "Which frames";
const WHAT: &str = "What a frame becomes";
const FILTERS: &str = "Filters";
const FAULTS: &str = "Scale and faults";

const EXAMPLES: &str = "\
Examples:
  striate sample my-videos/ --out outputs/frames --size 64 --per-video 20
  striate sample 'films/**/*.mkv' --out outputs/keys --keyframes --drop dark,duplicates
  striate sample pictures/ --out outputs/frames --size 32 --grey --unlike test-pictures/
  find /data -name '*.mp4' -print0 | striate sample --list - --out outputs/frames --every 2s
  striate sample /data --out outputs/part-$SLURM_ARRAY_TASK_ID --shard auto   # sbatch --array=0-99
  striate frames merge outputs/part-* --out outputs/frames

The folder then holds tar shards (WebDataset: key.jpg and key.json), frames.parquet with a row for
every frame, inputs.parquet with a row for every file and what became of it, and frames.json.";

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Jpg,
    Png,
    Webp,
}

#[derive(Clone, Copy, ValueEnum)]
enum FitArg {
    /// Cut the largest part of this shape out of the middle.
    Crop,
    /// Cut it out at a random place.
    RandomCrop,
    /// Keep all, with black bars.
    Letterbox,
    /// Keep all, distorted.
    Stretch,
}

#[derive(Clone, Copy, ValueEnum)]
enum StreamsArg {
    /// The one that players choose.
    Best,
    /// Each, as a video of its own.
    All,
}

#[derive(Clone, Copy, ValueEnum)]
enum InterlacedArg {
    /// Show the first of its two fields.
    Field,
    /// Keep both, combed.
    Keep,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum DropArg {
    /// Nearly black.
    Dark,
    /// Nearly of one colour.
    Uniform,
    /// Not sharp.
    Blurred,
    /// Nearly the same as an earlier frame of this or another video.
    Duplicates,
}

fn parse_size(text: &str) -> Result<(u32, u32), String> {
    let (width, height) = text.split_once('x').unwrap_or((text, text));
    let side = |text: &str| text.parse().ok().filter(|side| (1..=4096).contains(side));
    match (side(width), side(height)) {
        (Some(width), Some(height)) => Ok((width, height)),
        _ => Err("expected W or WxH, each from 1 to 4096".into()),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let seconds = number_with_unit(text).and_then(|(number, unit)| match unit {
        "ms" => Some(number / 1000.0),
        "s" | "" => Some(number),
        "m" | "min" => Some(number * 60.0),
        "h" => Some(number * 3600.0),
        _ => None,
    });
    let sensible = seconds.filter(|seconds| (0.001..=1e6).contains(seconds));
    sensible.map(Duration::from_secs_f64).ok_or("expected a time such as 2s, 500ms, 1.5m or 1h".into())
}

fn parse_time(text: &str) -> Result<f64, String> {
    let parts = text.split(':').map(|part| part.parse::<f64>().ok().filter(|v| (0.0..1e7).contains(v)));
    let parts: Option<Vec<f64>> = parts.collect();
    let parts = parts.filter(|parts| parts.len() <= 3);
    let seconds = parts.map(|parts| parts.iter().fold(0.0, |sum, part| 60.0 * sum + part));
    seconds.ok_or("expected seconds or HH:MM:SS, such as 1.5 or 00:01:30".into())
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    bytes(text)
        .filter(|&bytes| bytes >= 64_000_000)
        .ok_or("expected at least 64MB, such as 500MB or 2GB".into())
}

fn parse_part(text: &str) -> Result<Part, String> {
    let shares: Option<Vec<f64>> = text.split(',').map(|share| share.trim().parse().ok()).collect();
    // Shares that were rounded may sum up to a little more than 1.
    let within = |start: f64, share: f64| start >= 0.0 && share >= 0.01 && start + share <= 1.0 + 1e-9;
    match shares.as_deref() {
        Some(&[left, top, width, height]) if within(left, width) && within(top, height) => {
            Ok(Part { left, top, width, height })
        }
        _ => Err("expected left,top,width,height inside the picture, such as 0.1,0,0.8,0.8".into()),
    }
}

fn parse_shard(text: &str) -> Result<(u64, u64), String> {
    if text == "auto" || text.starts_with("auto/") {
        return shard_of_job(text, |name| std::env::var(name).ok());
    }
    let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    parts.filter(|(i, n)| i < n).ok_or("expected I/N with I from 0 to N-1, such as 0/4, or auto".into())
}

/// What the launcher of a cluster says of this task in the environment.
fn shard_of_job(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<(u64, u64), String> {
    let number = |name: &str| variable(name)?.parse::<u64>().ok();
    let count = text.strip_prefix("auto/").map(|count| count.parse::<u64>().ok());
    let array = || {
        let step = number("SLURM_ARRAY_TASK_STEP").filter(|&step| step > 0).unwrap_or(1);
        let first = number("SLURM_ARRAY_TASK_MIN")?;
        Some((number("SLURM_ARRAY_TASK_ID")?.checked_sub(first)? / step, number("SLURM_ARRAY_TASK_COUNT")?))
    };
    let (found, wanted) = match count {
        Some(count) => (number("JOB_COMPLETION_INDEX").zip(count), "JOB_COMPLETION_INDEX below N"),
        None => (
            array().or_else(|| number("SLURM_PROCID").zip(number("SLURM_NTASKS"))),
            "SLURM_ARRAY_TASK_ID, _MIN and _COUNT, or SLURM_PROCID and SLURM_NTASKS; auto/N takes JOB_COMPLETION_INDEX",
        ),
    };
    found.filter(|(i, n)| i < n).ok_or_else(|| format!("expected in the environment: {wanted}"))
}

/// What `striate sample` did.
#[derive(Serialize)]
struct Report {
    /// Input files in the set.
    files: u64,
    sampled: u64,
    skipped: u64,
    /// Of the files, those that were there before.
    done_before: u64,
    frames: u64,
    dropped: DropCounts,
    shards: u64,
    bytes: u64,
    out: PathBuf,
    /// Files that this run skipped.
    skipped_files: Vec<Skipped>,
}

#[derive(Serialize)]
struct Skipped {
    path: String,
    reason: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Report { files, sampled, skipped, frames, shards, done_before, .. } = self;
        let plural = |n: u64| if n == 1 { "" } else { "s" };
        let megabytes = self.bytes as f64 / 1e6;
        write!(f, "{frames} frame{} from {sampled} of {files} files, {skipped} skipped", plural(*frames))?;
        if *done_before > 0 {
            write!(f, " ({done_before} files were done before)")?;
        }
        writeln!(f)?;
        if self.dropped.total() > 0 {
            let named = self.dropped.named().into_iter().filter(|(_, count)| *count > 0);
            let named: Vec<String> = named.map(|(reason, count)| format!("{count} {reason}")).collect();
            writeln!(f, "left out: {}", named.join(", "))?;
        }
        write!(f, "{shards} shard{}, {megabytes:.1} MB in {}", plural(*shards), self.out.display())
    }
}

impl SampleArgs {
    fn strategy(&self) -> Strategy {
        if let Some(every) = self.every {
            Strategy::Every { seconds: every.as_secs_f64() }
        } else if self.keyframes {
            Strategy::Keyframes
        } else if self.scenes {
            Strategy::Scenes
        } else if !self.at.is_empty() {
            Strategy::Times { seconds: self.at.clone() }
        } else {
            Strategy::Random { per_video: self.per_video as usize }
        }
    }

    fn job(&self, seed: u64) -> Job {
        let drops = |kind: DropArg| self.drop.contains(&kind);
        let (min_width, min_height) = self.min_size.unwrap_or((0, 0));
        Job {
            seed,
            strategy: self.strategy(),
            streams: match self.streams {
                StreamsArg::Best => Streams::Best,
                StreamsArg::All => Streams::All,
            },
            interlaced: match self.interlaced {
                InterlacedArg::Field => Interlaced::Field,
                InterlacedArg::Keep => Interlaced::Keep,
            },
            shape: Shape {
                part: self.part.unwrap_or_default(),
                width: self.size.0,
                height: self.size.1,
                fit: match self.fit {
                    FitArg::Crop => Fit::Crop,
                    FitArg::RandomCrop => Fit::RandomCrop,
                    FitArg::Letterbox => Fit::Letterbox,
                    FitArg::Stretch => Fit::Stretch,
                },
                colour: if self.grey { Colour::Grey } else { Colour::Rgb },
            },
            format: match self.format {
                Format::Jpg => PictureFormat::Jpg(self.quality),
                Format::Png => PictureFormat::Png,
                Format::Webp => PictureFormat::WebP,
            },
            filters: Filters {
                min_width,
                min_height,
                dark: drops(DropArg::Dark).then_some(self.dark_below),
                uniform: drops(DropArg::Uniform).then_some(self.uniform_below),
                blurred: drops(DropArg::Blurred).then_some(self.blurred_below),
                duplicates: drops(DropArg::Duplicates).then_some(self.duplicate_bits),
            },
        }
    }
}

/// What decides about the frames: a set can only be continued with the same.
#[derive(Serialize)]
struct Settings<'a> {
    #[serde(flatten)]
    job: &'a Job,
    frames_per_shard: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    shard: Option<String>,
    /// What frames are to be unlike, and in how many bits at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    unlike: Option<(u32, Vec<String>)>,
}

pub fn run(args: SampleArgs, global: Global) -> anyhow::Result<ExitCode> {
    let listed = args.list.as_deref().map(inputs::read_list).transpose()?.unwrap_or_default();
    let mut inputs = inputs::collect(&args.inputs, &listed)?;
    if let Some((index, count)) = args.shard {
        inputs.retain(|input| input.belongs_to(index, count, global.seed));
    }
    let job = args.job(global.seed);
    let options = WriterOptions {
        overwrite: args.overwrite,
        frames_per_shard: args.frames_per_shard,
        ..WriterOptions::new(job.format)
    };
    let shard = args.shard.map(|(index, count)| format!("{index}/{count}"));
    let (unlike, names) = unlike(&args, &global)?;
    let unlike_named = unlike.is_some().then_some((args.duplicate_bits, names));
    let settings =
        Settings { job: &job, frames_per_shard: args.frames_per_shard, shard, unlike: unlike_named };
    let mut seen = Vec::new();
    let known = |frame: &FrameRecord| {
        let hash = u64::from_str_radix(&frame.metadata.perceptual_hash, 16).unwrap_or(0);
        seen.extend(job.filters.duplicates.map(|_| (hash, frame.input_key().to_string())));
    };
    let asked: HashSet<&str> = inputs.iter().map(|input| input.absolute.as_str()).collect();
    let settings = serde_json::to_value(&settings)?;
    let belongs = |path: &str| asked.contains(path);
    let mut writer = FrameWriter::open_for(&args.out, &settings, options, known, belongs)?;
    let done_before = writer.summary().inputs;
    inputs.retain(|input| !writer.is_done(&input.absolute));
    if inputs.is_empty() && writer.was_complete() {
        let summary = writer.summary().clone();
        drop(writer);
        return report(&args, global, summary, done_before, Vec::new());
    }

    let (stop, signal) = watch_signals()?;
    let program = PathBuf::from("/proc/self/exe");
    let isolation = args.isolate.then(|| Isolation {
        program,
        arguments: vec!["worker".into()],
        time: args.time_limit.map_or(TimeLimit::BySize, TimeLimit::Fixed),
        memory_bytes: args.memory_limit,
    });
    let workers = args.threads.map(usize::from);
    let workers = workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let options = sampling::Options { workers, isolation, unlike };
    let progress = global.progress(inputs.len() as u64, "sample");
    let (mut frames, mut skipped_files) = (0, Vec::new());
    let complete =
        sampling::run(&job, &inputs, &seen, &mut writer, &options, &stop, |input: &InputRecord| {
            frames += input.frames;
            if input.outcome == Outcome::Skipped {
                let reason = input.reason.clone().unwrap_or_default();
                progress.suspend(|| say!("skipped: {}: {reason}", input.path));
                skipped_files.push(Skipped { path: input.path.clone(), reason });
            } else if let Some(damage) = &input.damage {
                progress.suspend(|| say!("warning: {}: {damage}", input.path));
            }
            progress.set_message(format!("{frames} frames"));
            progress.inc(1);
        })?;
    progress.finish();
    if !complete {
        say!("interrupted: the same command goes on from the last finished shard");
        return Ok(ExitCode::from(128 + signal.load(Ordering::Relaxed) as u8));
    }
    // A part of a collection may well have nothing to give; what became of its inputs is on record all the same.
    if done_before == 0 && frames == 0 && !inputs.is_empty() && args.shard.is_none() {
        let files = inputs.len();
        if args.strict && !skipped_files.is_empty() {
            return Ok(refuse_skipped(skipped_files.len() as u64, files as u64));
        }
        match skipped_files.len() == files {
            true => bail!("no frame could be sampled: all {files} files were skipped, each named above"),
            false => bail!("no frame could be sampled: the filters left out all frames of {files} files"),
        }
    }
    report(&args, global, writer.finish()?, done_before, skipped_files)
}

/// Hashes of the pictures that frames are to be unlike, and what tells these from others.
fn unlike(args: &SampleArgs, global: &Global) -> anyhow::Result<(Option<Duplicates>, Vec<String>)> {
    let mut known = Duplicates::new(args.duplicate_bits);
    let mut names = Vec::new();
    for path in &args.unlike {
        let store = FrameStore::open(path)?;
        global.warn(store.warnings());
        let hashes = (0..store.len()).into_par_iter();
        let hashes = hashes.map(|index| Ok(quality(&store.picture(index)?).perceptual_hash));
        let hashes = hashes.collect::<striate::Result<Vec<u64>>>()?;
        hashes.into_iter().for_each(|hash| known.insert(hash, 0));
        names.push(store.identity());
    }
    Ok(((!names.is_empty()).then_some(known), names))
}

fn report(
    args: &SampleArgs,
    global: Global,
    summary: striate::frames::FrameSetSummary,
    done_before: u64,
    skipped_files: Vec<Skipped>,
) -> anyhow::Result<ExitCode> {
    let (files, skipped) = (summary.inputs, summary.skipped);
    global.print(&Report {
        files,
        sampled: files - skipped,
        skipped,
        done_before,
        frames: summary.frames,
        dropped: summary.dropped,
        shards: summary.shards,
        bytes: summary.bytes,
        out: args.out.clone(),
        skipped_files,
    })?;
    if args.strict && skipped > 0 {
        return Ok(refuse_skipped(skipped, files));
    }
    Ok(ExitCode::SUCCESS)
}

fn refuse_skipped(skipped: u64, files: u64) -> ExitCode {
    say!("error: {skipped} of {files} files were skipped, which --strict does not allow");
    ExitCode::from(3)
}

/// Set when the user or the system wants us to stop, and by which signal.
fn watch_signals() -> anyhow::Result<(Arc<AtomicBool>, Arc<AtomicUsize>)> {
    let (stop, signal) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    for number in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second time it ends at once.
        signal_hook::flag::register_conditional_shutdown(number, 128 + number, Arc::clone(&stop))?;
        signal_hook::flag::register_usize(number, Arc::clone(&signal), number as usize)?;
        signal_hook::flag::register(number, Arc::clone(&stop))?;
    }
    Ok((stop, signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_times_and_parts_are_read_or_refused() {
        assert_eq!((parse_size("64"), parse_size("64x48")), (Ok((64, 64)), Ok((64, 48))));
        for wrong in ["", "0", "x", "64x", "64x48x3", "-1", "5000", "1e3"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
        let seconds = |text: &str| parse_duration(text).map(|time| time.as_secs_f64());
        assert_eq!(["2s", "500ms", "1.5m", "1h", "3"].map(seconds), [2.0, 0.5, 90.0, 3600.0, 3.0].map(Ok));
        for wrong in ["", "s", "0s", "-1s", "2 weeks", "1.2.3s", "nan", "inf"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(["1.5", "01:30", "1:00:01.25"].map(parse_time), [1.5, 90.0, 3601.25].map(Ok));
        for wrong in ["", ":", "1:2:3:4", "-1", "nan", "1s"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
        assert_eq!(["500MB", "2GB", "1GiB"].map(parse_bytes), [500_000_000, 2_000_000_000, 1 << 30].map(Ok));
        for wrong in ["", "2", "1MB", "2TBs", "GB"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_part("0.1,0,0.9,1"), Ok(Part { left: 0.1, top: 0.0, width: 0.9, height: 1.0 }));
        for wrong in ["", "0,0,1", "0.2,0,0.9,1", "0,0,0,1", "-0.1,0,0.5,0.5", "0,nan,1,1", "0,0,1,1,1"] {
            assert!(parse_part(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_shard("2/3"), Ok((2, 3)));
        for wrong in ["3/3", "1", "/", "-1/2", "0/0"] {
            assert!(parse_shard(wrong).is_err(), "{wrong}");
        }
        let of = |text: &str, variables: &[(&str, &str)]| {
            let find =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, v)| v.to_string());
            shard_of_job(text, find)
        };
        let array = [
            ("SLURM_ARRAY_TASK_ID", "14"),
            ("SLURM_ARRAY_TASK_MIN", "10"),
            ("SLURM_ARRAY_TASK_COUNT", "6"),
            ("SLURM_ARRAY_TASK_STEP", "2"),
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "1"),
        ];
        assert_eq!(of("auto", &array), Ok((2, 6)), "the array, not the only task of its job");
        assert_eq!(of("auto", &array[4..]), Ok((0, 1)));
        assert_eq!(of("auto/7", &[("JOB_COMPLETION_INDEX", "6")]), Ok((6, 7)));
        for (text, variables) in
            [("auto", &[][..]), ("auto/6", &[("JOB_COMPLETION_INDEX", "6")]), ("auto/x", &array)]
        {
            assert!(of(text, variables).unwrap_err().contains("environment"), "{text}");
        }
    }
}
