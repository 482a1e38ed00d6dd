//! Ways to the frame shown at a given time: jump to a key frame before it, then decode what it needs.

use std::ffi::c_int;

use ffmpeg_next::ffi;

use super::packets::Packets;
use super::{Ahead, Jumps, MAX_ERRORS, VideoFile};
use crate::error::Result;
use crate::video::VideoSource;

impl VideoFile {
    /// Makes the frame shown at `pts` the current one, as [`seek`](crate::video::VideoSource::seek) says.
    pub(super) fn go_to(&mut self, pts: i64) -> Result<()> {
        let start = self.current.as_ref().map(|shot| shot.pts);
        let mut landed = None;
        if start.is_none_or(|at| at > pts || self.worth_a_jump(at, pts)) {
            landed = self.land(pts)?;
        }
        if self.packets.stamped() && !self.damaged {
            if self.aim(pts) {
                return Ok(());
            }
            // Once more, decoding all, from one key frame earlier: in an open group of pictures, decoders hold back what
            // follows soon after the key frame at which they started.
            self.current = None;
            landed = self.land(pts)?;
            if let Some(key) = landed {
                landed = self.land(key.saturating_sub(1))?;
            }
        }
        self.walk(pts, landed)
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
    /// only after `pts` there or not at all, from further and further back.
    fn walk(&mut self, pts: i64, mut landed: Option<i64>) -> Result<()> {
        let mut back = 1;
        while self.current.is_none() {
            let found = self.advance();
            match landed {
                Some(key) if self.current.as_ref().is_none_or(|shot| shot.pts > pts) => {
                    self.current = None;
                    landed = self.land(key.saturating_sub(back))?;
                    back = back.saturating_mul(4).max((1.0 / self.info.time_base) as i64);
                }
                _ => {
                    found?;
                    break;
                }
            }
        }
        self.look_ahead();
        while matches!(&self.ahead, Ahead::Frame(next) if next.pts <= pts) {
            self.advance()?;
        }
        Ok(())
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
}
