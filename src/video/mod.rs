//! From video files to decoded frames, and from drawn scenes to video files.
//!
//! A [`VideoSource`] shows one frame at a time, in the order of display, and can jump. Decoding a frame and turning
//! it into an upright RGB picture are separate steps, because most decoded frames are only passed on the way.

pub mod encode;
pub mod ffmpeg;
pub mod sampler;
pub mod still;
pub mod synth;

use image::{DynamicImage, RgbImage};
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// When a frame is shown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Instant {
    /// Presentation timestamp, in units of the stream's time base.
    pub pts: i64,
    /// The same in seconds.
    pub seconds: f64,
    /// Units until the next frame, at least 1; for the last frame what the file says or else the usual length.
    pub length: i64,
}

/// What a file says about its video stream.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoInfo {
    /// Index of the stream inside the file.
    pub stream: usize,
    /// Name of the codec, such as `h264`.
    pub codec: String,
    /// How the stored picture becomes upright.
    pub orientation: Orientation,
    /// Seconds per unit of a timestamp.
    pub time_base: f64,
    /// Units that a frame lasts where nothing else is known, at least 1.
    pub usual_length: i64,
    /// Timestamp of the first frame that is shown.
    pub first_pts: i64,
    /// When the last frame stops being shown, as far as the file says; it may be wrong.
    pub end_pts: Option<i64>,
}

/// A decoded frame, upright, with square pixels.
pub struct Picture {
    /// Its pixels.
    pub image: RgbImage,
    /// Width of the stored picture, before rotation and with its own pixel shape.
    pub coded_width: u32,
    /// Height of the stored picture.
    pub coded_height: u32,
    /// How the stored picture became upright.
    pub orientation: Orientation,
    /// Whether the frame consists of two fields that are shown one after the other.
    pub interlaced: bool,
}

/// How a frame of two fields is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interlaced {
    /// Its first field alone, scaled to the full height: one instant, without combing.
    Field,
    /// Both at once.
    Keep,
}

/// A video that is decoded frame by frame.
pub trait VideoSource {
    /// What the file says about the stream.
    fn info(&self) -> &VideoInfo;

    /// Goes on to the next frame in order of display; `None` after the last one.
    ///
    /// # Errors
    /// If nothing more can be decoded although the file goes on.
    fn advance(&mut self) -> Result<Option<Instant>>;

    /// Goes on to the next key frame in order of display, decoding no others; `None` after the last one.
    ///
    /// A source is used by this or by the other ways of moving on, not by both without [`rewind`](Self::rewind).
    ///
    /// # Errors
    /// If nothing more can be decoded although the file goes on.
    fn next_key(&mut self) -> Result<Option<Instant>>;

    /// Start and end of every shot, the pieces between cuts, in order; the source then stands before its first frame.
    ///
    /// # Errors
    /// If frames cannot be decoded or compared.
    fn shots(&mut self) -> Result<Vec<(i64, i64)>>;

    /// Goes to the frame shown at timestamp `pts`: the last that starts at or before it, or else the first of all.
    ///
    /// After the end this is the last frame.
    ///
    /// # Errors
    /// If the file cannot be searched, or nothing can be decoded there.
    fn seek(&mut self, pts: i64) -> Result<Instant>;

    /// Starts again before the first frame.
    ///
    /// # Errors
    /// If the file cannot be read from its start again.
    fn rewind(&mut self) -> Result<()>;

    /// The current frame upright, with square pixels.
    ///
    /// # Errors
    /// If there is no current frame or it cannot be converted.
    fn picture(&mut self) -> Result<Picture>;
}

/// How a stored picture is turned to be upright: mirrored left to right or not, then turned clockwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Orientation {
    /// Whether it is mirrored first.
    pub mirrored: bool,
    /// Quarter turns clockwise, 0 to 3.
    pub quarter_turns: u8,
}

impl Orientation {
    /// From the display matrix of a video track, rows of 16.16 fixed-point numbers, to the nearest quarter turn.
    ///
    /// The matrix maps a stored position `(x, y)`, `y` downwards, to `(m0·x + m3·y, m1·x + m4·y)`.
    pub fn from_display_matrix(m: &[i32; 9]) -> Self {
        let [a, b, c, d] = [m[0], m[1], m[3], m[4]].map(i64::from);
        let (mirrored, quarter_turns) = if a.abs() + d.abs() >= b.abs() + c.abs() {
            match (a < 0, d < 0) {
                (false, false) => (false, 0),
                (true, true) => (false, 2),
                (true, false) => (true, 0),
                (false, true) => (true, 2),
            }
        } else {
            match (b < 0, c < 0) {
                (false, true) => (false, 1),
                (true, false) => (false, 3),
                (true, true) => (true, 1),
                (false, false) => (true, 3),
            }
        };
        Orientation { mirrored, quarter_turns }
    }

    /// Degrees clockwise after mirroring.
    pub fn degrees(self) -> u32 {
        90 * u32::from(self.quarter_turns)
    }

    /// The picture turned upright.
    pub fn apply(self, mut image: RgbImage) -> RgbImage {
        use image::imageops::{flip_horizontal_in_place, rotate90, rotate180_in_place, rotate270};
        if self.mirrored {
            flip_horizontal_in_place(&mut image);
        }
        match self.quarter_turns {
            1 => rotate90(&image),
            2 => {
                rotate180_in_place(&mut image);
                image
            }
            3 => rotate270(&image),
            _ => image,
        }
    }
}

/// The picture as 8-bit RGB; transparent parts are laid over black.
pub fn over_black(image: &DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.to_rgb8();
    }
    let mut rgba = image.to_rgba8();
    for pixel in rgba.pixels_mut() {
        let [colours @ .., alpha] = &mut pixel.0;
        for v in colours {
            *v = ((u16::from(*v) * u16::from(*alpha) + 127) / 255) as u8;
        }
    }
    DynamicImage::ImageRgba8(rgba).to_rgb8()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moves every pixel as the matrix says; the reference for [`Orientation::apply`].
    fn by_matrix(image: &RgbImage, m: &[i32; 9]) -> RgbImage {
        let unit = 1 << 16;
        let [a, b, c, d] = [m[0], m[1], m[3], m[4]].map(|v| i64::from(v / unit));
        let map = |x: u32, y: u32| (a * i64::from(x) + c * i64::from(y), b * i64::from(x) + d * i64::from(y));
        let all: Vec<_> = image.enumerate_pixels().map(|(x, y, p)| (map(x, y), *p)).collect();
        let left = all.iter().map(|((x, _), _)| *x).min().unwrap();
        let top = all.iter().map(|((_, y), _)| *y).min().unwrap();
        let (w, h) = if a == 0 { (image.height(), image.width()) } else { image.dimensions() };
        let mut out = RgbImage::new(w, h);
        for ((x, y), pixel) in all {
            out.put_pixel((x - left) as u32, (y - top) as u32, pixel);
        }
        out
    }

    #[test]
    fn all_eight_display_matrices_turn_a_picture_as_they_say() {
        let image = RgbImage::from_fn(3, 2, |x, y| image::Rgb([x as u8, y as u8, 7]));
        for signs in [(1, 1), (1, -1), (-1, 1), (-1, -1)] {
            for swapped in [false, true] {
                let (p, q) = (signs.0 << 16, signs.1 << 16);
                let m = if swapped {
                    [0, p, 0, q, 0, 0, 0, 0, 1 << 30]
                } else {
                    [p, 0, 0, 0, q, 0, 0, 0, 1 << 30]
                };
                let turned = Orientation::from_display_matrix(&m).apply(image.clone());
                assert_eq!(turned, by_matrix(&image, &m), "signs {signs:?}, swapped {swapped}");
            }
        }
    }

    #[test]
    fn a_matrix_of_zeros_or_a_slight_turn_changes_nothing() {
        assert_eq!(Orientation::from_display_matrix(&[0; 9]), Orientation::default());
        let slight = [65_000, 5_000, 0, -5_000, 65_000, 0, 0, 0, 1 << 30];
        assert_eq!(Orientation::from_display_matrix(&slight), Orientation::default());
        let extreme = Orientation::from_display_matrix(&[i32::MIN; 9]);
        assert_eq!(extreme, Orientation { mirrored: false, quarter_turns: 2 });
    }
}
