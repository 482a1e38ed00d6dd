//! What is known of each frame and of each input: the JSON beside a picture and the rows of the tables.

use serde::{Deserialize, Serialize};

use super::quality::Dropped;
use super::table::{Column, Kind};

/// Part of a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Region {
    /// Columns left of it.
    pub left: f64,
    /// Rows above it.
    pub top: f64,
    /// Its width.
    pub width: f64,
    /// Its height.
    pub height: f64,
}

/// Where a frame came from and what was done to it; stored as `key.json` beside each picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrameMetadata {
    /// The input file as it was named.
    pub source: String,
    /// Its path relative to the folder that was named: what its random numbers depend on.
    pub name: String,
    /// Index of the video stream.
    pub stream: usize,
    /// Presentation timestamp in units of the stream.
    pub pts: i64,
    /// The same in seconds.
    pub seconds: f64,
    /// Width as coded, before rotation.
    pub original_width: u32,
    /// Height as coded, before rotation.
    pub original_height: u32,
    /// Degrees clockwise by which the coded picture was turned.
    pub rotation: u32,
    /// Whether it was mirrored before.
    pub mirrored: bool,
    /// Whether the frame consists of two fields that were shown one after the other.
    pub interlaced: bool,
    /// How the frame was chosen: `random`, `every`, `keyframes` or `times`.
    pub strategy: String,
    /// Seed of all random choices.
    pub seed: u64,
    /// What was kept of the upright picture.
    pub crop: Region,
    /// Where that lies in the stored picture, if it does not fill it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placed: Option<Region>,
    /// Mean luma of the stored picture, 0 to 255.
    pub brightness: f64,
    /// Standard deviation of its luma.
    pub contrast: f64,
    /// How sharp it is; see [`quality`](super::quality()).
    pub sharpness: f64,
    /// Perceptual hash of the stored picture, 16 hexadecimal digits; pictures that look alike differ in few bits.
    pub perceptual_hash: String,
    /// FNV-1a hash of the stored picture's pixels before compression, 16 hexadecimal digits.
    pub hash: String,
}

/// A row of `frames.parquet`: a frame, and where it lies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrameRecord {
    /// Name of the sample inside its shard, unique in the set.
    pub key: String,
    /// File name of the shard.
    pub shard: String,
    /// Name of the picture inside the shard.
    pub member: String,
    /// Where the picture starts in the shard, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Where its JSON starts.
    pub json_offset: u64,
    /// Length of the JSON.
    pub json_length: u64,
    /// What the JSON says.
    #[serde(flatten)]
    pub metadata: FrameMetadata,
}

impl FrameRecord {
    /// The part of the key that all frames of an input share.
    pub fn input_key(&self) -> &str {
        self.key.rsplit_once('-').map_or(&self.key, |(input, _)| input)
    }
}

/// Columns of `frames.parquet` that tell where a picture lies.
pub const PLACE_COLUMNS: &[Column] = &[
    Column::new("shard", Kind::Text),
    Column::new("member", Kind::Text),
    Column::new("offset", Kind::Count),
    Column::new("length", Kind::Count),
    Column::new("json_offset", Kind::Count),
    Column::new("json_length", Kind::Count),
];

/// Columns of `frames.parquet`, a row per [`FrameRecord`] and a row group per shard.
pub const FRAME_COLUMNS: &[Column] = &[
    Column::new("key", Kind::Text),
    Column::new("shard", Kind::Text),
    Column::new("member", Kind::Text),
    Column::new("offset", Kind::Count),
    Column::new("length", Kind::Count),
    Column::new("json_offset", Kind::Count),
    Column::new("json_length", Kind::Count),
    Column::new("source", Kind::Text),
    Column::new("name", Kind::Text),
    Column::new("stream", Kind::Count),
    Column::new("pts", Kind::Int),
    Column::new("seconds", Kind::Real),
    Column::new("original_width", Kind::Count),
    Column::new("original_height", Kind::Count),
    Column::new("rotation", Kind::Count),
    Column::new("mirrored", Kind::Flag),
    Column::new("interlaced", Kind::Flag),
    Column::new("strategy", Kind::Text),
    Column::new("seed", Kind::Count),
    Column::new("crop/left", Kind::Real),
    Column::new("crop/top", Kind::Real),
    Column::new("crop/width", Kind::Real),
    Column::new("crop/height", Kind::Real),
    Column::optional("placed/left", Kind::Real),
    Column::optional("placed/top", Kind::Real),
    Column::optional("placed/width", Kind::Real),
    Column::optional("placed/height", Kind::Real),
    Column::new("brightness", Kind::Real),
    Column::new("contrast", Kind::Real),
    Column::new("sharpness", Kind::Real),
    Column::new("perceptual_hash", Kind::Text),
    Column::new("hash", Kind::Text),
];

/// What became of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was read; it may have given no frame because filters left all out.
    Ok,
    /// Nothing of it was used; the reason says why.
    Skipped,
}

/// Frames of an input that filters left out, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropCounts {
    /// The original was smaller than asked.
    pub small: u64,
    /// Nearly black.
    pub dark: u64,
    /// Nearly of one colour.
    pub uniform: u64,
    /// Not sharp.
    pub blurred: u64,
    /// Nearly the same as an earlier frame of the same input.
    pub duplicate: u64,
    /// Nearly the same as an earlier frame of another input.
    pub duplicate_across: u64,
    /// Nearly the same as a picture that frames were to be unlike.
    #[serde(default)]
    pub known: u64,
}

impl DropCounts {
    /// Counts one more.
    pub fn add(&mut self, reason: Dropped) {
        *match reason {
            Dropped::Small => &mut self.small,
            Dropped::Dark => &mut self.dark,
            Dropped::Uniform => &mut self.uniform,
            Dropped::Blurred => &mut self.blurred,
            Dropped::Duplicate => &mut self.duplicate,
            Dropped::DuplicateAcross => &mut self.duplicate_across,
            Dropped::Known => &mut self.known,
        } += 1;
    }

    /// Adds those of another input.
    pub fn merge(&mut self, other: &DropCounts) {
        self.small += other.small;
        self.dark += other.dark;
        self.uniform += other.uniform;
        self.blurred += other.blurred;
        self.duplicate += other.duplicate;
        self.duplicate_across += other.duplicate_across;
        self.known += other.known;
    }

    /// All reasons together.
    pub fn total(&self) -> u64 {
        self.named().into_iter().map(|(_, count)| count).sum()
    }

    /// Each reason in words with its count.
    pub fn named(&self) -> [(&'static str, u64); 7] {
        [
            ("too small", self.small),
            ("dark", self.dark),
            ("uniform", self.uniform),
            ("blurred", self.blurred),
            ("duplicate in its video", self.duplicate),
            ("duplicate of another video", self.duplicate_across),
            ("like a picture of --unlike", self.known),
        ]
    }
}

/// A row of `inputs.parquet`: what became of one input file. Only `seconds_spent` differs between equal runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputRecord {
    /// The file as it was named.
    pub path: String,
    /// Its path relative to the folder that was named.
    pub name: String,
    /// Where it was, whatever folder the program ran in: what it is known by when a set is continued.
    pub absolute_path: String,
    /// What the keys of its frames begin with.
    pub key: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Why it was skipped.
    pub reason: Option<String>,
    /// Length of the file in bytes.
    pub bytes: Option<u64>,
    /// Codec, such as `h264`, or picture format.
    pub codec: Option<String>,
    /// How many packets were damaged, and how, if any were.
    pub damage: Option<String>,
    /// Frames stored.
    pub frames: u64,
    /// Frames that filters left out.
    pub dropped: DropCounts,
    /// Time that it took.
    pub seconds_spent: f64,
}

/// Columns of `inputs.parquet`, a row per [`InputRecord`].
pub const INPUT_COLUMNS: &[Column] = &[
    Column::new("path", Kind::Text),
    Column::new("name", Kind::Text),
    Column::new("absolute_path", Kind::Text),
    Column::new("key", Kind::Text),
    Column::new("outcome", Kind::Text),
    Column::optional("reason", Kind::Text),
    Column::optional("bytes", Kind::Count),
    Column::optional("codec", Kind::Text),
    Column::optional("damage", Kind::Text),
    Column::new("frames", Kind::Count),
    Column::new("dropped/small", Kind::Count),
    Column::new("dropped/dark", Kind::Count),
    Column::new("dropped/uniform", Kind::Count),
    Column::new("dropped/blurred", Kind::Count),
    Column::new("dropped/duplicate", Kind::Count),
    Column::new("dropped/duplicate_across", Kind::Count),
    // Sets made before it existed lack it.
    Column::optional("dropped/known", Kind::Count),
    Column::new("seconds_spent", Kind::Real),
];
