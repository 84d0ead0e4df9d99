//! The tree of `ls --tree`: devices above their dependencies, or below them with `inverted`.

use std::fmt::Write as _;

use super::{block_name, numbers_or_address};
use crate::protocol::{Dependency, Device};

/// The choices of `-o`, and the terminal's character set.
#[derive(Debug, Clone)]
pub(crate) struct Style {
    symbols: &'static Symbols,
    numbers: bool,
    block_names: bool,
    active: bool,
    rw: bool,
    open: bool,
    uuid: bool,
    compact: bool,
    inverted: bool,
    truncate: bool,
}

/// The drawing characters. `vt100` switches to the terminal's line drawing set and back.
#[derive(Debug)]
struct Symbols {
    branch: &'static str,
    vertical: &'static str,
    last: &'static str,
    single: &'static str,
    first: &'static str,
}

static ASCII: Symbols =
    Symbols { branch: "|-", vertical: "| ", last: "`-", single: "---", first: "-+-" };
static UTF: Symbols =
    Symbols {
        branch: "├─", vertical: "│ ", last: "└─", single: "───", first: "─┬─"
    };
static VT100: Symbols = Symbols {
    branch: "\x1b(0\x0ftq\x1b(B",
    vertical: "\x1b(0\x0fx\x1b(B ",
    last: "\x1b(0\x0fmq\x1b(B",
    single: "\x1b(0\x0fqq\x1b(B",
    first: "\x1b(0\x0fqw\x1b(B",
};

/// Line width without a terminal, as in dmsetup.
pub(crate) const WIDTH_DEFAULT: usize = 80;

/// Deepest nesting that is drawn. A deeper one must be an undetected loop.
const DEPTH_MAX: usize = 100;

impl Style {
    /// Parses the list of `-o`. `utf8` says whether the terminal's locale is UTF-8.
    pub(crate) fn parse(list: Option<&str>, utf8: bool) -> Result<Self, String> {
        let mut style = Self {
            symbols: if utf8 { &UTF } else { &ASCII },
            numbers: true,
            block_names: false,
            active: false,
            rw: false,
            open: false,
            uuid: false,
            compact: false,
            inverted: false,
            truncate: true,
        };
        for word in
            list.into_iter().flat_map(|list| list.split(',')).filter(|word| !word.is_empty())
        {
            match word {
                "ascii" => style.symbols = &ASCII,
                "utf" => style.symbols = &UTF,
                "vt100" => style.symbols = &VT100,
                "device" => style.numbers = true,
                "nodevice" => style.numbers = false,
                "blkdevname" => style.block_names = true,
                "active" => style.active = true,
                "rw" => style.rw = true,
                "open" => style.open = true,
                "uuid" => style.uuid = true,
                "compact" => style.compact = true,
                "inverted" => style.inverted = true,
                "notrunc" => style.truncate = false,
                // dmsetup accepts these two and prints nothing for them.
                "table" | "status" => {}
                _ => return Err(format!("Tree option not recognised: {word}.")),
            }
        }
        Ok(style)
    }

    fn attributes(&self) -> bool {
        self.active || self.rw || self.open || self.uuid
    }
}

/// A device, or a leaf below a device.
enum Node<'a> {
    Device(&'a Device),
    Leaf(&'a Dependency),
}

/// The devices and leaves, with an edge for every dependency, in the order of discovery.
struct Graph<'a> {
    nodes: Vec<Node<'a>>,
    below: Vec<Vec<usize>>,
    above: Vec<Vec<usize>>,
}

impl<'a> Graph<'a> {
    fn new(devices: &'a [Device]) -> Self {
        let mut graph = Self { nodes: Vec::new(), below: Vec::new(), above: Vec::new() };
        for device in devices {
            graph.add_device(device, devices);
        }
        graph
    }

    fn add_device(&mut self, device: &'a Device, all: &'a [Device]) -> usize {
        let same =
            |node: &Node<'_>| matches!(node, Node::Device(known) if known.name == device.name);
        if let Some(index) = self.nodes.iter().position(same) {
            return index;
        }
        let index = self.push(Node::Device(device));
        for dep in device.live.iter().flat_map(|table| &table.deps) {
            let known = all.iter().find(|other| dep.is_device && other.name == dep.name);
            let below = match known {
                Some(device) => self.add_device(device, all),
                None => self.add_leaf(dep),
            };
            self.below[index].push(below);
            self.above[below].push(index);
        }
        index
    }

    fn add_leaf(&mut self, dep: &'a Dependency) -> usize {
        let same =
            |node: &Node<'_>| matches!(node, Node::Leaf(known) if known.address == dep.address);
        let known = self.nodes.iter().position(same);
        known.unwrap_or_else(|| self.push(Node::Leaf(dep)))
    }

    fn push(&mut self, node: Node<'a>) -> usize {
        self.nodes.push(node);
        self.below.push(Vec::new());
        self.above.push(Vec::new());
        self.nodes.len() - 1
    }

    fn children(&self, index: usize, inverted: bool) -> &[usize] {
        if inverted { &self.above[index] } else { &self.below[index] }
    }

    /// The nodes that nothing stands on; if inverted, those that stand on nothing.
    fn roots(&self, inverted: bool) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&index| self.children(index, !inverted).is_empty()).collect()
    }
}

/// Draws the tree of all devices. Lines are cut to `width` columns.
pub(crate) fn tree(devices: &[Device], style: &Style, width: usize) -> String {
    let graph = Graph::new(devices);
    let mut drawing = Drawing {
        graph: &graph,
        style,
        width,
        out: String::new(),
        line: String::new(),
        levels: Vec::new(),
    };
    drawing.draw(&graph.roots(style.inverted));
    drawing.out
}

/// One level of the branch that is being drawn.
struct Level {
    /// Whether further siblings follow.
    more: bool,
    /// Columns that a compact line used up at this level.
    indent: usize,
}

struct Drawing<'a> {
    graph: &'a Graph<'a>,
    style: &'a Style,
    width: usize,
    out: String,
    line: String,
    levels: Vec<Level>,
}

impl Drawing<'_> {
    fn draw(&mut self, siblings: &[usize]) {
        if self.levels.len() == DEPTH_MAX {
            return;
        }
        for (at, &index) in siblings.iter().enumerate() {
            let children = self.graph.children(index, self.style.inverted);
            self.levels.push(Level { more: at + 1 < siblings.len(), indent: 0 });
            self.node(index, !children.is_empty());
            self.draw(children);
            self.levels.pop();
        }
    }

    fn node(&mut self, index: usize, has_children: bool) {
        let label = self.label(&self.graph.nodes[index]);
        if label.is_empty() {
            return;
        }
        let compact = self.style.compact && !self.style.attributes();
        let fresh = self.line.is_empty();
        if !compact || fresh {
            self.prefix();
        }
        let offset = self.line.chars().count();
        if compact && !fresh {
            let more = self.levels.last().is_some_and(|level| level.more);
            self.line.push_str(if more {
                self.style.symbols.first
            } else {
                self.style.symbols.single
            });
        }
        self.line.push_str(&label);
        if compact && let Some(level) = self.levels.last_mut() {
            level.indent = self.line.chars().count() - offset;
        }
        if !compact || !has_children {
            self.newline();
        }
    }

    /// The text before a node: a vertical line for every level that goes on.
    fn prefix(&mut self) {
        let depth = self.levels.len() - 1;
        for (at, pair) in self.levels.windows(2).enumerate() {
            let [parent, child] = pair else { continue };
            self.line.push_str(&" ".repeat(parent.indent + 1));
            let symbols = self.style.symbols;
            self.line.push_str(match (at + 1 == depth, child.more) {
                (true, true) => symbols.branch,
                (true, false) => symbols.last,
                (false, true) => symbols.vertical,
                (false, false) => "  ",
            });
        }
    }

    fn label(&self, node: &Node<'_>) -> String {
        let mut label = match node {
            Node::Device(device) => device.name.clone(),
            Node::Leaf(_) => String::new(),
        };
        if self.style.block_names {
            let name = match node {
                Node::Device(device) => block_name(device),
                Node::Leaf(dep) => dep.name.clone(),
            };
            let _ = write!(label, " <{name}>");
        }
        if self.style.numbers {
            let numbers = match node {
                Node::Device(device) => format!("{}:{}", device.major, device.minor),
                Node::Leaf(dep) => numbers_or_address(dep, ":"),
            };
            let _ = write!(label, " ({numbers})");
        }
        if let Node::Device(device) = node
            && self.style.attributes()
        {
            let _ = write!(label, " [{}]", self.device_attributes(device));
        }
        label
    }

    fn device_attributes(&self, device: &Device) -> String {
        let style = self.style;
        let open = device.open_count.to_string();
        let parts = [
            (style.active, if device.suspended { "SUSPENDED" } else { "ACTIVE" }),
            (style.rw, if device.read_only { "RO" } else { "RW" }),
            (style.open, &open),
            (style.uuid, &device.uuid),
        ];
        parts
            .iter()
            .filter(|(shown, _)| *shown)
            .map(|(_, text)| *text)
            .collect::<Vec<_>>()
            .join(", ")
    }

    fn newline(&mut self) {
        let line = std::mem::take(&mut self.line);
        if self.style.truncate && line.chars().count() > self.width {
            self.out.extend(line.chars().take(self.width));
            self.out.push_str("...");
        } else {
            self.out.push_str(&line);
        }
        self.out.push('\n');
    }
}
