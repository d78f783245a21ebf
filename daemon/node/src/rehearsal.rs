//! The node's own wiper, heard and timed by a bench: the same threads, sources and calls, without the rest of a node.

use std::sync::Arc;

use config::SourcesConfig;
use hygiene::Live;
use keyring::{Keyring, WipeCause};
use lease::message::WipeStages;
use tokio::sync::mpsc;
use units::BootInstant;

use crate::hygiene_watch::HygieneWatch;
use crate::sources::Sources;
use crate::wiper::{Event, Wipe, Wiper};

/// A wiper with its fast sources.
#[derive(Debug)]
pub struct Rehearsal {
    wiper: Arc<Wiper>,
    events: mpsc::UnboundedReceiver<Event>,
}

/// After a signal to stop; of no matter to a bench.
const STOP_LIMIT: std::time::Duration = std::time::Duration::from_millis(20);

/// How often the second stage's end is looked for.
const LOOK: std::time::Duration = std::time::Duration::from_micros(20);

/// A wipe that has happened.
#[derive(Clone, Copy, Debug)]
pub struct Rehearsed(Wipe);

impl Rehearsed {
    /// When its first stage was done, on CLOCK_BOOTTIME.
    pub fn keys_gone_at(&self) -> BootInstant {
        self.0.record.at
    }

    /// Why.
    pub fn cause(&self) -> WipeCause {
        self.0.record.cause
    }
}

impl Rehearsal {
    /// Starts the wiper's threads, which hear the fast sources of `config`. Signals must be blocked already.
    ///
    /// # Errors
    /// A thread could not be started or confined.
    pub fn start(keyring: &Arc<Keyring>, config: &SourcesConfig) -> anyhow::Result<Self> {
        let (events_in, events) = mpsc::unbounded_channel();
        let watch = HygieneWatch::new(&config.hygiene.root, Live::read());
        let opened = Sources::open(config, keyring, &watch);
        if let Some(lost) = opened.states().iter().find(|source| source.is_lost()) {
            anyhow::bail!("{} cannot be heard: {}", lost.name(), lost.trouble().unwrap_or_default());
        }
        crate::wiper::allow_priorities();
        Ok(Self { wiper: Wiper::start(Arc::clone(keyring), opened.fast, STOP_LIMIT, events_in)?, events })
    }

    /// An administrator's wipe, as the control port orders it.
    pub fn wipe(&self) {
        self.wiper.wipe(WipeCause::Admin);
    }

    /// Sets the lease's end.
    ///
    /// # Errors
    /// The timer could not be set.
    pub fn set_deadline(&self, deadline: BootInstant) -> anyhow::Result<()> {
        Ok(self.wiper.set_deadline(Some(deadline))?)
    }

    /// Waits for the next wipe.
    ///
    /// # Errors
    /// The wiper has ended.
    pub fn next_wipe(&mut self) -> anyhow::Result<Rehearsed> {
        loop {
            match self.events.blocking_recv() {
                Some(Event::Wiped(wipe)) => return Ok(Rehearsed(wipe)),
                Some(_) => {}
                None => anyhow::bail!("the wiper has ended"),
            }
        }
    }

    /// Waits until no thread works with a key from before `wipe`, and says how far it came when.
    pub fn second_stage(&self, wipe: Rehearsed) -> WipeStages {
        loop {
            let stages = self.wiper.stages_of(&wipe.0);
            if stages.threads_ns.is_some() {
                return stages;
            }
            std::thread::sleep(LOOK);
        }
    }
}
