//! Builds the newest OpenSSL for the cipher bench, as a shared library beside the system's.
//!
//! Only under the feature `rivals`: nothing else waits for it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "rivals")]
    rivals::build();
}

#[cfg(feature = "rivals")]
mod rivals {
    use std::path::PathBuf;
    use std::process::Command;

    pub(super) fn build() {
        let built = openssl_src::Build::new().build();
        let out = std::env::var_os("OUT_DIR").expect("cargo tells where output goes");
        let shared = PathBuf::from(out).join("libcrypto-newest.so");
        let linked = Command::new("cc")
            .args(["-shared", "-Wl,--whole-archive"])
            .arg(built.lib_dir().join("libcrypto.a"))
            .args(["-Wl,--no-whole-archive", "-lpthread", "-ldl", "-o"])
            .arg(&shared)
            .status();
        assert!(linked.is_ok_and(|status| status.success()), "cc could not link OpenSSL as a shared library");
        println!("cargo::rustc-env=NIGHTLATCH_NEWEST_OPENSSL={}", shared.display());
    }
}
