//! Files of features: safetensors, NumPy's npy, and Parquet; written as the values come.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, FloatType};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{ColumnPath, Type};
use serde_json::json;

use super::About;
use crate::error::{Error, Result};
use crate::files::Partial;
use crate::geometry::MapShape;

/// Most units that a table may have a column for: readers take a long time over more.
pub const MOST_COLUMNS: usize = 32_768;

/// Values of a row group of a table, in bytes.
const GROUP_BYTES: usize = 32 << 20;

/// Most rows of one.
const GROUP_ROWS: usize = 65_536;

/// How features are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `.safetensors`: `features` [picture, unit] f32, and `keys` u8, the names of the pictures with line breaks between; metadata.
    Safetensors,
    /// `.npy`: [picture, unit] f32; the names, a line each, in a file beside it with `.keys.txt` added to its name.
    Npy,
    /// `.parquet`: a row for each picture with its name, `key`, and a column `map:row:col` f32 for each unit; metadata.
    Parquet,
}

impl Format {
    /// The format of a file with this name, by its ending.
    ///
    /// # Errors
    /// Names the ending and those that there are.
    pub fn of(path: &Path) -> Result<Format> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("safetensors") => Ok(Format::Safetensors),
            Some("npy") => Ok(Format::Npy),
            Some("parquet") => Ok(Format::Parquet),
            _ => {
                let want = "a file that ends in .safetensors, .npy or .parquet".into();
                Err(Error::Setting { key: "--out".into(), got: path.display().to_string(), want })
            }
        }
    }
}

/// A file that is being written.
pub(super) trait FeatureFile {
    /// Adds rows of values, one for each picture.
    fn add(&mut self, rows: &[f32]) -> Result<()>;

    /// Gives the complete file its name; returns that of a file of keys beside it, if there is one.
    fn finish(self: Box<Self>) -> Result<Option<PathBuf>>;
}

/// Begins the file of the features of as many pictures as there are keys, if the disk has room for it.
pub(super) fn create(path: &Path, keys: &[String], about: &About) -> Result<Box<dyn FeatureFile>> {
    let (format, units) = (Format::of(path)?, about.shape.len());
    if format == Format::Parquet && units > MOST_COLUMNS {
        let want = format!("a .safetensors or .npy file: a table has at most {MOST_COLUMNS} columns");
        let got = format!("{} for {units} units", path.display());
        return Err(Error::Setting { key: "--out".into(), got, want });
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let need_bytes = (4 * keys.len() * units) as u64;
    let have_bytes = fs4::available_space(folder).map_err(Error::io(folder, "look at the free space of"))?;
    if need_bytes > have_bytes {
        let what = format!("{units} values of each of {} pictures in {}", keys.len(), path.display());
        return Err(Error::NoRoom { what, need_bytes, have_bytes });
    }
    // A name is a line; one of several lines would be several names.
    let keys: Vec<String> = keys.iter().map(|key| key.replace(['\n', '\r'], " ")).collect();
    Ok(match format {
        Format::Safetensors => Box::new(Plain::safetensors(path, keys, about)?),
        Format::Npy => Box::new(Plain::npy(path, keys, units)?),
        Format::Parquet => Box::new(Table::create(path, keys, about)?),
    })
}

/// A header, then the values as they are in memory.
struct Plain {
    path: PathBuf,
    partial: Partial,
    to: BufWriter<File>,
    /// What comes after the values.
    end: Vec<u8>,
    /// A file of names, and what is in it.
    keys: Option<(PathBuf, String)>,
    bytes: Vec<u8>,
}

impl Plain {
    fn begin(path: &Path, header: &[u8], end: Vec<u8>, keys: Option<(PathBuf, String)>) -> Result<Plain> {
        let (partial, file) = Partial::create(path)?;
        let mut to = BufWriter::with_capacity(1 << 20, file);
        to.write_all(header).map_err(Error::io(path, "write"))?;
        Ok(Plain { path: path.into(), partial, to, end, keys, bytes: Vec::new() })
    }

    fn safetensors(path: &Path, keys: Vec<String>, about: &About) -> Result<Plain> {
        let (pictures, units, names) = (keys.len(), about.shape.len(), keys.join("\n").into_bytes());
        let values_end = 4 * pictures * units;
        let header = json!({
            "__metadata__": facts(about).into_iter().collect::<serde_json::Map<_, _>>(),
            "features": { "dtype": "F32", "shape": [pictures, units], "data_offsets": [0, values_end] },
            "keys": { "dtype": "U8", "shape": [names.len()], "data_offsets": [values_end, values_end + names.len()] },
        });
        let mut text = header.to_string().into_bytes();
        // The format aligns tensors to 8 bytes.
        text.resize(text.len().next_multiple_of(8), b' ');
        let header = [&(text.len() as u64).to_le_bytes(), &text[..]].concat();
        Plain::begin(path, &header, names, None)
    }

    fn npy(path: &Path, keys: Vec<String>, units: usize) -> Result<Plain> {
        let mut name = path.as_os_str().to_owned();
        name.push(".keys.txt");
        let lines: String = keys.iter().flat_map(|key| [key, "\n"]).collect();
        Plain::begin(path, &npy_header(keys.len(), units), Vec::new(), Some((name.into(), lines)))
    }
}

impl FeatureFile for Plain {
    fn add(&mut self, rows: &[f32]) -> Result<()> {
        self.bytes.resize(4 * rows.len(), 0);
        for (bytes, value) in self.bytes.chunks_exact_mut(4).zip(rows) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        self.to.write_all(&self.bytes).map_err(Error::io(&self.path, "write"))
    }

    fn finish(mut self: Box<Self>) -> Result<Option<PathBuf>> {
        let written = self.to.write_all(&self.end).and_then(|()| self.to.flush());
        written.map_err(Error::io(&self.path, "write"))?;
        let keys = match self.keys {
            None => None,
            Some((path, lines)) => {
                let (partial, mut file) = Partial::create(&path)?;
                file.write_all(lines.as_bytes()).map_err(Error::io(&path, "write"))?;
                partial.finish()?;
                Some(path)
            }
        };
        self.partial.finish()?;
        Ok(keys)
    }
}

/// The beginning of an npy file of version 1.0: what is in it as a Python dictionary, and values that begin at a multiple of 64 bytes.
fn npy_header(pictures: usize, units: usize) -> Vec<u8> {
    const BEFORE: usize = 10;
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({pictures}, {units}), }}");
    let len = (BEFORE + text.len() + 1).next_multiple_of(64) - BEFORE;
    text.push_str(&" ".repeat(len - 1 - text.len()));
    text.push('\n');
    let len = u16::try_from(len).expect("two numbers take less than 64 KiB");
    [b"\x93NUMPY\x01\x00", &len.to_le_bytes()[..], text.as_bytes()].concat()
}

/// What a file says of itself, as text.
fn facts(about: &About) -> Vec<(String, serde_json::Value)> {
    let MapShape { channels, rows, cols } = about.shape;
    let facts = [
        ("run", about.run.display().to_string()),
        ("checkpoint", about.checkpoint.clone()),
        ("frames", about.frames.display().to_string()),
        ("stage", (about.stage + 1).to_string()),
        ("kind", about.kind.to_string()),
        ("shape", format!("[{channels}, {rows}, {cols}]")),
        ("units", "map after map, each row after row".into()),
        ("version", env!("CARGO_PKG_VERSION").into()),
    ];
    facts.map(|(name, value)| (name.to_owned(), value.into())).into()
}

/// A Parquet table.
struct Table {
    path: PathBuf,
    partial: Partial,
    writer: SerializedFileWriter<File>,
    keys: std::vec::IntoIter<String>,
    units: usize,
    /// Rows of the group that is not complete yet.
    rows: Vec<f32>,
    column: Vec<f32>,
}

impl Table {
    fn create(path: &Path, keys: Vec<String>, about: &About) -> Result<Table> {
        let column = |name: &str, physical, logical| {
            let column = Type::primitive_type_builder(name, physical).with_logical_type(logical);
            Ok(Arc::new(column.with_repetition(Repetition::REQUIRED).build()?))
        };
        let names = unit_names(about.shape);
        let fields = [column("key", Physical::BYTE_ARRAY, Some(LogicalType::String))].into_iter();
        let fields = fields.chain(names.map(|name| column(&name, Physical::FLOAT, None)));
        let schema = fields
            .collect::<Result<Vec<_>, ParquetError>>()
            .and_then(|fields| Type::group_type_builder("features").with_fields(fields).build())
            .expect("the names of units make a valid schema");
        let facts = facts(about).into_iter();
        let facts = facts.map(|(name, value)| KeyValue::new(name, value.as_str().map(str::to_owned)));
        // Values hardly repeat: looking for those that do would take longer than all else.
        let properties = WriterProperties::builder()
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_column_compression(ColumnPath::from("key"), Compression::ZSTD(ZstdLevel::default()))
            .set_key_value_metadata(Some(facts.collect()))
            .build();
        let (partial, file) = Partial::create(path)?;
        let writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties));
        let writer = writer.map_err(|e| failed(path, e))?;
        let (rows, column) = (Vec::new(), Vec::new());
        let (keys, units) = (keys.into_iter(), about.shape.len());
        Ok(Table { path: path.into(), partial, writer, keys, units, rows, column })
    }

    /// Rows that make a group.
    fn group_rows(&self) -> usize {
        (GROUP_BYTES / (4 * self.units)).clamp(1, GROUP_ROWS)
    }

    /// Writes the first so many rows that wait as a group.
    fn write_group(&mut self, count: usize) -> Result<(), ParquetError> {
        let keys: Vec<ByteArray> =
            self.keys.by_ref().take(count).map(|key| ByteArray::from(key.into_bytes())).collect();
        let mut group = self.writer.next_row_group()?;
        let mut column = group.next_column()?.expect("a column of keys");
        column.typed::<ByteArrayType>().write_batch(&keys, None, None)?;
        column.close()?;
        for unit in 0..self.units {
            self.column.clear();
            self.column.extend(self.rows[unit..count * self.units].iter().step_by(self.units));
            let mut column = group.next_column()?.expect("a column for each unit");
            column.typed::<FloatType>().write_batch(&self.column, None, None)?;
            column.close()?;
        }
        group.close()?;
        self.rows.drain(..count * self.units);
        Ok(())
    }
}

impl FeatureFile for Table {
    fn add(&mut self, rows: &[f32]) -> Result<()> {
        self.rows.extend_from_slice(rows);
        let count = self.group_rows();
        while self.rows.len() >= count * self.units {
            self.write_group(count).map_err(|e| failed(&self.path, e))?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Option<PathBuf>> {
        if !self.rows.is_empty() {
            let count = self.rows.len() / self.units;
            self.write_group(count).map_err(|e| failed(&self.path, e))?;
        }
        self.writer.close().map_err(|e| failed(&self.path, e))?;
        self.partial.finish()?;
        Ok(None)
    }
}

/// `map:row:col` of every unit, in the order of [`Network::units`](crate::network::Network::units).
fn unit_names(MapShape { channels, rows, cols }: MapShape) -> impl Iterator<Item = String> {
    let of_row = move |map, row| (0..cols).map(move |col| format!("{map}:{row}:{col}"));
    (0..channels).flat_map(move |map| (0..rows).flat_map(move |row| of_row(map, row)))
}

/// The error of a table that cannot be written.
fn failed(path: &Path, error: ParquetError) -> Error {
    let source = match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(source) => *source,
            Err(other) => std::io::Error::other(other),
        },
        other => std::io::Error::other(other.to_string()),
    };
    Error::Io { path: path.into(), action: "write", source }
}
