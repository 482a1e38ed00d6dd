//! Writing files so that whoever reads one finds it whole, or as it was.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};

/// Writes `bytes` to `NAME.partial` beside `path`, then moves them there.
///
/// # Errors
/// They cannot be written; what was there before is still there.
pub fn replace(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let written = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path));
    written.map_err(|source| {
        // It may not be there at all, and the first error is the one to tell.
        let _ = fs::remove_file(&partial);
        Error::Io { path: path.into(), action: "write", source }
    })
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
}
