//! Arrays of weights as memory holds them: f32, or bf16, the upper half of an f32, in half the memory.
//!
//! Arithmetic is f32 for both. A bf16 has 8 bits of precision: rounded to the nearest, a change of less than one part in 512 of a weight
//! would be lost, every time. So what an update makes of a weight is rounded up or down by chance, the likelier the nearer, and
//! right on average (Gupta et al. 2015). The chance is a hash of a key and the weight's place: the same whoever computes it, and when.

use std::ops::Range;

use super::{Buffer, Cpu, Kernel, Simd, with_scratch};
use crate::config::Precision;

/// An array of weights, or of what the optimiser remembers of them.
pub enum Stored {
    /// As they are.
    F32(Buffer),
    /// The upper halves of their bits.
    Bf16(Buffer<u16>),
}

/// Some of them, side by side.
#[derive(Debug, Clone, Copy)]
pub enum Slice<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// The upper halves of their bits.
    Bf16(&'a [u16]),
}

impl Stored {
    /// `len` zeros.
    pub fn zeros(len: usize, precision: Precision) -> Stored {
        Stored::zeros_together([len], precision).pop().expect("one for each length")
    }

    /// Zeros of each length, see [`Buffer::zeros_together`].
    pub fn zeros_together(lens: impl IntoIterator<Item = usize>, precision: Precision) -> Vec<Stored> {
        match precision {
            Precision::F32 => Buffer::zeros_together(lens).into_iter().map(Stored::F32).collect(),
            Precision::Bf16 => Buffer::zeros_together(lens).into_iter().map(Stored::Bf16).collect(),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Stored::F32(numbers) => numbers.len(),
            Stored::Bf16(numbers) => numbers.len(),
        }
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of them.
    pub fn get(&self, at: usize) -> f32 {
        match self {
            Stored::F32(numbers) => numbers[at],
            Stored::Bf16(numbers) => from_bf16(numbers[at]),
        }
    }

    /// Replaces one, rounded to the nearest.
    pub fn set(&mut self, at: usize, value: f32) {
        match self {
            Stored::F32(numbers) => numbers[at] = value,
            Stored::Bf16(numbers) => numbers[at] = to_nearest_bf16(value),
        }
    }

    /// Takes as many numbers, stored in the same way.
    pub fn copy_from(&mut self, other: &Stored) {
        match (self, other) {
            (Stored::F32(to), Stored::F32(from)) => to.copy_from_slice(from),
            (Stored::Bf16(to), Stored::Bf16(from)) => to.copy_from_slice(from),
            _ => panic!("numbers of another precision"),
        }
    }

    /// Appends them to `bytes`, as they are stored, lower bytes first.
    pub fn write_to(&self, bytes: &mut Vec<u8>) {
        let first = bytes.len();
        match self {
            Stored::F32(numbers) => {
                bytes.resize(first + 4 * numbers.len(), 0);
                let places = bytes[first..].as_chunks_mut().0.iter_mut();
                places.zip(numbers.iter()).for_each(|(to, number)| *to = number.to_le_bytes());
            }
            Stored::Bf16(numbers) => {
                bytes.resize(first + 2 * numbers.len(), 0);
                let places = bytes[first..].as_chunks_mut().0.iter_mut();
                places.zip(numbers.iter()).for_each(|(to, number)| *to = number.to_le_bytes());
            }
        }
    }

    /// Takes as many as there are from `bytes`, which [`write_to`](Self::write_to) began with, and returns the rest; none if there are
    /// fewer.
    pub fn read_from<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        match self {
            Stored::F32(numbers) => {
                let (mine, rest) = bytes.split_at_checked(4 * numbers.len())?;
                let values = mine.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
                numbers.iter_mut().zip(values).for_each(|(to, value)| *to = value);
                Some(rest)
            }
            Stored::Bf16(numbers) => {
                let (mine, rest) = bytes.split_at_checked(2 * numbers.len())?;
                let values = mine.as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes));
                numbers.iter_mut().zip(values).for_each(|(to, value)| *to = value);
                Some(rest)
            }
        }
    }

    /// True if all are numbers, and none infinite.
    pub fn is_finite(&self) -> bool {
        match self {
            Stored::F32(numbers) => numbers.iter().all(|x| x.is_finite()),
            Stored::Bf16(numbers) => numbers.iter().all(|&x| from_bf16(x).is_finite()),
        }
    }

    /// Those in `range`.
    pub fn slice(&self, range: Range<usize>) -> Slice<'_> {
        match self {
            Stored::F32(numbers) => Slice::F32(&numbers[range]),
            Stored::Bf16(numbers) => Slice::Bf16(&numbers[range]),
        }
    }

    /// All of them.
    pub fn all(&self) -> Slice<'_> {
        self.slice(0..self.len())
    }

    /// Lets `work` change those in `range`, as f32; bf16 are rounded by chance, as `key` has it.
    pub fn edit<T>(
        &mut self,
        cpu: Cpu,
        range: Range<usize>,
        key: u32,
        work: impl FnOnce(&mut [f32]) -> T,
    ) -> T {
        match self {
            Stored::F32(numbers) => work(&mut numbers[range]),
            Stored::Bf16(numbers) => {
                let numbers = &mut numbers[range];
                with_scratch([numbers.len()], |[values]| {
                    cpu.run(Widen { from: numbers, to: values });
                    let result = work(values);
                    cpu.run(Round { from: values, to: numbers, key });
                    result
                })
            }
        }
    }
}

impl Slice<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Slice::F32(numbers) => numbers.len(),
            Slice::Bf16(numbers) => numbers.len(),
        }
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> From<&'a [f32]> for Slice<'a> {
    fn from(numbers: &'a [f32]) -> Slice<'a> {
        Slice::F32(numbers)
    }
}

/// What the upper half of the bits of an f32 stands for.
pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Ties to even; what is too large becomes infinite, and no number stays none.
pub fn to_nearest_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Makes bf16 f32.
#[inline(always)]
pub(super) fn widen<S: Simd>(from: &[u16], to: &mut [f32]) {
    assert_eq!(from.len(), to.len());
    let whole = from.len() / S::WIDTH * S::WIDTH;
    for at in (0..whole).step_by(S::WIDTH) {
        // SAFETY: `WIDTH` numbers from `at` on are in both slices.
        unsafe { S::store(to.as_mut_ptr().add(at), S::load_bf16(from.as_ptr().add(at))) };
    }
    to[whole..].iter_mut().zip(&from[whole..]).for_each(|(to, &from)| *to = from_bf16(from));
}

struct Widen<'a> {
    from: &'a [u16],
    to: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        widen::<S>(self.from, self.to);
    }
}

struct Round<'a> {
    from: &'a [f32],
    to: &'a mut [u16],
    key: u32,
}

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Round { from, to, key } = self;
        for (at, (to, from)) in (0u32..).zip(to.iter_mut().zip(from)) {
            // The lower half is the chance that the upper is one more. NaN and infinity stay what they are: their lower halves
            // are 0, or no sum can leave the NaNs that arithmetic makes.
            let chance = scramble(key ^ at) & 0xffff;
            *to = (from.to_bits().wrapping_add(chance) >> 16) as u16;
        }
    }
}

/// Bits that look random, as many different ones as numbers: the hash `lowbias32` of Wellons (2018).
#[inline(always)]
fn scramble(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// A key made of several numbers.
pub fn key(numbers: &[u64]) -> u32 {
    let halves = numbers.iter().flat_map(|&number| [number as u32, (number >> 32) as u32]);
    halves.fold(0x9e37_79b9, |key, half| scramble(scramble(key).wrapping_add(half)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bf16(len: usize) -> Stored {
        Stored::zeros(len, Precision::Bf16)
    }

    #[test]
    fn nearest_is_within_half_a_step_and_exact_where_it_can_be() {
        let mut stored = bf16(1);
        for value in [0.0, -0.0, 1.0, -1.5, 3.140625, 1e-40, 2f32.powi(127)] {
            stored.set(0, value);
            let got = stored.get(0);
            assert!((got - value).abs() <= value.abs() / 512.0 + 1e-40, "{value} became {got}");
        }
        for (value, want) in [(1.0 + 1.0 / 256.0, 1.0), (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0)] {
            stored.set(0, value);
            assert_eq!(stored.get(0), want, "ties go to even");
        }
        stored.set(0, f32::from_bits(0x7f80_0001));
        assert!(stored.get(0).is_nan() && !stored.is_finite());
        stored.set(0, f32::MAX);
        assert_eq!(stored.get(0), f32::INFINITY);
    }

    #[test]
    fn chance_is_right_on_average_and_the_same_on_every_cpu() {
        let (count, value) = (1 << 16, -1.0 - 0.3 / 128.0); // three tenths of the way to the next bf16
        let rounded = |cpu| {
            let mut stored = bf16(count + 5);
            stored.edit(cpu, 5..count + 5, key(&[1, 2]), |values| values.fill(value));
            stored
        };
        let first = rounded(Cpu::available()[0]);
        assert!((0..5).all(|at| first.get(at) == 0.0), "what is not in the range");
        let values: Vec<f32> = (5..count + 5).map(|at| first.get(at)).collect();
        assert!(values.iter().all(|&x| x == -1.0 || x == -1.0 - 1.0 / 128.0));
        let away = values.iter().filter(|&&x| x != -1.0).count() as f64 / count as f64;
        assert!((away - 0.3).abs() < 0.01, "{away} of them were rounded away from 0");
        for cpu in Cpu::available() {
            let other = rounded(cpu);
            assert!((0..other.len()).all(|at| other.get(at) == first.get(at)), "{}", cpu.name());
        }
    }

    #[test]
    fn what_is_not_changed_stays() {
        for cpu in Cpu::available() {
            let mut stored = bf16(37);
            (0..37).for_each(|at| stored.set(at, 1.0 / (at as f32 - 7.5)));
            let before: Vec<f32> = (0..37).map(|at| stored.get(at)).collect();
            stored.edit(cpu, 0..37, 7, |values| assert_eq!(values, before));
            assert!((0..37).all(|at| stored.get(at) == before[at]), "{}", cpu.name());
        }
    }

    #[test]
    fn infinity_and_nan_stay() {
        for cpu in Cpu::available() {
            let mut stored = bf16(64);
            stored.edit(cpu, 0..64, 3, |values| {
                values[..32].fill(f32::INFINITY);
                values[32..].fill(0.0 * f32::INFINITY);
            });
            assert!((0..32).all(|at| stored.get(at) == f32::INFINITY));
            assert!((32..64).all(|at| stored.get(at).is_nan()));
        }
    }
}
