//! Futures whose polls begin on a clean stack, or leave one.
//!
//! A value that moves takes its unused bytes along: the payload of a `None`, the padding, the states of a task that it has not
//! come to yet. On a stack that a client's secrets were on, those bytes are pieces of them. Where the value moves to the heap and
//! stays there, so do they, and neither the allocator's zeros nor a later wipe of the stack reaches them.

use std::pin::Pin;
use std::task::{Context, Poll};

/// See [`on_clean_stack`].
#[derive(Debug)]
pub struct OnCleanStack<F>(Pin<Box<F>>);

/// See [`leaving_nothing`].
#[derive(Debug)]
pub struct LeavingNothing<F>(Pin<Box<F>>);

/// Has every poll of `future` begin where nothing of earlier work is left: for what outlives a wipe and is polled by
/// threads that clients' data passes through.
pub fn on_clean_stack<F: Future>(future: F) -> OnCleanStack<F> {
    OnCleanStack(Box::pin(future))
}

/// Wipes the stack and the registers after every poll of `future`: for what works with secrets, seldom.
pub fn leaving_nothing<F: Future>(future: F) -> LeavingNothing<F> {
    LeavingNothing(Box::pin(future))
}

impl<F: Future> Future for OnCleanStack<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        crate::this_thread();
        poll_below(self.0.as_mut(), context)
    }
}

impl<F: Future> Future for LeavingNothing<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let polled = poll_below(self.0.as_mut(), context);
        crate::this_thread();
        polled
    }
}

/// Runs `work` where nothing of earlier work is left.
pub fn begin_clean<R>(work: impl FnOnce() -> R) -> R {
    #[inline(never)]
    fn run_below<R>(work: impl FnOnce() -> R) -> R {
        work()
    }
    crate::this_thread();
    run_below(work)
}

/// In a frame below the caller's, where what is wiped lies.
#[inline(never)]
fn poll_below<F: Future>(future: Pin<&mut F>, context: &mut Context<'_>) -> Poll<F::Output> {
    future.poll(context)
}
