//! A node's life through many power cuts, under load, and what it covered.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use device::SimulatedDevice;
use harness::random::Random;
use pool::{CrashStep, StepHook};

use crate::load::{BlockClient, Interruption, ObjectClient, Promises};
use crate::node::{DISK_BYTES, SimulatedNode};

/// Clients of each head.
const CLIENTS: u64 = 2;

/// Device operations between two cuts at most: a few checkpoints, some dozens of acknowledged requests.
const OPERATIONS_MAX: u64 = 400;

/// Which clients make the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    Both,
    Blocks,
    Objects,
}

/// When power goes.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// After any number of device operations.
    Anywhere,
    /// At the step's nth occurrence.
    At(CrashStep, u64),
}

/// How many of each kind were seen, over all lives.
#[derive(Debug, Default)]
pub struct Coverage {
    pub acknowledged: AtomicU64,
    pub cuts: AtomicU64,
    pub cuts_while_opening: AtomicU64,
    /// Crash steps that the pool passed.
    passed: Mutex<BTreeMap<CrashStep, u64>>,
    /// The last step before the power went.
    went_after: Mutex<BTreeMap<CrashStep, u64>>,
}

fn count(counts: &Mutex<BTreeMap<CrashStep, u64>>, step: CrashStep) -> u64 {
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    let count = counts.entry(step).or_default();
    *count += 1;
    *count
}

impl Coverage {
    /// How often power went after each step.
    pub fn went_after(&self) -> BTreeMap<CrashStep, u64> {
        self.went_after.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For people.
    pub fn describe(&self) -> String {
        format!(
            "{} power cuts under load, {} while opening, {} acknowledged requests; crash steps passed {:?}; power went \
             after {:?}",
            self.cuts.load(Ordering::Relaxed),
            self.cuts_while_opening.load(Ordering::Relaxed),
            self.acknowledged.load(Ordering::Relaxed),
            self.passed.lock().unwrap_or_else(PoisonError::into_inner),
            self.went_after(),
        )
    }
}

/// One pool and what its clients were promised.
#[derive(Debug)]
pub struct Life {
    device: Arc<SimulatedDevice>,
    promises: Promises,
    random: Random,
    heads: Heads,
    coverage: Arc<Coverage>,
    /// The device says that it has flushed, and has not.
    pub flush_is_noop: bool,
}

impl Life {
    /// A fresh pool, made durable. `seed` decides everything but the threads' order.
    ///
    /// # Panics
    /// Where the pool cannot be made.
    pub fn new(seed: u64, heads: Heads, coverage: &Arc<Coverage>) -> Self {
        let mut random = Random::new(seed);
        let device = SimulatedNode::create().power_cut(random.bits());
        let promises = Promises::new(CLIENTS, DISK_BYTES);
        Self { device, promises, random, heads, coverage: Arc::clone(coverage), flush_is_noop: false }
    }

    /// Opens, checks, loads until the power goes.
    ///
    /// # Errors
    /// The broken promise.
    pub fn cut(&mut self, cut: Cut) -> Result<(), String> {
        if matches!(cut, Cut::Anywhere) && self.random.once_in(8) {
            self.cut_while_opening();
        }
        let last = Arc::new(Mutex::new(None));
        let hook = self.hook(cut, &last);
        let node = match SimulatedNode::open(Arc::clone(&self.device), Some(hook)) {
            Ok(node) => node,
            // The step was one of opening's own.
            Err(_) if !self.device.has_power() => {
                self.power_went(&last, None);
                return Ok(());
            }
            Err(error) => return Err(error.to_string()),
        };
        if self.flush_is_noop {
            self.device.make_flush_a_noop();
        }
        match self.check_node(&node) {
            Ok(()) => {}
            // What the store gives back behind its opening came to the step first. The next opening is checked.
            Err(Interruption::Unanswered(_)) if !self.device.has_power() => {
                self.power_went(&last, Some(node));
                return Ok(());
            }
            Err(broken) => return Err(broken.to_string()),
        }
        if matches!(cut, Cut::Anywhere) {
            self.device.cut_power_at(self.device.operations() + self.random.between(1, OPERATIONS_MAX));
        }
        if self.random.once_in(2) {
            self.load_in_threads(&node)?
        } else {
            self.load_in_turns(&node)?
        }
        self.power_went(&last, Some(node));
        Ok(())
    }

    /// Compares everything with what the last cut left.
    ///
    /// # Errors
    /// The broken promise.
    pub fn check(&self) -> Result<(), String> {
        let node = SimulatedNode::open(Arc::clone(&self.device), None).map_err(|error| error.to_string())?;
        self.check_node(&node).map_err(|broken| broken.to_string())
    }

    fn check_node(&self, node: &SimulatedNode) -> Result<(), Interruption> {
        self.promises.check_recovered(&mut node.blocks(), &mut node.objects())
    }

    /// Remembers the last step, and cuts power at the one that is wanted.
    fn hook(&self, cut: Cut, last: &Arc<Mutex<Option<CrashStep>>>) -> StepHook {
        let (coverage, last, device) =
            (Arc::clone(&self.coverage), Arc::clone(last), Arc::clone(&self.device));
        let seen = AtomicU64::new(0);
        let arrived = AtomicBool::new(false);
        Arc::new(move |step| {
            // Other threads pass further steps before the cut's own operation reaches the device. One thread at a time, or one of
            // those that had not seen the cut coming would be taken for the last.
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if arrived.load(Ordering::Relaxed) || !device.has_power() {
                return;
            }
            count(&coverage.passed, step);
            *last = Some(step);
            if let Cut::At(wanted, nth) = cut
                && wanted == step
                && seen.fetch_add(1, Ordering::Relaxed) + 1 == nth
            {
                arrived.store(true, Ordering::Relaxed);
                device.cut_power_at(device.operations());
            }
        })
    }

    fn cut_while_opening(&mut self) {
        self.device.cut_power_at(self.device.operations() + self.random.below(12));
        let opened = SimulatedNode::open(Arc::clone(&self.device), None);
        if !self.device.has_power() {
            self.coverage.cuts_while_opening.fetch_add(1, Ordering::Relaxed);
        }
        self.device = self.device.power_cut(self.random.bits());
        drop(opened);
    }

    fn power_went(&mut self, last: &Mutex<Option<CrashStep>>, node: Option<SimulatedNode>) {
        self.coverage.cuts.fetch_add(1, Ordering::Relaxed);
        if let Some(step) = *last.lock().unwrap_or_else(PoisonError::into_inner) {
            count(&self.coverage.went_after, step);
        }
        // A process that was killed and then lost power is worse than either.
        if self.random.once_in(10) {
            self.device = self.device.reopened();
        }
        // First the power, then whatever closing would still do.
        self.device = self.device.power_cut(self.random.bits());
        drop(node);
    }

    /// Whether a client goes on after a request.
    fn judge(&self, step: Result<(), Interruption>) -> Result<bool, String> {
        match step {
            Ok(()) => {
                self.coverage.acknowledged.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Err(Interruption::Unanswered(_)) if !self.device.has_power() => Ok(false),
            Err(Interruption::Unanswered(why)) => {
                Err(format!("a request failed while there was power: {why}"))
            }
            Err(Interruption::Wrong(what)) => Err(what),
        }
    }

    /// One request after the other: the same seed makes the same requests.
    fn load_in_turns(&mut self, node: &SimulatedNode) -> Result<(), String> {
        let mut order = self.random.split();
        let mut seeds: Vec<Random> = (0..2 * CLIENTS).map(|_| self.random.split()).collect();
        let mut clients: Vec<Box<dyn FnMut() -> Result<(), Interruption> + '_>> = Vec::new();
        for client in 0..self.promises.clients() {
            let (for_blocks, for_objects) = (seeds.remove(0), seeds.remove(0));
            if self.heads != Heads::Objects {
                let mut disk = node.blocks();
                let mut client = BlockClient::new(&self.promises, client, for_blocks);
                clients.push(Box::new(move || client.step(&mut disk)));
            }
            if self.heads != Heads::Blocks {
                let mut store = node.objects();
                let mut client = ObjectClient::new(&self.promises, client, for_objects);
                clients.push(Box::new(move || client.step(&mut store)));
            }
        }
        loop {
            let client = usize::try_from(order.below(clients.len() as u64)).expect("few clients");
            if !self.judge(clients[client]())? {
                return Ok(());
            }
        }
    }

    /// Each client in a thread of its own: group commit, flushes that cover others' writes, races at the cut.
    fn load_in_threads(&mut self, node: &SimulatedNode) -> Result<(), String> {
        let mut seeds: Vec<Random> = (0..2 * CLIENTS).map(|_| self.random.split()).collect();
        let failed = AtomicBool::new(false);
        let this = &*self;
        let run = |step: &mut dyn FnMut() -> Result<(), Interruption>| {
            while !failed.load(Ordering::Relaxed) {
                match this.judge(step()) {
                    Ok(true) => {}
                    Ok(false) => return Ok(()),
                    Err(broken) => {
                        failed.store(true, Ordering::Relaxed);
                        return Err(broken);
                    }
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for client in 0..this.promises.clients() {
                let (for_blocks, for_objects) = (seeds.remove(0), seeds.remove(0));
                let run = &run;
                if this.heads != Heads::Objects {
                    let mut disk = node.blocks();
                    let mut client = BlockClient::new(&this.promises, client, for_blocks);
                    threads.push(scope.spawn(move || run(&mut || client.step(&mut disk))));
                }
                if this.heads != Heads::Blocks {
                    let mut store = node.objects();
                    let mut client = ObjectClient::new(&this.promises, client, for_objects);
                    threads.push(scope.spawn(move || run(&mut || client.step(&mut store))));
                }
            }
            threads.into_iter().try_for_each(|thread| thread.join().expect("a client's thread ends"))
        })
    }
}
