//! Checks that the core, compiled as for the kernel module, needs no symbol of libcore: no panic,
//! no formatting, no 128-bit division, nothing that a kernel does not provide.

use std::path::Path;
use std::process::Command;

use object::{Object, ObjectSymbol};

/// The functions that a compiler may call in any freestanding program.
const ALLOWED: [&str; 4] = ["memcpy", "memmove", "memset", "memcmp"];

#[test]
fn needs_no_symbol() {
    let probe = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/freestanding/probe.rs");
    let object = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probe.o");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let compiled = Command::new(rustc)
        .args(["--cfg=feature=\"multipath\""])
        .args([
            "--edition=2024",
            "--crate-type=staticlib",
            "--emit=obj",
            "-Cpanic=abort",
            "-Copt-level=2",
        ])
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
    let bytes = std::fs::read(&object).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let symbols = |wanted: fn(&object::Symbol<'_, '_>) -> bool| -> Vec<String> {
        file.symbols().filter(wanted).map(|symbol| symbol.name().unwrap().to_owned()).collect()
    };
    let defined = symbols(|symbol| symbol.is_definition());
    assert!(
        defined.iter().filter(|symbol| symbol.starts_with("probe_")).count() >= 13,
        "{defined:?}"
    );
    let mut needed = symbols(|symbol| symbol.is_undefined());
    // The first entry of an ELF symbol table is empty.
    needed.retain(|symbol| !symbol.is_empty() && !ALLOWED.contains(&symbol.as_str()));
    assert!(needed.is_empty(), "needed: {needed:?}");
}
