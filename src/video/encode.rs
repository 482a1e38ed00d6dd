//! Writes frames to a video file with whichever encoders the local FFmpeg has.
//!
//! Colour goes to BT.601 here rather than in libswscale, so that the same frames give the same planes on every
//! machine. A file appears under its name only when it is complete.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ffmpeg_next as ffmpeg;
use ffmpeg_next::codec::encoder;
use ffmpeg_next::format::context::{Output, StreamIo};
use ffmpeg_next::util::{color, format::Pixel, frame};
use ffmpeg_next::{Dictionary, Packet, Rational};
use image::RgbImage;

use crate::error::{Error, Result};

/// A codec in a container, with the settings to encode it quickly at good quality.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// FFmpeg's name of the encoder.
    pub encoder: &'static str,
    /// FFmpeg's name of the container.
    pub container: &'static str,
    /// The file name's ending.
    pub extension: &'static str,
    options: &'static [(&'static str, &'static str)],
    /// Full-range colour as JPEG has it, with chroma between the pixels; else limited range, chroma to the left.
    jpeg: bool,
}

const X264: &[(&str, &str)] = &[("preset", "superfast"), ("crf", "20")];
const VP8: &[(&str, &str)] =
    &[("deadline", "realtime"), ("cpu-used", "8"), ("crf", "10"), ("b", "4000000"), ("lag-in-frames", "0")];
const VP9: &[(&str, &str)] =
    &[("deadline", "realtime"), ("cpu-used", "8"), ("crf", "24"), ("b", "0"), ("lag-in-frames", "0")];
/// A fixed quantiser of 3, in FFmpeg's units of 1/118.
const QUANTISER: &[(&str, &str)] = &[("flags", "+qscale"), ("global_quality", "354")];

const fn format(
    encoder: &'static str,
    container: &'static str,
    extension: &'static str,
    options: &'static [(&'static str, &'static str)],
) -> Format {
    Format { encoder, container, extension, options, jpeg: false }
}

const FORMATS: [Format; 7] = [
    format("libx264", "mp4", "mp4", X264),
    format("libvpx", "webm", "webm", VP8),
    format("mpeg4", "avi", "avi", QUANTISER),
    format("libx264", "matroska", "mkv", X264),
    Format { jpeg: true, ..format("mjpeg", "mov", "mov", QUANTISER) },
    format("libvpx-vp9", "webm", "webm", VP9),
    Format { jpeg: true, ..format("mjpeg", "avi", "avi", QUANTISER) },
];

/// The formats that the FFmpeg on this machine can write, in a fixed order; without any, an error.
pub fn formats() -> Result<Vec<Format>> {
    ready()?;
    let found = FORMATS.into_iter().filter(|format| encoder::find_by_name(format.encoder).is_some());
    let found: Vec<Format> = found.collect();
    if found.is_empty() {
        let names: Vec<&str> = FORMATS.iter().map(|format| format.encoder).collect();
        return Err(Error::Mismatch(format!(
            "this FFmpeg has none of the video encoders {}",
            names.join(", ")
        )));
    }
    Ok(found)
}

/// Readies FFmpeg and keeps its encoders' statistics off stderr.
fn ready() -> Result<()> {
    ffmpeg::init().map_err(|e| Error::Mismatch(format!("FFmpeg does not start: {e}")))?;
    ffmpeg::log::set_level(ffmpeg::log::Level::Error);
    Ok(())
}

/// Encodes frames of one size and rate to a file.
pub struct Encoder {
    path: PathBuf,
    partial: PathBuf,
    format: Format,
    /// `None` once the file is closed.
    output: Option<Output>,
    encoder: encoder::Video,
    frame: frame::Video,
    packet: Packet,
    tick: Rational,
    frames: i64,
    failure: Arc<Mutex<Option<io::Error>>>,
}

impl Encoder {
    /// Starts a file of `width` by `height` pixels, both even, and `fps` frames a second.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be made; [`Error::BadFile`] if FFmpeg refuses the settings.
    pub fn create(path: &Path, format: Format, width: u32, height: u32, fps: u32) -> Result<Encoder> {
        ready()?;
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial).map_err(Error::io(&partial, "create"))?;
        Encoder::start(file, path, partial, format, width, height, fps)
    }

    fn start(
        file: File,
        path: &Path,
        partial: PathBuf,
        format: Format,
        width: u32,
        height: u32,
        fps: u32,
    ) -> Result<Encoder> {
        let failure = Arc::new(Mutex::new(None));
        let sink = Sink { file, failure: failure.clone() };
        let opened = Encoder::open(sink, format, width, height, fps);
        let (output, encoder, frame) = opened.map_err(|e| {
            // What is left behind is empty; that it may not go is no news.
            let _ = std::fs::remove_file(&partial);
            blame(path, format, &failure, e)
        })?;
        Ok(Encoder {
            path: path.to_path_buf(),
            partial,
            format,
            output: Some(output),
            encoder,
            frame,
            packet: Packet::empty(),
            tick: Rational(1, fps as i32),
            frames: 0,
            failure,
        })
    }

    fn open(
        sink: Sink,
        format: Format,
        width: u32,
        height: u32,
        fps: u32,
    ) -> std::result::Result<(Output, encoder::Video, frame::Video), ffmpeg::Error> {
        let codec = encoder::find_by_name(format.encoder).ok_or(ffmpeg::Error::EncoderNotFound)?;
        let stream = StreamIo::from_write_seek(sink)?;
        let mut output = ffmpeg::format::output_to_stream(stream, None, Some(format.container))?;
        let wants_header = output.format().flags().contains(ffmpeg::format::Flags::GLOBAL_HEADER);

        let pixel = if format.jpeg { Pixel::YUVJ420P } else { Pixel::YUV420P };
        let mut context = ffmpeg::codec::Context::new_with_codec(codec).encoder().video()?;
        context.set_width(width);
        context.set_height(height);
        context.set_format(pixel);
        context.set_time_base(Rational(1, fps as i32));
        context.set_frame_rate(Some(Rational(fps as i32, 1)));
        let mut flags = String::from("+bitexact");
        let mut options = Dictionary::new();
        for &(key, value) in format.options {
            if key == "flags" { flags.push_str(value) } else { options.set(key, value) }
        }
        if wants_header {
            flags.push_str("+global_header");
        }
        options.set("flags", &flags);
        // One thread each: many files are written at once, and the bytes must not depend on how many.
        options.set("threads", "1");
        options.set("colorspace", "smpte170m");
        options.set("color_primaries", "smpte170m");
        options.set("color_trc", "smpte170m");
        options.set("color_range", if format.jpeg { "pc" } else { "tv" });
        options.set("chroma_sample_location", if format.jpeg { "center" } else { "left" });
        let encoder = context.open_as_with(codec, options)?;

        let mut track = output.add_stream_with(&encoder)?;
        track.set_time_base(Rational(1, fps as i32));
        track.set_rate(Rational(fps as i32, 1));
        track.set_avg_frame_rate(Rational(fps as i32, 1));
        // Without this, Matroska files carry the date and a random number.
        let mut options = Dictionary::new();
        options.set("fflags", "+bitexact");
        output.write_header_with(options)?;

        let mut frame = frame::Video::new(pixel, width, height);
        frame.set_color_range(if format.jpeg { color::Range::JPEG } else { color::Range::MPEG });
        frame.set_color_space(color::Space::SMPTE170M);
        Ok((output, encoder, frame))
    }

    /// Adds the next frame.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk refuses, [`Error::BadFile`] if the encoder does.
    ///
    /// # Panics
    /// If the frame is not of the size that the file was started with.
    pub fn push(&mut self, image: &RgbImage) -> Result<()> {
        let size = (self.frame.width(), self.frame.height());
        assert_eq!(image.dimensions(), size, "frame and file differ in size");
        // The encoder may still hold the previous frame's planes.
        let mut frame = self.frame.clone();
        fill(&mut frame, image, self.format.jpeg);
        frame.set_pts(Some(self.frames));
        self.frames += 1;
        let sent = self.encoder.send_frame(&frame);
        sent.and_then(|()| self.drain()).map_err(|e| self.error(e))
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// As [`Encoder::push`].
    pub fn finish(mut self) -> Result<()> {
        let mut close = || -> std::result::Result<(), ffmpeg::Error> {
            self.encoder.send_eof()?;
            self.drain()?;
            self.output.as_mut().expect("open until finished").write_trailer()
        };
        close().map_err(|e| self.error(e))?;
        // Closing writes what is buffered.
        self.output = None;
        if let Some(source) = self.failure.lock().expect("no panic while held").take() {
            return Err(Error::Io { path: self.path.clone(), action: "write", source });
        }
        std::fs::rename(&self.partial, &self.path).map_err(Error::io(&self.path, "create"))
    }

    fn drain(&mut self) -> std::result::Result<(), ffmpeg::Error> {
        let output = self.output.as_mut().expect("open until finished");
        let ticks = output.stream(0).expect("one stream").time_base();
        loop {
            match self.encoder.receive_packet(&mut self.packet) {
                Ok(()) => {}
                Err(ffmpeg::Error::Eof) => return Ok(()),
                Err(ffmpeg::Error::Other { errno: ffmpeg::error::EAGAIN }) => return Ok(()),
                Err(e) => return Err(e),
            }
            self.packet.set_stream(0);
            self.packet.set_duration(1);
            self.packet.rescale_ts(self.tick, ticks);
            self.packet.write_interleaved(output)?;
        }
    }

    fn error(&self, e: ffmpeg::Error) -> Error {
        blame(&self.path, self.format, &self.failure, e)
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        self.output = None;
        // After `finish` there is none; before, half a file is of no use. Nobody is left to tell of a failure.
        let _ = std::fs::remove_file(&self.partial);
    }
}

/// The operating system's reason if there is one, else FFmpeg's.
fn blame(path: &Path, format: Format, failure: &Mutex<Option<io::Error>>, e: ffmpeg::Error) -> Error {
    match failure.lock().expect("no panic while held").take() {
        Some(source) => Error::Io { path: path.to_path_buf(), action: "write", source },
        None => {
            let Format { encoder, container, .. } = format;
            Error::bad_file(path, format!("{encoder} in {container} fails: {e}"))
        }
    }
}

/// A file that remembers why it could not be written; FFmpeg passes on only that it could not.
struct Sink {
    file: File,
    failure: Arc<Mutex<Option<io::Error>>>,
}

impl Sink {
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|e| {
            let copy = e.raw_os_error().map_or_else(|| e.kind().into(), io::Error::from_raw_os_error);
            self.failure.lock().expect("no panic while held").get_or_insert(e);
            copy
        })
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.file.write(bytes);
        if matches!(&result, Err(e) if e.kind() == io::ErrorKind::Interrupted) {
            return result;
        }
        self.note(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.file.flush();
        self.note(result)
    }
}

impl Seek for Sink {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let result = self.file.seek(to);
        self.note(result)
    }
}

/// Converts to BT.601 luma and to chroma at half the resolution in both directions.
fn fill(frame: &mut frame::Video, image: &RgbImage, jpeg: bool) {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (luma_scale, luma_base, chroma_scale) =
        if jpeg { (1.0, 0.0, 1.0) } else { (219.0 / 255.0, 16.0, 224.0 / 255.0) };
    let pixels: &[u8] = image.as_raw();
    let stride = frame.stride(0);
    for (row, line) in frame.data_mut(0).chunks_mut(stride).take(height).enumerate() {
        for (out, rgb) in line.iter_mut().zip(pixels[row * width * 3..][..width * 3].chunks_exact(3)) {
            let y = 0.299 * f32::from(rgb[0]) + 0.587 * f32::from(rgb[1]) + 0.114 * f32::from(rgb[2]);
            *out = (luma_base + luma_scale * y + 0.5) as u8;
        }
    }
    // A sample to the left of a pair of columns weighs three columns, one in the middle of it weighs two.
    let taps: &[(isize, f32)] = if jpeg { &[(0, 0.5), (1, 0.5)] } else { &[(-1, 0.25), (0, 0.5), (1, 0.25)] };
    for (plane, [r, g, b]) in
        [(1, [-0.168_736, -0.331_264, 0.5]), (2, [0.5, -0.418_688, -0.081_312])].into_iter()
    {
        let stride = frame.stride(plane);
        for (row, line) in frame.data_mut(plane).chunks_mut(stride).take(height / 2).enumerate() {
            for (column, out) in line.iter_mut().take(width / 2).enumerate() {
                let mut value = 0.0f32;
                for &(shift, weight) in taps {
                    let x = (2 * column as isize + shift).max(0) as usize;
                    for y in [2 * row, 2 * row + 1] {
                        let at = (y * width + x) * 3;
                        let [red, green, blue] = [0, 1, 2].map(|c| f32::from(pixels[at + c]));
                        value += weight * 0.5 * (r * red + g * green + b * blue);
                    }
                }
                *out = (128.5 + chroma_scale * value).clamp(0.0, 255.0) as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ffmpeg_next::media::Type;

    /// Colour bars with a ramp: red, green, blue and grey columns, darker downwards.
    fn picture(shift: u32) -> RgbImage {
        RgbImage::from_fn(64, 48, |x, y| {
            let v = (220 - 2 * y - shift) as u8;
            image::Rgb([[v, 40, 40], [40, v, 40], [40, 40, v], [v, v, v]][(x / 16) as usize])
        })
    }

    /// Times in seconds, sizes and RGB pictures of all frames, with the colours that the file claims.
    fn read(path: &Path, jpeg: bool) -> Vec<(f64, RgbImage)> {
        let mut input = ffmpeg::format::input(path).unwrap();
        let stream = input.streams().best(Type::Video).unwrap();
        let (index, tick) = (stream.index(), f64::from(stream.time_base()));
        let context = ffmpeg::codec::Context::from_parameters(stream.parameters()).unwrap();
        let mut decoder = context.decoder().video().unwrap();
        let mut frames = Vec::new();
        let mut frame = frame::Video::empty();
        let mut take = |decoder: &mut ffmpeg::decoder::Video| {
            while decoder.receive_frame(&mut frame).is_ok() {
                let full =
                    matches!(frame.format(), Pixel::YUVJ420P) || frame.color_range() == color::Range::JPEG;
                assert_eq!(full, jpeg, "range of {}", path.display());
                let image = to_rgb(&frame, full);
                frames.push((frame.pts().unwrap() as f64 * tick, image));
            }
        };
        for (stream, packet) in input.packets() {
            if stream.index() == index {
                decoder.send_packet(&packet).unwrap();
                take(&mut decoder);
            }
        }
        decoder.send_eof().unwrap();
        take(&mut decoder);
        frames
    }

    /// The definition of BT.601, nearest chroma.
    fn to_rgb(frame: &frame::Video, full: bool) -> RgbImage {
        let (scale, base, chroma) = if full { (1.0, 0.0, 1.0) } else { (255.0 / 219.0, 16.0, 255.0 / 224.0) };
        RgbImage::from_fn(frame.width(), frame.height(), |x, y| {
            let at = |plane: usize, x: u32, y: u32| {
                f32::from(frame.data(plane)[y as usize * frame.stride(plane) + x as usize])
            };
            let luma = scale * (at(0, x, y) - base);
            let [cb, cr] = [1, 2].map(|plane| chroma * (at(plane, x / 2, y / 2) - 128.0));
            let rgb = [luma + 1.402 * cr, luma - 0.344_136 * cb - 0.714_136 * cr, luma + 1.772 * cb];
            image::Rgb(rgb.map(|v| v.round().clamp(0.0, 255.0) as u8))
        })
    }

    #[test]
    fn every_format_reads_back_with_its_frames_times_and_colours() {
        let folder = tempfile::tempdir().unwrap();
        for (i, format) in formats().unwrap().into_iter().enumerate() {
            let path = folder.path().join(format!("{i}.{}", format.extension));
            let mut encoder = Encoder::create(&path, format, 64, 48, 12).unwrap();
            (0..15).for_each(|shift| encoder.push(&picture(shift)).unwrap());
            assert!(!path.exists(), "named before it is complete");
            encoder.finish().unwrap();
            let frames = read(&path, format.jpeg);
            assert_eq!(frames.len(), 15, "{format:?}");
            for (n, (seconds, image)) in frames.iter().enumerate() {
                assert!((seconds - n as f64 / 12.0).abs() < 1e-3, "{format:?}: frame {n} at {seconds} s");
                assert_eq!(image.dimensions(), (64, 48));
                // The middles of bars, away from where neighbours share chroma.
                for x in [7, 24, 40, 56] {
                    let (got, want) = (image.get_pixel(x, 24).0, picture(n as u32).get_pixel(x, 24).0);
                    let off = (0..3).map(|c| got[c].abs_diff(want[c])).max().unwrap();
                    assert!(off <= 12, "{format:?}: frame {n}, column {x}: {got:?}, drawn {want:?}");
                }
            }
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), formats().unwrap().len());
    }

    #[test]
    fn the_same_frames_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        for format in formats().unwrap() {
            let [a, b] = ["a", "b"].map(|name| {
                let path = folder.path().join(name);
                let mut encoder = Encoder::create(&path, format, 64, 48, 12).unwrap();
                (0..6).for_each(|shift| encoder.push(&picture(shift)).unwrap());
                encoder.finish().unwrap();
                std::fs::read(path).unwrap()
            });
            assert!(a == b, "{format:?}");
        }
    }

    #[test]
    fn a_missing_folder_is_named_and_half_a_file_removed() {
        let folder = tempfile::tempdir().unwrap();
        let format = formats().unwrap()[0];
        let path = folder.path().join("none/a.mp4");
        let error = Encoder::create(&path, format, 64, 48, 12).err().unwrap().to_string();
        assert!(error.contains("none/a.mp4") && error.contains("cannot create"), "{error}");
        let mut encoder = Encoder::create(&folder.path().join("b.mp4"), format, 64, 48, 12).unwrap();
        encoder.push(&picture(0)).unwrap();
        drop(encoder);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_one_clear_error() {
        let folder = tempfile::tempdir().unwrap();
        for format in formats().unwrap() {
            let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            let path = folder.path().join("film");
            let encoder = Encoder::start(full, &path, folder.path().join("film.partial"), format, 64, 48, 12);
            let result = encoder.and_then(|mut encoder| {
                (0..30).try_for_each(|shift| encoder.push(&picture(shift)))?;
                encoder.finish()
            });
            let error = result.unwrap_err().to_string();
            assert!(error.contains("film: cannot write: No space left"), "{format:?}: {error}");
        }
    }
}
