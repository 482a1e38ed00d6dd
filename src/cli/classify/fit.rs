//! `striate classify fit`.

use std::fmt;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;

use striate::analysis;
use striate::analysis::evaluate::Group;
use striate::classify::labels::some_of_each;
use striate::classify::linear::{LAMBDAS, Method, Settings, Tried, fit};
use striate::classify::readout::About;
use striate::classify::{Of, ReadOut, View, Weights};
use striate::geometry::Kind;
use striate::network::preprocess::Inputs;
use striate::report::classes::Tested;
use striate::report::figure::grouped;

use super::test::{test, write};
use super::{LabelArgs, LabelSource, decoded, network};
use crate::cli::Global;
use crate::cli::labelled::name;

/// Fit a linear classifier to features of labelled pictures.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate classify fit outputs/run --labels train/ --test test/
  striate classify fit outputs/run --labels shards/ --csv labels.csv --column content --classes cat,dog
  striate classify fit outputs/run --labels train/ --stage 1 --kind h --grid 2 --method logistic --name first
  striate classify fit outputs/run --labels train/ --test test/ --pixels --name pixels         # what it is without a network,
  striate classify fit outputs/run --labels train/ --test test/ --random-weights --name random # and without learning

Minimises mean loss + λ/2 ‖W‖² over standardised features; λ is chosen by cross-validation. The read-out is kept in
RUN/classify/NAME, like a checkpoint; with --test it is tested as by `striate classify eval`.")]
pub struct FitArgs {
    /// Run folder of `striate train`.
    run: PathBuf,
    #[command(flatten)]
    labels: LabelArgs,
    /// Labelled pictures to test it on, given as --labels are; no part in the fit. May be repeated.
    #[arg(long, value_name = "[CLASS=]PATH[::PATTERN]")]
    test: Vec<LabelSource>,
    /// Only these classes, in this order, with commas between [default: all that there are].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    classes: Vec<String>,
    /// Stage whose units are read, from 1. May be repeated [default: the top one].
    #[arg(long = "stage", value_name = "N")]
    stages: Vec<usize>,
    /// Value of a unit: filtered (a), pooled (h) or normalised (y).
    #[arg(long, value_enum, default_value = "y")]
    kind: Kind,
    /// Read means over N x N parts of each map instead of all its positions; 1 is the mean of the whole map.
    #[arg(long, value_name = "N")]
    grid: Option<usize>,
    /// Read whitened pixels instead of units, for comparison.
    #[arg(long, conflicts_with_all = ["stages", "random_weights"])]
    pixels: bool,
    /// Give the network random weights, drawn from --seed, for comparison.
    #[arg(long)]
    random_weights: bool,
    /// Classifier.
    #[arg(long, value_enum, default_value = "softmax")]
    method: MethodArg,
    /// Strength of regularisation. May be repeated; of several the best in cross-validation is taken [default: from 10 to 0.0001].
    #[arg(long = "lambda", value_name = "λ", value_parser = positive)]
    lambdas: Vec<f64>,
    /// Parts that the pictures are divided into for cross-validation.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=100))]
    folds: u16,
    /// Use only a share of the labels, of each class as much, drawn by --seed.
    #[arg(long, default_value_t = 1.0, value_parser = share)]
    share: f64,
    /// What the read-out is called.
    #[arg(long, default_value = "classes", value_parser = name)]
    name: String,
    /// Threads. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

#[derive(Clone, Copy, ValueEnum)]
enum MethodArg {
    /// All classes together.
    Softmax,
    /// Each class against all others.
    Logistic,
}

pub fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("expected a number above 0, such as 0.01".into()),
    }
}

pub fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("expected a share above 0 and up to 1, such as 0.1".into()),
    }
}

pub fn run(args: FitArgs, global: Global) -> anyhow::Result<()> {
    global.use_threads(args.threads)?;
    let weights = if args.random_weights { Weights::Random(global.seed) } else { Weights::Learned };
    let (checkpoint, identity) = network(&args.run, weights, None)?;
    let count = checkpoint.network.stages.len();
    let of = if args.pixels {
        Of::Pixels
    } else if args.stages.is_empty() {
        Of::Units(vec![Group { stage: count - 1, kind: args.kind }])
    } else {
        let stages = analysis::stages(&args.stages, count)?;
        Of::Units(stages.into_iter().map(|stage| Group { stage, kind: args.kind }).collect())
    };
    let view = View { of, grid: args.grid };
    view.check(&checkpoint.network)?;
    let table = args.labels.table.read()?;
    let from = (&*args.run, &checkpoint);
    let train = decoded(&args.labels.labels, table.as_ref(), (&args.classes, false), from, &global)?;

    let chosen = some_of_each(&train.class, args.share, global.seed);
    let class: Vec<usize> = chosen.iter().map(|&picture| train.class[picture]).collect();
    let inputs = Inputs::new(&train.dataset, &checkpoint.whitening, 0);
    let bar = global.progress(chosen.len() as u64, "features");
    let features = view.features(&checkpoint.network, &inputs, &chosen, |count| bar.inc(count as u64));
    bar.finish();
    let mut features = features?;

    let settings = Settings {
        method: match args.method {
            MethodArg::Softmax => Method::Softmax,
            MethodArg::Logistic => Method::Logistic,
        },
        lambdas: if args.lambdas.is_empty() { LAMBDAS.to_vec() } else { args.lambdas },
        folds: args.folds.into(),
        seed: global.seed,
        tolerance: 1e-3,
        steps: 500,
    };
    let bar = global.progress(settings.lambdas.len() as u64, "fit");
    let fitted = fit(&mut features, &class, train.classes.len(), &settings, |tried| {
        bar.inc(1);
        bar.set_message(Line(*tried).to_string());
    });
    bar.finish();
    let fitted = fitted?;
    if let Some(tried) = fitted.tried.iter().find(|tried| tried.lambda == fitted.lambda && !tried.converged) {
        let what = format!("the fit did not come to its end in {} steps; a larger λ may", tried.steps);
        global.warn(&[what]);
    }
    let about = About {
        method: settings.method,
        view,
        weights,
        classes: train.classes,
        checkpoint: identity,
        labels: train.sources,
        pictures: chosen.len(),
        features: features.ncols(),
        shape: None,
        lambda: None,
        tried: Vec::new(),
        tuning: None,
        seed: global.seed,
        share: args.share,
    };
    drop(features);
    let readout = ReadOut::new(about, fitted);
    let folder = ReadOut::folder(&args.run, &args.name);
    readout.save(&folder, &checkpoint.config)?;
    let mut tested = None;
    if !args.test.is_empty() {
        let known = (&readout.about.classes[..], true);
        let pictures = decoded(&args.test, table.as_ref(), known, from, &global)?;
        let result = test(&readout, &pictures, &checkpoint, &global)?;
        tested = Some(write(&args.run, &args.name, result)?);
    }
    global.print(&Fit { folder, name: args.name, about: readout.about, tested })
}

#[derive(Serialize)]
struct Fit {
    folder: PathBuf,
    name: String,
    #[serde(flatten)]
    about: About,
    tested: Option<Tested>,
}

struct Line(Tried);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Tried { lambda, accuracy, log_loss, objective, steps, .. } = self.0;
        write!(f, "λ {lambda:<7} ")?;
        if let Some((accuracy, log_loss)) = accuracy.zip(log_loss) {
            write!(f, "held out {:.2} % right, log-loss {log_loss:.4}; ", 100.0 * accuracy)?;
        }
        write!(f, "objective {objective:.5} after {steps} steps")
    }
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let About { classes, pictures, features, lambda, tried, .. } = &self.about;
        let (pictures, features) = (grouped(*pictures as u64), grouped(*features as u64));
        writeln!(f, "{pictures} pictures of {} classes, {features} numbers each", classes.len())?;
        for one in tried {
            writeln!(f, "{}{}", Line(*one), if Some(one.lambda) == *lambda { "  <- taken" } else { "" })?;
        }
        match &self.tested {
            Some(tested) => write!(f, "\n{tested}")?,
            None => writeln!(f)?,
        }
        write!(f, "{}", self.folder.display())
    }
}
