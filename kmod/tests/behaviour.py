"""What the module does that the kernel's target does not, and what its parameter `strict` takes back.

Each difference of docs/kernel-differences.md that is not in a recorded case has its test here. The bios that reach the
paths are seen by the block layer's own tracepoint.
"""

import errno
import fcntl
import os
import re
import signal
import struct
import time

import dm

TRACING = "/sys/kernel/tracing"
COUNTERS = "/sys/module/blkswitch/parameters/counters"
BLKDISCARD, BLKZEROOUT, SG_IO = 0x1277, 0x127F, 0x2285
SECTORS = 2048
PREEMPTION = "/sys/kernel/debug/sched/preempt"
WIDE_REGIONS = 10**9
LOOPS = ("loop4", "loop5", "loop6")
TABLE = f"0 {SECTORS} switch 3 128 0 /dev/loop4 0 /dev/loop5 0 /dev/loop6 0"


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def traced(function, event="block_bio_queue"):
    """What `function` returned (or its errno), and what the paths got: (disk, kind, sector, sectors)."""
    write(f"{TRACING}/trace", "")
    write(f"{TRACING}/events/block/{event}/enable", "1")
    try:
        result = function()
    except OSError as error:
        result = error.errno
    write(f"{TRACING}/events/block/{event}/enable", "0")
    seen = []
    with open(f"{TRACING}/trace") as file:
        for line in file:
            match = re.search(rf"{event}: (\d+),(\d+) (\w+) .*?(\d+) \+ (\d+)", line)
            if match:
                disk = os.path.basename(os.readlink(f"/sys/dev/block/{match[1]}:{match[2]}"))
                if not disk.startswith("dm-"):
                    # Write-zeroes is WZ to newer kernels.
                    seen.append((disk, match[3].replace("WZ", "N"), int(match[4]), int(match[5])))
    return result, seen


class Behaviour:
    def __init__(self, title, strict):
        self.dm, self.results, self.strict = dm.Dm(), dm.Results(title), strict
        if not os.path.exists(f"{TRACING}/trace"):
            dm.run(f"mount -t tracefs tracefs {TRACING}")
        make_loops()

    def device(self, table=TABLE):
        self.dm.make("t", table)

    def on_device(self, function):
        """Calls function(fd) with the device open; returns what `traced` does."""
        fd = os.open("/dev/mapper/t", os.O_RDWR)
        try:
            return traced(lambda: function(fd))
        finally:
            os.close(fd)

    def send(self, text):
        return self.dm.message("t", 0, text)

    def flushes(self):
        self.device()
        result, seen = self.on_device(os.fsync)
        expected = [] if self.strict else [(loop, "FWS", 0, 0) for loop in LOOPS]
        self.results.check("a flush goes to every path", (result, sorted(seen)), (None, expected))
        self.dm.remove("t")
        # A path that is down: the flush must fail, and reach the others.
        self.dm.make("down", f"0 {SECTORS} flakey /dev/loop5 0 0 600")
        self.device(TABLE.replace("/dev/loop5", "/dev/mapper/down"))
        result, seen = self.on_device(os.fsync)
        self.results.check("a flush fails if it fails on a path", result, None if self.strict else errno.EIO)
        reached = [] if self.strict else ["loop4", "loop6"]
        self.results.check("and reaches the other paths", sorted(bio[0] for bio in seen), reached)
        self.dm.remove("t")
        self.dm.remove("down")

    def fua(self):
        self.device()
        fd = os.open("/dev/mapper/t", os.O_RDWR | os.O_DSYNC | os.O_DIRECT)
        page = dm.mmap.mmap(-1, 4096)
        _, seen = traced(lambda: os.pwrite(fd, page, 128 * dm.SECTOR))
        os.close(fd)
        writes = [bio for bio in seen if bio[2:] == (128, 8)]
        flushed = {bio[0] for bio in seen if bio[3] == 0}
        self.results.check("a write with FUA goes to its path", [bio[0] for bio in writes], ["loop5"])
        if not self.strict:
            durable = writes[0][1] == "WFS" or "loop5" in flushed
            self.results.check("and it is durable there: FUA or a flush after it", durable, True)
        self.dm.remove("t")

    def mark(self, disks):
        for disk in disks:
            dm.mark(f"/dev/{disk}", SECTORS)

    def zeroed(self, disk):
        """The regions of a disk that are zeroes."""
        data = dm.read_direct(f"/dev/{disk}", 0, SECTORS)
        size = 128 * dm.SECTOR
        return [at // size for at in range(0, len(data), size) if not any(data[at:at + size])]

    def discards(self):
        self.mark(LOOPS)
        self.device()
        self.send("set_region_mappings 4:0 R1,3")
        whole = lambda fd: fcntl.ioctl(fd, BLKDISCARD, struct.pack("QQ", 0, SECTORS * dm.SECTOR))
        _, seen = self.on_device(whole)
        regions = [0, 1, 2, 0, 0, 0, 0, 0] + [region % 3 for region in range(8, 16)]
        expected, region = [], 0
        while region < 16:
            end = region + 1
            while end < 16 and regions[end] == regions[region]:
                end += 1
            expected.append((LOOPS[regions[region]], "DS", region * 128, (end - region) * 128))
            region = end
        if self.strict:
            expected = [("loop4", "DS", 0, SECTORS)]
        self.results.check("a discard goes to the path of every region, neighbours as one", sorted(seen), sorted(expected))
        for number, loop in enumerate(LOOPS):
            own = [region for region in range(16) if regions[region] == number]
            if self.strict:
                own = list(range(16)) if number == 0 else []
            self.results.check(f"what the discard zeroed on {loop}", self.zeroed(loop), own)
        # Part of a region, not aligned to anything.
        _, seen = self.on_device(lambda fd: fcntl.ioctl(fd, BLKDISCARD, struct.pack("QQ", 120 * 512, 16 * 512)))
        expected = [("loop4", "DS", 120, 16)] if self.strict else [("loop4", "DS", 120, 8), ("loop5", "DS", 128, 8)]
        self.results.check("a discard across a border is cut there", sorted(seen), expected)
        self.dm.remove("t")

    def write_zeroes(self):
        disks = scsi_disks()
        self.mark(disks)
        self.device("0 {} switch 3 128 0 /dev/{} 0 /dev/{} 0 /dev/{} 0".format(SECTORS, *disks))
        _, seen = self.on_device(lambda fd: fcntl.ioctl(fd, BLKZEROOUT, struct.pack("QQ", 64 * 512, 256 * 512)))
        kind = "WS" if self.strict else "NS"
        expected = [(disks[0], kind, 64, 64), (disks[1], kind, 128, 128), (disks[2], kind, 256, 64)]
        self.results.check("write-zeroes is split like a write, and stays one", sorted(seen), sorted(expected))
        self.results.check("and writes zeroes where it should", [self.zeroed(disk) for disk in disks], [[], [1], []])
        self.send("set_region_mappings 0:2")
        fd = os.open("/dev/mapper/t", os.O_RDONLY)
        _, seen = traced(lambda: test_unit_ready(fd), "block_rq_issue")
        os.close(fd)
        self.results.check("an ioctl goes to the path of region 0", [rq[0] for rq in seen], [disks[2]])
        self.dm.remove("t")

    def atomic(self):
        self.device()
        before = dm.origins("/dev/mapper/t", 0, SECTORS, 128)
        for bad in ("0:2 :1 99:0", "0:2 :9", "5:1 R1,ff", "0:1 x", "0:1 R9,1"):
            log = dm.Log()
            error, _ = self.send(f"set_region_mappings_atomic {bad}")
            text = log.read_dm()
            self.results.check(f"'{bad}' is refused", (error, len(text)), (errno.EINVAL, 1))
            self.results.check(f"'{bad}' changes nothing", dm.origins("/dev/mapper/t", 0, SECTORS, 128), before)
            # The same words, applied as far as they are right: the same complaint.
            self.results.check(f"'{bad}' is refused the usual way", self.send(f"set_region_mappings {bad}")[0], errno.EINVAL)
            self.results.check(f"'{bad}' says the same", log.read_dm(), text)
            self.send("set_region_mappings_atomic " + " ".join(f"{region:x}:{region % 3}" for region in range(16)))
        self.results.check("a good one is taken", self.send("Set_Region_Mappings_Atomic 0:2 R1,f"), (0, ""))
        self.mark(LOOPS)
        disks = {disk for disk, _ in dm.origins("/dev/mapper/t", 0, SECTORS, 128)}
        self.results.check("and applied", disks, {"loop6"})
        self.dm.remove("t")

    def counters(self):
        self.device()
        self.results.check("nothing is counted unless asked for", self.send("get_path_counters")[0], errno.EOPNOTSUPP)
        write(COUNTERS, "1")
        self.results.check("counters begin at 0", self.send("get_path_counters"), (0, "\n".join(f"{p} 0 0 0 0 0 0 0 0" for p in range(3))))
        dm.read_direct("/dev/mapper/t", 0, 384)
        fd = os.open("/dev/mapper/t", os.O_RDWR | os.O_DIRECT)
        os.pwrite(fd, dm.mmap.mmap(-1, 4096), 256 * dm.SECTOR)
        os.fsync(fd)
        fcntl.ioctl(fd, BLKDISCARD, struct.pack("QQ", 0, 128 * dm.SECTOR))
        os.close(fd)
        flush = "0 0" if self.strict else "1 0"
        expected = [f"0 1 128 0 0 1 128 {flush}", f"1 1 128 0 0 0 0 {flush}", f"2 1 128 1 8 0 0 {flush}"]
        self.results.check("every path has its counts", self.send("get_path_counters"), (0, "\n".join(expected)))
        self.results.check("no argument is taken", self.send("get_path_counters 1")[0], errno.EINVAL)
        self.dm.remove("t")
        self.device("0 4096 switch 513 8 0 " + " ".join("/dev/ram0 0" for _ in range(513)))
        self.results.check("513 paths are not counted", self.send("get_path_counters")[0], errno.EOPNOTSUPP)
        write(COUNTERS, "0")
        self.dm.remove("t")

    def read_back(self):
        """What get_region_mappings says makes the same map on a fresh device, also when sent line by line."""
        import random

        rng = random.Random(3)
        for paths, regions in ((1, 5), (2, 64), (3, 2048), (5, 1000), (16, 4096), (17, 300)):
            table = f"0 {regions} switch {paths} 1 0 " + " ".join(f"/dev/ram{p % 4} {p // 4 * 512 % 4096}" for p in range(paths))
            self.device(table)
            for _ in range(4):
                words = [f"{rng.randrange(regions):x}:{rng.randrange(paths):x}" for _ in range(rng.randrange(40))]
                words += [f"{regions // 4:x}:{rng.randrange(paths):x}", f":{rng.randrange(paths):x}", f"R2,{regions // 4:x}"] if regions > 8 else []
                self.send("set_region_mappings " + " ".join(words))
                error, text = self.send("get_region_mappings")
                before = dm.read_direct("/dev/mapper/t", 0, regions)
                fresh = dm.Dm()
                fresh.make("fresh", table)
                replies = [fresh.message("fresh", 0, f"set_region_mappings_atomic {line}")[0] for line in text.split("\n")]
                after = dm.read_direct("/dev/mapper/fresh", 0, regions)
                fresh.remove("fresh")
                self.results.check(f"read back {paths} paths, {regions} regions: '{text[:60]}'", (error, set(replies), after == before), (0, {0}, True))
            self.dm.remove("t")
        self.device(f"0 8 switch 4 1 0 " + " ".join(f"/dev/ram{p} 0" for p in range(4)))
        self.send("set_region_mappings 0:3 3:0")
        for words, expected in READ_BACK:
            self.results.check(f"get_region_mappings {words}", self.send(f"get_region_mappings {words}"), expected)
        self.dm.remove("t")
        regions = 1 << 20
        self.dm.make("big", f"0 {regions} zero ")
        self.device(f"0 {regions} switch 2 1 0 /dev/mapper/big 0 /dev/mapper/big 0")
        self.send("set_region_mappings " + " ".join(f"{rng.randrange(regions):x}:{rng.randrange(2)}" for _ in range(20000)))
        error, text = self.send("get_region_mappings")
        self.results.check("a map longer than the first buffer", (error, len(text) > 100000), (0, True))
        self.dm.remove("t")
        self.dm.remove("big")

    def loads(self):
        """Tables the kernel's target takes and then fails on; strict mode takes them, too."""
        self.device("0 2048 switch 2 128 0 /dev/ram0 0 /dev/ram1 0")
        error = self.dm.load("t", "0 9000 switch 2 128 0 /dev/ram0 0 /dev/ram1 0")
        self.results.check("a reload longer than its paths", error, 0 if self.strict else errno.EINVAL)
        if not self.strict:
            self.results.check("leaves the device as it was", (self.dm.resume("t"), self.dm.status("t")), (0, ["0 2048 switch "]))
            dm.read_direct("/dev/mapper/t", 0, SECTORS)
        self.dm.remove("t")
        self.dm.create("t")
        error = self.dm.load("t", "0 4096 switch 2 12 0 /dev/ram0 0 /dev/loop2 0")
        self.results.check("regions that cut a path's blocks", error, 0 if self.strict else errno.EINVAL)
        self.dm.remove("t")

    def turns(self):
        """Long messages let others run, and end when their sender is killed. On one processor, without preemption."""
        if os.path.exists(PREEMPTION):
            with open(PREEMPTION) as file:
                offered = file.read().replace("(", " ").replace(")", " ").split()
            # Newer kernels do not do without any more.
            write(PREEMPTION, next(kind for kind in ("none", "voluntary", "lazy", "full") if kind in offered))
        sectors = WIDE_REGIONS * 8
        self.dm.make("wide", f"0 {sectors} zero")
        self.device(f"0 {sectors} switch 3 8 0" + " /dev/mapper/wide 0" * 3)
        last = WIDE_REGIONS - 1
        for text in (f"set_region_mappings 0:1 R1,{last:x}", f"set_region_mappings_atomic 0:2 R1,{last:x}", "get_region_mappings"):
            took, longest, (error, _) = beside_another(lambda: self.dm.message("t", 0, text))
            print(f"  {text.split()[0]} of {WIDE_REGIONS} regions: {took * 1000:.0f} ms, without others for {longest * 1000:.0f} ms", flush=True)
            self.results.check(f"{text}: is done", error, 0)
            self.results.check(f"{text}: others run", longest < max(took / 3, 0.02), True)
            if text.startswith("set_region_mappings 0:1"):
                whole = took
        path = int(self.dm.message("t", 0, f"get_region_mappings {last:x}")[1].split(":")[1])
        child = os.fork()
        if not child:
            self.dm.message("t", 0, f"set_region_mappings 0:0 R1,{last:x}")
            os._exit(0)
        time.sleep(whole / 10)
        started = time.monotonic()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        self.results.check("a sender who is killed ends", time.monotonic() - started < whole / 2, True)
        self.results.check("some of it is done", self.dm.message("t", 0, "get_region_mappings 0 1"), (0, "0:0"))
        self.results.check("and not the rest", self.dm.message("t", 0, f"get_region_mappings {last:x}"), (0, f"{last:x}:{path}"))
        self.dm.remove("t")
        self.dm.remove("wide")

    def run(self):
        self.flushes()
        self.fua()
        self.discards()
        self.write_zeroes()
        self.atomic()
        self.counters()
        self.read_back()
        self.loads()
        self.turns()
        return self.results.end()


def beside_another(function):
    """How long `function` took, for how long another process could not run meanwhile, and what it returned."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        ended = []
        signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
        longest, before = 0.0, time.monotonic()
        while not ended:
            time.sleep(0.001)
            now = time.monotonic()
            longest, before = max(longest, now - before), now
        os.write(writer, str(longest).encode())
        os._exit(0)
    time.sleep(0.2)
    started = time.monotonic()
    returned = function()
    took = time.monotonic() - started
    os.kill(child, signal.SIGTERM)
    longest = float(os.read(reader, 64))
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    return took, longest, returned


# Of a map of 8 regions, 4 paths: 3 1 2 0 0 1 2 3.
READ_BACK = (
    ("0 1", (0, "0:3")),
    ("6", (0, "6:2 :3")),
    ("2 3", (0, "2:2 :0 :0")),
    ("A", (errno.EINVAL, "")),
    ("8", (errno.EINVAL, "")),
    ("x", (errno.EINVAL, "")),
    ("0 1 2", (errno.EINVAL, "")),
    ("10000000000000000", (errno.EINVAL, "")),
)


def make_loops():
    for loop in LOOPS:
        if not os.path.exists(f"/run/{loop}"):
            dm.run(f"truncate -s 1M /run/{loop}; losetup /dev/{loop} /run/{loop}")


def test_unit_ready(fd):
    """A SCSI command that does nothing; struct sg_io_hdr of <scsi/sg.h>."""
    import ctypes

    command = ctypes.create_string_buffer(6)
    address = ctypes.addressof(command)
    header = struct.pack("=iiBBHIQQQIIi", ord("S"), -1, 6, 0, 0, 0, 0, address, 0, 20000, 0, 0).ljust(88, b"\0")
    fcntl.ioctl(fd, SG_IO, header)


def scsi_disks():
    """Three SCSI disks of 8 MiB with write-zeroes, each with memory of its own."""
    if not os.path.exists("/sys/bus/pseudo/drivers/scsi_debug"):
        dm.run("modprobe sd_mod; modprobe scsi_debug num_tgts=1 add_host=3 per_host_store=1 dev_size_mb=8 lbpws=1 lbpws10=1 lbpu=1")
        dm.run("for i in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/sdc ] && break; sleep 0.3; done")
    return ("sda", "sdb", "sdc")


def loading(module):
    """Parameters, names, unloading."""
    results = dm.Results("loading")
    for name in ("''", "1234567890123456", "'a\x01b'"):
        results.check(f"name={name} is refused", dm.run(f"insmod {module} name={name}", check=False)[0] != 0, True)
    for name in ("x", "123456789012345"):
        results.check(f"name={name} is taken", dm.run(f"insmod {module} name={name}", check=False)[0], 0)
        targets = dm.run("dmsetup targets")[1]
        results.check(f"target {name}", f"{name:<16} v1.1.0" in targets, True)
        dm.run("rmmod blkswitch")
    dm.run("modprobe dm-switch")
    results.check("the name of a loaded target is refused", dm.run(f"insmod {module}", check=False)[0] != 0, True)
    results.check("another name goes beside it", dm.run(f"insmod {module} name=blkswitch", check=False)[0], 0)
    dm.run("dmsetup create t --table '0 128 blkswitch 1 8 0 /dev/ram0 0'")
    results.check("no unloading while in use", dm.run("rmmod blkswitch", check=False)[0] != 0, True)
    dm.run("dmsetup remove t; rmmod blkswitch; rmmod dm-switch")
    return results.end()


def run(strict):
    """Returns the number of failures. Needs the module loaded as `switch` and the ram disks."""
    return Behaviour("behaviour, strict" if strict else "behaviour", strict).run()
