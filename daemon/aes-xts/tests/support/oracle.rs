//! AES-256-XTS as others wrote it: `xts-mode`, AWS-LC, and the system's OpenSSL through its ordinary library.
//!
//! The two C libraries share one interface, EVP; AWS-LC's symbols carry a prefix, so both can be in one program. OpenSSL
//! is loaded when the test runs, so that building needs no headers.
#![expect(unsafe_code, reason = "calls C")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "a C interface is used by the sequence of calls")]

use std::ffi::{c_int, c_void};

use aes::Aes256;
use aes::cipher::KeyInit;
use aes_xts::Direction;
use xts_mode::{Xts128, get_tweak_default};

/// Someone else's AES-256-XTS.
pub(crate) trait Oracle {
    fn name(&self) -> &'static str;

    /// One data unit, whose number is `number`, in place.
    fn unit(&self, direction: Direction, key: &[u8; 64], number: u128, unit: &mut [u8]);

    /// Units of `bytes` bytes from `first` on.
    fn units(&self, direction: Direction, key: &[u8; 64], (first, bytes): (u128, usize), data: &mut [u8]) {
        for (index, unit) in (0_u128..).zip(data.chunks_mut(bytes)) {
            self.unit(direction, key, first.wrapping_add(index), unit);
        }
    }
}

/// All of them.
pub(crate) fn all() -> Vec<Box<dyn Oracle>> {
    vec![Box::new(XtsMode), Box::new(aws_lc()), Box::new(openssl())]
}

/// The `xts-mode` crate.
pub(crate) struct XtsMode;

impl Oracle for XtsMode {
    fn name(&self) -> &'static str {
        "xts-mode"
    }

    fn unit(&self, direction: Direction, key: &[u8; 64], number: u128, unit: &mut [u8]) {
        let (cipher, tweak) = key.split_at(32);
        let xts =
            Xts128::new(Aes256::new_from_slice(cipher).unwrap(), Aes256::new_from_slice(tweak).unwrap());
        match direction {
            Direction::Encrypt => xts.encrypt_sector(unit, get_tweak_default(number)),
            Direction::Decrypt => xts.decrypt_sector(unit, get_tweak_default(number)),
        }
    }
}

type New = unsafe extern "C" fn() -> *mut c_void;
type Free = unsafe extern "C" fn(*mut c_void);
type Cipher = unsafe extern "C" fn() -> *const c_void;
type Init =
    unsafe extern "C" fn(*mut c_void, *const c_void, *mut c_void, *const u8, *const u8, c_int) -> c_int;
type Update = unsafe extern "C" fn(*mut c_void, *mut u8, *mut c_int, *const u8, c_int) -> c_int;

/// The EVP interface of one library.
pub(crate) struct Evp {
    name: &'static str,
    new: New,
    free: Free,
    cipher: Cipher,
    init: Init,
    update: Update,
}

impl Oracle for Evp {
    fn name(&self) -> &'static str {
        self.name
    }

    fn unit(&self, direction: Direction, key: &[u8; 64], number: u128, unit: &mut [u8]) {
        let tweak = number.to_le_bytes();
        let len = c_int::try_from(unit.len()).unwrap();
        let mut written = 0;
        // SAFETY: the calls of EVP_EncryptInit(3), with buffers of the lengths that AES-256-XTS has.
        let done = unsafe {
            let context = (self.new)();
            assert!(!context.is_null(), "{}: no memory", self.name);
            let encrypt = c_int::from(direction == Direction::Encrypt);
            let (key, tweak) = (key.as_ptr(), tweak.as_ptr());
            let begun = (self.init)(context, (self.cipher)(), std::ptr::null_mut(), key, tweak, encrypt);
            let data = unit.as_mut_ptr();
            let done = begun == 1 && (self.update)(context, data, &raw mut written, data, len) == 1;
            (self.free)(context);
            done
        };
        assert!(done && written == len, "{} refused {len} bytes", self.name);
    }
}

fn aws_lc() -> Evp {
    // SAFETY: opaque pointers of the library as `void *`, an engine that is null: the same calls to the machine.
    unsafe {
        Evp {
            name: "AWS-LC",
            new: std::mem::transmute::<*const c_void, New>(aws_lc_sys::EVP_CIPHER_CTX_new as *const c_void),
            free: std::mem::transmute::<*const c_void, Free>(
                aws_lc_sys::EVP_CIPHER_CTX_free as *const c_void,
            ),
            cipher: std::mem::transmute::<*const c_void, Cipher>(
                aws_lc_sys::EVP_aes_256_xts as *const c_void,
            ),
            init: std::mem::transmute::<*const c_void, Init>(aws_lc_sys::EVP_CipherInit_ex as *const c_void),
            update: std::mem::transmute::<*const c_void, Update>(
                aws_lc_sys::EVP_CipherUpdate as *const c_void,
            ),
        }
    }
}

fn openssl() -> Evp {
    // SAFETY: OpenSSL's initialisation runs in its constructors; the signatures are those of its headers, and the library
    // is never unloaded.
    unsafe {
        let library = libloading::Library::new("libcrypto.so.3")
            .expect("the system's OpenSSL (libcrypto.so.3); tests/clients.sh installs it");
        let library = Box::leak(Box::new(library));
        Evp {
            name: "OpenSSL",
            new: *library.get::<New>(b"EVP_CIPHER_CTX_new\0").unwrap(),
            free: *library.get::<Free>(b"EVP_CIPHER_CTX_free\0").unwrap(),
            cipher: *library.get::<Cipher>(b"EVP_aes_256_xts\0").unwrap(),
            init: *library.get::<Init>(b"EVP_CipherInit_ex\0").unwrap(),
            update: *library.get::<Update>(b"EVP_CipherUpdate\0").unwrap(),
        }
    }
}
