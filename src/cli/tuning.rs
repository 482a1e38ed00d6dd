//! `striate tuning`: orientation, spatial frequency, phase and position that the units of a run prefer.

use std::path::PathBuf;

use striate::analysis::tuning::gratings::Density;
use striate::geometry::Kind;
use striate::network::checkpoint;
use striate::report::tuning::{Choice, tuning};

use super::Global;
use super::visualize::unit_count;

/// Measure what units are tuned to, with gratings and bars as Hubel and Wiesel did, and where they look.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate tuning outputs/run
  striate tuning outputs/run --stage 1 --kind a --units 200
  striate tuning outputs/run --orientations 24 --phases 16 --out tuning/

Writes RUN/tuning: stageN-KIND.json with every unit (preferred orientation, frequency, phase and position, widths, F1/F0,
how well curves fit), stageN-KIND.svg with curves and histograms, and stageN-KIND-fields.png with the receptive fields of
the strongest units, each also in a file of its own. Files of other stages and kinds stay; a stage that was measured in the same way
from the same checkpoint is not measured again.")]
pub struct TuningArgs {
    /// Run folder of `striate train`.
    run: PathBuf,
    /// Only this stage, from 1. May be repeated.
    #[arg(long = "stage", value_name = "N")]
    stages: Vec<usize>,
    /// Value of a unit: filtered (a: simple), pooled (h: complex) or normalised (y).
    #[arg(long, value_enum, default_value = "h")]
    kind: Kind,
    /// Units of each stage, evenly spread over all, or `all`.
    #[arg(long, default_value = "all", value_parser = unit_count)]
    units: usize,
    /// Orientations over 180 degrees.
    #[arg(long, default_value_t = 12, value_name = "N")]
    orientations: usize,
    /// Spatial frequencies, in equal octaves from one cycle per picture to 0.35 cycles per pixel.
    #[arg(long, default_value_t = 8, value_name = "N")]
    frequencies: usize,
    /// Phases of each grating; few make F0 of a linear unit too small: 8 by up to 5 %, 12 by 2 %.
    #[arg(long, default_value_t = 12, value_name = "N")]
    phases: usize,
    /// Positions of the white and the black bar.
    #[arg(long, default_value_t = 32, value_name = "N")]
    positions: usize,
    /// Receptive fields that are mapped, those of the strongest units of each stage.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=1024))]
    fields: u16,
    /// Pictures of noise that make the spike-triggered average of linear units.
    #[arg(long, default_value_t = 4096, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    noise: u32,
    /// Folder for the results [default: RUN/tuning].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Threads. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

pub fn run(args: TuningArgs, global: Global) -> anyhow::Result<()> {
    global.use_threads(args.threads)?;
    let checkpoint = checkpoint::load_latest(&args.run, false)?;
    let choice = Choice {
        stages: args.stages,
        kind: args.kind,
        units: args.units,
        density: Density {
            orientations: args.orientations,
            frequencies: args.frequencies,
            phases: args.phases,
            positions: args.positions,
        },
        fields: args.fields.into(),
        noise: args.noise as usize,
        seed: global.seed,
    };
    let out = args.out.unwrap_or_else(|| args.run.join("tuning"));
    let (bar, progress) = global.parts("tuning");
    let identity = checkpoint::identity(&checkpoint::latest_of(&args.run)?)?;
    let made = tuning(&checkpoint, &identity, &choice, &out, &progress);
    bar.finish();
    global.print(&made?)
}
