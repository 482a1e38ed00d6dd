//! Event files of a run, for TensorBoard: curves, histograms, pictures and text by step.
//!
//! A file is a sequence of records, each a protobuf message between checksums. The few messages are declared here with
//! `prost`: the crate `tfrecord` builds with a protobuf code generator and an HTTPS client.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::error::{Error, Result};

/// What the names of event files begin with; TensorBoard looks for it.
const PREFIX: &str = "events.out.tfevents.";

/// Writes an event file. What is dropped unflushed is written as far as the disk lets it.
pub struct Events {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Events {
    /// Begins a file in `folder`, which is created if missing. The name is
    /// `events.out.tfevents.<seconds since 1970>.striate.<process id>`, with more seconds than any file there has:
    /// TensorBoard reads the files of a folder in the order of their names.
    ///
    /// - `step`: steps of the run done so far. What older files say about later steps, written by a run that was
    ///   interrupted and now goes on from this step, is dropped by TensorBoard.
    ///
    /// # Errors
    /// The folder or the file cannot be written.
    pub fn create(folder: &Path, step: u64) -> Result<Events> {
        fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
        let entries = fs::read_dir(folder).map_err(Error::io(folder, "read"))?;
        let last = entries.flatten().filter_map(|entry| seconds_of(entry.file_name().to_str()?)).max();
        let seconds = last.map_or(0, |last| last.saturating_add(1)).max(now() as u64);
        let path = folder.join(format!("{PREFIX}{seconds:010}.striate.{}", std::process::id()));
        let file = File::create_new(&path).map_err(Error::io(&path, "create"))?;
        let mut events = Events { path, file: BufWriter::new(file) };
        let file_version = Some("brain.Event:2".into());
        events.write(Event { file_version, ..Event::default() })?;
        // A start drops its own step too.
        let session_log = Some(SessionLog { status: SESSION_START });
        events.write(Event { step: step as i64 + 1, session_log, ..Event::default() })?;
        events.flush()?;
        Ok(events)
    }

    /// Adds numbers of one step, each a tag and its value. They are kept in single precision; NaN and infinity are fine.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> Result<()> {
        let value =
            |(tag, value): &(String, f64)| Value { simple_value: Some(*value as f32), ..Value::new(tag) };
        self.summary(step, values.iter().map(value).collect())
    }

    /// Adds a histogram of one step: `counts[i]` values lie between `edges[i]` and `edges[i + 1]`.
    ///
    /// - `edges`: in rising order, one more than counts; -0.5, 0.5, 1.5, .. to count whole numbers from 0.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn histogram(&mut self, step: u64, tag: &str, edges: &[f64], counts: &[u64]) -> Result<()> {
        assert_eq!(edges.len(), counts.len() + 1, "every bucket of a histogram lies between two edges");
        // Without the empty buckets at both ends, which TensorBoard's two servers show differently.
        let filled = |count: &u64| *count > 0;
        let first = counts.iter().position(filled).unwrap_or(0);
        let end = counts.iter().rposition(filled).map_or(0, |last| last + 1);
        let bucket: Vec<f64> = counts[first..end].iter().map(|count| *count as f64).collect();
        let edges = &edges[first..=end];
        let middles = edges.windows(2).map(|edge| f64::midpoint(edge[0], edge[1]));
        let (mut sum, mut sum_squares) = (0.0, 0.0);
        for (middle, count) in middles.zip(&bucket) {
            sum += count * middle;
            sum_squares += count * middle * middle;
        }
        let (min, max, num) = (edges[0], edges[bucket.len()], bucket.iter().sum());
        let bucket_limit = edges[1..].to_vec();
        let histo = Some(Histogram { min, max, num, sum, sum_squares, bucket_limit, bucket });
        self.summary(step, vec![Value { histo, ..Value::new(tag) }])
    }

    /// Adds a picture of one step, the bytes of a PNG file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn image(&mut self, step: u64, tag: &str, png: &[u8]) -> Result<()> {
        assert!(png.len() > 26 && png.starts_with(b"\x89PNG\r\n\x1a\n"), "not a PNG file");
        let number = |at: usize| i32::from_be_bytes(png[at..at + 4].try_into().expect("four bytes"));
        let (width, height) = (number(16), number(20));
        // From PNG's type of colour to the number of channels.
        let colorspace = match png[25] {
            0 => 1,
            4 => 2,
            6 => 4,
            _ => 3,
        };
        let image = Some(Image { height, width, colorspace, png: png.to_vec() });
        self.summary(step, vec![Value { image, ..Value::new(tag) }])
    }

    /// Adds text of one step, in Markdown.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn text(&mut self, step: u64, tag: &str, markdown: &str) -> Result<()> {
        let plugin_data = Some(PluginData { plugin_name: "text".into() });
        let metadata = Some(Metadata { plugin_data, data_class: CLASS_TENSOR });
        let shape = Some(Shape {});
        let tensor = Some(Tensor { dtype: TYPE_STRING, shape, string_val: vec![markdown.into()] });
        self.summary(step, vec![Value { metadata, tensor, ..Value::new(tag) }])
    }

    /// Hands what was added to the operating system. Should that lose the end of it, readers stop at the last whole
    /// record.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(Error::io(&self.path, "write"))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn summary(&mut self, step: u64, value: Vec<Value>) -> Result<()> {
        self.write(Event { step: step as i64, summary: Some(Summary { value }), ..Event::default() })
    }

    fn write(&mut self, event: Event) -> Result<()> {
        let event = Event { wall_time: now(), ..event };
        self.file.write_all(&record(&event.encode_to_vec())).map_err(Error::io(&self.path, "write"))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The seconds in the name of an event file.
fn seconds_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
}

/// Length, its checksum, the message, its checksum; numbers are little-endian.
fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let checksum = |bytes| masked_checksum(bytes).to_le_bytes();
    [&length[..], &checksum(&length), message, &checksum(message)].concat()
}

/// CRC-32C, rotated and shifted so that it differs from that of data with checksums in it.
fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

// The messages, with those of their fields that are used, under the names of TensorBoard's `.proto` files.

const SESSION_START: i32 = 1;
const TYPE_STRING: i32 = 7;
const CLASS_TENSOR: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "4")]
    image: Option<Image>,
    #[prost(message, optional, tag = "5")]
    histo: Option<Histogram>,
    #[prost(message, optional, tag = "8")]
    tensor: Option<Tensor>,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
}

impl Value {
    fn new(tag: &str) -> Value {
        Value { tag: tag.into(), ..Value::default() }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    png: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(double, tag = "1")]
    min: f64,
    #[prost(double, tag = "2")]
    max: f64,
    #[prost(double, tag = "3")]
    num: f64,
    #[prost(double, tag = "4")]
    sum: f64,
    #[prost(double, tag = "5")]
    sum_squares: f64,
    #[prost(double, repeated, tag = "6")]
    bucket_limit: Vec<f64>,
    #[prost(double, repeated, tag = "7")]
    bucket: Vec<f64>,
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    string_val: Vec<Vec<u8>>,
}

/// That of a single value: no dimensions.
#[derive(Clone, PartialEq, Message)]
struct Shape {}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<PluginData>,
    #[prost(int32, tag = "4")]
    data_class: i32,
}

#[derive(Clone, PartialEq, Message)]
struct PluginData {
    #[prost(string, tag = "1")]
    plugin_name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of the whole records, as a reader sees them.
    fn read(mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while bytes.len() >= 12 {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            if bytes.len() < length + 16 {
                break;
            }
            let (whole, rest) = bytes.split_at(length + 16);
            let message = &whole[12..12 + length];
            assert_eq!(whole, record(message), "a checksum is wrong");
            events.push(Event::decode(message).unwrap());
            bytes = rest;
        }
        events
    }

    /// What was added after the two events that begin every file: step and values.
    fn added(events: &mut Events) -> Vec<(i64, Vec<Value>)> {
        events.flush().unwrap();
        let read = read(&fs::read(events.path()).unwrap());
        assert!(read.iter().all(|event| event.wall_time > 1e9));
        read[2..].iter().map(|event| (event.step, event.summary.clone().unwrap().value)).collect()
    }

    fn png(width: u32, height: u32, color: image::ColorType) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image::DynamicImage::new(width, height, color).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn records_are_those_of_tensorboards_own_writer() {
        // `RecordWriter` of TensorBoard 2.21, for this event and for no bytes.
        let event =
            Event { wall_time: 1.5e9, file_version: Some("brain.Event:2".into()), ..Event::default() };
        let wanted = b"\x18\0\0\0\0\0\0\0\xa3\x7fK\"\t\0\0\0\xc0\x0bZ\xd6A\x1a\x0dbrain.Event:2L\xa9\xa4d";
        assert_eq!(record(&event.encode_to_vec()), wanted);
        assert_eq!(record(b""), b"\0\0\0\0\0\0\0\0\x29\x03\x98\x07\xd8\xea\x82\xa2");
    }

    #[test]
    fn a_file_begins_with_its_version_and_the_step_from_which_on_older_files_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("a/b");
        let events = Events::create(&folder, 40).unwrap();
        let read = read(&fs::read(events.path()).unwrap());
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].step, read[0].file_version.as_deref()), (0, Some("brain.Event:2")));
        assert_eq!((read[1].step, &read[1].session_log), (41, &Some(SessionLog { status: 1 })));
    }

    #[test]
    fn a_later_file_is_last_by_name() {
        let folder = tempfile::tempdir().unwrap();
        // A clock may have been wrong; other files are none of our concern.
        for name in ["events.out.tfevents.5000000000.elsewhere.1.v2", "events.out.tfevents.x", "notes"] {
            File::create(folder.path().join(name)).unwrap();
        }
        let paths: Vec<PathBuf> =
            (0..12).map(|step| Events::create(folder.path(), step).unwrap().path).collect();
        assert!(paths.is_sorted(), "{paths:?}");
        let name = format!("events.out.tfevents.5000000001.striate.{}", std::process::id());
        assert_eq!(paths[0].file_name().unwrap().to_str(), Some(name.as_str()));
    }

    #[test]
    fn scalars_parse_back_even_those_that_are_no_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path(), 0).unwrap();
        let values = [0.0, -1.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300];
        let tagged: Vec<_> = values.iter().map(|value| (format!("value/{value}"), *value)).collect();
        events.scalars(10, &tagged).unwrap();
        events.scalars(1 << 40, &tagged[..1]).unwrap();
        let added = added(&mut events);
        assert_eq!((added[0].0, added[1].0, added[1].1.len()), (10, 1 << 40, 1));
        for ((tag, value), read) in tagged.iter().zip(&added[0].1) {
            assert_eq!(tag, &read.tag);
            assert_eq!(read.simple_value.unwrap().to_bits(), (*value as f32).to_bits());
        }
    }

    #[test]
    fn a_histogram_ends_at_the_edges_of_the_buckets_that_hold_something() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path(), 0).unwrap();
        let edges: Vec<f64> = (0..=5).map(|edge| f64::from(edge) - 0.5).collect();
        events.histogram(1, "staleness", &edges, &[0, 3, 0, 2, 0]).unwrap();
        events.histogram(2, "staleness", &edges, &[0; 5]).unwrap();
        events.histogram(3, "staleness", &edges[..1], &[]).unwrap();
        let added = added(&mut events);
        let histogram = added[0].1[0].histo.as_ref().unwrap();
        assert_eq!((histogram.min, histogram.max, histogram.num), (0.5, 3.5, 5.0));
        // Three ones and two threes.
        assert_eq!((histogram.sum, histogram.sum_squares), (9.0, 21.0));
        assert_eq!(histogram.bucket_limit, [1.5, 2.5, 3.5]);
        assert_eq!(histogram.bucket, [3.0, 0.0, 2.0]);
        assert!(added[1..].iter().all(|(_, values)| values[0].histo.as_ref().unwrap().bucket.is_empty()));
    }

    #[test]
    fn pictures_say_their_size_and_channels() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path(), 0).unwrap();
        use image::ColorType::{L8, La8, Rgb8, Rgba8};
        let pictures = [(L8, 1), (La8, 2), (Rgb8, 3), (Rgba8, 4)].map(|(color, channels)| {
            let png = png(300, 7, color);
            events.image(5, "filters", &png).unwrap();
            Image { width: 300, height: 7, colorspace: channels, png }
        });
        for ((step, values), picture) in added(&mut events).iter().zip(&pictures) {
            assert_eq!((*step, values[0].tag.as_str()), (5, "filters"));
            assert_eq!(values[0].image.as_ref(), Some(picture));
        }
    }

    #[test]
    fn text_is_for_the_plugin_that_shows_text() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path(), 0).unwrap();
        events.text(0, "config", "λ = `0.1`").unwrap();
        let value = &added(&mut events)[0].1[0];
        let tensor = value.tensor.as_ref().unwrap();
        assert_eq!((tensor.dtype, &tensor.string_val), (7, &vec!["λ = `0.1`".as_bytes().to_vec()]));
        let plugin = value.metadata.as_ref().unwrap().plugin_data.as_ref().unwrap();
        assert_eq!(plugin.plugin_name, "text");
    }

    #[test]
    fn of_a_truncated_file_all_whole_records_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path(), 0).unwrap();
        (0..3).for_each(|step| events.scalars(step, &[("loss".into(), 1.0)]).unwrap());
        events.flush().unwrap();
        let bytes = fs::read(events.path()).unwrap();
        let whole = read(&bytes);
        assert_eq!(whole.len(), 5);
        let mut lengths: Vec<usize> = Vec::new();
        for length in 0..bytes.len() {
            let events = read(&bytes[..length]);
            assert_eq!(events, whole[..events.len()]);
            lengths.push(events.len());
        }
        assert!(lengths.is_sorted());
        assert_eq!((lengths[0], lengths[bytes.len() - 1]), (0, 4));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Events::create(&file.join("events"), 0).err().unwrap().to_string();
        assert!(error.starts_with(&format!("{}: cannot create", file.join("events").display())), "{error}");
    }
}
