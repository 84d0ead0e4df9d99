//! The devices of a registry, offered as NBD exports.

use super::{Directory, ExportInfo, names};
use crate::device::{Device, Registry};

impl Directory for Registry {
    fn list(&self, each: &mut dyn FnMut(&str, &str)) {
        for device in self.list().iter() {
            if let Some(info) = export(device) {
                each(&info.name, &info.description);
            }
        }
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        let devices = self.list();
        let device = match (name, devices.as_slice()) {
            ("", [only]) => only,
            _ => devices.iter().find(|device| names::is_called(&device.name(), name))?,
        };
        export(device)
    }

    fn instance(&self) -> u64 {
        Registry::instance(self)
    }
}

fn export(device: &Device) -> Option<ExportInfo> {
    let info = device.info();
    let table = device.live()?;
    let targets: Vec<&str> = table.segments().iter().map(|s| s.target.name()).collect();
    Some(ExportInfo {
        id: info.id,
        description: format!("{} device of {} sectors", targets.join("+"), table.len()),
        name: names::export_name(&info.name).into_owned(),
        size_bytes: table.len() * 512,
        read_only: info.read_only,
        rotational: table.rotational(),
        min_block: table.logical_block(),
        preferred_block: table.logical_block().max(4096),
        can_discard: table.can_discard(),
        can_zero: true,
        can_fast_zero: true,
        can_cache: true,
        // Unflushed writes are counted per leaf and not per connection, so a flush on one
        // connection covers all.
        can_multi_conn: true,
    })
}
