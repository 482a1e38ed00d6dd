//! `striate probe overparam`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use clap::ValueEnum;

use striate::classify::Weights;
use striate::classify::tune::Lesson;
use striate::probe::overparam::{Curve, Layer, Settings, outcomes, probe};
use striate::report::probes::{Factors, factors_figure};

use super::{ProbedArgs, some, write};
use crate::cli::Global;
use crate::cli::classify::fit::positive;
use crate::cli::classify::network;
use crate::cli::classify::tune::learner;
use crate::cli::labelled::name;
use crate::cli::train::on_signals;

/// Does an extra linear factor speed learning at equal cost?
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate probe overparam outputs/run --labels train/
  striate probe overparam outputs/run --labels train/ --layer head --name overparam-head
  striate probe overparam outputs/run --labels train/ --powers 2,4,6 --rates 0.1,0.3,1,3

Plain gradient descent of the loss Σ |f − t|^p / p over the classes' numbers f, once with weights as they are, once with those of LAYER kept as
a product of two matrices: from the same weights, by the same minibatches, each at the best of the rates. Theory (Arora et al. 2018)
promises speed for p above 2. The speed is how many times less arithmetic, and time, the factor takes to the same loss.")]
pub struct OverparamArgs {
    /// Run folder of `striate train`.
    run: PathBuf,
    #[command(flatten)]
    probed: ProbedArgs,
    /// Which weights get the factor.
    #[arg(long, value_enum, default_value = "encoder")]
    layer: LayerArg,
    /// p of the losses, with commas between.
    #[arg(long, value_delimiter = ',', default_value = "2,4", value_name = "P", value_parser = power)]
    powers: Vec<f64>,
    /// Learning rates that each tries, with commas between.
    #[arg(long, value_delimiter = ',', default_value = "1,3,10,30,100", value_name = "RATE", value_parser = positive)]
    rates: Vec<f64>,
    /// Minibatches of each.
    #[arg(long, default_value_t = 300, value_name = "N", value_parser = clap::value_parser!(u64).range(10..))]
    steps: u64,
    /// About so many pictures, of each class the same share, drawn by --seed.
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    count: u32,
    /// Begin with the weights that the run learned, not with random ones.
    #[arg(long)]
    learned_weights: bool,
    /// What the result is called.
    #[arg(long, default_value = "overparam", value_parser = name)]
    name: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum LayerArg {
    /// The encoders, at each position; all weights learn.
    Encoder,
    /// The classes' weights; encoders stay as they are: the linear regression of the theory.
    Head,
}

fn power(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (1.5..=10.0).contains(number));
    number.ok_or("expected a number from 1.5 to 10".into())
}

pub fn run(args: OverparamArgs, global: Global) -> anyhow::Result<ExitCode> {
    global.use_threads(args.probed.task.threads)?;
    let weights = if args.learned_weights { Weights::Learned } else { Weights::Random(global.seed) };
    let (checkpoint, identity) = network(&args.run, Weights::Learned, None)?;
    let settings = Settings {
        layer: match args.layer {
            LayerArg::Encoder => Layer::Encoder,
            LayerArg::Head => Layer::Head,
        },
        powers: args.powers,
        rates: args.rates,
        tune: args.probed.settings(&checkpoint.network, args.steps, global.seed)?,
    };
    let (train, _) = args.probed.task.pictures((&*args.run, &checkpoint), &global)?;
    let chosen = some(&train, args.count as usize, global.seed);
    let classes = (&train.class[..], train.classes.len());
    let lesson = Lesson::new(&train.dataset, &chosen, classes, &settings.tune)?;
    let stop = on_signals()?;
    let curves = (2 * settings.powers.len() * settings.rates.len()) as u64;
    let bar = global.progress(curves * args.steps, "overparam");
    let mut done = 0;
    let told = |curve: Option<&Curve>| match curve {
        None => bar.inc(1),
        Some(curve) => {
            done += 1;
            bar.set_position(done * args.steps);
            let factor = if curve.factored { "with" } else { "without" };
            let loss = curve.points.last().map_or("no number".into(), |point| format!("{:.4}", point.loss));
            bar.set_message(format!(
                "p = {} {factor} the factor, rate {}: loss {loss}",
                curve.power, curve.rate
            ));
        }
    };
    let fresh = || learner(&checkpoint, weights);
    let found = probe(fresh, &checkpoint.whitening, &lesson, &settings, (&stop, told));
    bar.finish();
    let Some(curves) = found? else {
        say!("interrupted; nothing was written");
        return Ok(ExitCode::from(128 + stop.load(Ordering::Relaxed) as u8));
    };
    let (outcomes, problems) = outcomes(&curves)?;
    let factors = Factors {
        checkpoint: identity,
        from: weights,
        labels: train.sources.clone(),
        pictures: chosen.len(),
        settings,
        outcomes,
        curves,
    };
    write(&args.run, &args.name, &factors, factors_figure(&factors))?;
    global.warn(&problems);
    global.print(&factors)?;
    Ok(ExitCode::SUCCESS)
}
