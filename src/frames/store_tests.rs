//! Frame sets as they are written, continued, replaced, merged and read; and what other programs wrote.

use super::*;
use crate::frames::{
    FrameMetadata, FrameSetSummary, FrameWriter, InputRecord, Outcome, PictureFormat, Region, Spool,
    WriterOptions, merge,
};
use std::fs;

fn picture(shade: u8) -> DynamicImage {
    image::GrayImage::from_pixel(8, 6, image::Luma([shade])).into()
}

fn metadata(pts: i64) -> FrameMetadata {
    FrameMetadata {
        source: "videos/a.mp4".into(),
        name: "a.mp4".into(),
        stream: 0,
        pts,
        seconds: 0.1 * pts as f64,
        original_width: 64,
        original_height: 48,
        rotation: 90,
        mirrored: false,
        interlaced: false,
        strategy: "random".into(),
        seed: 1,
        crop: Region { left: 0.0, top: 0.0, width: 64.0, height: 48.0 },
        placed: None,
        brightness: 0.1,
        contrast: 2.0,
        sharpness: 3.0,
        perceptual_hash: format!("{pts:016x}"),
        hash: "0".into(),
    }
}

fn input(name: &str) -> InputRecord {
    InputRecord {
        path: format!("videos/{name}"),
        name: name.into(),
        absolute_path: format!("/videos/{name}"),
        key: name.into(),
        outcome: Outcome::Ok,
        reason: None,
        bytes: Some(1),
        codec: None,
        damage: None,
        frames: 0,
        dropped: Default::default(),
        seconds_spent: 0.0,
    }
}

fn options(overwrite: bool) -> WriterOptions {
    WriterOptions { frames_per_shard: 4, overwrite, ..WriterOptions::new(PictureFormat::Png) }
}

/// Adds the input `name` with `count` grey pictures whose shades start at `first`.
fn add(writer: &mut FrameWriter, name: &str, first: u8, count: u8) {
    let mut spool = Spool::new(&std::env::temp_dir());
    for i in 0..count {
        let json = serde_json::to_vec(&metadata(i64::from(i))).unwrap();
        let bytes = PictureFormat::Png.encode(&picture(first + i)).unwrap();
        spool.push(&json, &bytes, 0).unwrap();
    }
    writer.add_input(input(name), &mut spool, &vec![true; count.into()]).unwrap();
}

/// A set of inputs of three pictures each, at most four to a shard, and `count` pictures in all.
fn write_set(folder: &Path, first: u8, count: u8, overwrite: bool) -> Result<FrameSetSummary> {
    let settings = serde_json::json!({ "first": first });
    let mut writer = FrameWriter::open(folder, &settings, options(overwrite), |_| {})?;
    for start in (0..count).step_by(3) {
        add(&mut writer, &format!("a{start:02}"), first + start, (count - start).min(3));
    }
    writer.finish()
}

fn shade(store: &FrameStore, index: usize) -> u8 {
    store.picture(index).unwrap().to_luma8().get_pixel(3, 3).0[0]
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_frame_set_comes_back_as_written_with_and_without_its_index() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("new/set");
    let summary = write_set(&out, 10, 10, false).unwrap();
    // Of each input all frames in one shard, as long as they fit.
    assert_eq!((summary.frames, summary.shards, summary.inputs), (10, 3, 4));
    let shards = (0..3).flat_map(|i| [format!("frames-{i:05}.tar"), format!("frames-{i:05}_stats.json")]);
    let others = ["frames.json", "frames.parquet", "inputs.parquet", "journal.jsonl"].map(String::from);
    let mut expected: Vec<String> = shards.chain(others).collect();
    expected.sort();
    assert_eq!(names(&out), expected);
    for indexed in [true, false] {
        if !indexed {
            fs::remove_file(out.join(SUMMARY)).unwrap();
        }
        let store = FrameStore::open(&out).unwrap();
        assert_eq!((store.len(), store.warnings()), (10, &[] as &[String]));
        for i in 0..10 {
            let key = format!("a{:02}-{:06}", i / 3 * 3, i % 3);
            assert_eq!((store.key(i), shade(&store, i)), (&*key, 10 + i as u8));
            let found: FrameMetadata = serde_json::from_value(store.metadata(i).unwrap().unwrap()).unwrap();
            assert_eq!(found, metadata(i as i64 % 3));
        }
    }
    assert_eq!(FrameStore::open(&out.join("frames-00002.tar")).unwrap().len(), 4);
}

#[test]
fn a_set_is_replaced_only_when_asked_and_only_by_a_complete_one() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path();
    fs::write(out.join("notes.txt"), "mine").unwrap();
    write_set(out, 10, 10, false).unwrap();
    let before = names(out);
    let refused = write_set(out, 50, 1, false).unwrap_err().to_string();
    assert!(refused.contains("already holds a frame set made otherwise (first: 10 -> 50)"), "{refused}");
    // A writer that is dropped half-way leaves the old set.
    let mut writer = FrameWriter::open(out, &serde_json::json!({}), options(true), |_| {}).unwrap();
    add(&mut writer, "b", 1, 3);
    drop(writer);
    assert_eq!(names(out), before);
    assert_eq!(FrameStore::open(out).unwrap().len(), 10);
    write_set(out, 50, 2, true).unwrap();
    let store = FrameStore::open(out).unwrap();
    assert_eq!((store.len(), shade(&store, 1)), (2, 51));
    assert_eq!(
        names(out),
        [
            "frames-00000.tar",
            "frames-00000_stats.json",
            "frames.json",
            "frames.parquet",
            "inputs.parquet",
            "journal.jsonl",
            "notes.txt"
        ]
    );
}

fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    names(folder).into_iter().map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}

#[test]
fn a_set_interrupted_after_any_input_is_continued_to_the_same_bytes() {
    // Sizes that fit, fill and overflow shards of four frames, and nothing at all at the end.
    let sizes = [3u8, 1, 2, 9, 0, 4, 1, 0];
    let settings = serde_json::json!({});
    let folder = tempfile::tempdir().unwrap();
    let open = |out: &Path| FrameWriter::open(out, &settings, options(false), |_| {}).unwrap();
    let go_on = |writer: &mut FrameWriter, upto: usize| {
        for (i, &size) in sizes.iter().enumerate().take(upto) {
            if !writer.is_done(&format!("/videos/v{i}")) {
                add(writer, &format!("v{i}"), 20 * i as u8, size);
            }
        }
    };
    let whole = folder.path().join("whole");
    let mut writer = open(&whole);
    go_on(&mut writer, sizes.len());
    assert_eq!(writer.finish().unwrap().frames, 20);
    for stop in 0..=sizes.len() {
        let out = folder.path().join(format!("stopped-{stop}"));
        let mut writer = open(&out);
        go_on(&mut writer, stop);
        // Killed: nothing is cleaned up.
        std::mem::forget(writer);
        if stop > 5 {
            // A line that was never finished, a shard that nobody knows of.
            let journal = fs::File::options().append(true).open(out.join("journal.jsonl"));
            std::io::Write::write_all(&mut journal.unwrap(), b"{\"commit\":{\"sha").unwrap();
            fs::write(out.join("frames-00099.tar"), "x").unwrap();
            assert!(FrameStore::open(&out).unwrap().warnings()[0].contains("incomplete"));
        }
        // The lock of the killed process is gone with it; here it is still held by this one.
        let moved = folder.path().join(format!("moved-{stop}"));
        fs::create_dir(&moved).unwrap();
        for (name, bytes) in contents(&out) {
            fs::write(moved.join(name), bytes).unwrap();
        }
        let mut writer = open(&moved);
        go_on(&mut writer, sizes.len());
        writer.finish().unwrap();
        assert!(contents(&moved) == contents(&whole), "stopped after {stop}");
    }
    // And with more inputs; what was there stays as it was.
    let before = contents(&whole);
    let mut writer = open(&whole);
    assert!(writer.was_complete());
    add(&mut writer, "later", 200, 5);
    assert_eq!(writer.finish().unwrap().frames, 25);
    let after = contents(&whole);
    let tars = |all: &[(String, Vec<u8>)]| -> Vec<(String, Vec<u8>)> {
        all.iter().filter(|(name, _)| name.ends_with(".tar")).cloned().collect()
    };
    assert!(tars(&after).starts_with(&tars(&before)));
    assert_eq!(FrameStore::open(&whole).unwrap().len(), 25);
}

#[test]
fn a_complete_set_that_was_interrupted_while_it_grew_is_not_taken_as_complete() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("set");
    write_set(&out, 10, 3, false).unwrap();
    let settings = serde_json::json!({ "first": 10 });
    let open = || FrameWriter::open(&out, &settings, options(false), |_| {}).unwrap();
    let mut writer = open();
    add(&mut writer, "more", 50, 3);
    add(&mut writer, "most", 60, 3);
    // What was committed stays, and the old set can still be read.
    drop(writer);
    assert_eq!(FrameStore::open(&out).unwrap().len(), 3);
    let refused =
        merge(std::slice::from_ref(&out), &folder.path().join("merged"), options(false)).unwrap_err();
    assert!(refused.to_string().contains("not complete"), "{refused}");
    let writer = open();
    assert!(!writer.was_complete() && writer.is_done("/videos/more") && !writer.is_done("/videos/most"));
    assert_eq!(writer.finish().unwrap().frames, 6);
    assert_eq!((open().was_complete(), FrameStore::open(&out).unwrap().len()), (true, 6));
}

#[test]
fn a_set_without_its_journal_or_with_a_damaged_one_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("set");
    write_set(&out, 10, 10, false).unwrap();
    let settings = serde_json::json!({ "first": 10 });
    let refused = |why: &str| {
        let before = names(&out);
        let error = FrameWriter::open(&out, &settings, options(false), |_| {}).err().unwrap().to_string();
        assert!(error.contains("journal.jsonl") && error.contains(why), "{error}");
        assert_eq!(names(&out), before);
        assert_eq!(FrameStore::open(&out).unwrap().len(), 10);
    };
    let journal = out.join("journal.jsonl");
    let whole = fs::read(&journal).unwrap();
    fs::remove_file(&journal).unwrap();
    refused("cannot read");
    let mut damaged = whole.clone();
    damaged[20] = 0;
    fs::write(&journal, damaged).unwrap();
    refused("is damaged");
    let first_commit = whole.windows(9).position(|nine| nine == b"{\"commit\"").unwrap();
    let end = first_commit + whole[first_commit..].iter().position(|&b| b == b'\n').unwrap() + 1;
    fs::write(&journal, &whole[..end]).unwrap();
    refused("knows");
    // Replaced it can be.
    assert_eq!(write_set(&out, 10, 3, true).unwrap().frames, 3);
}

#[test]
fn a_replacement_that_was_interrupted_goes_on_only_for_the_same_inputs() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path();
    write_set(out, 10, 3, false).unwrap();
    let settings = serde_json::json!({});
    let open = |wanted: &'static [&'static str]| {
        let belongs = |path: &str| wanted.contains(&path);
        FrameWriter::open_for(out, &settings, options(true), |_| {}, belongs).unwrap()
    };
    let mut writer = open(&["/videos/b", "/videos/c"]);
    add(&mut writer, "b", 1, 4);
    add(&mut writer, "c", 9, 1);
    drop(writer);
    assert!(open(&["/videos/b", "/videos/c"]).is_done("/videos/b"));
    assert!(!open(&["/videos/c", "/videos/d"]).is_done("/videos/b"));
    assert_eq!(FrameStore::open(out).unwrap().len(), 3);
}

#[test]
fn a_merge_that_was_interrupted_is_continued_and_replaces_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let settings = serde_json::json!({});
    for (name, count) in [("x", 5), ("y", 2)] {
        let mut writer = FrameWriter::open(&at(name), &settings, options(false), |_| {}).unwrap();
        add(&mut writer, name, 10, count);
        writer.finish().unwrap();
    }
    write_set(&at("old"), 1, 1, false).unwrap();
    for (out, overwrite) in [("new", false), ("old", true)] {
        // As an interruption after the first set leaves it.
        let mut writer = FrameWriter::open(&at(out), &settings, options(overwrite), |_| {}).unwrap();
        add(&mut writer, "x", 10, 5);
        writer.commit_inputs(Vec::new()).unwrap();
        drop(writer);
        let merged = merge(&[at("x"), at("y")], &at(out), options(overwrite)).unwrap();
        assert_eq!((merged.frames, merged.inputs), (7, 2), "{out}");
        let again = merge(&[at("x"), at("y")], &at(out), options(false)).unwrap_err().to_string();
        assert!(again.contains("already holds a frame set"), "{again}");
    }
}

#[test]
fn a_folder_with_nothing_but_unfinished_files_counts_as_empty() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("frames.json.tmp"), "{").unwrap();
    assert_eq!(write_set(folder.path(), 10, 3, false).unwrap().frames, 3);
}

#[test]
fn only_one_process_writes_a_set() {
    let folder = tempfile::tempdir().unwrap();
    let _first = FrameWriter::open(folder.path(), &serde_json::json!({}), options(false), |_| {}).unwrap();
    let second = FrameWriter::open(folder.path(), &serde_json::json!({}), options(false), |_| {});
    assert!(second.err().unwrap().to_string().contains("another process"));
}

#[test]
fn merged_sets_hold_all_frames_and_can_be_continued() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let settings = |shard: &str| serde_json::json!({ "size": 8, "shard": shard });
    for (part, name, count) in [("0/2", "x", 5), ("1/2", "y", 2)] {
        let mut writer = FrameWriter::open(&at(name), &settings(part), options(false), |_| {}).unwrap();
        add(&mut writer, name, 10, count);
        writer.finish().unwrap();
    }
    let summary = merge(&[at("x"), at("y")], &at("both"), options(false)).unwrap();
    assert_eq!((summary.frames, summary.inputs, summary.shards), (7, 2, 3));
    let store = FrameStore::open(&at("both")).unwrap();
    assert_eq!((store.len(), store.key(4), store.key(5)), (7, "x-000004", "y-000000"));
    let twice = merge(&[at("x"), at("x")], &at("twice"), options(false)).unwrap_err().to_string();
    assert!(twice.contains("/videos/x") && !at("twice").exists(), "{twice}");
    let plain = serde_json::json!({ "size": 8 });
    assert_eq!(FrameWriter::open(&at("both"), &plain, options(false), |_| {}).unwrap().summary().frames, 7);
    write_set(&at("other"), 1, 1, false).unwrap();
    let other = merge(&[at("x"), at("other")], &at("mixed"), options(false)).unwrap_err().to_string();
    assert!(other.contains("first: none -> 1"), "{other}");
}

#[test]
fn an_unfinished_set_leaves_nothing_and_an_impossible_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("set");
    let mut writer = FrameWriter::open(&out, &serde_json::json!({}), options(false), |_| {}).unwrap();
    add(&mut writer, "k", 0, 1);
    drop(writer);
    assert!(!out.exists());
    fs::write(&out, "a file").unwrap();
    let error = write_set(&out.join("below"), 0, 1, false).unwrap_err().to_string();
    assert!(error.contains("below") && error.contains("cannot create"), "{error}");
}

#[test]
fn a_truncated_shard_keeps_what_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    write_set(folder.path(), 10, 4, false).unwrap();
    let shard = folder.path().join("frames-00000.tar");
    let whole = fs::read(&shard).unwrap();
    let table = TableReader::open(&folder.path().join(FRAME_TABLE)).unwrap();
    let cut = table.read::<Place>(0, PLACE_COLUMNS).unwrap()[2].offset as usize + 10;
    fs::write(&shard, &whole[..cut]).unwrap();
    // The index no longer fits, so the shard itself is read.
    let store = FrameStore::open(folder.path()).unwrap();
    assert_eq!(store.len(), 2);
    assert!(
        store.warnings().iter().any(|w| w.contains("a00-000002.png is cut off")),
        "{:?}",
        store.warnings()
    );
    let foreign = folder.path().join("x.tar");
    fs::write(&foreign, &whole[..cut - 600]).unwrap();
    let store = FrameStore::open(&foreign).unwrap();
    assert_eq!((store.len(), store.warnings().len(), shade(&store, 1)), (2, 1, 11));
}

#[test]
fn tars_and_folders_of_other_people_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("pictures/deep")).unwrap();
    picture(1).save(at("pictures/b.png")).unwrap();
    picture(2).save(at("pictures/deep/a.BMP")).unwrap();
    picture(3).to_rgb8().save(at("pictures/a.v2.gif")).unwrap();
    fs::write(at("pictures/b.json"), r#"{"label":"b"}"#).unwrap();
    fs::write(at("pictures/readme.txt"), "no picture").unwrap();
    fs::write(at("pictures/z.jpg"), "no jpeg").unwrap();
    let store = FrameStore::open(&at("pictures")).unwrap();
    let keys: Vec<_> = (0..store.len()).map(|i| store.key(i)).collect();
    assert_eq!(keys, ["a.v2", "b", "deep/a", "z"]);
    assert_eq!([0, 1, 2].map(|i| shade(&store, i)), [3, 1, 2]);
    assert_eq!(store.metadata(1).unwrap().unwrap()["label"], "b");
    assert_eq!(store.metadata(0).unwrap(), None);
    let bad = store.picture(3).unwrap_err().to_string();
    assert!(bad.contains("pictures/z.jpg") && bad.contains("cannot decode"), "{bad}");

    let long = format!("{}/c.webp", "long".repeat(40));
    let mut tar = tar::Builder::new(fs::File::create(at("x.tar")).unwrap());
    tar.append_dir_all("top", at("pictures")).unwrap();
    picture(4).save(at("c.webp")).unwrap();
    tar.append_path_with_name(at("c.webp"), &long).unwrap();
    tar.into_inner().unwrap();
    let store = FrameStore::open(&at("x.tar")).unwrap();
    assert_eq!(store.len(), 5);
    let find = |key: &str| (0..5).find(|&i| store.key(i) == key).unwrap();
    assert_eq!(shade(&store, find(stem(&long))), 4);
    assert_eq!(store.metadata(find("top/b")).unwrap().unwrap()["label"], "b");
    let bad = store.picture(find("top/z")).unwrap_err().to_string();
    assert!(bad.contains("x.tar: member top/z.jpg"), "{bad}");
}

#[test]
fn a_single_picture_is_a_set_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    picture(3).save(at("a.png")).unwrap();
    picture(4).save(at("b.png")).unwrap();
    fs::write(at("b.json"), r#"{"label": "b"}"#).unwrap();
    let store = FrameStore::open(&at("b.png")).unwrap();
    assert_eq!((store.len(), store.key(0), shade(&store, 0)), (1, "b", 4));
    assert_eq!(store.metadata(0).unwrap().unwrap()["label"], "b");
    assert_ne!(store.identity(), FrameStore::open(&at("a.png")).unwrap().identity());
}

#[test]
fn nothing_to_read_is_an_error_that_says_what_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let error = |path: PathBuf| FrameStore::open(&path).unwrap_err().to_string();
    let none = error(folder.path().to_path_buf());
    assert!(none.contains("neither tar shards nor pictures"), "{none}");
    let missing = error(folder.path().join("missing"));
    assert!(missing.contains("missing: cannot read"), "{missing}");
    fs::write(folder.path().join("x.tar"), "no tar at all").unwrap();
    let garbage = error(folder.path().join("x.tar"));
    assert!(garbage.contains("holds no picture") && garbage.contains("damaged"), "{garbage}");
    fs::write(folder.path().join("x.txt"), "text").unwrap();
    assert!(error(folder.path().join("x.txt")).contains("neither a folder nor a .tar"));
}

#[test]
fn a_picture_that_claims_a_monstrous_size_is_refused_unread() {
    // A PNG header for 60,000 x 60,000 pixels, with a correct checksum.
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xea\x60\0\0\xea\x60\x08\x02\0\0\0".to_vec();
    let crc = png[12..].iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
    });
    png.extend((!crc).to_be_bytes());
    png.extend(b"\0\0\0\0IDAT");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("bomb.png"), png).unwrap();
    let error = FrameStore::open(folder.path()).unwrap().picture(0).unwrap_err().to_string();
    assert!(error.contains("bomb.png") && error.to_lowercase().contains("limit"), "{error}");
}
