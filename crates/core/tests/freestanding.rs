//! The core compiled as the kernel module compiles it needs no symbol of libcore: no panic, no formatting, no
//! 128-bit division, nothing that a kernel has not got.

use std::path::Path;
use std::process::Command;

/// What any freestanding compiler may call.
const ALLOWED: [&str; 4] = ["memcpy", "memmove", "memset", "memcmp"];

#[test]
fn needs_no_symbol() {
    if Command::new("nm").arg("--version").output().is_err() {
        println!("skipped: there is no nm here");
        return;
    }
    let probe = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/freestanding/probe.rs");
    let object = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probe.o");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let compiled = Command::new(rustc)
        .args(["--cfg=feature=\"multipath\""])
        .args(["--edition=2024", "--crate-type=staticlib", "--emit=obj", "-Cpanic=abort", "-Copt-level=2"])
        .args([
            "-Ccodegen-units=1",
            "-Crelocation-model=static",
            "-Cforce-unwind-tables=n",
            "--cap-lints=allow",
            "-o",
        ])
        .args([&object, &probe])
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let symbols = |option: &str| {
        let output =
            Command::new("nm").args([option, "--format=just-symbols"]).arg(&object).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let defined = symbols("--defined-only");
    assert!(defined.iter().filter(|symbol| symbol.starts_with("probe_")).count() >= 13, "{defined:?}");
    let mut needed = symbols("--undefined-only");
    needed.retain(|symbol| !ALLOWED.contains(&symbol.as_str()));
    assert!(needed.is_empty(), "needed: {needed:?}");
}
