//! Connections in their handshake, whose peers nobody knows yet: any machine that reaches the port can open them, and they must not
//! keep out those who can show a certificate.

use std::collections::VecDeque;

use tokio_util::sync::{CancellationToken, DropGuard};

/// The handshakes of one port. A new connection is always let in; where there are too many, the oldest is given up: a sound one takes
/// milliseconds.
#[derive(Debug)]
pub struct Handshakes {
    most: usize,
    /// A token is cancelled when its handshake is over, or is given up.
    under_way: VecDeque<CancellationToken>,
}

/// A place for one handshake. Given back when it is dropped.
#[derive(Debug)]
pub struct HandshakePlace {
    ended: CancellationToken,
    _end: DropGuard,
}

impl Handshakes {
    /// At most so many at once, one at least.
    pub const fn new(most: usize) -> Self {
        Self { most, under_way: VecDeque::new() }
    }

    /// A place for a connection that was just accepted.
    pub fn begin(&mut self) -> HandshakePlace {
        self.under_way.retain(|handshake| !handshake.is_cancelled());
        if self.under_way.len() >= self.most
            && let Some(oldest) = self.under_way.pop_front()
        {
            oldest.cancel();
        }
        let ended = CancellationToken::new();
        self.under_way.push_back(ended.clone());
        HandshakePlace { _end: ended.clone().drop_guard(), ended }
    }
}

impl HandshakePlace {
    /// What the handshake comes to; `None` where it was given up for a later one.
    pub async fn run<T>(self, handshake: impl Future<Output = T>) -> Option<T> {
        self.ended.run_until_cancelled(handshake).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_is_given_up_for_the_newest_and_one_that_is_over_takes_no_place() {
        let mut handshakes = Handshakes::new(2);
        let (first, second) = (handshakes.begin(), handshakes.begin());
        assert_eq!(second.run(async { 2 }).await, Some(2));
        let third = handshakes.begin();
        assert!(!first.ended.is_cancelled(), "the second one's place was free");
        let fourth = handshakes.begin();
        assert_eq!(first.run(std::future::pending::<()>()).await, None);
        assert_eq!((third.run(async { 3 }).await, fourth.run(async { 4 }).await), (Some(3), Some(4)));
        for _ in 0..100 {
            drop(handshakes.begin());
        }
        assert!(handshakes.under_way.len() <= 2);
    }
}
