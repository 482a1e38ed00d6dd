//! From a decoded picture to RGB: colour matrix, range, depth, transparency and pixel shape.

use std::ffi::{CStr, c_int};
use std::ptr;

use ffmpeg_next as ff;
use ffmpeg_next::ffi;
use image::RgbImage;

use super::MAX_PIXELS;

/// Turns decoded pictures of one kind into RGB.
pub(super) struct Converter {
    context: *mut ffi::SwsContext,
    layout: Layout,
}

/// One of the two fields of an interlaced frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Field {
    /// Rows 0, 2, 4...
    Top,
    /// Rows 1, 3, 5...
    Bottom,
}

impl Field {
    /// The one that is shown first.
    pub fn first(top_first: bool) -> Field {
        if top_first { Field::Top } else { Field::Bottom }
    }
}

/// What a [`Converter`] was made for.
#[derive(Clone, Copy, PartialEq)]
struct Layout {
    from: (c_int, c_int, c_int),
    to: (c_int, c_int),
    alpha: bool,
    matrix: c_int,
    full_range: bool,
    /// Of heights that can be halved only.
    field: Option<Field>,
}

impl Layout {
    fn of(frame: &ff::frame::Video, aspect: f64, field: Option<Field>) -> Result<Layout, String> {
        // SAFETY: the frame is valid. Enumerations are read as numbers, since a file may hold any.
        let (format, width, height, space, range) = unsafe {
            let f = frame.as_ptr();
            let space = ptr::addr_of!((*f).colorspace).cast::<c_int>().read();
            let range = ptr::addr_of!((*f).color_range).cast::<c_int>().read();
            ((*f).format, (*f).width, (*f).height, space, range)
        };
        if !(0..ffi::AVPixelFormat::AV_PIX_FMT_NB as c_int).contains(&format) || width < 1 || height < 1 {
            return Err(format!("pixel format {format} of {width}x{height} is not known"));
        }
        // SAFETY: the format is in range, and the table has an entry or null for each.
        let (flags, name, chroma_rows) = unsafe {
            let kind = std::mem::transmute::<c_int, ffi::AVPixelFormat>(format);
            let Some(description) = ffi::av_pix_fmt_desc_get(kind).as_ref() else {
                return Err(format!("pixel format {format} is not known"));
            };
            let chroma_rows = 1 << description.log2_chroma_h;
            (description.flags, CStr::from_ptr(description.name).to_bytes(), chroma_rows)
        };
        let square = |side: c_int, factor: f64| (f64::from(side) * factor).round() as c_int;
        let to = match aspect {
            // Shapes nearer to square than one can see, and those that no camera makes, are left alone.
            a if (1.01..=8.0).contains(&a) => (square(width, a), height),
            a if (0.125..=0.99).contains(&a) => (width, square(height, 1.0 / a)),
            _ => (width, height),
        };
        if [(width, height), to].iter().any(|&(w, h)| i64::from(w) * i64::from(h) > i64::from(MAX_PIXELS)) {
            return Err(format!("{width}x{height} is larger than {MAX_PIXELS} pixels"));
        }
        let matrix = match space {
            1 => ffi::SWS_CS_ITU709,
            4 => ffi::SWS_CS_FCC,
            7 => ffi::SWS_CS_SMPTE240M,
            9 | 10 => ffi::SWS_CS_BT2020,
            // Stated, or unstated: as in the ffmpeg program, whatever the size.
            _ => ffi::SWS_CS_ITU601,
        };
        let alpha = flags & u64::from(ffi::AV_PIX_FMT_FLAG_ALPHA as u32) != 0;
        let full_range = range == ffi::AVColorRange::AVCOL_RANGE_JPEG as c_int || name.starts_with(b"yuvj");
        // Each field needs whole rows of every plane; a palette is no rows.
        let palette = flags & u64::from(ffi::AV_PIX_FMT_FLAG_PAL as u32) != 0;
        let field = field.filter(|_| !palette && height % (2 * chroma_rows) == 0);
        let rows = if field.is_some() { height / 2 } else { height };
        Ok(Layout { from: (format, width, rows), to, alpha, matrix, full_range, field })
    }
}

impl Converter {
    fn new(layout: Layout) -> Result<Converter, String> {
        use ffi::AVPixelFormat::{AV_PIX_FMT_RGB24, AV_PIX_FMT_RGBA};
        let (format, width, height) = layout.from;
        let target = if layout.alpha { AV_PIX_FMT_RGBA } else { AV_PIX_FMT_RGB24 };
        // Without another size these are the settings, and the pixels, of the ffmpeg program.
        let same_size = layout.to == (width, height);
        let precise = ffi::SWS_ACCURATE_RND | ffi::SWS_FULL_CHR_H_INT;
        let flags = ffi::SWS_BICUBIC | if same_size { 0 } else { precise };
        // SAFETY: `Layout::of` checked the format; null filters are the default ones.
        unsafe {
            let from = std::mem::transmute::<c_int, ffi::AVPixelFormat>(format);
            let (to_width, to_height) = layout.to;
            let (none, defaults) = (ptr::null_mut(), ptr::null());
            let context = ffi::sws_getContext(
                width, height, from, to_width, to_height, target, flags, none, none, defaults,
            );
            if context.is_null() {
                return Err(format!("no conversion from {width}x{height} of pixel format {format}"));
            }
            // Refused for formats that are RGB already, which need none of it.
            let table = ffi::sws_getCoefficients(layout.matrix);
            let one = 1 << 16;
            ffi::sws_setColorspaceDetails(context, table, layout.full_range.into(), table, 1, 0, one, one);
            Ok(Converter { context, layout })
        }
    }

    /// The frame in RGB, not yet turned; `cache` keeps the converter for the next frame.
    pub fn convert(
        cache: &mut Option<Self>,
        frame: &ff::frame::Video,
        aspect: f64,
        field: Option<Field>,
    ) -> Result<RgbImage, String> {
        let layout = Layout::of(frame, aspect, field)?;
        let converter = match cache.take() {
            Some(converter) if converter.layout == layout => cache.insert(converter),
            _ => cache.insert(Converter::new(layout)?),
        };
        let kind = if layout.alpha { ff::format::Pixel::RGBA } else { ff::format::Pixel::RGB24 };
        let (width, height) = (layout.to.0 as u32, layout.to.1 as u32);
        // libswscale may write past the end of a row, so the target is a padded frame of its own.
        let mut out = ff::frame::Video::new(kind, width, height);
        // SAFETY: both frames have the sizes and formats that the context was made for.
        let rows = unsafe {
            let (from, to) = (frame.as_ptr(), out.as_mut_ptr());
            if (*to).data[0].is_null() {
                return Err(format!("no memory for {width}x{height}"));
            }
            let (mut data, mut strides) = ((*from).data, (*from).linesize);
            if let Some(field) = layout.field {
                // Every second row of each plane: twice the stride, from the first row or the second.
                for (data, stride) in data.iter_mut().zip(&mut strides).filter(|(data, _)| !data.is_null()) {
                    if field == Field::Bottom {
                        *data = data.offset(*stride as isize);
                    }
                    *stride *= 2;
                }
            }
            let (data, strides) = (data.as_ptr().cast(), strides.as_ptr());
            let (to_data, to_strides) = ((*to).data.as_ptr(), (*to).linesize.as_ptr());
            ffi::sws_scale(converter.context, data, strides, 0, layout.from.2, to_data, to_strides)
        };
        if rows != layout.to.1 {
            return Err(format!("only {rows} of {height} rows were converted"));
        }
        let mut pixels = Vec::with_capacity(width as usize * height as usize * 3);
        for row in out.data(0).chunks(out.stride(0)).take(height as usize) {
            if layout.alpha {
                let over_black = |v: u8, alpha: u8| ((u16::from(v) * u16::from(alpha) + 127) / 255) as u8;
                let row = row[..4 * width as usize].chunks_exact(4);
                pixels.extend(row.flat_map(|p| [p[0], p[1], p[2]].map(|v| over_black(v, p[3]))));
            } else {
                pixels.extend_from_slice(&row[..3 * width as usize]);
            }
        }
        RgbImage::from_raw(width, height, pixels).ok_or_else(|| "rows are missing".into())
    }
}

impl Drop for Converter {
    fn drop(&mut self) {
        // SAFETY: made by sws_getContext and freed once.
        unsafe { ffi::sws_freeContext(self.context) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of one colour, given as luma and chroma.
    fn yuv(width: u32, height: u32, value: [u8; 3]) -> ff::frame::Video {
        let mut frame = ff::frame::Video::new(ff::format::Pixel::YUV420P, width, height);
        for (plane, value) in value.into_iter().enumerate() {
            frame.data_mut(plane).fill(value);
        }
        frame
    }

    #[test]
    fn matrix_and_range_are_those_stated_or_else_of_bt601_and_limited() {
        use ff::color::{Range, Space};
        let green = |width, height, space, range| {
            // What BT.601, limited range, makes of pure green.
            let mut frame = yuv(width, height, [145, 54, 34]);
            frame.set_color_space(space);
            frame.set_color_range(range);
            let rgb = Converter::convert(&mut None, &frame, 1.0, None).unwrap();
            rgb.get_pixel(5, 5).0
        };
        let near = |a: [u8; 3], b: [u8; 3]| a.iter().zip(b).all(|(a, b)| a.abs_diff(b) <= 3);
        let (unset, limited) = (Space::Unspecified, Range::MPEG);
        for (seen, expected) in [
            (green(64, 48, Space::SMPTE170M, limited), [0, 255, 0]),
            (green(64, 48, unset, Range::Unspecified), [0, 255, 0]),
            (green(64, 48, Space::BT709, limited), [0, 216, 0]),
            (green(1280, 720, unset, limited), [0, 255, 0]),
            (green(64, 48, Space::SMPTE170M, Range::JPEG), [13, 238, 14]),
        ] {
            assert!(near(seen, expected), "{seen:?}, expected {expected:?}");
        }
    }

    #[test]
    fn pixels_become_square_and_monsters_are_refused() {
        let frame = yuv(63, 41, [128; 3]);
        let size = |aspect| Converter::convert(&mut None, &frame, aspect, None).unwrap().dimensions();
        assert_eq!([1.0, f64::NAN, 0.0, 1e9, 224.0 / 225.0].map(size), [(63, 41); 5]);
        assert_eq!((size(2.0), size(0.5)), ((126, 41), (63, 82)));
        let mut wide = yuv(16, 16, [128; 3]);
        wide.set_width(100_000);
        wide.set_height(100_000);
        let refused = Converter::convert(&mut None, &wide, 1.0, None).unwrap_err();
        assert!(refused.contains("larger than"), "{refused}");
    }

    #[test]
    fn a_field_is_every_second_row_at_full_height() {
        let mut frame = yuv(64, 48, [60, 128, 128]);
        let stride = frame.stride(0);
        frame.data_mut(0).chunks_mut(stride).skip(1).step_by(2).for_each(|row| row.fill(200));
        let shown = |field| Converter::convert(&mut None, &frame, 1.0, field).unwrap();
        for (field, grey) in [(Field::Top, 51), (Field::Bottom, 214)] {
            let picture = shown(Some(field));
            assert_eq!(picture.dimensions(), (64, 48));
            assert!(
                picture.iter().all(|v| v.abs_diff(grey) <= 2),
                "{field:?}: {:?}",
                picture.get_pixel(9, 9)
            );
        }
        assert_ne!(shown(None).get_pixel(9, 8), shown(None).get_pixel(9, 9));
    }
}
