//! Each source on a recorded tree, its twin; and no bytes in any file of it that make a reader panic.

mod golden;
mod hostile;
mod profiles;
mod recorded;
mod tree;
