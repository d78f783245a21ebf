//! A whole keyholder over real TLS on loopback, with nodes that are driven by the lease protocol's own machine and keep
//! what they are lent in a map.
#![expect(clippy::unwrap_used, reason = "tests: a failed unwrap is a failed test")]

mod access;
mod attacks;
mod attestation;
mod fake_node;
mod latches;
mod leases;
mod oidc;
mod people;
mod requests;
mod restore;
mod rotation;
mod rules;
mod site;
mod volumes;
