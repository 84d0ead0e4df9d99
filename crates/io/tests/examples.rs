//! Runs the examples that need no arguments.

#[path = "../examples/driver.rs"]
mod driver;
#[path = "../examples/multipath.rs"]
mod multipath;
#[path = "../examples/remap.rs"]
mod remap;

#[test]
fn they_run() {
    driver::main().unwrap();
    multipath::main().unwrap();
    remap::main().unwrap();
}
