//! What can go wrong for a user: one line that names the thing, what was seen and what was wanted.
//!
//! What only a bug can cause is an `assert!` instead. The binary prints the line after `error:` with its causes.

use std::io;
use std::path::{Path, PathBuf};

/// Short for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that a user's files, settings or machine can cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused to open, read or write a file.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, an infinitive such as `read`.
        action: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file was read, but what is in it is not what it should be.
    #[error("{}: {problem}", path.display())]
    BadFile {
        /// The file or folder.
        path: PathBuf,
        /// What was seen and what was wanted.
        problem: String,
    },
    /// A setting has the wrong type or a value out of range.
    #[error("setting `{key}` is {got}, expected {want}")]
    Setting {
        /// The key as in the config file, such as `training.rate`; stages count from 1.
        key: String,
        /// The value seen.
        got: String,
        /// What would be accepted.
        want: String,
    },
    /// A key that no setting has.
    #[error("unknown setting `{key}`{}", nearest.as_ref().map_or(String::new(), |n| format!(", did you mean `{n}`?")))]
    UnknownSetting {
        /// The key as written.
        key: String,
        /// The valid key most like it, if any is.
        nearest: Option<String>,
    },
    /// A config file with a setting that is refused.
    #[error("{}: {source}", path.display())]
    BadConfig {
        /// The config file.
        path: PathBuf,
        /// What is wrong with which setting.
        source: Box<Error>,
    },
    /// A stage's filters do not fit the map they look at.
    #[error("stage {stage}: a {size}x{size} {what} does not fit a {rows}x{cols} map")]
    FieldTooLarge {
        /// The stage, counted from 1.
        stage: usize,
        /// `receptive field` or `pooling window`.
        what: &'static str,
        /// Its side.
        size: usize,
        /// Rows of the map.
        rows: usize,
        /// Columns of the map.
        cols: usize,
    },
    /// Two things that must belong together do not.
    #[error("{0}")]
    Mismatch(String),
    /// The loss is no number any more, or far from what it was.
    #[error(
        "the loss of stage {stage} {what} at step {step}: a lower training.rate may help; {}",
        good.map_or("there is no checkpoint yet".into(), |good| format!("the checkpoint of step {good} is good"))
    )]
    Diverged {
        /// The stage, counted from 1.
        stage: usize,
        /// What the loss did.
        what: String,
        /// The step of the run.
        step: u64,
        /// Step of the last checkpoint.
        good: Option<u64>,
    },
    /// The machine lacks the memory or disk space that the job needs.
    #[error("{what} needs {need_bytes} bytes and {have_bytes} are free")]
    NoRoom {
        /// What would not fit.
        what: String,
        /// Bytes needed.
        need_bytes: u64,
        /// Bytes available.
        have_bytes: u64,
    },
}

impl Error {
    /// For `map_err` on file operations: `.map_err(Error::io(path, "read"))`.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, action, source }
    }

    /// A file whose content is wrong; `problem` says what was seen and what was wanted. It is made one line: decoders
    /// like to say more.
    pub fn bad_file(path: impl AsRef<Path>, problem: impl Into<String>) -> Error {
        let problem = problem.into();
        let lines: Vec<&str> = problem.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Error::BadFile { path: path.as_ref().to_path_buf(), problem: lines.join("; ") }
    }

    /// True if a disk has no room.
    pub fn is_full_disk(&self) -> bool {
        match self {
            Error::NoRoom { .. } => true,
            Error::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }

    /// True if the user's settings or command line are at fault rather than a file (exit code 2).
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Error::Setting { .. }
                | Error::UnknownSetting { .. }
                | Error::BadConfig { .. }
                | Error::FieldTooLarge { .. }
        )
    }
}
