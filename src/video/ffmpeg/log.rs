//! What libav complains of becomes part of our errors instead of going to stderr.

use std::ffi::{CStr, c_char, c_int};
use std::sync::Once;

use ffmpeg_next::{self as ff, ffi};

/// libav's reason for an error: its own words from the log where it gave any, or else the general text.
pub(super) fn reason(error: ff::Error) -> String {
    complaints::take().unwrap_or_else(|| {
        let mut text = [0 as c_char; ffi::AV_ERROR_MAX_STRING_SIZE];
        // SAFETY: av_strerror writes at most the given length, with a zero at the end.
        let text = unsafe {
            ffi::av_strerror(c_int::from(error), text.as_mut_ptr(), text.len());
            CStr::from_ptr(text.as_ptr())
        };
        text.to_string_lossy().into_owned()
    })
}

/// Keeps libav from writing to stderr, and forgets what it complained of before.
pub(super) fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(complaints::install);
    complaints::take();
}

/// The type of a variable argument list differs between machines; elsewhere only the general text is given.
#[cfg(target_arch = "x86_64")]
mod complaints {
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
mod complaints {
    pub fn install() {
        super::ff::log::set_level(super::ff::log::Level::Quiet);
    }

    pub fn take() -> Option<String> {
        None
    }
}
