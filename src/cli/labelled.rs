//! Pictures on the command line that show something, and others that do not.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::bail;
use clap::ValueEnum;
use rand::seq::SliceRandom;

use striate::analysis::responses::Labelled;
use striate::dataset::Dataset;
use striate::error::Error;
use striate::frames::FrameStore;
use striate::frames::labels::{Labels, Shown};
use striate::network::checkpoint::Checkpoint;
use striate::rng;
use striate::video::synth::Kind;

use super::Global;

/// What units are tested on.
#[derive(clap::Args)]
pub struct LabelledArgs {
    /// Pictures that show the thing: a folder, tar or frame set, or PATH::PATTERN for those of it whose key matches. May be repeated.
    #[arg(long, required_unless_present = "labels", value_name = "PATH[::PATTERN]")]
    positives: Vec<Source>,
    /// Pictures that do not show it. May be repeated.
    #[arg(long, required_unless_present = "labels", value_name = "PATH[::PATTERN]")]
    negatives: Vec<Source>,
    /// Instead: `labels.jsonl` of `striate synth`. Of --pictures, frames of these videos, those are positive that show what
    /// --concept says (face, cat or body), those negative that show none; those that show too little of one are left out.
    #[arg(long, value_name = "FILE", requires = "pictures", conflicts_with_all = ["positives", "negatives"])]
    labels: Option<PathBuf>,
    /// Frame set of the videos that --labels is about.
    #[arg(long, value_name = "PATH", requires = "labels")]
    pictures: Option<PathBuf>,
    /// What the thing is called: the name of the result.
    #[arg(long, default_value = "concept", value_parser = name)]
    pub concept: String,
    /// Share of positives: pictures of the other class are left out, by chance, until it is met; the paper's is 0.352. Default: as
    /// given.
    #[arg(long, value_parser = share)]
    pub share: Option<f64>,
    /// Most memory for values, in MB; with less, units are read in several passes [default: a quarter of what is free].
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    pub memory: Option<u64>,
}

/// A path, and a pattern of keys.
#[derive(Debug, Clone)]
pub struct Source {
    pub path: PathBuf,
    pub pattern: Option<glob::Pattern>,
}

impl Source {
    /// The pictures whose keys match.
    pub fn open(&self) -> anyhow::Result<FrameStore> {
        let store = FrameStore::open(&self.path)?;
        match &self.pattern {
            Some(pattern) => Ok(store.matching(&self.path, pattern)?),
            None => Ok(store),
        }
    }
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

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.pattern.as_ref().map_or(Ok(()), |pattern| write!(f, "::{pattern}"))
    }
}

pub fn name(text: &str) -> Result<String, String> {
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

impl LabelledArgs {
    /// Decodes the pictures as the run's network takes them, and chooses those that meet the share.
    pub fn load(&self, run: &Path, checkpoint: &Checkpoint, global: &Global) -> anyhow::Result<Labelled> {
        if let Some((labels, pictures)) = self.labels.as_ref().zip(self.pictures.as_ref()) {
            return self.load_drawn(labels, pictures, (run, checkpoint), global);
        }
        let mut sets = Vec::new();
        for source in self.positives.iter().chain(&self.negatives) {
            let store = source.open()?;
            let dataset = global.pictures(&store, run, &checkpoint.config)?;
            let all = (0..dataset.len()).collect();
            sets.push((dataset, all));
        }
        self.chosen(sets, self.positives.len(), global)
    }

    /// The same of frames of drawn videos.
    fn load_drawn(
        &self,
        labels: &Path,
        pictures: &Path,
        (run, checkpoint): (&Path, &Checkpoint),
        global: &Global,
    ) -> anyhow::Result<Labelled> {
        let Ok(kind) = <Kind as ValueEnum>::from_str(&self.concept, false) else {
            let (key, got) = ("--concept".into(), self.concept.clone());
            return Err(Error::Setting { key, got, want: "face, cat or body with --labels".into() }.into());
        };
        let config = &checkpoint.config;
        let shape = config.input_shape().with_margin(config.input.margin);
        let labels = Labels::read(labels)?;
        let mut sets = Vec::new();
        let shown = labels.shown((pictures, &FrameStore::open(pictures)?), kind, shape)?;
        let is_clear = |shown: &Shown| matches!(shown, Shown::Clearly(_));
        for wanted in [true, false] {
            let problem =
                format!("no frame {} a {}", if wanted { "shows" } else { "is without" }, self.concept);
            let keep = |index: usize| match wanted {
                true => is_clear(&shown[index]),
                false => shown[index] == Shown::Not,
            };
            let store = FrameStore::open(pictures)?.only(pictures, keep, &problem)?;
            let dataset = global.pictures(&store, run, config)?;
            let all = (0..dataset.len()).collect();
            sets.push((dataset, all));
        }
        let mut labelled = self.chosen(sets, 1, global)?;
        let truths: Vec<_> = shown
            .iter()
            .filter_map(|shown| if let Shown::Clearly(truth) = shown { Some(*truth) } else { None })
            .collect();
        labelled.truths = Some(labelled.sets[0].1.iter().map(|&positive| truths[positive]).collect());
        Ok(labelled)
    }

    /// Chooses pictures that meet the share; the first sets are positive.
    fn chosen(
        &self,
        mut sets: Vec<(Dataset, Vec<usize>)>,
        of_positives: usize,
        global: &Global,
    ) -> anyhow::Result<Labelled> {
        if let Some(share) = self.share {
            meet_share(&mut sets, of_positives, share, global.seed);
        }
        let label = |(number, (_, chosen)): (usize, &(Dataset, Vec<usize>))| {
            vec![number < of_positives; chosen.len()]
        };
        let positive: Vec<bool> = sets.iter().enumerate().flat_map(label).collect();
        let labelled = Labelled { sets, positive, truths: None };
        let (positives, all) = (labelled.positives(), labelled.positive.len());
        for (what, count) in [("--positives", positives), ("--negatives", all - positives)] {
            if count < 2 {
                bail!("{what}: {count} pictures, at least 2 are needed, one for each half");
            }
        }
        Ok(labelled)
    }

    /// Where the pictures were, for the record: positives and negatives; of drawn videos the frames, and their labels.
    pub fn sources(&self) -> [Vec<String>; 2] {
        if let Some((labels, pictures)) = self.labels.as_ref().zip(self.pictures.as_ref()) {
            return [vec![pictures.display().to_string()], vec![labels.display().to_string()]];
        }
        [&self.positives, &self.negatives].map(|sources| sources.iter().map(Source::to_string).collect())
    }
}

/// Leaves out pictures, by chance, so that `share` of all are positive.
fn meet_share(sets: &mut [(Dataset, Vec<usize>)], positives: usize, share: f64, seed: u64) {
    let count =
        |sets: &[(Dataset, Vec<usize>)]| sets.iter().map(|(_, chosen)| chosen.len()).sum::<usize>() as f64;
    let (positive, negative) = sets.split_at_mut(positives);
    let (have, others) = (count(positive), count(negative));
    let odds = share / (1.0 - share);
    let (sets, keep) = if have > others * odds { (positive, others * odds) } else { (negative, have / odds) };
    let all = sets.iter().enumerate();
    let mut places: Vec<(usize, usize)> =
        all.flat_map(|(number, (_, chosen))| chosen.iter().map(move |&picture| (number, picture))).collect();
    places.shuffle(&mut rng::stream(seed, "share", 0));
    places.truncate(keep.round() as usize);
    places.sort_unstable();
    for (number, (_, chosen)) in sets.iter_mut().enumerate() {
        *chosen = places.iter().filter(|place| place.0 == number).map(|place| place.1).collect();
    }
}
