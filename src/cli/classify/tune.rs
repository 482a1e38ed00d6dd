//! `striate classify tune`.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;

use striate::analysis::evaluate::Group;
use striate::classify::head::Kind as HeadKind;
use striate::classify::labels::some_of_each;
use striate::classify::linear::Method;
use striate::classify::readout::About;
use striate::classify::tune::{Lesson, Line, Settings, Tuned, all_flops, tune};
use striate::classify::{Of, ReadOut, View, Weights};
use striate::config::{Optimiser, RunConfig};
use striate::error::Error;
use striate::files;
use striate::kernels::{Rows, machine};
use striate::network::Network;
use striate::network::checkpoint::{self, Checkpoint};
use striate::report::classes::Tested;
use striate::training::{State, check_folder};

use super::{Decoded, LabelSource, TaskArgs, decoded, network, test};
use crate::cli::Global;
use crate::cli::labelled::name;
use crate::cli::train::on_signals;

/// How all weights learn from labels.
#[derive(clap::Args)]
pub struct TuningArgs {
    #[command(flatten)]
    pub task: TaskArgs,
    /// How positions are put together.
    #[arg(long, value_enum, default_value = "full")]
    head: HeadArg,
    /// Hidden units of attention.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    hidden: u16,
    /// Minibatches.
    #[arg(long, default_value_t = 3000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Learning rate of the classes' weights, as a multiple of one over the number of values that they see.
    #[arg(long, default_value_t = Settings::default().rate)]
    rate: f64,
    /// Learning rate of the network's encoders; 0 leaves them as they are.
    #[arg(long, default_value_t = Settings::default().network_rate)]
    network_rate: f64,
    /// Leave so many of the lowest stages as they are.
    #[arg(long, default_value_t = 0, value_name = "STAGES")]
    keep: usize,
    /// Let only the head learn in so many of the first steps: a linear probe before fine-tuning (Kumar et al. 2022).
    #[arg(long, default_value_t = 0, value_name = "STEPS")]
    head_first: u64,
    /// The rule of a step.
    #[arg(long, value_enum, default_value = "momentum")]
    optimiser: OptimiserArg,
    /// Share of the velocity that a step keeps, with momentum.
    #[arg(long, default_value_t = Settings::default().momentum)]
    momentum: f64,
    /// Share of all weights that is taken away each step.
    #[arg(long, default_value_t = Settings::default().decay)]
    decay: f64,
    /// Pictures are shifted by up to so many pixels each way, by chance.
    #[arg(long, default_value_t = Settings::default().shift, value_name = "PIXELS")]
    shift: usize,
    /// Do not mirror pictures by chance.
    #[arg(long)]
    no_flip: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum OptimiserArg {
    /// Stochastic gradient descent with momentum.
    Momentum,
    /// Each weight has a rate of its own: by the root of the sum of its gradients' squares.
    Adagrad,
}

#[derive(Clone, Copy, ValueEnum)]
enum HeadArg {
    /// Each position has weights of its own.
    Full,
    /// Their mean.
    Mean,
    /// Their mean, weighted by additive attention (Bahdanau et al. 2015).
    Attention,
}

/// Learn all weights of a network from labelled pictures, from those of a run or from random ones.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate classify tune outputs/run --labels train/ --test test/ --out outputs/tuned
  striate classify tune outputs/run --labels train/ --test test/ --out outputs/scratch --random-weights
  striate classify tune outputs/run --labels train/ --out outputs/attention --head attention --network-rate 0

Stochastic gradient descent with momentum, on pictures shifted and mirrored by chance. OUT becomes a run folder of its own, with the
encoders as they are then, so that visualize, evaluate, report and serve show what labels have made of the units; the read-out is
in OUT/classify/NAME. Decoders stay those of RUN. Ctrl-C ends it and leaves nothing behind.")]
pub struct TuneArgs {
    /// Run folder of `striate train`.
    run: PathBuf,
    #[command(flatten)]
    tuning: TuningArgs,
    /// Labelled pictures to test it on, given as --labels are. May be repeated.
    #[arg(long, value_name = "[CLASS=]PATH[::PATTERN]")]
    test: Vec<LabelSource>,
    /// Begin with random weights, drawn from --seed, not with those that the run learned.
    #[arg(long)]
    random_weights: bool,
    /// Use only a share of the labels, of each class as much, drawn by --seed.
    #[arg(long, default_value_t = 1.0, value_parser = super::fit::share)]
    share: f64,
    /// New run folder.
    #[arg(long)]
    out: PathBuf,
    /// What the read-out is called.
    #[arg(long, default_value = "classes", value_parser = name)]
    name: String,
}

impl TuningArgs {
    pub fn settings(&self, network: &Network, seed: u64) -> anyhow::Result<Settings> {
        let group = self.task.group(network)?;
        let refuse = |key: &str, got: String, want: &str| {
            Err(Error::Setting { key: key.into(), got, want: want.into() })
        };
        let numbers = [("--rate", self.rate), ("--network-rate", self.network_rate)];
        for (key, rate) in numbers {
            if !(rate.is_finite() && rate >= 0.0) {
                refuse(key, rate.to_string(), "a number, 0 or more")?;
            }
        }
        for (key, share) in [("--momentum", self.momentum), ("--decay", self.decay)] {
            if !(0.0..1.0).contains(&share) {
                refuse(key, share.to_string(), "a share from 0 to below 1")?;
            }
        }
        if self.keep > group.stage {
            let want = format!("at most {}: stage {} is read", group.stage, group.stage + 1);
            refuse("--keep", self.keep.to_string(), &want)?;
        }
        if self.head_first > self.steps {
            refuse(
                "--head-first",
                self.head_first.to_string(),
                &format!("at most {}, all steps", self.steps),
            )?;
        }
        if self.shift >= network.input.rows.min(network.input.cols) {
            refuse("--shift", self.shift.to_string(), "less than the picture's sides")?;
        }
        Ok(Settings {
            head: match self.head {
                HeadArg::Full => HeadKind::Full,
                HeadArg::Mean => HeadKind::Mean,
                HeadArg::Attention => HeadKind::Attention(self.hidden.into()),
            },
            group,
            steps: self.steps,
            batch: self.task.batch.into(),
            rate: self.rate,
            network_rate: self.network_rate,
            keep: self.keep,
            head_first: self.head_first,
            optimiser: match self.optimiser {
                OptimiserArg::Momentum => Optimiser::Momentum,
                OptimiserArg::Adagrad => Optimiser::Adagrad,
            },
            momentum: self.momentum,
            decay: self.decay,
            shift: self.shift,
            flip: !self.no_flip,
            seed,
        })
    }
}

/// A network with these weights, and room for velocities.
pub fn learner(checkpoint: &Checkpoint, weights: Weights) -> striate::Result<Network> {
    let mut config: RunConfig = checkpoint.config.clone();
    config.training.optimiser = Optimiser::Momentum;
    let network = Network::zeros(&config, true)?;
    match weights {
        Weights::Random(seed) => network.draw(seed),
        Weights::Learned => {
            let pairs = network.stages.iter().zip(&checkpoint.network.stages);
            pairs.for_each(|(to, from)| to.blocks.copy_from(&from.blocks, Rows::Shared));
        }
    }
    Ok(network)
}

fn message(line: &Line, rate: f64) -> String {
    let Line { log_loss, accuracy, .. } = line;
    format!("log-loss {log_loss:.3}, {:.1} % right, {rate:.0} images/s", 100.0 * accuracy)
}

/// Tunes a network on a share of some pictures, and tells of it.
pub fn tuned(
    network: &Network,
    checkpoint: &Checkpoint,
    pictures: &Decoded,
    (share, settings): (f64, &Settings),
    (stop, global): (&AtomicUsize, &Global),
) -> anyhow::Result<(Tuned, usize)> {
    let chosen = some_of_each(&pictures.class, share, settings.seed);
    let classes = (&pictures.class[..], pictures.classes.len());
    let lesson = Lesson::new(&pictures.dataset, &chosen, classes, settings)?;
    let bar = global.progress(settings.steps, "tune");
    let batch = settings.batch as f64;
    let told = |line: &Line| {
        bar.set_position(line.step);
        bar.set_message(message(line, line.step as f64 * batch / line.seconds));
    };
    let tuned = tune(network, &checkpoint.whitening, &lesson, settings, (stop, told));
    bar.finish();
    Ok((tuned?, chosen.len()))
}

pub fn run(args: TuneArgs, global: Global) -> anyhow::Result<ExitCode> {
    global.use_threads(args.tuning.task.threads)?;
    check_folder(&args.out, false)?;
    let weights = if args.random_weights { Weights::Random(global.seed) } else { Weights::Learned };
    let (checkpoint, _) = network(&args.run, Weights::Learned, None)?;
    let settings = args.tuning.settings(&checkpoint.network, global.seed)?;
    let from = (&*args.run, &checkpoint);
    let (train, table) = args.tuning.task.pictures(from, &global)?;
    let to_test = match &args.test[..] {
        [] => None,
        sources => Some(decoded(sources, table.as_ref(), (&train.classes, true), from, &global)?),
    };
    let stop = on_signals()?;
    let learner = learner(&checkpoint, weights)?;
    let (tuned, pictures) = tuned(&learner, &checkpoint, &train, (args.share, &settings), (&stop, &global))?;
    if !tuned.finished {
        say!("interrupted; nothing was written");
        return Ok(ExitCode::from(128 + stop.load(Ordering::Relaxed) as u8));
    }
    let network = learner.zeros_like();
    let pairs = network.stages.iter().zip(&learner.stages);
    pairs.for_each(|(to, from)| to.blocks.copy_from(&from.blocks, Rows::Shared));
    let before = checkpoint::latest_of(&args.run)?;
    let state: State = checkpoint::read_state(&before)?;
    let step = checkpoint::step_of(&before).unwrap_or(0) + settings.steps;
    std::fs::create_dir_all(&args.out).map_err(Error::io(&args.out, "create"))?;
    files::replace(&args.out.join("config.toml"), checkpoint.config.to_toml())?;
    for log in ["log.jsonl", "validation.jsonl"] {
        // How the network learned without labels stays to be seen.
        let bytes = std::fs::read(args.run.join(log)).unwrap_or_default();
        files::replace(&args.out.join(log), bytes)?;
    }
    let lines: Vec<String> = tuned.lines.iter().map(|line| json!(line).to_string() + "\n").collect();
    files::replace(&args.out.join("tune.jsonl"), lines.concat())?;
    let folder = args.out.join("checkpoints").join(format!("step-{step:010}"));
    let data = train.sources.join(" ");
    checkpoint::save(&folder, &checkpoint.config, &network, &checkpoint.whitening, &data, &state)?;

    let (Group { stage, kind }, shape) = (settings.group, tuned.head.shape);
    let is_mean = settings.head == HeadKind::Mean;
    let about = About {
        method: Method::Softmax,
        view: View { of: Of::Units(vec![Group { stage, kind }]), grid: is_mean.then_some(1) },
        weights: Weights::Learned,
        classes: train.classes.clone(),
        checkpoint: checkpoint::identity(&folder)?,
        labels: train.sources.clone(),
        pictures,
        features: if is_mean { shape.channels } else { shape.len() },
        shape: Some(shape),
        lambda: None,
        tried: Vec::new(),
        tuning: Some(settings.clone()),
        seed: global.seed,
        share: args.share,
    };
    let readout = ReadOut::of_head(about, &tuned.head);
    readout.save(&ReadOut::folder(&args.out, &args.name), &checkpoint.config)?;
    let images = settings.steps * settings.batch as u64;
    let work = all_flops(&network, &checkpoint.whitening, &tuned.head, &settings);
    let checkpoint = Checkpoint { network, ..checkpoint };
    let tested = match &to_test {
        Some(pictures) => {
            let result = test::test(&readout, pictures, &checkpoint, &global)?;
            Some(test::write(&args.out, &args.name, result)?)
        }
        None => None,
    };
    let seconds = tuned.lines.last().map_or(0.0, |line| line.seconds);
    let peak = 1e9 * machine::fma_peak(checkpoint.network.cpu, 50.0);
    let summary = Summary {
        run: args.out,
        from: weights,
        pictures,
        steps: settings.steps,
        seconds,
        images_per_second: images as f64 / seconds,
        peak_share: work as f64 / seconds / peak,
        last: tuned.lines.last().copied(),
        tested,
    };
    global.print(&summary)?;
    Ok(ExitCode::SUCCESS)
}

/// What tuning came to.
#[derive(Serialize)]
struct Summary {
    run: PathBuf,
    from: Weights,
    pictures: usize,
    steps: u64,
    seconds: f64,
    images_per_second: f64,
    /// Of what all threads could compute.
    peak_share: f64,
    last: Option<Line>,
    tested: Option<Tested>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Summary { from, pictures, steps, seconds, images_per_second, peak_share, .. } = self;
        writeln!(
            f,
            "tuned from {from} on {pictures} pictures: {steps} steps in {seconds:.0} s, {images_per_second:.0} images/s, {:.0} % of peak",
            100.0 * peak_share
        )?;
        if let Some(line) = &self.last {
            writeln!(
                f,
                "at the end log-loss {:.3}, {:.1} % right, on pictures as they were learned",
                line.log_loss,
                100.0 * line.accuracy
            )?;
        }
        if let Some(tested) = &self.tested {
            write!(f, "\n{tested}")?;
        }
        write!(f, "{}", self.run.display())
    }
}
