//! The program from outside: what it says and how it exits when its inputs are bad, when the disk is full, when it is
//! interrupted, and when all is well.

mod common;
#[path = "common/disk.rs"]
mod disk;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{done, json, program, run, snapshot, text};
use disk::Disk;
use tempfile::TempDir;

/// A command that must fail: what is wrong, the arguments, the exit code, and what stderr must say.
///
/// It runs in the folder of [`material`], where nothing may change but the folder `new`.
type Failure = (&'static str, &'static str, i32, &'static [&'static str]);

#[rustfmt::skip]
const FAILURES: &[Failure] = &[
    // Usage: clap's own errors name the flag.
    ("no command", "", 2, &["Usage", "Commands"]),
    ("unknown command", "trian", 2, &["trian", "train"]),
    ("unknown flag", "train tiny.toml --frame f --out new", 2, &["--frame"]),
    ("no frames named", "train tiny.toml --out new", 2, &["--frames"]),
    ("size 0", "sample v --out new --size 0", 2, &["--size", "from 1 to 4096"]),
    ("no frame per video", "sample v --out new --per-video 0", 2, &["--per-video", "1..="]),
    ("quality 0", "sample v --out new --quality 0", 2, &["--quality", "1..=100"]),
    ("no threads", "train tiny.toml --frames f --out new --threads 0", 2, &["--threads", "1..="]),
    ("negative seed", "info tiny.toml --seed=-1", 2, &["--seed"]),
    ("norm 0", "visualize run --norm 0", 2, &["--norm", "above 0"]),
    ("no units", "visualize run --units 0", 2, &["--units", "above 0"]),

    // Videos.
    ("missing video", "sample nowhere.mp4 --out new", 1, &["nowhere.mp4", "No such file", "no frame could be sampled"]),
    ("folder without videos", "sample empty --out new", 1, &["empty", "holds no video", "mp4"]),
    ("text named mp4", "sample text.mp4 --out new", 1, &["skipped: text.mp4", "cannot be read as a video"]),
    ("empty video", "sample zero.mp4 --out new", 1, &["skipped: zero.mp4", "is empty"]),
    ("audio only", "sample sound.wav --out new", 1, &["skipped: sound.wav", "no video stream"]),
    ("a bad video under --strict", "sample v text.mp4 --out new --strict", 3, &["text.mp4", "1 of 3 files", "--strict"]),
    ("frame set there already", "sample v --out f", 1, &["f: already holds a frame set", "--overwrite"]),
    ("sample below a file", "sample v --out text.mp4/new", 1, &["text.mp4/new", "cannot create"]),
    ("sample where nothing can be written", "sample v --out /proc/new", 1, &["/proc/new", "cannot create"]),

    // Drawn videos.
    ("odd size", "synth --out new --videos 1 --size 33x33", 2, &["--size", "33x33", "even"]),
    ("size of nothing", "synth --out new --videos 1 --size 0x0", 2, &["--size", "0x0", "16 to 4096"]),
    ("absurd size", "synth --out new --videos 1 --size 90000x90000", 2, &["--size", "90000x90000", "4096"]),
    ("size that is no number", "synth --out new --videos 1 --size big", 2, &["--size", "160x120"]),
    ("no videos", "synth --out new --videos 0", 2, &["--videos", "is 0", "1 to"]),
    ("no time", "synth --out new --videos 1 --seconds 0", 2, &["--seconds", "more than 0"]),
    ("time that is no number", "synth --out new --videos 1 --seconds nan", 2, &["--seconds", "NaN"]),
    ("no frames a second", "synth --out new --videos 1 --fps 0", 2, &["--fps", "1 to 240"]),
    ("occupied folder", "synth --out v --videos 1", 1, &["v: is not empty", "--overwrite"]),
    ("synth onto a file", "synth --out text.mp4 --videos 1", 1, &["text.mp4", "expected a folder"]),
    ("synth below a file", "synth --out text.mp4/new --videos 1", 1, &["text.mp4/new", "cannot create"]),

    // Configs.
    ("missing config", "train none.toml --frames f --out new", 2, &["none.toml", "cannot read", "No such file"]),
    ("config is a folder", "train empty --frames f --out new", 2, &["empty", "cannot read"]),
    ("config is no TOML", "train broken.toml --frames f --out new", 2, &["broken.toml", "not TOML", "line 2"]),
    ("config is a video", "train v/synth-00000.mp4 --frames f --out new", 2, &["synth-00000.mp4", "cannot read"]),
    ("empty config", "info void.toml", 2, &["void.toml", "missing field"]),
    ("unknown key", "train misspelt.toml --frames f --out new", 2, &["misspelt.toml", "stages.1.feild", "`stages.field`"]),
    ("value of the wrong type", "info tiny.toml --set stages.1.maps=many", 2, &["stages.1.maps", "many", "whole number"]),
    ("value out of range", "info tiny.toml --set training.rate=-1", 2, &["tiny.toml", "training.rate", "-1", "above 0"]),
    ("number of weights beyond sense", "info tiny.toml --set stages.1.maps=10000000", 2, &["stages.1.maps", "65536"]),
    ("unknown word", "info tiny.toml --set training.mode=fast", 2, &["training.mode", "fast", "`sync`"]),
    ("field larger than its map", "info tiny.toml --set stages.1.field=25", 2, &["stage 1", "25x25", "24x24"]),
    ("no stages", "info stageless.toml", 2, &["stageless.toml", "`stages`", "at least one"]),
    ("steps for one stage only", "info tiny.toml --set training.steps=[5]", 2, &["training.steps", "list of 1", "2 numbers"]),
    ("--set without =", "train tiny.toml --frames f --out new --set rate", 2, &["--set", "rate", "KEY=VALUE"]),
    ("--set of no stage", "info tiny.toml --set stages.3.maps=1", 2, &["stages.3.maps", "from 1 to 2"]),
    ("--set of a section", "info tiny.toml --set stages=3", 2, &["--set", "stages=3", "one setting"]),
    ("--set of an unknown key", "info tiny.toml --set learning_rate=3", 2, &["learning_rate", "`training.rate`"]),
    ("greedy with a joint objective", "info tiny.toml --set training.objective=joint-full", 2, &["joint-full", "together"]),
    ("bench of what does not fit", "bench --set input.height=8000 --set input.width=8000 --set input.preprocess=none --only network", 1, &["GB"]),
    ("bench without threads", "bench --threads 0", 2, &["--threads", "1..="]),
    ("sync with replicas left open", "info tiny.toml --set training.mode=sync --set training.replicas=0", 2, &["training.replicas", "1 or more"]),
    ("fetching now and then in sync", "info tiny.toml --set training.mode=sync --set training.fetch_every=4", 2, &["training.fetch_every", "sync"]),
    ("zca of large pictures", "info tiny.toml --set input.preprocess=zca --set input.height=300 --set input.width=300", 2, &["input.preprocess", "90000", "conv"]),
    ("--set on frames", "info f --set training.rate=1", 2, &["--set", "config file"]),

    // Frames.
    ("missing frames", "train tiny.toml --frames nowhere --out new", 1, &["nowhere", "No such file"]),
    ("empty folder of frames", "train tiny.toml --frames empty --out new", 1, &["empty", "neither tar shards nor pictures"]),
    ("frames in a text file", "train tiny.toml --frames tiny.toml --out new", 1, &["tiny.toml", "neither a folder nor a .tar"]),
    ("tar without a picture", "train tiny.toml --frames nopicture.tar --out new", 1, &["nopicture.tar", "no picture"]),
    ("text named tar", "train tiny.toml --frames text.tar --out new", 1, &["text.tar", "no picture", "damaged"]),
    ("one frame to whiten", "train tiny.toml --frames one.tar --out new --set input.preprocess=zca", 1, &["too few", "at least 2"]),
    ("frames without contrast", "train tiny.toml --frames black --out new", 1, &["black", "of one colour"]),
    ("only damaged pictures", "train tiny.toml --frames damaged --out new", 1, &["none of 1 pictures", "damaged/b.jpg", "decode"]),

    // Runs.
    ("train into a run", "train tiny.toml --frames f --out run", 1, &["run", "--resume"]),
    ("train into a folder with something else", "train tiny.toml --frames f --out v", 1, &["v: holds something", "--resume"]),
    ("go on where no run is", "train tiny.toml --frames f --out v --resume", 1, &["v: holds something", "no run to continue"]),
    ("train onto a file", "train tiny.toml --frames f --out text.mp4", 1, &["text.mp4", "cannot create"]),
    ("train below a file", "train tiny.toml --frames f --out text.mp4/new", 1, &["text.mp4/new", "cannot create"]),
    ("go on with other settings", "train tiny.toml --frames f --out run --resume --set training.rate=0.5 --set stages.2.maps=3", 1, &["training.rate: 0.02 -> 0.5", "stages.2.maps: 8 -> 3"]),
    ("go on with other frames", "train tiny.toml --frames others --out run --resume", 1, &["other frames", "12 of", "now 6"]),
    ("unknown instruction set", "STRIATE_CPU=nonsense train tiny.toml --frames f --out new", 2, &["STRIATE_CPU", "nonsense", "scalar"]),
    ("loss that overflows", "train tiny.toml --frames f --out new --set training.optimiser=sgd --set training.rate=1e39 --set training.warmup=0 --set training.max_step=0", 1, &["stage 1", "no number", "training.rate"]),
    ("no run", "visualize nowhere", 1, &["nowhere", "not a run"]),
    ("frames are no run", "visualize f", 1, &["f: not a run", "no checkpoint"]),
    ("stage that is not there", "visualize run --stage 3", 2, &["--stage", "is 3", "from 1 to 2"]),
    ("charges where there are no pixels", "visualize run --pixel-box 2", 2, &["--pixel-box", "is 2", "--parameters pixels"]),
    ("visualize with missing frames", "visualize run --frames nowhere", 1, &["nowhere", "No such file"]),
    ("evaluate without negatives", "evaluate run --positives f", 2, &["--negatives"]),
    ("evaluate no run", "evaluate nowhere --positives f --negatives f", 1, &["nowhere", "not a run"]),
    ("evaluate missing pictures", "evaluate run --positives nowhere --negatives f", 1, &["nowhere", "No such file"]),
    ("a pattern that nothing matches", "evaluate run --positives f::dogs* --negatives f", 1, &["f: none of the", "`dogs*`", "one key is"]),
    ("one positive picture", "evaluate run --positives one.tar --negatives f", 1, &["--positives: 1 pictures", "at least 2"]),
    ("a share that is none", "evaluate run --positives f --negatives f --share 1", 2, &["--share", "between 0 and 1"]),
    ("a concept that is no name", "evaluate run --positives f --negatives f --concept a/b", 2, &["--concept", "letters"]),
    ("evaluate a stage that is not there", "evaluate run --positives f --negatives f --stage 3", 2, &["--stage", "is 3", "from 1 to 2"]),
    ("labels of what is not drawn", "evaluate run --labels v/labels.jsonl --pictures f --concept dog", 2, &["--concept", "is dog", "face, cat or body"]),
    ("labels without pictures", "evaluate run --labels v/labels.jsonl --concept face", 2, &["--pictures"]),
    ("labels that are none", "evaluate run --labels tiny.toml --pictures f --concept face", 1, &["tiny.toml: line 1 is no label"]),
    ("pictures that are no frames of videos", "evaluate run --labels v/labels.jsonl --pictures one.tar --concept face", 1, &["one.tar"]),
    ("cut into a folder with something else", "frames cut f --labels v/labels.jsonl --out v", 1, &["v: not empty", "--out"]),
    ("cut what has no labels", "frames cut one.tar --labels v/labels.jsonl --out new", 1, &["one.tar"]),
    ("controls without negatives", "controls run --positives f", 2, &["--negatives"]),
    ("controls of no run", "controls nowhere --positives f --negatives f", 1, &["nowhere", "not a run"]),
    ("a control that is none", "controls run --positives f --negatives f --control luck", 2, &["--control", "luck", "k-means"]),
    ("left out are frames not named", "controls run --positives f --negatives f --control without-concept", 2, &["--control", "--concept-frames"]),
    ("a missing file of keys", "controls run --positives f --negatives f --concept-frames nowhere", 1, &["nowhere", "No such file"]),
    ("keys that no frame has", "controls run --positives f --negatives f --control without-concept --concept-frames tiny.toml", 1, &["f: none of the", "keys are like"]),
    ("a pattern that no line has", "controls run --positives f --negatives f --concept-frames tiny.toml::*dogs*", 1, &["tiny.toml", "no line is like `*dogs*`"]),
    ("tuning of no run", "tuning nowhere", 1, &["nowhere", "not a run"]),
    ("tuning of a stage that is not there", "tuning run --stage 3", 2, &["--stage", "is 3", "from 1 to 2"]),
    ("tuning of no units", "tuning run --units 0", 2, &["--units", "above 0"]),
    ("too few phases", "tuning run --phases 2", 2, &["--phases", "is 2", "from 4 to 64"]),
    ("too few orientations", "tuning run --orientations 0", 2, &["--orientations", "is 0", "from 4 to 180"]),
    ("tuning onto a file", "tuning run --out text.mp4", 1, &["text.mp4", "cannot create"]),
    ("invariance without pictures", "invariance run", 2, &["--images"]),
    ("invariance of no run", "invariance nowhere --images f", 1, &["nowhere", "not a run"]),
    ("invariance to missing pictures", "invariance run --images nowhere", 1, &["nowhere", "No such file"]),
    ("invariance to damaged pictures", "invariance run --images damaged", 1, &["none of 1 pictures", "damaged/b.jpg", "decode"]),
    ("invariance with missing frames", "invariance run --images f --frames nowhere", 1, &["nowhere", "No such file"]),
    ("invariance of a stage that is not there", "invariance run --images f --units 3:0:0:0", 2, &["--units", "3:0:0:0", "from 1 to 2"]),
    ("invariance of a unit that is not there", "invariance run --images f --units 2:0:0:0,1:0:99:0", 2, &["--units", "1:0:99:0", "a row below"]),
    ("invariance of no unit's name", "invariance run --images f --units 1:2", 2, &["--units", "stage:map:row:col"]),
    ("invariance with a name of a folder", "invariance run --images f --name a/b", 2, &["--name", "`a/b`", "file name"]),
    ("invariance onto a file", "invariance run --images f --out text.mp4", 1, &["text.mp4", "cannot create"]),
    ("info on nothing", "info nowhere", 1, &["nowhere", "No such file"]),
    ("info on text", "info text.mp4", 1, &["text.mp4", "neither"]),
    ("info on an empty folder", "info empty", 1, &["empty", "neither"]),
    ("info on a run without checkpoint", "info run-without", 1, &["run-without", "no checkpoint"]),
    // To be added with `report` itself: ("report on no run", "report nowhere", 1, &["nowhere", "not a run"]),

    // Checkpoints.
    ("checkpoint cut short", "visualize run-cut", 1, &["model.safetensors", "not a whole checkpoint"]),
    ("checkpoint of no bytes", "visualize run-void", 1, &["model.safetensors", "not a whole checkpoint"]),
    ("checkpoint with garbled metadata", "visualize run-garbled", 1, &["model.safetensors", "not a whole checkpoint"]),
    ("checkpoint without a tensor", "visualize run-missing", 1, &["stage2.W1", "missing"]),
    ("checkpoint of a later version", "visualize run-future", 1, &["model.safetensors", "format is 9", "reads 1"]),
    ("checkpoint with impossible settings", "visualize run-impossible", 1, &["run-impossible", "stages.1.field"]),
    ("going on from one cut short", "train tiny.toml --frames f --out run-cut --resume", 1, &["model.safetensors", "not a whole"]),
    ("garbled state", "info run-state", 1, &["state.json", "not the state of a run"]),
    ("going on from a garbled state", "train tiny.toml --frames f --out run-state --resume", 1, &["state.json", "not the state"]),
    ("checkpoint with a weight that is no number", "visualize run-nan", 1, &["run-nan", "stage2.W2", "no number"]),
    ("state that the settings do not have", "train tiny.toml --frames f --out run-late --resume", 1, &["run-late", "step 99 of phase 2"]),
    ("pictures where a file is", "visualize run-file --units 1 --evaluations 1", 1, &["run-file/visualize", "cannot replace"]),
    ("optimiser's sums missing", "train tiny.toml --frames f --out run-sumless --resume", 1, &["optimiser.safetensors", "No such file"]),

    // Golden files.
    ("missing golden file", "verify nowhere.safetensors", 1, &["nowhere.safetensors", "No such file"]),
    ("no golden file", "verify text.mp4", 1, &["text.mp4", "not a golden file"]),
    ("verify meets a weight that is no number", "verify --run run-nan", 1, &["2 of 12 checks failed"]),
    ("verify meets a file that was changed", "verify --run run-late", 1, &["1 of 12 checks failed"]),
    ("verify meets files without hashes", "verify --run run-unhashed", 1, &["3 of 12 checks failed"]),
    ("verify misses the optimiser", "verify --run run-sumless", 1, &["2 of 9 checks failed"]),
    ("verify meets half a checkpoint", "verify --run run-cut", 1, &["model.safetensors", "not a whole checkpoint"]),
    ("verify a run without checkpoint", "verify --run run-without", 1, &["run-without", "no checkpoint"]),
    ("a checkpoint is no golden file", "verify run/checkpoints/step-0000000004/model.safetensors", 1, &["model.safetensors", "`spec`"]),
    ("golden file cut short", "verify cut.safetensors", 1, &["cut.safetensors", "not a golden file"]),
    ("golden file with a wrong value", "verify wrong.safetensors", 1, &["1 of", "off by more"]),
];

/// Inputs that are bad in part: the bad part is named, the rest is used, and the exit code is 0.
#[rustfmt::skip]
const TOLERATED: &[(&str, &str, &[&str])] = &[
    ("a text among videos", "sample text.mp4 v --out new", &["skipped: text.mp4: cannot be read"]),
    ("a video cut short", "sample cut.avi --out new --per-video 4", &[]),
    ("a tar cut short", "train tiny.toml --frames cut.tar --out new", &["warning: cut.tar: damaged after", "pictures"]),
    ("a damaged picture", "train tiny.toml --frames pictures --out new", &["warning: left out: pictures/b.jpg", "decode"]),
    ("a log torn by a power cut", "info run-torn", &[]),
    ("the first picture is damaged", "info damaged", &["warning: damaged/b.jpg", "decode"]),
    ("pictures of another size", "visualize run --frames pictures --units 1 --evaluations 1", &["resized to 24x24"]),
    ("a damaged picture to change", "invariance run --images pictures --count 5 --out new", &["left out: pictures/b.jpg", "decode"]),
];

/// A failure as every one must be: the code, one line `error:`, every word, no panic.
fn check_failure(output: &Output, case: &str, code: i32, words: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{case}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{case}: no `{word}` in: {stderr}");
    }
    assert!(!stderr.contains("panicked") && !stderr.contains("backtrace"), "{case}: {stderr}");
    if stderr.contains("Usage:") || stderr.contains("For more information, try") {
        return; // clap explains itself on several lines
    }
    assert_eq!(stderr.matches("error:").count(), 1, "{case}: {stderr}");
    assert!(stderr.lines().last().unwrap().starts_with("error: "), "{case}: {stderr}");
    check_prefixes(&stderr, case);
}

/// Nobody but us writes to stderr, libraries for example.
fn check_prefixes(stderr: &str, case: &str) {
    let known =
        |line: &str| ["error: ", "warning: ", "skipped: "].iter().any(|prefix| line.starts_with(prefix));
    assert!(stderr.lines().all(known), "{case}: {stderr}");
}

fn copy_folder(from: &Path, to: &Path) {
    for (path, bytes) in snapshot(from) {
        let to = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, bytes).unwrap();
    }
}

/// `bytes` with the only `from` in it replaced by a `to` of the same length.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("is there");
    [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
}

/// A folder with good things (videos `v`, frames `f` and `others`, `tiny.toml`, `run`) and bad ones.
fn material() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let write = |name: &str, bytes: &[u8]| fs::write(at(name), bytes).unwrap();
    done(folder.path(), "synth --out v --videos 2 --seconds 1 --size 64x48 --fps 12");
    done(folder.path(), "sample v --out f --size 24 --per-video 6 --grey --format png");
    done(folder.path(), "sample v --out others --size 24 --per-video 3 --grey --seed 1");
    // Without whitening a run is small.
    let tiny =
        include_str!("../configs/tiny.toml").replace("\"zca\"", "\"none\"").replace("[200, 200]", "[2, 2]");
    write("tiny.toml", tiny.as_bytes());
    done(folder.path(), "train tiny.toml --frames f --out run");

    write("text.mp4", b"This is no video.\n");
    write("zero.mp4", b"");
    let header =
        b"RIFF\x24\x04\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0data\0\x04\0\0";
    write("sound.wav", &[&header[..], &[128; 1024]].concat());
    done(folder.path(), "synth --out films --videos 3 --seconds 1 --size 64x48 --fps 12");
    let films = snapshot(&at("films"));
    // Whatever encoders there are, one of the first three videos is an AVI.
    let is_avi = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "avi");
    let film = &films[films.keys().find(is_avi).unwrap()];
    write("cut.avi", &film[..film.len() * 2 / 3]);
    fs::create_dir(at("empty")).unwrap();

    write("broken.toml", b"[input]\nchannels = = 1\n");
    write("void.toml", b"");
    write("misspelt.toml", tiny.replacen("field =", "feild =", 1).as_bytes());
    write("stageless.toml", b"stages = []\n[input]\n[training]\nsteps = []\n");

    let shard = fs::read(at("f/frames-00000.tar")).unwrap();
    write("cut.tar", &shard[..shard.len() / 2]);
    write("text.tar", "This is no tar file. ".repeat(100).as_bytes());
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_path_with_name(at("tiny.toml"), "tiny.toml").unwrap();
    write("nopicture.tar", &archive.into_inner().unwrap());
    let mut archive = tar::Builder::new(Vec::new());
    image::GrayImage::from_fn(24, 24, |x, y| image::Luma([(x * y) as u8])).save(at("one.png")).unwrap();
    archive.append_path_with_name(at("one.png"), "one.png").unwrap();
    write("one.tar", &archive.into_inner().unwrap());
    for name in ["pictures", "damaged", "black"] {
        fs::create_dir(at(name)).unwrap();
    }
    for name in ["black/a.png", "black/b.png"] {
        image::GrayImage::new(24, 24).save(at(name)).unwrap();
    }
    let picture = image::GrayImage::from_fn(30, 30, |x, y| image::Luma([(x * 7 + y * y) as u8]));
    picture.save(at("pictures/a.png")).unwrap();
    for name in ["pictures/b.jpg", "damaged/b.jpg"] {
        write(name, b"\xff\xd8\xff\xe0 and then nothing of a picture");
    }

    let checkpoint = "checkpoints/step-0000000004";
    let model = fs::read(at("run").join(checkpoint).join("model.safetensors")).unwrap();
    for (name, bytes) in [
        ("cut", model[..model.len() / 2].to_vec()),
        ("void", Vec::new()),
        ("garbled", replaced(&model, "{\"__metadata__\"", "{?__metadata__\"")),
        ("missing", replaced(&model, "\"stage2.W1\"", "\"stage2.XX\"")),
        ("future", replaced(&model, "\\\"format\\\":1,", "\\\"format\\\":9,")),
        ("nan", {
            let tensors = safetensors::SafeTensors::deserialize(&model).unwrap();
            let place =
                tensors.tensor("stage2.W2").unwrap().data().as_ptr() as usize - model.as_ptr() as usize;
            let mut bytes = model.clone();
            bytes[place + 8..place + 12].copy_from_slice(&f32::NAN.to_le_bytes());
            bytes
        }),
        ("impossible", replaced(&model, "\\\"field\\\":8,", "\\\"field\\\":0,")),
    ] {
        copy_folder(&at("run"), &at(&format!("run-{name}")));
        fs::write(at(&format!("run-{name}")).join(checkpoint).join("model.safetensors"), bytes).unwrap();
    }
    for name in
        ["run-state", "run-late", "run-torn", "run-file", "run-sumless", "run-without", "run-unhashed"]
    {
        copy_folder(&at("run"), &at(name));
    }
    fs::write(at("run-state").join(checkpoint).join("state.json"), "{\"phase\": 1, ").unwrap();
    let state = fs::read_to_string(at("run/checkpoints/step-0000000004/state.json")).unwrap();
    let late =
        state.replace("\"phase\": 2", "\"phase\": 1").replace("\"phase_step\": 0", "\"phase_step\": 99");
    fs::write(at("run-late").join(checkpoint).join("state.json"), late).unwrap();
    write("run-torn/log.jsonl", &[&fs::read(at("run/log.jsonl")).unwrap()[..], b"{\"step\": 1"].concat());
    write("run-file/visualize", b"My notes on this run.\n");
    fs::remove_file(at("run-sumless").join(checkpoint).join("optimiser.safetensors")).unwrap();
    fs::remove_dir_all(at("run-without/checkpoints")).unwrap();
    fs::write(at("run-unhashed").join(checkpoint).join("SHA256SUMS"), "").unwrap();

    let golden = include_bytes!("golden/one_stage.safetensors");
    write("cut.safetensors", &golden[..golden.len() - 100]);
    let tensors = safetensors::SafeTensors::deserialize(golden).unwrap();
    let place = tensors.tensor("stage1.h").unwrap().data().as_ptr() as usize - golden.as_ptr() as usize;
    let mut wrong = golden.to_vec();
    wrong[place..place + 8].copy_from_slice(&1e6f64.to_le_bytes());
    write("wrong.safetensors", &wrong);
    folder
}

#[test]
fn bad_inputs_fail_with_one_line_and_leave_everything_as_it_was() {
    let folder = material();
    let before = snapshot(folder.path());
    let mut failed: Vec<&str> = Vec::new();
    for (name, line, code, words) in FAILURES {
        let case = format!("{name} (striate {line})");
        let result = std::panic::catch_unwind(|| {
            check_failure(&run(folder.path(), line), &case, *code, words);
            // A new folder may be there, but nothing else.
            let _ = fs::remove_dir_all(folder.path().join("new"));
            let after = snapshot(folder.path());
            let differ = |a: &BTreeMap<PathBuf, Vec<u8>>, b: &BTreeMap<PathBuf, Vec<u8>>| -> Vec<PathBuf> {
                a.iter()
                    .filter(|(path, bytes)| b.get(*path) != Some(bytes))
                    .map(|(path, _)| path.clone())
                    .collect()
            };
            let changed = [differ(&before, &after), differ(&after, &before)].concat();
            assert!(changed.is_empty(), "{case}: changed {changed:?}");
        });
        failed.extend(result.err().map(|_| *name));
    }
    assert!(failed.is_empty(), "{} of {}: {failed:?}", failed.len(), FAILURES.len());
}

#[test]
fn the_bad_part_of_an_input_is_named_and_the_rest_is_used() {
    let folder = material();
    for (name, line, words) in TOLERATED {
        let output = run(folder.path(), line);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{name}: {stderr}");
        for word in *words {
            assert!(stderr.contains(word), "{name}: no `{word}` in: {stderr}");
        }
        check_prefixes(&stderr, name);
        let _ = fs::remove_dir_all(folder.path().join("new"));
    }
    // A wrong golden value is named in the table.
    let table = text(&run(folder.path(), "verify wrong.safetensors --failures").stdout);
    assert!(table.lines().any(|line| line.contains("stage1.h ") && line.ends_with("FAILED")), "{table}");
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing_half_written() {
    let Some(disk) = Disk::new(64 << 10) else { return };
    let (folder, disk_name) = (material(), disk.name());
    let unfinished = || -> Vec<PathBuf> {
        let ends = |path: &Path| path.extension().is_some_and(|e| e == "partial" || e == "tmp");
        snapshot(disk.path()).into_keys().filter(|path| path.ancestors().any(ends)).collect()
    };
    for (line, words) in [
        ("synth --videos 8 --seconds 1 --out", &["synth-", "cannot write", "No space left"][..]),
        (
            "sample v --per-video 12 --format png --size 200 --out",
            &["frames-00000.tar", "cannot write", "No space left"],
        ),
        ("train tiny.toml --frames f --out", &["a checkpoint in", "needs", "bytes", "are free"]),
        (
            "train tiny.toml --frames f --set input.height=99 --set input.width=99 --out",
            &["12 decoded pictures of 99x99x1 in", "needs 117612 bytes", "are free"],
        ),
    ] {
        let output = run(folder.path(), &format!("{line} {disk_name}/new"));
        check_failure(&output, line, 1, words);
        assert!(unfinished().is_empty(), "{line}: {:?}", unfinished());
        let _ = fs::remove_dir_all(disk.path().join("new"));
    }

    // Visualize: the run beside it stays as it was.
    let bytes: usize = snapshot(&folder.path().join("run")).values().map(Vec::len).sum();
    assert!(disk.mount(&format!("remount,size={}", bytes + (96 << 10))));
    copy_folder(&folder.path().join("run"), &disk.path().join("run"));
    let before = snapshot(disk.path());
    let output = run(folder.path(), &format!("visualize {disk_name}/run --evaluations 2 --units all"));
    check_failure(&output, "visualize", 1, &["visualize.partial", "cannot write", "No space left"]);
    assert!(snapshot(disk.path()) == before, "visualize on a full disk changed the run");
    fs::remove_dir_all(disk.path().join("run")).unwrap();
}

#[test]
fn an_older_checkpoint_stays_good_when_the_next_does_not_fit() {
    let Some(disk) = Disk::new(1 << 20) else { return };
    let (folder, out) = (material(), format!("{}/run", disk.name()));
    let bytes: usize =
        snapshot(&folder.path().join("run/checkpoints/step-0000000004")).values().map(Vec::len).sum();
    let train = format!("train tiny.toml --frames f --out {out}");
    let mut reasons = Vec::new();
    let mut attempt = |extra: usize| {
        assert!(disk.mount(&format!("remount,size={}", (bytes + extra).next_multiple_of(4096))));
        let output = run(folder.path(), &train);
        check_failure(&output, &format!("{extra} bytes more than a checkpoint"), 1, &[&out]);
        let left: Vec<PathBuf> = snapshot(disk.path()).into_keys().collect();
        assert!(!left.iter().any(|path| path.to_str().unwrap().contains(".partial")), "{left:?}");
        reasons.push(text(&output.stderr));
        reasons.last().unwrap().clone()
    };
    // From just too small for the first checkpoint: whatever write meets the end of the disk, nothing half written is left.
    // Where a checkpoint was refused for lack of room, the next try has as much more as that lacked, and 4 KiB more from
    // then on.
    let (mut extra, mut nearly) = (0, false);
    for _ in 0..16 {
        let stderr = attempt(extra);
        let _ = fs::remove_dir_all(&out);
        let numbers: Vec<usize> = stderr.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let lacks = numbers.windows(2).map(|pair| pair[0].saturating_sub(pair[1])).max().unwrap_or(0);
        nearly |= lacks <= 4096 || lacks > 160 << 10;
        extra += if nearly { 4096 } else { lacks.next_multiple_of(4096) };
    }
    // Room for one and a half: what was whole stays whole.
    attempt(bytes / 2);
    for reason in ["No space left", "are free"] {
        assert!(reasons.iter().any(|line| line.contains(reason)), "never `{reason}`: {reasons:#?}");
    }
    assert_eq!(json(folder.path(), &format!("info {out}"))["state"]["step"], 2);
    // With more room, it goes on from there.
    assert!(disk.mount("remount,size=4m"));
    let summary = json(folder.path(), &format!("{train} --resume"));
    assert!(summary["finished"] == true && summary["steps"] == 4, "{summary}");
}

#[test]
fn all_is_well_from_videos_to_pictures_and_stdout_is_one_json_object() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, config) = (folder.path(), concat!(env!("CARGO_MANIFEST_DIR"), "/configs/tiny.toml"));
    let drawn = json(dir, "synth --out v --videos 4 --seconds 1 --size 64x48 --fps 12");
    assert_eq!((&drawn["videos"], &drawn["frames"]), (&4.into(), &48.into()));
    let sampled = json(dir, "sample v --out f --size 24 --per-video 5 --grey");
    assert_eq!((&sampled["frames"], &sampled["skipped"]), (&20.into(), &0.into()));
    let trained = json(dir, &format!("train {config} --frames f --out run --set training.steps=[20,10]"));
    assert!(
        trained["finished"] == true && trained["steps"] == 30 && trained["images"] == 30 * 32,
        "{trained}"
    );
    let gallery = json(dir, "visualize run --units 3 --evaluations 5 --restarts 1");
    assert_eq!(gallery["units"].as_array().unwrap().len(), 6);
    for picture in ["stage1.png", "stage2.png", "filters-encoder.png"] {
        assert!(image::open(dir.join("run/visualize").join(picture)).is_ok(), "{picture}");
    }
    let found =
        json(dir, "evaluate run --positives f::*-000000 --negatives f::*-00000[1-9] --permutations 5");
    assert_eq!(found["groups"].as_array().unwrap().len(), 3);
    let result: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("run/evaluate/concept.json")).unwrap()).unwrap();
    assert_eq!(result["units"].as_array().unwrap().len(), 196 + 2 * 72);
    assert_eq!((&result["positives"], &result["negatives"]), (&4.into(), &16.into()));
    let svg = fs::read_to_string(dir.join("run/evaluate/concept.svg")).unwrap();
    assert!(svg.contains("% right above") && !svg.contains("NaN"));
    for (what, kind) in
        [(config, "config"), ("f", "frames"), ("run", "run"), ("f/frames-00000.tar", "frames")]
    {
        assert_eq!(json(dir, &format!("info {what}"))["kind"], kind);
    }
    assert_eq!(json(dir, "verify")["failed"], 0);
    let whole = json(dir, "verify --run run");
    assert!(whole["failed"] == 0 && whole["passed"].as_u64().unwrap() >= 12, "{whole}");
    // Going on with what is finished changes nothing.
    let before = snapshot(&dir.join("run/checkpoints"));
    let again =
        json(dir, &format!("train {config} --frames f --out run --set training.steps=[20,10] --resume"));
    assert!(again["finished"] == true && snapshot(&dir.join("run/checkpoints")) == before, "{again}");
}

#[test]
fn bench_gives_one_object_with_rates_and_the_peaks_that_they_are_shares_of() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("roof.svg");
    let report =
        json(folder.path(), "bench --seconds 0 --threads 1,2 --svg roof.svg --set training.batch=16");
    let peaks = report["peaks"].as_array().unwrap();
    assert!(peaks.len() == 2 && peaks.iter().all(|peak| peak["gflops"].as_f64().unwrap() > 0.1), "{report}");
    let entries = report["entries"].as_array().unwrap();
    for kind in [
        "kernel/stage3/filter",
        "step/stage1/local-recipe",
        "training/phase3",
        "network/local",
        "network/inference",
        "network/encode",
        "stimulus/step",
    ] {
        for threads in [1, 2] {
            let found = entries.iter().find(|e| e["name"] == kind && e["threads"] == threads);
            let entry = found.unwrap_or_else(|| panic!("no {kind} on {threads} threads"));
            let (rate, share) =
                (entry["gflops"].as_f64().unwrap(), entry["fraction_of_peak"].as_f64().unwrap());
            assert!(rate > 0.0 && share > 0.0 && entry["milliseconds"].as_f64().unwrap() > 0.0, "{entry}");
        }
    }
    assert!(fs::read_to_string(svg).unwrap().contains("kernel/stage1/filter"));
    let some = json(folder.path(), "bench --seconds 0 --threads 1 --only stage2/lcn --rounds 2");
    let names: Vec<_> = some["entries"].as_array().unwrap().iter().map(|e| e["name"].clone()).collect();
    assert_eq!(names, ["kernel/stage2/lcn", "kernel/stage2/lcn-gradient"]);
}

#[test]
fn a_reader_that_hangs_up_is_no_error() {
    let folder = material();
    for line in ["info run", "visualize run --units 1 --evaluations 1", "verify", "train --help"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = program().current_dir(&folder).args(line.split(' ')).stdout(writer).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{line}: {}", text(&output.stderr));
    }
}

/// Starts a training, sends it `signal` once its log contains `word`, and returns how it ended.
fn interrupted(folder: &Path, line: &str, signal: &str, word: &str) -> Output {
    let mut command = program();
    command.current_dir(folder).args(line.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let begun = Instant::now();
    while !fs::read_to_string(folder.join("run/log.jsonl")).is_ok_and(|log| log.contains(word)) {
        assert!(begun.elapsed() < Duration::from_secs(60), "no `{word}` in the log");
        std::thread::sleep(Duration::from_millis(1));
    }
    // The shell's own `kill`: a small system has no other.
    let kill = format!("kill {signal} {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    child.wait_with_output().unwrap()
}

#[test]
fn an_interrupted_run_is_saved_and_goes_on_to_the_same_weights_bit_for_bit() {
    interrupt_and_resume("training.precision=f32");
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bf16_weights_bit_for_bit() {
    interrupt_and_resume("training.precision=bf16");
}

#[test]
fn an_interrupted_run_goes_on_with_the_same_windows_and_flips_of_its_frames_bit_for_bit() {
    interrupt_and_resume("input.margin=4 --set input.flip=true --set input.preprocess=lcn");
}

fn interrupt_and_resume(setting: &str) {
    let folder = tempfile::tempdir().unwrap();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/tiny.toml");
    done(folder.path(), "synth --out v --videos 2 --seconds 1 --size 64x48 --fps 12");
    done(folder.path(), "sample v --out f --size 24 --per-video 6 --grey");
    let train = |out: &str, more: &str| {
        format!(
            "train {config} --frames f --out {out} --set training.mode=sync --set training.replicas=1 --set training.steps=[3000,3000] --set {setting} --json{more}"
        )
    };
    done(folder.path(), &train("whole", ""));
    for (signal, word, more, code) in
        [("-INT", "\"stage\":1", "", 130), ("-TERM", "\"stage\":2", " --resume", 143)]
    {
        let output = interrupted(folder.path(), &train("run", more), signal, word);
        assert_eq!(output.status.code(), Some(code), "{signal}: {}", text(&output.stderr));
        let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(summary["finished"], false, "{summary}");
        let info = json(folder.path(), "info run");
        assert_eq!(info["state"]["step"], summary["steps"]);
        // What a user puts beside the checkpoints is neither read nor removed.
        fs::create_dir_all(folder.path().join("run/checkpoints/best")).unwrap();
    }
    let finished: serde_json::Value =
        serde_json::from_str(&done(folder.path(), &train("run", " --resume"))).unwrap();
    assert!(finished["finished"] == true && finished["steps"] == 6000, "{finished}");
    assert!(folder.path().join("run/checkpoints/best").is_dir());
    for file in ["model.safetensors", "optimiser.safetensors"] {
        let read = |run: &str| {
            fs::read(folder.path().join(run).join("checkpoints/step-0000006000").join(file)).unwrap()
        };
        assert!(read("whole") == read("run"), "{file} differs from that of the run without interruption");
    }
}

#[test]
fn the_help_of_every_command_shows_an_example() {
    let folder = tempfile::tempdir().unwrap();
    let help = done(folder.path(), "--help");
    let commands =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names: Vec<&str> = commands.filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    assert!(help.contains("Exit codes") && names.len() >= 8 && names.contains(&"train"), "{names:?}");
    for name in names.into_iter().filter(|name| !name.is_empty() && *name != "help") {
        let help = done(folder.path(), &format!("{name} --help"));
        let example =
            help.split_once("Example").is_some_and(|(_, after)| after.contains(&format!("striate {name}")));
        assert!(example, "{name} --help shows no example: {help}");
    }
}
