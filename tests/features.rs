//! `striate encode`, `striate neighbours` and `striate map` from outside: what they write, that it does not depend on the number of threads,
//! that an interruption leaves what was there, and what they refuse.

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{done, json, program, run, snapshot, text};
use serde_json::Value;
use tempfile::TempDir;

/// A folder with `run`, trained a little on the frames `f`.
fn trained() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/tiny.toml");
    done(folder.path(), "synth --out v --videos 6 --seconds 1 --size 64x48 --fps 12");
    done(folder.path(), "sample v --out f --size 24 --per-video 10 --grey");
    let settings = "--set training.steps=[60,20] --set training.mode=sync --set training.replicas=1";
    done(folder.path(), &format!("train {config} --frames f --out run {settings}"));
    folder
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn features_are_written_in_every_format_the_same_on_any_number_of_threads() {
    let folder = trained();
    let dir = folder.path();
    let made = json(dir, "encode run --out a.safetensors");
    let expected = serde_json::json!({ "channels": 8, "rows": 3, "cols": 3 });
    assert_eq!((&made["stage"], &made["kind"], &made["shape"]), (&2.into(), &"y".into(), &expected));
    assert_eq!((&made["pictures"], &made["units"]), (&60.into(), &72.into()));
    // Other frames are decoded; these are the same.
    done(dir, "encode run --out b.safetensors --frames f --threads 1");
    let [a, b] = ["a", "b"].map(|name| fs::read(dir.join(format!("{name}.safetensors"))).unwrap());
    assert!(a == b, "features depend on the number of threads");

    let told = done(dir, "encode run --stage 1 --kind a --out a.npy");
    assert!(
        told.contains("60 frames, 324 values each of stage 1 (a)") && told.contains("a.npy.keys.txt"),
        "{told}"
    );
    assert_eq!(fs::metadata(dir.join("a.npy")).unwrap().len(), 128 + 4 * 60 * 324);
    assert_eq!(fs::read_to_string(dir.join("a.npy.keys.txt")).unwrap().lines().count(), 60);
    done(dir, "encode run --out a.parquet");
    assert_eq!(&fs::read(dir.join("a.parquet")).unwrap()[..4], b"PAR1");
    let left = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(left.into_iter().all(|name| !name.contains("partial")));
}

#[test]
fn an_interruption_leaves_the_features_that_were_there() {
    let folder = trained();
    let dir = folder.path();
    // Enough frames to be interrupted: 6 videos of 12 frames, many times over.
    let pictures = dir.join("many");
    fs::create_dir(&pictures).unwrap();
    let noise = |n: u32| image::GrayImage::from_fn(24, 24, |x, y| image::Luma([(x * n + y * y) as u8]));
    (0..40).for_each(|n| noise(n).save(pictures.join(format!("{n:02}.png"))).unwrap());
    let archive = fs::File::create(dir.join("many.tar")).unwrap();
    let mut archive = tar::Builder::new(archive);
    for n in 0..40_000 {
        archive
            .append_path_with_name(pictures.join(format!("{:02}.png", n % 40)), format!("{n:05}.png"))
            .unwrap();
    }
    archive.finish().unwrap();
    fs::write(dir.join("x.npy"), "older").unwrap();
    let mut child = program();
    child.current_dir(dir).args("encode run --frames many.tar --stage 1 --kind a --out x.npy".split(' '));
    let mut child = child.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let (begun, partial) = (Instant::now(), dir.join("x.npy.partial"));
    while !partial.exists() && begun.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "it was too fast to be interrupted");
    assert!(!partial.exists() && fs::read_to_string(dir.join("x.npy")).unwrap() == "older");
}

#[test]
fn neighbours_of_a_frame_begin_with_itself_and_every_image_has_a_sheet() {
    let folder = trained();
    let dir = folder.path();
    let tar = dir.join("f/frames-00000.tar");
    let mut archive = tar::Archive::new(fs::File::open(tar).unwrap());
    let mut member = archive.entries().unwrap().next().unwrap().unwrap();
    let name = member.path().unwrap().display().to_string();
    fs::create_dir(dir.join("pictures")).unwrap();
    member.unpack(dir.join("pictures").join(&name)).unwrap();
    image::RgbImage::from_pixel(50, 40, image::Rgb([9, 99, 200])).save(dir.join("pictures/zz.png")).unwrap();

    let found = json(dir, &format!("neighbours run pictures/{name} pictures --keep 5"));
    assert_eq!(
        (&found["frame_count"], &found["stage"], &found["kind"]),
        (&60.into(), &2.into(), &"y".into())
    );
    let images = found["images"].as_array().unwrap();
    assert_eq!(images.len(), 3);
    let key = name.rsplit_once('.').unwrap().0;
    for image in &images[..2] {
        let nearest = image["neighbours"].as_array().unwrap();
        assert_eq!(
            (nearest.len(), &nearest[0]["key"], &nearest[0]["similarity"]),
            (5, &key.into(), &1.0.into())
        );
        let values: Vec<f64> = nearest.iter().map(|near| near["similarity"].as_f64().unwrap()).collect();
        assert!(values.windows(2).all(|pair| pair[0] >= pair[1]), "{values:?}");
    }
    assert_eq!(images[0]["neighbours"], images[1]["neighbours"]);
    // A row for each picture, 24x24 pixels shown fourfold, and two between.
    let sheet = image::open(dir.join(images[1]["sheet"].as_str().unwrap())).unwrap();
    assert_eq!((sheet.width(), sheet.height()), (7 * 98 + 2, 2 * 98 + 2));
    assert!(dir.join(images[0]["sheet"].as_str().unwrap()).ends_with(format!("run/neighbours/{key}.png")));
    let told = done(dir, &format!("neighbours run pictures/{name} --stage 1 --kind h --threads 1"));
    assert!(told.contains(&format!("1.0000  {key}")), "{told}");
}

#[test]
fn a_map_is_written_and_repeats_on_any_number_of_threads() {
    let folder = trained();
    let dir = folder.path();
    let made = json(dir, "map run --shown 40");
    let map = read(&dir.join("run/map/map.json"));
    assert_eq!(
        (&made["shown"], &made["checkpoint"], &made["stage"]),
        (&40.into(), &map["checkpoint"], &2.into())
    );
    let lens = ["keys", "frames", "neighbours"].map(|list| map[list].as_array().unwrap().len());
    assert_eq!((lens, map["neighbours"][3].as_array().unwrap().len()), ([40; 3], 8));
    let layouts = map["layouts"].as_array().unwrap();
    assert_eq!([&layouts[0]["method"], &layouts[1]["method"]], ["pca", "tsne"]);
    assert_eq!((&layouts[1]["perplexity"], &layouts[0]["perplexity"]), (&13.0.into(), &Value::Null));
    for place in layouts.iter().flat_map(|layout| layout["positions"].as_array().unwrap()) {
        assert!((0..2).all(|axis| (0.0..=1.0).contains(&place[axis].as_f64().unwrap())), "{place}");
    }
    let sheet = image::open(dir.join("run/map/thumbnails.jpg")).unwrap();
    assert_eq!((sheet.width(), sheet.height(), &map["thumbnails"]["columns"]), (7 * 24, 6 * 24, &7.into()));
    let before = snapshot(&dir.join("run/map"));
    assert_eq!(before.len(), 4);

    assert!(done(dir, "map run --shown 40 --threads 1").contains("40 of 60 frames by 72 values"));
    assert!(snapshot(&dir.join("run/map")) == before, "the map depends on the number of threads");
    // What is no longer of this map is gone.
    done(dir, "map run --shown 40 --method pca --seed 1 --frames f");
    let after = snapshot(&dir.join("run/map"));
    let names: Vec<&str> = after.keys().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["map.json", "map.png", "thumbnails.jpg"]);
    assert_ne!(read(&dir.join("run/map/map.json"))["frames"], map["frames"]);
}

#[test]
fn what_cannot_be_done_is_refused_with_one_line() {
    let folder = trained();
    let dir = folder.path();
    fs::write(dir.join("text.txt"), "no picture").unwrap();
    fs::create_dir(dir.join("damaged")).unwrap();
    fs::write(dir.join("damaged/a.jpg"), b"\xff\xd8\xff\xe0 and then nothing").unwrap();
    let before = snapshot(dir);
    for (line, code, words) in [
        ("encode run", 2, &["--out"][..]),
        ("encode run --out a.txt", 2, &["--out", "a.txt", ".safetensors, .npy or .parquet"]),
        ("encode run --out a", 2, &["--out", ".npy"]),
        ("encode nowhere --out a.npy", 1, &["nowhere", "not a run"]),
        ("encode run --stage 3 --out a.npy", 2, &["--stage", "is 3", "from 1 to 2"]),
        ("encode run --frames nowhere --out a.npy", 1, &["nowhere", "No such file"]),
        ("encode run --out missing/a.npy", 1, &["missing", "No such file"]),
        ("neighbours run", 2, &["IMAGE"]),
        ("neighbours nowhere f", 1, &["nowhere", "not a run"]),
        ("neighbours run nowhere.png", 1, &["nowhere.png", "No such file"]),
        ("neighbours run text.txt", 1, &["text.txt", "neither a folder"]),
        ("neighbours run damaged", 1, &["none of 1 pictures", "damaged/a.jpg"]),
        ("neighbours run f --keep 0", 2, &["--keep", "1..="]),
        ("map nowhere", 1, &["nowhere", "not a run"]),
        ("map run --shown 1", 2, &["--shown", "2..="]),
        ("map run --shown 3", 1, &["3 frames make no map", "at least 4"]),
        ("map run --perplexity 30", 2, &["--perplexity", "is 30", "from 1 to 19.7 with 60 frames"]),
        ("map run --perplexity 0.5", 2, &["--perplexity", "from 1"]),
        ("map run --method umap", 2, &["--method", "pca", "tsne"]),
    ] {
        let output = run(dir, line);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{line}: no {words:?} in {stderr}");
        assert!(stderr.matches("error:").count() == 1 && !stderr.contains("panicked"), "{line}: {stderr}");
        assert!(snapshot(dir) == before, "{line} changed something");
    }
}
