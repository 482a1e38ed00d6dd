//! Finds pictures at random in frame sets, in other people's tar shards and in folders of pictures.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageDecoder, ImageReader, Limits};
use walkdir::WalkDir;

use super::MAX_SIDE;
use super::writer::{FORMAT_VERSION, FrameSetSummary, INDEX, IndexLine, SUMMARY};
use crate::error::{Error, Result};

const PICTURE_ENDINGS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];

/// A compressed picture longer than this is refused.
const MAX_BYTES: u64 = 1 << 30;

/// Pictures on disk, each found by its number, by any number of threads at once.
///
/// Only names and places are in memory; every picture is read when it is asked for.
#[derive(Debug)]
pub struct FrameStore {
    /// The tar files, or the folder that the pictures lie below.
    files: Vec<PathBuf>,
    entries: Vec<Entry>,
    in_tar: bool,
    warnings: Vec<String>,
}

#[derive(Debug)]
struct Entry {
    file: u32,
    /// Name of the tar member, or path relative to the folder.
    member: Box<str>,
    picture: Span,
    json: Option<Span>,
}

/// Part of a tar file.
#[derive(Debug, Clone, Copy)]
struct Span {
    offset: u64,
    length: u64,
}

impl FrameStore {
    /// Opens a folder written by [`FrameWriter`](super::FrameWriter), a folder of tar shards or one of them, or a
    /// folder of pictures with all folders below it.
    ///
    /// A damaged shard counts as far as it can be read, with a line in [`warnings`](Self::warnings).
    ///
    /// # Errors
    /// If there is no such path, or no picture there.
    pub fn open(path: &Path) -> Result<FrameStore> {
        let meta = path.metadata().map_err(Error::io(path, "read"))?;
        let mut store =
            FrameStore { files: Vec::new(), entries: Vec::new(), in_tar: true, warnings: Vec::new() };
        if !meta.is_dir() {
            if !has_ending(path, &["tar"]) {
                return Err(Error::bad_file(path, "is neither a folder nor a .tar file"));
            }
            store.scan(path)?;
            return store.unless_empty(path, "the tar file holds no picture");
        }
        let mut shards = Vec::new();
        for entry in path.read_dir().map_err(Error::io(path, "read"))? {
            let entry = entry.map_err(Error::io(path, "read"))?.path();
            if has_ending(&entry, &["tar"]) && entry.is_file() {
                shards.push(entry);
            }
        }
        shards.sort();
        if path.join(SUMMARY).is_file() {
            match store.read_index(path) {
                Ok(()) => return store.unless_empty(path, "the frame set holds no frame"),
                Err(problem) => {
                    store.entries.clear();
                    store.files.clear();
                    store.warnings.push(format!("{}: {problem}; reading its shards instead", path.display()));
                }
            }
        } else if path.join(format!("{INDEX}.tmp")).is_file() {
            let count = shards.len();
            let problem = format!("the frame set is incomplete; reading its {count} finished shards");
            store.warnings.push(format!("{}: {problem}", path.display()));
        }
        if shards.is_empty() {
            store.in_tar = false;
            store.walk(path)?;
            return store.unless_empty(path, "the folder holds neither tar shards nor pictures");
        }
        for shard in &shards {
            store.scan(shard)?;
        }
        store.unless_empty(path, "the tar shards hold no picture")
    }

    fn unless_empty(self, path: &Path, problem: &str) -> Result<FrameStore> {
        if self.entries.is_empty() {
            let more = self.warnings.first().map_or(String::new(), |warning| format!(" ({warning})"));
            return Err(Error::bad_file(path, format!("{problem}{more}")));
        }
        Ok(self)
    }

    /// Takes the places from the index of a complete set; the error is the problem without the folder.
    fn read_index(&mut self, folder: &Path) -> Result<(), String> {
        let text = std::fs::read(folder.join(SUMMARY)).map_err(|e| format!("cannot read {SUMMARY}: {e}"))?;
        let summary: FrameSetSummary =
            serde_json::from_slice(&text).map_err(|e| format!("{SUMMARY} is not valid: {e}"))?;
        if summary.format_version != FORMAT_VERSION {
            return Err(format!("its format is {}, known is {FORMAT_VERSION}", summary.format_version));
        }
        let file = File::open(folder.join(INDEX)).map_err(|e| format!("cannot read {INDEX}: {e}"))?;
        let mut shards: HashMap<String, (u32, u64)> = HashMap::new();
        for (number, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(|e| format!("cannot read {INDEX}: {e}"))?;
            let wrong = |what: String| format!("{INDEX} line {}: {what}", number + 1);
            let line: IndexLine = serde_json::from_str(&line).map_err(|e| wrong(e.to_string()))?;
            let (file, bytes) = match shards.get(&line.shard) {
                Some(known) => *known,
                None => {
                    if line.shard.contains('/') {
                        return Err(wrong(format!("`{}` is no file name", line.shard)));
                    }
                    let path = folder.join(&line.shard);
                    let meta =
                        path.metadata().map_err(|e| wrong(format!("cannot read {}: {e}", line.shard)))?;
                    self.files.push(path);
                    let known = (self.files.len() as u32 - 1, meta.len());
                    shards.insert(line.shard.clone(), known);
                    known
                }
            };
            let span = |offset: u64, length: u64| {
                let inside = offset.checked_add(length).is_some_and(|end| end <= bytes);
                inside
                    .then_some(Span { offset, length })
                    .ok_or_else(|| wrong(format!("past the end of {}", line.shard)))
            };
            let picture = span(line.offset, line.length)?;
            let json = Some(span(line.json_offset, line.json_length)?);
            self.entries.push(Entry { file, member: line.member.into(), picture, json });
        }
        if self.entries.len() as u64 != summary.frames {
            return Err(format!("{INDEX} has {} lines for {} frames", self.entries.len(), summary.frames));
        }
        Ok(())
    }

    /// Finds the pictures of a tar file, as far as it can be read.
    fn scan(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(Error::io(path, "read"))?;
        let bytes = file.metadata().map_err(Error::io(path, "read"))?.len();
        let number = self.files.len() as u32;
        self.files.push(path.to_path_buf());
        let first = self.entries.len();
        let mut metadata: HashMap<String, Span> = HashMap::new();
        let mut archive = tar::Archive::new(BufReader::new(file));
        let mut problem = None;
        let members = archive.entries_with_seek().map_err(Error::io(path, "read"))?;
        for member in members {
            let member = match member {
                Ok(member) => member,
                Err(e) => {
                    problem = Some(e.to_string());
                    break;
                }
            };
            if !member.header().entry_type().is_file() {
                continue;
            }
            let name = String::from_utf8_lossy(&member.path_bytes()).into_owned();
            let span = Span { offset: member.raw_file_position(), length: member.size() };
            if span.offset.checked_add(span.length).is_none_or(|end| end > bytes) {
                problem = Some(format!("member {name} is cut off"));
                break;
            }
            let as_path = Path::new(&name);
            if hidden(as_path) {
                continue;
            }
            if has_ending(as_path, &["json"]) {
                metadata.insert(sample_key(&name).to_string(), span);
            } else if has_ending(as_path, &PICTURE_ENDINGS) {
                self.entries.push(Entry { file: number, member: name.into(), picture: span, json: None });
            }
        }
        if problem.is_none() && !ends_with_zeros(path).map_err(Error::io(path, "read"))? {
            problem = Some("the file ends too early".into());
        }
        for entry in &mut self.entries[first..] {
            entry.json = metadata.get(sample_key(&entry.member)).copied();
        }
        if let Some(problem) = problem {
            let kept = self.entries.len() - first;
            self.warnings.push(format!("{}: damaged after {kept} pictures: {problem}", path.display()));
        }
        Ok(())
    }

    /// Finds the pictures below a folder.
    fn walk(&mut self, folder: &Path) -> Result<()> {
        self.files.push(folder.to_path_buf());
        let walk = WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter();
        for entry in walk.filter_entry(|entry| entry.depth() == 0 || !hidden(entry.path())) {
            match entry {
                Ok(entry) if entry.file_type().is_file() && has_ending(entry.path(), &PICTURE_ENDINGS) => {
                    let relative = entry.path().strip_prefix(folder).unwrap_or(entry.path());
                    let Some(member) = relative.to_str() else {
                        let path = entry.path().display();
                        self.warnings.push(format!("{path}: left out, its name is not UTF-8"));
                        continue;
                    };
                    let picture = Span { offset: 0, length: entry.metadata().map_or(0, |meta| meta.len()) };
                    self.entries.push(Entry { file: 0, member: member.into(), picture, json: None });
                }
                Ok(_) => {}
                Err(e) if e.loop_ancestor().is_some() => {}
                Err(e) => self.warnings.push(e.to_string()),
            }
        }
        Ok(())
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Never true of an open store: one without pictures is refused.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Name of a picture without its ending; with the path inside the tar or folder.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len), as the other functions do too.
    pub fn key(&self, index: usize) -> &str {
        stem(&self.entries[index].member)
    }

    /// What was wrong with the files on opening, a line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Reads and decodes a picture, turned upright if it says how.
    ///
    /// # Errors
    /// If it cannot be read or decoded or is unreasonably large; the error names the shard and the member.
    pub fn picture(&self, index: usize) -> Result<DynamicImage> {
        let entry = &self.entries[index];
        let bytes = self.read(entry, entry.picture, &entry.member)?;
        decode(&bytes).map_err(|e| self.bad(entry, format!("cannot decode the picture: {e}")))
    }

    /// The JSON that lies beside a picture, if there is any.
    ///
    /// # Errors
    /// If it cannot be read or is not valid JSON.
    pub fn metadata(&self, index: usize) -> Result<Option<serde_json::Value>> {
        let entry = &self.entries[index];
        let bytes = if self.in_tar {
            let Some(span) = entry.json else { return Ok(None) };
            self.read(entry, span, &entry.member)?
        } else {
            let path = self.files[0].join(format!("{}.json", stem(&entry.member)));
            match std::fs::read(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                read => read.map_err(Error::io(&path, "read"))?,
            }
        };
        let value = serde_json::from_slice(&bytes);
        value.map(Some).map_err(|e| self.bad(entry, format!("its JSON is not valid: {e}")))
    }

    fn read(&self, entry: &Entry, span: Span, member: &str) -> Result<Vec<u8>> {
        if span.length > MAX_BYTES {
            return Err(self.bad(entry, format!("has {} bytes, at most {MAX_BYTES} are read", span.length)));
        }
        let file = &self.files[entry.file as usize];
        if !self.in_tar {
            let path = file.join(member);
            return std::fs::read(&path).map_err(Error::io(&path, "read"));
        }
        let mut bytes = vec![0; span.length as usize];
        let read = File::open(file).and_then(|file| file.read_exact_at(&mut bytes, span.offset));
        read.map_err(|e| self.bad(entry, format!("cannot read: {e}")))?;
        Ok(bytes)
    }

    fn bad(&self, entry: &Entry, problem: String) -> Error {
        let file = &self.files[entry.file as usize];
        if self.in_tar {
            Error::bad_file(file, format!("member {}: {problem}", entry.member))
        } else {
            Error::bad_file(file.join(&*entry.member), problem)
        }
    }
}

/// Whether a tar file has its end mark; without it, the file was cut.
fn ends_with_zeros(path: &Path) -> std::io::Result<bool> {
    let file = File::open(path)?;
    let Some(start) = file.metadata()?.len().checked_sub(512) else { return Ok(false) };
    let mut block = [1; 512];
    file.read_exact_at(&mut block, start)?;
    Ok(block == [0; 512])
}

fn decode(bytes: &[u8]) -> image::ImageResult<DynamicImage> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder()?;
    limits.reserve(decoder.total_bytes())?;
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(image)
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|ending| endings.contains(&ending.as_str()))
}

/// Such as the `._` files that macOS puts beside others.
fn hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// A name without its ending.
fn stem(name: &str) -> &str {
    match name.rfind('.') {
        Some(dot) if !name[dot..].contains('/') => &name[..dot],
        _ => name,
    }
}

/// What the members of one WebDataset sample share: everything up to the first dot of the file name.
fn sample_key(name: &str) -> &str {
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    name[start..].find('.').map_or(name, |dot| &name[..start + dot])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{FrameMetadata, FrameWriter, PictureFormat, WriterOptions};
    use crate::video::sampler::Strategy;
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
            strategy: Strategy::Jump,
            seed: 1,
            crop: [0.0, 0.0, 64.0, 48.0],
            hash: "0".into(),
        }
    }

    /// A set of `count` grey pictures, 4 to a shard, whose shades start at `first`.
    fn write_set(folder: &Path, first: u8, count: u8, overwrite: bool) -> Result<FrameSetSummary> {
        let options = WriterOptions {
            format: PictureFormat::Png,
            frames_per_shard: 4,
            overwrite,
            ..Default::default()
        };
        let mut writer = FrameWriter::create(folder, options)?;
        for i in 0..count {
            let bytes = PictureFormat::Png.encode(&picture(first + i))?;
            writer.add(&format!("a-{i:03}"), &bytes, &metadata(i64::from(i)))?;
        }
        writer.finish(serde_json::json!({ "size": [8, 6] }))
    }

    fn shade(store: &FrameStore, index: usize) -> u8 {
        store.picture(index).unwrap().to_luma8().get_pixel(3, 3).0[0]
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_frame_set_comes_back_as_written_with_and_without_its_index() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new/set");
        let summary = write_set(&out, 10, 10, false).unwrap();
        assert_eq!((summary.frames, summary.shards), (10, 3));
        let shards = (0..3).flat_map(|i| [format!("frames-{i:05}.tar"), format!("frames-{i:05}_stats.json")]);
        let others = ["frames.json", "index.jsonl", "inputs.jsonl"].map(String::from);
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
                assert_eq!((store.key(i), shade(&store, i)), (&*format!("a-{i:03}"), 10 + i as u8));
                let found: FrameMetadata =
                    serde_json::from_value(store.metadata(i).unwrap().unwrap()).unwrap();
                assert_eq!(found, metadata(i as i64));
            }
        }
        assert_eq!(FrameStore::open(&out.join("frames-00002.tar")).unwrap().len(), 2);
    }

    #[test]
    fn a_set_is_replaced_only_when_asked_and_only_by_a_complete_one() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        fs::write(out.join("notes.txt"), "mine").unwrap();
        write_set(out, 10, 10, false).unwrap();
        let before = names(out);
        let refused = write_set(out, 50, 1, false).unwrap_err().to_string();
        assert!(refused.contains("already holds a frame set"), "{refused}");
        // A writer that is dropped half-way leaves the old set.
        let options = WriterOptions { overwrite: true, frames_per_shard: 1, ..Default::default() };
        let mut writer = FrameWriter::create(out, options).unwrap();
        for i in 0..3 {
            writer.add(&format!("b{i}"), b"not looked at", &metadata(i)).unwrap();
        }
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
                "index.jsonl",
                "inputs.jsonl",
                "notes.txt"
            ]
        );
    }

    #[test]
    fn an_unfinished_set_leaves_nothing_and_an_impossible_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("set");
        let mut writer = FrameWriter::create(&out, WriterOptions::default()).unwrap();
        writer.add("k", b"x", &metadata(0)).unwrap();
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
        let index = fs::read_to_string(folder.path().join(INDEX)).unwrap();
        let third: serde_json::Value = serde_json::from_str(index.lines().nth(2).unwrap()).unwrap();
        let cut = third["offset"].as_u64().unwrap() as usize + 10;
        fs::write(&shard, &whole[..cut]).unwrap();
        // The index no longer fits, so the shard itself is read.
        let store = FrameStore::open(folder.path()).unwrap();
        assert_eq!(store.len(), 2);
        assert!(
            store.warnings().iter().any(|w| w.contains("a-002.png is cut off")),
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
}
