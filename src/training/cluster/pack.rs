//! How gradients travel: whole, as bf16, or only the largest of them. What is left out stays behind and is sent with a later
//! push (error feedback, Seide et al. 2014; Stich et al. 2018), so that nothing is lost, only late.

use crate::config::PushAs;
use crate::kernels::stored::{from_bf16, to_nearest_bf16};

/// Appends `values`, multiplied by `scale`, to `letter`; what was not sent of them stays in `values`.
pub fn pack(values: &mut [f32], scale: f32, how: PushAs, letter: &mut Vec<u8>) {
    match how {
        PushAs::F32 => {
            letter.extend(values.iter().flat_map(|value| (scale * value).to_le_bytes()));
            values.fill(0.0);
        }
        PushAs::Bf16 => letter.extend(values.iter_mut().flat_map(|value| {
            let sent = to_nearest_bf16(scale * *value);
            *value = scale * *value - from_bf16(sent);
            sent.to_le_bytes()
        })),
        PushAs::TopPercent => {
            values.iter_mut().for_each(|value| *value *= scale);
            let chosen = largest(values);
            letter.extend((chosen.len() as u32).to_le_bytes());
            letter.extend(chosen.iter().flat_map(|place| place.to_le_bytes()));
            let sent = chosen.iter().map(|&place| std::mem::take(&mut values[place as usize]));
            letter.extend(sent.flat_map(f32::to_le_bytes));
        }
    }
}

/// Places of the largest hundredth of `values`, at least one, in order; none of those that are 0.
fn largest(values: &[f32]) -> Vec<u32> {
    let count = values.len().div_ceil(100);
    if count == 0 {
        return Vec::new();
    }
    let mut sizes: Vec<f32> = values.iter().map(|value| value.abs()).collect();
    let (_, &mut least, _) = sizes.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
    let places = |which: &dyn Fn(f32) -> bool| -> Vec<u32> {
        (0..).zip(values).filter(|(_, value)| which(value.abs())).map(|(place, _)| place).collect()
    };
    // Of those that are as large as the least, as many as there is room for.
    let mut chosen = places(&|size| size > least || size.is_nan());
    if least > 0.0 {
        chosen.extend(places(&|size| size == least));
    }
    chosen.truncate(count);
    chosen.sort_unstable();
    chosen
}

/// Replaces `values` by those that [`pack`] put at the beginning of `letter`, and returns the rest of it; none if it is no such
/// letter.
pub fn unpack<'a>(letter: &'a [u8], how: PushAs, values: &mut [f32]) -> Option<&'a [u8]> {
    match how {
        PushAs::F32 => {
            let (packed, rest) = letter.split_at_checked(4 * values.len())?;
            let numbers = packed.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
            values.iter_mut().zip(numbers).for_each(|(to, value)| *to = value);
            Some(rest)
        }
        PushAs::Bf16 => {
            let (packed, rest) = letter.split_at_checked(2 * values.len())?;
            let numbers = packed.as_chunks().0.iter().map(|&bytes| from_bf16(u16::from_le_bytes(bytes)));
            values.iter_mut().zip(numbers).for_each(|(to, value)| *to = value);
            Some(rest)
        }
        PushAs::TopPercent => {
            values.fill(0.0);
            let (count, rest) = letter.split_first_chunk()?;
            let count = u32::from_le_bytes(*count) as usize;
            let (places, rest) = rest.split_at_checked(4 * count)?;
            let (sent, rest) = rest.split_at_checked(4 * count)?;
            for (place, value) in places.as_chunks().0.iter().zip(sent.as_chunks().0) {
                *values.get_mut(u32::from_le_bytes(*place) as usize)? = f32::from_le_bytes(*value);
            }
            Some(rest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [PushAs; 3] = [PushAs::F32, PushAs::Bf16, PushAs::TopPercent];

    fn gradient(len: usize) -> Vec<f32> {
        (0..len).map(|at| ((at * 37 + 11) % 101) as f32 / 7.0 - 5.0).collect()
    }

    #[test]
    fn what_is_sent_and_what_stays_behind_are_all_of_it() {
        for how in ALL {
            for len in [0, 1, 99, 1000] {
                let (first, mut values, mut letter) = (gradient(len), gradient(len), vec![7]);
                pack(&mut values, 0.5, how, &mut letter);
                let mut got = vec![f32::NAN; len];
                let rest = unpack(&letter[1..], how, &mut got).unwrap();
                assert!(rest.is_empty() && letter[0] == 7, "{how:?}");
                for ((got, kept), value) in got.iter().zip(&values).zip(&first) {
                    assert!((got + kept - 0.5 * value).abs() < 1e-6, "{how:?}: {got} and {kept} of {value}");
                }
            }
        }
    }

    #[test]
    fn letters_are_as_long_as_they_should_be() {
        for (how, bytes) in ALL.into_iter().zip([4000, 2000, 4 + 10 * 8]) {
            let mut letter = Vec::new();
            pack(&mut gradient(1000), 1.0, how, &mut letter);
            assert_eq!(letter.len(), bytes, "{how:?}");
        }
    }

    #[test]
    fn the_largest_go_first_and_the_others_follow() {
        let mut values = vec![0.0; 300];
        (values[7], values[100], values[299], values[3]) = (-4.0, 2.0, 3.0, 1.0);
        let (mut letter, mut got) = (Vec::new(), vec![0.0; 300]);
        pack(&mut values, 1.0, PushAs::TopPercent, &mut letter);
        unpack(&letter, PushAs::TopPercent, &mut got).unwrap();
        assert_eq!((got[7], got[100], got[299], got[3], values[3]), (-4.0, 2.0, 3.0, 0.0, 1.0));
        letter.clear();
        pack(&mut values, 1.0, PushAs::TopPercent, &mut letter);
        unpack(&letter, PushAs::TopPercent, &mut got).unwrap();
        assert!(got.iter().filter(|&&g| g != 0.0).count() == 1 && got[3] == 1.0, "zeros are not sent");
        assert!(values.iter().all(|&value| value == 0.0));
    }

    #[test]
    fn rounding_is_made_up_for_by_later_pushes() {
        let (mut values, mut sum, mut got) = ([0f32; 64], [0f64; 64], [0f32; 64]);
        for _ in 0..200 {
            // A 512th more than a bf16: rounded down each time, it would never be seen.
            values.iter_mut().for_each(|value| *value += 1.0 + 1.0 / 512.0);
            let mut letter = Vec::new();
            pack(&mut values, 1.0, PushAs::Bf16, &mut letter);
            unpack(&letter, PushAs::Bf16, &mut got).unwrap();
            sum.iter_mut().zip(got).for_each(|(sum, got)| *sum += f64::from(got));
        }
        let all = 200.0 * (1.0 + 1.0 / 512.0);
        assert!(sum.iter().all(|sum| (sum - all).abs() < 0.01), "{} of {all}", sum[0]);
    }

    #[test]
    fn half_a_letter_is_refused() {
        for how in ALL {
            let (mut letter, mut got) = (Vec::new(), vec![0.0; 500]);
            pack(&mut gradient(500), 1.0, how, &mut letter);
            for len in [0, 3, letter.len() / 2, letter.len() - 1] {
                assert!(unpack(&letter[..len], how, &mut got).is_none(), "{how:?}: {len} bytes");
            }
        }
        let foreign = [1u32, 500, 0].map(u32::to_le_bytes).concat();
        assert!(unpack(&foreign, PushAs::TopPercent, &mut [0.0; 500]).is_none(), "a place that is none");
    }
}
