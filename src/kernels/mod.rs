//! The arithmetic of one layer, for each instruction set.
//!
//! Maps are stored `[row, column, channel, lane]`: a lane is one picture of the minibatch, lanes are innermost and a
//! multiple of [`LANES`], so every kernel works on whole vectors of pictures and a receptive field needs no gather.
//! Channels lie inside columns, so that a row of maps is one piece of memory, which one thread can own.
//! Each kernel is written once over [`Simd`] and compiled for every [`Level`]; the level is picked at run time.

mod buffer;
pub mod filter;
pub mod lcn;
pub mod machine;
pub mod pool;
mod product;
mod rows;
mod simd;
pub mod stored;

use std::cell::RefCell;

use crate::error::{Error, Result};
pub use buffer::Buffer;
pub use product::{product, product_by_columns};
pub use rows::Rows;
pub use simd::{Simd, prefetch};

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

thread_local!(static SCRATCH: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) });

/// Lends `work` memory of this thread, divided into pieces of these lengths, each aligned; their content is what was left
/// there. It is kept and grows to the largest ever asked for, so that nothing is allocated in the steady state. `work`
/// may borrow more. Inlined, so that `work` is compiled for the instruction set of the kernel that it is part of.
#[inline(always)]
pub(crate) fn with_scratch<const N: usize, T>(
    lens: [usize; N],
    work: impl FnOnce([&mut [f32]; N]) -> T,
) -> T {
    let mut buffer = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    let padded = lens.map(|len| len.next_multiple_of(LANES));
    if buffer.len() < padded.iter().sum() {
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
}
