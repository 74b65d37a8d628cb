//! The share of sign-ins that one address may have finished at the provider, which answers for each of them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::model::time::Timestamp;

/// Interval at which an address may finish a sign-in.
const EVERY: Duration = Duration::from_secs(1);
/// Number of sign-ins that an address may finish at once, such as that of an office or of a proxy.
const AT_ONCE: u32 = 60;
/// Maximum number of addresses that are remembered.
const ADDRESSES_MAX: usize = 4096;

/// Attempts to sign in, by address (GCRA): each address has the time until which its attempts are paid for.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<HashMap<IpAddr, Timestamp>>);

impl Attempts {
    /// Takes an attempt; returns false if the address has had too many.
    pub(super) fn take(&self, address: IpAddr, now: Timestamp) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= ADDRESSES_MAX {
            all.retain(|_, paid_until| *paid_until > now);
        }
        if all.len() >= ADDRESSES_MAX {
            // So many addresses at once are one sender's. What is in flight stays bounded.
            all.clear();
        }
        let paid_until = all.entry(network(address)).or_insert(now);
        let next = (*paid_until).max(now).plus(EVERY);
        let is_taken = next <= now.plus(EVERY * AT_ONCE);
        if is_taken {
            *paid_until = next;
        }
        is_taken
    }
}

/// Returns the address, and of IPv6 the network of 64 bits, in which one host may have any number of addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_a_share_that_grows_again() {
        let attempts = Attempts::default();
        let now = Timestamp::from_seconds(1_800_000_000);
        let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let taken = (0..500).filter(|_| attempts.take(address("192.0.2.1"), now)).count();
        assert_eq!(taken, 60);
        assert!(attempts.take(address("192.0.2.2"), now), "another address has its own share");
        let later = now.plus(Duration::from_secs(5));
        assert_eq!((0..500).filter(|_| attempts.take(address("192.0.2.1"), later)).count(), 5);
        let of_one = |host: u16| attempts.take(address(&format!("2001:db8::{host:x}")), now);
        assert_eq!((0..500).filter(|host| of_one(*host)).count(), 60, "one network is one address");
        assert!(!attempts.take(address("::ffff:192.0.2.1"), later), "another form of the same address");
    }

    #[test]
    fn no_number_of_addresses_takes_more_memory() {
        let attempts = Attempts::default();
        let now = Timestamp::from_seconds(1_800_000_000);
        for host in 0..100_000_u32 {
            assert!(attempts.take(IpAddr::V4(host.into()), now));
        }
        assert!(attempts.0.lock().expect("the attempts").len() <= ADDRESSES_MAX);
    }
}
