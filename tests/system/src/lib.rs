//! Tests of the programs as their users meet them: real clients, real signals, real damage. See `tests/`.
//!
//! They run one at a time (`.config/nextest.toml`): each starts daemons, and some of them measure time.

mod installation;

pub use installation::{BUCKET, Installation};
