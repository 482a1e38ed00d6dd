//! `striate tuning`, `striate invariance` and `striate controls` from outside, on a small trained network: what they print and write,
//! that results do not depend on the number of threads, that what was there stays, and that what was interrupted goes on.

mod common;
#[path = "common/trained.rs"]
mod trained;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{done, json, program, snapshot};
use serde_json::Value;
use trained::{read, trained};

fn count(value: &Value) -> usize {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}")).len()
}

/// No number is missing by accident: what JSON writes for NaN is null, and that only where it is said to be.
fn nulls(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Null => found.push(path.to_owned()),
        Value::Array(items) => items.iter().for_each(|item| nulls(item, path, found)),
        Value::Object(members) => {
            members.iter().for_each(|(name, item)| nulls(item, &format!("{path}/{name}"), found));
        }
        _ => {}
    }
}

#[test]
fn tuning_of_every_unit_is_written_and_repeats_on_any_number_of_threads() {
    let folder = trained();
    let dir = folder.path();
    let made = json(dir, "tuning run --kind a --stage 1 --fields 3 --noise 500");
    let stage = &made["stages"][0];
    assert_eq!((count(&made["stages"]), &stage["stage"]), (1, &Value::from(1)));
    let tuning = read(&dir.join("run/tuning/stage1-a.json"));
    // 24x24 pixels, filters of 8x8 at every second: 9x9 places of 4 maps.
    assert_eq!((count(&tuning["units"]), &tuning["stage_units"]), (324, &Value::from(324)));
    let summary = &tuning["summary"];
    assert_eq!(summary, &stage["summary"]);
    assert_eq!(summary["silent"], 0);
    // Linear units are simple: F1/F0 of a half-rectified sinusoid is π/2.
    assert_eq!((&summary["simple"], &summary["complex"]), (&Value::from(324), &Value::from(0)));
    let median = summary["median_modulation"].as_f64().unwrap();
    assert!((median / std::f64::consts::FRAC_PI_2 - 1.0).abs() < 0.05, "{median}");
    for histogram in ["orientations", "frequencies", "modulations"] {
        let counts = summary[histogram]["counts"].as_array().unwrap();
        assert_eq!(counts.iter().map(|n| n.as_u64().unwrap()).sum::<u64>(), 324, "{histogram}");
    }
    let mut null = Vec::new();
    nulls(&tuning, "", &mut null);
    let allowed = ["silent", "half_width_deg", "edge", "position", "width_px"];
    null.retain(|path| !allowed.iter().any(|name| path.ends_with(&format!("/{name}"))));
    assert!(null.is_empty(), "{null:?}");
    for field in tuning["fields"].as_array().unwrap() {
        // A filter lies where its place says.
        let at = |name: &str| field["unit"][name].as_f64().unwrap();
        let place = |name: &str| field["place"][name].as_f64().unwrap();
        assert!((place("row") - 2.0 * at("row") - 3.5).abs() < 3.5, "{field}");
        assert!((place("col") - 2.0 * at("col") - 3.5).abs() < 3.5, "{field}");
        for picture in ["map", "average"] {
            let path = dir.join("run/tuning").join(field[picture].as_str().unwrap());
            assert_eq!(image::image_dimensions(&path).unwrap(), (24, 24), "{}", path.display());
        }
    }
    assert_eq!(count(&tuning["fields"]), 3);
    assert!(fs::read_to_string(dir.join("run/tuning/stage1-a.svg")).unwrap().contains("simple above 1"));

    // It is not measured again, unless otherwise.
    let again = json(dir, "tuning run --kind a --stage 1 --fields 3 --noise 500");
    assert_eq!((&again["stages"][0]["kept"], &stage["kept"]), (&true.into(), &false.into()));
    assert_eq!(again["stages"][0]["summary"], *summary);
    let other = json(dir, "tuning run --kind a --stage 1 --fields 3 --noise 500 --out other --seed 1");
    assert_eq!(other["stages"][0]["kept"], false);

    // Another kind and stage beside it: what was there stays.
    let before = snapshot(&dir.join("run/tuning"));
    let text = done(dir, "tuning run --kind h --units 10 --fields 0 --phases 8 --orientations 6");
    assert!(text.contains("stage 1 (h): 10 of 196 units") && text.contains("stage2-h.json"), "{text}");
    let after = snapshot(&dir.join("run/tuning"));
    assert!(before.iter().all(|(path, bytes)| after.get(path) == Some(bytes)));
    let files: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    assert_eq!(files.len(), 4, "{files:?}");
    let pooled = read(&dir.join("run/tuning/stage1-h.json"));
    assert_eq!((count(&pooled["units"]), count(&pooled["stimuli"]["orientations_deg"])), (10, 6));

    for threads in [1, 3] {
        let out = format!("again{threads}");
        done(dir, &format!("tuning run --stage 2 --fields 2 --out {out} --threads {threads}"));
    }
    let files = |out: &str| snapshot(&dir.join(out)).into_values().collect::<Vec<_>>();
    assert!(files("again1") == files("again3"), "tuning depends on the number of threads");
}

#[test]
fn invariance_is_written_for_the_most_selective_or_the_named_units_and_repeats() {
    let folder = trained();
    let dir = folder.path();
    let found = json(dir, "invariance run --images f --count 5 --top 2 --yaw 3");
    assert_eq!(found, read(&dir.join("run/invariance/f.json")));
    let before = snapshot(&dir.join("run/invariance"));
    let text = done(dir, "invariance run --images f --count 5 --top 2 --yaw 3");
    assert!(text.contains("5 pictures (measured before)"), "{text}");
    assert!(snapshot(&dir.join("run/invariance")) == before);
    assert!(!done(dir, "invariance run --images f --count 4 --top 1 --name other").contains("before"));
    let subjects = found["subjects"].as_array().unwrap();
    assert_eq!((subjects.len(), &found["pictures"], &found["frame_count"]), (4, &5.into(), &60.into()));
    let selectivity: Vec<f64> = subjects.iter().map(|s| s["selectivity"].as_f64().unwrap()).collect();
    assert!(selectivity[0] >= selectivity[1] && selectivity[2] >= selectivity[3], "{selectivity:?}");
    let names: Vec<&str> =
        found["curves"].as_array().unwrap().iter().map(|c| c["change"].as_str().unwrap()).collect();
    let all =
        ["shift-x", "shift-y", "scale", "rotation", "brightness", "contrast", "blur", "occlusion", "yaw"];
    assert_eq!(names, all);
    for curves in found["curves"].as_array().unwrap() {
        let amounts = curves["amounts"].as_array().unwrap();
        let unchanged = amounts.iter().position(|amount| *amount == curves["identity"]).unwrap();
        assert_eq!(count(&curves["units"]), 4);
        for unit in curves["units"].as_array().unwrap() {
            assert_eq!((count(&unit["mean"]), count(&unit["quartiles"])), (amounts.len(), amounts.len()));
            if !unit["left"].is_null() {
                assert_eq!(unit["left"][unchanged], 1.0, "{curves}");
            }
        }
        // The unchanged pictures are those that selectivity is of.
        if curves["change"] != "yaw" {
            let (mean, subject) = (&curves["units"][0]["mean"][unchanged], &subjects[0]["pictures"]["mean"]);
            assert!((mean.as_f64().unwrap() - subject.as_f64().unwrap()).abs() < 1e-5, "{mean} {subject}");
        }
    }
    for name in ["f-stage1.svg", "f-stage2.svg"] {
        let svg = fs::read_to_string(dir.join("run/invariance").join(name)).unwrap();
        assert!(svg.contains("translation, horizontal") && svg.contains("turn of a drawn head"), "{name}");
    }
    assert!(image::open(dir.join("run/invariance/f-occlusion.png")).is_ok());

    let line = "invariance run --images f --count 3 --units 2:3:0:1,1:0:2:2 --name chosen --edges border";
    let text = done(dir, &format!("{line} --threads 1 --out one"));
    assert!(text.contains("2:3:0:1") && text.contains("1:0:2:2") && !text.contains("yaw"), "{text}");
    done(dir, &format!("{line} --threads 3 --out three"));
    let files = |out: &str| snapshot(&dir.join(out)).into_values().collect::<Vec<_>>();
    assert!(files("one") == files("three") && files("one").len() == 4, "invariance depends on the threads");
    let chosen = read(&dir.join("one/chosen.json"));
    assert_eq!(chosen["subjects"][0]["unit"], serde_json::json!({ "map": 3, "row": 0, "col": 1 }));
}

#[test]
fn frames_of_drawn_videos_are_tested_by_their_labels() {
    let folder = trained();
    let dir = folder.path();
    let mut clear = 0;
    for concept in ["face", "cat", "body"] {
        let line =
            format!("evaluate run --labels v/labels.jsonl --pictures f --concept {concept} --permutations 5");
        let output = common::run(dir, &format!("{line} --json"));
        if output.status.code() != Some(0) {
            // So few frames need not show everything.
            let error = common::text(&output.stderr);
            assert!(error.contains("no frame") || error.contains("at least 2 are needed"), "{error}");
            continue;
        }
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let [positives, negatives] = ["positives", "negatives"].map(|key| found[key].as_u64().unwrap());
        assert!(positives > 1 && negatives > 1 && positives + negatives <= 60, "{found}");
        clear += 1;
        let truth = found["truth"].as_array().unwrap();
        assert!(truth.iter().any(|of| of["of"] == "height, share"), "{found}");
    }
    assert!(clear > 0, "no frame shows anything");

    let cut: Value =
        serde_json::from_str(&done(dir, "frames cut f --labels v/labels.jsonl --out cut --least 6 --json"))
            .unwrap();
    let table = fs::read_to_string(dir.join("cut/cut.csv")).unwrap();
    let mut all = 0;
    for of_kind in cut["pictures"].as_array().unwrap() {
        let name = of_kind["kind"].as_str().unwrap();
        for (folder, key) in [(name.to_owned(), "with"), (format!("no-{name}"), "without")] {
            let files: Vec<_> = fs::read_dir(dir.join("cut").join(&folder))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            assert_eq!(files.len() as u64, of_kind[key].as_u64().unwrap(), "{cut}");
            for file in files {
                let picture = image::open(&file).unwrap();
                assert!(picture.width() == picture.height() && picture.width() >= 6, "{}", file.display());
            }
        }
        all += of_kind["with"].as_u64().unwrap();
    }
    assert!(all > 0 && table.lines().count() as u64 == all + 1, "{table}");
}

#[test]
fn pictures_that_were_interrupted_go_on_to_the_same() {
    let folder = trained();
    let dir = folder.path();
    let line = "visualize run --units all --restarts 6 --evaluations 2000 --kind h";
    let mut child = program();
    child.current_dir(dir).args(line.split_whitespace());
    let mut child = child.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let (begun, first) = (Instant::now(), dir.join("run/visualize.partial/stage1.json"));
    while !first.exists() && begun.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "it was too fast to be interrupted");
    let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let sheet = modified(&dir.join("run/visualize.partial/stage1.png"));
    done(dir, line);
    assert_eq!(modified(&dir.join("run/visualize/stage1.png")), sheet, "stage 1 was made again");
    let interrupted = snapshot(&dir.join("run/visualize"));
    done(dir, line);
    let again = snapshot(&dir.join("run/visualize"));
    let is_other = |path: &&PathBuf| again.get(*path) != interrupted.get(*path);
    let other: Vec<_> = again.keys().chain(interrupted.keys()).filter(is_other).collect();
    assert!(other.is_empty(), "these are not the same: {other:?}");
}

/// The lines of a table, without what they took.
fn rows(table: &Value) -> Vec<Value> {
    let mut rows = table["rows"].as_array().unwrap().clone();
    rows.iter_mut().for_each(|row| {
        row.as_object_mut().unwrap().remove("seconds");
    });
    rows
}

#[test]
fn controls_are_those_of_evaluate_and_do_not_depend_on_memory_or_interruptions() {
    let folder = trained();
    let dir = folder.path();
    // Frames of the first video, whatever they show, against all others.
    let keys = json(dir, "frames info f");
    assert_eq!(keys["frames"], 60, "{keys}");
    let sampled = fs::read_dir(dir.join("f")).unwrap().map(|entry| entry.unwrap().path());
    let tar = sampled.filter(|path| path.extension().is_some_and(|e| e == "tar")).min().unwrap();
    let mut names: Vec<String> = tar::Archive::new(fs::File::open(tar).unwrap())
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .filter_map(|name| name.strip_suffix(".jpg").map(str::to_owned))
        .collect();
    names.sort();
    let lines: Vec<String> = (0..)
        .zip(&names)
        .map(|(n, name)| format!("{name},{}", if n < 7 { "shown" } else { "not" }))
        .collect();
    fs::write(dir.join("keys.csv"), lines.join("\n")).unwrap();
    fs::write(dir.join("first.txt"), &names[0]).unwrap();
    let first = &names[0][..names[0].len() - 4];
    let sets = format!("--positives f::{first}* --negatives f --concept first");
    let filters = "--filters 300 --random-networks 2";
    let line = format!("controls run {sets} {filters} --concept-frames keys.csv::*,shown");

    // Interrupted while a network is trained: what is done is kept, and the same line goes on.
    let mut child = program();
    child.current_dir(dir).args(line.split_whitespace());
    let mut child = child.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !dir.join("run/controls/first.json").exists() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let code = child.wait().unwrap().code();
    assert_eq!(code, Some(130), "it was too fast to be interrupted");
    let partial = rows(&read(&dir.join("run/controls/first.json")));
    assert!(!partial.is_empty() && partial.len() < 11, "{partial:?}");

    let table = json(dir, &line);
    assert_eq!(table, read(&dir.join("run/controls/first.json")));
    let found = rows(&table);
    assert_eq!(found[..partial.len()], partial[..]);
    let names: Vec<&str> = found.iter().map(|row| row["control"].as_str().unwrap()).collect();
    let all = [
        "always-no",
        "random-weights",
        "linear-filters",
        "linear-patches",
        "k-means",
        "autoencoder-3",
        "autoencoder-6",
        "first-stage",
        "without-lcn",
        "without-concept",
        "top-stage",
    ];
    assert_eq!(names, all);
    let row = |name: &str| &found[all.iter().position(|other| *other == name).unwrap()];
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("no number: {value}"));
    let no = number(&row("always-no")["accuracy"]);
    assert!((no - 60.0 / 70.0).abs() < 1e-12 && found.iter().all(|row| number(&row["accuracy"]) >= no));
    // Of 60 frames 3 are held out; there are no more to be filters or to be sorted.
    let detectors =
        ["linear-filters", "linear-patches", "k-means"].map(|name| number(&row(name)["detectors"]));
    assert_eq!(detectors, [57.0, 300.0, 57.0]);
    assert_eq!(count(&row("random-weights")["others"]), 1);
    assert_eq!(row("without-concept")["note"], "7 of 60 frames left out");
    assert!(row("autoencoder-6")["note"].as_str().unwrap().contains("unexplained"));
    assert!(dir.join("run/controls/without-lcn/checkpoints").is_dir());

    // The lines of the run's own units are what `evaluate` says.
    let evaluated =
        json(dir, &format!("evaluate run {sets} --kind y --kind h --permutations 0 --bootstraps 0"));
    for (name, stage) in [("first-stage", 1), ("top-stage", 2)] {
        let groups = evaluated["groups"].as_array().unwrap().iter().filter(|group| group["stage"] == stage);
        let best = groups.map(|group| number(&group["best"][0]["paper"]["accuracy"])).fold(0.0, f64::max);
        assert_eq!(number(&row(name)["accuracy"]), best);
    }

    // Once more, from nothing but what was trained, with little memory and on another number of threads.
    fs::rename(dir.join("run/controls/first.json"), dir.join("first.json")).unwrap();
    assert_eq!(rows(&json(dir, &format!("{line} --memory 1 --threads 1"))), found);
    // Nothing is made again; of other pictures all is, on the networks that are there.
    let before = snapshot(&dir.join("run/controls"));
    let text = done(dir, &line);
    assert!(
        text.contains("linear filters, whole frames") && text.contains("7 of 60 frames left out"),
        "{text}"
    );
    assert_eq!(snapshot(&dir.join("run/controls")), before);
    // Several runs in one table; here the same one twice, so that nothing is spread.
    let compared = json(dir, "compare run run --concept first");
    let lines = compared["concepts"][0]["rows"].as_array().unwrap();
    assert_eq!(lines.len(), 11);
    let top = number(&row("top-stage")["accuracy"]);
    for (line, row) in lines.iter().zip(&found) {
        let accuracy = number(&row["accuracy"]);
        assert_eq!((number(&line["mean"]), number(&line["worst"])), (accuracy, accuracy));
        assert_eq!((&line["control"], number(&line["deviation"])), (&row["control"], 0.0));
        let margin = line["margin"].as_f64();
        assert!(margin.is_none_or(|margin| (margin - (top - accuracy)).abs() < 1e-12), "{line}");
        assert_eq!(margin.is_none(), row["control"] == "top-stage");
    }
    assert!(done(dir, "compare run --concept first").contains("| best of | paper | mean |"));
    let nothing = common::run(dir, "compare run --concept nothing");
    assert!(!nothing.status.success() && common::text(&nothing.stderr).contains("of `nothing`"));
    let other = json(dir, &format!("controls run {sets} {filters} --control without-lcn --share 0.5"));
    assert_eq!(
        (count(&other["rows"]), &other["positives"], &other["negatives"]),
        (1, &10.into(), &10.into())
    );
}
