//! One seed, many independent streams of random numbers, each with a name.
//!
//! A stream depends on the seed, its name and its index only, never on which thread asks or in which order, so
//! that adding a use of randomness somewhere changes nothing elsewhere.

use rand::SeedableRng;
pub use rand_chacha::ChaCha8Rng;

/// The stream called `name` (say `"shuffle"`) and numbered `index` (say the epoch) of `seed`.
pub fn stream(seed: u64, name: &str, index: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ stable_hash(name.as_bytes()));
    rng.set_stream(index);
    rng
}

/// A 64-bit FNV-1a hash, the same on every machine and in every version: for seeds and keys, not for security.
pub fn stable_hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn streams_differ_by_seed_name_and_index_and_repeat() {
        let draw = |seed, name, index| stream(seed, name, index).random::<u64>();
        let base = draw(1, "shuffle", 0);
        assert_eq!(base, draw(1, "shuffle", 0));
        for other in [draw(2, "shuffle", 0), draw(1, "init", 0), draw(1, "shuffle", 1)] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(stable_hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(stable_hash(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
