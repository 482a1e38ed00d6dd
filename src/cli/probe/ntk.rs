//! `striate probe ntk`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use striate::classify::Weights;
use striate::classify::tune::Settings;
use striate::probe::ntk::{Moment, Pictures, Plan, probe};
use striate::report::probes::{Kernels, kernels_figure};

use super::{ProbedArgs, some, write};
use crate::cli::Global;
use crate::cli::classify::fit::positive;
use crate::cli::classify::tune::learner;
use crate::cli::classify::{LabelSource, decoded, network};
use crate::cli::labelled::name;
use crate::cli::train::on_signals;

/// The tangent kernel while a network learns labels, and kernel regression beside it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate probe ntk outputs/run --labels train/ --test test/
  striate probe ntk outputs/run --labels train/ --test test/ --random-weights --name ntk-random
  striate probe ntk outputs/run --labels train/ --count 100 --steps 1000 --network-rate 0.3

At each moment: what the network answers; what ridge regression in its kernel of that moment answers (the ridge is chosen by leaving
out each picture); how much the kernel is one of the labels (alignment), how far it is from that of the beginning (drift, and turn,
which leaves out growth), and its spectrum. The kernel is that of all classes' numbers, each weight by its learning rate, of N times
classes rows: time grows with its cube.")]
pub struct NtkArgs {
    /// Run folder of `striate train`.
    run: PathBuf,
    #[command(flatten)]
    probed: ProbedArgs,
    /// Labelled pictures to test on, given as --labels are. May be repeated.
    #[arg(long, value_name = "[CLASS=]PATH[::PATTERN]")]
    test: Vec<LabelSource>,
    /// About so many pictures to learn from, of each class the same share, drawn by --seed.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=2000))]
    count: u16,
    /// About so many pictures to test on.
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    test_count: u16,
    /// Minibatches.
    #[arg(long, default_value_t = 400, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Kernels that are made, the first before any step, the last after all.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=20))]
    moments: u16,
    /// Learning rate of the classes' weights, as a multiple of one over the number of values that they see.
    #[arg(long, default_value_t = Settings::default().rate, value_parser = positive)]
    rate: f64,
    /// Learning rate of the network's encoders.
    #[arg(long, default_value_t = 0.1, value_parser = positive)]
    network_rate: f64,
    /// How much the classes' numbers vary before the first step. Theory has 1; the larger, the more encoders count and the less the kernel
    /// moves; tuning itself begins with 0, where the first kernel is that of the head alone.
    #[arg(long, default_value_t = 0.1, value_name = "S", value_parser = scale)]
    head_scale: f64,
    /// Begin with random weights, drawn from --seed, not with those that the run learned.
    #[arg(long)]
    random_weights: bool,
    /// What the result is called.
    #[arg(long, default_value = "ntk", value_parser = name)]
    name: String,
}

fn scale(text: &str) -> Result<f64, String> {
    let scale = text.parse::<f64>().ok().filter(|scale| (0.0..=100.0).contains(scale));
    scale.ok_or("expected a number from 0 to 100".into())
}

pub fn run(args: NtkArgs, global: Global) -> anyhow::Result<ExitCode> {
    global.use_threads(args.probed.task.threads)?;
    let weights = if args.random_weights { Weights::Random(global.seed) } else { Weights::Learned };
    let (checkpoint, identity) = network(&args.run, Weights::Learned, None)?;
    let settings = args.probed.settings(&checkpoint.network, args.steps, global.seed)?;
    let settings = Settings { rate: args.rate, network_rate: args.network_rate, decay: 0.0, ..settings };
    let from = (&*args.run, &checkpoint);
    let (train, table) = args.probed.task.pictures(from, &global)?;
    let chosen = some(&train, args.count.into(), global.seed);
    let test = match &args.test[..] {
        [] => None,
        sources => Some(decoded(sources, table.as_ref(), (&train.classes, true), from, &global)?),
    };
    let others = test.as_ref().map(|test| some(test, args.test_count.into(), global.seed));
    let pictures = Pictures {
        train: (&train.dataset, &chosen, &train.class),
        test: test
            .as_ref()
            .zip(others.as_ref())
            .map(|(test, others)| (&test.dataset, &others[..], &test.class[..])),
        classes: train.classes.len(),
    };
    let (stop, learner) = (on_signals()?, learner(&checkpoint, weights)?);
    let bar = global.progress(args.steps, "ntk");
    let told = |step: u64, moment: Option<&Moment>| {
        bar.set_position(step);
        if let Some(moment) = moment {
            bar.set_message(format!("kernel of step {}: alignment {:.3}", moment.step, moment.alignment));
        }
    };
    let plan = Plan { settings: &settings, deviation: args.head_scale as f32, moments: args.moments.into() };
    let found = probe(&learner, &checkpoint.whitening, &pictures, &plan, (&stop, told));
    bar.finish();
    let Some(moments) = found? else {
        say!("interrupted; nothing was written");
        return Ok(ExitCode::from(128 + stop.load(Ordering::Relaxed) as u8));
    };
    let kernels = Kernels {
        checkpoint: identity,
        from: weights,
        labels: train.sources.clone(),
        classes: train.classes.clone(),
        pictures: chosen.len(),
        test_pictures: others.map_or(0, |others| others.len()),
        head_scale: args.head_scale,
        settings,
        moments,
    };
    write(&args.run, &args.name, &kernels, kernels_figure(&kernels))?;
    global.print(&kernels)?;
    Ok(ExitCode::SUCCESS)
}
