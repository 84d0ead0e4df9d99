//! Loads a multipath target into boxed slices, as a daemon does, for tests.

use blkswitch_core::args::split_in_place;
use blkswitch_core::error::Errno;
use blkswitch_core::multipath::selector::RepeatCountDeprecated;
use blkswitch_core::multipath::{
    Attempt, Choice, Group, Item, Multipath, Params, ParamsError, Path,
};

pub(crate) type Owned = Multipath<Box<[Group]>, Box<[Path]>>;

/// A target and the devices that its caller opened.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) multipath: Owned,
    /// The number that `open` returned for each path.
    pub(crate) devices: Vec<String>,
    pub(crate) warnings: Vec<String>,
}

/// Loads a target's words. `open` returns the number of a device.
pub(crate) fn load(
    params: &str,
    open: impl Fn(&str) -> Result<String, Errno>,
) -> Result<Loaded, ParamsError> {
    let mut bytes = params.as_bytes().to_vec();
    let words: Vec<&[u8]> = split_in_place(&mut bytes).collect();
    let mut params = Params::parse(&words)?;
    let (mut groups, mut paths) = (Vec::new(), Vec::new());
    let (mut devices, mut warnings) = (Vec::new(), Vec::new());
    while let Some(item) = params.next_item()? {
        match item {
            Item::Group(group) => groups.push(group.group()),
            Item::Path(path) => {
                assert_eq!(path.number as usize, paths.len());
                let name = std::str::from_utf8(path.device).unwrap();
                devices.push(open(name).map_err(|errno| path.lookup_failed(errno))?);
                let new = path.path()?;
                let deprecated = new.repeat_count_deprecated;
                warnings.extend(
                    deprecated.map(|selector| RepeatCountDeprecated(&selector).to_string()),
                );
                paths.push(new.path);
            }
        }
    }
    let multipath =
        Multipath::new(*params.features(), params.initial_group(), groups.into(), paths.into())
            .expect("what was handed out fits together");
    Ok(Loaded { multipath, devices, warnings })
}

/// Loads a target. Each device is called by the name that the line gives it.
pub(crate) fn new(params: &str) -> Owned {
    load(params, |name| Ok(name.to_owned())).unwrap().multipath
}

/// The attempt of a choice to send; otherwise `None`.
pub(crate) fn send(choice: Choice) -> Option<Attempt> {
    match choice {
        Choice::Send(attempt) => Some(attempt),
        Choice::Hold | Choice::Fail(_) => None,
    }
}
