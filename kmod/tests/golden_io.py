"""Replays the recorded I/O (tests/golden/io.jsonl): results, where bytes land, and what every path is sent.

What the paths get is seen by the block layer's tracepoints: bios in their order, requests (which block devices without a
queue of their own do not have) in any. As in `golden`, a case of docs/kernel-differences.md must differ, every other agree;
with the module's parameter `strict` all agree.
"""

import errno
import fcntl
import os
import re
import struct

import behaviour
import dm
import golden

NODE = "/dev/mapper/sw"
# Cases that say nothing about the module.
NO_MEANING = {"control, linear": "of dm-linear, recorded for comparison"}
# What other kernels than the reference do differently by themselves, 6.1 that is.
NOT_ELSEWHERE = {
    "queue limits": "the block layer's defaults are others",
    "fallocate": "the block layer asks for other things",
    "4096-byte blocks": "nothing is refused for its alignment",
    "ram disks: discard": "ram disks have no discard",
    "loop devices: BLKZEROOUT": "what a loop device cannot do it says when it is asked to",
    "O_DSYNC": "FUA is taken off where no flush is forwarded",
}
HDIO_GETGEO = 0x0301
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16
BLKSECDISCARD = 0x127D
# BLKDISCARD, BLKSECDISCARD and BLKZEROOUT take two numbers of bytes.
RANGE = struct.Struct("QQ")
# Bytes of a disk that are compared at once.
CHUNK = 1 << 16
EVENTS = ("block_bio_queue", "block_rq_issue")


class Disks:
    """The disks below: every sector says where it is until something is written to it."""

    def __init__(self):
        self.images = {}

    def as_new(self, name):
        device = f"/dev/{name}"
        if name not in self.images:
            sectors = min(int(dm.run(f"blockdev --getsz {device}")[1]), golden.RAM_SECTORS)
            dm.mark(device, sectors)
            self.images[name] = dm.read_direct(device, 0, sectors)

    def landed(self, names, table):
        """What was changed as far as the table's paths reach, as runs; it is put back as it was."""
        reach = sum(int(line.split()[1]) for line in table.split("\n")) + max(int(word) for word in re.findall(r"/dev/\S+ (\d+)", table))
        changed = []
        for name in names:
            image = self.images[name]
            now = dm.read_direct(f"/dev/{name}", 0, min(reach, len(image) // dm.SECTOR))
            for chunk in range(0, len(now), CHUNK):
                if now[chunk:chunk + CHUNK] != image[chunk:chunk + len(now[chunk:chunk + CHUNK])]:
                    changed += self.put_back(name, now, chunk)
        return runs(changed)

    def put_back(self, name, now, chunk):
        """The sectors of a chunk that were changed."""
        image = self.images[name][chunk:chunk + CHUNK]
        fd = os.open(f"/dev/{name}", os.O_WRONLY)
        os.pwrite(fd, image, chunk)
        os.fsync(fd)
        os.close(fd)
        sectors = ((at, now[chunk + at:chunk + at + dm.SECTOR]) for at in range(0, min(CHUNK, len(now) - chunk), dm.SECTOR))
        return [(name, (chunk + at) // dm.SECTOR, content(sector)) for at, sector in sectors if sector != image[at:at + dm.SECTOR]]


def content(sector):
    if sector.count(sector[:1]) != len(sector):
        return "mixed"
    return f"fill-{sector[0]:02x}" if sector[0] else "zero"


def runs(sectors):
    """(disk, sector, what) of neighbours in one line each: 'ram0 124+4 fill-a5'."""
    lines = []
    for disk, sector, what in sectors:
        if lines and lines[-1][0] == disk and lines[-1][1] + lines[-1][2] == sector and lines[-1][3] == what:
            lines[-1][2] += 1
        else:
            lines.append([disk, sector, 1, what])
    return [f"{disk} {start}+{count} {what}".strip() for disk, start, count, what in lines]


def sources(data):
    """Where the sectors of a read came from."""
    return runs((*dm.origin(data[at:at + dm.SECTOR]), "") for at in range(0, len(data), dm.SECTOR))


class Trace:
    """The tracepoints, switched on once; what was seen since `clear`."""

    def __init__(self):
        if not os.path.exists(f"{behaviour.TRACING}/trace"):
            dm.run(f"mount -t tracefs tracefs {behaviour.TRACING}")
        self.switch("1")

    def switch(self, to):
        for event in EVENTS:
            behaviour.write(f"{behaviour.TRACING}/events/block/{event}/enable", to)

    def clear(self):
        behaviour.write(f"{behaviour.TRACING}/trace", "")

    def read(self, disks):
        """Bios in their order and requests sorted, of these disks: 'ram0 WS 120+8'."""
        seen = {event: [] for event in EVENTS}
        names = {}
        with open(f"{behaviour.TRACING}/trace") as file:
            for line in file:
                match = re.search(r" (block_\w+): (\d+,\d+) (\w+) .*?(\d+) \+ (\d+) ", line)
                if match:
                    event, number, kind, sector, sectors = match.groups()
                    if number not in names:
                        names[number] = name_of_disk(number.replace(",", ":"))
                    if names[number] in disks:
                        seen[event].append(f"{names[number]} {kind} {sector}+{sectors}")
        return seen[EVENTS[0]], sorted(seen[EVENTS[1]])


def name_of_disk(number):
    name = os.path.basename(os.readlink(f"/sys/dev/block/{number}"))
    if name.startswith("dm-"):
        with open(f"/sys/block/{name}/dm/name") as file:
            return file.read().strip()
    return name


class Replay(golden.Replay):
    def __init__(self, title, strict, reference):
        super().__init__(title, strict, reference)
        self.disks, self.trace, self.reference = Disks(), Trace(), reference

    def replay(self, case):
        names = sorted(set(re.findall(r"/dev/(?:mapper/)?(\w+)", case["table"])))
        plain = [name for name in names if name != "bad"]
        for name in plain:
            self.disks.as_new(name)
        try:
            number = self.dm.make("sw", case["table"])
        except OSError as error:
            return self.compare(case, [("table", golden.name_of(error.errno), "ok")])
        if "limits" in case:
            pairs = self.queue_limits(number, case["limits"])
        else:
            pairs = self.operate(case, names, plain)
        self.results.check(f"{case['id']}: removed", self.dm.remove("sw"), 0)
        return self.compare(case, pairs)

    def operate(self, case, names, plain):
        for message in case["messages"]:
            self.send(message)
        self.log.read()
        self.trace.clear()
        try:
            result, value = "ok", self.one(case["name"])
        except OSError as error:
            result, value = golden.name_of(error.errno), None
        bios, requests = self.trace.read(names)
        expected = [bio.removeprefix("bio_queue ") for bio in case["bios"] if bio.startswith("bio_queue ")]
        expected = [bio for bio in expected if not bio.startswith("sw ")]
        pairs = [
            ("result", result, case["result"]),
            ("value", value, case["value"]),
            ("bios of the paths", bios, expected),
            ("requests of the paths", requests, sorted(case["requests"])),
            ("log", golden.own(self.log.read()), golden.own(case["kmsg"])),
        ]
        if "landed" in case:
            pairs.append(("landed", self.disks.landed(plain, case["table"]), case["landed"]))
        return pairs

    def send(self, message):
        """`set_region_mappings ...`, or `@SECTOR ARGUMENTS RESULT`."""
        sector, result = 0, "ok"
        if message.startswith("@"):
            place, arguments, result = message[1:].split()
            sector, message = int(place), f"set_region_mappings {arguments}"
        self.results.check(message, golden.name_of(self.dm.message("sw", sector, message)[0]), result)

    def one(self, name):
        """Does what the case's name says; returns what the recording has as its value."""
        what = name.split(": ")[-1]
        if what.startswith("remapping between reads"):
            return [self.remapped(path) for path in (1, 0, 2, 1)]
        if what.startswith("page dirtied"):
            return self.dirtied()
        if name.startswith("SG_IO"):
            return sg_io()
        if name == "HDIO_GETGEO":
            return geometry()
        if name.startswith("unknown ioctl"):
            with open(NODE, "rb") as device:
                return fcntl.ioctl(device, int(name.split()[-1], 16), 0)
        # 'messages reach ...' and 'regions count ...' do not say what is read.
        at, vector = range_in(what) or {"messages": (0, [2048]), "regions": (90, [400])}[what.split()[0]]
        if "fsync" in what and "+" not in what or what.startswith("fsync"):
            return flush()
        for word, number in (("discard", behaviour.BLKDISCARD), ("BLKSECDISCARD", BLKSECDISCARD), ("BLKZEROOUT", behaviour.BLKZEROOUT)):
            if what.startswith(word):
                return on_device(lambda fd: fcntl.ioctl(fd, number, RANGE.pack(at * dm.SECTOR, vector[0] * dm.SECTOR)))
        if what.startswith("fallocate"):
            mode = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE if "punch" in what else FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE
            return on_device(lambda fd: fallocate(fd, mode, at * dm.SECTOR, vector[0] * dm.SECTOR))
        if "write" in what.split(",")[0] and not what.startswith("read"):
            return write(what, at, vector[0])
        return read(what, at, vector)

    def remapped(self, path):
        self.send(f"set_region_mappings 1:{path}")
        return sources(dm.read_direct(NODE, 128, 1))

    def dirtied(self):
        """A page in the cache is written to where its region is when it is written."""
        fd = os.open(NODE, os.O_RDWR)
        os.pwrite(fd, b"\xc3" * 4096, 0)
        self.send("set_region_mappings 0:1")
        os.fsync(fd)
        page = os.pread(fd, 4096, 0)
        os.close(fd)
        return [f"{content(page)} ?+8"]


def range_in(text):
    """`124+8`, or `125+(2, 4, 2)` for a vector."""
    match = re.search(r"(\d+)\+(?:(\d+)|\(([\d, ]+)\))", text)
    if not match:
        return (0, [0]) if "fsync" in text else None
    return int(match[1]), [int(word) for word in (match[2] or match[3]).split(",")]


def on_device(function, flags=os.O_RDWR):
    fd = os.open(NODE, flags)
    try:
        function(fd)
    finally:
        os.close(fd)


def flush():
    on_device(os.fsync)


def fallocate(fd, mode, offset, length):
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


def read(what, at, vector):
    flags = 0 if "buffered" in what else os.O_DIRECT
    fd = os.open(NODE, os.O_RDONLY | flags)
    try:
        if not flags:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        memory = dm.mmap.mmap(-1, sum(vector) * dm.SECTOR)
        buffers, start = [], 0
        for sectors in vector:
            buffers.append(memoryview(memory)[start:start + sectors * dm.SECTOR])
            start += sectors * dm.SECTOR
        done = os.preadv(fd, buffers, at * dm.SECTOR)
        return sources(memory[:done])
    finally:
        os.close(fd)


def write(what, at, sectors):
    buffered, fill = "buffered" in what, 0xC3 if "buffered" in what else 0x11 if "then fsync" in what else 0xA5
    flags = (0 if buffered else os.O_DIRECT) | (os.O_DSYNC if "O_DSYNC" in what else 0)
    fd = os.open(NODE, os.O_RDWR | flags)
    try:
        memory = dm.mmap.mmap(-1, sectors * dm.SECTOR)
        memory.write(bytes([fill]) * (sectors * dm.SECTOR))
        done = os.pwrite(fd, memory, at * dm.SECTOR)
        if buffered or "fsync" in what:
            os.fsync(fd)
        return done // dm.SECTOR
    finally:
        os.close(fd)


def sg_io():
    """Which path a SCSI command goes to is seen by its request."""
    fd = os.open(NODE, os.O_RDONLY)
    behaviour.test_unit_ready(fd)
    os.close(fd)
    with open(f"{behaviour.TRACING}/trace") as file:
        number = re.findall(r" block_rq_issue: (\d+,\d+) ", file.read())[-1]
    return f"path {('sda', 'sdb', 'sdc').index(name_of_disk(number.replace(',', ':')))}"


def geometry():
    """struct hd_geometry of <linux/hdreg.h>: heads, sectors, cylinders, start."""
    with open(NODE, "rb") as device:
        answer = fcntl.ioctl(device, HDIO_GETGEO, bytes(16))
    return list(struct.unpack("=BBH4xQ", answer))


def run(strict, reference):
    """Returns the number of failures. Needs the module loaded as `switch` and the ram disks."""
    replay = Replay("io, strict" if strict else "io", strict, reference)
    behaviour.make_loops()
    behaviour.scsi_disks()
    replay.dm.make("bad", "0 8192 error ")
    left_out = NO_MEANING if reference else NO_MEANING | NOT_ELSEWHERE
    for case in golden.cases("io"):
        if not any(part in case["name"] for part in left_out):
            replay.replay(case)
    replay.trace.switch("0")
    replay.dm.remove("bad")
    if reference:
        unseen = {i for i in replay.differences - replay.seen if i.startswith("io")}
        replay.results.check("every listed case was replayed", unseen, set())
    return replay.results.end()
