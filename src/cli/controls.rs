//! `striate controls`: what do other detectors come to on the same pictures?

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use serde::Serialize;

use striate::analysis::Progress;
use striate::analysis::controls::{Comparison, Control, Row, Settings, hash_of};
use striate::dataset::available_memory;
use striate::error::Error;
use striate::files;
use striate::geometry::Kind;
use striate::network::checkpoint;
use striate::report::detectors::{Made, Table};
use striate::training::State;

use super::Global;
use super::labelled::{LabelledArgs, Source};
use super::train::on_signals;

/// Make the paper's tables: the best top unit beside linear filters, k-means, autoencoders, other networks.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate controls outputs/run --positives faces.tar --negatives distractors.tar --concept faces
  striate controls outputs/run --positives faces/ --negatives others/ --concept faces --share 0.352 \\
    --concept-frames 'origin.csv::*,face,*'
  striate controls outputs/run --positives faces/ --negatives others/ --control linear-filters --filters 10000

Each line is the best of some detectors by the paper's rule, on the same pictures: see `striate evaluate`. Networks and autoencoders
that are trained for it lie in RUN/controls; the table is RUN/controls/NAME.json, written after every line. Ctrl-C saves
and exits with code 130; the same command goes on from there, and lines that are done are not made again.")]
pub struct ControlsArgs {
    /// Run folder of `striate train`.
    run: PathBuf,
    #[command(flatten)]
    labelled: LabelledArgs,
    /// Only this line of the table. May be repeated [default: all].
    #[arg(long = "control", value_enum, value_name = "NAME")]
    controls: Vec<Control>,
    /// Which training frames show the thing, for `without-concept`: a file that begins each line with a frame's key, up to a comma
    /// if there is one; FILE::PATTERN for the lines that match.
    #[arg(long, value_name = "FILE[::PATTERN]")]
    concept_frames: Option<Source>,
    /// Frames the run was trained on, if they are no longer where they were.
    #[arg(long)]
    frames: Option<PathBuf>,
    /// Frames, and as many pieces of frames, that are tried as linear filters; the paper's number.
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    filters: u32,
    /// Networks with random weights.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    random_networks: u16,
    /// Value of a unit: pooled (h) or normalised (y). May be repeated [default: both, of which the better counts].
    #[arg(long = "kind", value_enum)]
    kinds: Vec<Kind>,
    /// Threads. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// The keys that a file names.
fn keys(source: &Source) -> anyhow::Result<HashSet<String>> {
    let Source { path, pattern } = source;
    let text = fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    let chosen = text.lines().filter(|line| pattern.as_ref().is_none_or(|pattern| pattern.matches(line)));
    let key = |line: &str| line.split(',').next().unwrap_or_default().trim().to_owned();
    let keys: HashSet<String> = chosen.map(key).filter(|key| !key.is_empty()).collect();
    if keys.is_empty() {
        let wanted =
            pattern.as_ref().map_or("no line has a key".into(), |p| format!("no line is like `{p}`"));
        return Err(Error::bad_file(path, wanted).into());
    }
    Ok(keys)
}

pub fn run(args: ControlsArgs, global: Global) -> anyhow::Result<ExitCode> {
    let threads = global.use_threads(args.threads)?;
    let checkpoint = checkpoint::load_latest(&args.run, false)?;
    let folder = checkpoint::latest_of(&args.run)?;
    let identity = checkpoint::identity(&folder)?;
    let state: State = checkpoint::read_state(&folder)?;
    let shows_concept = args.concept_frames.as_ref().map(keys).transpose()?;
    let controls = chosen(&args)?;
    let frames = super::frames_of(&args.run, args.frames)?;
    let labelled = args.labelled.load(&args.run, &checkpoint, &global)?;

    let (positives, all) = (labelled.positives(), labelled.positive.len());
    let [positive_sets, negative_sets] = args.labelled.sources();
    let settings = Settings {
        filters: args.filters as usize,
        random_networks: args.random_networks.into(),
        kinds: if args.kinds.is_empty() { vec![Kind::Y, Kind::H] } else { args.kinds },
        seed: global.seed,
    };
    let concept = args.labelled.concept.clone();
    let made = Made {
        concept: concept.clone(),
        checkpoint: identity.clone(),
        positive_sets,
        negative_sets,
        share_asked: args.labelled.share,
        positives,
        negatives: all - positives,
        pictures: labelled.fingerprint(),
        concept_frames: args.concept_frames.as_ref().map(Source::to_string),
        concept_keys: shows_concept.as_ref().map(hash_of),
        settings: settings.clone(),
    };
    let path = args.run.join("controls").join(format!("{concept}.json"));
    let mut table = begun(&path, made)?;
    let interrupted = on_signals()?;
    let comparison = Comparison {
        run: &args.run,
        checkpoint: &checkpoint,
        identity: &identity,
        state: &state,
        frames: &frames,
        shows_concept: shows_concept.as_ref(),
        labelled: &labelled,
        settings: &settings,
        memory: args.labelled.memory.map_or(available_memory() / 4, |mb| mb * 1_000_000),
        threads,
        interrupted: &interrupted,
    };
    for (number, &control) in controls.iter().enumerate() {
        if table.rows.iter().any(|row| row.control == control) {
            continue;
        }
        let (bar, progress) = global.parts("controls");
        let line = format!("line {} of {}, {}", number + 1, controls.len(), control.title());
        let on_begin = progress.on_begin;
        let on_begin = Box::new(move |what: &str, len| on_begin(&format!("{line}: {what}"), len));
        let progress = Progress { on_begin, ..progress };
        let row = comparison.row(control, &progress);
        bar.finish_and_clear();
        match row? {
            Some(row) => add(&mut table, row, &path)?,
            None => say!("interrupted and saved; the same command goes on"),
        }
        if interrupted.load(Ordering::Relaxed) != 0 {
            return Ok(ExitCode::from(128 + interrupted.load(Ordering::Relaxed) as u8));
        }
    }
    global.print(&Shown { table: &table, path: &path })?;
    Ok(ExitCode::SUCCESS)
}

/// The lines asked for, or all that can be made.
fn chosen(args: &ControlsArgs) -> anyhow::Result<Vec<Control>> {
    let possible = |control: &Control| *control != Control::WithoutConcept || args.concept_frames.is_some();
    let asked = |control: &Control| args.controls.contains(control);
    if asked(&Control::WithoutConcept) && args.concept_frames.is_none() {
        let (key, got) = ("--control".into(), "without-concept".into());
        let want = "others, or --concept-frames too, which says what frames to leave out".into();
        return Err(Error::Setting { key, got, want }.into());
    }
    let wanted =
        |control: &Control| if args.controls.is_empty() { possible(control) } else { asked(control) };
    Ok(Control::ALL.into_iter().filter(wanted).collect())
}

/// The table in the file, if it was made from the same; else a new one.
fn begun(path: &Path, made: Made) -> anyhow::Result<Table> {
    let text = match fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Table { made, rows: Vec::new() }),
        read => read.map_err(Error::io(path, "read"))?,
    };
    match serde_json::from_str::<Table>(&text) {
        Ok(table) if table.made == made => Ok(table),
        Ok(_) => {
            say!("note: {} is of another checkpoint, pictures or settings, and is made anew", path.display());
            Ok(Table { made, rows: Vec::new() })
        }
        Err(e) => Err(Error::bad_file(path, format!("not a table of controls: {e}")).into()),
    }
}

/// Adds a line and writes the table.
fn add(table: &mut Table, row: Row, path: &Path) -> anyhow::Result<()> {
    table.rows.push(row);
    let place = |row: &Row| Control::ALL.iter().position(|control| *control == row.control);
    table.rows.sort_by_key(place);
    let folder = path.parent().expect("a file in a folder");
    fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    Ok(files::replace(path, serde_json::to_vec(table).expect("plain data"))?)
}

/// The table, and where it is.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    table: &'a Table,
    #[serde(skip)]
    path: &'a Path,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Table { made, rows } = self.table;
        let Made { concept, positives, negatives, .. } = made;
        let share = 100.0 * *positives as f64 / (positives + negatives) as f64;
        writeln!(f, "{concept}: {positives} pictures, {negatives} others ({share:.1} % positive)\n")?;
        writeln!(f, "{:<39} {:>8} {:>6} {:>8} {:>6}  best", "best of", "", "%", "held out", "AUC")?;
        for row in rows {
            let auc = row.scores.map_or(String::new(), |scores| format!("{:.3}", scores.auc));
            let title = row.control.title();
            let (count, percent, held_out) = (row.detectors, 100.0 * row.accuracy, 100.0 * row.held_out);
            let mut more: Vec<String> = row.best.iter().chain(&row.note).cloned().collect();
            if !row.others.is_empty() {
                let others: Vec<String> =
                    row.others.iter().map(|other| format!("{:.1}", 100.0 * other)).collect();
                more.push(format!("other seeds {}", others.join(", ")));
            }
            writeln!(
                f,
                "{title:<39} {count:>8} {percent:>6.1} {held_out:>8.1} {auc:>6}  {}",
                more.join("; ")
            )?;
        }
        writeln!(
            f,
            "\n%: the paper's rule. held out: detector and threshold chosen on one half, tested on the other."
        )?;
        write!(f, "{}", self.path.display())
    }
}
