"""What a 4 KiB read of a ublk disk takes, ours through a three-path switch beside others' servers and the kernel's targets.

Runs in a guest whose clock counts instructions (`cargo xtask bench-ublk`): a nanosecond is an instruction. `ublk.py PROGRAM
[RUBLK]` prints Markdown. Reads are made one at a time. Of each: the instructions of the whole machine (reader, block layer,
driver, server), and those of the server's threads, in user space and in the kernel on their behalf. What share of these is in
user space cannot be told here: the processor that is emulated counts nothing, and the timer finds a thread in user space when it
is about to get there, because the kernel leaves with interrupts off.
"""

import os
import random
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "kmod", "tests"))

import dm

SECTORS = 64 << 11
REGION = 128
BLOCK = 4096
READS, ROUNDS = 300, 7
SOCKET = "/run/bench/control.sock"
RUBLK_NODE = "/dev/ublkb0"


def read_all(node):
    """Reads the same blocks at random; returns the nanoseconds of a read."""
    rng = random.Random(5)
    offsets = [rng.randrange(SECTORS * dm.SECTOR // BLOCK) * BLOCK for _ in range(READS)]
    fd = os.open(node, os.O_RDONLY | os.O_DIRECT)
    buffers = [memoryview(dm.mmap.mmap(-1, BLOCK))]
    start = time.monotonic_ns()
    for offset in offsets:
        if os.preadv(fd, buffers, offset) != BLOCK:
            raise SystemExit(f"{node}: a short read")
    spent = time.monotonic_ns() - start
    os.close(fd)
    return spent / READS


def on_processor(process):
    """Nanoseconds that the threads of a process have run, by thread."""
    spent = {}
    for thread in os.listdir(f"/proc/{process}/task"):
        with open(f"/proc/{process}/task/{thread}/schedstat") as file:
            spent[thread] = int(file.read().split()[0])
    return spent


def measure(node, server):
    """Instructions per read: of the machine, and of the server if there is one."""
    read_all(node)
    machine, own = [], []
    for _ in range(ROUNDS):
        before = on_processor(server) if server else {}
        machine.append(read_all(node))
        after = on_processor(server) if server else {}
        own.append(sum(after[thread] - before.get(thread, 0) for thread in after) / READS)
    return min(machine), min(own) if server else None


class Bench:
    def __init__(self, program, rublk=None):
        self.program, self.rublk = program, rublk
        dm.run("modprobe dm-mod; modprobe dm-switch; modprobe ublk_drv; modprobe loop max_loop=8; modprobe null_blk nr_devices=1 gb=1")
        size = SECTORS * dm.SECTOR
        dm.run(f"mkdir -p /run/bench; for n in 0 1 2; do head -c {size} /dev/zero >/run/bench/leaf$n; losetup --direct-io=on /dev/loop$n /run/bench/leaf$n; done")
        os.environ["BLKSWITCH_SOCKET"] = SOCKET
        self.dm = dm.Dm()

    def row(self, name, node, server):
        figures = ["" if value is None else f"{value:.0f}" for value in measure(node, server)]
        print(f"| {name} | " + " | ".join(figures) + " |", flush=True)

    def kernel(self):
        """Without a server."""
        self.row("null_blk", "/dev/nullb0", None)
        self.row("loop", "/dev/loop0", None)
        for name, paths in (("null_blk", ["nullb0"] * 3), ("loop", ["loop0", "loop1", "loop2"])):
            self.dm.make("b", f"0 {SECTORS} switch 3 {REGION} 0 " + " ".join(f"/dev/{path} 0" for path in paths))
            self.row(f"C dm-switch over {name}", "/dev/mapper/b", None)
            self.dm.remove("b")

    def ours(self):
        size = SECTORS * dm.SECTOR
        leaves = {
            "null": [f"null:{size}"] * 3,
            "memory": [f"mem:{size}"] * 3,
            "file": [f"/run/bench/leaf{number}" for number in range(3)],
        }
        for name, three in leaves.items():
            paths = " ".join(f"{leaf} 0" for leaf in three)
            tables = {"linear": f"0 {SECTORS} linear {three[0]} 0", "switch": f"0 {SECTORS} switch 3 {REGION} 0 {paths}"}
            for target, table in tables.items():
                with open("/run/bench/log", "w") as log:
                    words = [self.program, "serve", "--nbd", "unix:/run/bench/nbd.sock", "--abandon-disks"]
                    daemon = subprocess.Popen(words, stdout=log, stderr=log)
                try:
                    wait_for(lambda: dm.run(f"{self.program} version", check=False)[0] == 0)
                    dm.run(f"{self.program} create b --ublk --table '{table}'")
                    self.row(f"blkswitch, {target}, {name}", "/dev/blkswitch/b", daemon.pid)
                finally:
                    daemon.kill()
                    daemon.wait()
        # The last one's disk is left to a next server, which lets go of it.
        dm.run(f"timeout 3 {self.program} serve --nbd unix:/run/bench/nbd.sock --abandon-disks", check=False)

    def others(self):
        file = "/run/bench/leaf0"
        for name, words in {"null": "null", "loop": f"loop -f {file}"}.items():
            dm.run(f"{self.rublk} add {words} -n 0 -q 1 --quiet >/run/bench/rublk.log 2>&1")
            wait_for(lambda: os.path.exists(RUBLK_NODE))
            server = int(dm.run("pgrep -x rublk | tail -n 1")[1])
            self.row(f"rublk, {name}", RUBLK_NODE, server)
            dm.run(f"{self.rublk} del -n 0", check=False)
            wait_for(lambda: not os.path.exists(RUBLK_NODE))


def wait_for(condition):
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise SystemExit("it takes too long")


def main():
    bench = Bench(*sys.argv[1:])
    print(f"Kernel {os.uname().release}\n")
    print("| a 4 KiB read of | machine | server |\n|---|---|---|")
    bench.kernel()
    bench.ours()
    if bench.rublk:
        bench.others()
    return 0


if __name__ == "__main__":
    sys.exit(main())
