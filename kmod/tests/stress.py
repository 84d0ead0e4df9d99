"""The nasty runs: remaps, suspends, reloads and removals under I/O on all processors; memory given back.

I/O is fio with verification, over loop devices on one backing file: as in real life every path leads to the same
volume, so data written by one path must be read back by another after a remap. A warning or worse in the kernel's log
is a failure (the laboratory ends the guest at an oops).
"""

import json
import os
import random
import re
import subprocess
import threading
import time

import dm

SECTORS = 64 << 11
REGION = 100
PATHS = 3
TABLE = f"0 {SECTORS} switch {PATHS} {REGION} 0 " + " ".join(f"/dev/loop{7 + path} 0" for path in range(PATHS))
SECONDS = 8
# Each refuses four tables: a leak of one allocation each is a thousand of them.
REFUSED_ROUNDS = 250


def set_up():
    """One file, three loop devices over it without a page cache of their own."""
    dm.run(f"truncate -s {SECTORS * dm.SECTOR} /run/volume; mknod /dev/loop8 b 7 8; mknod /dev/loop9 b 7 9", check=False)
    for path in range(PATHS):
        dm.run(f"losetup /dev/loop{7 + path} /run/volume")


def fio(node, seconds, verify=True):
    """Starts fio on all processors; its areas do not overlap."""
    jobs = os.cpu_count()
    size = SECTORS * dm.SECTOR // jobs // 4096 * 4096
    words = ["fio", "--output-format=json", f"--filename={node}", "--direct=1", "--ioengine=libaio", "--iodepth=8", "--bs=4k"]
    words += ["--rw=randrw", f"--numjobs={jobs}", f"--size={size}", f"--offset_increment={size}", "--time_based", f"--runtime={seconds}"]
    if verify:
        words += ["--verify=crc32c", "--verify_backlog=256", "--verify_fatal=1"]
    words += ["--name=stress", "--group_reporting", "--thread"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Stress:
    def __init__(self):
        self.dm, self.results, self.rng, self.log = dm.Dm(), dm.Results("stress"), random.Random(11), dm.Log()

    def under_io(self, what, action):
        """Repeats `action` while fio verifies; every datum must come back, and something must have happened."""
        self.dm.make("s", TABLE)
        child = fio("/dev/mapper/s", SECONDS)
        rounds = 0
        while child.poll() is None:
            error = action(rounds)
            if error:
                self.results.check(f"{what}, round {rounds}", error, 0)
                break
            rounds += 1
        out, err = child.communicate()
        self.results.check(f"{what}: fio says {err[-300:]!r}", child.returncode, 0)
        done = json.loads(out[out.index("{"):])["jobs"][0] if child.returncode == 0 else {"read": {"total_ios": 0}}
        print(f"  {what}: {rounds} rounds, {done['read']['total_ios']} reads", flush=True)
        self.results.check(f"{what}: rounds and reads", rounds > 3 and done["read"]["total_ios"] > 100, True)
        self.results.check(f"{what}: removed", self.dm.remove("s"), 0)

    def remap(self, _round):
        regions = -(-SECTORS // REGION)
        start = self.rng.randrange(regions // 2)
        words = [f"{start:x}:{self.rng.randrange(PATHS)}"] + [f":{self.rng.randrange(PATHS)}" for _ in range(60)]
        words.append(f"R{self.rng.randrange(1, start + 1) if start else 1:x},{regions // 4:x}")
        return self.dm.message("s", 0, "set_region_mappings " + " ".join(words))[0]

    def suspend(self, number):
        error = self.dm.suspend("s", dm.NOFLUSH if number % 2 else 0)
        return error or self.remap(number) or self.dm.resume("s")

    def reload(self, number):
        table = TABLE if number % 2 else TABLE.replace(f" {REGION} ", f" {REGION + 28} ")
        error = self.dm.load("s", table)
        return error or self.dm.resume("s") or (0 if number % 2 == 0 else self.remap(number))

    def remap_on_all_processors(self):
        """Messages from two threads while both processors do I/O, and get_ messages between them."""
        done = []

        def others():
            own = Stress()
            while not done:
                own.remap(0)
                own.dm.message("s", 0, "get_path_counters")
                own.dm.message("s", 0, "get_region_mappings 0 100")

        thread = threading.Thread(target=others)
        starts = []

        def action(number):
            if not starts:
                starts.append(thread.start())
            return self.remap(number)

        self.under_io("remap", action)
        done.append(True)
        thread.join()

    def bigger(self):
        """A reload with a longer table while the old one is read."""
        half = SECTORS // 2
        self.dm.make("s", TABLE.replace(f"0 {SECTORS} ", f"0 {half} "))
        self.dm.message("s", 0, "set_region_mappings 0:1 R1,10")
        error = self.dm.load("s", TABLE) or self.dm.suspend("s") or self.dm.resume("s")
        size = dm.run("blockdev --getsz /dev/mapper/s")[1].strip()
        self.results.check("a longer table", (error, size), (0, str(SECTORS)))
        self.results.check("its last region can be mapped", self.dm.message("s", 0, f"set_region_mappings {-(-SECTORS // REGION) - 1:x}:2")[0], 0)
        dm.read_direct("/dev/mapper/s", SECTORS - 8, 8)
        self.dm.remove("s")

    def busy(self):
        """Has every path been read or written?"""
        counts = [line.split() for line in self.dm.message("s", 0, "get_path_counters")[1].split("\n")]
        return all(words[1] != "0" or words[3] != "0" for words in counts)

    def force(self):
        """dmsetup remove --force swaps the table for errors under I/O; fio fails, nothing hangs."""
        self.dm.make("s", TABLE)
        child = fio("/dev/mapper/s", SECONDS, verify=False)
        # Gone before fio begins, the device would not be missed: fio would make a file of its name.
        while child.poll() is None and not self.busy():
            time.sleep(0.1)
        dm.run("dmsetup remove --force s", check=False)
        child.communicate()
        self.results.check("fio fails when its device is forced away", child.returncode != 0, True)
        if "s" in dm.run("dmsetup ls")[1].split():
            dm.run("dmsetup remove s")
        self.results.check("gone", "s" in dm.run("dmsetup ls")[1].split(), False)

    def memory(self):
        """Tables there is no memory for, and tables refused at every word, give everything back."""
        dm.run("modprobe dm-zero")
        length = 1 << 40
        self.dm.make("huge", f"0 {length} zero ")
        self.dm.create("s")
        devices = "/dev/mapper/huge 0 " * 16
        late = (
            # The last of many paths: missing, with a bad offset, past the end of its device.
            f"17 1 0 {devices}/dev/nonexistent 0",
            f"17 1 0 {devices}/dev/mapper/huge x",
            f"17 1 0 {devices}/dev/mapper/huge 9",
            # Too many for counters: everything is of another size.
            "513 1 0 " + "/dev/mapper/huge 0 " * 512 + "/dev/nonexistent 0",
        )
        small = "0 {} switch 2 1 0 /dev/mapper/huge 0 /dev/mapper/huge 0".format(1 << 27)
        # Once before it is measured: what the kernel keeps for next time is no leak.
        self.refused(length, late)
        before = memory_in_use()
        for _ in range(REFUSED_ROUNDS):
            self.refused(length, late)
        for _ in range(20):
            # 2^40 regions of 1 bit: 128 GiB.
            self.results.check("out of memory", self.dm.load("s", f"0 {length} switch 2 1 0 /dev/mapper/huge 0 /dev/mapper/huge 0"), 12)
            # A table of 16 MiB, made and dropped.
            self.results.check("a large table", self.dm.load("s", small) or self.dm.call(dm.CLEAR, "s")[0], 0)
        after = memory_in_use()
        grown = {name: (before[name], after[name]) for name in after if after[name] > before[name] + SLACK[name]}
        self.results.check("memory given back", grown, {})
        self.results.check("not held by refused tables", self.dm.remove("s") or self.dm.remove("huge"), 0)

    def refused(self, length, tables):
        """A constructor that fails late, for each table: with everything taken that it takes before."""
        for words in tables:
            self.results.check(f"refused: {words[-40:]}", self.dm.load("s", f"0 {length} switch {words}") != 0, True)

    def run(self):
        self.remap_on_all_processors()
        self.under_io("suspend and resume", self.suspend)
        self.under_io("reload", self.reload)
        self.bigger()
        self.force()
        self.memory()
        wanted = "too small|Invalid|Device lookup|Cannot allocate|error adding|Buffer I/O|I/O error"
        noise = [text for level, text in self.log.read() if level <= 4 and not re.search(wanted, text)]
        self.results.check("no warning in the log", noise, [])
        return self.results.end()


def memory_in_use():
    """What leaks show in: large allocations in pages, the slabs of kvzalloc, per-processor memory in KiB."""
    with open("/proc/vmallocinfo") as file:
        pages = sum(int(match[1]) for match in re.finditer(r"(?:glue_|blkswitch).*?pages=(\d+)", file.read()))
    with open("/proc/meminfo") as file:
        percpu = int(re.search(r"Percpu:\s+(\d+)", file.read())[1])
    with open("/proc/slabinfo") as file:
        slabs = {f"slab kmalloc-{m[1]}": int(m[2]) for m in re.finditer(r"^kmalloc-(64|96|128|192|256|512|1k) +(\d+)", file.read(), re.M)}
    return {"vmalloc": pages, "percpu": percpu} | slabs


# The rest of the kernel allocates, too; a leak would be of hundreds.
SLACK = {"vmalloc": 0, "percpu": 64} | {f"slab kmalloc-{size}": 150 for size in ("64", "96", "128", "192", "256", "512", "1k")}


def run():
    """Returns the number of failures. Needs the module as `switch`."""
    set_up()
    return Stress().run()
