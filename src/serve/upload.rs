//! Pictures that are sent, by anyone: bounded in size, in time, and in what they decode to.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use image::DynamicImage;

use crate::video::still;

/// A picture may have so many bytes.
pub const MAX_BYTES: usize = 20_000_000;

/// And so many pixels: what a camera makes, and a few times more.
pub const MAX_PIXELS: u64 = 64_000_000;

/// Fewer pixels a side show nothing.
pub const MIN_SIDE: u32 = 8;

/// It has to arrive in this time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug)]
pub struct Refused {
    /// Whose fault it is.
    pub status: StatusCode,
    /// What was seen and what was wanted.
    pub why: String,
}

impl Refused {
    /// With one clear sentence.
    pub fn new(status: StatusCode, why: impl Into<String>) -> Refused {
        Refused { status, why: why.into() }
    }
}

fn too_long() -> Refused {
    let why = format!("more than {} MB: send a smaller picture", MAX_BYTES / 1_000_000);
    Refused::new(StatusCode::PAYLOAD_TOO_LARGE, why)
}

/// Refuses what says of itself that it is too long, before it is read.
pub fn check_length(headers: &HeaderMap) -> Result<(), Refused> {
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_BYTES as u64) { Err(too_long()) } else { Ok(()) }
}

/// Reads the whole of it.
pub async fn body(body: Body) -> Result<Vec<u8>, Refused> {
    match tokio::time::timeout(PATIENCE, Limited::new(body, MAX_BYTES).collect()).await {
        Ok(Ok(bytes)) => Ok(bytes.to_bytes().into()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_long()),
        Ok(Err(_)) => Err(Refused::new(StatusCode::BAD_REQUEST, "the picture broke off on its way")),
        Err(_) => {
            let why = format!("no whole picture within {} s", PATIENCE.as_secs());
            Err(Refused::new(StatusCode::REQUEST_TIMEOUT, why))
        }
    }
}

/// Decodes a picture of reasonable size; its size is looked at before its pixels are.
pub fn decode(bytes: &[u8]) -> Result<DynamicImage, Refused> {
    let refused = |why: String| Refused::new(StatusCode::UNPROCESSABLE_ENTITY, why);
    if bytes.is_empty() {
        return Err(refused("no picture was sent".into()));
    }
    let reader = image::ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format();
    let reader = reader.expect("reading from memory cannot fail");
    if reader.format().is_none() {
        return Err(refused(
            "not a picture: JPEG, PNG, WebP, GIF and BMP are known by their first bytes".into(),
        ));
    }
    let damaged = |e: image::ImageError| refused(format!("the picture cannot be decoded: {e}"));
    let (width, height) = reader.into_dimensions().map_err(damaged)?;
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        let most = MAX_PIXELS / 1_000_000;
        return Err(refused(format!("{width}x{height} pixels: at most {most} million are looked at")));
    }
    if width.min(height) < MIN_SIDE {
        return Err(refused(format!("{width}x{height} pixels: at least {MIN_SIDE} a side are wanted")));
    }
    still::decode(bytes).map_err(damaged)
}
