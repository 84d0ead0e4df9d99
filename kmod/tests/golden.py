"""Replays the recorded behaviour (tests/golden) against the module: constructors, messages, random messages.

Where the module differs on purpose, docs/kernel-differences.md has the case in a table with `kmod` or `core` in its
column `by`; a listed case must differ and one that is not listed must agree. With the module's parameter `strict` set
only those of `core` are left.
"""

import errno
import json
import os
import re

import dm

ROOT = os.path.join(os.path.dirname(__file__), "..", "..")
NAME = "golden"
RAM_SECTORS = 8192


def cases(suite):
    with open(os.path.join(ROOT, "tests", "golden", suite + ".jsonl")) as file:
        return [json.loads(line) for line in file]


def listed_differences(strict):
    """The ids of docs/kernel-differences.md that are the module's."""
    ids = set()
    with open(os.path.join(ROOT, "docs", "kernel-differences.md")) as file:
        for line in file:
            cells = [cell.strip() for cell in line.split("|")]
            if len(cells) > 3 and re.fullmatch(r"[a-z]+-\d+", cells[1]):
                by, text = cells[2], cells[4]
                number = "Invalid" in text
                if by == "kmod" and not strict or by == "core" and (number or not strict):
                    ids.add(cells[1])
    return ids


class Replay:
    def __init__(self, title, strict, limits):
        self.dm, self.log = dm.Dm(), dm.Log()
        self.results = dm.Results(title)
        self.differences = listed_differences(strict)
        self.limits = limits
        self.strict = strict
        self.seen = set()

    def compare(self, case, pairs):
        """Checks (what, found, expected) of a case, or that a listed case differs."""
        wrong = [pair for pair in pairs if pair[1] != pair[2]]
        if case["id"] in self.differences:
            self.seen.add(case["id"])
            self.results.check(f"{case['id']} is listed as different, and is", bool(wrong), True)
        elif not wrong:
            self.results.passed += 1
        for what, found, expected in wrong if case["id"] not in self.differences else []:
            self.results.check(f"{case['id']} {case['name']}: {what}", found, expected)

    def kmsg(self, number):
        """The log, the device's own number as golden files write it."""
        name = f"{number[0]}:{number[1]}"
        return own([[level, text.replace(name, "$DEV")] for level, text in self.log.read()])

    def constructor(self, case):
        number = self.dm.create(NAME)
        self.log.read()
        held = os.open("/dev/ram3", os.O_RDWR | os.O_EXCL) if case["name"] == "device held exclusively" else None
        flags = dm.READONLY if case["flags"] == "ro" else 0
        error = self.dm.load(NAME, case["table"].replace("@SELF", f"/dev/mapper/{NAME}"), flags)
        pairs = [("load", name_of(error), case["load"]), ("load_kmsg", self.kmsg(number), own(case["load_kmsg"]))]
        if not error and case["load"] == "ok":
            pairs.append(("resume", name_of(self.dm.resume(NAME, flags)), case["resume"]))
            pairs.append(("resume_kmsg", self.kmsg(number), own(case["resume_kmsg"])))
            pairs.append(("table", [line.strip() for line in self.dm.table(NAME)], plain(case["table_out"])))
            pairs.append(("status", [line.strip() for line in self.dm.status(NAME)], case["status_out"]))
            if "map" in case:
                pairs.append(("map", *self.maps(case["map"])))
            if self.limits:
                pairs += self.queue_limits(number, case["limits"])
        if held is not None:
            os.close(held)
        self.dm.remove(NAME)
        self.compare(case, pairs)

    def queue_limits(self, number, recorded):
        """What the block layer says about the device; what strict mode only shares is compared there only."""
        pairs = []
        for limit, value in recorded.items():
            if self.strict or limit not in ("write_zeroes_max_bytes", "write_cache"):
                with open(f"/sys/block/dm-{number[1]}/queue/{limit}") as file:
                    pairs.append((limit, file.read().strip(), value))
        return pairs

    def maps(self, text):
        """What the first sector of every region says, and what it should say by the recorded map."""
        live = self.dm.table(NAME)[0]
        start, length, _, _, region_size, _, *words = live.split()
        start, length, region_size = int(start), int(length), int(region_size)
        devices = [os.path.basename(os.readlink(f"/sys/dev/block/{word}")) for word in words[::2]]
        found = dm.origins(f"/dev/mapper/{NAME}", start, length, region_size, 8 if "loop2" in devices else 1)
        if text.startswith("b'"):
            # A disk that was not marked: the recording shows the zeroes that were read.
            return [sector for sector in found if sector != ("\0" * 8, 0)], []
        expected = [
            (devices[path], int(words[2 * path + 1]) + region * region_size)
            for region, path in enumerate(dm.expand(text))
        ]
        return found, expected

    def messages(self, case):
        number = self.dm.make(NAME, case["table"])
        self.log.read()
        pairs = []
        for step in case["steps"]:
            error, answer = self.dm.message(NAME, step["sector"], step["msg"])
            pairs.append((f"{step['msg']!r}", (name_of(error), answer), (step["result"], "")))
            pairs.append((f"log of {step['msg']!r}", self.kmsg(number), step["kmsg"]))
            pairs.append((f"map after {step['msg']!r}", *self.maps(step["map"])))
        self.dm.remove(NAME)
        self.compare(case, pairs)


def own(records):
    """The device-mapper's records, less one that its core repeats until the log overflows."""
    return [
        record
        for record in records
        if record[1].startswith("device-mapper:") and "caused an alignment inconsistency" not in record[1]
    ]


def name_of(error):
    """As the kernel names it: Python has another name for one number."""
    return errno.errorcode[error].replace("ENOTSUP", "EOPNOTSUPP") if error else "ok"


def plain(lines):
    """dm-zero's device has another number here than where the cases were recorded."""
    return [re.sub(r"\b253:\d+\b", zero_number, line) for line in lines]


def zero_number(_match):
    status = os.stat("/dev/mapper/zero")
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def set_up():
    """The devices of the recorded cases."""
    dm.run("modprobe brd rd_nr=4 rd_size=4096; modprobe loop max_loop=32; modprobe dm-zero")
    for number in range(4):
        dm.mark(f"/dev/ram{number}", RAM_SECTORS)
    for number, sectors, options in ((0, 4096, ""), (1, 100, ""), (2, 8192, "-b 4096"), (3, 8192, "-r")):
        dm.run(f"truncate -s {sectors * dm.SECTOR} /run/loop{number}")
        dm.run(f"losetup {options.replace('-r', '')} /dev/loop{number} /run/loop{number}")
        dm.mark(f"/dev/loop{number}", sectors)
        if "-r" in options:
            dm.run(f"losetup -d /dev/loop{number}; losetup -r /dev/loop{number} /run/loop{number}")
    dm.run("ln -s ram0 /dev/link0; mknod '/dev/spa ce0' b 1 0; touch /tmp/plain")
    make_zero()


def make_zero():
    """A device as long as the device-mapper can make one."""
    dm.Dm().make("zero", f"0 {(1 << 54) - 1} zero ")


def replay(strict, reference):
    """Replays all; returns the number of failures.

    `reference`: is this the kernel the cases were recorded on? Elsewhere its own part differs, that is queue limits, and
    which errno a device has that cannot be opened.
    """
    title = "golden, strict" if strict else "golden"
    replay = Replay(title, strict, reference)
    for case in cases("ctr"):
        if reference or not any("Device lookup failed" in text for _, text in case["load_kmsg"]):
            replay.constructor(case)
    for suite in ("msg", "fuzz"):
        for case in cases(suite):
            replay.messages(case)
    unseen = {i for i in replay.differences - replay.seen if not i.startswith(("tools", "io", "mpath"))}
    replay.results.check("every listed case was replayed", unseen, set())
    return replay.results.end()
