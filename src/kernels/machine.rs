//! What this machine can do at most: multiply-adds, and bytes to and from memory.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use crate::kernels::{Buffer, Cpu, Kernel, Simd};

/// Bytes of the array that each thread reads to measure memory: far more than caches hold.
const ARRAY_BYTES: usize = 256 << 20;

/// Multiply-adds of `rounds` rounds in independent chains that stay in registers: as many as fit, and more than are needed to
/// hide their latency. Returns the floating-point operations.
struct Fma {
    rounds: u64,
}

impl Kernel for Fma {
    type Output = u64;
    #[inline(always)]
    fn run<S: Simd>(self) -> u64 {
        match S::MAPS {
            8 => self.chains::<S, 24>(),
            _ => self.chains::<S, 12>(),
        }
    }
}

impl Fma {
    #[inline(always)]
    fn chains<S: Simd, const N: usize>(self) -> u64 {
        let (mut sums, factor) = ([1f32; 16], [black_box(0.999_f32); 16]);
        // SAFETY: the arrays are as long as the longest vector, and `Cpu::run` chose instructions that are there.
        unsafe {
            let factor = S::load(factor.as_ptr());
            let mut chains = [S::load(sums.as_ptr()); N];
            for _ in 0..self.rounds {
                for chain in &mut chains {
                    *chain = S::mul_add(*chain, factor, factor);
                }
            }
            for chain in chains {
                S::store(sums.as_mut_ptr(), S::add(S::load(sums.as_ptr()), chain));
            }
        }
        black_box(sums);
        2 * self.rounds * (N * S::WIDTH) as u64
    }
}

/// GFLOP/s of all threads of this pool together, each in registers only, over about `milliseconds`.
pub fn fma_peak(cpu: Cpu, milliseconds: f64) -> f64 {
    // Enough rounds that to start the threads takes no time in comparison.
    let rate = |rounds: u64| {
        let start = Instant::now();
        let threads = rayon::current_num_threads();
        let flops: u64 = (0..threads).into_par_iter().with_max_len(1).map(|_| cpu.run(Fma { rounds })).sum();
        (flops as f64 / start.elapsed().as_secs_f64() / 1e9, start.elapsed().as_secs_f64() * 1e3)
    };
    let (_, took) = rate(100_000);
    rate((1e5 * milliseconds / took) as u64).0
}

/// The clock in GHz, from a chain of additions each of which waits for the one before; `None` where there is no way to write
/// one.
pub fn clock_ghz() -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    {
        let mut best = 0f64;
        for _ in 0..5 {
            let (mut sum, rounds) = (1u64, 2_000_000u64);
            let start = Instant::now();
            for _ in 0..rounds {
                // SAFETY: adds to a register and touches nothing else.
                unsafe {
                    std::arch::asm!(
                        "add {0}, {0}", "add {0}, {0}", "add {0}, {0}", "add {0}, {0}",
                        "add {0}, {0}", "add {0}, {0}", "add {0}, {0}", "add {0}, {0}",
                        inout(reg) sum, options(nomem, nostack)
                    );
                }
            }
            black_box(sum);
            best = best.max(8.0 * rounds as f64 / start.elapsed().as_secs_f64() / 1e9);
        }
        Some(best)
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// GB/s of all threads of this pool together: reading, and reading and writing back (both directions counted).
pub fn memory_bandwidth(cpu: Cpu) -> (f64, f64) {
    let threads = rayon::current_num_threads();
    let mut arrays: Vec<Buffer> = (0..threads).map(|_| Buffer::zeros(ARRAY_BYTES / 4)).collect();
    let bytes = (threads * ARRAY_BYTES) as f64;
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let read = (0..5).map(|_| {
        let start = Instant::now();
        arrays.par_iter().with_max_len(1).for_each(|array| {
            black_box(cpu.run(Sum { array }));
        });
        start.elapsed().as_secs_f64()
    });
    let read = bytes / median(read.collect()) / 1e9;
    let update = (0..5).map(|_| {
        let start = Instant::now();
        arrays.par_iter_mut().with_max_len(1).for_each(|array| cpu.run(Scale { array }));
        start.elapsed().as_secs_f64()
    });
    let update = 2.0 * bytes / median(update.collect()) / 1e9;
    (read, update)
}

struct Sum<'a> {
    array: &'a [f32],
}

impl Kernel for Sum<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let mut sums = [0f32; 64];
        for piece in self.array.chunks_exact(64) {
            sums.iter_mut().zip(piece).for_each(|(sum, x)| *sum += x);
        }
        sums.iter().sum()
    }
}

struct Scale<'a> {
    array: &'a mut [f32],
}

impl Kernel for Scale<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        self.array.iter_mut().for_each(|x| *x = 0.5 * *x + 1.0);
    }
}
