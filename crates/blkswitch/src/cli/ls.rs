//! `ls`: lists devices as lines or as a tree, or runs a command for each.

use std::env;

use clap::Args;

use super::context::Context;
use super::devices::{Devices, exec};
use super::failure::Failure;
use super::format::lines::{DeviceName, ls, ls_target};
use super::format::tree;
use super::options::Options;
use super::terminal;

/// List devices
#[derive(Debug, Args)]
pub(super) struct Ls {
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &["target", "exec", "tree", "fields"];

/// Columns that dmsetup reserves for the dots of a cut line.
const TREE_MARGIN: usize = 3;

impl Ls {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let options = &self.options;
        let by = if options.tree {
            Ok(DeviceName::default())
        } else {
            DeviceName::parse(options.fields.as_deref())
        };
        let by = by.map_err(Failure::CommandLine)?;
        let style = if options.tree { options.fields.as_deref() } else { None };
        let style = tree::Style::parse(style, utf8_locale()).map_err(Failure::CommandLine)?;
        let mut devices = Devices::fetch(&[], &Options::default(), "names", context).await?;
        devices.retain_target(options);
        if devices.printed(options, context)? {
            return Ok(());
        }
        if options.target.is_some() || options.exec.is_some() {
            return print_matching(&devices, options, context);
        }
        if options.tree {
            let width = terminal::width()
                .map_or(tree::WIDTH_DEFAULT, |width| width.saturating_sub(TREE_MARGIN));
            return context.print(&tree::tree(&devices.all, &style, width));
        }
        for device in devices.iter() {
            context.print(&ls(device, by))?;
        }
        Ok(())
    }
}

fn print_matching(
    devices: &Devices,
    options: &Options,
    context: &mut Context,
) -> Result<(), Failure> {
    for device in devices.iter() {
        if options.exec.is_none() || options.verbose > 0 {
            context.print(&ls_target(device))?;
        }
        if let Some(command) = &options.exec {
            context.flush()?;
            exec(command, device)?;
        }
    }
    Ok(())
}

/// Returns whether the locale is UTF-8. The first of the three variables that is set decides.
fn utf8_locale() -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(|name| env::var(name).ok());
    let locale = set.into_iter().find(|value| !value.is_empty()).unwrap_or_default().to_uppercase();
    locale.contains("UTF-8") || locale.contains("UTF8")
}
