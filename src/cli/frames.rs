//! `striate frames`: look at frame sets, and join them.

use std::borrow::Cow;
use std::fmt;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::Global;
use striate::frames::labels::Labels;
use striate::frames::{
    self, Cut, Cutting, FrameSetInfo, FrameSetSummary, FrameStore, Listed, PictureFormat, SheetOptions,
    WriterOptions,
};
use striate::video::synth::Kind;

/// Shows what is in a frame set, and joins several.
#[derive(Args)]
#[command(after_help = "\
Examples:
  striate frames info outputs/frames
  striate frames list outputs/frames
  striate frames sheet outputs/frames --out sheet.png
  striate frames show outputs/frames
  striate frames cut outputs/frames --labels videos/labels.jsonl --out outputs/test
  striate frames merge part-0 part-1 --out all")]
pub struct FramesArgs {
    #[command(subcommand)]
    command: FramesCommand,
}

#[derive(Subcommand)]
enum FramesCommand {
    Info(InfoArgs),
    List(ListArgs),
    Sheet(SheetArgs),
    Show(ShowArgs),
    Cut(CutArgs),
    Merge(MergeArgs),
}

/// Says what a frame set holds and what became of its inputs.
#[derive(Args)]
#[command(after_help = "\
Example:
  striate frames info outputs/frames --json | jq .origin.reasons")]
struct InfoArgs {
    /// A frame set; or a folder of pictures or tar shards, or a tar file, of which less is known.
    #[arg(value_name = "FRAMES")]
    frames: PathBuf,
}

/// Names every frame, with the video or picture that it came from and when: CSV on stdout.
#[derive(Args)]
#[command(after_help = "\
Example:
  striate frames list outputs/frames > frames.csv")]
struct ListArgs {
    /// A frame set, a folder of pictures or tar shards, or a tar file.
    #[arg(value_name = "FRAMES")]
    frames: PathBuf,
}

/// What `striate frames list` says.
#[derive(Serialize)]
#[serde(transparent)]
struct List(Vec<Listed>);

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "key,name,seconds")?;
        self.0.iter().try_for_each(|Listed { key, name, seconds }| {
            let seconds = seconds.map_or(String::new(), |seconds| seconds.to_string());
            write!(f, "\n{},{},{seconds}", in_csv(key), in_csv(name.as_deref().unwrap_or_default()))
        })
    }
}

/// A field as RFC 4180 has it.
fn in_csv(text: &str) -> Cow<'_, str> {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")).into(),
        false => text.into(),
    }
}

/// Draws frames side by side in one picture.
#[derive(Args)]
#[command(after_help = "\
Examples:
  striate frames sheet outputs/frames
  striate frames sheet outputs/frames --count 24 --columns 6 --tile 200 --out sheet.jpg")]
struct SheetArgs {
    /// A frame set, a folder of pictures or tar shards, or a tar file.
    #[arg(value_name = "FRAMES")]
    frames: PathBuf,
    /// Picture to write, a .png, .jpg or .webp [default: FRAMES-sheet.png].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Most frames to show, evenly spread over the set.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// Frames in a row [default: about as many as rows].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    columns: Option<u32>,
    /// Side of a frame, in pixels.
    #[arg(long, default_value_t = 128, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(16..=4096))]
    tile: u32,
}

/// Shows frames in the terminal: as pictures where it can (kitty, iTerm), else as coloured blocks.
#[derive(Args)]
#[command(after_help = "\
Example:
  striate frames show outputs/frames --count 4")]
struct ShowArgs {
    /// A frame set, a folder of pictures or tar shards, or a tar file.
    #[arg(value_name = "FRAMES")]
    frames: PathBuf,
    /// Most frames to show, evenly spread over the set.
    #[arg(long, default_value_t = 6, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
}

/// Cuts what is labelled out of frames of drawn videos: pictures to test units on, of faces, cats and bodies, and of nothing of the kind.
///
/// A square around each object that shows for the most part, 1.15 times the longer side of its box; and at a random place of every frame
/// one of a like size, if nothing of that kind is to be seen there. DIR/cut.csv says of each object where in the picture its box is, how it is
/// turned, and how much of it shows.
#[derive(Args)]
#[command(after_help = "\
Example:
  striate synth --videos 100 --seed 1 --out videos
  striate sample videos --per-video 4 --size 160x120 --format png --out frames
  striate frames cut frames --labels videos/labels.jsonl --out test
  striate evaluate outputs/run --positives test/face --negatives test/no-face --concept drawn-faces")]
struct CutArgs {
    /// Frame set of the videos; as large as they are, and without loss, pictures are the best.
    #[arg(value_name = "FRAMES")]
    frames: PathBuf,
    /// labels.jsonl of `striate synth`.
    #[arg(long, value_name = "FILE")]
    labels: PathBuf,
    /// New folder for face/, no-face/, cat/, no-cat/, body/, no-body/ and cut.csv.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Only this kind. May be repeated [default: all].
    #[arg(long = "kind", value_enum, value_name = "KIND")]
    kinds: Vec<Kind>,
    /// Least side of a square.
    #[arg(long, default_value_t = 32, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=65_535))]
    least: u32,
}

/// What `striate frames cut` did.
#[derive(Serialize)]
struct CutOut {
    frames: usize,
    pictures: Vec<Cut>,
    out: PathBuf,
}

impl fmt::Display for CutOut {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} frames", self.frames)?;
        for Cut { kind, with, without } in &self.pictures {
            write!(f, "\n{:<5} {with} pictures, {without} without", kind.name())?;
        }
        write!(f, "\n{}", self.out.display())
    }
}

/// Joins the parts that `sample --shard I/N` made of a collection.
#[derive(Args)]
#[command(after_help = "\
Example:
  striate sample /data --out part-0 --shard 0/2
  striate sample /data --out part-1 --shard 1/2
  striate frames merge part-0 part-1 --out all")]
struct MergeArgs {
    /// Complete frame sets with the same settings.
    #[arg(required = true, value_name = "FRAMES")]
    sets: Vec<PathBuf>,
    /// Folder for the new set; its shards are linked where the file system allows it.
    #[arg(long, value_name = "FRAMES")]
    out: PathBuf,
    /// Replace the frame set in the folder, once the new one is complete.
    #[arg(long)]
    overwrite: bool,
}

/// What `striate frames merge` did.
#[derive(Serialize)]
struct Merged {
    sets: usize,
    frames: u64,
    inputs: u64,
    shards: u64,
    bytes: u64,
    out: PathBuf,
}

impl fmt::Display for Merged {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Merged { sets, frames, inputs, shards, out, .. } = self;
        writeln!(f, "{frames} frames of {inputs} files from {sets} frame sets")?;
        write!(f, "{shards} shards, {:.1} MB in {}", self.bytes as f64 / 1e6, out.display())
    }
}

/// What `striate frames sheet` did.
#[derive(Serialize)]
struct Drawn {
    frames: usize,
    width: u32,
    height: u32,
    out: PathBuf,
}

impl fmt::Display for Drawn {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Drawn { frames, width, height, out } = self;
        write!(f, "{frames} frames on {width}x{height} pixels in {}", out.display())
    }
}

/// What `striate frames info` says.
#[derive(Serialize)]
#[serde(transparent)]
struct Info(FrameSetInfo);

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let FrameSetInfo { frames, first_picture: (width, height, colour), warnings, origin } = &self.0;
        let colour = if *colour { "colour" } else { "grey" };
        write!(f, "frames    {frames}; the first is {width}x{height}, {colour}")?;
        for warning in warnings {
            write!(f, "\nwarning   {warning}")?;
        }
        let Some(origin) = origin else {
            return write!(f, "\norigin    unknown: not made by striate sample");
        };
        let percent = |count: u64, of: u64| 100.0 * count as f64 / of.max(1) as f64;
        let (inputs, skipped, shards) = (origin.inputs, origin.skipped, origin.shards);
        write!(f, "\nshards    {shards}, {:.1} MB", origin.bytes as f64 / 1e6)?;
        if !origin.complete {
            write!(f, "\nstate     NOT COMPLETE: run the same sample command again to go on")?;
        }
        write!(f, "\ninputs    {inputs}, of them {skipped} skipped ({:.1} %)", percent(skipped, inputs))?;
        if origin.damaged > 0 {
            write!(f, ", {} damaged but used", origin.damaged)?;
        }
        for (reason, count) in origin.reasons.iter().take(10) {
            write!(f, "\n            {count} skipped: {reason}")?;
        }
        if origin.reasons.len() > 10 {
            write!(f, "\n            and {} other reasons; --json has all", origin.reasons.len() - 10)?;
        }
        if let Some([least, median, most]) = origin.frames_per_input {
            write!(f, "\nper input {least} to {most} frames, median {median}")?;
        }
        let dropped = origin.dropped.named().into_iter().filter(|(_, count)| *count > 0);
        let dropped: Vec<String> = dropped.map(|(reason, count)| format!("{count} {reason}")).collect();
        if !dropped.is_empty() {
            write!(f, "\nleft out  {}", dropped.join(", "))?;
        }
        let codecs = origin.codecs.iter().map(|(codec, count)| format!("{count} {codec}"));
        write!(f, "\ncodecs    {}", codecs.collect::<Vec<_>>().join(", "))?;
        write!(f, "\ntime      {:.1} s over all inputs", origin.seconds_spent)?;
        for (path, seconds) in &origin.slowest {
            write!(f, "\n            {seconds:.2} s {path}")?;
        }
        write!(f, "\nsettings  {}", origin.settings)
    }
}

pub fn run(args: FramesArgs, global: Global) -> anyhow::Result<()> {
    match args.command {
        FramesCommand::Info(args) => global.print(&Info(frames::info(&args.frames)?)),
        FramesCommand::List(args) => global.print(&List(frames::list(&args.frames)?)),
        FramesCommand::Sheet(args) => draw(&args, &global),
        FramesCommand::Show(args) => show(&args),
        FramesCommand::Cut(args) => cut(args, &global),
        FramesCommand::Merge(args) => {
            // The pictures are taken as they are; no new one is compressed.
            let options =
                WriterOptions { overwrite: args.overwrite, ..WriterOptions::new(PictureFormat::Png) };
            let summary = frames::merge(&args.sets, &args.out, options)?;
            if !summary.settings["filters"]["duplicates"].is_null() {
                say!("note: duplicates were looked for within each of the sets, not across them");
            }
            let FrameSetSummary { frames, inputs, shards, bytes, .. } = summary;
            global.print(&Merged { sets: args.sets.len(), frames, inputs, shards, bytes, out: args.out })
        }
    }
}

fn draw(args: &SheetArgs, global: &Global) -> anyhow::Result<()> {
    let out = args.out.clone().unwrap_or_else(|| beside(&args.frames));
    let extension = out.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let format = match extension.as_str() {
        "png" => PictureFormat::Png,
        "jpg" | "jpeg" => PictureFormat::Jpg(92),
        "webp" => PictureFormat::WebP,
        _ => bail!("{}: the sheet is to be a .png, .jpg or .webp", out.display()),
    };
    let store = FrameStore::open(&args.frames)?;
    let frames = args.count as usize;
    let options = SheetOptions { frames, columns: args.columns, tile: args.tile, captions: true };
    let (sheet, warnings) = frames::sheet(&store, &options)?;
    warnings.iter().for_each(|warning| say!("warning: {warning}"));
    let (width, height) = sheet.dimensions();
    let bytes = format.encode(&sheet.into())?;
    std::fs::write(&out, bytes).with_context(|| format!("cannot write {}", out.display()))?;
    global.print(&Drawn { frames: store.len().min(frames), width, height, out })
}

fn cut(args: CutArgs, global: &Global) -> anyhow::Result<()> {
    let CutArgs { frames, labels, out, kinds, least } = args;
    if out.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{}: not empty; --out is to be a new folder", out.display());
    }
    let (store, labels) = (FrameStore::open(&frames)?, Labels::read(&labels)?);
    let kinds = if kinds.is_empty() { Kind::value_variants().to_vec() } else { kinds };
    let cutting = Cutting { kinds, least, seed: global.seed };
    let progress = global.progress(store.len() as u64, "frames");
    let pictures = frames::cut((&frames, &store), &labels, &cutting, &out, || progress.inc(1))?;
    progress.finish_and_clear();
    global.print(&CutOut { frames: store.len(), pictures, out })
}

/// `FRAMES-sheet.png`, outside of a folder whose pictures all belong to the set.
fn beside(frames: &Path) -> PathBuf {
    let absolute = frames.canonicalize().unwrap_or_else(|_| frames.to_path_buf());
    let mut name = absolute.file_name().unwrap_or_default().to_os_string();
    name.push("-sheet.png");
    match frames.file_name() {
        Some(_) => frames.with_file_name(name),
        None => absolute.with_file_name(name),
    }
}

/// Columns of the terminal that a frame takes.
const FRAME_COLUMNS: u16 = 40;

fn show(args: &ShowArgs) -> anyhow::Result<()> {
    if !std::io::stdout().is_terminal() {
        bail!(
            "the output is no terminal, where frames could be shown; `striate frames sheet` draws a picture"
        );
    }
    let store = FrameStore::open(&args.frames)?;
    let count = (args.count as usize).min(store.len());
    let across = (viuer::terminal_size().0 / FRAME_COLUMNS).clamp(1, count as u16);
    let options = SheetOptions { frames: count, columns: Some(across.into()), tile: 240, captions: false };
    let (sheet, warnings) = frames::sheet(&store, &options)?;
    warnings.iter().for_each(|warning| say!("warning: {warning}"));
    let config = viuer::Config {
        absolute_offset: false,
        // Asking the terminal instead would wait for ever where nothing answers.
        use_kitty: std::env::var("TERM").is_ok_and(|term| term.contains("kitty") || term.contains("ghostty")),
        width: Some(u32::from(across * FRAME_COLUMNS)),
        ..viuer::Config::default()
    };
    viuer::print(&sheet.into(), &config).context("cannot draw in this terminal")?;
    for place in 0..count {
        let number = place * store.len() / count;
        println!("{:>3} {}", place + 1, describe(&store, number)?);
    }
    Ok(())
}

/// Where a frame is from, or its key.
fn describe(store: &FrameStore, number: usize) -> anyhow::Result<String> {
    let metadata = store.metadata(number)?.unwrap_or_default();
    Ok(match (metadata["name"].as_str(), metadata["seconds"].as_f64()) {
        (Some(name), Some(seconds)) => format!("{name} at {seconds:.3} s"),
        _ => store.key(number).to_string(),
    })
}
