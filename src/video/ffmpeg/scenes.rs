//! Finds cuts with libavfilter's `scdet`, on a small grey copy of every frame.

use std::ffi::c_int;

use ffmpeg_next as ff;
use ffmpeg_next::ffi;

/// Width of the copy; a cut changes most of a picture, whatever its size.
const WIDTH: u32 = 320;

/// How much of the range of grey a picture differs from the one before, over what the one before did, in percent: the
/// default of `scdet`.
const THRESHOLD: u32 = 10;

/// Sees frame after frame and tells where a new shot begins.
pub(super) struct CutFinder {
    graph: ff::filter::Graph,
    /// Pixel format, width and height of the frames.
    layout: (c_int, u32, u32),
}

impl CutFinder {
    fn new(layout: (c_int, u32, u32)) -> Result<CutFinder, ff::Error> {
        let (format, width, height) = layout;
        let small_width = width.min(WIDTH);
        let small_height = (u64::from(height) * u64::from(small_width) / u64::from(width)).clamp(1, 4096);
        let find = |name: &str| ff::filter::find(name).ok_or(ff::Error::FilterNotFound);
        let mut graph = ff::filter::Graph::new();
        let size = format!("video_size={width}x{height}:pix_fmt={format}:time_base=1/1000");
        graph.add(&find("buffer")?, "in", &size)?;
        graph.add(&find("buffersink")?, "out", "")?;
        let filters = format!(
            "scale={small_width}:{small_height}:flags=fast_bilinear,format=gray,scdet=threshold={THRESHOLD}"
        );
        graph.output("in", 0)?.input("out", 0)?.parse(&filters)?;
        graph.validate()?;
        Ok(CutFinder { graph, layout })
    }

    /// Whether a shot begins with this frame, which follows that of the last call; `cache` remembers that one.
    ///
    /// The first frame begins none, nor does one of another size or pixel format than the one before.
    pub fn is_cut(cache: &mut Option<Self>, frame: &ff::frame::Video) -> Result<bool, ff::Error> {
        // SAFETY: a plain field of a valid frame.
        let format = unsafe { (*frame.as_ptr()).format };
        let layout = (format, frame.width(), frame.height());
        let finder = match cache.take() {
            Some(finder) if finder.layout == layout => cache.insert(finder),
            _ => cache.insert(CutFinder::new(layout)?),
        };
        let lost = ff::Error::FilterNotFound;
        let mut source = finder.graph.get("in").ok_or(lost)?;
        // SAFETY: both are valid; the filter makes a reference of its own to the frame.
        let code = unsafe { ffi::av_buffersrc_write_frame(source.as_mut_ptr(), frame.as_ptr()) };
        if code < 0 {
            return Err(ff::Error::from(code));
        }
        let mut sink = finder.graph.get("out").ok_or(lost)?;
        let mut seen = ff::frame::Video::empty();
        sink.sink().frame(&mut seen)?;
        Ok(seen.metadata().get("lavfi.scd.time").is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_where_the_picture_changes_and_not_where_it_moves_or_gets_brighter() {
        // Stripes that move, then lie, in two sizes; (frame number) -> picture.
        let picture = |width: u32, number: usize| {
            let mut frame = ff::frame::Video::new(ff::format::Pixel::GRAY8, width, 90);
            let stride = frame.stride(0);
            for (y, row) in frame.data_mut(0).chunks_mut(stride).enumerate() {
                for (x, v) in row.iter_mut().enumerate() {
                    let place = if number < 10 { x + number } else { y + number };
                    let stripe = if place % 40 < 20 { 60 } else { 160 };
                    *v = stripe + if number < 10 { 2 * number as u8 } else { 70 };
                }
            }
            frame
        };
        for width in [64, 1000] {
            let mut cache = None;
            let cuts: Vec<usize> = (0..20)
                .filter(|&number| CutFinder::is_cut(&mut cache, &picture(width, number)).unwrap())
                .collect();
            assert_eq!(cuts, [10], "width {width}");
        }
        // Another size begins anew instead of failing.
        let mut cache = None;
        for width in [64, 1000, 64] {
            assert!(!CutFinder::is_cut(&mut cache, &picture(width, 1)).unwrap());
        }
    }
}
