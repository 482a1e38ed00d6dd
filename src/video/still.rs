//! Still pictures, as videos of one frame.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use zune_core::bytestream::ZCursor;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::{Instant, Orientation, Picture, VideoInfo, VideoSource};
use crate::error::{Error, Result};

/// Pictures with a longer side than this are refused, so that a hostile file cannot take all memory.
pub const MAX_SIDE: u32 = 16_384;

/// A compressed picture longer than this is refused.
const MAX_BYTES: u64 = 1 << 30;

/// Decodes a picture, turned upright if it says how.
///
/// # Errors
/// If it is in no known format, damaged, or unreasonably large.
pub fn decode(bytes: &[u8]) -> image::ImageResult<DynamicImage> {
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

/// Whether a JPEG picture can be decoded to its last pixel.
fn is_sound_jpeg(bytes: &[u8]) -> bool {
    let side = MAX_SIDE as usize;
    let options = DecoderOptions::default().set_strict_mode(true).set_max_width(side).set_max_height(side);
    JpegDecoder::new_with_options(ZCursor::new(bytes), options).decode().is_ok()
}

/// What [`Still::open`] finds.
pub enum Opened {
    /// A still picture.
    Still(Still),
    /// A JPEG picture that breaks off or is garbled: libav shows as much of it as can be seen.
    Damaged,
    /// No picture of a known format for stills.
    Other,
}

/// A still picture.
pub struct Still {
    info: VideoInfo,
    image: DynamicImage,
    shown: bool,
}

impl Still {
    /// Opens a picture of a format for stills, known by its first bytes; [`Opened::Other`] is everything else, GIF included,
    /// which may move, a stream of JPEG pictures, known by the ending `.mjpeg` or `.mjpg`.
    ///
    /// # Errors
    /// If the file cannot be read, or starts like a still picture and cannot be decoded.
    pub fn open(path: &Path) -> Result<Opened> {
        let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
        if ending == "mjpeg" || ending == "mjpg" {
            return Ok(Opened::Other);
        }
        let mut file = File::open(path).map_err(Error::io(path, "read"))?;
        let mut bytes = Vec::new();
        file.by_ref().take(64).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
        let codec = match image::guess_format(&bytes) {
            Ok(ImageFormat::Jpeg) => "jpeg",
            Ok(ImageFormat::Png) => "png",
            Ok(ImageFormat::WebP) => "webp",
            Ok(ImageFormat::Bmp) => "bmp",
            _ => return Ok(Opened::Other),
        };
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
        if codec == "jpeg" && !is_sound_jpeg(&bytes) {
            return Ok(Opened::Damaged);
        }
        let image = decode(&bytes);
        let image = image.map_err(|e| Error::bad_file(path, format!("cannot decode the picture: {e}")))?;
        let info = VideoInfo {
            stream: 0,
            codec: codec.into(),
            orientation: Orientation::default(),
            time_base: 1.0,
            usual_length: 1,
            first_pts: 0,
            end_pts: Some(1),
        };
        Ok(Opened::Still(Still { info, image, shown: false }))
    }

    const WHEN: Instant = Instant { pts: 0, seconds: 0.0, length: 1 };
}

impl VideoSource for Still {
    fn info(&self) -> &VideoInfo {
        &self.info
    }

    fn advance(&mut self) -> Result<Option<Instant>> {
        Ok((!std::mem::replace(&mut self.shown, true)).then_some(Still::WHEN))
    }

    fn next_key(&mut self) -> Result<Option<Instant>> {
        self.advance()
    }

    fn shots(&mut self) -> Result<Vec<(i64, i64)>> {
        Ok(vec![(0, 1)])
    }

    fn seek(&mut self, _pts: i64) -> Result<Instant> {
        self.shown = true;
        Ok(Still::WHEN)
    }

    fn rewind(&mut self) -> Result<()> {
        self.shown = false;
        Ok(())
    }

    fn picture(&mut self) -> Result<Picture> {
        let image = super::over_black(&self.image);
        let (coded_width, coded_height) = image.dimensions();
        Ok(Picture {
            image,
            coded_width,
            coded_height,
            orientation: Orientation::default(),
            interlaced: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_still_picture_is_a_video_of_one_frame_and_a_text_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let half = image::RgbaImage::from_pixel(5, 3, image::Rgba([200, 100, 0, 128]));
        half.save(at("a.png")).unwrap();
        let Opened::Still(mut still) = Still::open(&at("a.png")).unwrap() else { panic!("it is one") };
        assert_eq!(still.advance().unwrap(), Some(Still::WHEN));
        assert_eq!(still.advance().unwrap(), None);
        let picture = still.picture().unwrap();
        assert_eq!((picture.image.dimensions(), picture.image.get_pixel(4, 2).0), ((5, 3), [100, 50, 0]));
        std::fs::write(at("b.png"), "text").unwrap();
        assert!(matches!(Still::open(&at("b.png")).unwrap(), Opened::Other));
        let whole = std::fs::read(at("a.png")).unwrap();
        std::fs::write(at("c.png"), &whole[..whole.len() - 30]).unwrap();
        // A stream of JPEG pictures begins like one, and is a film all the same.
        image::RgbImage::new(8, 8).save(at("d.jpg")).unwrap();
        assert!(matches!(Still::open(&at("d.jpg")).unwrap(), Opened::Still(_)));
        std::fs::copy(at("d.jpg"), at("d.MJPEG")).unwrap();
        assert!(matches!(Still::open(&at("d.MJPEG")).unwrap(), Opened::Other));
        let jpeg = std::fs::read(at("d.jpg")).unwrap();
        std::fs::write(at("e.jpg"), &jpeg[..jpeg.len() - 10]).unwrap();
        assert!(matches!(Still::open(&at("e.jpg")).unwrap(), Opened::Damaged));
        let error = Still::open(&at("c.png")).err().unwrap().to_string();
        assert!(error.contains("c.png") && error.contains("cannot decode"), "{error}");
    }
}
