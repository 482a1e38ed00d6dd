//! `striate explain`: why did a unit answer as it did?

use std::fmt;
use std::io::IsTerminal;
use std::path::PathBuf;

use serde::Serialize;

use striate::analysis::UnitName;
use striate::analysis::explain::{Baseline, Completeness, Explainer, Explanation, HeatMap, Sanity, Settings};
use striate::analysis::invariance::shown;
use striate::analysis::look::Viewer;
use striate::analysis::responses::Probe;
use striate::error::Error;
use striate::files;
use striate::frames::FrameStore;
use striate::geometry::Kind;
use striate::network::checkpoint;
use striate::picture::{pixel_tile, png};
use striate::report::explanation::panel;
use striate::report::figure::significant;

use super::Global;

/// Explain a unit's answer to a picture: where in it, through which units below, and which frames are most like it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate explain outputs/run face.jpg --unit 3:17:0:0
  striate explain outputs/run face.jpg                    # the units that it drives most unusually
  striate explain outputs/run face.jpg --unit 3:17:0:0 --occlude 8 --show

Where: gradient x input, integrated gradients from the mean frame (they must add up to the answer: the gap is told), and occlusion.
Through which units: integrated gradients along the outputs of each stage below. Sanity: the same with random weights in place of
some stages; what an explanation says must depend on what was learned, so correlations should be far below 1.
Writes RUN/explain/IMAGE: explanation.json, and a picture for each unit.")]
pub struct ExplainArgs {
    /// Run folder of `striate train`.
    run: PathBuf,
    /// The picture; it is cut, resized and greyed as the run's frames were.
    image: PathBuf,
    /// Unit as stage:map:row:col. May be repeated [default: the top-stage units that answer most unusually].
    #[arg(long = "unit", value_name = "UNIT")]
    named: Vec<UnitName>,
    /// Units that are explained if none is named.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    units: u16,
    /// Value of a unit: filtered (a), pooled (h) or normalised (y).
    #[arg(long, value_enum, default_value = "y")]
    kind: Kind,
    /// What the answer is compared with: the mean frame (zero, after preprocessing), or a grey picture.
    #[arg(long, value_enum, default_value_t)]
    baseline: Baseline,
    /// Side of the square that hides a part of the picture, in pixels [default: a fifth of the shorter side].
    #[arg(long, value_name = "PIXELS")]
    occlude: Option<usize>,
    /// Do without the comparison with random weights.
    #[arg(long)]
    no_sanity: bool,
    /// Frames that say what is usual, and of which the most alike are named [default: those the run was trained on].
    #[arg(long)]
    frames: Option<PathBuf>,
    /// Show the pictures in the terminal, too.
    #[arg(long)]
    show: bool,
    /// Threads. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// Frames named that are most like the picture.
const NEIGHBOURS: usize = 8;

/// `explanation.json`.
#[derive(Serialize)]
struct Explained {
    image: PathBuf,
    /// See [`checkpoint::identity`].
    checkpoint: String,
    settings: Settings,
    explanations: Vec<Told>,
    /// The frames most like it by top-stage features.
    neighbours: Vec<Near>,
    #[serde(skip)]
    folder: PathBuf,
}

#[derive(Serialize)]
struct Told {
    #[serde(flatten)]
    explanation: Explanation,
    /// Deviations above the unit's mean over the frames.
    above: Option<f64>,
    /// Beside this file.
    picture: PathBuf,
}

#[derive(Serialize)]
struct Near {
    key: String,
    /// Cosine of the features.
    similarity: f32,
}

pub fn run(args: ExplainArgs, global: Global) -> anyhow::Result<()> {
    global.use_threads(args.threads)?;
    if args.show && !std::io::stdout().is_terminal() {
        anyhow::bail!("--show: the output is no terminal; the pictures lie in RUN/explain");
    }
    let checkpoint = checkpoint::load_latest(&args.run, false)?;
    args.named.iter().try_for_each(|unit| unit.check(&checkpoint.network, args.kind))?;
    let settings = Settings {
        baseline: args.baseline,
        occlude_px: args.occlude,
        sanity: !args.no_sanity,
        seed: global.seed,
    };
    let store = FrameStore::open(&args.image)?;
    if store.len() != 1 {
        return Err(Error::bad_file(&args.image, format!("{} pictures, one is explained at a time", store.len())).into());
    }
    let picture = store.picture(0)?;
    let pixels = shown(&picture, checkpoint.network.input, checkpoint.config.input.margin);
    let identity = checkpoint::identity(&checkpoint::latest_of(&args.run)?)?;
    let frames = super::frames_of(&args.run, args.frames)?;
    let dataset = global.pictures(&FrameStore::open(&frames)?, &args.run, &checkpoint.config)?;
    let (bar, progress) = global.parts("explain");
    let viewer = Viewer::new(checkpoint, dataset, args.kind, &progress)?;
    let explainer = Explainer::new(&viewer.checkpoint, settings)?;
    let top = viewer.checkpoint.network.stages.len() - 1;
    let look = viewer.look(&pixels, usize::MAX, NEIGHBOURS);
    let units = match &args.named[..] {
        [] => look.stages[top].iter().take(args.units.into()).map(|firing| firing.name).collect(),
        named => named.to_vec(),
    };

    let folder = args.run.join("explain").join(args.image.file_stem().unwrap_or_default());
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "create"))?;
    let shape = viewer.checkpoint.network.input;
    let under = pixel_tile(&pixels, shape.channels, shape.rows, shape.cols);
    progress.begin("units", units.len());
    let mut explanations = Vec::new();
    for name in units {
        let probe = Probe { stage: name.stage - 1, kind: args.kind, unit: name.unit };
        let explanation = explainer.explain(&pixels, probe)?;
        let firing = look.stages[probe.stage].iter().find(|firing| firing.name == name);
        let file = PathBuf::from(format!("unit-{}.png", name.to_string().replace(':', "-")));
        let drawn = panel(&under, &explanation);
        files::replace(&folder.join(&file), png(&drawn))?;
        if args.show {
            viuer::print(&drawn.into(), &viuer::Config { absolute_offset: false, ..Default::default() })?;
        }
        explanations.push(Told { explanation, above: firing.map(|firing| firing.above), picture: file });
        progress.add(1);
    }
    bar.finish_and_clear();
    let near = look.neighbours.iter();
    let neighbours = near
        .map(|answer| Near { key: viewer.frames.keys[answer.frame].clone(), similarity: answer.value })
        .collect();
    let explained = Explained { image: args.image, checkpoint: identity, settings, explanations, neighbours, folder };
    let json = serde_json::to_vec(&explained).expect("plain data");
    files::replace(&explained.folder.join("explanation.json"), json)?;
    global.print(&explained)
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for told in &self.explanations {
            let Explanation { probe, value, baseline_value, completeness, below, sanity, .. } = &told.explanation;
            let above = told.above.map_or(String::new(), |above| {
                format!(", {} deviations above its mean over the frames", significant(above))
            });
            writeln!(f, "unit {} ({}): {}{above}", probe.name(), probe.kind, significant(*value))?;
            let Completeness { sum, gap, evaluations, .. } = completeness;
            writeln!(
                f,
                "  integrated gradients: {} from {} at the baseline; they add up to {} (gap {:.2} %, {evaluations} evaluations)",
                significant(value - baseline_value),
                significant(*baseline_value),
                significant(*sum),
                100.0 * gap
            )?;
            writeln!(
                f,
                "  half of what raises it comes from {} by integrated gradients, from {} by occlusion",
                half(&told.explanation.integrated),
                half(&told.explanation.occlusion)
            )?;
            for through in below {
                let names = |parts: &[striate::analysis::explain::Part]| -> String {
                    let named = parts.iter().take(4).map(|part| format!("{} {}", part.name, significant(part.adds)));
                    named.collect::<Vec<_>>().join(", ")
                };
                writeln!(f, "  through stage {}: {}; against it {}", through.stage, names(&through.raise), names(&through.lower))?;
            }
            for Sanity { random_stages, correlation, correlation_of_sizes } in sanity {
                let stages: Vec<String> = random_stages.iter().map(usize::to_string).collect();
                writeln!(
                    f,
                    "  random weights in stage {}: rank correlation {correlation:.2}, of sizes {correlation_of_sizes:.2}",
                    stages.join(" and ")
                )?;
            }
            writeln!(f, "  {}", self.folder.join(&told.picture).display())?;
        }
        let near: Vec<String> =
            self.neighbours.iter().map(|near| format!("{} ({:.3})", near.key, near.similarity)).collect();
        writeln!(f, "frames most like it: {}", near.join(", "))?;
        write!(f, "{}", self.folder.join("explanation.json").display())
    }
}

/// How much of the picture holds half of what raises the value, and where its middle lies.
fn half(map: &HeatMap) -> String {
    let mut places: Vec<(usize, f32)> = map.values.iter().copied().enumerate().filter(|(_, v)| *v > 0.0).collect();
    places.sort_by(|a, b| b.1.total_cmp(&a.1));
    let all: f32 = places.iter().map(|(_, value)| value).sum();
    let (mut sum, mut count, mut row, mut col) = (0.0, 0, 0.0, 0.0);
    for (at, value) in places {
        if sum >= 0.5 * all {
            break;
        }
        sum += value;
        count += 1;
        row += value * (at / map.cols) as f32;
        col += value * (at % map.cols) as f32;
    }
    if count == 0 {
        return "nowhere".into();
    }
    let share = 100.0 * count as f64 / map.values.len() as f64;
    format!("{share:.0} % of the picture around row {:.0}, column {:.0}", row / sum, col / sum)
}
