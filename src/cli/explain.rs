//! `striate explain`: why did a unit answer as it did?

use std::io::IsTerminal;
use std::path::PathBuf;

use striate::analysis::UnitName;
use striate::analysis::explain::{Baseline, Settings};
use striate::analysis::look::Viewer;
use striate::error::Error;
use striate::frames::FrameStore;
use striate::report::detectors::{Evaluated, read_all};
use striate::report::explanation::explain;

use super::Global;
use super::view::ViewArgs;

/// Explain a unit's answer to a picture: where in it, through which units below, and which frames are most like it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate explain outputs/run face.jpg --unit 3:17:0:0
  striate explain outputs/run face.jpg --detector faces   # the best unit that `striate evaluate --concept faces` found
  striate explain outputs/run face.jpg                    # the units that it drives most unusually
  striate explain outputs/run face.jpg --unit 3:17:0:0 --occlude 8 --show

Where: gradient x input, integrated gradients from the mean frame (they must add up to the answer: the gap is told), and occlusion.
Through which units: integrated gradients along the outputs of each stage below. Sanity: the same with random weights in place of
some stages; what an explanation says must depend on what was learned, so correlations should be far below 1.
Writes RUN/explain/IMAGE: explanation.json, a picture for each unit, and frames.png, the picture and the frames most like it.")]
pub struct ExplainArgs {
    #[command(flatten)]
    view: ViewArgs,
    /// The picture; it is cut, resized and greyed as the run's frames were.
    image: PathBuf,
    /// Unit as stage:map:row:col. May be repeated [default: those of the stage that answer most unusually].
    #[arg(long = "unit", value_name = "UNIT")]
    named: Vec<UnitName>,
    /// The best unit of RUN/evaluate/NAME.json by this kind of value, see `striate evaluate --concept NAME`. May be repeated.
    #[arg(long = "detector", value_name = "NAME")]
    detectors: Vec<String>,
    /// Units that are explained if none is named.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    units: u16,
    /// What the answer is compared with: the mean frame (zero, after preprocessing), or a grey picture.
    #[arg(long, value_enum, default_value_t)]
    baseline: Baseline,
    /// Side of the square that hides a part of the picture, in pixels [default: a fifth of the shorter side].
    #[arg(long, value_name = "PIXELS")]
    occlude: Option<usize>,
    /// Do without the comparison with random weights.
    #[arg(long)]
    no_sanity: bool,
    /// Show the pictures in the terminal, too.
    #[arg(long)]
    show: bool,
}

pub fn run(args: ExplainArgs, global: Global) -> anyhow::Result<()> {
    if args.show && !std::io::stdout().is_terminal() {
        anyhow::bail!("--show: the output is no terminal; the pictures lie in RUN/explain");
    }
    let settings = Settings {
        baseline: args.baseline,
        occlude_px: args.occlude,
        sanity: !args.no_sanity,
        seed: global.seed,
    };
    let store = FrameStore::open(&args.image)?;
    if store.len() != 1 {
        return Err(Error::bad_file(
            &args.image,
            format!("{} pictures, one is explained at a time", store.len()),
        )
        .into());
    }
    let picture = store.picture(0)?;
    let view = args.view.load_if(&global, |network, kind| {
        Ok(args.named.iter().try_for_each(|unit| unit.check(network, kind))?)
    })?;
    let evaluated: Vec<Evaluated> = read_all(&args.view.run.join("evaluate"), "evaluate")?;
    let mut named = args.named;
    for detector in &args.detectors {
        named.push(super::best_of(&evaluated, detector, (&view.identity, view.group.1))?);
    }
    let (bar, progress) = global.parts("explain");
    let viewer = Viewer::new(view.checkpoint, view.dataset, view.group, &progress)?;
    let out = args.view.run.join("explain");
    let (asked, how) = ((&named[..], args.units.into()), (settings, view.identity.as_str()));
    let explained = explain(&viewer, (&args.image, &picture), asked, how, &evaluated, &out, &progress);
    bar.finish_and_clear();
    let explained = explained?;
    if args.show {
        let config = viuer::Config { absolute_offset: false, ..Default::default() };
        for told in &explained.units {
            viuer::print(&image::open(explained.folder.join(&told.picture))?, &config)?;
        }
    }
    global.print(&explained)
}
