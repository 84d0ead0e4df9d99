//! The devices that a queue knows, by their numbers: their gates, and all look-ups in their tables.
//!
//! A number stands for a minor number, so it may be any of a million, and it is looked up for every
//! request. The table has two levels: a device with the number 1,048,575 costs 128 KiB of pointers
//! and one page of devices, and a look-up is two loads.

use std::sync::Arc;

use super::state::{Hop, LeafAt, Local};
use crate::device::table::{Live, PathGroups, Table, To};
use crate::leaf::Leaf;

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
    pub(super) fn get(&self, device: u32) -> Option<&Local> {
        let number = device as usize;
        self.pages.get(number / PAGE)?.as_ref()?[number % PAGE].as_ref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, device: u32) -> Option<&mut Local> {
        let number = device as usize;
        self.pages.get_mut(number / PAGE)?.as_mut()?[number % PAGE].as_mut()
    }

    /// Forgets a device.
    pub(super) fn remove(&mut self, device: u32) {
        let number = device as usize;
        if let Some(page) = self.pages.get_mut(number / PAGE).and_then(Option::as_mut) {
            page[number % PAGE] = None;
        }
    }

    /// What is live on a device.
    #[inline]
    pub(super) fn live(&self, device: u32) -> Option<&Live> {
        self.get(device)?.live.as_deref()
    }

    /// The live table of a device.
    #[inline]
    pub(super) fn table(&self, device: u32) -> Option<&Table> {
        Some(&*self.live(device)?.table)
    }

    /// The table of a multipath device, its groups and its paths.
    pub(super) fn multipath(&self, device: u32) -> Option<(&Table, &PathGroups, &[To])> {
        let table = self.table(device)?;
        let (groups, paths) = table.multipath()?;
        Some((table, groups, paths))
    }

    #[inline]
    pub(super) fn leaf(&self, at: LeafAt) -> Option<&Leaf> {
        self.shared_leaf(at).map(|leaf| &**leaf)
    }

    #[inline]
    pub(super) fn shared_leaf(&self, at: LeafAt) -> Option<&Arc<Leaf>> {
        let live = self.live(at.device)?;
        let leaves = if at.departed { &live.departed } else { live.table.leaves() };
        leaves.get(at.index as usize)
    }

    /// Something enters the gates of these devices.
    #[inline]
    pub(super) fn enter(&mut self, hops: &[Hop]) {
        for hop in hops {
            if let Some(local) = self.get_mut(hop.device) {
                local.in_flight += 1;
            }
        }
    }

    /// It leaves them.
    #[inline]
    pub(super) fn leave(&mut self, hops: &[Hop]) {
        for hop in hops {
            if let Some(local) = self.get_mut(hop.device) {
                local.leave();
            }
        }
    }

    /// Whether one of these gates is closing and waits until all have left.
    pub(super) fn is_awaited(&self, hops: &[Hop]) -> bool {
        hops.iter().any(|hop| self.get(hop.device).is_some_and(|local| local.closing.is_some()))
    }

    /// Whether a device holds what finds no path. While a suspend is under way it says so, whatever
    /// the policy is: one with flush must come to an end, one without must not fail anything.
    pub(super) fn holds(&self, device: u32, policy: bool) -> bool {
        let local = self.get(device);
        local.is_some_and(|local| if local.open { policy } else { local.noflush })
    }

    /// Whether nothing of a device is under way or waits.
    pub(super) fn is_idle(&self, device: u32) -> bool {
        self.get(device).is_none_or(|local| {
            local.in_flight == 0 && local.parked.is_empty() && local.held.is_empty()
        })
    }

    /// Adds or replaces a device.
    pub(super) fn insert(&mut self, device: u32, local: Local) {
        let number = device as usize;
        let page = number / PAGE;
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages[page].get_or_insert_with(|| Box::new([const { None }; PAGE]));
        page[number % PAGE] = Some(local);
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
