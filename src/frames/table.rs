//! Parquet tables of plain records, for pandas, duckdb and this program itself.
//!
//! A table's columns are written down once, as a list of [`Column`]s; records are any type that serialises to an
//! object with these fields. The field `left` of a field `crop` becomes the column `crop_left`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical, ZstdLevel};
use parquet::column::reader::ColumnReader;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

use crate::error::{Error, Result};

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8.
    Text,
    /// 64 bits with sign.
    Int,
    /// 64 bits without sign.
    Count,
    /// 64-bit floating point.
    Real,
    /// True or false.
    Flag,
}

/// One column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Field of the record; `crop/left` is the field `left` of the field `crop`.
    pub field: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Whether a record may lack it.
    pub optional: bool,
}

impl Column {
    /// A column that every record has.
    pub const fn new(field: &'static str, kind: Kind) -> Column {
        Column { field, kind, optional: false }
    }

    /// A column that a record may lack.
    pub const fn optional(field: &'static str, kind: Kind) -> Column {
        Column { field, kind, optional: true }
    }

    /// Its name in the file.
    pub fn name(&self) -> String {
        self.field.replace('/', "_")
    }

    fn schema(&self) -> Result<Type, ParquetError> {
        let (physical, logical) = match self.kind {
            Kind::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
            Kind::Int => (Physical::INT64, None),
            Kind::Count => (Physical::INT64, Some(LogicalType::integer(64, false))),
            Kind::Real => (Physical::DOUBLE, None),
            Kind::Flag => (Physical::BOOLEAN, None),
        };
        let repetition = if self.optional { Repetition::OPTIONAL } else { Repetition::REQUIRED };
        Type::primitive_type_builder(&self.name(), physical)
            .with_logical_type(logical)
            .with_repetition(repetition)
            .build()
    }
}

/// A table that is being written; it appears under its name when it is finished.
pub struct TableWriter {
    columns: &'static [Column],
    path: PathBuf,
    temporary: PathBuf,
    writer: SerializedFileWriter<File>,
}

impl TableWriter {
    /// Prepares the table `path`.
    ///
    /// # Errors
    /// If the file cannot be written, as for all functions here.
    pub fn create(path: &Path, columns: &'static [Column]) -> Result<TableWriter> {
        let temporary = path.with_extension("parquet.tmp");
        let fields = columns.iter().map(|column| Ok(Arc::new(column.schema()?)));
        let schema = fields
            .collect::<Result<Vec<_>, ParquetError>>()
            .and_then(|fields| Type::group_type_builder("record").with_fields(fields).build())
            .expect("column lists are valid schemas");
        let level = ZstdLevel::try_new(3).expect("a level of zstd");
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
        let file = File::create(&temporary).map_err(Error::io(&temporary, "create"))?;
        let writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties));
        let writer = writer.map_err(failed(&temporary, "write"))?;
        Ok(TableWriter { columns, path: path.to_path_buf(), temporary, writer })
    }

    /// Adds records as a row group of their own.
    ///
    /// # Errors
    /// If writing fails.
    ///
    /// # Panics
    /// If a record lacks a field that is not optional, or a field is of another kind than its column.
    pub fn add(&mut self, records: &[impl Serialize]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let records: Vec<Value> =
            records.iter().map(|r| serde_json::to_value(r).expect("records are plain data")).collect();
        self.add_group(&records).map_err(failed(&self.temporary, "write"))
    }

    fn add_group(&mut self, records: &[Value]) -> Result<(), ParquetError> {
        let mut group = self.writer.next_row_group()?;
        for column in self.columns {
            let found: Vec<Option<&Value>> = records.iter().map(|r| field(r, column.field)).collect();
            let present: Vec<i16> = found.iter().map(|value| i16::from(value.is_some())).collect();
            assert!(
                column.optional || !present.contains(&0),
                "a record without the field `{}`",
                column.field
            );
            let levels = column.optional.then_some(present.as_slice());
            let given = found.into_iter().flatten();
            let wrong = format!("`{}` is not of the kind {:?}", column.field, column.kind);
            let mut writer = group.next_column()?.expect("as many columns as in the schema");
            match writer.untyped() {
                ColumnWriter::ByteArrayColumnWriter(w) => {
                    let text = |v: &Value| ByteArray::from(v.as_str().expect(&wrong));
                    w.write_batch(&given.map(text).collect::<Vec<_>>(), levels, None)?
                }
                ColumnWriter::Int64ColumnWriter(w) => {
                    let number = |v: &Value| match column.kind {
                        // Parquet keeps numbers without sign in the same 64 bits.
                        Kind::Count => v.as_u64().expect(&wrong) as i64,
                        _ => v.as_i64().expect(&wrong),
                    };
                    w.write_batch(&given.map(number).collect::<Vec<_>>(), levels, None)?
                }
                ColumnWriter::DoubleColumnWriter(w) => {
                    let real = |v: &Value| v.as_f64().expect(&wrong);
                    w.write_batch(&given.map(real).collect::<Vec<_>>(), levels, None)?
                }
                ColumnWriter::BoolColumnWriter(w) => {
                    let flag = |v: &Value| v.as_bool().expect(&wrong);
                    w.write_batch(&given.map(flag).collect::<Vec<_>>(), levels, None)?
                }
                _ => unreachable!("no column of another type is ever made"),
            };
            writer.close()?;
        }
        group.close().map(drop)
    }

    /// Completes the table under its name.
    ///
    /// # Errors
    /// If writing fails.
    pub fn finish(&mut self) -> Result<()> {
        self.writer.finish().map_err(failed(&self.temporary, "write"))?;
        let file = self.writer.inner_mut();
        let closed = file.flush().and_then(|()| file.sync_all());
        closed
            .and_then(|()| std::fs::rename(&self.temporary, &self.path))
            .map_err(Error::io(&self.path, "write"))
    }

    /// Gives up a table that will not be finished.
    pub fn discard(&self) {
        // Best effort: whoever gives up has an error of its own to report.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// A table on disk.
pub struct TableReader {
    path: PathBuf,
    reader: SerializedFileReader<File>,
}

impl TableReader {
    /// Opens a table.
    ///
    /// # Errors
    /// If the file is missing or no Parquet file.
    pub fn open(path: &Path) -> Result<TableReader> {
        let file = File::open(path).map_err(Error::io(path, "read"))?;
        let reader = SerializedFileReader::new(file).map_err(failed(path, "read"))?;
        Ok(TableReader { path: path.to_path_buf(), reader })
    }

    /// Number of row groups; a set has one for each shard.
    pub fn groups(&self) -> usize {
        self.reader.num_row_groups()
    }

    /// The records of a row group, with the fields that `columns` lists and no others.
    ///
    /// # Errors
    /// If a column that is not optional is missing, one is of another type, or damaged, or the records are no `T`.
    pub fn read<T: DeserializeOwned>(&self, group: usize, columns: &[Column]) -> Result<Vec<T>> {
        let values = self.read_group(group, columns)?;
        let records = values.into_iter().map(serde_json::from_value).collect::<Result<_, _>>();
        records.map_err(|e| Error::bad_file(&self.path, format!("a row is not as expected: {e}")))
    }

    fn read_group(&self, group: usize, columns: &[Column]) -> Result<Vec<Value>> {
        let failed = || failed(&self.path, "read");
        let group = self.reader.get_row_group(group).map_err(failed())?;
        let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
        let mut records = vec![Value::Object(Map::new()); rows];
        let schema = group.metadata().schema_descr_ptr();
        for column in columns {
            let name = column.name();
            let missing =
                || Error::bad_file(&self.path, format!("has no column `{name}` of {:?}", column.kind));
            let index = (0..schema.num_columns()).find(|&i| schema.column(i).name() == name);
            let index = match index {
                Some(index) => index,
                None if column.optional => continue,
                None => return Err(missing()),
            };
            let reader = group.get_column_reader(index).map_err(failed())?;
            // A column that is not optional has no levels: then all are present.
            let mut levels: Vec<i16> = Vec::new();
            let values: Vec<Value> = match (reader, column.kind) {
                (ColumnReader::ByteArrayColumnReader(mut r), Kind::Text) => {
                    let mut values: Vec<ByteArray> = Vec::new();
                    r.read_records(rows, Some(&mut levels), None, &mut values).map_err(failed())?;
                    let text = |v: ByteArray| Value::from(String::from_utf8_lossy(v.data()).into_owned());
                    values.into_iter().map(text).collect()
                }
                (ColumnReader::Int64ColumnReader(mut r), Kind::Int | Kind::Count) => {
                    let mut values: Vec<i64> = Vec::new();
                    r.read_records(rows, Some(&mut levels), None, &mut values).map_err(failed())?;
                    let unsigned = column.kind == Kind::Count;
                    let number = |v: i64| if unsigned { Value::from(v as u64) } else { Value::from(v) };
                    values.into_iter().map(number).collect()
                }
                (ColumnReader::DoubleColumnReader(mut r), Kind::Real) => {
                    let mut values: Vec<f64> = Vec::new();
                    r.read_records(rows, Some(&mut levels), None, &mut values).map_err(failed())?;
                    let real = |v: f64| Number::from_f64(v).map_or(Value::Null, Value::Number);
                    values.into_iter().map(real).collect()
                }
                (ColumnReader::BoolColumnReader(mut r), Kind::Flag) => {
                    let mut values: Vec<bool> = Vec::new();
                    r.read_records(rows, Some(&mut levels), None, &mut values).map_err(failed())?;
                    values.into_iter().map(Value::from).collect()
                }
                _ => return Err(missing()),
            };
            if levels.is_empty() {
                levels.resize(rows, 1);
            }
            let mut values = values.into_iter();
            for (record, level) in records.iter_mut().zip(levels) {
                if level > 0 {
                    let value = values.next().ok_or_else(missing)?;
                    insert(record, column.field, value);
                }
            }
        }
        Ok(records)
    }
}

/// The value at a path such as `crop/left`, unless it is missing or null.
fn field<'a>(record: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('/').try_fold(record, |value, name| value.get(name)).filter(|value| !value.is_null())
}

/// Sets the value at a path such as `crop/left`.
fn insert(record: &mut Value, path: &str, value: Value) {
    let (outer, last) = path.rsplit_once('/').map_or((None, path), |(outer, last)| (Some(outer), last));
    let mut object = record;
    for name in outer.into_iter().flat_map(|outer| outer.split('/')) {
        object = &mut object[name];
        if object.is_null() {
            *object = Value::Object(Map::new());
        }
    }
    object[last] = value;
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(ParquetError) -> Error {
    let path = path.to_path_buf();
    move |e| match e {
        ParquetError::External(cause) if cause.is::<std::io::Error>() => {
            let source = *cause.downcast::<std::io::Error>().expect("checked above");
            Error::Io { path, action, source }
        }
        e => Error::bad_file(path, format!("cannot {action} the Parquet table: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Inner {
        left: f64,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Record {
        name: String,
        pts: i64,
        seed: u64,
        flag: bool,
        crop: Inner,
        #[serde(skip_serializing_if = "Option::is_none")]
        placed: Option<Inner>,
        reason: Option<String>,
    }

    const COLUMNS: &[Column] = &[
        Column::new("name", Kind::Text),
        Column::new("pts", Kind::Int),
        Column::new("seed", Kind::Count),
        Column::new("flag", Kind::Flag),
        Column::new("crop/left", Kind::Real),
        Column::optional("placed/left", Kind::Real),
        Column::optional("reason", Kind::Text),
    ];

    fn record(i: i64) -> Record {
        Record {
            name: format!("name {i} ü"),
            pts: -i,
            seed: u64::MAX - i as u64,
            flag: i % 2 == 0,
            crop: Inner { left: i as f64 / 3.0 },
            placed: (i % 3 == 0).then_some(Inner { left: 0.1 }),
            reason: (i % 5 == 0).then(|| "why".into()),
        }
    }

    #[test]
    fn records_come_back_as_they_were_in_groups() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        let mut writer = TableWriter::create(&path, COLUMNS).unwrap();
        let all: Vec<Record> = (0..2500).map(record).collect();
        for part in all.chunks(1000) {
            writer.add(part).unwrap();
        }
        assert!(!path.exists());
        writer.finish().unwrap();
        let reader = TableReader::open(&path).unwrap();
        assert_eq!(reader.groups(), 3);
        let read: Vec<Record> = (0..3).flat_map(|g| reader.read::<Record>(g, COLUMNS).unwrap()).collect();
        assert_eq!(read, all);
        let mistaken = [Column::new("pts", Kind::Text)];
        let error = reader.read::<Value>(0, &mistaken).unwrap_err().to_string();
        assert!(error.contains("x.parquet") && error.contains("`pts`"), "{error}");
        // A file from before a column was thought of.
        let newer = [Column::new("pts", Kind::Int), Column::optional("later", Kind::Count)];
        assert_eq!(reader.read::<Value>(0, &newer).unwrap()[7], serde_json::json!({ "pts": -7 }));
        assert!(reader.read::<Value>(0, &[Column::new("later", Kind::Count)]).is_err());
    }

    #[test]
    fn a_file_that_is_no_table_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        std::fs::write(&path, "no table at all").unwrap();
        let error = TableReader::open(&path).err().unwrap().to_string();
        assert!(error.contains("x.parquet") && error.contains("Parquet"), "{error}");
        assert!(TableReader::open(&folder.path().join("none")).is_err());
    }
}
