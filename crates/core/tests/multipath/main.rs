//! Tests of the multipath target, in one program.

#[path = "../common/mod.rs"]
mod common;

mod checker;
mod fairness;
mod golden;
mod loading;
mod properties;
mod texts;
mod threads;
