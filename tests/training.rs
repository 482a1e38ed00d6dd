//! Runs that people can trust: replicas that share weights in every way that settings allow, runs that are killed, interrupted,
//! diverge, or meet a full disk, and what is in the folder afterwards.

mod common;
#[path = "common/disk.rs"]
mod disk;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::{done, json, program, run, snapshot, text};
use disk::Disk;
use rand::Rng;
use striate::config::{RunConfig, Training};
use striate::kernels::Rows;
use striate::network::{Network, Weights, checkpoint};
use striate::rng;
use striate::training::optimiser::Step;
use striate::training::replica::{Job, Replica, learn_together};
use striate::training::server::Store;

const CONFIG: &str = "[input]\nheight = 20\nwidth = 20\npreprocess = \"none\"\n\
    [[stages]]\nmaps = 5\nfield = 7\npool = 2\nlcn = 3\n\
    [[stages]]\nmaps = 9\nfield = 5\nstride = 2\npool = 2\nlcn = 3\n\
    [training]\nschedule = \"together\"\nsteps = [100]\nbatch = 16\nwarmup = 0\nencoder_decay = 0\ndecoder_norm_bound = 0\n\
    max_step = 0\nrate = 1e-4\n";

fn config(settings: &[&str]) -> RunConfig {
    let settings: Vec<String> = settings.iter().map(|text| text.to_string()).collect();
    RunConfig::parse(CONFIG, &settings).unwrap()
}

fn store(config: &RunConfig) -> Store {
    Store::new(Network::new(config, 3).unwrap())
}

/// The inputs of minibatch `number`.
fn fill(replica: &mut Replica, number: u64) {
    let mut rng = rng::stream(8, "inputs", number);
    replica.work.input.iter_mut().for_each(|x| *x = rng.random_range(-1.0..1.0));
}

fn weights(store: &Store) -> Vec<f32> {
    let both =
        |stage: &striate::network::Stage| [Weights::Encoder, Weights::Decoder].map(|w| stage.weights(w));
    store.network.stages.iter().flat_map(both).flatten().collect()
}

fn step(store: &Store, training: &Training, number: u64) -> Step {
    Step::new(store.network.cpu, training, 1.0, number)
}

/// The weights after minibatches `0..count` of one replica.
fn alone(config: &RunConfig, count: u64) -> Vec<f32> {
    let (store, training) = (store(config), &config.training);
    let mut replica = Replica::new(&store.network, training, 1, Rows::InTurn);
    let job = Job { training, stages: 0..2 };
    let mut ages = Vec::new();
    for number in 0..count {
        fill(&mut replica, number);
        replica.learn(&store, &job, step(&store, training, number), None, |age| ages.push(age)).unwrap();
    }
    replica.finish(&store, &job, step(&store, training, count), |age| ages.push(age)).unwrap();
    assert_eq!(ages, vec![0; count.div_ceil(training.push_every) as usize], "nobody else updates");
    weights(&store)
}

/// Largest difference as a share of the largest change from the first weights.
fn difference(config: &RunConfig, a: &[f32], b: &[f32]) -> f32 {
    let first = weights(&store(config));
    let largest = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    largest(a, b) / largest(&first, a)
}

#[test]
fn weights_of_its_own_make_no_difference_to_a_replica_that_is_alone() {
    for optimiser in ["sgd", "momentum", "adagrad"] {
        let optimiser = format!("training.optimiser={optimiser}");
        let recipe = [
            "training.encoder_decay=1e-3",
            "training.decoder_norm_bound=1",
            "training.max_step=0.1",
            &optimiser,
        ];
        let in_place = alone(&config(&recipe), 7);
        for fetch_every in ["training.fetch_every=2", "training.fetch_every=100"] {
            let own = alone(&config(&[&recipe[..], &[fetch_every]].concat()), 7);
            // The velocity that a copy of the weights sees is that before the push, like the shared weights'.
            assert!(own == in_place, "{optimiser} {fetch_every}");
        }
    }
}

#[test]
fn gradients_are_added_up_until_they_are_pushed() {
    let sgd = "training.optimiser=sgd";
    let pushed = alone(&config(&[sgd, "training.push_every=4"]), 8);
    // The same as rounds of four replicas, whose mean is a quarter of the sum.
    let config = config(&[sgd, "training.mode=sync", "training.replicas=4", "training.rate=4e-4"]);
    let (store, training) = (store(&config), &config.training);
    let mut replicas: Vec<_> =
        (0..4).map(|_| Replica::new(&store.network, training, 4, Rows::InTurn)).collect();
    let job = Job { training, stages: 0..2 };
    for round in 0..2 {
        for (number, replica) in (4 * round..).zip(&mut replicas) {
            fill(replica, number);
        }
        learn_together(&mut replicas, &store, &job, step(&store, training, 4 * round), None).unwrap();
    }
    let difference = difference(&config, &weights(&store), &pushed);
    assert!(difference < 1e-4, "{difference}");
}

#[test]
fn the_gradient_of_all_weights_is_clipped_together() {
    let clipped = config(&["training.optimiser=sgd", "training.global_clip=2", "training.rate=0.25"]);
    let (before, after) = (weights(&store(&clipped)), alone(&clipped, 1));
    let change = before.iter().zip(&after).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
    assert!((change - 0.5).abs() < 1e-3, "a gradient of norm 2 times rate 0.25, not {change}");
    // A gradient that is short enough is left as it is.
    let free = config(&["training.optimiser=sgd", "training.global_clip=1e6"]);
    let plain = config(&["training.optimiser=sgd"]);
    assert!(difference(&plain, &alone(&plain, 1), &alone(&free, 1)) < 1e-5);
}

#[test]
fn many_replicas_on_few_cores_push_all_they_made_and_tell_how_stale_it_was() {
    const REPLICAS: usize = 8;
    for settings in [
        &["training.optimiser=adagrad"][..],
        &["training.optimiser=momentum", "training.fetch_every=3"],
        &["training.optimiser=sgd", "training.push_every=2", "training.precision=bf16"],
        &[
            "training.optimiser=adagrad",
            "training.fetch_every=1",
            "training.push_every=3",
            "training.global_clip=1",
        ],
    ] {
        let config = config(settings);
        let (store, training) = (store(&config), &config.training);
        let (before, ages) = (weights(&store), Mutex::new(Vec::new()));
        let steps = 30;
        std::thread::scope(|scope| {
            for number in 0..REPLICAS as u64 {
                let (store, ages) = (&store, &ages);
                scope.spawn(move || {
                    let mut replica = Replica::new(&store.network, training, REPLICAS, Rows::InTurn);
                    let job = Job { training, stages: 0..2 };
                    let pushed = |age| ages.lock().unwrap().push(age);
                    for n in 0..steps {
                        fill(&mut replica, number * steps + n);
                        let step = step(store, training, number * steps + n);
                        replica.learn(store, &job, step, None, pushed).unwrap();
                    }
                    replica.finish(store, &job, step(store, training, 0), pushed).unwrap();
                });
            }
        });
        let ages = ages.into_inner().unwrap();
        let pushes = REPLICAS as u64 * steps.div_ceil(training.push_every);
        assert_eq!((ages.len() as u64, store.clock.fetch().updates()), (pushes, pushes), "{settings:?}");
        assert!(
            ages.iter().all(|age| *age < pushes) && ages.iter().any(|age| *age > 0),
            "{settings:?}: {ages:?}"
        );
        let after = weights(&store);
        assert!(after.iter().all(|w| w.is_finite()) && after != before, "{settings:?}");
    }
}

/// A folder with frames in `f`, a config, and a long and a short run's settings.
fn frames() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), "synth --out v --videos 8 --seconds 2 --size 64x48 --fps 12");
    done(folder.path(), "sample v --out f --size 24 --per-video 20 --grey");
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/configs/tiny.toml"), folder.path().join("tiny.toml"))
        .unwrap();
    folder
}

/// Three replicas make a short round before each validation, the batch is no multiple of the lanes, and so large an ε leaves
/// filters dead.
const SYNC: &str = "train tiny.toml --frames f --set training.mode=sync --set training.replicas=3 --set training.batch=20 \
    --set training.steps=[400,400] --set training.validate_every=100 --set training.dead_units=revive \
    --set stages.2.epsilon=0.2";

/// The weights and the optimiser's sums of the newest checkpoint, as bytes.
fn newest(run: &Path) -> (String, Vec<Vec<u8>>) {
    let folder = checkpoint::latest(run).unwrap();
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    (name, vec![read("model.safetensors"), read("optimiser.safetensors")])
}

#[test]
fn a_run_killed_at_any_moment_goes_on_to_the_same_bits_and_leaves_only_whole_checkpoints() {
    let folder = frames();
    let moments = if std::env::var_os("STRIATE_SOAK").is_some() { 100 } else { 5 };
    let begun = Instant::now();
    let line = format!("{SYNC} --set training.checkpoint_steps=50");
    done(folder.path(), &format!("{line} --out whole"));
    let (whole, wanted) = (begun.elapsed(), newest(&folder.path().join("whole")));
    let mut rng = rng::stream(0, "moments", 0);
    let (mut kills, mut rounds, mut looked_at) = (0, 0, 0);
    while kills < moments {
        let name = format!("killed{rounds}");
        let out = folder.path().join(&name);
        for attempt in 0.. {
            let line = format!("{line} --out {name} --resume --quiet --threads {}", 1 + attempt % 3);
            let mut child = program();
            child.current_dir(folder.path()).args(line.split_whitespace());
            let mut child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            // Short enough that a run is killed several times, and each time is some way further.
            std::thread::sleep(whole.mul_f64(rng.random_range(0.05..0.6)));
            let ended = child.try_wait().unwrap();
            if ended.is_none() {
                child.kill().unwrap();
                kills += 1;
            }
            let output = child.wait_with_output().unwrap();
            for found in checkpoint::all(&out) {
                let checks = checkpoint::check(&found).unwrap();
                let bad: Vec<_> = checks.iter().filter(|check| check.problem.is_some()).collect();
                assert!(bad.is_empty(), "{}: {bad:?}", found.display());
                looked_at += 1;
            }
            if ended.is_some() {
                assert!(output.status.success(), "{}", text(&output.stderr));
                break;
            }
        }
        assert!(newest(&out) == wanted, "{name}: other bits than the run that was not killed");
        let unfinished = |path: &PathBuf| path.to_string_lossy().contains("partial");
        assert!(!snapshot(&out).keys().any(unfinished));
        rounds += 1;
        fs::remove_dir_all(&out).unwrap();
    }
    println!(
        "killed at {kills} moments in {rounds} runs; {looked_at} checkpoints looked at, all whole; all runs equal"
    );
}

#[test]
fn interrupted_by_a_signal_it_saves_and_goes_on_to_the_same_bits_on_other_threads() {
    let folder = frames();
    done(folder.path(), &format!("{SYNC} --out whole --threads 1"));
    for (signal, name) in [("INT", "one"), ("TERM", "two")] {
        let line = format!("{SYNC} --out {name} --threads 2");
        let mut child = program();
        child.current_dir(folder.path()).args(line.split_whitespace());
        let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = folder.path().join(name).join("log.jsonl");
        let since = Instant::now();
        while !fs::read_to_string(&log).is_ok_and(|text| text.lines().count() > 2) {
            assert!(since.elapsed() < Duration::from_secs(60), "no log after a minute");
            std::thread::sleep(Duration::from_millis(2));
        }
        let kill = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
        assert!(kill.unwrap().success());
        let output = child.wait_with_output().unwrap();
        let code = if signal == "INT" { 130 } else { 143 };
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("interrupted and saved"), "{}", text(&output.stdout));
        let line = line.replace("--threads 2", "--threads 3");
        done(folder.path(), &format!("{line} --resume"));
    }
    let weights = |name: &str| {
        let model =
            checkpoint::Checkpoint::load(&checkpoint::latest(&folder.path().join(name)).unwrap(), true)
                .unwrap();
        let arrays = [Weights::Encoder, Weights::Decoder, Weights::EncoderSums, Weights::DecoderSums];
        let of = |stage: &striate::network::Stage| arrays.map(|which| stage.weights(which));
        model.network.stages.iter().map(of).collect::<Vec<_>>()
    };
    assert!(weights("one") == weights("whole") && weights("two") == weights("whole"));
    let whole = fs::read_to_string(folder.path().join("whole/notes.jsonl")).unwrap();
    assert!(whole.contains("drawn anew"), "no filter was dead, so that reviving was not tried: {whole}");
    let notes = fs::read_to_string(folder.path().join("two/notes.jsonl")).unwrap();
    assert!(
        notes.contains("interrupted and saved") && notes.contains("went on with 3 replicas on 3 threads"),
        "{notes}"
    );
}

#[test]
fn a_full_disk_ends_the_run_or_not_as_asked_and_the_last_checkpoint_stays_good() {
    let Some(disk) = Disk::new(8 << 20) else { return };
    let (folder, out) = (frames(), format!("{}/run", disk.name()));
    let train = format!("train tiny.toml --frames f --out {out} --set training.steps=[100,400]");
    done(folder.path(), &train);
    let bytes = |part: &str| -> usize {
        snapshot(&disk.path().join(part)).values().map(|file| file.len().next_multiple_of(4096)).sum()
    };
    let room = bytes("run") + bytes("run/checkpoints") / 4;
    fs::remove_dir_all(disk.path().join("run")).unwrap();
    // Two checkpoints fit, which are kept until a third is written; what a full disk does to the log is as with them.
    assert!(disk.mount(&format!("remount,size={}", room.next_multiple_of(4096))));
    for (asked, step) in [("stop", 200), ("go-on", 500)] {
        let line = format!("{train} --set training.checkpoint_steps=100 --set training.on_full_disk={asked}");
        let output = run(folder.path(), &line);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{asked}: {stderr}");
        assert!(
            stderr.contains("error: a checkpoint in") || stderr.contains("No space left"),
            "{asked}: {stderr}"
        );
        assert_eq!(
            stderr.contains("no checkpoint was written, the one before is good"),
            asked == "go-on",
            "{stderr}"
        );
        for found in checkpoint::all(&disk.path().join("run")) {
            assert!(
                checkpoint::check(&found).unwrap().iter().all(|check| check.problem.is_none()),
                "{asked}"
            );
        }
        let log = fs::read_to_string(disk.path().join("run/log.jsonl")).unwrap();
        let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        assert!(last["step"].as_u64().unwrap() >= step, "{asked}: {last}");
        assert!(disk.mount("remount,size=16777216"));
        let summary = json(folder.path(), &format!("{line} --resume"));
        assert_eq!(summary["finished"], true, "{asked}: {summary}");
        fs::remove_dir_all(disk.path().join("run")).unwrap();
        assert!(disk.mount(&format!("remount,size={}", room.next_multiple_of(4096))));
    }
}

#[test]
fn pictures_and_shards_that_are_damaged_or_gone_are_named_counted_and_passed_over() {
    let folder = frames();
    let at = |name: &str| folder.path().join(name);
    // Shards of 40 pictures; a picture of the first is damaged, the second cut short, the third gone.
    done(folder.path(), "sample v --out shards --size 24 --per-video 20 --grey --frames-per-shard 40");
    let shards: Vec<PathBuf> = (0..4).map(|n| at(&format!("shards/frames-0000{n}.tar"))).collect();
    let store = striate::frames::FrameStore::open(&at("shards")).unwrap();
    let mut first = fs::read(&shards[0]).unwrap();
    let picture = first.windows(2).position(|bytes| bytes == [0xff, 0xd8]).unwrap();
    first[picture..picture + 200].fill(0);
    fs::write(&shards[0], first).unwrap();
    let second = fs::read(&shards[1]).unwrap();
    fs::write(&shards[1], &second[..second.len() / 2]).unwrap();
    fs::remove_file(&shards[2]).unwrap();
    let shape = striate::geometry::MapShape { channels: 1, rows: 24, cols: 24 };
    fs::create_dir(at("decoded")).unwrap();
    let frames = striate::dataset::Dataset::load(&store, shape, 0, &at("decoded"), false, || ()).unwrap();
    let warnings = frames.warnings.join("\n");
    // Of the second half a picture or two less than half, since records differ in size.
    assert!((160 - 90..160 - 55).contains(&frames.len()), "{} are left", frames.len());
    let count = format!("{} of 160 pictures could not be read", 160 - frames.len());
    for word in [&count[..], "frames-00000.tar", "frames-00001.tar", "frames-00002.tar"] {
        assert!(warnings.contains(word), "no `{word}` in {warnings}");
    }
}

#[test]
fn decoded_frames_that_are_cut_short_while_a_run_trains_are_passed_over_and_counted() {
    let folder = frames();
    // Preprocessing is nothing beside learning: frames are read from the file as they are needed.
    let line =
        "train tiny.toml --frames f --out run --set input.preprocess=none --set training.steps=[4000,4000]";
    let child = program()
        .current_dir(folder.path())
        .args(line.split_whitespace())
        .args(["--json", "--quiet"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (log, pixels) = (folder.path().join("run/log.jsonl"), folder.path().join("run/frames.u8"));
    let since = Instant::now();
    while !fs::read_to_string(&log).is_ok_and(|text| text.lines().count() > 2) {
        assert!(since.elapsed() < Duration::from_secs(60), "no log after a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
    fs::File::options().write(true).open(&pixels).unwrap().set_len(100 * 576).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("frames.u8 was cut short: 60 of 160 pictures can no longer be read"), "{stderr}");
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(summary["skipped"].as_u64().unwrap() > 1000 && summary["finished"] == true, "{summary}");
}

/// Settings without the bounds that keep a run from diverging.
const UNSAFE: &str =
    "--set training.optimiser=sgd --set training.max_step=0 --set training.decoder_norm_bound=0";

#[test]
fn a_run_that_diverges_names_the_stage_and_leaves_the_last_checkpoint_good() {
    let folder = frames();
    let at = |name: &str| folder.path().join(name);
    done(folder.path(), &format!("train tiny.toml --frames f --out good {UNSAFE} --set training.rate=1e-4"));
    let (whole, steps) = (snapshot(&at("good/checkpoints")), "--set training.steps=[200,400]");
    let changes = format!("{UNSAFE} --set training.rate=0.1 {steps} --resume --accept-changes");
    let output = run(folder.path(), &format!("train tiny.toml --frames f --out good {changes}"));
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("error: the loss of stage 2") && stderr.contains("lower training.rate"),
        "{stderr}"
    );
    let step = stderr.split("at step ").nth(1).and_then(|rest| rest.split(':').next()).unwrap();
    let step: u64 = step.parse().unwrap();
    assert!((400..440).contains(&step), "within 20 steps of the first that is no number: {stderr}");
    assert!(whole.iter().all(|(path, bytes)| fs::read(path).is_ok_and(|now| now == *bytes)));
    done(folder.path(), "verify --run good");
    let notes = fs::read_to_string(at("good/notes.jsonl")).unwrap();
    assert!(
        notes.contains("setting changed: training.rate: 0.0001 -> 0.1") && notes.contains("stage 2"),
        "{notes}"
    );

    // Asked to, it goes back and tries half the rate, and says so.
    let line = format!("train tiny.toml --frames f --out rolled {UNSAFE} --set training.rate=0.4");
    let output = run(folder.path(), &format!("{line} --set training.on_divergence=roll-back"));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("went back to step 0, at rate 0.2"), "{stderr}");
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    done(folder.path(), "verify --run rolled");
}

#[test]
fn settings_that_change_are_refused_by_name_unless_asked_for() {
    let folder = frames();
    done(folder.path(), "train tiny.toml --frames f --out run");
    let whole = snapshot(&folder.path().join("run"));
    for (settings, words) in [
        ("--set training.rate=0.5", &["training.rate: 0.02 -> 0.5", "--accept-changes"][..]),
        ("--set stages.1.maps=5 --accept-changes", &["stages.1.maps: 4 -> 5"]),
        ("--set training.steps=[300,200] --accept-changes", &["training.steps cannot change what is done"]),
        ("--seed 5", &["seed 0, not 5"]),
        ("--set training.optimiser=sgd --accept-changes", &["training.optimiser: \"adagrad\" -> \"sgd\""]),
    ] {
        let output = run(folder.path(), &format!("train tiny.toml --frames f --out run --resume {settings}"));
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{settings}: {stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{settings}: {stderr}");
        assert!(snapshot(&folder.path().join("run")) == whole, "{settings}");
    }
    // What an older version wrote, which held no frames out.
    let state = checkpoint::latest(&folder.path().join("run")).unwrap().join("state.json");
    let good = fs::read_to_string(&state).unwrap();
    let mut old: serde_json::Value = serde_json::from_str(&good).unwrap();
    assert!(old.as_object_mut().unwrap().remove("held_out").is_some());
    fs::write(&state, old.to_string()).unwrap();
    let output = run(folder.path(), "train tiny.toml --frames f --out run --resume");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("begun by an older version"), "{}", text(&output.stderr));
    fs::write(&state, good).unwrap();

    let longer = "--set training.steps=[200,260] --set training.rate=0.01 --set stages.2.sparsity_weight=0";
    let summary = json(
        folder.path(),
        &format!("train tiny.toml --frames f --out run --resume {longer} --accept-changes"),
    );
    assert_eq!((&summary["new_steps"], &summary["finished"]), (&60.into(), &true.into()), "{summary}");
    let log = fs::read_to_string(folder.path().join("run/log.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(last["stages"][0]["sparsity"], 0.0, "the new weight of sparsity counts: {last}");
    let again = json(folder.path(), &format!("train tiny.toml --frames f --out run --resume {longer}"));
    assert_eq!(again["new_steps"], 0, "{again}");
}

#[test]
fn the_last_and_the_best_checkpoints_are_kept() {
    let folder = frames();
    let line =
        "train tiny.toml --frames f --out run --set training.checkpoint_steps=40 --set training.keep_last=2";
    done(folder.path(), line);
    // Then at a rate that harms.
    let harm = "--set training.rate=9 --set training.rate_hold=1 --set training.max_step=0.9 --set training.loss_jump=0";
    let more = format!("{line} --set training.steps=[200,400] {harm} --resume --accept-changes");
    let summary = json(folder.path(), &more);
    let names = |run: &str| -> Vec<String> {
        let all = checkpoint::all(&folder.path().join(run));
        all.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    };
    let kept = names("run");
    let best = format!("step-{:010}", summary["best"]["step"].as_u64().unwrap());
    assert_eq!(kept, [&best, "step-0000000560", "step-0000000600"], "the best is {best}");
    let validations = fs::read_to_string(folder.path().join("run/validation.jsonl")).unwrap();
    assert!(validations.lines().count() >= 10, "{validations}");
}

#[test]
fn a_sweep_trains_every_setting_once_and_goes_on_where_it_was() {
    let folder = frames();
    let line = "sweep tiny.toml --frames f --out s --vary training.rate=0.01,0.02 --seeds 0,1 --set training.steps=[40,40]";
    let table = done(folder.path(), line);
    assert!(
        table.contains("training.rate=0.01 seed 1") && table.contains("2 seeds") && table.contains('±'),
        "{table}"
    );
    let before = snapshot(&folder.path().join("s"));
    let results = json(folder.path(), line);
    assert_eq!(results["runs"].as_array().unwrap().len(), 4);
    assert!(
        results["runs"].as_array().unwrap().iter().all(|run| run["summary"]["finished"] == true),
        "{results}"
    );
    let models = |files: &std::collections::BTreeMap<PathBuf, Vec<u8>>| {
        files
            .iter()
            .filter(|(path, _)| path.ends_with("model.safetensors"))
            .map(|(_, b)| b.clone())
            .collect::<Vec<_>>()
    };
    assert!(models(&snapshot(&folder.path().join("s"))) == models(&before) && models(&before).len() >= 4);
    let output = run(folder.path(), &line.replace("training.rate=0.01,", "training.rat=1,"));
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}

#[test]
fn watch_and_find_lr_say_what_a_user_wants_to_know() {
    let folder = frames();
    done(folder.path(), "train tiny.toml --frames f --out run");
    let look = done(folder.path(), "watch run --once");
    for word in [
        "400/400 steps (100 %), finished",
        "stage 2",
        "held out: loss",
        "checkpoint run/checkpoints/step-",
        "done",
    ] {
        assert!(look.contains(word), "no `{word}` in {look}");
    }
    assert_eq!(json(folder.path(), "watch run")["steps_planned"], 400);
    let output = run(folder.path(), "watch f --once");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("not a run"), "{}", text(&output.stderr));

    let found = json(folder.path(), "train tiny.toml --frames f --find-lr");
    let rate = found["rate"].as_f64().unwrap();
    assert!((1e-4..1.0).contains(&rate) && found["phases"].as_array().unwrap().len() == 2, "{rate}");
    assert!(!folder.path().join("outputs").exists());
}
