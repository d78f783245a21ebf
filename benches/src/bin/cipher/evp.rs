//! The EVP interface, which AWS-LC and OpenSSL share: one context, keyed once, a new tweak and a call for each sector.

use std::ffi::{CStr, c_int, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};

use anyhow::{Context, Result, ensure};

use crate::ours::KEY;
use crate::{Subject, Task};

type New = unsafe extern "C" fn() -> *mut c_void;
type Cipher = unsafe extern "C" fn() -> *const c_void;
type Init =
    unsafe extern "C" fn(*mut c_void, *const c_void, *mut c_void, *const u8, *const u8, c_int) -> c_int;
type Update = unsafe extern "C" fn(*mut c_void, *mut u8, *mut c_int, *const u8, c_int) -> c_int;
type Version = unsafe extern "C" fn(c_int) -> *const std::ffi::c_char;

/// One library.
#[derive(Clone, Copy)]
pub(crate) struct Evp {
    new: New,
    cipher: Cipher,
    init: Init,
    update: Update,
}

impl Evp {
    /// AWS-LC, as it is linked.
    pub(crate) fn aws_lc() -> Self {
        // SAFETY: opaque pointers as `void *` and a null engine: the same calls to the machine.
        unsafe {
            Self {
                new: std::mem::transmute::<*const c_void, New>(
                    aws_lc_sys::EVP_CIPHER_CTX_new as *const c_void,
                ),
                cipher: std::mem::transmute::<*const c_void, Cipher>(
                    aws_lc_sys::EVP_aes_256_xts as *const c_void,
                ),
                init: std::mem::transmute::<*const c_void, Init>(
                    aws_lc_sys::EVP_CipherInit_ex as *const c_void,
                ),
                update: std::mem::transmute::<*const c_void, Update>(
                    aws_lc_sys::EVP_CipherUpdate as *const c_void,
                ),
            }
        }
    }

    /// An OpenSSL from its shared library, symbols kept to itself, and the version that it says it is.
    pub(crate) fn openssl(path: &Path) -> Result<(Self, String)> {
        // SAFETY: OpenSSL's constructors only prepare its tables, and it is never unloaded.
        let library = unsafe { libloading::Library::new(path) };
        let library =
            library.with_context(|| format!("loading {}; `make bench-cipher` builds it", path.display()))?;
        let library: &'static libloading::Library = Box::leak(Box::new(library));
        // SAFETY: the signatures are those of OpenSSL's headers.
        unsafe {
            let version = (library.get::<Version>(b"OpenSSL_version\0")?)(0);
            let version = CStr::from_ptr(version).to_string_lossy();
            let name = version.split(' ').take(2).collect::<Vec<_>>().join(" ");
            let evp = Self {
                new: *library.get(b"EVP_CIPHER_CTX_new\0")?,
                cipher: *library.get(b"EVP_aes_256_xts\0")?,
                init: *library.get(b"EVP_CipherInit_ex\0")?,
                update: *library.get(b"EVP_CipherUpdate\0")?,
            };
            Ok((evp, name))
        }
    }

    /// Both directions as subjects.
    pub(crate) fn subjects(self, name: &str) -> Result<[Subject<'static>; 2]> {
        let [encrypt, decrypt] = [self.keyed(true)?, self.keyed(false)?];
        let subject =
            |task, context| Subject::new(name, task, move |data, bytes| self.run(context, data, bytes));
        Ok([subject(Task::Encrypt, encrypt), subject(Task::Decrypt, decrypt)])
    }

    /// A context, which lives as long as the bench.
    fn keyed(self, encrypt: bool) -> Result<*mut c_void> {
        // SAFETY: a fresh context, a cipher of the same library, a key of its length, no tweak yet.
        let (context, keyed) = unsafe {
            let context = (self.new)();
            (
                context,
                (self.init)(context, (self.cipher)(), null_mut(), KEY.as_ptr(), null(), c_int::from(encrypt)),
            )
        };
        ensure!(keyed == 1, "the library refused the key");
        Ok(context)
    }

    fn run(self, context: *mut c_void, data: &mut [u8], bytes: usize) {
        for (number, sector) in (1_u128..).zip(data.chunks_exact_mut(bytes)) {
            let (tweak, mut written) = (number.to_le_bytes(), 0);
            let len = c_int::try_from(bytes).unwrap_or(c_int::MAX);
            // SAFETY: a keyed context, a tweak of 16 bytes, and a sector of `len` bytes in place.
            let done = unsafe {
                (self.init)(context, null(), null_mut(), null(), tweak.as_ptr(), -1) == 1
                    && (self.update)(context, sector.as_mut_ptr(), &raw mut written, sector.as_ptr(), len)
                        == 1
            };
            assert!(done && written == len, "the library refused a sector");
        }
    }
}
