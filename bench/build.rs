//! Compiles `c/baseline.c`, if this machine has a C compiler; `bench beside-c` says if not.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=c/baseline.c");
    println!("cargo::rerun-if-env-changed=CC");
    println!("cargo::rustc-check-cfg=cfg(baseline)");
    let folder = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    if is_built(&compiler, &folder) {
        println!("cargo::rustc-cfg=baseline");
        println!("cargo::rustc-link-search=native={}", folder.display());
        println!("cargo::rustc-link-lib=static=baseline");
        println!("cargo::rustc-env=BASELINE_COMPILER={compiler} -O2");
    }
}

/// Whether `folder` has the library afterwards.
fn is_built(compiler: &str, folder: &Path) -> bool {
    let object = folder.join("baseline.o");
    // As a kernel and most programs are built. The library is position independent, like Rust's.
    let compiled = Command::new(compiler)
        .args(["-O2", "-fPIC", "-Wall", "-Wextra", "-c", "c/baseline.c", "-o"])
        .arg(&object)
        .status();
    let packed =
        || Command::new("ar").arg("crs").arg(folder.join("libbaseline.a")).arg(&object).status();
    compiled.is_ok_and(|status| status.success()) && packed().is_ok_and(|status| status.success())
}
