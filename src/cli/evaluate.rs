//! `striate evaluate`: which units of a run tell faces, or anything else, from what is none?

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::bail;
use rand::seq::SliceRandom;
use serde::Serialize;

use striate::analysis;
use striate::analysis::detector::Scores;
use striate::analysis::evaluate::{BestUnit, Evaluation, Group, Settings, UnitScores, evaluate};
use striate::analysis::responses::{Probe, Responses, Shown};
use striate::dataset::{Dataset, available_memory};
use striate::error::Error;
use striate::files;
use striate::frames::FrameStore;
use striate::geometry::Kind;
use striate::network::checkpoint::{self, Checkpoint};
use striate::network::preprocess::Inputs;
use striate::report::figure;
use striate::rng;

use super::Global;

/// Test every unit as a detector: how well does "value > threshold" tell positive pictures from negative ones?
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate evaluate outputs/run --positives faces.tar --negatives distractors.tar --concept faces
  striate evaluate outputs/run --positives 'faces.tar::faces/film_colour/*' --negatives 'distractors.tar::*cifar10_*' \\
    --negatives 'cats.tar::cats/cifar10/*' --share 0.352

Pictures are cut, resized, greyed and preprocessed as the run's frames were. For each unit: the paper's rule (the best of 20 equally
spaced thresholds from the least value to the greatest), also with its sign turned; the best of all thresholds; the area under
the ROC curve; average precision; accuracy with the threshold chosen on one half and tested on the other. For the best of
all units: unit and threshold chosen on one half and tested on the other, intervals by bootstrap, and how good the best would
be if labels were shuffled. Writes RUN/evaluate/NAME.json and a histogram of the best unit, NAME.svg.")]
pub struct EvaluateArgs {
    /// Run folder of `striate train`.
    run: PathBuf,
    /// Pictures that show the thing: a folder, tar or frame set, or PATH::PATTERN for those of it whose key matches. May be repeated.
    #[arg(long, required = true, value_name = "PATH[::PATTERN]")]
    positives: Vec<Source>,
    /// Pictures that do not show it. May be repeated.
    #[arg(long, required = true, value_name = "PATH[::PATTERN]")]
    negatives: Vec<Source>,
    /// What the thing is called: the name of the result.
    #[arg(long, default_value = "concept", value_parser = name)]
    concept: String,
    /// Only this stage, from 1. May be repeated.
    #[arg(long = "stage", value_name = "N")]
    stages: Vec<usize>,
    /// Value of a unit: filtered (a), pooled (h) or normalised (y). May be repeated [default: y, and h of the top stage].
    #[arg(long = "kind", value_enum)]
    kinds: Vec<Kind>,
    /// Share of positives: pictures of the other class are left out, by chance, until it is met; the paper's is 0.352. Default: as
    /// given.
    #[arg(long, value_parser = share)]
    share: Option<f64>,
    /// Times that labels are shuffled, to see how good the best unit is by chance; 0 for not at all.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    permutations: u32,
    /// Times that pictures are drawn anew for confidence intervals; 0 for none.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    bootstraps: u32,
    /// Also write the values of all units and the labels as safetensors: `values` [unit, picture], `labels` [picture].
    #[arg(long, value_name = "FILE")]
    values: Option<PathBuf>,
    /// Most memory for values, in MB; with less, units are read in several passes [default: a quarter of what is free].
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    memory: Option<u64>,
    /// Threads. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// Pictures on the command line.
#[derive(Debug, Clone)]
struct Source {
    path: PathBuf,
    pattern: Option<glob::Pattern>,
}

impl FromStr for Source {
    type Err = String;
    fn from_str(text: &str) -> Result<Source, String> {
        let Some((path, pattern)) = text.split_once("::") else {
            return Ok(Source { path: text.into(), pattern: None });
        };
        let pattern = glob::Pattern::new(pattern).map_err(|e| format!("`{pattern}` is no pattern: {e}"))?;
        Ok(Source { path: path.into(), pattern: Some(pattern) })
    }
}

fn name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    match !text.is_empty() && text.chars().all(good) {
        true => Ok(text.into()),
        false => Err("expected letters, digits, - and _: it becomes the name of a file".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("expected a share between 0 and 1, such as 0.352".into()),
    }
}

/// The pictures of a source, decoded, and which of them are meant.
struct Set {
    dataset: Dataset,
    chosen: Vec<usize>,
}

fn load(source: &Source, run: &Path, checkpoint: &Checkpoint, global: &Global) -> anyhow::Result<Set> {
    let mut store = FrameStore::open(&source.path)?;
    if let Some(pattern) = &source.pattern {
        store = store.matching(&source.path, pattern)?;
    }
    let dataset = global.pictures(&store, run, &checkpoint.config)?;
    Ok(Set { chosen: (0..dataset.len()).collect(), dataset })
}

/// Leaves out pictures, by chance, so that `share` of all are positive.
fn meet_share(sets: &mut [Set], positives: usize, share: f64, seed: u64) {
    let count = |sets: &[Set]| sets.iter().map(|set| set.chosen.len()).sum::<usize>() as f64;
    let (positive, negative) = sets.split_at_mut(positives);
    let (have, others) = (count(positive), count(negative));
    let odds = share / (1.0 - share);
    let (sets, keep) = if have > others * odds { (positive, others * odds) } else { (negative, have / odds) };
    let all = sets.iter().enumerate();
    let mut places: Vec<(usize, usize)> =
        all.flat_map(|(number, set)| set.chosen.iter().map(move |&picture| (number, picture))).collect();
    places.shuffle(&mut rng::stream(seed, "share", 0));
    places.truncate(keep.round() as usize);
    places.sort_unstable();
    for (number, set) in sets.iter_mut().enumerate() {
        set.chosen = places.iter().filter(|place| place.0 == number).map(|place| place.1).collect();
    }
}

pub fn run(args: EvaluateArgs, global: Global) -> anyhow::Result<()> {
    global.use_threads(args.threads)?;
    let checkpoint = checkpoint::load_latest(&args.run, false)?;
    let network = &checkpoint.network;
    let groups = groups(&args, network.stages.len())?;
    let mut sets = Vec::new();
    for source in args.positives.iter().chain(&args.negatives) {
        sets.push(load(source, &args.run, &checkpoint, &global)?);
    }
    let of_positives = args.positives.len();
    if let Some(share) = args.share {
        meet_share(&mut sets, of_positives, share, global.seed);
    }
    let labels: Vec<bool> = (0..)
        .zip(&sets)
        .flat_map(|(number, set)| set.chosen.iter().map(move |_| number < of_positives))
        .collect();
    let positives = labels.iter().filter(|label| **label).count();
    for (what, count) in [("--positives", positives), ("--negatives", labels.len() - positives)] {
        if count < 2 {
            bail!("{what}: {count} pictures, at least 2 are needed, one for each half");
        }
    }

    let budget = (available_memory() / 4) as usize / sets.len();
    let inputs: Vec<Inputs> =
        sets.iter().map(|set| Inputs::new(&set.dataset, &checkpoint.whitening, budget)).collect();
    let shown: Vec<Shown> =
        inputs.iter().zip(&sets).map(|(inputs, set)| Shown { inputs, pictures: &set.chosen }).collect();
    let settings = Settings {
        permutations: args.permutations as usize,
        bootstraps: args.bootstraps as usize,
        seed: global.seed,
        memory: args.memory.map_or(available_memory() / 4, |mb| mb * 1_000_000),
    };
    let (bar, progress) = global.parts("evaluate");
    let evaluation = evaluate(network, &shown, &labels, &groups, settings, &progress);
    bar.finish();
    if let Some(path) = &args.values {
        write_values(path, &evaluation, &checkpoint, &shown, &labels)?;
    }
    let of = |sources: &[Source]| sources.iter().map(Source::to_string).collect();
    let result = Evaluated {
        concept: args.concept.clone(),
        checkpoint: checkpoint::latest_of(&args.run)?,
        positive_sets: of(&args.positives),
        negative_sets: of(&args.negatives),
        share_asked: args.share,
        evaluation,
    };
    let folder = args.run.join("evaluate");
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "create"))?;
    files::replace(&folder.join(format!("{}.svg", args.concept)), histogram(&args.concept, result.best()))?;
    let json = serde_json::to_vec(&result).expect("plain data");
    files::replace(&folder.join(format!("{}.json", args.concept)), json)?;
    global.print(&Shortened { result, folder })
}

/// The kinds of values asked for, of each stage.
fn groups(args: &EvaluateArgs, count: usize) -> anyhow::Result<Vec<Group>> {
    let mut groups = Vec::new();
    for stage in analysis::stages(&args.stages, count)? {
        let kinds = match &args.kinds[..] {
            [] if stage + 1 == count => &[Kind::Y, Kind::H],
            [] => &[Kind::Y][..],
            kinds => kinds,
        };
        groups.extend(kinds.iter().map(|&kind| Group { stage, kind }));
    }
    groups.dedup();
    Ok(groups)
}

fn write_values(
    path: &Path,
    evaluation: &Evaluation,
    checkpoint: &Checkpoint,
    shown: &[Shown],
    labels: &[bool],
) -> anyhow::Result<()> {
    let probes: Vec<Probe> = evaluation.units.iter().map(|unit| unit.probe).collect();
    // As they are read, and as they are written.
    let need_bytes = 2 * 4 * (probes.len() * labels.len()) as u64;
    let have_bytes = available_memory();
    if need_bytes > have_bytes {
        let what = format!("--values {} of {} units", path.display(), probes.len());
        return Err(Error::NoRoom { what, need_bytes, have_bytes }.into());
    }
    let responses = Responses::new(&checkpoint.network, shown, &probes, |_| ());
    let (mut of_unit, mut bytes) = (Vec::new(), Vec::new());
    for number in 0..probes.len() {
        responses.of(number, &mut of_unit);
        bytes.extend(of_unit.iter().flat_map(|value| value.to_le_bytes()));
    }
    let labels: Vec<u8> = labels.iter().map(|&label| label.into()).collect();
    let shape = vec![probes.len(), labels.len()];
    let values = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &bytes)?;
    let labels = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![labels.len()], &labels)?;
    let file = safetensors::serialize([("values", values), ("labels", labels)], None)?;
    Ok(files::replace(path, file)?)
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.pattern.as_ref().map_or(Ok(()), |pattern| write!(f, "::{pattern}"))
    }
}

/// `RUN/evaluate/NAME.json`.
#[derive(Serialize)]
struct Evaluated {
    concept: String,
    checkpoint: PathBuf,
    positive_sets: Vec<String>,
    negative_sets: Vec<String>,
    share_asked: Option<f64>,
    #[serde(flatten)]
    evaluation: Evaluation,
}

impl Evaluated {
    /// The best unit of all.
    fn best(&self) -> &BestUnit {
        let accuracy = |unit: &BestUnit| unit.unit.scores.paper.accuracy;
        let of_groups = self.evaluation.groups.iter().map(|group| &group.best[0]);
        of_groups.reduce(|a, b| if accuracy(b) > accuracy(a) { b } else { a }).expect("a group")
    }
}

/// What stdout gets: all but the list of every unit.
struct Shortened {
    result: Evaluated,
    folder: PathBuf,
}

impl Serialize for Shortened {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut value = serde_json::to_value(&self.result).map_err(serde::ser::Error::custom)?;
        value.as_object_mut().expect("an object").remove("units");
        value.serialize(serializer)
    }
}

fn label(unit: &UnitScores) -> String {
    let Probe { stage, unit, .. } = &unit.probe;
    format!("{}:{}:{}:{}", stage + 1, unit.map, unit.row, unit.col)
}

fn histogram(concept: &str, best: &BestUnit) -> String {
    let Scores { min, max, paper, .. } = best.unit.scores;
    let title = format!(
        "{concept}: unit {} ({}), {:.1} % right above {:.3}",
        label(&best.unit),
        best.unit.probe.kind,
        100.0 * paper.accuracy,
        paper.threshold
    );
    let [positives, negatives] = &best.histogram;
    let bars = [(concept, &positives[..]), ("others", &negatives[..])];
    figure::histograms(&title, "value of the unit", (min.into(), max.into()), &bars, paper.threshold)
}

impl fmt::Display for Shortened {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Evaluated { concept, evaluation, .. } = &self.result;
        let Evaluation { positives, negatives, always_no, groups, .. } = evaluation;
        let share = 100.0 * *positives as f64 / (positives + negatives) as f64;
        writeln!(f, "{concept}: {positives} pictures, {negatives} others ({share:.1} % positive)")?;
        writeln!(f, "always \"no\": {:.1} % right", 100.0 * always_no)?;
        writeln!(
            f,
            "\n{:<9} {:>6} {:<14} {:>6} {:>14} {:>8} {:>6} {:>6} {:>8} {:>16} {:>7}",
            "", "units", "best", "%", "95 %", "held out", "AUC", "AP", "honest %", "by chance (95 %)", "p"
        )?;
        for best in groups {
            let unit = &best.best[0];
            let UnitScores { scores, held_out, .. } = &unit.unit;
            let interval = unit
                .accuracy_interval
                .map_or(String::new(), |[low, high]| format!("{:.1} to {:.1}", 100.0 * low, 100.0 * high));
            let (chance, p) = best.chance.map_or(Default::default(), |chance| {
                let rates = format!("{:.1} ({:.1})", 100.0 * chance.mean, 100.0 * chance.percentile_95);
                (rates, format!("{:.3}", chance.p_value))
            });
            writeln!(
                f,
                "stage {} {} {:>6} {:<14} {:>6.1} {interval:>14} {:>8.1} {:>6.3} {:>6.3} {:>8.1} {chance:>16} {p:>7}",
                best.group.stage + 1,
                best.group.kind,
                best.units,
                label(&unit.unit),
                100.0 * scores.paper.accuracy,
                100.0 * held_out,
                scores.auc,
                scores.average_precision,
                100.0 * best.held_out,
            )?;
        }
        writeln!(
            f,
            "\nbest: stage:map:row:column of the best unit by the paper's rule. held out: its threshold chosen on one half, tested on"
        )?;
        writeln!(
            f,
            "the other. honest: so for the choice of the unit, too. by chance: the best of as many units if labels are shuffled."
        )?;
        write!(f, "{}", self.folder.join(format!("{concept}.json")).display())
    }
}
