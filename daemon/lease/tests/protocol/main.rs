//! The lease protocol from outside: the exchange, its refusals, a simulation of bad networks, and its bytes.

mod exchange;
mod golden;
mod simulation;
mod support;
