//! kill -9 of a real node at random moments under mixed load, over its real heads: after the next push every acknowledged
//! PUT and every write before an acknowledged flush is there, byte for byte.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::random::{Random, SEED_VARIABLE, seed};
use harness::s3::{S3Client, S3Error};
use harness::site::{DISK, Site, SiteSpec};
use nbd_server::client::{Client, ClientError, Endpoint, ZeroOptions};
use simulation_tests::load::{BlockClient, Blocks, Interruption, ObjectClient, Objects, Promises};

/// Rounds of `make test`; `make soak` sets the variable.
const ROUNDS: u64 = 20;
const ROUNDS_VARIABLE: &str = "NIGHTLATCH_KILL_ROUNDS";

/// Requests that are answered in each round before the node may die.
const ACKNOWLEDGED_MIN: u64 = 1_000;

/// Clients of each head.
const CLIENTS: u64 = 3;

/// Length of the volume.
const DISK_BYTES: u64 = 48 << 20;

/// Time in which a round must have had its requests answered.
const ROUND_PATIENCE: Duration = Duration::from_secs(120);

struct NbdBlocks(Client);

fn nbd_interruption(error: &ClientError) -> Interruption {
    match error {
        ClientError::Closed { .. } | ClientError::Connect { .. } => {
            Interruption::Unanswered(error.to_string())
        }
        _ => Interruption::Wrong(format!("an NBD request failed: {error}")),
    }
}

impl Blocks for NbdBlocks {
    fn read(&mut self, at: u64, out: &mut [u8]) -> Result<(), Interruption> {
        self.0.read(at, out).map_err(|error| nbd_interruption(&error))
    }

    fn write(&mut self, at: u64, data: &[u8], durable: bool) -> Result<(), Interruption> {
        self.0.write(at, data, durable).map_err(|error| nbd_interruption(&error))
    }

    fn write_zeroes(&mut self, at: u64, len: u64, durable: bool) -> Result<(), Interruption> {
        let keep_allocated = !(at / 4096).is_multiple_of(2);
        let options = ZeroOptions { durable, keep_allocated, ..ZeroOptions::default() };
        self.0.write_zeroes(at, len, options).map_err(|error| nbd_interruption(&error))
    }

    fn trim(&mut self, at: u64, len: u64) -> Result<(), Interruption> {
        self.0.trim(at, len, false).map_err(|error| nbd_interruption(&error))
    }

    fn flush(&mut self) -> Result<(), Interruption> {
        self.0.flush().map_err(|error| nbd_interruption(&error))
    }
}

struct S3Objects(S3Client);

fn s3_interruption(error: &S3Error) -> Interruption {
    match error {
        S3Error::Unanswered(why) => Interruption::Unanswered(why.clone()),
        S3Error::Refused { .. } => Interruption::Wrong(format!("an S3 request failed: {error}")),
    }
}

impl Objects for S3Objects {
    fn put(&mut self, key: &str, body: &[u8]) -> Result<(), Interruption> {
        self.0.put(key, body.to_vec()).map(|_| ()).map_err(|error| s3_interruption(&error))
    }

    fn put_in_parts(&mut self, key: &str, parts: &[&[u8]]) -> Result<(), Interruption> {
        let parts = parts.iter().map(|part| part.to_vec()).collect();
        self.0.put_in_parts(key, parts).map(|_| ()).map_err(|error| s3_interruption(&error))
    }

    fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>, Interruption> {
        let body = self.0.get(key).map_err(|error| s3_interruption(&error))?;
        Ok(body.map(|body| body.to_vec()))
    }

    fn delete(&mut self, key: &str) -> Result<(), Interruption> {
        self.0.delete(key).map(|_| ()).map_err(|error| s3_interruption(&error))
    }

    fn list(&mut self, prefix: &str) -> Result<BTreeSet<String>, Interruption> {
        self.0.list(prefix).map_err(|error| s3_interruption(&error))
    }
}

/// A site with its clients' access.
struct Served {
    site: Site,
    access_key: String,
    secret_key: String,
}

impl Served {
    fn new() -> Self {
        let spec = SiteSpec { plain: true, disk_bytes: DISK_BYTES, ..SiteSpec::default() };
        let site = Site::serving(spec);
        let key = site.create_user("tester");
        site.create_bucket("bucket");
        Self { site, access_key: key.access_key, secret_key: key.secret_key }
    }

    /// Half of the block clients come over TCP.
    fn blocks(&self, client: usize) -> NbdBlocks {
        let endpoint = if client.is_multiple_of(2) {
            Endpoint::unix(self.site.nbd_socket())
        } else {
            Endpoint::tcp(self.site.nbd_address())
        };
        NbdBlocks(Client::connect(&endpoint, DISK).expect("an unsealed export"))
    }

    fn objects(&self) -> S3Objects {
        let address = self.site.node_config().listen.s3.expect("the site serves S3");
        S3Objects(S3Client::new(address, "bucket", &self.access_key, &self.secret_key))
    }

    /// Loads the node from all clients until it is killed at a random moment. Returns the requests answered.
    fn round(&mut self, promises: &Promises, random: &mut Random) -> u64 {
        let answered = AtomicU64::new(0);
        let (killed, failed) = (AtomicBool::new(false), AtomicBool::new(false));
        let run = |step: &mut dyn FnMut() -> Result<(), Interruption>| {
            loop {
                match step() {
                    Ok(()) => answered.fetch_add(1, Ordering::Relaxed),
                    Err(Interruption::Unanswered(_)) if killed.load(Ordering::SeqCst) => return Ok(()),
                    Err(broken) => {
                        failed.store(true, Ordering::SeqCst);
                        return Err(broken.to_string());
                    }
                };
            }
        };
        let connections: Vec<_> =
            (0..promises.clients()).map(|client| (self.blocks(client), self.objects())).collect();
        let more = random.below(2 * ACKNOWLEDGED_MIN);
        let mut randoms: Vec<Random> = (0..2 * CLIENTS).map(|_| random.split()).collect();
        let outcome = std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (client, (mut disk, mut store)) in connections.into_iter().enumerate() {
                let mut blocks = BlockClient::new(promises, client, randoms.remove(0));
                let mut objects = ObjectClient::new(promises, client, randoms.remove(0));
                let run = &run;
                threads.push(scope.spawn(move || run(&mut || blocks.step(&mut disk))));
                threads.push(scope.spawn(move || run(&mut || objects.step(&mut store))));
            }
            let start = Instant::now();
            let due = || answered.load(Ordering::Relaxed) >= ACKNOWLEDGED_MIN + more;
            while !due() && !failed.load(Ordering::SeqCst) && start.elapsed() < ROUND_PATIENCE {
                std::thread::sleep(Duration::from_millis(1));
            }
            killed.store(true, Ordering::SeqCst);
            self.site.kill_node();
            threads.into_iter().try_for_each(|thread| thread.join().expect("a client's thread ends"))
        });
        outcome.expect("every request before the kill is answered as promised");
        answered.into_inner()
    }

    fn check(&self, promises: &Promises) {
        let checked = promises.check_recovered(&mut self.blocks(0), &mut self.objects());
        checked.unwrap_or_else(|broken| panic!("after a kill: {broken}"));
    }
}

#[test]
fn a_killed_node_comes_back_with_everything_acknowledged() {
    let seed = seed();
    println!("{SEED_VARIABLE}={seed}");
    let mut random = Random::new(seed);
    let rounds = std::env::var(ROUNDS_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let mut served = Served::new();
    let promises = Promises::new(CLIENTS, DISK_BYTES);
    let start = Instant::now();
    let (mut total, mut least) = (0, u64::MAX);
    for _ in 0..rounds {
        let answered = served.round(&promises, &mut random);
        served.site.start_node();
        served.site.wait_serving();
        served.check(&promises);
        total += answered;
        least = least.min(answered);
    }
    println!(
        "{rounds} kills in {:?}: {total} acknowledged requests, at least {least} a round",
        start.elapsed()
    );
    assert!(least >= ACKNOWLEDGED_MIN, "a round had only {least} acknowledged requests");
}
