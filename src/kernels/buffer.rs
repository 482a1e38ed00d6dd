//! Memory that kernels work on.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::MmapMut;

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE_BYTES]);

const LINE_BYTES: usize = 64;

/// What memory is filled with here.
///
/// # Safety
/// All bytes, zeros above all, are a value of the type.
pub unsafe trait Number: Copy {}

// SAFETY: as for all plain numbers.
unsafe impl Number for f32 {}
// SAFETY: as above.
unsafe impl Number for u16 {}

/// Numbers in memory aligned to cache lines, so that no vector load crosses one.
pub struct Buffer<T: Number = f32> {
    memory: Memory,
    len: usize,
    number: PhantomData<T>,
}

enum Memory {
    Small(Vec<Line>),
    /// Memory from `start` on, of pages that other buffers may have parts of: huge ones where the system has them. With small ones, arrays
    /// of megabytes and more wait for address translation.
    Pages {
        start: NonNull<u8>,
        _pages: Arc<MmapMut>,
    },
}

// SAFETY: each buffer has its part of the pages for itself.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// Buffers that together take so much have their own pages.
const LARGE_BYTES: usize = 2 << 20;

impl<T: Number> Buffer<T> {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Buffer<T> {
        Buffer::zeros_together([len]).pop().expect("one for each length")
    }

    /// Zeros of each length, one after the other in the same pages: for buffers that live as long as each other.
    pub fn zeros_together(lens: impl IntoIterator<Item = usize>) -> Vec<Buffer<T>> {
        let lens: Vec<usize> = lens.into_iter().collect();
        let lines = |len: usize| (len * size_of::<T>()).div_ceil(LINE_BYTES);
        let bytes = LINE_BYTES * lens.iter().map(|&len| lines(len)).sum::<usize>();
        let pages = if bytes >= LARGE_BYTES { MmapMut::map_anon(bytes).ok() } else { None };
        let buffer = |len: usize, memory: Memory| Buffer { memory, len, number: PhantomData };
        let Some(mut pages) = pages else {
            let small = |len| buffer(len, Memory::Small(vec![Line([0; LINE_BYTES]); lines(len)]));
            return lens.into_iter().map(small).collect();
        };
        #[cfg(target_os = "linux")]
        let _ = pages.advise(memmap2::Advice::HugePage); // a wish: without it the memory is the same, and slower
        let mut at = NonNull::from(&mut pages[..]).cast::<u8>();
        let pages = Arc::new(pages);
        let part = |len| {
            let start = at;
            // SAFETY: the pages have room for the lines of all lengths.
            at = unsafe { at.add(LINE_BYTES * lines(len)) };
            buffer(len, Memory::Pages { start, _pages: pages.clone() })
        };
        lens.into_iter().map(part).collect()
    }
}

impl<T: Number> Default for Buffer<T> {
    fn default() -> Buffer<T> {
        Buffer::zeros(0)
    }
}

impl<T: Number> Clone for Buffer<T> {
    fn clone(&self) -> Buffer<T> {
        let mut copy = Buffer::zeros(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl<T: Number> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        let start = match &self.memory {
            Memory::Small(lines) => lines.as_ptr().cast(),
            Memory::Pages { start, .. } => start.as_ptr().cast_const().cast(),
        };
        // SAFETY: both hold at least `len` numbers, initialised and aligned to lines or pages.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

impl<T: Number> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let start = match &mut self.memory {
            Memory::Small(lines) => lines.as_mut_ptr().cast(),
            Memory::Pages { start, .. } => start.as_ptr().cast(),
        };
        // SAFETY: as in `deref`, and `&mut self` is the only way in.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zero() {
        let buffer = Buffer::<f32>::zeros(37);
        assert_eq!((buffer.as_ptr() as usize % 64, buffer.len()), (0, 37));
        assert!(buffer.iter().all(|&x| x == 0.0));
        assert!(Buffer::<u16>::zeros(0).is_empty());
        let mut large = Buffer::<f32>::zeros(LARGE_BYTES / 4 + 1);
        assert!((large.as_ptr() as usize).is_multiple_of(64) && large.iter().all(|&x| x == 0.0));
        large[LARGE_BYTES / 4] = 3.0;
        assert_eq!(large.clone().last(), Some(&3.0));
    }

    #[test]
    fn buffers_made_together_are_apart_and_outlive_each_other() {
        let lens = [5, LARGE_BYTES / 4, 0, 33];
        let mut buffers = Buffer::<f32>::zeros_together(lens);
        for (number, buffer) in buffers.iter_mut().enumerate() {
            assert!((buffer.as_ptr() as usize).is_multiple_of(64) && buffer.iter().all(|&x| x == 0.0));
            buffer.fill(number as f32 + 1.0);
        }
        let last = buffers.pop().unwrap();
        let all = |buffer: &Buffer, value: f32| buffer.iter().all(|&x| x == value);
        assert!(all(&buffers[0], 1.0) && all(&buffers[1], 2.0));
        assert!(buffers.iter().map(|buffer| buffer.len()).eq([5, LARGE_BYTES / 4, 0]));
        drop(buffers);
        assert!(last.len() == 33 && all(&last, 4.0));
    }
}
