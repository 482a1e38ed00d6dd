//! `striate scale` from outside: what it writes can be trained, what is there stays, and what cannot be is refused.

mod common;

use std::fs;

use common::{done, json, run, snapshot, text};

const TINY: &str = include_str!("../configs/tiny.toml");

#[test]
fn the_config_that_it_writes_is_one_and_costs_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, out) = (folder.path(), folder.path().join("larger.toml"));
    fs::write(dir.join("tiny.toml"), TINY).unwrap();
    let scaled = json(dir, "scale tiny.toml --budget 2 --no-measure --out larger.toml");
    let (before, after) = (json(dir, "info tiny.toml"), json(dir, "info larger.toml"));
    assert_eq!((&scaled["config"], &scaled["after"]["units"]), (&after["config"], &after["units"]));
    let flops = |info: &serde_json::Value| info["learn_flops_per_image"].as_f64().unwrap();
    let cost = scaled["cost"].as_f64().unwrap();
    assert!(cost > 1.5 && cost <= 2.0 && (flops(&after) / flops(&before) - cost).abs() < 1e-3, "{scaled}");
    assert!(scaled["time"].is_null() && scaled["notes"][0].as_str().unwrap().contains("the next larger"));
    assert!(
        fs::read_to_string(out).unwrap().starts_with("# \"tiny.toml\" grown by `striate scale`, budget 2: φ")
    );

    let before = snapshot(dir);
    let again = run(dir, "scale tiny.toml --budget 4 --no-measure --out larger.toml");
    assert_eq!(again.status.code(), Some(1));
    assert!(
        text(&again.stderr).contains("larger.toml: is there already; --force"),
        "{}",
        text(&again.stderr)
    );
    assert!(snapshot(dir) == before);
    let table =
        done(dir, "scale tiny.toml --budget 4 --only resolution --no-measure --out larger.toml --force");
    assert!(table.contains("maps") && table.contains("4, 8") && table.contains("36x36x1"), "{table}");
    assert_eq!(json(dir, "info larger.toml")["config"]["input"]["width"], 36);
}

#[test]
fn time_is_measured_unless_it_is_not_wanted() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tiny.toml"), TINY).unwrap();
    // On a machine that does other things as well a time may be far off: the budget is a large one.
    let scaled = json(folder.path(), "scale tiny.toml --budget 20 --seconds 0 --fill --quiet");
    assert!(scaled["time"].as_f64().unwrap() > 0.0, "{scaled}");
    for size in ["before", "after"] {
        assert!(scaled[size]["speed"]["images_per_second"].as_f64().unwrap() > 0.0, "{scaled}");
    }
}

#[test]
fn what_cannot_grow_is_refused_with_what_could() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tiny.toml"), TINY).unwrap();
    for (line, code, words) in [
        ("scale tiny.toml", 2, &["--budget"][..]),
        ("scale none.toml --budget 2", 2, &["none.toml", "cannot read"]),
        ("scale tiny.toml --budget 1 --no-measure", 2, &["--budget", "is 1", "above 1"]),
        ("scale tiny.toml --budget 1.2 --no-measure", 2, &["--budget", "is 1.2", "at least"]),
        ("scale tiny.toml --budget 2 --ratios 1,1,1", 2, &["--ratios", "not all 1"]),
        ("scale tiny.toml --budget 2 --ratios 1.2", 2, &["--ratios", "three numbers"]),
        ("scale tiny.toml --budget 2 --ratios 1,2,1 --only maps", 2, &["--ratios", "--only"]),
        ("scale tiny.toml --budget 4 --only stages --no-measure", 2, &["stage 3", "4x4", "3x3"]),
        ("scale tiny.toml --budget 2 --memory 0", 2, &["--memory", "500MB"]),
        ("scale tiny.toml --budget 2 --memory 9k --no-measure", 1, &["24x24 pictures", "9000 are free"]),
        ("scale tiny.toml --budget 2 --no-measure --out tiny.toml", 1, &["tiny.toml", "--force"]),
        (
            "scale tiny.toml --budget 2 --no-measure --out none/new.toml",
            1,
            &["none/new.toml", "cannot write"],
        ),
    ] {
        let output = run(folder.path(), line);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{line}: {stderr}");
    }
}
