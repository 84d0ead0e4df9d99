//! The devices that a queue knows, by their numbers.
//!
//! A number stands for a minor number, so it may be any of a million, and it is looked up for every
//! request. The table has two levels: a device with the number 1,048,575 costs 128 KiB of pointers
//! and one page of devices, and a look-up is two loads.

use super::state::Local;

/// Devices of a page.
const PAGE: usize = 64;

type Page = [Option<Local>; PAGE];

/// See the module's text.
#[derive(Default)]
pub(super) struct Devices {
    pages: Vec<Option<Box<Page>>>,
}

impl Devices {
    #[inline]
    pub(super) fn get(&self, number: usize) -> Option<&Option<Local>> {
        Some(&self.pages.get(number / PAGE)?.as_ref()?[number % PAGE])
    }

    #[inline]
    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut Option<Local>> {
        Some(&mut self.pages.get_mut(number / PAGE)?.as_mut()?[number % PAGE])
    }

    /// Adds or replaces a device.
    pub(super) fn insert(&mut self, number: usize, device: Local) {
        let page = number / PAGE;
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages[page].get_or_insert_with(|| Box::new([const { None }; PAGE]));
        page[number % PAGE] = Some(device);
    }

    /// All devices with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Local)> {
        let pages = self.pages.iter().enumerate();
        let pages = pages.filter_map(|(number, page)| Some((number * PAGE, page.as_ref()?)));
        let devices = pages.flat_map(|(first, page)| (first as u32..).zip(page.iter()));
        devices.filter_map(|(number, device)| Some((number, device.as_ref()?)))
    }

    /// All devices.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Local> {
        self.pages.iter_mut().flatten().flat_map(|page| page.iter_mut()).flatten()
    }
}
