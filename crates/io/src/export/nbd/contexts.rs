//! Metadata contexts: the kinds of information in BLOCK_STATUS, and how clients select them.
//!
//! Contract: a closed set. Each context has a fixed number, so a set of contexts is one byte, and a
//! reply needs no table.

/// A kind of information about extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum MetaContext {
    /// `base:allocation`: whether the extent is allocated, and whether it reads as zeroes. See
    /// [`super::proto::allocation`].
    Allocation = 1,
    /// `blkswitch:path`: the number of the path to which the region table sends the extent.
    Path = 2,
}

impl MetaContext {
    /// All contexts, in the order of lists and answers.
    pub const ALL: [MetaContext; 2] = [MetaContext::Allocation, MetaContext::Path];

    /// The context's name for clients.
    pub const fn name(self) -> &'static str {
        match self {
            MetaContext::Allocation => "base:allocation",
            MetaContext::Path => "blkswitch:path",
        }
    }

    /// The context's number on the wire.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The context with this number; `None` if there is none.
    pub fn from_id(id: u32) -> Option<MetaContext> {
        MetaContext::ALL.into_iter().find(|context| context.id() == id)
    }

    /// Whether a query of LIST_META_CONTEXT means this context: by its name, or by its namespace
    /// and a colon.
    pub fn is_listed_by(self, query: &str) -> bool {
        let name = self.name();
        query == name
            || query.strip_suffix(':').is_some_and(|space| name.split(':').next() == Some(space))
    }

    /// Whether a query of SET_META_CONTEXT selects this context. Only its name does; wildcards
    /// select nothing.
    pub fn is_selected_by(self, query: &str) -> bool {
        query == self.name()
    }
}

/// A set of metadata contexts, one bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contexts(u8);

impl Contexts {
    /// The set without contexts.
    pub const NONE: Contexts = Contexts(0);

    /// Adds a context. Returns `false` if it was in the set.
    pub fn insert(&mut self, context: MetaContext) -> bool {
        let before = self.0;
        self.0 |= 1 << context.id();
        self.0 != before
    }

    /// Whether the context is in the set.
    pub fn contains(self, context: MetaContext) -> bool {
        self.0 & (1 << context.id()) != 0
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Number of contexts in the set.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The contexts of the set, in the order of [`MetaContext::ALL`].
    pub fn iter(self) -> impl DoubleEndedIterator<Item = MetaContext> {
        MetaContext::ALL.into_iter().filter(move |&context| self.contains(context))
    }

    /// The context whose chunk ends a reply; `None` if the set is empty.
    pub fn last(self) -> Option<MetaContext> {
        self.iter().next_back()
    }
}

impl FromIterator<MetaContext> for Contexts {
    fn from_iter<I: IntoIterator<Item = MetaContext>>(contexts: I) -> Contexts {
        let mut set = Contexts::NONE;
        for context in contexts {
            set.insert(context);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        use MetaContext::{Allocation, Path};
        // A query, the contexts that it lists, and those that it selects.
        let table: [(&str, &[MetaContext], &[MetaContext]); 9] = [
            ("base:", &[Allocation], &[]),
            ("base:allocation", &[Allocation], &[Allocation]),
            ("base:allocatio", &[], &[]),
            ("base:allocation:", &[], &[]),
            ("blkswitch:", &[Path], &[]),
            ("blkswitch:path", &[Path], &[Path]),
            ("blkswitch", &[], &[]),
            (":", &[], &[]),
            ("qemu:dirty-bitmap:b0", &[], &[]),
        ];
        for (query, listed, selected) in table {
            let list: Vec<_> =
                MetaContext::ALL.into_iter().filter(|c| c.is_listed_by(query)).collect();
            let set: Vec<_> =
                MetaContext::ALL.into_iter().filter(|c| c.is_selected_by(query)).collect();
            assert_eq!((&list[..], &set[..]), (listed, selected), "{query}");
        }
    }

    #[test]
    fn a_set_keeps_order_and_counts_once() {
        let mut set = Contexts::NONE;
        assert!(set.is_empty() && set.last().is_none());
        assert!(set.insert(MetaContext::Path));
        assert!(!set.insert(MetaContext::Path));
        assert_eq!((set.len(), set.last()), (1, Some(MetaContext::Path)));
        assert!(set.insert(MetaContext::Allocation));
        assert_eq!(set.iter().collect::<Vec<_>>(), MetaContext::ALL);
        assert_eq!(set, MetaContext::ALL.into_iter().collect());
    }

    #[test]
    fn numbers_are_unique_and_not_zero() {
        for context in MetaContext::ALL {
            assert_eq!(MetaContext::from_id(context.id()), Some(context));
        }
        assert_eq!(MetaContext::from_id(0), None);
        assert_eq!(MetaContext::from_id(3), None);
    }
}
