//! Where the root secret lives, and everything that is computed with it.
//!
//! Invariants:
//! - Root, ledger keys and submitted shares are in the arena; what is computed from them is on the key stack, which is
//!   wiped after each use. Neither a secret nor a derived key is ever in the heap, in a return value or on disk.
//! - Domain secrets are known here only while they are used; outside they are wrapped under the ledger key, which the
//!   root wraps.
//! - A share is compared with its commitment before it is taken, the root with its own before it is used.
//! - One operation at a time: a mutex guards what the arena holds.
//!
//! It knows no file, no node and no policy.

mod join;

use std::sync::{Mutex, MutexGuard, PoisonError};

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut, KeyInit, XChaCha20Poly1305};
use key_hierarchy::{Integrity, RootLabel, check_value, expand_root, extract_prk};
use lease::envelope::{self, EnvelopeError, PublicEnvelopeKey};
use lease::keyholder::SealRequest;
use lease::message::SigningPublicKey;
use lease::{Signer, SignerGone, public_key_of_seed, sign_with_seed};
use locked_memory::{
    ARENA_BYTES, Arena, KEY_STACK_BYTES, KeyStack, Layout, LockedMemoryError, MemoryKind, Policy, Span, Spans,
};
use serde::{Deserialize, Serialize};
use units::{DomainId, RootEpoch, VolumeEpoch};
use zeroize::Zeroize;

use crate::gf256;
use crate::shares::{
    Commitment, OFFICERS_MAX, SealedShare, SetId, Share, ShareError, ShareHolder, ShareSet, commit_root,
    commit_share,
};
use crate::totp;

const SECRET_BYTES: usize = 32;
const SECRET_WORDS: usize = SECRET_BYTES / 8;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

/// The spans of the arena.
struct Places {
    root: Span<SECRET_WORDS>,
    /// The ledger key in force and, during an erasure, the one that follows it.
    ledger_keys: Spans<SECRET_WORDS, 2>,
    shares: Spans<SECRET_WORDS, OFFICERS_MAX>,
    /// Seed of the key that this run signs its audit trail with. It is there from the start, root or not.
    audit: Span<SECRET_WORDS>,
    /// The one-time key to which another keyholder seals the root.
    join: Span<SECRET_WORDS>,
}

const PLACES: Places = {
    let (layout, root) = Layout::new().take();
    let (layout, ledger_keys) = layout.take_many();
    let (layout, shares) = layout.take_many();
    let (layout, audit) = layout.take();
    let (_, join) = layout.take();
    Places { root, ledger_keys, shares, audit, join }
};

/// 32 secret bytes under XChaCha20-Poly1305. What it belongs to is in the associated data.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wrapped {
    nonce: [u8; NONCE_BYTES],
    ciphertext: [u8; SECRET_BYTES],
    tag: [u8; TAG_BYTES],
}

impl std::fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wrapped")
    }
}

/// What a wrapped domain secret belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SecretOf {
    pub(crate) domain: DomainId,
    pub(crate) epoch: VolumeEpoch,
}

/// Why the vault could not do it.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The root is not here.
    #[error(
        "the keyholder is sealed; submit {missing} more of the officers' shares with `nightlatch key unseal`"
    )]
    Sealed {
        /// Shares that are missing.
        missing: u8,
    },
    /// There is a root already.
    #[error("the keyholder is unsealed already; nothing is to be done")]
    AlreadyUnsealed,
    /// The share is no good.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The share is of another set.
    #[error(
        "the share is of set {submitted}, the ledger was made under set {expected}; submit shares of that set"
    )]
    ForeignSet {
        /// Set of the share.
        submitted: SetId,
        /// Set that opens the ledger.
        expected: SetId,
    },
    /// The share has been submitted before.
    #[error("share {index} is here already; submit one of another officer")]
    DuplicateShare {
        /// Its number.
        index: u8,
    },
    /// The shares fit their commitments and yet give another root.
    #[error(
        "the shares do not give the root that was committed to; the set's description was altered, use the officers' backups"
    )]
    WrongRoot,
    /// A wrapped key does not unwrap.
    #[error("the {what} does not decrypt under this root; restore the ledger that belongs to it")]
    Unwrap {
        /// What was to be unwrapped.
        what: &'static str,
    },
    /// A ceremony with impossible numbers.
    #[error(
        "the ceremony's numbers are impossible; give 1 to {OFFICERS_MAX} officers, each named and with a key of their own, \
         and a threshold from 1 to their number"
    )]
    ImpossibleSet,
    /// An envelope could not be made.
    #[error("the envelope could not be sealed; look at the keyholder's log, then try again")]
    Envelope(#[from] EnvelopeError),
    /// No randomness.
    #[error("the kernel gives no randomness; the machine is not usable for keys")]
    Random(#[from] std::io::Error),
}

fn no_random(error: getrandom::Error) -> VaultError {
    VaultError::Random(std::io::Error::other(error.to_string()))
}

#[derive(Debug)]
enum Contents {
    /// No root; the set is that of the shares gathered so far, and these are their numbers.
    Gathering { set: Option<ShareSet>, present: Vec<u8> },
    /// The root is in the arena.
    Root { epoch: RootEpoch, ledger_key: bool },
}

/// Locked memory with the root in it, or with the shares that will restore it.
#[derive(Debug)]
pub(crate) struct Vault {
    arena: Arena,
    stack: KeyStack,
    contents: Mutex<Contents>,
}

/// How far gathering has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gathered {
    /// So many are here; more are needed.
    Waiting { have: u8, need: u8 },
    /// The root is in the arena.
    Root,
}

impl Vault {
    /// An empty vault.
    pub(crate) fn new(policy: Policy) -> Result<Self, LockedMemoryError> {
        locked_memory::check_budget(ARENA_BYTES + KEY_STACK_BYTES)?;
        Ok(Self {
            arena: Arena::new(policy)?,
            stack: KeyStack::new(policy)?,
            contents: Mutex::new(Contents::Gathering { set: None, present: Vec::new() }),
        })
    }

    /// A fresh key for the audit trail of this run. It never leaves the arena and ends with the program.
    pub(crate) fn make_audit_key(&self) -> Result<(), VaultError> {
        Ok(self.arena.secret(PLACES.audit).fill_random()?)
    }

    /// What the arena is made of.
    pub(crate) fn memory(&self) -> MemoryKind {
        self.arena.kind()
    }

    /// How far gathering has come; `need` is zero while no share has been submitted.
    pub(crate) fn gathered(&self) -> Gathered {
        match &*self.lock() {
            Contents::Root { .. } => Gathered::Root,
            Contents::Gathering { set, present } => waiting(set.as_ref(), present),
        }
    }

    /// Zeroes the memory that the root lives in, and nothing else: for a program that is about to end. Takes no lock and
    /// allocates nothing.
    pub(crate) fn zero(&self) {
        self.arena.zero();
    }

    /// Forgets everything but the audit trail's key, which opens nothing and still has to sign that this happened.
    pub(crate) fn wipe(&self) {
        let mut contents = self.lock();
        *contents = Contents::Gathering { set: None, present: Vec::new() };
        self.forget();
    }

    fn forget(&self) {
        self.arena.zero_span(PLACES.root);
        self.arena.zero_span(PLACES.join);
        for key in [Key::Current, Key::Next] {
            self.arena.zero_span(ledger_key(key));
        }
        self.forget_shares();
    }

    fn forget_shares(&self) {
        for index in 0..OFFICERS_MAX {
            if let Some(place) = PLACES.shares.at(index) {
                self.arena.zero_span(place);
            }
        }
    }

    /// Makes a random root and shares it among the officers. The vault must be empty of a root.
    pub(crate) fn ceremony(
        &self,
        threshold: u8,
        officers: &[(String, PublicEnvelopeKey)],
    ) -> Result<(ShareSet, Vec<SealedShare>), VaultError> {
        check_officers(threshold, officers)?;
        let mut contents = self.lock();
        if matches!(*contents, Contents::Root { .. }) {
            return Err(VaultError::AlreadyUnsealed);
        }
        let mut set = [0; 16];
        getrandom::fill(&mut set).map_err(no_random)?;
        self.forget();
        self.arena.secret(PLACES.root).fill_random()?;
        let made = self.stack.run(|| self.share_root(SetId(set), threshold, officers));
        if made.is_err() {
            self.forget();
        } else {
            *contents = Contents::Root { epoch: FIRST_ROOT_EPOCH, ledger_key: false };
        }
        made
    }

    /// On the key stack.
    fn share_root(
        &self,
        set: SetId,
        threshold: u8,
        officers: &[(String, PublicEnvelopeKey)],
    ) -> Result<(ShareSet, Vec<SealedShare>), VaultError> {
        let mut root = [0; SECRET_BYTES];
        self.arena.secret(PLACES.root).read_into(&mut root);
        let mut coefficients = [[0; SECRET_BYTES]; OFFICERS_MAX - 1];
        let coefficients = &mut coefficients[..usize::from(threshold) - 1];
        for coefficient in coefficients.iter_mut() {
            getrandom::fill(coefficient).map_err(no_random)?;
        }
        let mut share_set = ShareSet {
            set,
            root_epoch: FIRST_ROOT_EPOCH,
            threshold,
            officers: Vec::new(),
            root: commit_root(set, &root),
        };
        let mut value = [0; SECRET_BYTES];
        for (index, (name, key)) in (1..).zip(officers) {
            gf256::share_at(index, &root, coefficients, &mut value);
            let share = commit_share(set, index, &value);
            share_set.officers.push(ShareHolder {
                name: name.clone(),
                key: Commitment(key.fingerprint()),
                share,
            });
        }
        // In a second pass, because every envelope is bound to the whole set.
        let mut sealed = Vec::with_capacity(officers.len());
        for (index, (_, key)) in (1..).zip(officers) {
            gf256::share_at(index, &root, coefficients, &mut value);
            let mut randomness = [0; envelope::SEAL_RANDOMNESS_BYTES];
            getrandom::fill(&mut randomness).map_err(no_random)?;
            sealed.push(SealedShare::seal(&share_set, index, key, &value, &mut randomness)?);
        }
        Ok((share_set, sealed))
    }

    /// Takes one share. `expected` is the set that the ledger names. With the last one needed the root is here.
    pub(crate) fn submit(&self, expected: &ShareSet, share: &Share) -> Result<Gathered, VaultError> {
        let mut contents = self.lock();
        let Contents::Gathering { set, present } = &mut *contents else {
            return Err(VaultError::AlreadyUnsealed);
        };
        if share.share_set.set != expected.set {
            return Err(VaultError::ForeignSet { submitted: share.share_set.set, expected: expected.set });
        }
        // The ledger's description counts, not the one that came with the share.
        if !expected.is_share(share.index, &share.value.0) {
            return Err(ShareError::Wrong { set: expected.set, index: share.index }.into());
        }
        if present.contains(&share.index) {
            return Err(VaultError::DuplicateShare { index: share.index });
        }
        let place = PLACES.shares.at(present.len()).ok_or(VaultError::ImpossibleSet)?;
        self.stack.run(|| {
            let mut value = [0; SECRET_BYTES];
            value.copy_from_slice(share.value.0.as_slice());
            self.arena.secret(place).write_from(&mut value);
        });
        present.push(share.index);
        *set = Some(expected.clone());
        if present.len() < usize::from(expected.threshold) {
            return Ok(waiting(set.as_ref(), present));
        }
        let indices = std::mem::take(present);
        if !self.stack.run(|| self.combine(expected, &indices)) {
            *contents = Contents::Gathering { set: None, present: Vec::new() };
            self.forget();
            return Err(VaultError::WrongRoot);
        }
        *contents = Contents::Root { epoch: expected.root_epoch, ledger_key: false };
        self.forget_shares();
        Ok(Gathered::Root)
    }

    /// On the key stack.
    fn combine(&self, expected: &ShareSet, indices: &[u8]) -> bool {
        let mut root = [0; SECRET_BYTES];
        let mut value = [0; SECRET_BYTES];
        for (position, index) in indices.iter().enumerate() {
            let Some(place) = PLACES.shares.at(position) else { return false };
            self.arena.secret(place).read_into(&mut value);
            gf256::add_contribution(*index, &value, indices, &mut root);
        }
        let right = expected.is_root(&root);
        if right {
            self.arena.secret(PLACES.root).write_from(&mut root);
        }
        right
    }

    /// Makes a fresh ledger key beside the one in force and returns it wrapped by the root. It comes into force with
    /// [`Self::adopt_ledger_key`]; until then [`Self::rewrap`] can carry secrets over to it.
    pub(crate) fn next_ledger_key(&self, set: SetId) -> Result<Wrapped, VaultError> {
        let contents = self.lock();
        let epoch = root_epoch(&contents)?;
        self.arena.secret(ledger_key(Key::Next)).fill_random()?;
        self.stack.run(|| {
            let (mut wrapping, mut key) = ([0; SECRET_BYTES], [0; SECRET_BYTES]);
            self.root_key(RootLabel::LedgerWrap, epoch, &mut wrapping);
            self.arena.secret(ledger_key(Key::Next)).read_into(&mut key);
            wrap(&wrapping, &ledger_key_aad(set, epoch), &key)
        })
    }

    /// The fresh ledger key takes the place of the one in force, which is gone.
    pub(crate) fn adopt_ledger_key(&self) -> Result<(), VaultError> {
        let mut contents = self.lock();
        root_epoch(&contents)?;
        self.stack.run(|| {
            let mut key = [0; SECRET_BYTES];
            self.arena.secret(ledger_key(Key::Next)).read_into(&mut key);
            self.arena.secret(ledger_key(Key::Current)).write_from(&mut key);
        });
        self.arena.zero_span(ledger_key(Key::Next));
        if let Contents::Root { ledger_key, .. } = &mut *contents {
            *ledger_key = true;
        }
        Ok(())
    }

    /// Unwraps the ledger's key with the root.
    pub(crate) fn open_ledger_key(&self, set: SetId, wrapped: &Wrapped) -> Result<(), VaultError> {
        let mut contents = self.lock();
        let epoch = root_epoch(&contents)?;
        self.stack.run(|| {
            let (mut wrapping, mut key) = ([0; SECRET_BYTES], [0; SECRET_BYTES]);
            self.root_key(RootLabel::LedgerWrap, epoch, &mut wrapping);
            unwrap(&wrapping, &ledger_key_aad(set, epoch), wrapped, &mut key)
                .map_err(|Mismatch| VaultError::Unwrap { what: "ledger key" })?;
            self.arena.secret(ledger_key(Key::Current)).write_from(&mut key);
            Ok::<(), VaultError>(())
        })?;
        if let Contents::Root { ledger_key, .. } = &mut *contents {
            *ledger_key = true;
        }
        Ok(())
    }

    /// A fresh domain secret, wrapped, and the key-check value of the key it gives, which says what the volume is promised.
    pub(crate) fn make_secret(
        &self,
        of: SecretOf,
        integrity: Integrity,
    ) -> Result<(Wrapped, [u8; 16]), VaultError> {
        let contents = self.lock();
        has_ledger_key(&contents)?;
        self.stack.run(|| {
            let (mut secret, mut key) = ([0; SECRET_BYTES], [0; SECRET_BYTES]);
            getrandom::fill(&mut secret).map_err(no_random)?;
            self.arena.secret(ledger_key(Key::Current)).read_into(&mut key);
            let wrapped = wrap(&key, &secret_aad(of), &secret)?;
            let (mut root, mut prk) = ([0; SECRET_BYTES], [0; SECRET_BYTES]);
            self.arena.secret(PLACES.root).read_into(&mut root);
            extract_prk(&root, &secret, &mut prk);
            Ok((wrapped, check_value(&prk, &of.domain, of.epoch, integrity).0))
        })
    }

    /// A fresh secret for somebody's authenticator: wrapped, and in base32 to be shown once.
    pub(crate) fn make_totp_secret(&self, who: &str) -> Result<(Wrapped, String), VaultError> {
        let contents = self.lock();
        has_ledger_key(&contents)?;
        self.stack.run(|| {
            let (mut secret, mut key) = ([0; SECRET_BYTES], [0; SECRET_BYTES]);
            getrandom::fill(&mut secret).map_err(no_random)?;
            self.arena.secret(ledger_key(Key::Current)).read_into(&mut key);
            Ok((wrap(&key, &person_aad(who), &secret)?, totp::base32(&secret)))
        })
    }

    /// The code of a person's authenticator in one step of time.
    pub(crate) fn totp_code(&self, who: &str, wrapped: &Wrapped, step: u64) -> Result<u32, VaultError> {
        let contents = self.lock();
        has_ledger_key(&contents)?;
        self.stack.run(|| {
            let (mut secret, mut key) = ([0; SECRET_BYTES], [0; SECRET_BYTES]);
            self.arena.secret(ledger_key(Key::Current)).read_into(&mut key);
            unwrap(&key, &person_aad(who), wrapped, &mut secret)
                .map_err(|Mismatch| VaultError::Unwrap { what: "second factor" })?;
            Ok(totp::code(&secret, step))
        })
    }

    /// The root's signature over a document for people to keep, by the key that certifies the trail.
    pub(crate) fn sign_document(
        &self,
        digest: &[u8; 32],
    ) -> Result<(SigningPublicKey, [u8; 64]), VaultError> {
        self.certify_audit(digest)
    }

    /// Carries somebody's second factor over to the fresh ledger key.
    pub(crate) fn rewrap_person(&self, who: &str, wrapped: &Wrapped) -> Result<Wrapped, VaultError> {
        self.rewrap_as(&person_aad(who), wrapped, "second factor")
    }

    /// Carries a wrapped secret over from the ledger key in force to the fresh one.
    pub(crate) fn rewrap(&self, of: SecretOf, wrapped: &Wrapped) -> Result<Wrapped, VaultError> {
        self.rewrap_as(&secret_aad(of), wrapped, "domain secret")
    }

    fn rewrap_as(&self, aad: &[u8], wrapped: &Wrapped, what: &'static str) -> Result<Wrapped, VaultError> {
        let contents = self.lock();
        has_ledger_key(&contents)?;
        self.stack.run(|| {
            let (mut secret, mut key) = ([0; SECRET_BYTES], [0; SECRET_BYTES]);
            self.arena.secret(ledger_key(Key::Current)).read_into(&mut key);
            unwrap(&key, aad, wrapped, &mut secret).map_err(|Mismatch| VaultError::Unwrap { what })?;
            self.arena.secret(ledger_key(Key::Next)).read_into(&mut key);
            wrap(&key, aad, &secret)
        })
    }

    /// Derives a volume's PRK and seals it for a node.
    pub(crate) fn seal_for_node(
        &self,
        of: SecretOf,
        wrapped: &Wrapped,
        request: &SealRequest<'_>,
    ) -> Result<Vec<u8>, VaultError> {
        let contents = self.lock();
        has_ledger_key(&contents)?;
        self.stack.run(|| {
            let (mut secret, mut key) = ([0; SECRET_BYTES], [0; SECRET_BYTES]);
            self.arena.secret(ledger_key(Key::Current)).read_into(&mut key);
            unwrap(&key, &secret_aad(of), wrapped, &mut secret)
                .map_err(|Mismatch| VaultError::Unwrap { what: "domain secret" })?;
            let (mut root, mut prk) = ([0; SECRET_BYTES], [0; SECRET_BYTES]);
            self.arena.secret(PLACES.root).read_into(&mut root);
            extract_prk(&root, &secret, &mut prk);
            let mut randomness = [0; envelope::SEAL_RANDOMNESS_BYTES];
            getrandom::fill(&mut randomness).map_err(no_random)?;
            let info = request.info.as_slice();
            Ok(envelope::seal(request.recipient, info, request.aad, &prk, &mut randomness)?)
        })
    }

    /// Encrypts the registry under a ledger key: nonce, ciphertext, tag.
    pub(crate) fn encrypt_registry(&self, key: Key, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, VaultError> {
        let contents = self.lock();
        root_epoch(&contents)?;
        self.stack.run(|| {
            let mut ledger = [0; SECRET_BYTES];
            self.arena.secret(ledger_key(key)).read_into(&mut ledger);
            let mut out = vec![0; NONCE_BYTES + plain.len() + TAG_BYTES];
            let (nonce, rest) = out.split_at_mut(NONCE_BYTES);
            let (body, tag) = rest.split_at_mut(plain.len());
            getrandom::fill(nonce).map_err(no_random)?;
            let made = cipher(&ledger)
                .encrypt_inout_detached(&nonce_of(nonce), aad, in_out(plain, body)?)
                .map_err(|_| VaultError::Unwrap { what: "registry" })?;
            tag.copy_from_slice(&made);
            Ok(out)
        })
    }

    /// Decrypts and authenticates the registry with the ledger key in force.
    pub(crate) fn decrypt_registry(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, VaultError> {
        let contents = self.lock();
        has_ledger_key(&contents)?;
        let wrong = || VaultError::Unwrap { what: "registry" };
        let length = sealed.len().checked_sub(NONCE_BYTES + TAG_BYTES).ok_or_else(wrong)?;
        let (nonce, rest) = sealed.split_at(NONCE_BYTES);
        let (body, tag) = rest.split_at(length);
        self.stack.run(|| {
            let mut ledger = [0; SECRET_BYTES];
            self.arena.secret(ledger_key(Key::Current)).read_into(&mut ledger);
            let mut out = vec![0; length];
            let tag = tag.try_into().map_err(|_| wrong())?;
            cipher(&ledger)
                .decrypt_inout_detached(&nonce_of(nonce), aad, in_out(body, &mut out)?, &tag)
                .map_err(|_| wrong())?;
            Ok(out)
        })
    }

    /// The public half of the grant-signing key.
    pub(crate) fn signing_public_key(&self) -> Result<SigningPublicKey, VaultError> {
        let contents = self.lock();
        let epoch = root_epoch(&contents)?;
        Ok(self.stack.run(|| {
            let mut seed = [0; SECRET_BYTES];
            self.root_key(RootLabel::GrantSigning, epoch, &mut seed);
            public_key_of_seed(&seed)
        }))
    }

    /// Signs with the grant-signing key, which only the root gives.
    pub(crate) fn sign(&self, digest: &[u8; 32]) -> Result<[u8; 64], VaultError> {
        let contents = self.lock();
        let epoch = root_epoch(&contents)?;
        Ok(self.stack.run(|| {
            let mut seed = [0; SECRET_BYTES];
            self.root_key(RootLabel::GrantSigning, epoch, &mut seed);
            sign_with_seed(&seed, digest)
        }))
    }

    /// The root's key that certifies runs of the audit trail, and its signature over this digest.
    pub(crate) fn certify_audit(
        &self,
        digest: &[u8; 32],
    ) -> Result<(SigningPublicKey, [u8; 64]), VaultError> {
        let contents = self.lock();
        let epoch = root_epoch(&contents)?;
        Ok(self.stack.run(|| {
            let mut seed = [0; SECRET_BYTES];
            self.root_key(RootLabel::AuditSigning, epoch, &mut seed);
            (public_key_of_seed(&seed), sign_with_seed(&seed, digest))
        }))
    }

    /// Works with the seed of this run's audit key, on the key stack.
    fn with_audit_seed<T>(&self, work: impl FnOnce(&[u8; SECRET_BYTES]) -> T) -> T {
        let _one_at_a_time = self.lock();
        self.stack.run(|| {
            let mut seed = [0; SECRET_BYTES];
            self.arena.secret(PLACES.audit).read_into(&mut seed);
            work(&seed)
        })
    }

    /// On the key stack.
    fn root_key(&self, label: RootLabel, epoch: RootEpoch, out: &mut [u8; SECRET_BYTES]) {
        let mut root = [0; SECRET_BYTES];
        self.arena.secret(PLACES.root).read_into(&mut root);
        expand_root(&root, label, epoch, out);
        root.zeroize();
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        // The contents describe what the arena holds and are written last; a panic on the way leaves them true.
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which ledger key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// The one in force.
    Current,
    /// The one that follows it.
    Next,
}

const FIRST_ROOT_EPOCH: RootEpoch = RootEpoch(1);

fn ledger_key(key: Key) -> Span<SECRET_WORDS> {
    let index = match key {
        Key::Current => 0,
        Key::Next => 1,
    };
    #[expect(clippy::expect_used, reason = "two spans were laid out at compile time")]
    PLACES.ledger_keys.at(index).expect("two ledger keys")
}

fn waiting(set: Option<&ShareSet>, present: &[u8]) -> Gathered {
    let have = u8::try_from(present.len()).unwrap_or(u8::MAX);
    Gathered::Waiting { have, need: set.map_or(0, |set| set.threshold) }
}

fn root_epoch(contents: &Contents) -> Result<RootEpoch, VaultError> {
    match contents {
        Contents::Root { epoch, .. } => Ok(*epoch),
        Contents::Gathering { set, present } => {
            let Gathered::Waiting { have, need } = waiting(set.as_ref(), present) else {
                return Err(VaultError::Sealed { missing: 0 });
            };
            Err(VaultError::Sealed { missing: need.saturating_sub(have) })
        }
    }
}

fn has_ledger_key(contents: &Contents) -> Result<(), VaultError> {
    root_epoch(contents)?;
    match contents {
        Contents::Root { ledger_key: true, .. } => Ok(()),
        _ => Err(VaultError::Unwrap { what: "ledger key" }),
    }
}

fn check_officers(threshold: u8, officers: &[(String, PublicEnvelopeKey)]) -> Result<(), VaultError> {
    let named = officers
        .iter()
        .all(|(name, _)| !name.is_empty() && name.len() <= crate::shares::OFFICER_NAME_BYTES_MAX);
    // One person with two shares would halve the threshold.
    let distinct = officers.iter().enumerate().all(|(position, (name, key))| {
        officers[..position].iter().all(|(other_name, other_key)| other_name != name && other_key != key)
    });
    let counted = officers.len() <= OFFICERS_MAX && (1..=officers.len()).contains(&usize::from(threshold));
    if named && distinct && counted { Ok(()) } else { Err(VaultError::ImpossibleSet) }
}

fn ledger_key_aad(set: SetId, epoch: RootEpoch) -> Vec<u8> {
    [b"nightlatch/ledger/1 key".as_slice(), &set.0, &epoch.0.to_le_bytes()].concat()
}

fn secret_aad(of: SecretOf) -> Vec<u8> {
    [b"nightlatch/ledger/1 secret".as_slice(), &of.domain.0, &of.epoch.0.to_le_bytes()].concat()
}

fn person_aad(who: &str) -> Vec<u8> {
    [b"nightlatch/ledger/2 person".as_slice(), who.as_bytes()].concat()
}

/// It does not decrypt.
#[derive(Debug)]
struct Mismatch;

fn cipher(key: &[u8; SECRET_BYTES]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(key.into())
}

fn nonce_of(bytes: &[u8]) -> chacha20poly1305::XNonce {
    let mut nonce = chacha20poly1305::XNonce::default();
    nonce.copy_from_slice(bytes);
    nonce
}

fn in_out<'i, 'o>(input: &'i [u8], output: &'o mut [u8]) -> Result<InOutBuf<'i, 'o, u8>, VaultError> {
    InOutBuf::new(input, output).map_err(|_| VaultError::Unwrap { what: "buffer" })
}

fn wrap(key: &[u8; SECRET_BYTES], aad: &[u8], secret: &[u8; SECRET_BYTES]) -> Result<Wrapped, VaultError> {
    let mut wrapped = Wrapped { nonce: [0; NONCE_BYTES], ciphertext: [0; SECRET_BYTES], tag: [0; TAG_BYTES] };
    getrandom::fill(&mut wrapped.nonce).map_err(no_random)?;
    let tag = cipher(key)
        .encrypt_inout_detached(&nonce_of(&wrapped.nonce), aad, in_out(secret, &mut wrapped.ciphertext)?)
        .map_err(|_| VaultError::Unwrap { what: "secret" })?;
    wrapped.tag.copy_from_slice(&tag);
    Ok(wrapped)
}

fn unwrap(
    key: &[u8; SECRET_BYTES],
    aad: &[u8],
    wrapped: &Wrapped,
    out: &mut [u8; SECRET_BYTES],
) -> Result<(), Mismatch> {
    let buffer = InOutBuf::new(wrapped.ciphertext.as_slice(), out.as_mut_slice()).map_err(|_| Mismatch)?;
    cipher(key)
        .decrypt_inout_detached(&nonce_of(&wrapped.nonce), aad, buffer, (&wrapped.tag).into())
        .map_err(|_| Mismatch)
}

/// The grant-signing key, for as long as the root is in the vault.
#[derive(Debug)]
pub(crate) struct VaultSigner {
    vault: std::sync::Arc<Vault>,
    public: SigningPublicKey,
}

impl VaultSigner {
    /// The signer of an unsealed vault.
    pub(crate) fn new(vault: std::sync::Arc<Vault>) -> Result<Self, VaultError> {
        let public = vault.signing_public_key()?;
        Ok(Self { vault, public })
    }
}

impl Signer for VaultSigner {
    fn public_key(&self) -> SigningPublicKey {
        self.public
    }

    fn sign(&self, digest: &[u8; 32]) -> Result<[u8; 64], SignerGone> {
        self.vault.sign(digest).map_err(|_| SignerGone)
    }
}

/// This run's audit key, from its making to the end of the program.
#[derive(Debug)]
pub(crate) struct AuditSigner {
    vault: std::sync::Arc<Vault>,
    public: SigningPublicKey,
}

impl AuditSigner {
    /// Makes the key.
    pub(crate) fn new(vault: std::sync::Arc<Vault>) -> Result<Self, VaultError> {
        vault.make_audit_key()?;
        let public = vault.with_audit_seed(public_key_of_seed);
        Ok(Self { vault, public })
    }
}

impl audit_log::Signer for AuditSigner {
    fn public(&self) -> [u8; 32] {
        self.public
    }

    fn sign(&self, digest: &[u8; 32]) -> Option<[u8; 64]> {
        self.vault.with_audit_seed(|seed| {
            // Zeroed by the last act of a program that breaks.
            let is_there = seed.iter().any(|byte| *byte != 0);
            is_there.then(|| sign_with_seed(seed, digest))
        })
    }
}

#[cfg(test)]
impl Vault {
    /// The secrets in the arena, for tests that look for them elsewhere.
    pub(crate) fn secrets_for_test(&self) -> Vec<[u8; SECRET_BYTES]> {
        [PLACES.root, ledger_key(Key::Current)]
            .map(|place| {
                let mut secret = [0; SECRET_BYTES];
                self.arena.secret(place).read_into(&mut secret);
                secret
            })
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shares::Share;

    const OF: SecretOf = SecretOf { domain: DomainId([1; 16]), epoch: VolumeEpoch(1) };

    fn vault() -> Vault {
        Vault::new(Policy::AllowMlock).unwrap()
    }

    fn officers(count: u8) -> Vec<(String, PublicEnvelopeKey)> {
        (1..=count).map(|n| (format!("officer-{n}"), envelope::keypair(&[n; 32]).unwrap())).collect()
    }

    fn share(sealed: &[SealedShare], index: u8) -> Share {
        sealed[usize::from(index) - 1].open(&[index; 32]).unwrap()
    }

    #[test]
    fn every_threshold_up_to_the_limit_gives_the_root_back() {
        let count = u8::try_from(OFFICERS_MAX).unwrap();
        for threshold in [1, 2, 5, count] {
            let made = vault();
            let (set, shares) = made.ceremony(threshold, &officers(count)).unwrap();
            let restored = vault();
            for index in (1..=count).rev().take(usize::from(threshold)) {
                assert_ne!(restored.gathered(), Gathered::Root, "before share {index}");
                restored.submit(&set, &share(&shares, index)).unwrap();
            }
            assert_eq!(restored.gathered(), Gathered::Root);
            assert_eq!(restored.signing_public_key().unwrap(), made.signing_public_key().unwrap());
        }
    }

    #[test]
    fn nothing_works_while_sealed_and_a_wipe_seals() {
        let vault = vault();
        let sealed = |result: Result<(), VaultError>| matches!(result, Err(VaultError::Sealed { .. }));
        assert!(sealed(vault.signing_public_key().map(drop)));
        let (set, _) = vault.ceremony(1, &officers(1)).unwrap();
        assert!(
            matches!(vault.make_secret(OF, Integrity::Tagged), Err(VaultError::Unwrap { .. })),
            "no ledger key yet"
        );
        let wrapped = vault.next_ledger_key(set.set).unwrap();
        vault.adopt_ledger_key().unwrap();
        vault.make_secret(OF, Integrity::Tagged).unwrap();
        vault.wipe();
        assert!(sealed(vault.make_secret(OF, Integrity::Tagged).map(drop)));
        assert!(sealed(vault.open_ledger_key(set.set, &wrapped)));
        assert!(vault.secrets_for_test().iter().all(|secret| *secret == [0; 32]));
    }

    #[test]
    fn a_wrapped_secret_is_bound_to_its_domain_epoch_set_and_root() {
        let vault = vault();
        let (set, _) = vault.ceremony(1, &officers(1)).unwrap();
        let ledger_key = vault.next_ledger_key(set.set).unwrap();
        vault.adopt_ledger_key().unwrap();
        let (wrapped, _) = vault.make_secret(OF, Integrity::Tagged).unwrap();
        for other in [SecretOf { domain: DomainId([2; 16]), ..OF }, SecretOf { epoch: VolumeEpoch(2), ..OF }]
        {
            assert!(matches!(vault.rewrap(other, &wrapped), Err(VaultError::Unwrap { .. })));
        }
        assert!(vault.open_ledger_key(SetId([0; 16]), &ledger_key).is_err());
        let stranger = self::vault();
        stranger.ceremony(1, &officers(1)).unwrap();
        assert!(stranger.open_ledger_key(set.set, &ledger_key).is_err(), "another root");
    }

    #[test]
    fn a_secret_carried_over_gives_the_same_key_and_the_old_wrapping_opens_no_more() {
        let vault = vault();
        let (set, _) = vault.ceremony(1, &officers(1)).unwrap();
        vault.next_ledger_key(set.set).unwrap();
        vault.adopt_ledger_key().unwrap();
        let (old, _) = vault.make_secret(OF, Integrity::Tagged).unwrap();
        let node = envelope::keypair(&[9; 32]).unwrap();
        let prk = |wrapped: &Wrapped| {
            let request = SealRequest { recipient: &node, info: &[0; 32], aad: b"aad", epoch: OF.epoch };
            let sealed = vault.seal_for_node(OF, wrapped, &request)?;
            let mut prk = [0; 32];
            envelope::open(&[9; 32], &[0; 32], b"aad", &sealed, &mut prk).unwrap();
            Ok::<_, VaultError>(prk)
        };
        let before = prk(&old).unwrap();
        vault.next_ledger_key(set.set).unwrap();
        let new = vault.rewrap(OF, &old).unwrap();
        vault.adopt_ledger_key().unwrap();
        assert_eq!(prk(&new).unwrap(), before);
        assert!(matches!(prk(&old), Err(VaultError::Unwrap { .. })));
    }

    #[test]
    fn shares_that_fit_a_false_description_do_not_become_a_root() {
        let (set, shares) = vault().ceremony(2, &officers(2)).unwrap();
        // Somebody rewrote the commitment to the root, the rest fits.
        let false_set = ShareSet { root: Commitment([0; 32]), ..set };
        let restored = vault();
        restored.submit(&false_set, &share(&shares, 1)).unwrap();
        let result = restored.submit(&false_set, &share(&shares, 2));
        assert!(matches!(result, Err(VaultError::WrongRoot)));
        assert!(matches!(restored.gathered(), Gathered::Waiting { have: 0, .. }));
    }
}
