//! `striate visualize`: what do the units of a run prefer?

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use striate::analysis::UnitName;
use striate::analysis::evaluate::Best;
use striate::analysis::stimulus::{Method, Parameters, Sign, View};
use striate::frames::FrameStore;
use striate::geometry::Kind;
use striate::network::checkpoint;
use striate::report::detectors::{Evaluated, read_all};
use striate::report::gallery::{Choice, Gallery, Norm, visualize};

use super::Global;

/// Draw first-stage filters, and each unit's preferred stimulus and top frames.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate visualize outputs/run
  striate visualize outputs/run --stage 3 --units all --frames other-frames/
  striate visualize outputs/run --norm 1 --norm natural --evaluations 500
  striate visualize outputs/run --stage 3 --positive-only --optima 4
  striate visualize outputs/run --stage 3 --norm natural --parameters fourier --moves 2 --out outputs/faces   # shapes

Writes RUN/visualize: filters-encoder.png, a sheet stageN.png with a row for each unit, up to 512 (stimuli, then top frames),
a folder of pictures for each stage, and units.json. What an earlier call wrote there is replaced; after an interruption the same
command goes on with the stages that are left. Pictures made with --parameters, --moves, --total-variation or --pixel-box are easier to
look at but not what the unit prefers most: their metadata and captions say so.")]
pub struct VisualizeArgs {
    /// Run folder of `striate train`.
    run: PathBuf,
    /// Frames to look through for those that drive a unit most [default: those the run was trained on].
    #[arg(long)]
    frames: Option<PathBuf>,
    /// Only this stage, from 1. May be repeated.
    #[arg(long = "stage", value_name = "N")]
    stages: Vec<usize>,
    /// Units of each stage, evenly spread over all, or `all`; the best of each `striate evaluate` of this run come on top.
    #[arg(long, default_value = "64", value_parser = unit_count)]
    units: usize,
    /// Value of a unit: filtered (a), pooled (h) or normalised (y).
    #[arg(long, value_enum, default_value = "y")]
    kind: Kind,
    /// Norm of the stimuli: a number (1 is the paper's) or `natural`, the mean norm of the frames. May be repeated.
    #[arg(long = "norm", default_values = ["1", "natural"], value_name = "NORM")]
    norms: Vec<Norm>,
    /// Do not look for what drives each unit to its lowest value, too: half the time.
    #[arg(long)]
    positive_only: bool,
    /// How a search climbs; `fixed-steps` is the plain reference.
    #[arg(long, value_enum, default_value = "lbfgs")]
    method: Method,
    /// Most evaluations of one search; most end before, as there is nothing left to climb.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    evaluations: u32,
    /// Searches from different noise for each unit; the best of all is kept.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    restarts: u16,
    /// Searches from the frames, scaled to the stimulus's norm, that drive the unit most.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=32))]
    from_frames: u16,
    /// Different stimuli of each unit: each after the first is kept away from those before it.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=32))]
    optima: u16,
    /// How far: charged, as a share of the unit's value, for the squared cosine to each stimulus found before.
    #[arg(long, default_value_t = 0.5, value_parser = not_negative)]
    repulsion: f32,
    /// What a search moves: the network's input (plain), pixels, or their frequencies in proportion to natural pictures.
    #[arg(long, value_enum, default_value_t, help_heading = "Enhanced views")]
    parameters: Parameters,
    /// Charge for differences of neighbouring pixels, as a share of the unit's value for one contrast; needs pixels or fourier.
    #[arg(long, default_value_t = 0.0, value_parser = not_negative, value_name = "WEIGHT", help_heading = "Enhanced views")]
    total_variation: f32,
    /// Charge for pixels further than this many contrasts from the mean; 0 for none; needs pixels or fourier.
    #[arg(long, default_value_t = 0.0, value_parser = not_negative, value_name = "CONTRASTS", help_heading = "Enhanced views")]
    pixel_box: f32,
    /// Look for the largest mean value while what the unit sees is moved by up to so many pixels each way; 0 for the value itself.
    /// 2 takes 25 times as long, and shows shapes instead of single pixels.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=8), help_heading = "Enhanced views", value_name = "PIXELS")]
    moves: u8,
    /// Frames shown for each unit.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    top: u16,
    /// Frames that drive a unit most whose mean is shown; 0 for none.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(0..=1000), value_name = "N")]
    mean: u16,
    /// Folder for the pictures; the report shows those in RUN/visualize [default: RUN/visualize].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Threads. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

pub(super) fn unit_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        _ if text == "all" => Ok(0),
        Ok(count) if count > 0 => Ok(count),
        _ => Err("expected a number above 0, or `all`".into()),
    }
}

fn not_negative(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err("expected a number from 0".into()),
    }
}

/// Units that `evaluate` found best at something, if it was run: nobody wants to look for them among others.
fn best_detectors(run: &Path, kind: Kind, global: &Global) -> Vec<UnitName> {
    let evaluated: Vec<Evaluated> = read_all(&run.join("evaluate"), "evaluate").unwrap_or_else(|e| {
        global.warn(&[format!("its best units are left out: {e}")]);
        Vec::new()
    });
    // Filtered units are at other places than pooled ones.
    let is_placed_alike = |group: &Best| (group.group.kind == Kind::A) == (kind == Kind::A);
    let groups = evaluated.iter().flat_map(|evaluated| &evaluated.evaluation.groups);
    let best = groups.filter(|group| is_placed_alike(group)).flat_map(|group| &group.best);
    let mut names: Vec<UnitName> = best.map(|best| best.unit.probe.name()).collect();
    names.sort();
    names.dedup();
    names
}

pub fn run(args: VisualizeArgs, global: Global) -> anyhow::Result<()> {
    global.use_threads(args.threads)?;
    let checkpoint = checkpoint::load_latest(&args.run, false)?;
    let choice = Choice {
        units: args.units,
        also: best_detectors(&args.run, args.kind, &global),
        stages: args.stages,
        kind: args.kind,
        norms: args.norms,
        signs: if args.positive_only { vec![Sign::Positive] } else { vec![Sign::Positive, Sign::Negative] },
        method: args.method,
        evaluations: args.evaluations as usize,
        view: View {
            parameters: args.parameters,
            total_variation: args.total_variation,
            pixel_box: args.pixel_box,
            moves: args.moves.into(),
        },
        restarts: args.restarts.into(),
        from_frames: args.from_frames.into(),
        optima: args.optima.into(),
        repulsion: args.repulsion,
        top: args.top.into(),
        mean: args.mean.into(),
        seed: global.seed,
    };
    choice.check(checkpoint.network.stages.len())?;
    let frames = super::frames_of(&args.run, args.frames)?;
    let dataset = global.pictures(&FrameStore::open(&frames)?, &args.run, &checkpoint.config)?;
    let (bar, progress) = global.parts("visualize");
    let out = args.out.unwrap_or_else(|| args.run.join("visualize"));
    if out.join("units.json").exists() {
        say!("note: {} will be replaced when the new pictures are complete", out.display());
    }
    let identity = checkpoint::identity(&checkpoint::latest_of(&args.run)?)?;
    let gallery = visualize(&checkpoint, &identity, &dataset, &frames, &choice, &out, &progress);
    bar.finish();
    if gallery.is_err() {
        // What is half written would only fill the disk; the error that matters is the first.
        let _ = std::fs::remove_dir_all(out.with_extension("partial"));
    }
    global.print(&Pictures { gallery: gallery?, out: &out })
}

/// What was made, and where the pictures are.
#[derive(Serialize)]
#[serde(transparent)]
struct Pictures<'a> {
    gallery: Gallery,
    #[serde(skip)]
    out: &'a Path,
}

impl fmt::Display for Pictures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Pictures { gallery, out } = self;
        writeln!(f, "{gallery}")?;
        for stage in 1..=gallery.stage_units.len() {
            if gallery.units.iter().any(|unit| unit.stage == stage) {
                writeln!(f, "{}", out.join(format!("stage{stage}.png")).display())?;
            }
        }
        write!(f, "{}  (kind {})", out.join("filters-encoder.png").display(), gallery.choice.kind)
    }
}
