//! `striate map`: a map of frames on which those lie together that a run's network sees as alike.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use striate::analysis::map::{Method, PERPLEXITY, Settings, map};
use striate::network::preprocess::Inputs;
use striate::report::map::{MapFile, write};

use super::Global;
use super::view::{View, ViewArgs};

/// Map frames so that those lie together that a run's units see as alike.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate map outputs/run
  striate map outputs/run --frames faces.tar --shown 500 --stage 2 --kind h
  striate map outputs/run --shown 5000 --method tsne --perplexity 50

Writes RUN/map: map.json with names and places of the frames, the eight most like each, and the variance that principal components
explain; thumbnails.jpg, all frames shown on one sheet; map.png, where they lie, as near to their places as there is room
(by t-SNE if that is made), and map-pca.png. The same seed gives the same map on any number of threads.")]
pub struct MapArgs {
    #[command(flatten)]
    view: ViewArgs,
    /// Frames shown: by chance, evenly spread over all.
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=100_000))]
    shown: u32,
    /// How values become places. May be repeated [default: both].
    #[arg(long = "method", value_enum, value_name = "METHOD")]
    methods: Vec<Method>,
    /// Of t-SNE: about how many neighbours each frame has [default: 30, or a third of the frames].
    #[arg(long, value_name = "P", value_parser = perplexity)]
    perplexity: Option<f64>,
}

fn perplexity(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 1.0 => Ok(number),
        _ => Err(format!("expected a number from 1, such as {PERPLEXITY}")),
    }
}

pub fn run(args: MapArgs, global: Global) -> anyhow::Result<()> {
    let View { checkpoint, identity, frames, dataset, group } = args.view.load(&global)?;
    let asked = |method: &Method| args.methods.is_empty() || args.methods.contains(method);
    let settings = Settings {
        shown: args.shown as usize,
        group,
        methods: [Method::Pca, Method::Tsne].into_iter().filter(asked).collect(),
        perplexity: args.perplexity,
        seed: global.seed,
    };
    let (bar, progress) = global.parts("map");
    let inputs = Inputs::new(&dataset, &checkpoint.whitening, 0);
    let made = map(&checkpoint.network, &inputs, &settings, &progress);
    bar.finish();
    let out = args.view.run.join("map");
    let file = write(made?, &identity, (&frames, &dataset), &out)?;
    global.print(&Shown { file: &file, out: &out })
}

/// What stdout gets: the file without its long lists, and where the pictures are.
struct Shown<'a> {
    file: &'a MapFile,
    out: &'a Path,
}

impl Shown<'_> {
    fn files(&self) -> Vec<PathBuf> {
        let names = [Path::new("map.json"), &self.file.thumbnails.file].into_iter();
        names.chain(self.file.pictures.iter().map(PathBuf::as_path)).map(|name| self.out.join(name)).collect()
    }
}

impl Serialize for Shown<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut value = serde_json::to_value(self.file).map_err(serde::ser::Error::custom)?;
        let object = value.as_object_mut().expect("an object");
        for long in ["keys", "frames", "layouts", "neighbours"] {
            object.remove(long);
        }
        object.insert("shown".into(), self.file.keys.len().into());
        object.insert("files".into(), serde_json::to_value(self.files()).map_err(serde::ser::Error::custom)?);
        value.serialize(serializer)
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.file)?;
        self.files().iter().try_for_each(|file| writeln!(f, "{}", file.display()))
    }
}
