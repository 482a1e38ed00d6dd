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
    /// Vectors of the same machine that are no longer than [`super::filter::MAP_PAD`] elements.
    type Narrow: Simd;
    /// Elements of a vector; even, and a divisor of [`super::LANES`].
    const WIDTH: usize;
    /// Maps in a register block: with three vectors of lanes each, as many accumulators as registers allow.
    const MAPS: usize;

    /// All elements 0.
    unsafe fn zero() -> Self::V;
    /// `WIDTH` elements from `p`.
    unsafe fn load(p: *const f32) -> Self::V;
    /// `WIDTH` bf16 from `p`.
    unsafe fn load_bf16(p: *const u16) -> Self::V;
    /// `WIDTH` elements to `p`.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// `*p` in every element.
    unsafe fn splat(p: *const f32) -> Self::V;
    /// `p[0], p[1], p[0], p[1], ...`
    unsafe fn splat_pair(p: *const f32) -> Self::V;
    /// `a * b + c`.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Elementwise `1 / sqrt(v)` of normal numbers, to within a few units of the last place.
    unsafe fn rsqrt(v: Self::V) -> Self::V;
    /// Elementwise product.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// Elementwise difference.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// Elementwise sum.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// Writes the `WIDTH / 2` sums `v[0] + v[1], v[2] + v[3], ...` to `p`.
    unsafe fn store_pair_sums(p: *mut f32, v: Self::V);
    /// Transposes 8 rows of 8 pairs, `step` numbers apart, into 8 rows that lie one after the other.
    #[inline(always)]
    unsafe fn transpose_pairs(rows: *const f32, step: usize, out: *mut f32) {
        unsafe {
            for (row, pair) in (0..8).flat_map(|row| (0..8).map(move |pair| (row, pair))) {
                let value = rows.add(row * step + 2 * pair).cast::<u64>().read_unaligned();
                out.add(16 * pair + 2 * row).cast::<u64>().write_unaligned(value);
            }
        }
    }
    /// Adds the products of `taps` weights of `M` maps with as many inputs of `V` vectors: `sum[m][v] += Σ_t w[t][m] · x[t][v]`, where
    /// taps are `w_step` and `x_step` numbers apart. The innermost loop of all filtering.
    #[inline(always)]
    unsafe fn sum_taps<const M: usize, const V: usize>(
        taps: usize,
        w: (*const f32, usize),
        x: (*const f32, usize),
        sum: &mut [[Self::V; V]; M],
    ) {
        unsafe { sum_taps::<Self, M, V>(taps, w, x, sum) }
    }
}

/// Asks for the cache line at `p`, which need not be valid, to be brought into the second-level cache.
#[inline(always)]
pub fn prefetch<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch of any address is allowed.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// [`Simd::sum_taps`], as it stands there.
#[inline(always)]
unsafe fn sum_taps<S: Simd, const M: usize, const V: usize>(
    taps: usize,
    (mut w, w_step): (*const f32, usize),
    (mut x, x_step): (*const f32, usize),
    sum: &mut [[S::V; V]; M],
) {
    unsafe {
        for _ in 0..taps {
            let mut inputs = [S::zero(); V];
            for (v, input) in inputs.iter_mut().enumerate() {
                *input = S::load(x.add(v * S::WIDTH));
            }
            for (m, sum) in sum.iter_mut().enumerate() {
                let weight = S::splat(w.add(m));
                for (sum, &input) in sum.iter_mut().zip(&inputs) {
                    *sum = S::mul_add(weight, input, *sum);
                }
            }
            (w, x) = (w.wrapping_add(w_step), x.wrapping_add(x_step));
        }
    }
}

/// Plain Rust, for any target.
#[derive(Clone, Copy)]
pub struct Scalar;

impl Simd for Scalar {
    type V = [f32; 4];
    type Narrow = Scalar;
    const WIDTH: usize = 4;
    const MAPS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> [f32; 4] {
        [0.0; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 4] {
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> [f32; 4] {
        unsafe { p.cast::<[u16; 4]>().read_unaligned() }.map(|x| f32::from_bits(u32::from(x) << 16))
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
    unsafe fn rsqrt(v: [f32; 4]) -> [f32; 4] {
        v.map(|x| 1.0 / x.sqrt())
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3]]
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3]]
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
        type Narrow = Avx2;
        const WIDTH: usize = 8;
        const MAPS: usize = 4;

        #[inline(always)]
        unsafe fn zero() -> __m256 {
            unsafe { _mm256_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> __m256 {
            unsafe {
                let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
            }
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
        unsafe fn rsqrt(v: __m256) -> __m256 {
            unsafe {
                // A square root and a division take four times as long as an estimate of 12 bits and a step of Newton's method.
                let (y, half) = (_mm256_rsqrt_ps(v), _mm256_mul_ps(v, _mm256_set1_ps(0.5)));
                let rest = _mm256_fnmadd_ps(_mm256_mul_ps(half, y), y, _mm256_set1_ps(0.5));
                _mm256_fmadd_ps(y, rest, y)
            }
        }
        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sum_taps<const M: usize, const V: usize>(
            taps: usize,
            (w, w_step): (*const f32, usize),
            (x, x_step): (*const f32, usize),
            sum: &mut [[__m256; V]; M],
        ) {
            // Twelve sums, three inputs and one weight are all sixteen registers, which the compiler does not manage without
            // moving some to memory. Fewer sums cannot hide the latency of multiply-adds.
            if let Some(sum) = four_by_three(sum) {
                unsafe { sum_taps_4x3(taps, (w, w_step), (x, x_step), sum) }
            } else {
                unsafe { super::sum_taps::<Avx2, M, V>(taps, (w, w_step), (x, x_step), sum) }
            }
        }
        #[inline(always)]
        unsafe fn store_pair_sums(p: *mut f32, v: __m256) {
            unsafe {
                let (low, high) = (_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                _mm_storeu_ps(p, _mm_hadd_ps(low, high));
            }
        }
    }

    /// The sums as what they are, if there are 4 x 3.
    #[inline(always)]
    fn four_by_three<const M: usize, const V: usize>(
        sum: &mut [[__m256; V]; M],
    ) -> Option<&mut [[__m256; 3]; 4]> {
        // SAFETY: the same type, where the condition holds.
        (M == 4 && V == 3).then(|| unsafe { &mut *std::ptr::from_mut(sum).cast() })
    }

    /// One tap of [`sum_taps_4x3`].
    macro_rules! tap_4x3 {
        () => {
            concat!(
                "vmovups {x0}, ymmword ptr [{x}]\n",
                "vmovups {x1}, ymmword ptr [{x} + 32]\n",
                "vmovups {x2}, ymmword ptr [{x} + 64]\n",
                "vbroadcastss {w0}, dword ptr [{w}]\n",
                "vfmadd231ps {a0}, {w0}, {x0}\n",
                "vfmadd231ps {a1}, {w0}, {x1}\n",
                "vfmadd231ps {a2}, {w0}, {x2}\n",
                "vbroadcastss {w0}, dword ptr [{w} + 4]\n",
                "vfmadd231ps {b0}, {w0}, {x0}\n",
                "vfmadd231ps {b1}, {w0}, {x1}\n",
                "vfmadd231ps {b2}, {w0}, {x2}\n",
                "vbroadcastss {w0}, dword ptr [{w} + 8]\n",
                "vfmadd231ps {c0}, {w0}, {x0}\n",
                "vfmadd231ps {c1}, {w0}, {x1}\n",
                "vfmadd231ps {c2}, {w0}, {x2}\n",
                "vbroadcastss {w0}, dword ptr [{w} + 12]\n",
                "add {w}, {w_step}\n",
                "add {x}, {x_step}\n",
                "vfmadd231ps {d0}, {w0}, {x0}\n",
                "vfmadd231ps {d1}, {w0}, {x1}\n",
                "vfmadd231ps {d2}, {w0}, {x2}\n",
            )
        };
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn sum_taps_4x3(
        taps: usize,
        (w, w_step): (*const f32, usize),
        (x, x_step): (*const f32, usize),
        sum: &mut [[__m256; 3]; 4],
    ) {
        let [[a0, a1, a2], [b0, b1, b2], [c0, c1, c2], [d0, d1, d2]] = sum;
        // SAFETY: reads `taps` times 4 weights and 3 vectors, as the caller says it may, and writes registers only.
        unsafe {
            std::arch::asm!(
                // Groups of four: the end of a loop of more than some thirty rounds is not foreseen and costs as much as a tap.
                "mov {rest}, {taps}",
                "and {rest}, 3",
                "jz 3f",
                "2:",
                tap_4x3!(),
                "dec {rest}",
                "jnz 2b",
                "3:",
                "shr {taps}, 2",
                "jz 5f",
                "4:",
                tap_4x3!(),
                tap_4x3!(),
                tap_4x3!(),
                tap_4x3!(),
                "dec {taps}",
                "jnz 4b",
                "5:",
                rest = out(reg) _,
                x = inout(reg) x => _,
                w = inout(reg) w => _,
                taps = inout(reg) taps => _,
                w_step = in(reg) 4 * w_step,
                x_step = in(reg) 4 * x_step,
                x0 = out(ymm_reg) _,
                x1 = out(ymm_reg) _,
                x2 = out(ymm_reg) _,
                w0 = out(ymm_reg) _,
                a0 = inout(ymm_reg) *a0,
                a1 = inout(ymm_reg) *a1,
                a2 = inout(ymm_reg) *a2,
                b0 = inout(ymm_reg) *b0,
                b1 = inout(ymm_reg) *b1,
                b2 = inout(ymm_reg) *b2,
                c0 = inout(ymm_reg) *c0,
                c1 = inout(ymm_reg) *c1,
                c2 = inout(ymm_reg) *c2,
                d0 = inout(ymm_reg) *d0,
                d1 = inout(ymm_reg) *d1,
                d2 = inout(ymm_reg) *d2,
                options(readonly, nostack),
            );
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
        type Narrow = Avx2;
        const WIDTH: usize = 16;
        const MAPS: usize = 8;

        #[inline(always)]
        unsafe fn zero() -> __m512 {
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> __m512 {
            unsafe {
                let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
            }
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
        unsafe fn rsqrt(v: __m512) -> __m512 {
            unsafe {
                let (y, half) = (_mm512_rsqrt14_ps(v), _mm512_mul_ps(v, _mm512_set1_ps(0.5)));
                let rest = _mm512_fnmadd_ps(_mm512_mul_ps(half, y), y, _mm512_set1_ps(0.5));
                _mm512_fmadd_ps(y, rest, y)
            }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn transpose_pairs(rows: *const f32, step: usize, out: *mut f32) {
            unsafe {
                let mut quarters = [[_mm512_setzero_pd(); 4]; 2];
                for (half, quarters) in quarters.iter_mut().enumerate() {
                    let mut row = [_mm512_setzero_pd(); 4];
                    for (number, row) in row.iter_mut().enumerate() {
                        *row = _mm512_loadu_pd(rows.add((4 * half + number) * step).cast());
                    }
                    // Pairs of two rows: of columns 0, 2, 4, 6, and of 1, 3, 5, 7.
                    let (even, even2) =
                        (_mm512_unpacklo_pd(row[0], row[1]), _mm512_unpacklo_pd(row[2], row[3]));
                    let (odd, odd2) =
                        (_mm512_unpackhi_pd(row[0], row[1]), _mm512_unpackhi_pd(row[2], row[3]));
                    // Of four rows: of columns 0 and 4, 1 and 5, 2 and 6, 3 and 7.
                    *quarters = [
                        _mm512_shuffle_f64x2::<0b10_00_10_00>(even, even2),
                        _mm512_shuffle_f64x2::<0b10_00_10_00>(odd, odd2),
                        _mm512_shuffle_f64x2::<0b11_01_11_01>(even, even2),
                        _mm512_shuffle_f64x2::<0b11_01_11_01>(odd, odd2),
                    ];
                }
                let [upper, lower] = quarters;
                for column in 0..4 {
                    let (upper, lower) = (upper[column], lower[column]);
                    let (near, far) = (out.add(16 * column), out.add(16 * (column + 4)));
                    _mm512_storeu_pd(near.cast(), _mm512_shuffle_f64x2::<0b10_00_10_00>(upper, lower));
                    _mm512_storeu_pd(far.cast(), _mm512_shuffle_f64x2::<0b11_01_11_01>(upper, lower));
                }
            }
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
