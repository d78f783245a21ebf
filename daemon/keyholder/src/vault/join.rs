//! The root on its way from one arena to another: sealed to a one-time key, opened with it.

use lease::envelope::{self, PublicEnvelopeKey};
use zeroize::Zeroize;

use super::{Contents, PLACES, SECRET_BYTES, Vault, VaultError, no_random, root_epoch};
use crate::shares::ShareSet;

impl Vault {
    /// A fresh one-time key, to which a keyholder that has the root seals it. It opens one envelope.
    pub(crate) fn make_join_key(&self) -> Result<PublicEnvelopeKey, VaultError> {
        let contents = self.lock();
        if matches!(*contents, Contents::Root { .. }) {
            return Err(VaultError::AlreadyUnsealed);
        }
        self.arena.secret(PLACES.join).fill_random()?;
        self.stack.run(|| {
            let mut secret = [0; SECRET_BYTES];
            self.arena.secret(PLACES.join).read_into(&mut secret);
            let public = envelope::keypair(&secret);
            secret.zeroize();
            Ok(public?)
        })
    }

    /// Forgets the one-time key, where no answer came.
    pub(crate) fn forget_join_key(&self) {
        let _contents = self.lock();
        self.arena.zero_span(PLACES.join);
    }

    /// The root, sealed for a keyholder that may have it.
    pub(crate) fn seal_root(
        &self,
        recipient: &PublicEnvelopeKey,
        info: &[u8],
        aad: &[u8],
    ) -> Result<Vec<u8>, VaultError> {
        let contents = self.lock();
        root_epoch(&contents)?;
        self.stack.run(|| {
            let mut root = [0; SECRET_BYTES];
            self.arena.secret(PLACES.root).read_into(&mut root);
            let mut randomness = [0; envelope::SEAL_RANDOMNESS_BYTES];
            getrandom::fill(&mut randomness).map_err(no_random)?;
            let sealed = envelope::seal(recipient, info, aad, &root, &mut randomness);
            root.zeroize();
            Ok(sealed?)
        })
    }

    /// Opens the envelope with the one-time key, which is gone then, and takes the root if it is the one that `expected` is of.
    pub(crate) fn open_root(
        &self,
        expected: &ShareSet,
        info: &[u8],
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<(), VaultError> {
        let mut contents = self.lock();
        if matches!(*contents, Contents::Root { .. }) {
            return Err(VaultError::AlreadyUnsealed);
        }
        let taken: Result<(), VaultError> = self.stack.run(|| {
            let (mut secret, mut root) = ([0; SECRET_BYTES], [0; SECRET_BYTES]);
            self.arena.secret(PLACES.join).read_into(&mut secret);
            let opened = envelope::open(&secret, info, aad, sealed, &mut root);
            secret.zeroize();
            opened.map_err(|_| VaultError::Unwrap { what: "root from the other keyholder" })?;
            if !expected.is_root(&root) {
                root.zeroize();
                return Err(VaultError::WrongRoot);
            }
            self.arena.secret(PLACES.root).write_from(&mut root);
            Ok(())
        });
        self.arena.zero_span(PLACES.join);
        taken?;
        *contents = Contents::Root { epoch: expected.root_epoch, ledger_key: false };
        self.forget_shares();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use locked_memory::Policy;

    use super::*;

    fn vault() -> Vault {
        Vault::new(Policy::AllowMlock).unwrap()
    }

    fn with_root() -> (Vault, ShareSet) {
        let giver = vault();
        let officer = ("officer".to_owned(), envelope::keypair(&[1; 32]).unwrap());
        let (set, _) = giver.ceremony(1, &[officer]).unwrap();
        (giver, set)
    }

    #[test]
    fn the_root_arrives_once_and_its_key_is_gone() {
        let (giver, set) = with_root();
        let joiner = vault();
        let key = joiner.make_join_key().unwrap();
        let sealed = giver.seal_root(&key, b"info", b"aad").unwrap();
        joiner.open_root(&set, b"info", b"aad", &sealed).unwrap();
        assert_eq!(joiner.signing_public_key().unwrap(), giver.signing_public_key().unwrap());
        assert!(matches!(joiner.make_join_key(), Err(VaultError::AlreadyUnsealed)));
        joiner.wipe();
        let again = joiner.open_root(&set, b"info", b"aad", &sealed);
        assert!(matches!(again, Err(VaultError::Unwrap { .. })), "the one-time key opened one envelope");
    }

    #[test]
    fn a_key_that_got_no_answer_opens_none() {
        let (giver, set) = with_root();
        let joiner = vault();
        let key = joiner.make_join_key().unwrap();
        let sealed = giver.seal_root(&key, b"info", b"aad").unwrap();
        joiner.forget_join_key();
        let late = joiner.open_root(&set, b"info", b"aad", &sealed);
        assert!(matches!(late, Err(VaultError::Unwrap { .. })));
    }

    #[test]
    fn another_root_other_bindings_and_a_sealed_giver_give_nothing() {
        let ((giver, set), (stranger, _)) = (with_root(), with_root());
        let joiner = vault();
        assert!(matches!(
            vault().seal_root(&joiner.make_join_key().unwrap(), b"", b""),
            Err(VaultError::Sealed { .. })
        ));
        let key = joiner.make_join_key().unwrap();
        let foreign = stranger.seal_root(&key, b"info", b"aad").unwrap();
        assert!(matches!(joiner.open_root(&set, b"info", b"aad", &foreign), Err(VaultError::WrongRoot)));
        for (info, aad) in [(b"else".as_slice(), b"aad".as_slice()), (b"info", b"else")] {
            let key = joiner.make_join_key().unwrap();
            let sealed = giver.seal_root(&key, b"info", b"aad").unwrap();
            assert!(matches!(joiner.open_root(&set, info, aad, &sealed), Err(VaultError::Unwrap { .. })));
        }
        assert!(matches!(joiner.signing_public_key(), Err(VaultError::Sealed { .. })));
    }
}
