//! Real videos, whole and damaged, through the library and through `striate sample`.
//!
//! Reads the folder `STRIATE_DATA`, or else `../shared/data`; without it these tests say so and pass.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rand::{Rng, SeedableRng};
use striate::frames::{FrameStore, INPUT_COLUMNS, InputRecord, TableReader};

/// A folder of test data, with a line where it is missing.
fn data(folder: &str) -> Option<PathBuf> {
    let root =
        std::env::var_os("STRIATE_DATA").map_or_else(|| PathBuf::from("../shared/data"), PathBuf::from);
    let path = root.join(folder);
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("skipped: no data in {}, set STRIATE_DATA", path.display());
    None
}

/// Whether tests shall run as long as `scripts/soak` has them.
fn soak() -> bool {
    std::env::var_os("STRIATE_SOAK").is_some()
}

/// Files in a folder, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn sample(arguments: &[&str]) -> Output {
    let program = assert_cmd::cargo::cargo_bin!("striate");
    Command::new(program).args(["sample", "--quiet"]).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The content of every file of a frame set but for the time that each input took.
fn content(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let mut content = BTreeMap::new();
    for path in files(folder) {
        let bytes = fs::read(&path).unwrap();
        let bytes = match &*name(&path) {
            "journal.jsonl" => {
                let cut = |line: &str| line.split(",\"seconds_spent").next().unwrap().to_string();
                text(&bytes).lines().map(cut).collect::<Vec<_>>().join("\n").into_bytes()
            }
            // Its rows are those of the journal.
            "inputs.parquet" => Vec::new(),
            _ => bytes,
        };
        content.insert(name(&path), bytes);
    }
    content
}

#[test]
fn the_same_seed_gives_the_same_frame_set_on_any_number_of_threads() {
    let Some(videos) = data("videos") else { return };
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let common =
            [videos.to_str().unwrap(), "--out", out.to_str().unwrap(), "--per-video", "4", "--size", "48x32"];
        let done = sample(&[&common, more].concat());
        assert!(done.status.success(), "{}", text(&done.stderr));
        content(&out)
    };
    let one = make("one", &["--threads", "1", "--seed", "7"]);
    let many = make("many", &["--threads", "5", "--seed", "7"]);
    let other = make("other", &["--threads", "5", "--seed", "8"]);
    assert!(one == many && one["frames.parquet"] != other["frames.parquet"]);

    // One video alone gives the frames that it gives among others.
    let alone = folder.path().join("alone");
    let video = videos.join("pancake.mkv");
    let done = sample(&[
        video.to_str().unwrap(),
        "--out",
        alone.to_str().unwrap(),
        "--per-video=4",
        "--size=48x32",
        "--seed=7",
    ]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let hashes = |store: &FrameStore| -> Vec<String> {
        let all = (0..store.len()).map(|i| store.metadata(i).unwrap().unwrap());
        all.filter(|m| m["name"] == "pancake.mkv").map(|m| m["hash"].to_string()).collect()
    };
    let alone = hashes(&FrameStore::open(&alone).unwrap());
    assert_eq!(alone.len(), 4);
    assert_eq!(alone, hashes(&FrameStore::open(&folder.path().join("one")).unwrap()));
}

#[test]
fn damaged_files_are_named_and_the_rest_is_sampled() {
    let (Some(broken), Some(videos)) = (data("broken"), data("videos")) else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("set");
    let all =
        files(&broken).into_iter().chain([videos.join("bikes.mp4"), videos.join("flower_audio_only.m4a")]);
    let mut arguments: Vec<String> = all.map(|path| path.to_str().unwrap().to_string()).collect();
    arguments.extend(["--out", out.to_str().unwrap(), "--per-video", "2", "--json"].map(String::from));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = sample(&arguments);
    let (stdout, stderr) = (text(&done.stdout), text(&done.stderr));
    assert_eq!(done.status.code(), Some(0), "{stderr}");
    for (name, reason) in [
        ("empty.mp4", "empty"),
        ("text_named.mp4", "cannot be read as a video"),
        ("mp4_no_moov.mp4", "moov atom not found"),
        ("flower_audio_only.m4a", "has no video stream"),
        ("heapbof.png", ""),
        ("sigsegv.png", ""),
    ] {
        let line = stderr.lines().find(|line| line.starts_with("skipped:") && line.contains(name));
        assert!(line.is_some_and(|line| line.contains(reason)), "{name}: {line:?}\n{stderr}");
    }
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&report["files"], &report["skipped"]), (&18.into(), &6.into()), "{stdout}\n{stderr}");
    let store = FrameStore::open(&out).unwrap();
    assert_eq!(report["frames"], store.len());
    for name in
        ["bitflips_60.mkv", "truncated_30pct.webm", "zeroed_30k.mp4", "mp4_head_200k.mp4", "bikes.mp4"]
    {
        let found = (0..store.len()).filter(|&i| store.metadata(i).unwrap().unwrap()["name"] == name);
        assert_eq!(found.count(), 2, "{name}");
    }

    // The same again has nothing to do; other settings are refused; strict is strict about the skipped files.
    let before = content(&out);
    let again = sample(&arguments);
    assert_eq!(again.status.code(), Some(0), "{}", text(&again.stderr));
    assert!(content(&out) == before);
    let otherwise = sample(&[&arguments[..], &["--grey"]].concat());
    assert_eq!(otherwise.status.code(), Some(1));
    let refusal = text(&otherwise.stderr);
    assert!(refusal.contains("made otherwise (shape.colour: \"rgb\" -> \"grey\")"), "{refusal}");
    let strict = sample(&[&arguments[..], &["--overwrite", "--strict"]].concat());
    assert_eq!(strict.status.code(), Some(3), "{}", text(&strict.stderr));
    let empty = broken.join("empty.mp4");
    let nothing = folder.path().join("nothing");
    let none = sample(&[empty.to_str().unwrap(), "--out", nothing.to_str().unwrap()]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("no frame could be sampled") && !nothing.exists());
    let strict = sample(&[empty.to_str().unwrap(), "--out", nothing.to_str().unwrap(), "--strict"]);
    assert_eq!(strict.status.code(), Some(3), "{}", text(&strict.stderr));
}

#[test]
fn a_part_of_a_collection_that_gives_no_frame_is_on_record_and_can_be_merged() {
    let (Some(broken), Some(videos)) = (data("broken"), data("videos")) else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let part = |name: &str, input: PathBuf| {
        let done = sample(&[input.to_str().unwrap(), "--size=32", "--shard=0/1", "--out", &at(name)]);
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    };
    part("bad", broken.join("empty.mp4"));
    part("good", videos.join("pancake.mkv"));
    let program = assert_cmd::cargo::cargo_bin!("striate");
    let merge = ["frames", "merge", &at("bad"), &at("good"), "--out", &at("both"), "--json"];
    let done = Command::new(program).args(merge).output().unwrap();
    let merged: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&merged["frames"], &merged["inputs"]), (&1.into(), &2.into()), "{}", text(&done.stderr));
}

#[test]
fn nobody_reading_what_it_says_does_not_stop_it() {
    let Some(videos) = data("videos") else { return };
    let folder = tempfile::tempdir().unwrap();
    for number in 0..300 {
        fs::write(folder.path().join(format!("{number:03}.mp4")), "").unwrap();
    }
    fs::copy(videos.join("pancake.mkv"), folder.path().join("z.mkv")).unwrap();
    let out = folder.path().join("set");
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("striate"));
    command.args(["sample", "--size=32"]).arg(folder.path()).arg("--out").arg(&out);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = command.stderr(writer).stdout(std::process::Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(FrameStore::open(&out).unwrap().len(), 1);
}

#[test]
fn killed_at_any_moment_and_started_again_it_ends_with_the_same_bytes() {
    let Some(videos) = data("videos") else { return };
    let folder = tempfile::tempdir().unwrap();
    let command = |out: &Path| {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("striate"));
        command.args(["sample", "--quiet", "--per-video=6", "--size=32", "--frames-per-shard=20"]);
        command.arg(&videos).arg("--out").arg(out).stderr(std::process::Stdio::null());
        command.stdout(std::process::Stdio::null());
        command
    };
    let whole = folder.path().join("whole");
    assert!(command(&whole).status().unwrap().success());
    // How long it takes once the files are in memory.
    let start = std::time::Instant::now();
    assert!(command(&folder.path().join("again")).status().unwrap().success());
    let took = start.elapsed();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let moments = if soak() { 50 } else { 5 };
    let (mut killed, mut unfinished, mut tries) = (0, 0, 0);
    while killed < moments {
        tries += 1;
        assert!(tries < 3 * moments, "of {tries} runs only {killed} lasted until they were to be killed");
        // One in each part of the run; a run that was faster than the first is not counted.
        let moment = (f64::from(killed) + rng.random::<f64>()) / f64::from(moments);
        let out = folder.path().join("killed");
        let mut run = command(&out).spawn().unwrap();
        std::thread::sleep(took.mul_f64(moment));
        killed += u32::from(run.try_wait().unwrap().is_none());
        run.kill().unwrap();
        run.wait().unwrap();
        unfinished += u32::from(out.exists() && content(&out) != content(&whole));
        assert!(command(&out).status().unwrap().success(), "after a kill at {moment}");
        assert!(content(&out) == content(&whole), "after a kill at {moment}");
        fs::remove_dir_all(&out).unwrap();
    }
    println!("killed {killed} runs, {unfinished} of them with a part of the set on disk; all ended alike");
    assert!(3 * unfinished > moments, "only {unfinished} of {moments} runs had begun and not ended");
}

/// A copy of a file with damage of one of several kinds; all depends on `rng`.
fn damaged(bytes: &[u8], other: &[u8], rng: &mut rand_chacha::ChaCha8Rng) -> (&'static str, Vec<u8>) {
    let mut copy = bytes.to_vec();
    // Headers are short and hostile, so half of the damage is near the start.
    let reach = if rng.random() { bytes.len() } else { bytes.len().min(2048) };
    let place = rng.random_range(0..reach);
    let length = rng.random_range(1..=4096.min(bytes.len() - place));
    match rng.random_range(0..5) {
        0 => {
            for _ in 0..rng.random_range(1..200) {
                let place = rng.random_range(0..reach);
                copy[place] ^= 1 << rng.random_range(0..8);
            }
            ("bits flipped", copy)
        }
        1 => {
            copy.truncate(place);
            ("cut off", copy)
        }
        2 => {
            rng.fill(&mut copy[place..place + length]);
            ("noise in place of bytes", copy)
        }
        3 => {
            let noise: Vec<u8> = (0..length).map(|_| rng.random()).collect();
            copy.splice(place..place, noise);
            ("noise inserted", copy)
        }
        _ => {
            let start = rng.random_range(0..other.len());
            let piece = &other[start..other.len().min(start + length)];
            copy.splice(place..place + length, piece.iter().copied());
            ("a piece of another file", copy)
        }
    }
}

#[test]
fn mutated_files_each_have_an_outcome_and_change_no_frame_of_good_files() {
    let Some(videos) = data("videos") else { return };
    let folder = tempfile::tempdir().unwrap();
    let mutants = folder.path().join("mutants");
    fs::create_dir(&mutants).unwrap();
    let good = files(&videos);
    let contents: Vec<Vec<u8>> = good.iter().map(|path| fs::read(path).unwrap()).collect();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    let count = if soak() { 500 } else { 25 };
    let mut kinds = BTreeMap::new();
    for number in 0..count {
        let (chosen, other) = (rng.random_range(0..good.len()), rng.random_range(0..good.len()));
        let (kind, bytes) = damaged(&contents[chosen], &contents[other], &mut rng);
        let name = format!("{number:03}-{}", good[chosen].file_name().unwrap().to_str().unwrap());
        fs::write(mutants.join(&name), bytes).unwrap();
        kinds.insert(name, kind);
    }
    let make = |name: &str, inputs: &[&Path]| {
        let out = folder.path().join(name);
        let mut arguments: Vec<&str> = inputs.iter().map(|path| path.to_str().unwrap()).collect();
        arguments.extend(["--out", out.to_str().unwrap(), "--per-video=2", "--size=64", "--time-limit=30s"]);
        let done = sample(&arguments);
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
        let words = text(&done.stderr);
        assert!(!words.contains("panicked"), "{words}");
        out
    };
    let frames = |out: &Path, below: &Path| -> BTreeMap<String, String> {
        let store = FrameStore::open(out).unwrap();
        let all = (0..store.len()).map(|i| (store.key(i).to_string(), store.metadata(i).unwrap().unwrap()));
        let of_good = all.filter(|(_, m)| Path::new(m["source"].as_str().unwrap()).starts_with(below));
        of_good.map(|(key, metadata)| (key, metadata.to_string())).collect()
    };
    // The workers that sample the good files have just met the mutants.
    let alone = make("alone", &[&videos]);
    let together = make("together", &[&mutants, &videos]);
    assert!(frames(&alone, &videos) == frames(&together, &videos) && frames(&alone, &videos).len() > 50);

    let table = TableReader::open(&together.join("inputs.parquet")).unwrap();
    let rows: Vec<InputRecord> =
        (0..table.groups()).flat_map(|group| table.read(group, INPUT_COLUMNS).unwrap()).collect();
    assert_eq!(rows.len(), count + good.len());
    let mut seen: BTreeMap<(&str, String), usize> = BTreeMap::new();
    for row in rows.iter().filter(|row| kinds.contains_key(&row.name)) {
        let outcome = match (&row.reason, &row.damage) {
            (Some(reason), _) => {
                assert!(row.frames == 0 && !reason.is_empty(), "{row:?}");
                let of_worker = ["crashed", "took longer", "needs more memory", "ended its worker"];
                let by_worker = of_worker.iter().find(|words| reason.starts_with(*words));
                by_worker
                    .map_or("skipped: cannot be read or decoded".into(), |words| format!("skipped: {words}"))
            }
            (None, Some(_)) => "used, damage met".into(),
            (None, None) => "used, no damage met".into(),
        };
        *seen.entry((kinds[&row.name], outcome)).or_default() += 1;
    }
    assert_eq!(seen.values().sum::<usize>(), count);
    for ((kind, outcome), count) in seen {
        println!("{count:>4} {kind}: {outcome}");
    }
}

#[test]
fn parts_of_a_collection_join_to_the_whole() {
    let Some(videos) = data("videos") else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let videos = videos.to_str().unwrap();
    let done = |arguments: &[&str]| {
        let program = assert_cmd::cargo::cargo_bin!("striate");
        let done = Command::new(program).args(arguments).output().unwrap();
        assert!(done.status.success(), "{arguments:?}: {}", text(&done.stderr));
    };
    let mut parts = Vec::new();
    for shard in 0..3 {
        parts.push(at(&format!("part-{shard}")));
        let part = format!("{shard}/3");
        done(&["sample", videos, "--size=32", "--out", &parts[shard], "--shard", &part]);
    }
    done(&["sample", videos, "--size=32", "--out", &at("whole")]);
    done(&["frames", "merge", &parts[0], &parts[1], &parts[2], "--out", &at("merged")]);
    let frames = |name: &str| -> BTreeMap<String, serde_json::Value> {
        let store = FrameStore::open(&folder.path().join(name)).unwrap();
        let all = (0..store.len()).map(|i| (store.key(i).to_string(), store.metadata(i).unwrap().unwrap()));
        all.collect()
    };
    assert!(frames("merged") == frames("whole") && frames("whole").len() > 25);
}

#[test]
fn a_file_that_takes_too_long_or_too_much_memory_costs_that_file_only() {
    let Some(videos) = data("videos") else { return };
    let folder = tempfile::tempdir().unwrap();
    // Little to store, much to decode.
    let large = folder.path().join("large.png");
    image::RgbImage::new(8000, 4000).save(&large).unwrap();
    let run = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let pancake = videos.join("pancake.mkv");
        let common = [large.to_str().unwrap(), pancake.to_str().unwrap(), "--size=32", "--out"];
        let out_text = out.to_str().unwrap();
        let done = sample(&[&common[..], &[out_text], more].concat());
        (done.status.code(), text(&done.stderr), FrameStore::open(&out).map_or(0, |store| store.len()))
    };
    let (code, words, frames) = run("slow", &["--every=40ms", "--time-limit=1ms"]);
    assert_eq!((code, frames), (Some(1), 0), "{words}");
    assert!(words.contains("took longer than the time limit"), "{words}");
    let (code, words, frames) = run("large", &["--memory-limit=64MB"]);
    assert!(code == Some(0) && frames == 1, "{words}");
    assert!(words.contains("large.png: needs more memory than the limit of 64 MB"), "{words}");
    let (code, words, frames) = run("enough", &[]);
    assert_eq!((code, frames), (Some(0), 2), "{words}");
    let (code, words, frames) = run("together", &["--isolate=false"]);
    assert_eq!((code, frames), (Some(0), 2), "{words}");
}

/// Patches of random greys with soft borders.
fn scene(seed: u64) -> image::DynamicImage {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let patches = image::GrayImage::from_fn(12, 9, |_, _| image::Luma([rng.random()]));
    image::DynamicImage::from(patches).resize_exact(120, 90, image::imageops::FilterType::CatmullRom)
}

#[test]
fn frames_like_given_pictures_are_left_out_and_the_rest_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    for name in ["pictures", "tests"] {
        fs::create_dir(path(name)).unwrap();
    }
    for seed in 0..6 {
        scene(seed).save(path(&format!("pictures/{seed}.png"))).unwrap();
    }
    // Two of them in another size and format, of lower contrast, and one that is not among them. Only their middles are looked at.
    for seed in [1, 4, 77] {
        let larger = scene(seed).resize_exact(240, 180, image::imageops::FilterType::CatmullRom);
        let dull = image::DynamicImage::from(image::imageops::contrast(&larger.to_luma8(), -15.0));
        dull.save(path(&format!("tests/{seed}.jpg"))).unwrap();
    }
    let common = ["--size", "32", "--grey", "--part", "0.1,0.1,0.8,0.8"];
    let run = |inputs: &str, out: &str, more: &[&str]| {
        sample(&[&[inputs, "--out", out, "--json"], &common[..], more].concat())
    };
    assert!(run(&path("tests"), &path("t"), &[]).status.success());
    let done = run(&path("pictures"), &path("f"), &["--unlike", &path("t")]);
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&report["frames"], &report["dropped"]["known"]), (&4.into(), &2.into()), "{report}");

    let program = assert_cmd::cargo::cargo_bin!("striate");
    let listed = Command::new(program).args(["frames", "list", &path("f")]).output().unwrap();
    let listed = text(&listed.stdout);
    let names: Vec<&str> = listed.lines().skip(1).map(|line| line.split(',').nth(1).unwrap()).collect();
    assert_eq!(names, ["0.png", "2.png", "3.png", "5.png"], "{listed}");
    let store = FrameStore::open(path("f").as_ref()).unwrap();
    let crop = &store.metadata(0).unwrap().unwrap()["crop"];
    let cut = ["left", "top", "width", "height"].map(|side| crop[side].as_f64().unwrap());
    // The square in the middle of four fifths of 120x90.
    assert!(cut.iter().zip([24.0, 9.0, 72.0, 72.0]).all(|(a, b)| (a - b).abs() < 1e-9), "{cut:?}");

    // Again it is the same set; unlike other pictures it would be another.
    assert!(run(&path("pictures"), &path("f"), &["--unlike", &path("t")]).status.success());
    let other = run(&path("pictures"), &path("f"), &["--unlike", &path("tests")]);
    assert!(!other.status.success() && text(&other.stderr).contains("unlike"), "{}", text(&other.stderr));
    let wrong = run(&path("pictures"), &path("g"), &["--unlike", &path("nowhere")]);
    assert_eq!((wrong.status.code(), text(&wrong.stderr).contains("nowhere")), (Some(1), true));
}
