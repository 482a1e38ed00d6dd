//! `striate classify eval` and `striate classify predict`.

use std::fmt;
use std::path::{Path, PathBuf};

use image::RgbImage;
use serde::Serialize;

use striate::classify::ReadOut;
use striate::classify::scores::scores;
use striate::error::Error;
use striate::files;
use striate::frames::FrameStore;
use striate::geometry::MapShape;
use striate::network::checkpoint::Checkpoint;
use striate::network::preprocess::Inputs;
use striate::picture::{grid, pixel_tile, png, spread};
use striate::report::classes::{Tested, figure};
use striate::report::explanation::overlay;

use super::{Decoded, LabelArgs, decoded, network};
use crate::cli::Global;
use crate::cli::labelled::name;

/// Test a fitted classifier on other labelled pictures.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate classify eval outputs/run --labels test/
  striate classify eval outputs/run --labels cat=cats.tar --labels 'dog=others.tar::dogs/*' --json

Top-1 and top-5 with Wilson's interval, log-loss, calibration, precision, recall and area under the ROC curve of each class, and
which classes are taken for which. Writes RUN/classify/NAME.json and NAME.svg; of attention also NAME.attention.png, pictures and what
it looks at in them.")]
pub struct EvalArgs {
    /// Run folder of `striate train`.
    run: PathBuf,
    #[command(flatten)]
    labels: LabelArgs,
    #[command(flatten)]
    which: Which,
}

/// Say which classes pictures are of.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate classify predict outputs/run picture.jpg
  striate classify predict outputs/run holiday/ --top 3 --json")]
pub struct PredictArgs {
    /// Run folder of `striate train`.
    run: PathBuf,
    /// Pictures: a file, or a folder, frame set or tar.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Classes named for each picture, the most probable first.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    top: u16,
    #[command(flatten)]
    which: Which,
}

/// Which read-out.
#[derive(clap::Args)]
struct Which {
    /// What the read-out was called.
    #[arg(long, default_value = "classes", value_parser = name)]
    name: String,
    /// Threads. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// How good a read-out is on pictures; and, if it has attention, some of them with what it looks at.
pub fn test(
    readout: &ReadOut,
    pictures: &Decoded,
    checkpoint: &Checkpoint,
    global: &Global,
) -> anyhow::Result<(Tested, Option<RgbImage>)> {
    let all: Vec<usize> = (0..pictures.dataset.len()).collect();
    let inputs = Inputs::new(&pictures.dataset, &checkpoint.whitening, 0);
    let bar = global.progress(all.len() as u64, "test");
    let view = &readout.about.view;
    let features = view.features(&checkpoint.network, &inputs, &all, |count| bar.inc(count as u64));
    bar.finish();
    let features = features?;
    let scores = scores(&readout.probabilities(features.view()), &pictures.class, &readout.about.classes);
    let tested =
        Tested { readout: readout.about.clone(), labels: pictures.sources.clone(), scores, attention: None };
    let sheet = readout.attention(features.view()).map(|weights| {
        let shown = spread(all, ATTENDED);
        let tile = |&picture: &usize| {
            let MapShape { channels, rows, cols } = checkpoint.network.input;
            let seen = pixel_tile(&pictures.dataset.pixels(picture), channels, rows, cols);
            let weights = weights.row(picture).to_vec();
            let over = overlay(&seen, &readout.over_picture(&checkpoint.network, &weights));
            [seen, over]
        };
        let tiles: Vec<RgbImage> = shown.iter().flat_map(tile).collect();
        let zoom = (ATTENDED_PX / checkpoint.network.input.cols as u32).max(1);
        grid(&tiles, ATTENDED_COLUMNS, zoom)
    });
    Ok((tested, sheet))
}

/// Pictures whose attention is drawn, in rows of so many tiles, two for each; and the width of a tile, about.
const ATTENDED: usize = 24;
const ATTENDED_COLUMNS: usize = 12;
const ATTENDED_PX: u32 = 96;

/// Keeps what a test came to in the run's folder.
pub fn write(
    run: &Path,
    name: &str,
    (mut tested, sheet): (Tested, Option<RgbImage>),
) -> striate::Result<Tested> {
    let at = |ending: &str| run.join("classify").join(format!("{name}.{ending}"));
    files::replace(&at("svg"), figure(&tested))?;
    if let Some(sheet) = sheet {
        tested.attention = Some(format!("{name}.attention.png").into());
        files::replace(&at("attention.png"), png(&sheet))?;
    }
    files::replace(&at("json"), serde_json::to_vec(&tested).expect("plain data"))?;
    Ok(tested)
}

pub fn eval(args: EvalArgs, global: Global) -> anyhow::Result<()> {
    global.use_threads(args.which.threads)?;
    let readout = ReadOut::load(&ReadOut::folder(&args.run, &args.which.name))?;
    let about = &readout.about;
    let (checkpoint, _) = network(&args.run, about.weights, Some(&about.checkpoint))?;
    let (table, known) = (args.labels.table.read()?, (&about.classes[..], true));
    let pictures = decoded(&args.labels.labels, table.as_ref(), known, (&args.run, &checkpoint), &global)?;
    let tested = test(&readout, &pictures, &checkpoint, &global)?;
    let tested = write(&args.run, &args.which.name, tested)?;
    global.print(&tested)
}

pub fn predict(args: PredictArgs, global: Global) -> anyhow::Result<()> {
    global.use_threads(args.which.threads)?;
    let readout = ReadOut::load(&ReadOut::folder(&args.run, &args.which.name))?;
    let about = &readout.about;
    let (checkpoint, _) = network(&args.run, about.weights, Some(&about.checkpoint))?;
    let mut found = Vec::new();
    for path in &args.images {
        let store = FrameStore::open(path)?;
        let dataset = global.pictures(&store, &args.run, &checkpoint.config)?;
        if dataset.is_empty() {
            return Err(Error::bad_file(path, "no picture could be read").into());
        }
        let all: Vec<usize> = (0..dataset.len()).collect();
        let inputs = Inputs::new(&dataset, &checkpoint.whitening, 0);
        let features = about.view.features(&checkpoint.network, &inputs, &all, |_| ())?;
        let probabilities = readout.probabilities(features.view());
        for (key, row) in dataset.keys.iter().zip(probabilities.chunks_exact(about.classes.len())) {
            let mut classes: Vec<Answer> = about
                .classes
                .iter()
                .zip(row)
                .map(|(class, &probability)| Answer { class: class.clone(), probability })
                .collect();
            classes.sort_by(|a, b| b.probability.total_cmp(&a.probability));
            classes.truncate(args.top.into());
            let picture = if path.is_dir() || all.len() > 1 { path.join(key) } else { path.clone() };
            found.push(Predicted { picture, classes });
        }
    }
    global.print(&Predictions { pictures: found })
}

#[derive(Serialize)]
struct Predicted {
    picture: PathBuf,
    /// The most probable first.
    classes: Vec<Answer>,
}

#[derive(Serialize)]
struct Answer {
    class: String,
    probability: f32,
}

#[derive(Serialize)]
struct Predictions {
    pictures: Vec<Predicted>,
}

impl fmt::Display for Predictions {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for Predicted { picture, classes } in &self.pictures {
            let answer = |answer: &Answer| format!("{} {:.1} %", answer.class, 100.0 * answer.probability);
            let answers: Vec<String> = classes.iter().map(answer).collect();
            writeln!(f, "{}: {}", picture.display(), answers.join(", "))?;
        }
        Ok(())
    }
}
