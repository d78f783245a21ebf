//! How many requests a second are taken: from one address, with one access key, of one kind of operation. One more is answered
//! with 503 SlowDown and Retry-After, which clients of S3 know.
//!
//! A bucket holds what one second allows and fills evenly, so that a burst of that much passes at once. What is remembered is
//! bounded, whoever asks.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use s3s::{S3Error, S3ErrorCode, S3Result};

use crate::authority::operations;
use crate::error::with_retry_after;
use crate::limits::RATES_TRACKED_MAX;

/// Most requests a second; 0 is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// From one address, or from one network of 64 bits of IPv6.
    pub per_address: u32,
    /// With one access key.
    pub per_key: u32,
    /// Of one operation, by its name, whoever asks.
    pub operations: BTreeMap<String, u32>,
}

/// A rate is given for something that is no operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not an operation of the S3 head: use names like GetObject, PutObject or ListObjectsV2")]
pub struct UnknownOperation {
    name: String,
}

/// What is left of this second's requests.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: u32, now: Instant) -> Self {
        Self { left: f64::from(rate), at: now }
    }

    /// Takes a request out, or says when there will be one.
    fn take(&mut self, rate: u32, now: Instant) -> Result<(), Duration> {
        let rate = f64::from(rate);
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * rate).min(rate);
        self.at = now;
        if self.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.left) / rate));
        }
        self.left -= 1.0;
        Ok(())
    }
}

/// A bucket for each of many, at the same rate.
#[derive(Debug)]
struct Buckets<K> {
    rate: u32,
    by_name: Mutex<HashMap<K, Bucket>>,
}

impl<K: Eq + Hash> Buckets<K> {
    fn new(rate: u32) -> Self {
        Self { rate, by_name: Mutex::default() }
    }

    fn take(&self, name: K, now: Instant) -> Result<(), Duration> {
        if self.rate == 0 {
            return Ok(());
        }
        let mut buckets = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= RATES_TRACKED_MAX && !buckets.contains_key(&name) {
            // Who has not asked for a second has a full bucket, and none says the same.
            buckets.retain(|_, bucket| now.saturating_duration_since(bucket.at) < Duration::from_secs(1));
            if buckets.len() >= RATES_TRACKED_MAX {
                buckets.clear();
            }
        }
        buckets.entry(name).or_insert_with(|| Bucket::full(self.rate, now)).take(self.rate, now)
    }
}

/// Counts requests and refuses those that are too many.
#[derive(Debug)]
pub(crate) struct Throttle {
    addresses: Buckets<IpAddr>,
    keys: Buckets<String>,
    operations: HashMap<&'static str, (u32, Mutex<Bucket>)>,
}

impl Throttle {
    pub(crate) fn new(rates: &Rates) -> Result<Self, UnknownOperation> {
        let now = Instant::now();
        let mut operations = HashMap::new();
        for (name, rate) in rates.operations.iter().filter(|(_, rate)| **rate > 0) {
            let operation = operations::find(name).ok_or_else(|| UnknownOperation { name: name.clone() })?;
            operations.insert(operation.name, (*rate, Mutex::new(Bucket::full(*rate, now))));
        }
        Ok(Self { addresses: Buckets::new(rates.per_address), keys: Buckets::new(rates.per_key), operations })
    }

    /// A request came from this address.
    pub(crate) fn address(&self, address: IpAddr) -> S3Result<()> {
        self.addresses.take(network(address), Instant::now()).map_err(slow_down)
    }

    /// It is this operation, signed with this key.
    pub(crate) fn operation(&self, name: &'static str, access_key: Option<&str>) -> S3Result<()> {
        let now = Instant::now();
        if let Some(access_key) = access_key.filter(|_| self.keys.rate > 0) {
            self.keys.take(access_key.to_owned(), now).map_err(slow_down)?;
        }
        match self.operations.get(name) {
            Some((rate, bucket)) => {
                let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
                bucket.take(*rate, now).map_err(slow_down)
            }
            None => Ok(()),
        }
    }
}

/// Counts the connections of each address.
#[derive(Clone, Debug)]
pub(crate) struct Callers {
    limit: usize,
    /// No more entries than there are connections.
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A connection, counted for as long as this lives.
#[derive(Debug)]
pub(crate) struct Caller {
    network: IpAddr,
    callers: Callers,
}

impl Callers {
    /// `limit`: 0 is none.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, open: Arc::default() }
    }

    /// One more connection from `address`, if it may have one.
    pub(crate) fn admit(&self, address: IpAddr) -> Option<Caller> {
        let network = network(address);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.get(&network).copied().unwrap_or_default();
        if self.limit > 0 && count >= self.limit {
            return None;
        }
        open.insert(network, count + 1);
        Some(Caller { network, callers: self.clone() })
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut open = self.callers.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.network);
            }
        }
    }
}

/// What counts as one address: who has one of IPv6 has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address => address,
    }
}

fn slow_down(wait: Duration) -> S3Error {
    let error = S3Error::with_message(
        S3ErrorCode::SlowDown,
        "more requests than the operator of this node allows: send it again later, and more slowly",
    );
    let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
    with_retry_after(error, seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_a_second_passes_and_then_one_at_a_time() {
        let now = Instant::now();
        let buckets = Buckets::new(10);
        let passed = |at: Instant| (0..100).filter(|_| buckets.take("a", at).is_ok()).count();
        assert_eq!(passed(now), 10);
        assert!(buckets.take("b", now).is_ok(), "others are not held up");
        assert_eq!(buckets.take("a", now), Err(Duration::from_millis(100)));
        assert_eq!(passed(now + Duration::from_millis(350)), 3);
        assert_eq!(passed(now + Duration::from_secs(3_600)), 10, "no more is saved up");
        assert!((0..1000).all(|_| Buckets::new(0).take("a", now).is_ok()), "no limit");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgets_nobody_who_asks() {
        let now = Instant::now();
        let buckets = Buckets::new(1);
        for number in 0..3 * RATES_TRACKED_MAX {
            assert!(buckets.take(number, now).is_ok());
            assert!(buckets.by_name.lock().unwrap().len() <= RATES_TRACKED_MAX);
        }
        let later = now + Duration::from_secs(2);
        for number in 0..RATES_TRACKED_MAX {
            buckets.take(number, later).unwrap();
        }
        assert!(buckets.take(RATES_TRACKED_MAX - 1, later).is_err());
    }

    #[test]
    fn an_address_has_so_many_connections_and_others_are_not_held_up() {
        let callers = Callers::new(2);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = callers.admit(address("10.0.0.1")).unwrap();
        let second = callers.admit(address("::ffff:10.0.0.1")).unwrap();
        assert!(callers.admit(address("10.0.0.1")).is_none());
        assert!(callers.admit(address("10.0.0.2")).is_some(), "and gone again");
        drop(first);
        let third = callers.admit(address("10.0.0.1"));
        assert!(third.is_some());
        drop((second, third));
        assert!(callers.open.lock().unwrap().is_empty(), "nothing is remembered of those who left");
        let unlimited = Callers::new(0);
        let all: Vec<_> = (0..1000).filter_map(|_| unlimited.admit(address("10.0.0.1"))).collect();
        assert_eq!(all.len(), 1000);
    }

    #[test]
    fn addresses_of_one_network_count_as_one_and_operations_must_exist() {
        let same = |a: &str, b: &str| network(a.parse().unwrap()) == network(b.parse().unwrap());
        assert!(same("2001:db8::1", "2001:db8::2:3") && !same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:10.0.0.1", "10.0.0.1") && !same("10.0.0.1", "10.0.0.2"));
        let rates = |name: &str| Rates { operations: [(name.to_owned(), 2)].into(), ..Rates::default() };
        assert!(Throttle::new(&rates("GetObjekt")).is_err());
        let throttle = Throttle::new(&rates("GetObject")).unwrap();
        // The third at the latest, but that time goes on meanwhile.
        let outcomes: Vec<_> = (0..1_000).map(|_| throttle.operation("GetObject", None)).collect();
        assert!(outcomes[..2].iter().all(Result::is_ok));
        let refused = outcomes.into_iter().find_map(Result::err).unwrap();
        assert_eq!(refused.code(), &S3ErrorCode::SlowDown);
        assert!(throttle.operation("PutObject", None).is_ok());
    }
}
