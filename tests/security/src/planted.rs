//! The positive control as a child process: see `bin/planted.rs`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A process that holds bytes in ordinary memory until it is dropped.
#[derive(Debug)]
pub struct Planted {
    child: Child,
    /// Where it holds them.
    pub address: u64,
    /// Its open file that holds them too.
    pub descriptor: i32,
}

impl Planted {
    /// Starts `program` as `user` (root where it is `None`) in `folder`, holding `bytes`.
    ///
    /// # Panics
    /// Where it does not start or does not answer.
    pub fn start(program: &Path, user: Option<u32>, folder: &Path, bytes: &[u8]) -> Self {
        let mut child = Command::new(program)
            .args(user.map(|user| user.to_string()))
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the control program starts");
        writeln!(child.stdin.as_mut().expect("piped"), "{}", hex::encode(bytes))
            .expect("the control program reads");
        let mut answer = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut answer).expect("it answers");
        let mut words = answer.split_whitespace();
        assert_eq!(words.next(), Some("held"), "{answer}");
        let address = words.next().and_then(|word| u64::from_str_radix(word, 16).ok()).expect("an address");
        let descriptor = words.next().and_then(|word| word.parse().ok()).expect("a descriptor");
        Self { child, address, descriptor }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its process.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
