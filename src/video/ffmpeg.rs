//! Decodes video files through FFmpeg's libraries: exact jumps, upright frames, right colours.
//!
//! Containers promise little: durations are unset or wrong, a jump may land late, timestamps start anywhere. So every
//! jump is checked, and repeated from further back or from the start of the file if it landed late.
//!
//! On the way to a frame, those that are neither wanted nor needed by others are not decoded.
//! This relies on the timestamps of the packets. Where they are missing or the frame that they promise does not come
//! out, every frame is decoded instead.

mod convert;
mod log;
mod open;
mod packets;
mod scenes;
mod seek;

use std::path::{Path, PathBuf};

use convert::{Converter, Field};
use ffmpeg_next as ff;
use ffmpeg_next::ffi;
use log::{quiet, reason};
use open::{Opened, frame_matrix};
use packets::Packets;
use scenes::CutFinder;

use super::{Instant, Interlaced, Orientation, Picture, VideoInfo, VideoSource};
use crate::error::{Error, Result};

/// Frames with more pixels are refused, so that a hostile file cannot take all memory.
pub const MAX_PIXELS: u32 = 1 << 28;

/// A shot that is shorter than so many seconds belongs to the one before.
const SHORTEST_SHOT: f64 = 0.5;

/// Errors in a row after which the rest of a file counts as unreadable.
const MAX_ERRORS: u32 = 1000;

/// The video stream of an open file.
pub struct VideoFile {
    path: PathBuf,
    input: ff::format::context::Input,
    decoder: ff::decoder::Video,
    converter: Option<Converter>,
    info: VideoInfo,
    packets: Packets,
    /// Shown from its timestamp until that of `ahead`.
    current: Option<Shot>,
    ahead: Ahead,
    /// Whether the decoder was told that there are no more packets.
    draining: bool,
    /// Frames decoded since the file was opened.
    decoded: u64,
    /// Whether only key frames are decoded from here on, each by itself.
    keys_only: bool,
    /// Time between the last two frames that had timestamps.
    gap: i64,
    interlaced: Interlaced,
    jumps: Jumps,
    /// Whether something was found damaged since decoding last began at a key frame.
    damaged: bool,
    errors: u32,
    last_error: Option<String>,
    /// Why the machine, and not the file, keeps more from being read: no memory, or the disk failed.
    failed: Option<String>,
}

// SAFETY: every libav structure inside is owned by this value alone and libav ties none of them to a thread. The
// decoder runs on the calling thread only.
unsafe impl Send for VideoFile {}

struct Shot {
    frame: ff::frame::Video,
    pts: i64,
    /// Whether nothing at all tells its timestamp.
    guessed: bool,
}

/// What follows the current frame.
enum Ahead {
    Frame(Shot),
    /// It is still to be decoded; its timestamp, if packets tell.
    ToDecode(Option<i64>),
    Nothing,
}

impl From<Option<Shot>> for Ahead {
    fn from(shot: Option<Shot>) -> Ahead {
        shot.map_or(Ahead::Nothing, Ahead::Frame)
    }
}

/// What experience with this file says about jumping.
#[derive(Clone, Copy, PartialEq)]
enum Jumps {
    Work,
    /// They land before the place where we were, as in a file without an index.
    OnlyBack,
    Fail,
}

impl VideoFile {
    /// Opens a file.
    ///
    /// # Errors
    /// If the file is missing, is no video, has no video stream, or it is found already that nothing can be decoded.
    pub fn open(path: &Path) -> Result<VideoFile> {
        VideoFile::open_stream(path, None)
    }

    /// As [`open`](Self::open), but of the given stream.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_stream(path: &Path, stream: Option<usize>) -> Result<VideoFile> {
        quiet();
        let meta = path.metadata().map_err(Error::io(path, "read"))?;
        if !meta.is_file() {
            return Err(Error::bad_file(path, "is not a regular file"));
        }
        if meta.len() == 0 {
            return Err(Error::bad_file(path, "is empty (0 bytes)"));
        }
        std::fs::File::open(path).map_err(Error::io(path, "read"))?;
        let Opened { input, decoder, info } =
            open::open(path, stream).map_err(|problem| Error::bad_file(path, problem))?;
        let mut video = VideoFile {
            path: path.to_path_buf(),
            input,
            decoder,
            converter: None,
            info,
            packets: Packets::new(),
            current: None,
            ahead: Ahead::ToDecode(None),
            draining: false,
            decoded: 0,
            keys_only: false,
            gap: 0,
            interlaced: Interlaced::Field,
            jumps: Jumps::Work,
            damaged: false,
            errors: 0,
            last_error: None,
            failed: None,
        };
        video.read_ahead();
        if video.info.usual_length == 0 {
            let stated = video.packets.front().map_or(0, |packet| packet.duration());
            let at_25_hz = (0.04 / video.info.time_base).round() as i64;
            video.info.usual_length = if stated > 0 { stated } else { at_25_hz.max(1) };
        }
        video.gap = video.info.usual_length;
        let first_pts = match video.announced_start() {
            Some(pts) => pts,
            None => match video.decode(None) {
                Some(first) => {
                    let pts = first.pts;
                    video.ahead = Ahead::Frame(first);
                    pts
                }
                None => return Err(video.nothing()),
            },
        };
        video.info.first_pts = first_pts;
        video.info.end_pts = video.stated_end(first_pts);
        Ok(video)
    }

    /// Chooses how interlaced frames are shown; by their first field if this is never called.
    pub fn show(&mut self, interlaced: Interlaced) {
        self.interlaced = interlaced;
    }

    /// The video streams of this file, cover pictures left out.
    pub fn streams(&self) -> Vec<usize> {
        let is_video = |stream: &ff::Stream| {
            // SAFETY: plain fields of a valid stream.
            let cover = unsafe { (*stream.as_ptr()).disposition & ffi::AV_DISPOSITION_ATTACHED_PIC != 0 };
            stream.parameters().medium() == ff::media::Type::Video && !cover
        };
        self.input.streams().filter(is_video).map(|stream| stream.index()).collect()
    }

    /// How many packets could not be read or decoded so far, and the reason of the last.
    pub fn damage(&self) -> Option<(u32, &str)> {
        self.last_error.as_deref().map(|reason| (self.errors, reason))
    }

    /// End of the stream, or else of the whole file, where it is stated rather than guessed from the bit rate.
    fn stated_end(&self, first_pts: i64) -> Option<i64> {
        let known = |v: i64| (v != ffi::AV_NOPTS_VALUE).then_some(v);
        // SAFETY: the stream and its context live as long as `input`.
        let (start, length, file_start, file_length, guessed) = unsafe {
            let (context, stream) = (self.input.as_ptr(), self.stream());
            let guess = ffi::AVDurationEstimationMethod::AVFMT_DURATION_FROM_BITRATE;
            (
                known((*stream).start_time),
                known((*stream).duration),
                known((*context).start_time),
                known((*context).duration),
                (*context).duration_estimation_method == guess,
            )
        };
        let of_file = || {
            let micros = file_start.unwrap_or(0).checked_add(file_length.filter(|_| !guessed)?)?;
            Some((micros as f64 / 1e6 / self.info.time_base) as i64)
        };
        let of_stream = length.filter(|&l| l > 0).and_then(|l| start.unwrap_or(first_pts).checked_add(l));
        of_stream.or_else(of_file).filter(|&end| end > first_pts)
    }

    fn stream(&self) -> *mut ffi::AVStream {
        // SAFETY: `info.stream` came from av_find_best_stream on this context, whose streams never go away.
        unsafe { *(*self.input.as_ptr()).streams.add(self.info.stream) }
    }

    fn nothing(&mut self) -> Error {
        let reason = self.last_error.take().unwrap_or_else(|| "the stream has no frame".into());
        Error::bad_file(&self.path, format!("no frame can be decoded: {reason}"))
    }

    /// Timestamp of the first frame, where packets tell for sure.
    fn announced_start(&mut self) -> Option<i64> {
        let (key, pts) = self.packets.front().map(|packet| (packet.is_key(), packet.pts()))?;
        // Frames before the first key frame cannot be decoded, though packets announce them.
        let pts = pts.filter(|_| key)?;
        let first = loop {
            let first = self.packets.next_after(i64::MIN);
            if first.is_some_and(|first| self.packets.complete_to(first)) || !self.read_ahead() {
                break first;
            }
        };
        first.filter(|&first| first >= pts && self.packets.stamped())
    }

    /// Reads one more packet of the stream; false at the end of the file.
    fn read_ahead(&mut self) -> bool {
        let mut in_a_row = 0;
        while !self.packets.ended() {
            // `Packet::read` does not release what the packet held before.
            let mut packet = ff::Packet::empty();
            match packet.read(&mut self.input) {
                Ok(()) if packet.stream() != self.info.stream => {}
                Ok(()) => {
                    self.packets.push(packet);
                    return true;
                }
                Err(ff::Error::InvalidData | ff::Error::Other { errno: ff::error::EAGAIN })
                    if in_a_row < MAX_ERRORS =>
                {
                    in_a_row += 1;
                    self.note(ff::Error::InvalidData);
                }
                Err(e) => {
                    if e != ff::Error::Eof {
                        self.note(e);
                    }
                    // SAFETY: plain fields of a valid context, whose reader is there while it is open. Unlike the error
                    // of a demuxer, which may only dislike the file, this one is the system's.
                    let disk = unsafe { (*self.input.as_ptr()).pb.as_ref().map_or(0, |reader| reader.error) };
                    if disk < 0 && disk != ffi::AVERROR_EOF {
                        self.failed = Some(format!("cannot be read on: {}", reason(ff::Error::from(disk))));
                    }
                    self.packets.end();
                }
            }
        }
        false
    }

    /// The next frame in order of display, damaged packets left out. With a `target`, frames are left out that others
    /// do not need and that end before this timestamp.
    fn decode(&mut self, target: Option<i64>) -> Option<Shot> {
        let mut in_a_row = 0;
        while in_a_row < MAX_ERRORS {
            let mut frame = ff::frame::Video::empty();
            match self.decoder.receive_frame(&mut frame) {
                Ok(()) => {
                    self.decoded += 1;
                    // SAFETY: a received frame is a valid AVFrame.
                    let (flags, flaws) = unsafe {
                        let frame = frame.as_ptr();
                        ((*frame).flags, (*frame).decode_error_flags)
                    };
                    if flaws != 0 {
                        self.note(ff::Error::InvalidData);
                    }
                    if flags & ffi::AV_FRAME_FLAG_DISCARD != 0 {
                        continue;
                    }
                    let last = match &self.ahead {
                        Ahead::Frame(ahead) => Some(ahead.pts),
                        _ => self.current.as_ref().map(|shot| shot.pts),
                    };
                    let guessed = frame.timestamp().is_none() && last.is_none();
                    let pts = match (frame.timestamp(), last) {
                        (Some(pts), Some(last)) if pts > last => {
                            self.gap = pts.saturating_sub(last);
                            pts
                        }
                        (Some(pts), _) => pts,
                        (None, Some(last)) => last.saturating_add(self.gap),
                        (None, None) => 0,
                    };
                    self.packets.came_out(pts);
                    return Some(Shot { frame, pts, guessed });
                }
                Err(ff::Error::Other { errno: ff::error::EAGAIN }) if !self.draining => {}
                Err(ff::Error::Eof | ff::Error::Other { errno: ff::error::EAGAIN }) => {
                    if !self.keys_only || self.packets.front().is_none() && !self.read_ahead() {
                        return None;
                    }
                    self.decoder.flush();
                    self.draining = false;
                }
                Err(e) => {
                    in_a_row += 1;
                    self.note(e);
                    continue;
                }
            }
            if self.packets.front().is_none() {
                self.read_ahead();
            }
            let skip = self.needless(target);
            let sent = match self.packets.pop() {
                Some(packet) if self.keys_only && !packet.is_key() => continue,
                Some(packet) => {
                    // SAFETY: a plain field of a valid decoder, which runs on this thread only.
                    unsafe { (*self.decoder.as_mut_ptr()).skip_frame = skip };
                    let sent = self.decoder.send_packet(&packet);
                    // Key frames are decoded each by itself, since they do not follow each other in the stream.
                    self.draining = self.keys_only;
                    if self.draining { sent.and(self.decoder.send_eof()) } else { sent }
                }
                None => {
                    self.draining = true;
                    self.decoder.send_eof()
                }
            };
            match sent {
                Ok(()) => in_a_row = 0,
                Err(e) => {
                    in_a_row += 1;
                    self.note(e);
                }
            }
        }
        None
    }

    /// Which kind of frame the decoder may pass over in the next packet.
    fn needless(&mut self, target: Option<i64>) -> ffi::AVDiscard {
        let pts = self.packets.front().and_then(|packet| packet.pts());
        if let (Some(target), Some(pts)) = (target, pts) {
            loop {
                if self.packets.has_between(pts, target) {
                    return ffi::AVDiscard::AVDISCARD_NONREF;
                }
                if self.packets.complete_to(target) || !self.read_ahead() {
                    break;
                }
            }
        }
        ffi::AVDiscard::AVDISCARD_DEFAULT
    }

    /// Fails if the machine kept something from being read: then what was found is not what the file holds.
    fn check(&self) -> Result<()> {
        match &self.failed {
            Some(problem) => Err(Error::bad_file(&self.path, problem.clone())),
            None => Ok(()),
        }
    }

    fn note(&mut self, error: ff::Error) {
        if error == (ff::Error::Other { errno: ff::error::ENOMEM }) {
            self.failed = Some("needs more memory than it may take".into());
        }
        self.damaged = true;
        self.errors = self.errors.saturating_add(1);
        self.last_error = Some(reason(error));
    }

    /// Decodes the frame that follows the current one, if that was not done.
    fn look_ahead(&mut self) {
        if matches!(self.ahead, Ahead::ToDecode(_)) {
            self.ahead = self.decode(None).into();
        }
    }

    fn instant(&self) -> Option<Instant> {
        let shot = self.current.as_ref()?;
        let stated = shot.frame.packet().duration;
        let next = match &self.ahead {
            Ahead::Frame(next) => Some(next.pts),
            Ahead::ToDecode(next) => *next,
            Ahead::Nothing => None,
        };
        let length = match next {
            Some(next) => next.saturating_sub(shot.pts),
            None if stated > 0 => stated,
            None => self.info.usual_length,
        };
        let seconds = |pts: i64| pts as f64 * self.info.time_base;
        Some(Instant { pts: shot.pts, seconds: seconds(shot.pts), length: length.max(1) })
    }
}

impl VideoSource for VideoFile {
    fn info(&self) -> &VideoInfo {
        &self.info
    }

    fn advance(&mut self) -> Result<Option<Instant>> {
        self.look_ahead();
        match std::mem::replace(&mut self.ahead, Ahead::Nothing) {
            Ahead::Frame(next) => self.current = Some(next),
            _ => {
                self.check()?;
                return if self.decoded == 0 { Err(self.nothing()) } else { Ok(None) };
            }
        }
        self.ahead = self.decode(None).into();
        self.check()?;
        Ok(self.instant())
    }

    fn next_key(&mut self) -> Result<Option<Instant>> {
        if !self.packets.stamped() {
            // Without timestamps, only all frames together tell when each is shown.
            loop {
                match self.advance()? {
                    Some(_) if !self.current.as_ref().is_some_and(|shot| shot.frame.is_key()) => {}
                    found => return Ok(found),
                }
            }
        }
        if !self.keys_only {
            if self.current.is_some() {
                self.rewind()?;
            }
            self.keys_only = true;
            self.decoder.flush();
            if matches!(&self.ahead, Ahead::Frame(first) if !first.frame.is_key()) {
                self.ahead = Ahead::ToDecode(None);
            }
        }
        self.advance()
    }

    fn shots(&mut self) -> Result<Vec<(i64, i64)>> {
        if self.current.is_some() {
            self.rewind()?;
        }
        let mut cuts = None;
        let mut shots: Vec<(i64, i64)> = Vec::new();
        while let Some(at) = self.advance()? {
            let Some(shot) = &self.current else { break };
            let is_cut = CutFinder::is_cut(&mut cuts, &shot.frame).map_err(|e| {
                Error::bad_file(&self.path, format!("cannot compare its frames: {}", reason(e)))
            })?;
            let end = at.pts.saturating_add(at.length);
            match shots.last_mut() {
                Some((start, last_end)) => {
                    let length = at.pts.saturating_sub(*start) as f64 * self.info.time_base;
                    if is_cut && length >= SHORTEST_SHOT {
                        *last_end = at.pts;
                        shots.push((at.pts, end));
                    } else {
                        *last_end = end;
                    }
                }
                None => shots.push((at.pts, end)),
            }
        }
        self.rewind()?;
        Ok(shots)
    }

    fn seek(&mut self, pts: i64) -> Result<Instant> {
        self.go_to(pts)?;
        self.check()?;
        self.instant().ok_or_else(|| self.nothing())
    }

    fn rewind(&mut self) -> Result<()> {
        // Opening again works for every container, also for those that cannot jump.
        let fresh = VideoFile::open_stream(&self.path, Some(self.info.stream))?;
        let (jumps, errors, last_error) = (self.jumps, self.errors, self.last_error.take());
        let interlaced = self.interlaced;
        *self = fresh;
        self.interlaced = interlaced;
        self.jumps = jumps;
        self.errors = errors.max(self.errors);
        self.last_error = last_error.or(self.last_error.take());
        Ok(())
    }

    fn picture(&mut self) -> Result<Picture> {
        let Some(shot) = &self.current else {
            return Err(Error::bad_file(&self.path, "has no current frame"));
        };
        // SAFETY: context, stream and frame are valid; the function only reads them.
        let aspect = unsafe {
            let (context, frame) = (self.input.as_mut_ptr(), shot.frame.as_ptr().cast_mut());
            let stream = *(*context).streams.add(self.info.stream);
            ffi::av_guess_sample_aspect_ratio(context, stream, frame)
        };
        let aspect = f64::from(aspect.num) / f64::from(aspect.den);
        let orientation = match frame_matrix(&shot.frame) {
            Some(matrix) => Orientation::from_display_matrix(&matrix),
            None => self.info.orientation,
        };
        let field = match self.interlaced {
            Interlaced::Field if shot.frame.is_interlaced() => Some(Field::first(shot.frame.is_top_first())),
            _ => None,
        };
        let image =
            Converter::convert(&mut self.converter, &shot.frame, aspect, field).map_err(|problem| {
                let seconds = shot.pts as f64 * self.info.time_base;
                Error::bad_file(&self.path, format!("cannot convert the frame at {seconds:.3} s: {problem}"))
            })?;
        let interlaced = shot.frame.is_interlaced();
        let (coded_width, coded_height) = (shot.frame.width(), shot.frame.height());
        Ok(Picture { image: orientation.apply(image), coded_width, coded_height, orientation, interlaced })
    }
}
