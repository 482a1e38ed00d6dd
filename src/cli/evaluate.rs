//! `striate evaluate`: which units of a run tell faces, or anything else, from what is none?

use std::collections::HashMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use striate::analysis;
use striate::analysis::detector::Scores;
use striate::analysis::evaluate::{BestUnit, Evaluation, Group, Part, Parts, Settings, UnitScores, evaluate};
use striate::analysis::responses::{Probe, Responses, Shown};
use striate::analysis::truth::{Dependence, Fifth, dependence};
use striate::dataset::available_memory;
use striate::error::Error;
use striate::files;
use striate::geometry::Kind;
use striate::network::checkpoint::{self, Checkpoint};
use striate::report::detectors::Evaluated;
use striate::report::figure;

use super::Global;
use super::labelled::LabelledArgs;

/// Test every unit as a detector: how well does "value > threshold" tell positive pictures from negative ones?
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate evaluate outputs/run --positives faces.tar --negatives distractors.tar --concept faces
  striate evaluate outputs/run --positives 'faces.tar::faces/film_colour/*' --negatives 'distractors.tar::*cifar10_*' \\
    --negatives 'cats.tar::cats/cifar10/*' --share 0.352
  striate evaluate outputs/run --labels videos/labels.jsonl --pictures outputs/frames --concept face

Pictures are cut, resized, greyed and preprocessed as the run's frames were. For each unit: the paper's rule (the best of 20 equally
spaced thresholds from the least value to the greatest), also with its sign turned; the best of all thresholds; the area under
the ROC curve; average precision; accuracy with the threshold chosen on one half and tested on the other. For the best of
all units: unit and threshold chosen on one half and tested on the other, intervals by bootstrap, and how good the best would
be if labels were shuffled. Writes RUN/evaluate/NAME.json and a histogram of the best unit, NAME.svg.")]
pub struct EvaluateArgs {
    /// Run folder of `striate train`.
    run: PathBuf,
    #[command(flatten)]
    labelled: LabelledArgs,
    /// Only this stage, from 1. May be repeated.
    #[arg(long = "stage", value_name = "N")]
    stages: Vec<usize>,
    /// Value of a unit: filtered (a), pooled (h) or normalised (y). May be repeated [default: y, and h of the top stage].
    #[arg(long = "kind", value_enum)]
    kinds: Vec<Kind>,
    /// Times that labels are shuffled, to see how good the best unit is by chance; 0 for not at all.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    permutations: u32,
    /// Times that pictures are drawn anew for confidence intervals; 0 for none.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    bootstraps: u32,
    /// Also write the values of all units and the labels as safetensors: `values` [unit, picture], `labels` [picture].
    #[arg(long, value_name = "FILE")]
    values: Option<PathBuf>,
    /// Threads. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

pub fn run(args: EvaluateArgs, global: Global) -> anyhow::Result<()> {
    global.use_threads(args.threads)?;
    let checkpoint = checkpoint::load_latest(&args.run, false)?;
    let network = &checkpoint.network;
    let groups = groups(&args, network.stages.len())?;
    let labelled = args.labelled.load(&args.run, &checkpoint, &global)?;
    let inputs = labelled.inputs(&checkpoint.whitening);
    let (shown, labels) = (labelled.shown(&inputs), &labelled.positive);
    let settings = Settings {
        permutations: args.permutations as usize,
        bootstraps: args.bootstraps as usize,
        seed: global.seed,
        memory: args.labelled.memory.map_or(available_memory() / 4, |mb| mb * 1_000_000),
    };
    let folder = args.run.join("evaluate");
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "create"))?;
    let [positive_sets, negative_sets] = args.labelled.sources();
    let identity = checkpoint::identity(&checkpoint::latest_of(&args.run)?)?;
    let made = json!({
        "checkpoint": identity, "settings": settings, "groups": groups,
        "positive_sets": positive_sets, "negative_sets": negative_sets, "share_asked": args.labelled.share,
        "positives": labelled.positives(), "pictures": labelled.fingerprint(),
    });
    let mut parts = PartFile::open(folder.join(format!("{}.parts.jsonl", args.labelled.concept)), &made)?;
    if !parts.kept.is_empty() && !global.quiet {
        say!("note: goes on after {} parts that were tested before", parts.kept.len());
    }
    let (bar, progress) = global.parts("evaluate");
    let evaluation = evaluate(network, &shown, labels, &groups, settings, &progress, &mut parts)?;
    bar.finish();
    if let Some(path) = &args.values {
        write_values(path, &evaluation, &checkpoint, &shown, labels)?;
    }
    let concept = &args.labelled.concept;
    let mut result = Evaluated {
        concept: concept.clone(),
        checkpoint: identity,
        positive_sets,
        negative_sets,
        share_asked: args.labelled.share,
        truth: None,
        evaluation,
    };
    if let Some(truths) = &labelled.truths {
        let best = result.best().unit;
        let (positives, mut values) = (&shown[..1], Vec::new());
        Responses::new(network, positives, &[best.probe], |_| ()).of(0, &mut values);
        result.truth = Some(dependence(truths, &values, best.scores.paper.threshold));
    }
    files::replace(&folder.join(format!("{}.svg", concept)), histogram(concept, result.best()))?;
    let json = serde_json::to_vec(&result).expect("plain data");
    files::replace(&folder.join(format!("{}.json", concept)), json)?;
    parts.remove();
    global.print(&Shortened { result, folder })
}

/// `NAME.parts.jsonl`: what was tested from what, and the parts that are done, a line each.
struct PartFile {
    path: PathBuf,
    kept: HashMap<Range<usize>, Part>,
}

impl PartFile {
    /// Takes over the parts of an earlier call that was made from the same; else begins the file anew.
    fn open(path: PathBuf, made: &Value) -> anyhow::Result<PartFile> {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut lines = text.lines();
        let is_same = lines.next().and_then(|line| serde_json::from_str(line).ok()).as_ref() == Some(made);
        // A line that was being written when it was interrupted is none.
        let kept: HashMap<_, _> =
            lines.filter(|_| is_same).map_while(|line| serde_json::from_str(line).ok()).collect();
        let mut lines = vec![made.to_string()];
        lines.extend(kept.iter().map(|part| serde_json::to_string(&part).expect("plain data")));
        files::replace(&path, lines.join("\n") + "\n")?;
        Ok(PartFile { path, kept })
    }

    /// Removes it when its parts are in the result.
    fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Parts for PartFile {
    fn get(&mut self, units: &Range<usize>) -> Option<Part> {
        self.kept.remove(units)
    }

    fn put(&mut self, units: Range<usize>, part: &Part) -> striate::Result<()> {
        let line = serde_json::to_string(&(units, part)).expect("plain data") + "\n";
        let append = || OpenOptions::new().append(true).open(&self.path)?.write_all(line.as_bytes());
        append().map_err(Error::io(&self.path, "write"))
    }
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

fn histogram(concept: &str, best: &BestUnit) -> String {
    let Scores { min, max, paper, .. } = best.unit.scores;
    let title = format!(
        "{concept}: unit {} ({}), {:.1} % right above {:.3}",
        best.unit.probe.name(),
        best.unit.probe.kind,
        100.0 * paper.accuracy,
        paper.threshold
    );
    let [positives, negatives] = &best.unit.histogram;
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
            "", "units", "best", "%", "95 %", "held out", "AUC", "AP", "half %", "by chance (95 %)", "p"
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
                unit.unit.probe.name().to_string(),
                100.0 * scores.paper.accuracy,
                100.0 * best.held_out,
                scores.auc,
                scores.average_precision,
                100.0 * held_out,
            )?;
        }
        writeln!(
            f,
            "\nbest: stage:map:row:column of the best unit by the paper's rule. held out: unit and threshold chosen on one half, tested on"
        )?;
        writeln!(
            f,
            "the other. half: only the threshold so. by chance: the best of as many units if labels are shuffled."
        )?;
        let best = self.result.best().unit;
        if let Some(truth) = &self.result.truth {
            writeln!(
                f,
                "\nhow the answer of {} ({}) depends on what is known of the {positives}:",
                best.probe.name(),
                best.probe.kind
            )?;
            writeln!(f, "{:<26}{:>6}   in fifths: from ... to ..., % of them told", "", "rank r")?;
            for Dependence { of, correlation, parts } in truth {
                let number = figure::significant;
                let part = |part: &Fifth| {
                    format!(
                        "{} {} {:.0} %",
                        number(part.range[0]),
                        number(part.range[1]),
                        100.0 * part.detected
                    )
                };
                let parts: Vec<String> = parts.iter().map(part).collect();
                writeln!(f, "{of:<26}{correlation:>6.2}   {}", parts.join("; "))?;
            }
        }
        writeln!(
            f,
            "unit {} ({}) says \"yes\" above {}; why, for a picture: striate explain {} PICTURE --detector {concept}{}",
            best.probe.name(),
            best.probe.kind,
            figure::significant(best.scores.paper.threshold),
            self.folder.parent().unwrap_or(&self.folder).display(),
            if best.probe.kind == Kind::Y { String::new() } else { format!(" --kind {}", best.probe.kind) },
        )?;
        write!(f, "{}", self.folder.join(format!("{concept}.json")).display())
    }
}
