//! `targets`: shows the target types.

use std::fmt::Write as _;

use clap::Args;

use super::context::Context;
use super::failure::Failure;
use super::options::Options;
use crate::protocol::{TargetList, TargetVersion, route};

/// Show the target types and their versions
#[derive(Debug, Args)]
pub(super) struct Targets {
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &[];

impl Targets {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let list: TargetList = context.get(route::TARGETS).await?;
        if self.options.json {
            return context.print_json(&list);
        }
        context.print(&lines(&list.targets))
    }
}

fn lines(targets: &[TargetVersion]) -> String {
    let mut text = String::new();
    for TargetVersion { name, version: [major, minor, patch] } in targets {
        let _ = writeln!(text, "{name:<16} v{major}.{minor}.{patch}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_dmsetup_prints_them() {
        let target = |name: &str, version| TargetVersion { name: name.to_owned(), version };
        let list = [target("error", [1, 7, 0]), target("switch", [1, 1, 0])];
        assert_eq!(lines(&list), "error            v1.7.0\nswitch           v1.1.0\n");
    }
}
