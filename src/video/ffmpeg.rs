//! Decodes video files through FFmpeg's libraries: exact jumps, upright frames, right colours.
//!
//! Containers promise little: durations are unset or wrong, a jump may land late, timestamps start anywhere. So every
//! jump is checked, and repeated from further back or from the start of the file if it landed late.
//!
//! On the way to a frame, those that are neither wanted nor needed by others are not decoded.
//! This relies on the timestamps of the packets. Where they are missing or the frame that they promise does not come
//! out, every frame is decoded instead.

mod convert;
mod packets;
mod scenes;

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Once;

use convert::{Converter, Field};
use ffmpeg_next as ff;
use ffmpeg_next::ffi;
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
        let mut video = open_stream(path, stream).map_err(|problem| Error::bad_file(path, problem))?;
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

    fn note(&mut self, error: ff::Error) {
        self.damaged = true;
        self.errors = self.errors.saturating_add(1);
        self.last_error = Some(reason(error));
    }

    /// Continues at a key frame at or before `pts`, as far as the container can tell; false if it cannot.
    fn jump(&mut self, pts: i64) -> bool {
        // SAFETY: the context is valid and the stream index in range.
        let code = unsafe {
            let stream = self.info.stream as c_int;
            ffi::avformat_seek_file(self.input.as_mut_ptr(), stream, i64::MIN, pts, pts, 0)
        };
        self.decoder.flush();
        self.packets = Packets::new();
        self.damaged = false;
        (self.current, self.ahead, self.draining) = (None, Ahead::ToDecode(None), false);
        code >= 0
    }

    /// After a jump: when the first frame is shown that can be decoded, with all that follow it.
    fn landed(&mut self) -> Option<i64> {
        for _ in 0..MAX_ERRORS {
            if self.packets.front().is_none() && !self.read_ahead() {
                return None;
            }
            match self.packets.front().filter(|packet| packet.is_key()).map(|packet| packet.pts()) {
                Some(Some(pts)) => return Some(pts),
                Some(None) => break,
                None => drop(self.packets.pop()),
            }
        }
        let shot = self.decode(None).filter(|shot| !shot.guessed)?;
        let pts = shot.pts;
        self.ahead = Ahead::Frame(shot);
        Some(pts)
    }

    /// Goes to a place at or before the frame shown at `pts`, from which it can be decoded: by jumping, or else to the
    /// start of the file. There is no current frame then. Gives the timestamp of the key frame, if it is not the first.
    fn land(&mut self, pts: i64) -> Result<Option<i64>> {
        if self.jumps == Jumps::Fail {
            return self.rewind().map(|()| None);
        }
        let start = self.current.as_ref().map(|shot| shot.pts);
        let second = (1.0 / self.info.time_base).max(1.0) as i64;
        let (mut wanted, mut back) = (pts, second);
        loop {
            if wanted <= self.info.first_pts {
                return self.rewind().map(|()| None);
            }
            if !self.jump(wanted) {
                self.jumps = Jumps::Fail;
                return self.rewind().map(|()| None);
            }
            if let Some(landed) = self.landed().filter(|&landed| landed <= pts) {
                let back_again = start.is_some_and(|start| landed < start && start <= pts);
                if back_again && self.jumps == Jumps::Work {
                    self.jumps = Jumps::OnlyBack;
                }
                return Ok(Some(landed));
            }
            wanted = pts.saturating_sub(back);
            back = back.saturating_mul(4);
        }
    }

    /// Goes on to the frame shown at `target` and decodes only what it needs; false if packets do not tell, or not the
    /// truth: then frames may have been left out that are shown. Also if something is damaged: what a decoder puts in
    /// place of the damage depends on all the frames before.
    fn aim(&mut self, target: i64) -> bool {
        match std::mem::replace(&mut self.ahead, Ahead::Nothing) {
            Ahead::Frame(shot) if shot.pts <= target => self.current = Some(shot),
            Ahead::ToDecode(_) => {}
            other => {
                self.ahead = other;
                return self.current.is_some();
            }
        }
        self.ahead = Ahead::ToDecode(None);
        loop {
            let at = self.current.as_ref().map_or(i64::MIN, |shot| shot.pts);
            while !self.packets.has_between(at, target) && !self.packets.complete_to(target) {
                self.read_ahead();
            }
            if !self.packets.stamped() {
                return false;
            }
            if !self.packets.has_between(at, target) {
                break;
            }
            match self.decode(Some(target)) {
                Some(shot) if shot.pts <= target => self.current = Some(shot),
                _ => return false,
            }
        }
        let Some(at) = self.current.as_ref().map(|shot| shot.pts) else { return false };
        let next = loop {
            let next = self.packets.next_after(at);
            if next.is_some_and(|next| self.packets.complete_to(next)) || !self.read_ahead() {
                break next;
            }
        };
        self.ahead = Ahead::ToDecode(next);
        self.packets.stamped() && !self.damaged
    }

    /// Decodes every frame on the way to the one shown at `pts`, from the key frame at `landed` or, if decoding begins
    /// only after `pts` there, from one before it.
    fn walk(&mut self, pts: i64, mut landed: Option<i64>) -> Result<()> {
        loop {
            if self.current.is_none() {
                self.advance()?;
            }
            match (landed, &self.current) {
                (Some(key), Some(shot)) if shot.pts > pts => {
                    self.current = None;
                    landed = self.land(key.saturating_sub(1))?;
                }
                _ => break,
            }
        }
        self.look_ahead();
        while matches!(&self.ahead, Ahead::Frame(next) if next.pts <= pts) {
            self.advance()?;
        }
        Ok(())
    }

    /// Decodes the frame that follows the current one, if that was not done.
    fn look_ahead(&mut self) {
        if matches!(self.ahead, Ahead::ToDecode(_)) {
            self.ahead = self.decode(None).into();
        }
    }

    /// Whether jumping to `pts` is likely faster than decoding on to it.
    fn worth_a_jump(&self, from: i64, pts: i64) -> bool {
        let gap = pts.saturating_sub(from) as f64 * self.info.time_base;
        // SAFETY: the entry, if any, is read before anything else touches the stream.
        let key = unsafe {
            let flags = ffi::AVSEEK_FLAG_BACKWARD;
            let entry = ffi::avformat_index_get_entry_from_timestamp(self.stream(), pts, flags);
            entry.as_ref().map(|entry| entry.timestamp)
        };
        let shortest = match key {
            Some(key) if key > from => 0.5,
            Some(_) => 10.0, // no key frame between, as far as the index was read
            None => 2.0,
        };
        self.jumps == Jumps::Work && gap > shortest
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
            _ if self.decoded == 0 => return Err(self.nothing()),
            _ => return Ok(None),
        }
        self.ahead = self.decode(None).into();
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
        let start = self.current.as_ref().map(|shot| shot.pts);
        let mut landed = None;
        if start.is_none_or(|at| at > pts || self.worth_a_jump(at, pts)) {
            landed = self.land(pts)?;
        }
        if self.packets.stamped() && !self.damaged {
            if self.aim(pts) {
                return self.instant().ok_or_else(|| self.nothing());
            }
            // Once more, decoding all, from one key frame earlier: in an open group of pictures, decoders hold back what
            // follows soon after the key frame at which they started.
            self.current = None;
            landed = self.land(pts)?;
            if let Some(key) = landed {
                landed = self.land(key.saturating_sub(1))?;
            }
        }
        self.walk(pts, landed)?;
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

/// Opens a file up to the decoder; the error is the problem without the path.
fn open_stream(path: &Path, wanted: Option<usize>) -> Result<VideoFile, String> {
    // The prefix keeps names such as `http:x.mp4` from being taken for addresses.
    let url = [b"file:", path.as_os_str().as_bytes()].concat();
    let url = CString::new(url).map_err(|_| "the path contains a zero byte".to_string())?;
    // SAFETY: plain use of libavformat; `Input::wrap` takes over the context once it is open.
    let mut input = unsafe {
        let (mut context, mut options) = (ptr::null_mut(), ptr::null_mut());
        // Playlists must not make us read from the network.
        ffi::av_dict_set(&mut options, c"protocol_whitelist".as_ptr(), c"file".as_ptr(), 0);
        let code = ffi::avformat_open_input(&mut context, url.as_ptr(), ptr::null(), &mut options);
        ffi::av_dict_free(&mut options);
        if code < 0 {
            return Err(format!("cannot be read as a video: {}", reason(ff::Error::from(code))));
        }
        ff::format::context::Input::wrap(context)
    };
    let format = input.format().name().to_string();
    if let Some(name) =
        ["hls", "concat", "dash", "tty"].into_iter().find(|&n| format.split(',').any(|f| f == n))
    {
        return Err(format!("is no video but a text read as `{name}`"));
    }
    if !is_described(&input) {
        describe(&mut input)?;
    }
    // SAFETY: reads fields of a valid context.
    let best = unsafe {
        let kind = ffi::AVMediaType::AVMEDIA_TYPE_VIDEO;
        let wanted = wanted.map_or(-1, |index| c_int::try_from(index).unwrap_or(c_int::MAX));
        ffi::av_find_best_stream(input.as_mut_ptr(), kind, wanted, -1, ptr::null_mut(), 0)
    };
    let stream = usize::try_from(best).ok().and_then(|index| input.stream(index));
    let Some(stream) = stream else { return Err("has no video stream".into()) };
    // SAFETY: `stream` points to a valid stream with parameters.
    let (disposition, codec) = unsafe {
        let parameters = (*stream.as_ptr()).codecpar;
        let name = ffi::avcodec_get_name((*parameters).codec_id);
        ((*stream.as_ptr()).disposition, CStr::from_ptr(name).to_string_lossy().into_owned())
    };
    if disposition & ffi::AV_DISPOSITION_ATTACHED_PIC != 0 {
        return Err("has no video stream, only a cover picture".into());
    }
    let time_base = f64::from(stream.time_base());
    let rate = f64::from(stream.avg_frame_rate());
    let orientation =
        stream_matrix(&stream).map(|m| Orientation::from_display_matrix(&m)).unwrap_or_default();
    let cannot_decode = |e: ff::Error| format!("cannot decode its {codec} stream: {}", reason(e));
    let mut context = ff::codec::Context::from_parameters(stream.parameters()).map_err(cannot_decode)?;
    context.set_threading(ff::threading::Config::count(1));
    // SAFETY: sets plain fields before the codec is opened.
    unsafe {
        (*context.as_mut_ptr()).max_pixels = i64::from(MAX_PIXELS);
        (*context.as_mut_ptr()).pkt_timebase = stream.time_base().into();
    }
    let decoder = context.decoder().video().map_err(cannot_decode)?;
    let index = stream.index();
    for mut other in input.streams_mut().filter(|other| other.index() != index) {
        // SAFETY: as above; packets of other streams are then not even read.
        unsafe { (*other.as_mut_ptr()).discard = ffi::AVDiscard::AVDISCARD_ALL };
    }
    let time_base = if time_base.is_finite() && time_base > 0.0 { time_base } else { 1e-6 };
    let usual_length = match rate.is_finite() && rate > 0.0 {
        true => (1.0 / rate / time_base).round().max(1.0) as i64,
        false => 0, // until the first packet was read
    };
    let info =
        VideoInfo { stream: index, codec, orientation, time_base, usual_length, first_pts: 0, end_pts: None };
    Ok(VideoFile {
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
    })
}

/// Whether the container itself says all that is needed to decode its video streams: true for most mp4 files.
fn is_described(input: &ff::format::context::Input) -> bool {
    let videos = input.streams().filter(|stream| stream.parameters().medium() == ff::media::Type::Video);
    let mut lacking = videos.filter(|stream| {
        // SAFETY: plain fields of a valid stream.
        let (delay_is_known, size, headers, duration) = unsafe {
            let parameters = (*stream.as_ptr()).codecpar;
            let h264_or_hevc = matches!(
                (*parameters).codec_id,
                ffi::AVCodecID::AV_CODEC_ID_H264 | ffi::AVCodecID::AV_CODEC_ID_HEVC
            );
            (h264_or_hevc, (*parameters).width, (*parameters).extradata_size, (*stream.as_ptr()).duration)
        };
        !(delay_is_known && size > 0 && headers > 0 && duration > 0)
    });
    input.format().name().split(',').any(|name| name == "mp4") && lacking.next().is_none()
}

/// Reads and decodes the beginning of the file, to find out what the container does not say.
fn describe(input: &mut ff::format::context::Input) -> Result<(), String> {
    // SAFETY: one dictionary per stream that exists now, freed afterwards.
    let code = unsafe {
        let limit = CString::new(MAX_PIXELS.to_string()).expect("digits");
        let mut options = vec![ptr::null_mut(); input.nb_streams() as usize];
        for entry in &mut options {
            ffi::av_dict_set(entry, c"max_pixels".as_ptr(), limit.as_ptr(), 0);
        }
        let code = ffi::avformat_find_stream_info(input.as_mut_ptr(), options.as_mut_ptr());
        options.iter_mut().for_each(|entry| ffi::av_dict_free(entry));
        code
    };
    if code < 0 {
        return Err(format!("cannot be read as a video: {}", reason(ff::Error::from(code))));
    }
    Ok(())
}

fn matrix(bytes: &[u8]) -> Option<[i32; 9]> {
    let numbers = bytes.get(..36)?.chunks_exact(4);
    let numbers: Vec<i32> = numbers.map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect();
    numbers.try_into().ok()
}

/// The display matrix that belongs to the whole stream.
fn stream_matrix(stream: &ff::Stream) -> Option<[i32; 9]> {
    let wanted = ffi::AVPacketSideDataType::AV_PKT_DATA_DISPLAYMATRIX;
    // SAFETY: entries of the iterator point into the stream.
    let mut found = stream.side_data().filter(|data| unsafe { (*data.as_ptr()).type_ } == wanted);
    found.next().and_then(|data| matrix(data.data()))
}

/// The display matrix of one frame: from the bit stream, and in newer FFmpeg also that of its stream.
fn frame_matrix(frame: &ff::frame::Video) -> Option<[i32; 9]> {
    // SAFETY: the data, if any, belongs to the frame and is copied at once.
    unsafe {
        let kind = ffi::AVFrameSideDataType::AV_FRAME_DATA_DISPLAYMATRIX;
        let data = ffi::av_frame_get_side_data(frame.as_ptr(), kind).as_ref()?;
        matrix(std::slice::from_raw_parts(data.data, data.size as usize))
    }
}

/// libav's reason for an error: its own words from the log where it gave any, or else the general text.
fn reason(error: ff::Error) -> String {
    log::take().unwrap_or_else(|| {
        let mut text = [0 as c_char; ffi::AV_ERROR_MAX_STRING_SIZE];
        // SAFETY: av_strerror writes at most the given length, with a zero at the end.
        let text = unsafe {
            ffi::av_strerror(c_int::from(error), text.as_mut_ptr(), text.len());
            CStr::from_ptr(text.as_ptr())
        };
        text.to_string_lossy().into_owned()
    })
}

/// Keeps libav from writing to stderr; its last complaint goes into our error instead.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(log::install);
    log::take();
}

/// The type of a variable argument list differs between machines; elsewhere only the general text is given.
#[cfg(target_arch = "x86_64")]
mod log {
    use super::*;
    use std::cell::RefCell;

    thread_local!(static LAST: RefCell<Option<String>> = const { RefCell::new(None) });

    pub fn install() {
        // SAFETY: `keep` has the signature that libav calls.
        unsafe { ffi::av_log_set_callback(Some(keep)) }
    }

    pub fn take() -> Option<String> {
        LAST.with(|last| last.borrow_mut().take())
    }

    unsafe extern "C" fn keep(
        context: *mut std::ffi::c_void,
        level: c_int,
        format: *const c_char,
        arguments: *mut ffi::__va_list_tag,
    ) {
        if level & 0xff > ffi::AV_LOG_ERROR {
            return;
        }
        let (mut line, mut prefix) = ([0 as c_char; 512], 0);
        // SAFETY: libav hands over its own arguments, and writes at most the given length with a zero at the end.
        let line = unsafe {
            let length = line.len() as c_int;
            ffi::av_log_format_line(
                context,
                level,
                format,
                arguments,
                line.as_mut_ptr(),
                length,
                &mut prefix,
            );
            CStr::from_ptr(line.as_ptr()).to_string_lossy()
        };
        let line = line.trim();
        let line = line.trim_end_matches('.');
        if !line.is_empty() {
            let _ = LAST.try_with(|last| *last.borrow_mut() = Some(line.to_string()));
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod log {
    pub fn install() {
        super::ff::log::set_level(super::ff::log::Level::Quiet);
    }

    pub fn take() -> Option<String> {
        None
    }
}
