//! A slab: values at stable small indices, which are reused after removal. One owner, no locks.
//!
//! It grows to the highest load so far, and then allocates nothing.

/// Values at stable indices.
#[derive(Debug)]
pub struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Inserts a value and returns its index.
    pub fn insert(&mut self, value: T) -> u32 {
        if let Some(index) = self.free.pop() {
            self.entries[index as usize] = Some(value);
            return index;
        }
        self.entries.push(Some(value));
        (self.entries.len() - 1) as u32
    }

    /// The index that the next value will have.
    pub fn next(&self) -> u32 {
        self.free.last().copied().unwrap_or(self.entries.len() as u32)
    }

    /// The value at `index`. `None` if there is none.
    pub fn get(&self, index: u32) -> Option<&T> {
        self.entries.get(index as usize).and_then(Option::as_ref)
    }

    /// The value at `index`, mutable. `None` if there is none.
    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.entries.get_mut(index as usize).and_then(Option::as_mut)
    }

    /// Removes and returns the value at `index`.
    pub fn remove(&mut self, index: u32) -> Option<T> {
        let value = self.entries.get_mut(index as usize).and_then(Option::take)?;
        self.free.push(index);
        Some(value)
    }

    /// Number of values in the slab.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Number of places for values: all indices are below it.
    pub fn slots(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All values with their indices, mutable.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        self.entries.iter_mut().enumerate().filter_map(|(i, e)| e.as_mut().map(|v| (i as u32, v)))
    }

    /// All values with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.entries.iter().enumerate().filter_map(|(i, e)| e.as_ref().map(|v| (i as u32, v)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_stable_and_reused() {
        let mut slab = Slab::default();
        let (a, b) = (slab.insert('a'), slab.insert('b'));
        assert_eq!((slab.get(a), slab.get(b), slab.len()), (Some(&'a'), Some(&'b'), 2));
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!((slab.remove(a), slab.len()), (None, 1));
        assert_eq!(slab.get(a), None);
        assert_eq!(slab.next(), a);
        assert_eq!(slab.insert('c'), a);
        assert_eq!(slab.next(), 2);
        assert_eq!(slab.iter().map(|(i, v)| (i, *v)).collect::<Vec<_>>(), vec![(a, 'c'), (b, 'b')]);
    }
}
