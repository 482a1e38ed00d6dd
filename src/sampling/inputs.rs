//! Which files to look into: those named, those below folders, those that match patterns, those in lists.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use walkdir::WalkDir;

use crate::error::{Error, Result};
use crate::rng::stable_hash;

/// Files with these endings are looked at inside folders. Sound files are among them, to be named as useless.
const MEDIA_ENDINGS: [&str; 43] = [
    "3g2", "3gp", "264", "265", "asf", "av1", "avi", "divx", "dv", "f4v", "flv", "gif", "h264", "h265",
    "hevc", "ivf", "m2ts", "m2v", "m4v", "mjpeg", "mjpg", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf",
    "nut", "obu", "ogv", "rm", "rmvb", "ts", "vob", "webm", "wmv", "y4m", "aac", "flac", "m4a", "mp3", "ogg",
];

/// And these.
const PICTURE_ENDINGS: [&str; 5] = ["bmp", "jpeg", "jpg", "png", "webp"];

/// One file to take frames from.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Where it is, as it was named.
    pub path: PathBuf,
    /// Its path relative to the folder that was named, or its file name, or its line in a list: what its random
    /// numbers depend on.
    pub name: String,
    /// Its path from the root of the file system, by [`in_words`]: what it is known by.
    pub absolute: String,
    /// Why it cannot be read, where that is known already.
    pub problem: Option<String>,
}

impl Input {
    /// Whether machine `index` of `count` takes this input: all agree without talking to each other.
    pub fn belongs_to(&self, index: u64, count: u64, seed: u64) -> bool {
        stable_hash(format!("{seed}/{}", self.name).as_bytes()) % count == index
    }
}

/// A list of files, one to a line, or separated by zero bytes if there are any.
///
/// # Errors
/// If it cannot be read, or names nothing.
pub fn read_list(path: &Path) -> Result<Vec<PathBuf>> {
    let mut bytes = Vec::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin().read_to_end(&mut bytes),
        false => std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)),
    };
    read.map_err(Error::io(path, "read the list"))?;
    let separator = if bytes.contains(&0) { 0 } else { b'\n' };
    let lines = bytes.split(|byte| *byte == separator).map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let files: Vec<PathBuf> =
        lines.filter(|line| !line.is_empty()).map(|line| OsStr::from_bytes(line).into()).collect();
    if files.is_empty() {
        return Err(Error::bad_file(path, "the list names no file"));
    }
    Ok(files)
}

/// The files to look into: those named, those below the folders named that look like videos or pictures, those that
/// match the patterns named (`*`, `?`, `[..]`, `**`), and those `listed`; each once.
///
/// Hidden files and folders inside folders are passed over. A listed folder is searched like a named one.
///
/// # Errors
/// If a folder holds nothing that looks like a video or picture, or a pattern is malformed or matches nothing.
pub fn collect(arguments: &[PathBuf], listed: &[PathBuf]) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for argument in arguments {
        let name = || in_words(argument.file_name().unwrap_or(argument.as_os_str()));
        if argument.is_dir() {
            search(argument, &mut inputs)?;
        } else if argument.exists() || !is_pattern(argument) {
            add(&mut inputs, argument.clone(), name(), None);
        } else {
            expand(argument, &mut inputs)?;
        }
    }
    for file in listed {
        if file.is_dir() {
            search(file, &mut inputs)?;
        } else {
            // Lists name files of many folders, so the whole line tells them apart.
            let plain: PathBuf = file.components().filter(|part| *part != Component::CurDir).collect();
            add(&mut inputs, file.clone(), in_words(plain.as_os_str()), None);
        }
    }
    let mut seen = HashSet::new();
    inputs.retain(|input| seen.insert(stable_hash(input.absolute.as_bytes())));
    Ok(inputs)
}

/// A path as text; bytes that are not UTF-8 become `\xHH`, so that different paths stay different.
pub fn in_words(path: &OsStr) -> String {
    let mut text = String::new();
    for chunk in path.as_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

fn add(inputs: &mut Vec<Input>, path: PathBuf, name: String, problem: Option<String>) {
    let absolute =
        path.canonicalize().or_else(|_| std::path::absolute(&path)).unwrap_or_else(|_| path.clone());
    let absolute = in_words(absolute.as_os_str());
    inputs.push(Input { path, name, absolute, problem });
}

/// Adds the videos and pictures below a folder, sorted.
fn search(folder: &Path, inputs: &mut Vec<Input>) -> Result<()> {
    let before = inputs.len();
    let visible = |name: &std::ffi::OsStr| !name.as_encoded_bytes().starts_with(b".");
    let walk = WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter();
    for entry in walk.filter_entry(|entry| entry.depth() == 0 || visible(entry.file_name())) {
        let (path, problem) = match entry {
            Ok(entry) if entry.file_type().is_file() && looks_useful(entry.path()) => {
                (entry.into_path(), None)
            }
            Ok(_) => continue,
            Err(e) if e.loop_ancestor().is_some() => continue,
            Err(e) => {
                let path = e.path().unwrap_or(folder).to_path_buf();
                let reason = e.io_error().map_or_else(|| e.to_string(), |io| io.to_string());
                (path, Some(format!("cannot read: {reason}")))
            }
        };
        let name = in_words(path.strip_prefix(folder).unwrap_or(&path).as_os_str());
        add(inputs, path, name, problem);
    }
    if inputs.len() == before {
        let some = "mp4, mkv, webm, mov, avi, jpg, png and other endings";
        return Err(Error::bad_file(
            folder,
            format!("the folder holds no video and no picture; looked for {some}"),
        ));
    }
    Ok(())
}

fn is_pattern(path: &Path) -> bool {
    path.to_string_lossy().contains(['*', '?', '['])
}

/// Adds the files that match a pattern, sorted; their names are relative to its part without wildcards.
fn expand(pattern: &Path, inputs: &mut Vec<Input>) -> Result<()> {
    let text = pattern.to_string_lossy();
    let wrong = |problem: String| Error::bad_file(pattern, problem);
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
    let found = glob::glob_with(&text, options).map_err(|e| wrong(format!("is no valid pattern: {e}")))?;
    let root: PathBuf =
        pattern.components().take_while(|part| !is_pattern(Path::new(part.as_os_str()))).collect();
    let before = inputs.len();
    for path in found {
        let (path, problem) = match path {
            Ok(path) => (path, None),
            Err(e) => (e.path().to_path_buf(), Some(format!("cannot read: {}", e.error()))),
        };
        if path.is_dir() {
            continue;
        }
        let name = in_words(path.strip_prefix(&root).unwrap_or(&path).as_os_str());
        add(inputs, path, name, problem);
    }
    if inputs.len() == before {
        return Err(wrong("no file matches this pattern".into()));
    }
    Ok(())
}

fn looks_useful(path: &Path) -> bool {
    let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|e| MEDIA_ENDINGS.contains(&e.as_str()) || PICTURE_ENDINGS.contains(&e.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(arguments: &[PathBuf], listed: &[PathBuf]) -> Vec<String> {
        collect(arguments, listed).unwrap().into_iter().map(|input| input.name).collect()
    }

    #[test]
    fn folders_are_searched_and_every_file_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("deep/er")).unwrap();
        for name in ["b.mp4", "a.MKV", "notes.txt", ".hidden.mp4", "deep/er/c.webm", "deep/d.png"] {
            std::fs::write(at(name), "x").unwrap();
        }
        let root = folder.path().to_path_buf();
        assert_eq!(
            names(std::slice::from_ref(&root), &[]),
            ["a.MKV", "b.mp4", "deep/d.png", "deep/er/c.webm"]
        );
        assert_eq!(
            names(&[at("notes.txt"), at("deep/../b.mp4"), root], &[]),
            ["notes.txt", "b.mp4", "a.MKV", "deep/d.png", "deep/er/c.webm"]
        );
        std::fs::create_dir(at("empty")).unwrap();
        let error = collect(&[at("empty")], &[]).unwrap_err().to_string();
        assert!(error.contains("empty") && error.contains("holds no video"), "{error}");

        assert_eq!(names(&[at("deep/**/*.webm")], &[]), ["er/c.webm"]);
        assert_eq!(names(&[at("*.[mM]*")], &[]), ["a.MKV", "b.mp4"]);
        let error = collect(&[at("*.avi")], &[]).unwrap_err().to_string();
        assert!(error.contains("*.avi") && error.contains("no file matches"), "{error}");
        let error = collect(&[at("a***b")], &[]).unwrap_err().to_string();
        assert!(error.contains("no valid pattern"), "{error}");
        // A file whose name looks like a pattern is that file.
        std::fs::write(at("[1].mp4"), "x").unwrap();
        assert_eq!(names(&[at("[1].mp4")], &[]), ["[1].mp4"]);
    }

    #[test]
    fn lists_name_files_by_line_or_by_zero_byte() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list");
        std::fs::write(&list, "./day1/cam.mp4\r\n\nday2/cam.mp4\n").unwrap();
        let listed = read_list(&list).unwrap();
        assert_eq!(names(&[], &listed), ["day1/cam.mp4", "day2/cam.mp4"]);
        std::fs::write(&list, "with\nnewline.mp4\0b.mp4\0").unwrap();
        assert_eq!(names(&[], &read_list(&list).unwrap()), ["with\nnewline.mp4", "b.mp4"]);
        // Names need not be UTF-8, and two that differ there only stay two.
        std::fs::write(&list, b"caf\xe8.mp4\ncaf\xe9.mp4\n").unwrap();
        assert_eq!(names(&[], &read_list(&list).unwrap()), ["caf\\xe8.mp4", "caf\\xe9.mp4"]);
        std::fs::write(&list, "\n\n").unwrap();
        assert!(read_list(&list).unwrap_err().to_string().contains("names no file"));
        assert!(read_list(&folder.path().join("none")).is_err());
    }

    #[test]
    fn every_input_belongs_to_one_machine_whatever_the_others() {
        let input = |i: usize| Input {
            path: format!("{i}.mp4").into(),
            name: format!("{i}.mp4"),
            absolute: format!("/{i}.mp4"),
            problem: None,
        };
        let mut sizes = [0; 7];
        for i in 0..7000 {
            let takers: Vec<u64> = (0..7).filter(|&n| input(i).belongs_to(n, 7, 3)).collect();
            assert_eq!(takers.len(), 1);
            sizes[takers[0] as usize] += 1;
        }
        assert!(sizes.iter().all(|size| (850..1150).contains(size)), "{sizes:?}");
    }
}
