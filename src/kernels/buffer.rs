//! Memory that kernels work on.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

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
    /// In huge pages where the system has them: with small ones, arrays of gigabytes wait for address translation.
    Large(MmapMut),
}

/// Buffers from this size on have their own pages.
const LARGE_BYTES: usize = 2 << 20;

impl<T: Number> Buffer<T> {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Buffer<T> {
        let bytes = len * size_of::<T>();
        let large = || {
            let map = MmapMut::map_anon(bytes).ok()?;
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage); // a wish: without it the memory is the same, and slower
            Some(Memory::Large(map))
        };
        let small = || Memory::Small(vec![Line([0; LINE_BYTES]); bytes.div_ceil(LINE_BYTES)]);
        let memory = if bytes >= LARGE_BYTES { large() } else { None };
        Buffer { memory: memory.unwrap_or_else(small), len, number: PhantomData }
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
            Memory::Large(map) => map.as_ptr().cast(),
        };
        // SAFETY: both hold at least `len` numbers, initialised and aligned to lines or pages.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

impl<T: Number> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let start = match &mut self.memory {
            Memory::Small(lines) => lines.as_mut_ptr().cast(),
            Memory::Large(map) => map.as_mut_ptr().cast(),
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
}
