//! Decoding, compared with the ffmpeg and ffprobe programs: videos made for this with every trait that files in the
//! wild have, and the real ones.
//!
//! Real videos are in the folder `STRIATE_DATA`, or else `../shared/data`; without it that test says so and passes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use image::RgbImage;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use striate::video::ffmpeg::VideoFile;
use striate::video::{Instant, VideoSource};

/// How the ffmpeg program is to show a video so that its frames can be compared with ours.
#[derive(Clone, Copy, PartialEq)]
enum Reference {
    /// As it does by itself: turned upright, with its default conversion.
    Plain,
    /// Through these filters.
    Through(&'static str),
    /// With transparent parts laid over black.
    OverBlack,
    /// The same timestamps, but pictures of several sizes.
    TimesOnly,
    /// No reference: the program shows frames that cannot be decoded, or leaves out some that can.
    None,
}

use Reference::{OverBlack, Plain, Through, TimesOnly};

/// A video made by the ffmpeg program.
struct Case {
    /// Name of the file; the same as of an earlier case if that is the input.
    file: &'static str,
    /// Arguments before the name of the file, separated by blanks; `@` is the test picture, `<name` an earlier file.
    made_by: &'static str,
    reference: Reference,
}

const fn case(file: &'static str, made_by: &'static str, reference: Reference) -> Case {
    Case { file, made_by, reference }
}

const X264: &str = "-c:v libx264 -preset veryfast -g 12";

/// In an order in which inputs come before what is made of them; `H264` stands for [`X264`].
const CASES: &[Case] = &[
    // Order of frames and jumps.
    case("b_frames.mp4", "@ -t 2 H264 -bf 3", Plain),
    case("b_pyramid.mkv", "@ -t 2 H264 -bf 5 -b-pyramid normal -refs 4", Plain),
    case("one_key_frame.mp4", "@ -t 2 H264 -g 999", Plain),
    case("open_gop.mp4", "@ -t 2 H264 -bf 3 -x264-params open-gop=1:scenecut=0", Plain),
    case("open_gop.ts", "<open_gop.mp4 -c copy", Plain),
    case("open_gop.mkv", "<open_gop.mp4 -c copy", Plain),
    case("intra_refresh.mp4", "@ -t 2 H264 -bf 0 -x264-params intra-refresh=1", Plain),
    case("no_delay_stated.mp4", "@ -t 2 H264 -bf 2 -bsf:v h264_metadata=level=3", Plain),
    case("hevc.mp4", "@ -t 1 -c:v libx265 -preset ultrafast -x265-params keyint=10:log-level=none", Plain),
    case(
        "hevc_open_gop.mp4",
        "@ -t 1 -c:v libx265 -preset ultrafast -x265-params keyint=10:open-gop=1:bframes=4:log-level=none",
        Plain,
    ),
    case("hevc_open_gop.ts", "<hevc_open_gop.mp4 -c copy", Plain),
    case("mpeg2.mpg", "@ -t 1 -c:v mpeg2video -bf 2 -g 9 -q 3", Plain),
    case("mpeg4.mp4", "@ -t 1 -c:v mpeg4 -bf 2 -g 9 -q 3", Plain),
    case("vp8.webm", "@ -t 1 -c:v libvpx -deadline realtime -auto-alt-ref 1 -g 9 -b:v 300k", Plain),
    case("vp9.webm", "@ -t 1 -c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 9", Plain),
    case(
        "vp9_alt_ref.webm",
        "@ -t 1 -c:v libvpx-vp9 -cpu-used 8 -auto-alt-ref 1 -lag-in-frames 10 -g 20",
        Plain,
    ),
    case("av1.mkv", "@ -t 1 -c:v libsvtav1 -preset 12 -g 9", Plain),
    // Containers, with and without an index, timestamps and durations.
    case("stream.h264", "<b_frames.mp4 -c copy -bsf:v h264_mp4toannexb", Plain),
    case("stream.hevc", "<hevc.mp4 -c copy -bsf:v hevc_mp4toannexb", Plain),
    case("b_frames.ts", "<b_frames.mp4 -c copy", Plain),
    case("b_frames.m2ts", "<b_frames.mp4 -c copy", Plain),
    case("b_frames.flv", "<b_frames.mp4 -c copy", Plain),
    case("b_frames.mov", "<b_frames.mp4 -c copy", Plain),
    case("b_frames.avi", "<b_frames.mp4 -c copy -bsf:v h264_mp4toannexb", Plain),
    case("b_frames.nut", "<b_frames.mp4 -c copy", Plain),
    case("mpeg4_b_frames.avi", "@ -t 1 -c:v mpeg4 -bf 2 -g 9 -q 3", Plain),
    case("live.mkv", "<b_frames.mp4 -c copy -f matroska -live 1", Plain),
    case("fragments.mp4", "<b_frames.mp4 -c copy -movflags frag_keyframe+empty_moov", Plain),
    case("wmv2.wmv", "@ -t 1 -c:v wmv2 -q 3", Plain),
    case("theora.ogv", "@ -t 1 -c:v libtheora -g 9 -q 6", Plain),
    case("mjpeg.avi", "@ -t 1 -c:v mjpeg -q 3", Plain),
    case("stream.mjpeg", "<mjpeg.avi -c copy -f mjpeg", Plain),
    case(
        "h263.3gp",
        "SOFT -t 1 -s 176x144 -r 25 -c:v h263 -q 3",
        Through("scale=192:144:flags=bicubic+accurate_rnd+full_chroma_int"),
    ),
    case("raw.y4m", "@ -t 1 -pix_fmt yuv420p", Plain),
    case(
        "mpeg2.mxf",
        "SOFT -t 1 -s 720x576 -c:v mpeg2video -pix_fmt yuv422p -bf 2 -g 9 -q 3",
        Through("scale=768:576:flags=bicubic+accurate_rnd+full_chroma_int"),
    ),
    case("one_frame.mp4", "@ -frames:v 1 H264", Plain),
    case("animated.gif", "@ -t 1 -vf fps=10", Plain),
    // Times.
    case("variable.mp4", "@ -t 3 -vf select=not(mod(n\\,3))+lt(n\\,9) -vsync vfr H264 -bf 2", Plain),
    case("gap.mp4", "@ -t 2 -vf setpts=PTS+gt(N\\,20)*30/TB -vsync vfr H264 -bf 2", Plain),
    case("gap.mkv", "<gap.mp4 -c copy", Plain),
    case("late_start.mkv", "<b_frames.mp4 -c copy -output_ts_offset 200000", Plain),
    case("late_start.ts", "<b_frames.mp4 -c copy -output_ts_offset 70000", Plain),
    case("edit_list.mp4", "-ss 0.5 <b_frames.mp4 -c copy", Plain),
    case(
        "starts_before_zero.mov",
        "@ -t 1 -vf setpts=PTS-10/25/TB -vsync passthrough H264 -bf 0 -avoid_negative_ts disabled",
        Plain,
    ),
    case("negative_offsets.mp4", "<b_frames.mp4 -c copy -movflags negative_cts_offsets", Plain),
    case("slow.mp4", "@ -t 3 -vf fps=1/2 -r 1/2 H264", Plain),
    // Streams.
    case("two_streams.mkv", "<b_frames.mp4 <hevc.mp4 -map 0 -map 1 -c copy", Plain),
    case("sound_first.mp4", "-f lavfi -i sine=d=2 <b_frames.mp4 -c:v copy -c:a aac", Plain),
    // Colours and depth.
    case(
        "601_limited.mp4",
        "@ -t 0.4 -vf scale=out_color_matrix=bt601:out_range=tv -colorspace smpte170m -color_range tv H264",
        Plain,
    ),
    case(
        "601_full.mp4",
        "@ -t 0.4 -vf scale=out_color_matrix=bt601:out_range=pc -colorspace smpte170m -color_range pc H264",
        Plain,
    ),
    case(
        "709_limited.mp4",
        "@ -t 0.4 -vf scale=out_color_matrix=bt709:out_range=tv -colorspace bt709 -color_range tv H264",
        Plain,
    ),
    case(
        "709_full.mp4",
        "@ -t 0.4 -vf scale=out_color_matrix=bt709:out_range=pc -colorspace bt709 -color_range pc H264",
        Plain,
    ),
    case(
        "2020_limited.mp4",
        "@ -t 0.4 -vf scale=out_color_matrix=bt2020:out_range=tv -colorspace bt2020nc -color_range tv H264",
        Plain,
    ),
    case(
        "2020_full.mp4",
        "@ -t 0.4 -vf scale=out_color_matrix=bt2020:out_range=pc -colorspace bt2020nc -color_range pc H264",
        Plain,
    ),
    case("10_bit.mp4", "@ -t 0.4 -pix_fmt yuv420p10le H264", Plain),
    case(
        "10_bit_hevc.mp4",
        "@ -t 0.4 -pix_fmt yuv420p10le -c:v libx265 -preset ultrafast -x265-params log-level=none",
        Plain,
    ),
    case(
        "12_bit_vp9.webm",
        "@ -t 0.4 -pix_fmt yuv420p12le -c:v libvpx-vp9 -deadline realtime -cpu-used 8",
        Plain,
    ),
    case("422.mp4", "@ -t 0.4 -pix_fmt yuv422p H264", Plain),
    case("444.mp4", "@ -t 0.4 -pix_fmt yuv444p H264", Plain),
    case("gbr.mkv", "@ -t 0.4 -pix_fmt gbrp -c:v ffv1", Plain),
    case("grey.mkv", "@ -t 0.4 -pix_fmt gray -c:v ffv1", Plain),
    case("prores.mov", "@ -t 0.4 -c:v prores_ks -profile:v 2", Plain),
    // Transparency.
    case(
        "alpha_vp9.webm",
        "TRANSPARENT -t 0.4 -pix_fmt yuva420p -c:v libvpx-vp9 -deadline realtime -cpu-used 8",
        OverBlack,
    ),
    case("alpha_png.mov", "TRANSPARENT -t 0.4 -pix_fmt rgba -c:v png", OverBlack),
    case("alpha_qtrle.mov", "TRANSPARENT -t 0.4 -pix_fmt argb -c:v qtrle", OverBlack),
    case("alpha_ffv1.mkv", "TRANSPARENT -t 0.4 -pix_fmt yuva444p -c:v ffv1", OverBlack),
    // Shape.
    case("odd.mkv", "@ -t 0.4 -vf scale=161:121 -pix_fmt yuv420p -c:v ffv1", Plain),
    case(
        "wide_pixels.mp4",
        "SOFT -t 0.4 -vf setsar=16/11 H264",
        Through("scale=233:120:flags=bicubic+accurate_rnd+full_chroma_int"),
    ),
    case(
        "tall_pixels.mp4",
        "SOFT -t 0.4 -vf setsar=8/9 H264",
        Through("scale=160:135:flags=bicubic+accurate_rnd+full_chroma_int"),
    ),
    case(
        "fields_top.mpg",
        "SOFT -t 0.4 -vf fps=50,interlace=scan=tff -c:v mpeg2video -flags +ildct+ilme -top 1 -q 2",
        Through("field=top,scale=160:120:flags=bicubic+accurate_rnd+full_chroma_int"),
    ),
    case(
        "fields_bottom.mp4",
        "SOFT -t 0.4 -vf fps=50,interlace=scan=bff H264 -x264-params bff=1",
        Through("field=bottom,scale=160:120:flags=bicubic+accurate_rnd+full_chroma_int"),
    ),
    case("grows_a.ts", "@ -t 0.6 H264", Plain),
    case("grows_b.ts", "@ -t 0.6 -vf scale=320:240 H264 -output_ts_offset 0.8", Plain),
    case("grows.ts", "JOINED grows_a.ts grows_b.ts", TimesOnly),
    // Turned and mirrored; the matrix of the track is written into the file afterwards.
    case("turned_+0+0.mp4", "TURNED b_frames.mp4 1 0 0 1", Plain),
    case("turned_90.mp4", "TURNED b_frames.mp4 0 1 -1 0", Plain),
    case("turned_180.mp4", "TURNED b_frames.mp4 -1 0 0 -1", Plain),
    case("turned_270.mp4", "TURNED b_frames.mp4 0 -1 1 0", Plain),
    case("mirrored.mp4", "TURNED b_frames.mp4 -1 0 0 1", Plain),
    case("mirrored_90.mp4", "TURNED b_frames.mp4 0 -1 -1 0", Plain),
    case("mirrored_180.mp4", "TURNED b_frames.mp4 1 0 0 -1", Plain),
    case("mirrored_270.mp4", "TURNED b_frames.mp4 0 1 1 0", Plain),
    // Damage: what can be decoded is shown, and nothing else happens.
    case("hole.mp4", "HOLED b_frames.mp4", Reference::None),
    case("hole.ts", "HOLED b_frames.ts", Reference::None),
    case("cut.mkv", "CUT b_pyramid.mkv", Reference::None),
    case("index_first.mp4", "<hevc.mp4 -c copy -movflags faststart", Plain),
    case("zero_tail.mp4", "ZEROED index_first.mp4", Reference::None),
];

const PICTURE: &str = "-f lavfi -i testsrc2=size=160x120:rate=25";
const SOFT: &str = "-f lavfi -i testsrc2=size=160x120:rate=25,gblur=3";
const TRANSPARENT: &str = "-f lavfi -i testsrc2=size=160x120:rate=25,format=rgba,geq=r=r(X\\,Y):g=g(X\\,Y):b=b(X\\,Y):a=mod(X*2\\,256)";

/// Makes the file of a case below `folder`.
fn make(case: &Case, folder: &Path) -> Result<PathBuf, String> {
    let path = folder.join(case.file);
    let read = |name: &str| fs::read(folder.join(name)).map_err(|e| format!("{name}: {e}"));
    let words: Vec<&str> = case.made_by.split(' ').collect();
    let bytes = match words[0] {
        "JOINED" => [read(words[1])?, read(words[2])?].concat(),
        "TURNED" => {
            let mut bytes = read(words[1])?;
            let header = bytes.windows(4).position(|four| four == b"tkhd").ok_or("no tkhd")?;
            // Version and flags, times, number, duration, layer, group, volume: the matrix follows.
            for (place, word) in [0, 1, 3, 4].into_iter().zip(&words[2..]) {
                let value = word.parse::<i32>().unwrap() << 16;
                bytes[header + 4 + 40 + 4 * place..][..4].copy_from_slice(&value.to_be_bytes());
            }
            bytes
        }
        "HOLED" => {
            let mut bytes = read(words[1])?;
            let (start, end) = (bytes.len() * 4 / 10, bytes.len() * 5 / 10);
            bytes[start..end].fill(0);
            bytes
        }
        "ZEROED" => {
            let mut bytes = read(words[1])?;
            let start = bytes.len() * 5 / 10;
            bytes[start..].fill(0);
            bytes
        }
        "CUT" => {
            let mut bytes = read(words[1])?;
            bytes.truncate(bytes.len() * 6 / 10);
            bytes
        }
        _ => {
            let mut command = Command::new("ffmpeg");
            command.args(["-nostdin", "-v", "error"]);
            for word in words {
                match word {
                    "@" => command.args(PICTURE.split(' ')),
                    "SOFT" => command.args(SOFT.split(' ')),
                    "TRANSPARENT" => command.args(TRANSPARENT.split(' ')),
                    "H264" => command.args(X264.split(' ')),
                    _ => match word.strip_prefix('<') {
                        Some(name) => command.arg("-i").arg(folder.join(name)),
                        None => command.arg(word),
                    },
                };
            }
            let output = command.arg(&path).output().map_err(|e| format!("ffmpeg: {e}"))?;
            if !output.status.success() {
                return Err(String::from_utf8_lossy(&output.stderr).into_owned());
            }
            return Ok(path);
        }
    };
    fs::write(&path, bytes).map_err(|e| e.to_string())?;
    Ok(path)
}

/// All frames by decoding from the start, and the pictures of at most 60, evenly spread from the first.
struct Sequence {
    instants: Vec<Instant>,
    pictures: Vec<RgbImage>,
    /// There is a picture of every frame whose number is a multiple of this.
    step: usize,
}

fn sequential(path: &Path) -> Result<Sequence, String> {
    let mut video = VideoFile::open(path).map_err(|e| e.to_string())?;
    let (mut instants, mut pictures) = (Vec::new(), Vec::new());
    while let Some(at) = video.advance().map_err(|e| e.to_string())? {
        instants.push(at);
    }
    let step = instants.len().div_ceil(60).max(1);
    video.rewind().map_err(|e| e.to_string())?;
    for (number, instant) in instants.iter().enumerate() {
        if video.advance().map_err(|e| e.to_string())? != Some(*instant) {
            return Err(format!("frame {number} at {instant:?} is not the same after rewinding"));
        }
        if number.is_multiple_of(step) {
            pictures.push(video.picture().map_err(|e| e.to_string())?.image);
        }
    }
    Ok(Sequence { instants, pictures, step })
}

/// The output of a program, or what it complains about.
fn output(program: &str, path: &Path, before: &[&str], after: &[&str]) -> Result<Vec<u8>, String> {
    let output = Command::new(program).args(before).arg(path).args(after).output();
    let output = output.map_err(|e| format!("{program}: {e}"))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

fn psnr(ours: &RgbImage, theirs: &[u8]) -> f64 {
    let squares = ours.iter().zip(theirs).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    let error = squares.sum::<f64>() / ours.len() as f64;
    10.0 * (255.0 * 255.0 / error.max(1e-9)).log10()
}

/// Compares timestamps with those of ffprobe, and pictures with those of ffmpeg.
fn compare(path: &Path, sequence: &Sequence, reference: Reference) -> Result<(), String> {
    let stream = VideoFile::open(path).map_err(|e| e.to_string())?.info().stream.to_string();
    let show = ["-v", "error", "-select_streams", &stream, "-show_entries", "frame=best_effort_timestamp"];
    let probed = output("ffprobe", path, &[&show[..], &["-of", "csv=p=0"]].concat(), &[])?;
    let probed = String::from_utf8_lossy(&probed).into_owned();
    let lines = probed.lines().map(|line| line.trim_matches(',')).filter(|line| !line.is_empty());
    let stamps: Vec<Option<i64>> = lines.map(|line| line.parse().ok()).collect();
    let ours: Vec<i64> = sequence.instants.iter().map(|at| at.pts).collect();
    // Where the file has no timestamp, ours is a guess.
    let agree = |(ours, theirs): (&i64, &Option<i64>)| theirs.is_none_or(|theirs| theirs == *ours);
    if stamps.len() != ours.len() || !ours.iter().zip(&stamps).all(agree) {
        return Err(format!("timestamps {ours:?}, ffprobe has {stamps:?}"));
    }
    let map = format!("0:{stream}");
    let mut arguments = vec!["-map", &map, "-vsync", "passthrough"];
    let (mut format, mut channels) = ("rgb24", 3);
    let mut filters = format!("select=not(mod(n\\,{}))", sequence.step);
    match reference {
        Reference::None | TimesOnly => return Ok(()),
        Plain => {}
        Through(more) => filters = format!("{filters},{more}"),
        OverBlack => (format, channels) = ("rgba", 4),
    }
    arguments.extend(["-vf", &filters]);
    arguments.extend(["-f", "rawvideo", "-pix_fmt", format, "-"]);
    // With more threads the program shows something else, and not always the same, in place of what is damaged.
    let mut theirs = output("ffmpeg", path, &["-nostdin", "-v", "error", "-threads", "1", "-i"], &arguments)?;
    if channels == 4 {
        let black = |v: u8, alpha: u8| ((u16::from(v) * u16::from(alpha) + 127) / 255) as u8;
        let over_black = theirs.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]].map(|v| black(v, p[3])));
        theirs = over_black.collect();
    }
    let pictures = &sequence.pictures;
    let length: usize = pictures.iter().map(|picture| picture.len()).sum();
    let (width, height) = pictures[0].dimensions();
    if theirs.len() != length {
        let count = pictures.len();
        return Err(format!("{length} bytes in {count} frames of {width}x{height}, ffmpeg {}", theirs.len()));
    }
    let theirs = theirs.chunks_exact((width * height * 3) as usize);
    for ((picture, theirs), at) in pictures.iter().zip(theirs).zip(ours.iter().step_by(sequence.step)) {
        let psnr = psnr(picture, theirs);
        if psnr < 38.0 {
            return Err(format!("the frame at {at} has a PSNR of {psnr:.1} dB"));
        }
    }
    Ok(())
}

/// Jumps to frames in random order and compares what is shown then with decoding from the start.
fn jump_about(path: &Path, sequence: &Sequence) -> Result<(), String> {
    let Sequence { instants, pictures, step } = sequence;
    let mut video = VideoFile::open(path).map_err(|e| e.to_string())?;
    if video.info().first_pts != instants[0].pts {
        return Err(format!("starts at {}, first frame {}", video.info().first_pts, instants[0].pts));
    }
    let mut order: Vec<usize> = (0..instants.len()).step_by(*step).collect();
    order.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(1));
    order.truncate(40);
    // On from where it stands, too.
    let on = order.iter().flat_map(|&i| [i, i + 1, i + 3, i + 2 * step]).filter(|&i| i < instants.len());
    for (turn, i) in on.enumerate() {
        let instant = instants[i];
        let last_tick = instants.get(i + 1).map_or(instant.pts, |next| next.pts - 1);
        let target = if turn % 2 == 0 { instant.pts } else { last_tick };
        let at = video.seek(target).map_err(|e| e.to_string())?;
        if at.pts != instant.pts || i + 1 < instants.len() && at.length != instant.length {
            return Err(format!("by {target} frame {i} at {instant:?} was wanted, found {at:?}"));
        }
        let same = |i: usize, video: &mut VideoFile| {
            let picture = video.picture().map_err(|e| e.to_string())?.image;
            match !i.is_multiple_of(*step) || picture == pictures[i / step] {
                true => Ok(()),
                false => Err(format!("by {target} frame {i} is shown differently than in sequence")),
            }
        };
        same(i, &mut video)?;
        if turn % 5 == 0 {
            let next = video.advance().map_err(|e| e.to_string())?;
            if next.map(|at| at.pts) != instants.get(i + 1).map(|at| at.pts) {
                return Err(format!("after frame {i} at {} comes {next:?}", instant.pts));
            }
            if next.is_some() {
                same(i + 1, &mut video)?;
            }
        }
    }
    let last = video.seek(i64::MAX / 4).map_err(|e| e.to_string())?;
    if last.pts != instants[instants.len() - 1].pts {
        return Err(format!("after the end the frame at {} is shown", last.pts));
    }
    let first = video.seek(i64::MIN / 4).map_err(|e| e.to_string())?;
    if first.pts != instants[0].pts {
        return Err(format!("before the start the frame at {} is shown", first.pts));
    }
    Ok(())
}

/// Compares the key frames, each decoded by itself, with decoding from the start.
fn key_frames(path: &Path, sequence: &Sequence) -> Result<(), String> {
    let mut video = VideoFile::open(path).map_err(|e| e.to_string())?;
    let mut count = 0;
    while let Some(at) = video.next_key().map_err(|e| e.to_string())? {
        let Some(number) = sequence.instants.iter().position(|other| other.pts == at.pts) else {
            return Err(format!("key frame at {}, which is no frame", at.pts));
        };
        let picture = video.picture().map_err(|e| e.to_string())?.image;
        if number.is_multiple_of(sequence.step) && picture != sequence.pictures[number / sequence.step] {
            return Err(format!("the key frame at {} is shown differently than in sequence", at.pts));
        }
        count += 1;
    }
    if count == 0 { Err("no key frame".into()) } else { Ok(()) }
}

fn check(path: &Path, reference: Reference) -> Result<(), String> {
    let sequence = sequential(path)?;
    let instants = &sequence.instants;
    if instants.is_empty() {
        return Err("no frames".into());
    }
    if reference == Reference::None {
        // Where packets are missing, what concealment shows depends on the way to it.
        let mut video = VideoFile::open(path).map_err(|e| e.to_string())?;
        for at in instants.iter().rev().step_by(5) {
            video.seek(at.pts).map_err(|e| e.to_string())?;
        }
        // Where an index leads into what is destroyed, the way back to what is not must be found.
        let mut video = VideoFile::open(path).map_err(|e| e.to_string())?;
        let last = video.info().end_pts.unwrap_or(i64::MAX / 4);
        video.seek(last - 1).map_err(|e| format!("near the end: {e}"))?;
        return Ok(());
    }
    if !instants.is_sorted_by(|a, b| a.pts < b.pts) {
        let stamps: Vec<i64> = instants.iter().map(|at| at.pts).collect();
        return Err(format!("frames are not in order: {stamps:?}"));
    }
    compare(path, &sequence, reference)?;
    jump_about(path, &sequence)?;
    key_frames(path, &sequence)
}

/// Runs `work` for 0 to `count` on two threads; gives the complaints.
fn in_parallel(count: usize, work: impl Fn(usize) -> Result<(), String> + Sync) -> Vec<String> {
    let (next, complaints) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    if let Err(complaint) = work(number) {
                        complaints.lock().unwrap().push(complaint);
                    }
                }
            });
        }
    });
    complaints.into_inner().unwrap()
}

#[test]
fn videos_of_every_kind_show_the_frames_of_the_ffmpeg_program_however_they_are_reached() {
    let folder = tempfile::tempdir().unwrap();
    let made: Vec<PathBuf> = CASES
        .iter()
        .map(|case| make(case, folder.path()).unwrap_or_else(|e| panic!("{}: {e}", case.file)))
        .collect();
    let complaints = in_parallel(CASES.len(), |number| {
        let case = &CASES[number];
        check(&made[number], case.reference).map_err(|problem| format!("{}: {problem}", case.file))
    });
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// The files in a folder of test data, sorted; none, with a line that says so, where it is missing.
fn data(folder: &str) -> Vec<PathBuf> {
    let root = std::env::var_os("STRIATE_DATA").map_or_else(|| "../shared/data".into(), PathBuf::from);
    let Ok(entries) = fs::read_dir(root.join(folder)) else {
        eprintln!("skipped: no data in {}, set STRIATE_DATA", root.join(folder).display());
        return Vec::new();
    };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn real_videos_show_the_frames_of_the_ffmpeg_program_however_they_are_reached() {
    let mut files = data("videos");
    files.retain(|path| !path.to_string_lossy().contains("audio_only"));
    let checked = files.len();
    let complaints = in_parallel(checked, |number| {
        let path = &files[number];
        let reference = if path.ends_with("animated.gif") { OverBlack } else { Plain };
        check(path, reference).map_err(|problem| format!("{}: {problem}", path.display()))
    });
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    assert!(checked == 0 || checked > 25, "only {checked} videos");
}

#[test]
fn broken_videos_show_the_frames_of_the_ffmpeg_program_however_they_are_reached() {
    for (name, frames) in [
        ("bitflips_60.mkv", 47),
        ("decord_corrupted.mp4", 49),
        ("failing_audio.mp4", 280),
        ("garbage_head.avi", 27),
        ("mp4_head_200k.mp4", 79),
        ("truncated_30pct.webm", 38),
        ("truncated_60pct.mkv", 26),
        ("zeroed_30k.mp4", 178),
    ] {
        let Some(path) = data("broken").into_iter().find(|path| path.ends_with(name)) else { return };
        let count = sequential(&path).unwrap().instants.len();
        assert_eq!(count, frames, "{name}");
        // Its last picture breaks off; below that, decoders show what lay in memory.
        let breaks_off = name == "garbage_head.avi";
        let reference = if breaks_off { Reference::None } else { Plain };
        check(&path, reference).unwrap_or_else(|problem| panic!("{name}: {problem}"));
    }
}
