//! Vectors of f32: the few operations that the kernels need, for each instruction set.

use super::Kernel;

/// A vector type of one instruction set.
///
/// All methods are `#[inline(always)]` and compile to single instructions only inside [`super::Cpu::run`].
///
/// # Safety
/// Methods may be called only where the instruction set exists; pointers must be valid for the elements named.
#[expect(clippy::missing_safety_doc, reason = "the same for all methods: see the trait")]
pub trait Simd: Copy {
    /// The vector.
    type V: Copy;
    /// Elements of a vector; even, and a divisor of [`super::LANES`].
    const WIDTH: usize;
    /// Maps in a register block: with three vectors of lanes each, as many accumulators as registers allow.
    const MAPS: usize;
    /// Vectors of lanes in a register block of [`filter::respond`](super::filter::respond), at most 3: what was fastest. With 4
    /// maps on AVX2 (Zen 3), blocks of 2 vectors are about twice as fast as of 3, though both fit the registers.
    const VECTORS: usize;

    /// All elements 0.
    unsafe fn zero() -> Self::V;
    /// `WIDTH` elements from `p`.
    unsafe fn load(p: *const f32) -> Self::V;
    /// `WIDTH` elements to `p`.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// `*p` in every element.
    unsafe fn splat(p: *const f32) -> Self::V;
    /// `p[0], p[1], p[0], p[1], ...`
    unsafe fn splat_pair(p: *const f32) -> Self::V;
    /// `a * b + c`.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Elementwise sum.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// Writes the `WIDTH / 2` sums `v[0] + v[1], v[2] + v[3], ...` to `p`.
    unsafe fn store_pair_sums(p: *mut f32, v: Self::V);
}

/// Plain Rust, for any target.
#[derive(Clone, Copy)]
pub struct Scalar;

impl Simd for Scalar {
    type V = [f32; 4];
    const WIDTH: usize = 4;
    const MAPS: usize = 2;
    const VECTORS: usize = 3;

    #[inline(always)]
    unsafe fn zero() -> [f32; 4] {
        [0.0; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 4] {
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 4]) {
        unsafe { p.cast::<[f32; 4]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> [f32; 4] {
        [unsafe { *p }; 4]
    }
    #[inline(always)]
    unsafe fn splat_pair(p: *const f32) -> [f32; 4] {
        let (a, b) = unsafe { (*p, *p.add(1)) };
        [a, b, a, b]
    }
    #[inline(always)]
    unsafe fn mul_add(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        // Not `f32::mul_add`: without FMA hardware that is a slow library call.
        [a[0] * b[0] + c[0], a[1] * b[1] + c[1], a[2] * b[2] + c[2], a[3] * b[3] + c[3]]
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]
    }
    #[inline(always)]
    unsafe fn store_pair_sums(p: *mut f32, v: [f32; 4]) {
        unsafe { p.cast::<[f32; 2]>().write_unaligned([v[0] + v[1], v[2] + v[3]]) }
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{avx2, avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kernel, Simd};
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub struct Avx2;

    /// Compiles `kernel` with AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx2>()
    }

    impl Simd for Avx2 {
        type V = __m256;
        const WIDTH: usize = 8;
        const MAPS: usize = 4;
        const VECTORS: usize = 2;

        #[inline(always)]
        unsafe fn zero() -> __m256 {
            unsafe { _mm256_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m256) {
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn splat(p: *const f32) -> __m256 {
            unsafe { _mm256_set1_ps(*p) }
        }
        #[inline(always)]
        unsafe fn splat_pair(p: *const f32) -> __m256 {
            unsafe { _mm256_castpd_ps(_mm256_set1_pd(p.cast::<f64>().read_unaligned())) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn store_pair_sums(p: *mut f32, v: __m256) {
            unsafe {
                let (low, high) = (_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                _mm_storeu_ps(p, _mm_hadd_ps(low, high));
            }
        }
    }

    #[derive(Clone, Copy)]
    pub struct Avx512;

    /// Compiles `kernel` with AVX-512.
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub unsafe fn avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx512>()
    }

    impl Simd for Avx512 {
        type V = __m512;
        const WIDTH: usize = 16;
        const MAPS: usize = 8;
        const VECTORS: usize = 3;

        #[inline(always)]
        unsafe fn zero() -> __m512 {
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn splat(p: *const f32) -> __m512 {
            unsafe { _mm512_set1_ps(*p) }
        }
        #[inline(always)]
        unsafe fn splat_pair(p: *const f32) -> __m512 {
            unsafe { _mm512_castpd_ps(_mm512_set1_pd(p.cast::<f64>().read_unaligned())) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn store_pair_sums(p: *mut f32, v: __m512) {
            unsafe {
                let sums = _mm512_add_ps(v, _mm512_permute_ps::<0b10_11_00_01>(v));
                let packed = _mm512_maskz_compress_ps(0x5555, sums);
                _mm256_storeu_ps(p, _mm512_castps512_ps256(packed));
            }
        }
    }
}
