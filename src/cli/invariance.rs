//! `striate invariance`: what is left of the responses of a run's units when pictures are changed.

use std::path::PathBuf;

use striate::analysis::UnitName;
use striate::analysis::invariance::transform::Edges;
use striate::frames::FrameStore;
use striate::geometry::Kind;
use striate::network::checkpoint;
use striate::report::detectors::{Evaluated, read_all};
use striate::report::invariance::{Choice, report};

use super::Global;
use super::labelled::Source;

/// Move, scale, turn, dim, blur and cover pictures, and see how much of each unit's response is left.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate invariance outputs/run --images faces/
  striate invariance outputs/run --images faces/ --detector faces   # the best unit that `striate evaluate --concept faces` found
  striate invariance outputs/run --images 'faces.tar::faces/lfw_gray/*' --yaw 50 --top 2 --name lfw
  striate invariance outputs/run --images cats.tar --units 3:17:0:2,3:5:1:1 --count 300

Writes RUN/invariance: NAME.json with curves of every unit and change, raw and relative to the unchanged pictures (1) and to rest
(0: the mean over frames), with quartiles over pictures; NAME-stageN.svg, a panel for each change; and NAME-occlusion.png, what
is left when a grey square hides each place. Results of other names stay, and so do those that were made in the same way from the same.")]
pub struct InvarianceArgs {
    /// Run folder of `striate train`.
    run: PathBuf,
    /// Pictures to change, of the thing that units are to be invariant to changes of: a frame set, tar shards, or a folder; with a
    /// pattern those of it whose key matches.
    #[arg(long, value_name = "PATH[::PATTERN]")]
    images: Source,
    /// Units as stage:map:row:col, with commas between them [default: of each stage those that respond most selectively].
    #[arg(long, value_delimiter = ',', value_name = "UNITS")]
    units: Vec<UnitName>,
    /// Also the best unit that `striate evaluate --concept NAME` found. May be repeated.
    #[arg(long = "detector", value_name = "NAME")]
    detectors: Vec<String>,
    /// Units of each stage if none are named: those whose mean over the pictures lies most deviations above that over frames.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    top: u16,
    /// Value of a unit: filtered (a), pooled (h) or normalised (y).
    #[arg(long, value_enum, default_value = "y")]
    kind: Kind,
    /// Pictures, evenly spread over all there are.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Frames that give resting values [default: those the run was trained on].
    #[arg(long)]
    frames: Option<PathBuf>,
    /// What lies beyond the border of a picture that is moved.
    #[arg(long, value_enum, default_value = "mirror")]
    edges: Edges,
    /// Also turn the drawn heads of N people out of the picture plane.
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    yaw: u32,
    /// Name of the results [default: that of the pictures].
    #[arg(long)]
    name: Option<String>,
    /// Folder for the results [default: RUN/invariance].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Threads. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

pub fn run(args: InvarianceArgs, global: Global) -> anyhow::Result<()> {
    global.use_threads(args.threads)?;
    let checkpoint = checkpoint::load_latest(&args.run, false)?;
    let of_images =
        || args.images.path.file_stem().map_or("images".into(), |stem| stem.to_string_lossy().into_owned());
    let identity = checkpoint::identity(&checkpoint::latest_of(&args.run)?)?;
    let mut units = args.units;
    if !args.detectors.is_empty() {
        let evaluated = read_all::<Evaluated>(&args.run.join("evaluate"), "evaluate")?;
        for detector in &args.detectors {
            units.push(super::best_of(&evaluated, detector, (&identity, args.kind))?);
        }
    }
    let choice = Choice {
        units,
        top: args.top.into(),
        kind: args.kind,
        count: args.count as usize,
        edges: args.edges,
        people: args.yaw as usize,
        name: args.name.unwrap_or_else(of_images),
        seed: global.seed,
    };
    choice.check(&checkpoint)?;
    let store = args.images.open()?;
    global.warn(store.warnings());
    let frames = super::frames_of(&args.run, args.frames)?;
    let dataset = global.pictures(&FrameStore::open(&frames)?, &args.run, &checkpoint.config)?;
    let out = args.out.unwrap_or_else(|| args.run.join("invariance"));
    let (bar, progress) = global.parts("invariance");
    let images = args.images.to_string();
    let (frames, images) = ((frames.as_path(), &dataset), (images.as_str(), &store));
    let found = report((&checkpoint, &identity), frames, images, &choice, &out, &progress);
    bar.finish();
    let found = found?;
    global.warn(&found.warnings);
    global.print(&found)
}
