use std::path::PathBuf;

use image::{Rgb, RgbImage};
use serde_json::{Value, json};

use super::*;
use crate::analysis::statistics::Statistics;
use crate::analysis::stimulus::{Effort, Ended, Method, Sign, Start, View};
use crate::geometry::Kind;
use crate::network::Unit;
use crate::network::checkpoint::{identity, latest};
use crate::picture::save_png;
use crate::report::gallery::{Choice, Gallery, MeanFrame, Norm, StimulusPage, TopFrame, UnitPage};
use crate::training::FramesUsed;

const HOSTILE: &str = "<script>alert(\"&'\")</script>";

/// The files of a run that the report reads, without training one.
fn run() -> tempfile::TempDir {
    let run = tempfile::tempdir().unwrap();
    let config = RunConfig::load(Path::new("configs/tiny.toml"), &[]).unwrap();
    fs::write(run.path().join("config.toml"), config.to_toml()).unwrap();
    let frames = FramesUsed { path: PathBuf::from(HOSTILE), count: 9, fingerprint: "0".into() };
    let (phase_step, step, images, seconds) = (20, 20, 1234, 3725.0);
    let state = State { phase_step, step, images, seconds, ..State::new(7, frames) };
    let folder = run.path().join("checkpoints/step-0000000020");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("state.json"), serde_json::to_string(&state).unwrap()).unwrap();
    fs::write(folder.join("SHA256SUMS"), "of the run").unwrap();
    let line = |step: u64| {
        let (stage, reconstruction, sparsity) = (1, 8.0 / step as f64, 2.0);
        let (loss, unexplained, balance) = (reconstruction + sparsity, 0.25, 0.5);
        let line =
            StageLine { stage, reconstruction, sparsity, loss, unexplained, balance, ..StageLine::default() };
        let (seconds, images_per_second) = (1.0, 5.0);
        LogLine {
            step,
            images: step,
            seconds,
            rate: 0.1,
            images_per_second,
            stages: vec![line],
            ..LogLine::default()
        }
    };
    let log: Vec<String> = [10, 20].map(|step| serde_json::to_string(&line(step)).unwrap()).into();
    fs::write(run.path().join("log.jsonl"), log.join("\n") + "\n").unwrap();
    run
}

/// Adds two units: one with a stimulus and top frames, one without a gradient.
fn visualized(run: &Path) {
    let folder = run.join("visualize");
    fs::create_dir_all(&folder).unwrap();
    let names =
        ["filters-encoder.png", "filters-decoder.png", "pixels.png", "seen.png", "top.png", "bottom.png"];
    for (value, name) in (0..).zip(names) {
        save_png(&RgbImage::from_pixel(4, 4, Rgb([value; 3])), &folder.join(name)).unwrap();
    }
    let stimulus = |flat: bool| StimulusPage {
        asked: Norm::Fixed(1.0),
        norm: 1.0,
        sign: Sign::Positive,
        optimum: 1,
        value: (!flat).then_some(3.0),
        start: Start::TopFrame,
        start_value: (!flat).then_some(0.5),
        best_frame_value: Some(2.0),
        evaluations: 5,
        ended: if flat { Ended::Flat } else { Ended::Converged },
        flat: flat.then(|| "a dead unit".into()),
        pixels: (!flat).then(|| "pixels.png".into()),
        preprocessed: (!flat).then(|| "seen.png".into()),
        enhanced: None,
    };
    let page = |map, flat| UnitPage {
        stage: 1,
        unit: Unit { map, row: 0, col: 2 },
        stimuli: vec![stimulus(flat)],
        top: vec![TopFrame { key: HOSTILE.into(), value: 2.5 }],
        top_picture: "top.png".into(),
        mean: Some(MeanFrame { frames: 1, picture: "top.png".into() }),
        bottom: vec![TopFrame { key: "dull".into(), value: -1.5 }],
        bottom_picture: "bottom.png".into(),
        over_frames: Statistics { mean: 0.5, deviation: 0.25, skewness: 1.0, kurtosis: 12.345678 },
        signature: vec![-127, 3, 0],
    };
    let stages = RunConfig::load(&run.join("config.toml"), &[]).unwrap().stages.len();
    let gallery = Gallery {
        checkpoint: identity(&latest(run).unwrap()).unwrap(),
        choice: Choice {
            units: 2,
            also: vec![],
            stages: vec![],
            kind: Kind::Y,
            norms: vec![Norm::Fixed(1.0)],
            signs: vec![Sign::Positive],
            method: Method::Lbfgs,
            evaluations: 5,
            view: View::default(),
            restarts: 1,
            from_frames: 1,
            optima: 1,
            repulsion: 0.5,
            top: 1,
            mean: 1,
            seed: 0,
        },
        frames: HOSTILE.into(),
        frame_count: 9,
        stage_units: vec![2; stages],
        searched: vec![Effort::default(); stages],
        whitened: true,
        units: vec![page(0, false), page(1, true)],
    };
    fs::write(folder.join("units.json"), serde_json::to_string(&gallery).unwrap()).unwrap();
}

/// The list of units that the page has in itself.
fn listing(html: &str) -> Value {
    let begin = html.find("id=\"data\">").unwrap() + "id=\"data\">".len();
    let text = html[begin..].split("</script>").next().unwrap();
    serde_json::from_str(text).unwrap()
}

fn written(run: &Path) -> (String, usize) {
    let out = run.join("report.html");
    let (bytes, units) = write_report(run, &out).unwrap();
    let html = fs::read_to_string(&out).unwrap();
    assert_eq!(html.len() as u64, bytes);
    (html, units)
}

#[test]
fn without_pictures_it_shows_losses_and_says_how_to_make_the_rest() {
    let run = run();
    let (html, units) = written(run.path());
    assert_eq!(units, 0);
    assert_eq!(html.matches("<svg").count(), 3);
    assert!(html.contains(&format!("striate visualize {}", run.path().display())));
    for text in ["Loss 2.80 at step 10, 2.40 at step 20", "1,234", "1 h 2 min", "seed 7"] {
        assert!(html.contains(text), "{text}");
    }
    assert!(!html.contains("<img") && !html.contains("type=\"application/json\""));
}

#[test]
fn units_have_their_values_and_a_flat_one_says_so_and_shows_none() {
    let run = run();
    visualized(run.path());
    let (html, units) = written(run.path());
    let listing = listing(&html);
    let all = listing["units"].as_array().unwrap();
    assert_eq!((units, all.len()), (2, 2));
    let (unit, flat) = (&all[0], &all[1]);
    assert_eq!((&unit["name"], &unit["value"], &unit["gain"]), (&json!("1:0:0:2"), &json!(3.0), &json!(1.0)));
    // Four digits that count are enough to look at.
    assert_eq!((&unit["kurtosis"], &unit["signature"]), (&json!(12.35), &json!("gQMA")));
    let stimulus = &unit["page"]["stimuli"][0];
    assert_eq!(
        (&stimulus["start"], &stimulus["best_frame"]),
        (&json!("0.500 from a top frame"), &json!(2.0))
    );
    // The picture of the list is not in the page once more.
    assert!(unit["stimulus"].as_str().unwrap().starts_with("data:image/png;base64,"));
    assert!(stimulus["pixels"].is_null() && stimulus["seen"].is_string());
    let frames = [&unit["top"], &unit["page"]["bottom"]];
    assert_eq!(frames.map(|row| &row["values"]), [&json!([2.5]), &json!([-1.5])]);
    assert!(frames.iter().all(|row| row["picture"].as_str().unwrap().starts_with("data:image/jpeg;base64,")));
    assert_eq!(
        (&flat["stimulus"], &flat["page"]["stimuli"][0]["flat"]),
        (&json!(null), &json!("a dead unit"))
    );
    // Filters alone are in the page without its script.
    assert_eq!((html.matches("<img").count(), html.matches("alt=\"").count()), (2, 2));
}

#[test]
fn what_another_checkpoint_has_made_is_named() {
    let run = run();
    visualized(run.path());
    assert!(!written(run.path()).0.contains("role=\"note\""));
    fs::write(run.path().join("checkpoints/step-0000000020/SHA256SUMS"), "of later weights").unwrap();
    let (html, _) = written(run.path());
    assert!(html.contains("These were made with another: visualize. Run"), "not said");
}

#[test]
fn names_cannot_become_markup() {
    let run = run();
    visualized(run.path());
    let html = written(run.path()).0;
    assert!(!html.contains(HOSTILE) && !html.contains("<script>alert"));
    assert!(html.contains("&#60;script&#62;alert(") && html.contains("\\u003cscript>alert("));
    assert_eq!(listing(&html)["units"][0]["top"]["keys"][0], HOSTILE);
}

#[test]
fn the_page_refers_to_nothing_outside_itself() {
    let run = run();
    visualized(run.path());
    // The icon, the name of SVG, and the map's own sheet of thumbnails.
    let html = written(run.path()).0;
    let icon =
        html.lines().find(|line| line.starts_with("<link rel=\"icon\" href=\"data:image/svg+xml,")).unwrap();
    let html = html.replace(icon, "").replace("\"http://www.w3.org/2000/svg\"", "").replace("url(${", "");
    for outside in ["http:", "https:", "url(", "@import", "<link"] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert_eq!(html.matches("src=\"").count(), html.matches("src=\"data:image/png;base64,").count());
    assert_eq!(html.matches("href=\"").count(), html.matches("href=\"#").count());
}

#[test]
fn a_damaged_run_is_one_error_and_an_older_report_stays() {
    let run = run();
    let path = run.path();
    visualized(path);
    let older = written(path).0;
    let damage = |file: &str, bytes: &[u8], want: &str| {
        let (file, out) = (path.join(file), path.join("report.html"));
        let good = fs::read(&file).unwrap();
        fs::write(&file, bytes).unwrap();
        let error = write_report(path, &out).unwrap_err().to_string();
        assert!(error.contains(&*file.display().to_string()) && error.contains(want), "{error}");
        assert_eq!(fs::read_to_string(&out).unwrap(), older);
        fs::write(&file, good).unwrap();
    };
    damage("log.jsonl", b"{\"step\":10,\"ima\n", "line 1 is not a line of a log");
    damage("visualize/top.png", b"GIF89a", "not a PNG");
    damage("visualize/units.json", b"{}", "`striate visualize`");
    damage("config.toml", b"[input", "not TOML");
    for file in ["log.jsonl", "visualize/seen.png", "visualize/filters-decoder.png", "visualize/units.json"] {
        let (file, aside) = (path.join(file), path.join("aside"));
        fs::rename(&file, &aside).unwrap();
        let error = write_report(path, &path.join("report.html")).unwrap_err().to_string();
        assert!(error.contains(&*file.display().to_string()), "{error}");
        fs::rename(&aside, &file).unwrap();
    }
    assert_eq!(written(path).0, older);
}

#[test]
fn a_picture_outside_the_folder_is_refused() {
    let run = run();
    visualized(run.path());
    let units = run.path().join("visualize/units.json");
    fs::write(&units, fs::read_to_string(&units).unwrap().replace("seen.png", "../secret.png")).unwrap();
    let error = write_report(run.path(), &run.path().join("report.html")).unwrap_err();
    assert!(error.to_string().contains("leads out of the folder"), "{error}");
}

#[test]
fn what_is_no_run_or_cannot_be_written_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report.html");
    for (path, want) in
        [(folder.path().join("none"), "no such folder"), (folder.path().into(), "no checkpoint")]
    {
        let error = write_report(&path, &out).unwrap_err().to_string();
        assert!(error.contains(&*path.display().to_string()) && error.contains(want), "{error}");
    }
    fs::create_dir(&out).unwrap();
    let error = write_report(run().path(), &out).unwrap_err().to_string();
    assert!(error.contains("cannot write"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn long_curves_are_thinned_to_means() {
    let points: Vec<(f64, f64)> = (0..1_000).map(|n| (f64::from(n), f64::from(n % 2))).collect();
    let thinned = thin(&points);
    assert!(thinned.len() <= POINTS, "{}", thinned.len());
    assert_eq!(thinned[0], (1.0, 1.0 / 3.0));
    assert_eq!(thin(&points[..400]), &points[..400]);
}
