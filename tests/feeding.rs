//! Decoded frames in the run folder, from outside: used again, made anew when they are not what they should be, and in
//! nobody's way; kept larger than the network's input where the settings say so.

mod common;

use std::fs::{self, File};
use std::path::Path;

use common::{done, json, program, run, snapshot, text};

const TRAIN: &str = concat!("train ", env!("CARGO_MANIFEST_DIR"), "/configs/tiny.toml");

/// A folder with frame sets `f` and `others` and a run in `run`.
fn trained() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), "synth --out v --videos 2 --seconds 1 --size 64x48 --fps 12");
    done(folder.path(), "sample v --out f --size 24 --per-video 6 --grey");
    done(folder.path(), "sample v --out others --size 24 --per-video 3 --grey --seed 1");
    let summary = json(folder.path(), &format!("{TRAIN} --frames f --out run"));
    let stall = summary["stall"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&stall), "{summary}");
    folder
}

/// Goes on with the finished run, which must succeed; returns its warnings.
fn resumed(folder: &Path) -> String {
    let output = run(folder, &format!("{TRAIN} --frames f --out run --resume"));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stderr)
}

/// Writes bytes as if the file had not been touched.
fn write_unseen(path: &Path, bytes: &[u8]) {
    let modified = path.metadata().unwrap().modified().unwrap();
    fs::write(path, bytes).unwrap();
    File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
}

#[test]
fn decoded_frames_are_used_again_and_made_anew_when_they_are_not_what_they_should_be() {
    let folder = trained();
    let at = |name: &str| folder.path().join(name);
    let (pixels, index) = (at("run/frames.u8"), at("run/frames.u8.json"));
    let whole = snapshot(&at("run"));
    assert_eq!(whole[&pixels].len(), 12 * 24 * 24);
    let log = text(&whole[&at("run/log.jsonl")]);
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["stall_seconds"].as_f64().unwrap() >= 0.0, "{line}");
    }

    // Pictures that can no longer be decoded are not missed.
    let shard = at("f/frames-00000.tar");
    let pictures = fs::read(&shard).unwrap();
    write_unseen(&shard, &vec![0; pictures.len()]);
    assert_eq!(resumed(folder.path()), "");
    assert!(snapshot(&at("run")) == whole);
    write_unseen(&shard, &pictures);

    let mut flipped = whole[&pixels].clone();
    flipped[1000] ^= 1;
    for (path, bytes, word) in [
        (&pixels, &whole[&pixels][..5000], "has 5000 bytes, expected 6912"),
        (&pixels, &flipped[..], "is damaged"),
        (&index, b"{\"format\": 1, ", "not an index"),
        (&index, &whole[&index][..whole[&index].len() - 9], "not an index"),
    ] {
        fs::write(path, bytes).unwrap();
        let stderr = resumed(folder.path());
        assert!(stderr.contains("warning: run/frames.u8") && stderr.contains(word), "{word}: {stderr}");
        assert!(stderr.contains("decoded again") && snapshot(&at("run")) == whole, "{word}: {stderr}");
    }
    for path in [&pixels, &index] {
        fs::remove_file(path).unwrap();
        resumed(folder.path());
        assert!(snapshot(&at("run")) == whole, "{} was removed", path.display());
    }

    // The same pictures, written again: nobody can know that without decoding them.
    fs::write(&shard, &pictures).unwrap();
    let stderr = resumed(folder.path());
    assert!(stderr.contains("made from other frames"), "{stderr}");
    let now = snapshot(&at("run"));
    assert!(now[&pixels] == whole[&pixels] && now[&index] != whole[&index]);
    // Moved elsewhere, they are the same.
    fs::rename(at("f"), at("moved")).unwrap();
    let output = run(folder.path(), &format!("{TRAIN} --frames moved --out run --resume"));
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    assert!(snapshot(&at("run")) == now);
}

#[test]
fn frames_of_another_set_are_neither_kept_nor_in_the_way() {
    let folder = trained();
    let before = snapshot(&folder.path().join("run"));
    let output = run(folder.path(), &format!("{TRAIN} --frames others --out run --resume"));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("other frames"), "{}", text(&output.stderr));
    assert!(snapshot(&folder.path().join("run")) == before);
    done(folder.path(), "visualize run --frames others --units 1 --evaluations 1");
    fs::remove_dir_all(folder.path().join("run/visualize")).unwrap();
    assert!(snapshot(&folder.path().join("run")) == before);
}

#[test]
fn frames_are_kept_with_their_margin_and_looked_at_in_their_middle() {
    let folder = trained();
    let at = |name: &str| folder.path().join(name);
    let train = |out: &str, more: &str| format!("{TRAIN} --frames f --out {out}{more}");
    let margin =
        " --set input.margin=6 --set input.preprocess=contrast --set training.mode=sync --replicas 1";
    let output = run(folder.path(), &train("wide", margin));
    let stderr = text(&output.stderr);
    assert!(output.status.success() && stderr.contains("resized to 30x30"), "{stderr}");
    assert!(stderr.contains("the config's input is 30x30x1 with its margin"), "{stderr}");
    assert_eq!(fs::metadata(at("wide/frames.u8")).unwrap().len(), 12 * 30 * 30);
    assert_eq!(json(folder.path(), "verify --run wide")["failed"], 0);
    // The decoded frames are used: these can no longer be decoded.
    let shard = at("f/frames-00000.tar");
    let pictures = fs::read(&shard).unwrap();
    write_unseen(&shard, &vec![0; pictures.len()]);
    done(folder.path(), "visualize wide --units 1 --evaluations 1");
    write_unseen(&shard, &pictures);
    let top = fs::read_dir(at("wide/visualize/stage1")).unwrap().map(|entry| entry.unwrap().path());
    let top = top.into_iter().find(|path| path.to_string_lossy().ends_with("-top.png")).unwrap();
    // With the grid's border around it.
    assert_eq!(image::open(top).unwrap().height(), 24 + 2 * 2);

    // Windows make a difference, flips make another, and going on with others is refused.
    let flipped = format!("{margin} --set input.flip=true");
    done(folder.path(), &train("flipped", &flipped));
    done(folder.path(), &train("again", &flipped));
    let model = |run: &str| fs::read(at(run).join("checkpoints/step-0000000400/model.safetensors")).unwrap();
    assert!(model("flipped") == model("again") && model("flipped") != model("wide"));
    let output = run(folder.path(), &train("wide", &format!("{flipped} --resume")));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("input.flip: false -> true"), "{}", text(&output.stderr));
}

#[test]
fn a_run_killed_while_it_decodes_is_begun_again_with_or_without_resume() {
    let folder = trained();
    for (name, more) in [("new", ""), ("newer", " --resume")] {
        let out = folder.path().join(name);
        fs::create_dir(&out).unwrap();
        fs::write(out.join("frames.u8.partial"), [7; 5000]).unwrap();
        fs::write(out.join("frames.u8.json.partial"), "{").unwrap();
        let summary = json(folder.path(), &format!("{TRAIN} --frames f --out {name}{more}"));
        assert_eq!(summary["finished"], true, "{summary}");
        let left = snapshot(&out);
        assert!(!left.keys().any(|path| path.to_string_lossy().contains("partial")), "{:?}", left.keys());
        assert!(left[&out.join("frames.u8")] == fs::read(folder.path().join("run/frames.u8")).unwrap());
    }
    // With decoded frames alone, nothing is decoded again and nothing else is missed.
    let out = folder.path().join("third");
    fs::create_dir(&out).unwrap();
    for name in ["frames.u8", "frames.u8.json"] {
        fs::copy(folder.path().join("run").join(name), out.join(name)).unwrap();
    }
    let train = format!("{TRAIN} --frames f --out third --quiet");
    let output = program().current_dir(&folder).args(train.split(' ')).output().unwrap();
    let stderr = text(&output.stderr);
    assert!(
        output.status.success() && stderr.lines().all(|line| line.contains("12 frames are few")),
        "{stderr}"
    );
}
