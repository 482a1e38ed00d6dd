//! Writing files so that whoever reads one finds it whole, or as it was.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes `bytes` to `NAME.partial` beside `path`, then moves them there.
///
/// # Errors
/// They cannot be written; what was there before is still there.
pub fn replace(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    let (partial, mut file) = Partial::create(path)?;
    file.write_all(bytes.as_ref()).map_err(Error::io(path, "write"))?;
    partial.finish()
}

fn partial_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

/// A file that is written bit by bit to `NAME.partial`: it has its name once it is finished, and is gone if it never is.
pub struct Partial {
    path: PathBuf,
    partial: PathBuf,
}

impl Partial {
    /// Begins the file `path`.
    ///
    /// # Errors
    /// It cannot be written, or there is a folder in its place.
    pub fn create(path: &Path) -> Result<(Partial, File)> {
        if path.is_dir() {
            return Err(Error::io(path, "write")(std::io::ErrorKind::IsADirectory.into()));
        }
        let partial = partial_of(path);
        let file = File::create(&partial).map_err(Error::io(path, "write"))?;
        Ok((Partial { path: path.into(), partial }, file))
    }

    /// Gives it its name, in place of what was there.
    ///
    /// # Errors
    /// It cannot be renamed; what was there before is still there.
    pub fn finish(self) -> Result<()> {
        fs::rename(&self.partial, &self.path).map_err(Error::io(&self.path, "write"))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After `finish` there is none any more.
        let _ = fs::remove_file(&self.partial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_a_failure_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.b.json");
        replace(&path, "one").unwrap();
        replace(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        fs::create_dir(folder.path().join("taken")).unwrap();
        let error = replace(&folder.path().join("taken"), "three").unwrap_err().to_string();
        assert!(error.contains("taken: cannot write"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_has_its_name_once_it_is_finished_and_is_gone_if_it_never_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let names =
            || fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        let (partial, mut file) = Partial::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert_eq!(names(), ["a.npy.partial"]);
        drop(partial);
        assert!(names().is_empty());
        for content in ["one", "another"] {
            let (partial, mut file) = Partial::create(&path).unwrap();
            file.write_all(content.as_bytes()).unwrap();
            partial.finish().unwrap();
            assert_eq!(
                (names(), fs::read_to_string(&path).unwrap()),
                (vec!["a.npy".into()], content.to_owned())
            );
        }
        let error = Partial::create(folder.path()).err().expect("a folder is no file").to_string();
        assert!(error.contains("cannot write"), "{error}");
    }
}
