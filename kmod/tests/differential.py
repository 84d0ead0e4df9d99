"""The kernel's own switch target and the module side by side: random tables and messages from a seed.

Both get the same; verdicts, log texts, table lines and what every region reads must be the same. The module runs as
`blkswitch`, with its parameter `strict` as the caller set it: nothing generated here is among the differences.
"""

import random

import dm

TABLES = 80
MESSAGES = 25
MAX_SECTORS = 1024


def path(rng):
    return f"/dev/ram{rng.randrange(4)} {rng.choice((0, 0, 8, 1000, 4096))}"


def table(rng):
    """A table's parameters and length, mostly right."""
    num_paths = rng.choice((1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 64, 255, 256, 300))
    length = rng.randrange(8, MAX_SECTORS)
    region_size = rng.choice((1, 2, 3, 7, 8, 16, 100, 128, 1000, 4096))
    words = [str(num_paths), str(region_size), "0"] + [path(rng) for _ in range(num_paths)]
    if rng.random() < 0.25:
        at = rng.randrange(min(len(words), 5))
        words[at] = rng.choice(("", "0", "-1", "+1", "x", "0x10", "1 ", "007", "3.0", "262142"))
    return length, " ".join(words)


def number(rng, limit):
    """A number that is mostly below the limit, as a message writes it."""
    value = rng.randrange(limit) if rng.random() < 0.96 else rng.choice((limit, limit + 1, 2**32, 2**64 - 1, 2**64))
    text = f"{value:x}"
    if rng.random() < 0.1:
        text = text.upper()
    return "0" * rng.choice((0, 0, 0, 0, 1, 17)) + text


def argument(rng, regions, paths):
    kind = rng.random()
    if kind < 0.55:
        return ":" + number(rng, paths)
    if kind < 0.8:
        return number(rng, regions) + ":" + number(rng, paths)
    if kind < 0.97:
        return rng.choice("Rr") + number(rng, 12) + "," + number(rng, max(1, regions // 3))
    garbage = rng.choice(("", ":", "R", "R1", "R1,", "R,1", "0:", "g:1", "0x1:0", "1:2:3", "-1:0", "R0,1", "\\:1", "1\\:0", "\\"))
    return garbage or "".join(rng.choice("0123456789abcfRrg:,\\'\x7f") for _ in range(rng.randrange(1, 8)))


def message(rng, regions, paths):
    words = ["set_region_mappings" if rng.random() < 0.97 else rng.choice(("bogus", "SET_region_MAPPINGS", "get_table"))]
    if rng.random() < 0.05:
        # What a whole map is sent as.
        words.append("0:0")
        words += [f":{rng.randrange(paths):x}" for _ in range(rng.randrange(regions))]
    else:
        words += [argument(rng, regions, paths) for _ in range(rng.randrange(14))]
    blank = " " if rng.random() < 0.9 else rng.choice(("  ", "\t", " \n"))
    return blank.join(words)


class Pair:
    """A device of the kernel's target and one of ours."""

    def __init__(self, seed):
        self.dm, self.log = dm.Dm(), dm.Log()
        self.results = dm.Results(f"differential, seed {seed}")
        self.rng = random.Random(seed)
        self.targets = ("switch", "blkswitch")

    def both(self, what, function):
        """Calls the function for each target; what it returns, and the log, must be equal."""
        found = []
        for target in self.targets:
            value = function(target)
            number = self.numbers[target]
            log = [[level, text.replace(number, "$DEV").replace(": blkswitch: ", ": switch: ")] for level, text in self.log.read_dm()]
            found.append((value, log))
        self.results.check(what, found[1], found[0])
        return found[0][0]

    def one_table(self):
        length, params = table(self.rng)
        self.numbers = {}
        for target in self.targets:
            major, minor = self.dm.create(f"diff-{target}")
            self.numbers[target] = f"{major}:{minor}"
        error = self.both(f"load {length} {params}", lambda target: self.dm.load(f"diff-{target}", f"0 {length} {target} {params}"))
        if not error:
            error = self.both("resume", lambda target: self.dm.resume(f"diff-{target}"))
        if not error:
            self.messages(length, params)
        for target in self.targets:
            self.dm.remove(f"diff-{target}")

    def messages(self, length, params):
        words = params.split()
        num_paths, region_size = int(words[0]), int(words[1])
        regions = -(-length // region_size)
        self.both("table", lambda target: [line.replace(" blkswitch ", " switch ") for line in self.dm.table(f"diff-{target}")])
        for _ in range(MESSAGES):
            text = message(self.rng, regions, num_paths)
            self.both(f"{params[:60]}: message {text!r}", lambda target: self.dm.message(f"diff-{target}", 0, text))
            self.both(
                f"{params[:60]}: map after {text!r}",
                lambda target: dm.read_direct(f"/dev/mapper/diff-{target}", 0, length),
            )


def run(seed):
    """Returns the number of failures. Needs both modules loaded and the ram disks marked."""
    pair = Pair(seed)
    for _ in range(TABLES):
        pair.one_table()
    return pair.results.end()
