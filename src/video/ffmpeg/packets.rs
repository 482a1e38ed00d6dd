//! Packets read ahead of the decoder, and what they say about the frames to come.
//!
//! Timestamps tell which frame is shown when before anything is decoded, so that frames which are neither wanted nor
//! needed for others are not decoded at all.

use std::collections::{BTreeSet, VecDeque};

use ffmpeg_next::{self as ff, ffi};

/// No codec stores a frame after more than 16 that are shown later, each perhaps in two packets.
const MOST_REORDERED: usize = 32;

/// Packets of one stream between the file and the decoder.
pub(super) struct Packets {
    queue: VecDeque<ff::Packet>,
    /// Timestamps of frames that were read of and did not come out of the decoder yet.
    coming: BTreeSet<i64>,
    last_dts: Option<i64>,
    stamped: bool,
    ended: bool,
}

impl Packets {
    /// None yet, at a place from which the file is read on.
    pub fn new() -> Packets {
        Packets {
            queue: VecDeque::new(),
            coming: BTreeSet::new(),
            last_dts: None,
            stamped: true,
            ended: false,
        }
    }

    /// Takes the next packet of the file.
    pub fn push(&mut self, packet: ff::Packet) {
        match packet.pts() {
            None => self.stamped = false,
            Some(_) if is_discarded(&packet) => {}
            Some(pts) => {
                self.coming.insert(pts);
            }
        }
        self.last_dts = packet.dts().or(self.last_dts);
        self.queue.push_back(packet);
    }

    /// There are no more packets in the file.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Whether there are no more to read.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Whether all packets so far say when their frames are shown.
    pub fn stamped(&self) -> bool {
        self.stamped
    }

    /// The next packet for the decoder.
    pub fn front(&self) -> Option<&ff::Packet> {
        self.queue.front()
    }

    /// Takes the next packet for the decoder.
    pub fn pop(&mut self) -> Option<ff::Packet> {
        self.queue.pop_front()
    }

    /// A frame came out of the decoder; those before it will not.
    pub fn came_out(&mut self, pts: i64) {
        self.coming = self.coming.split_off(&pts.saturating_add(1));
    }

    /// Whether a frame is coming that is shown after `from`, at `to` or before.
    pub fn has_between(&self, from: i64, to: i64) -> bool {
        from < to && self.coming.range(from + 1..=to).next().is_some()
    }

    /// The first frame coming that is shown after `pts`.
    pub fn next_after(&self, pts: i64) -> Option<i64> {
        self.coming.range(pts.saturating_add(1)..).next().copied()
    }

    /// Whether all frames shown at `pts` or before were read of.
    pub fn complete_to(&self, pts: i64) -> bool {
        self.ended
            || self.last_dts.is_some_and(|dts| dts > pts)
            || self.coming.range(pts.saturating_add(1)..).nth(MOST_REORDERED).is_some()
    }
}

/// Whether the container says that the frame is needed for others but not shown.
pub(super) fn is_discarded(packet: &ff::Packet) -> bool {
    use ff::packet::Ref;
    // SAFETY: a plain field of a valid packet.
    unsafe { (*packet.as_ptr()).flags & ffi::AV_PKT_FLAG_DISCARD != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(dts: i64, pts: i64) -> ff::Packet {
        let mut packet = ff::Packet::empty();
        packet.set_dts(Some(dts));
        packet.set_pts(Some(pts));
        packet
    }

    #[test]
    fn frames_out_of_order_are_announced_in_order_of_display() {
        let mut packets = Packets::new();
        // I P B B P
        for (dts, pts) in [(-2, 0), (-1, 3), (0, 1)] {
            packets.push(packet(dts, pts));
        }
        assert!(packets.has_between(0, 1) && !packets.has_between(1, 2) && packets.has_between(1, 3));
        // A frame shown at 1 may still follow, by these decoding timestamps; one shown at -1 may not.
        assert!(!packets.complete_to(1) && packets.complete_to(-1));
        packets.push(packet(1, 2));
        packets.push(packet(2, 6));
        assert!(packets.complete_to(1) && !packets.complete_to(2));
        assert_eq!((packets.next_after(1), packets.next_after(6)), (Some(2), None));
        packets.came_out(2);
        assert_eq!((packets.next_after(0), packets.pop().and_then(|p| p.pts())), (Some(3), Some(0)));
        packets.end();
        assert!(packets.complete_to(i64::MAX) && !packets.has_between(6, i64::MAX));
    }

    #[test]
    fn without_decoding_timestamps_the_depth_of_reordering_decides() {
        let mut packets = Packets::new();
        for pts in 0..=33 {
            assert!(!packets.complete_to(0), "{pts}");
            let mut packet = packet(0, pts);
            packet.set_dts(None);
            packets.push(packet);
        }
        assert!(packets.complete_to(0) && packets.stamped());
        packets.push(ff::Packet::empty());
        assert!(!packets.stamped());
    }
}
