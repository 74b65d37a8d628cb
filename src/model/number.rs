//! Conversions between sizes of numbers. None of them fails: a number that is too large becomes the largest
//! one.

/// A number without a sign, so a number that does not fit is too large.
pub trait Unsigned: TryInto<u32> + TryInto<u64> + TryInto<usize> + TryInto<i64> {}

impl Unsigned for u32 {}
impl Unsigned for u64 {}
impl Unsigned for u128 {}
impl Unsigned for usize {}

/// Converts to 32 bits, or to the largest such number.
pub fn to_u32(number: impl Unsigned) -> u32 {
    TryInto::<u32>::try_into(number).unwrap_or(u32::MAX)
}

/// Converts to 64 bits, or to the largest such number. Every `usize` fits.
pub fn to_u64(number: impl Unsigned) -> u64 {
    TryInto::<u64>::try_into(number).unwrap_or(u64::MAX)
}

/// Converts to the size of memory, or to the largest such number.
pub fn to_usize(number: impl Unsigned) -> usize {
    TryInto::<usize>::try_into(number).unwrap_or(usize::MAX)
}

/// Converts to a signed number of 64 bits, or to the largest such number.
pub fn to_i64(number: impl Unsigned) -> i64 {
    TryInto::<i64>::try_into(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_do_not_fit_are_the_largest() {
        assert_eq!((to_u32(7_usize), to_u32(u64::MAX), to_u32(usize::MAX)), (7, u32::MAX, u32::MAX));
        assert_eq!(
            (to_u64(7_usize), to_u64(u128::MAX), to_usize(7_u32), to_usize(u128::MAX)),
            (7, u64::MAX, 7, usize::MAX)
        );
        assert_eq!((to_i64(7_u64), to_i64(u64::MAX), to_i64(u128::MAX)), (7, i64::MAX, i64::MAX));
    }
}
