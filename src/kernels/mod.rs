//! The arithmetic of one layer, for each instruction set.
//!
//! Maps are stored `[row, column, channel, lane]`: a lane is one picture of the minibatch, lanes are innermost and a
//! multiple of [`LANES`], so every kernel works on whole vectors of pictures and a receptive field needs no gather.
//! Channels lie inside columns, so that a row of maps is one piece of memory, which one thread can own.
//! Each kernel is written once over [`Simd`] and compiled for every [`Level`]; the level is picked at run time.

pub mod filter;
pub mod lcn;
pub mod pool;
mod rows;
mod simd;

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use crate::error::{Error, Result};
pub use rows::Rows;
pub use simd::Simd;

/// Lanes come in multiples of this: one AVX-512 vector of f32.
pub const LANES: usize = 16;

/// The multiple of [`LANES`] that holds `batch` pictures.
pub fn lanes_for(batch: usize) -> usize {
    batch.next_multiple_of(LANES)
}

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Whatever the target always has.
    Scalar,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512F.
    Avx512,
}

/// An instruction set that this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu(Level);

impl Cpu {
    /// The best instruction set here, or the lower one that `STRIATE_CPU` (`scalar`, `avx2`, `avx512`) asks for.
    ///
    /// # Errors
    /// `STRIATE_CPU` names none of them, or one that this machine lacks.
    pub fn detect() -> Result<Cpu> {
        let best = Self::available().pop().expect("scalar is always there");
        let Some(wish) = std::env::var_os("STRIATE_CPU") else { return Ok(best) };
        let wish = wish.to_string_lossy();
        let found = Self::available().into_iter().find(|cpu| cpu.name() == wish);
        found.ok_or_else(|| Error::Setting {
            key: "STRIATE_CPU".into(),
            got: format!("\"{wish}\""),
            want: Self::available().iter().map(|cpu| cpu.name()).collect::<Vec<_>>().join(" or "),
        })
    }

    /// All instruction sets of this machine, from the lowest.
    pub fn available() -> Vec<Cpu> {
        #[cfg(target_arch = "x86_64")]
        let (avx2, avx512) = (
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            is_x86_feature_detected!("avx512f"),
        );
        #[cfg(not(target_arch = "x86_64"))]
        let (avx2, avx512) = (false, false);
        let mut levels = vec![Cpu(Level::Scalar)];
        levels.extend(avx2.then_some(Cpu(Level::Avx2)));
        levels.extend((avx2 && avx512).then_some(Cpu(Level::Avx512)));
        levels
    }

    /// The name that `STRIATE_CPU` takes.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    /// Runs a kernel compiled for this instruction set.
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Level::Scalar => kernel.run::<simd::Scalar>(),
            // SAFETY: a `Cpu` exists only for instruction sets found on this machine.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { simd::avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { simd::avx512(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("only x86-64 has these levels"),
        }
    }
}

/// A piece of arithmetic to be compiled for every instruction set. `run` must be `#[inline(always)]`, and so must
/// everything it calls: only then is it compiled with the instructions of its level.
pub trait Kernel {
    /// What it returns.
    type Output;
    /// The work, on vectors of `S`.
    fn run<S: Simd>(self) -> Self::Output;
}

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Numbers in memory aligned to cache lines, so that no vector load crosses one.
pub struct Buffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    Small(Vec<Line>),
    /// In huge pages where the system has them: with small ones, arrays of gigabytes wait for address translation.
    Large(MmapMut),
}

/// Buffers from this size on have their own pages.
const LARGE_BYTES: usize = 2 << 20;

impl Buffer {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Buffer {
        let large = || {
            let map = MmapMut::map_anon(len * size_of::<f32>()).ok()?;
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage); // a wish: without it the memory is the same, and slower
            Some(Memory::Large(map))
        };
        let small = || Memory::Small(vec![Line([0.0; 16]); len.div_ceil(16)]);
        let memory = if len * size_of::<f32>() >= LARGE_BYTES { large() } else { None };
        Buffer { memory: memory.unwrap_or_else(small), len }
    }
}

impl Default for Buffer {
    fn default() -> Buffer {
        Buffer::zeros(0)
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Buffer {
        let mut copy = Buffer::zeros(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        let start = match &self.memory {
            Memory::Small(lines) => lines.as_ptr().cast(),
            Memory::Large(map) => map.as_ptr().cast(),
        };
        // SAFETY: both hold at least `len` initialised f32 without padding, aligned to lines or pages.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        let start = match &mut self.memory {
            Memory::Small(lines) => lines.as_mut_ptr().cast(),
            Memory::Large(map) => map.as_mut_ptr().cast(),
        };
        // SAFETY: as in `deref`, and `&mut self` is the only way in.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }
}

thread_local!(static SCRATCH: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) });

/// Lends `work` memory of this thread, divided into pieces of these lengths, each aligned; their content is what was left
/// there. It is kept and grows to the largest ever asked for, so that nothing is allocated in the steady state. `work`
/// may borrow more.
pub(crate) fn with_scratch<const N: usize, T>(
    lens: [usize; N],
    work: impl FnOnce([&mut [f32]; N]) -> T,
) -> T {
    let mut buffer = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    let padded = lens.map(|len| len.next_multiple_of(LANES));
    if buffer.len < padded.iter().sum() {
        buffer = Buffer::zeros(padded.iter().sum());
    }
    let mut rest = &mut buffer[..];
    let pieces = std::array::from_fn(|i| {
        let (piece, after) = std::mem::take(&mut rest).split_at_mut(padded[i]);
        rest = after;
        &mut piece[..lens[i]]
    });
    let result = work(pieces);
    SCRATCH.with_borrow_mut(|kept| kept.push(buffer));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_comes_in_separate_aligned_pieces_and_is_kept() {
        let first = with_scratch([5, 33], |[a, b]| {
            a.fill(1.0);
            b.fill(2.0);
            assert_eq!((a.len(), b.len(), b.as_ptr() as usize % 64), (5, 33, 0));
            assert!(a.iter().all(|&x| x == 1.0));
            a.as_ptr() as usize
        });
        assert_eq!(with_scratch([20], |[a]| a.as_ptr() as usize), first);
    }

    #[test]
    fn buffers_are_aligned_and_zero() {
        let buffer = Buffer::zeros(37);
        assert_eq!((buffer.as_ptr() as usize % 64, buffer.len()), (0, 37));
        assert!(buffer.iter().all(|&x| x == 0.0));
        assert!(Buffer::zeros(0).is_empty());
        let mut large = Buffer::zeros(LARGE_BYTES / 4 + 1);
        assert!((large.as_ptr() as usize).is_multiple_of(64) && large.iter().all(|&x| x == 0.0));
        large[LARGE_BYTES / 4] = 3.0;
        assert_eq!(large.clone().last(), Some(&3.0));
    }
}
