//! `striate synth`: draw videos of faces, cats and bodies among clutter, with labels.

use std::path::PathBuf;

use striate::error::Error;
use striate::video::synth::{self, Settings};

use super::Global;

/// Draws videos with labels: faces, cats and bodies pass by among clutter as rich as natural scenes.
///
/// The videos use several codecs and containers. labels.jsonl has one line per frame: video, frame, seconds, scene,
/// width, height, and objects with kind (face, cat, body), centre x and y, width and height of the box in pixels,
/// roll_deg, yaw_deg, pitch_deg, and visible, the share of the silhouette that shows.
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct SynthArgs {
    /// Folder for the videos and labels.jsonl.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How many videos to draw. More videos leave the first ones as they are.
    #[arg(long, value_name = "N")]
    videos: u32,
    /// Length of each video.
    #[arg(long, value_name = "S", default_value_t = 6.0)]
    seconds: f64,
    /// Width and height in pixels, both even.
    #[arg(long, value_name = "WxH", default_value = "160x120", value_parser = parse_size)]
    size: [u32; 2],
    /// Frames a second.
    #[arg(long, value_name = "F", default_value_t = 12)]
    fps: u32,
    /// Threads in all [default: one per core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Replace what an earlier run left in the folder; other files there stay.
    #[arg(long)]
    overwrite: bool,
}

const EXAMPLE: &str = "\
Example, 150 videos of 6 seconds:
  striate synth --out outputs/videos --videos 150";

fn parse_size(text: &str) -> Result<[u32; 2], String> {
    let sides = text.split_once(['x', 'X']).and_then(|(w, h)| Some([w.parse().ok()?, h.parse().ok()?]));
    sides.ok_or_else(|| "expected a width and a height, such as 160x120".to_string())
}

/// Runs the command.
pub fn run(args: SynthArgs, global: &Global) -> anyhow::Result<()> {
    let [width, height] = args.size;
    let settings = Settings {
        seed: global.seed,
        videos: args.videos,
        seconds: args.seconds,
        fps: args.fps,
        width,
        height,
    };
    settings.check()?;
    let threads = args.threads.map_or(0, usize::from);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::Mismatch(format!("cannot start {threads} threads: {e}")))?;
    synth::prepare(&args.out, args.overwrite)?;
    let progress = global.progress(settings.frames() * u64::from(settings.videos), "frames");
    let summary = pool.install(|| synth::write(&args.out, &settings, |frames| progress.inc(frames)))?;
    progress.finish_and_clear();
    global.print(&summary)
}
