//! Opens a file up to the decoder, and reads what the container says about the stream.

use std::ffi::{CStr, CString, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use ffmpeg_next::{self as ff, ffi};

use super::MAX_PIXELS;
use super::log::reason;
use crate::video::{Orientation, VideoInfo};

/// A file whose packets can be read and decoded.
pub(super) struct Opened {
    pub input: ff::format::context::Input,
    pub decoder: ff::decoder::Video,
    /// Start and end are still unset, and the usual length is 0 if the container does not state it.
    pub info: VideoInfo,
}

/// Opens a file up to the decoder of its stream `wanted`, or of the one that players choose; the error is the problem
/// without the path.
pub(super) fn open(path: &Path, wanted: Option<usize>) -> Result<Opened, String> {
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
    Ok(Opened { input, decoder, info })
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
pub(super) fn frame_matrix(frame: &ff::frame::Video) -> Option<[i32; 9]> {
    // SAFETY: the data, if any, belongs to the frame and is copied at once.
    unsafe {
        let kind = ffi::AVFrameSideDataType::AV_FRAME_DATA_DISPLAYMATRIX;
        let data = ffi::av_frame_get_side_data(frame.as_ptr(), kind).as_ref()?;
        matrix(std::slice::from_raw_parts(data.data, data.size as usize))
    }
}
