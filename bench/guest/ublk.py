"""What a 4 KiB read of a ublk disk takes, ours through a three-path switch beside others' servers and the kernel's targets.

Runs in a guest whose clock counts instructions (`cargo xtask bench-ublk`): a nanosecond is an instruction. `ublk.py PROGRAM
[RUBLK [UBLKSRV]]` prints Markdown. Reads are made one at a time. Of each: the instructions of the whole machine (reader, block layer,
driver, server), and those of the server's threads, in user space and in the kernel on their behalf.

What share of these is in user space the clock does not tell. So the thread that serves is stepped through some reads, one
instruction at a time, as a debugger does, and the steps are counted.
"""

import ctypes
import os
import random
import signal
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
OURS = "/dev/blkswitch/b"
THEIR_NODE = "/dev/ublkb0"
OTHERS = {"null": "null", "loop": "loop -f /run/bench/leaf0"}
# Reads that a server is stepped through.
STEPPED = 20
# sys/ptrace.h, sys/wait.h.
PTRACE_SINGLESTEP, PTRACE_ATTACH, PTRACE_DETACH, WALL = 9, 16, 17, 0x40000000


def read_all(node, block=BLOCK, reads=READS):
    """Reads the same blocks at random; returns the nanoseconds of a read."""
    rng = random.Random(5)
    offsets = [rng.randrange(SECTORS * dm.SECTOR // block) * block for _ in range(reads)]
    fd = os.open(node, os.O_RDONLY | os.O_DIRECT)
    buffers = [memoryview(dm.mmap.mmap(-1, block))]
    start = time.monotonic_ns()
    for offset in offsets:
        if os.preadv(fd, buffers, offset) != block:
            raise SystemExit(f"{node}: a short read")
    spent = time.monotonic_ns() - start
    os.close(fd)
    return spent / reads


def on_processor(process):
    """Nanoseconds that the threads of a process have run, by thread."""
    spent = {}
    for thread in os.listdir(f"/proc/{process}/task"):
        with open(f"/proc/{process}/task/{thread}/schedstat") as file:
            spent[thread] = int(file.read().split()[0])
    return spent


def measure(node, server, block=BLOCK):
    """Instructions per read: of the machine, and of the server if there is one."""
    read_all(node, block)
    machine, own = [], []
    for _ in range(ROUNDS):
        before = on_processor(server) if server else {}
        machine.append(read_all(node, block))
        after = on_processor(server) if server else {}
        own.append(sum(after[thread] - before.get(thread, 0) for thread in after) / READS)
    return min(machine), min(own) if server else None


class Bench:
    def __init__(self, program, rublk=None, ublksrv=None):
        self.program, self.peers = program, {"rublk": rublk, "ublksrv": ublksrv}
        dm.run("modprobe dm-mod; modprobe dm-switch; modprobe ublk_drv; modprobe loop max_loop=8; modprobe null_blk nr_devices=1 gb=1")
        size = SECTORS * dm.SECTOR
        dm.run(f"mkdir -p /run/bench; for n in 0 1 2; do head -c {size} /dev/zero >/run/bench/leaf$n; losetup --direct-io=on /dev/loop$n /run/bench/leaf$n; done")
        os.environ["BLKSWITCH_SOCKET"] = SOCKET
        self.dm = dm.Dm()

    def row(self, name, node, server, block=BLOCK):
        figures = ["" if value is None else f"{value:.0f}" for value in measure(node, server, block)]
        print(f"| {name} | " + " | ".join(figures) + " |", flush=True)

    def kernel(self):
        """Without a server."""
        self.row("null_blk", "/dev/nullb0", None)
        self.row("loop", "/dev/loop0", None)
        for name, paths in (("null_blk", ["nullb0"] * 3), ("loop", ["loop0", "loop1", "loop2"])):
            self.dm.make("b", f"0 {SECTORS} switch 3 {REGION} 0 " + " ".join(f"/dev/{path} 0" for path in paths))
            self.row(f"C dm-switch over {name}", "/dev/mapper/b", None)
            self.dm.remove("b")

    def leaves(self, kind):
        """The addresses of three leaves."""
        size = SECTORS * dm.SECTOR
        return {
            "null": [f"null:{size}"] * 3,
            "memory": [f"mem:{size}"] * 3,
            "file": [f"/run/bench/leaf{number}" for number in range(3)],
            "disk": [f"/dev/ram{number}" for number in range(3)],
            "ext4": [f"/run/bench/ext4/leaf{number}" for number in range(3)],
        }[kind]

    def serve(self, target, kind, words, use):
        """Starts our server with a disk, and calls `use` with its process."""
        three = self.leaves(kind)
        paths = " ".join(f"{leaf} 0" for leaf in three)
        table = {"linear": f"linear {three[0]} 0", "switch": f"switch 3 {REGION} 0 {paths}"}[target]
        with open("/run/bench/log", "w") as log:
            serve = [self.program, "serve", "--nbd", "unix:/run/bench/nbd.sock", "--abandon-disks", "--leave-disks"]
            daemon = subprocess.Popen(serve, stdout=log, stderr=log)
        try:
            wait_for(lambda: dm.run(f"{self.program} version", check=False)[0] == 0)
            dm.run(f"{self.program} create b --table '0 {SECTORS} {table}'")
            dm.run(f"{self.program} attach b --ublk {words}")
            use(daemon.pid)
            # The next serve is to find nothing left behind.
            dm.run(f"{self.program} remove b")
        finally:
            daemon.terminate()
            daemon.wait()

    def ours(self):
        for kind in ("null", "memory", "file"):
            for target in ("linear", "switch"):
                self.serve(target, kind, "", lambda pid: self.row(f"blkswitch, {target}, {kind}", OURS, pid))

    def others(self, row, peers):
        """A row for each target of those others' servers that there are."""
        for peer in peers:
            program = self.peers[peer]
            for name, words in OTHERS.items() if program else ():
                self.other(peer, program, words, lambda pid: row(f"{peer}, {name}", THEIR_NODE, pid))

    def other(self, peer, program, words, use):
        """As serve(), somebody else's."""
        how = {"rublk": f"add {words} --quiet --foreground", "ublksrv": f"add -t {words}"}[peer]
        with open("/run/bench/peer.log", "w") as log:
            server = subprocess.Popen([program, *how.split(), "-n", "0", "-q", "1"], stdout=log, stderr=log)
        wait_for(lambda: os.path.exists(THEIR_NODE))
        # ublksrv's goes to the background, as a program that is named after its target.
        use(server.pid if peer == "rublk" else int(dm.run(f"pidof ublk.{words.split()[0]}")[1]))
        dm.run(f"{program} del -n 0", check=False)
        wait_for(lambda: not os.path.exists(THEIR_NODE))
        server.wait()

    def zero_copy(self):
        """Copied and not, where the kernel can do without."""
        size = SECTORS * dm.SECTOR
        dm.run(f"modprobe brd rd_nr=4 rd_size={SECTORS // 2 * 4}; modprobe ext4; mkfs.ext4 -q /dev/ram3; mkdir -p /run/bench/ext4")
        dm.run(f"mount /dev/ram3 /run/bench/ext4; head -c {size} /dev/zero >/run/bench/ext4/leaf0; sync")
        # In the cache as files are that are read, not as they are written.
        dm.run("echo 3 >/proc/sys/vm/drop_caches; cat /run/bench/ext4/leaf0 >/dev/null")
        print("\n| a read of | machine, 4 KiB | server | machine, 128 KiB | server |\n|---|---|---|---|---|")
        for kind, name in {"disk": "a disk in memory", "ext4": "a file's page cache"}.items():
            for words, how in {"--zero-copy false": "copied", "--zero-copy true": "zero copy"}.items():
                figures = []

                def use(pid):
                    for block in (4 << 10, 128 << 10):
                        figures.extend(f"{value:.0f}" for value in measure(OURS, pid, block))

                self.serve("linear", kind, words, use)
                print(f"| {name}, {how} | " + " | ".join(figures) + " |", flush=True)
        dm.run("umount /run/bench/ext4")

    def user_space(self):
        """The server's instructions in user space."""
        print("\n| a 4 KiB read of | server, user space |\n|---|---|")
        for kind in ("null", "memory", "file"):
            self.serve("switch", kind, "", lambda pid: self.user_row(f"blkswitch, switch, {kind}", OURS, pid))
        # Not ublksrv: stepped through, it loses its disk, and 6.12 crashes.
        self.others(self.user_row, ["rublk"])

    def user_row(self, name, node, server):
        # The thread that serves is the one that works.
        before = on_processor(server)
        read_all(node)
        worked = {thread: spent - before.get(thread, 0) for thread, spent in on_processor(server).items()}
        thread = int(max(worked, key=worked.get))
        print(f"| {name} | {steps_of(server, thread, node) / STEPPED:.0f} |", flush=True)


def steps_of(server, thread, node):
    """Instructions that a thread runs in user space while STEPPED reads are made."""
    ready, go = os.pipe()
    reader = os.fork()
    if not reader:
        os.read(ready, 1)
        read_all(node, BLOCK, STEPPED)
        os._exit(0)
    libc = ctypes.CDLL(None, use_errno=True)
    ptrace = libc.ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    ptrace.restype = ctypes.c_long
    if ptrace(PTRACE_ATTACH, thread, None, None):
        raise SystemExit(f"ptrace: {os.strerror(ctypes.get_errno())}")
    os.waitpid(thread, WALL)
    steps = 0
    os.write(go, b"g")
    while True:
        if ptrace(PTRACE_SINGLESTEP, thread, None, None):
            raise SystemExit(f"ptrace: {os.strerror(ctypes.get_errno())}")
        stopped, status = os.waitpid(-1, WALL)
        if stopped == reader:
            break
        steps += 1
    # It waits in the kernel, and is let go once that is over.
    libc.tgkill(server, thread, signal.SIGCONT)
    os.waitpid(thread, WALL)
    ptrace(PTRACE_DETACH, thread, None, None)
    if status:
        raise SystemExit(f"{node}: the reader failed")
    return steps


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
    bench.others(bench.row, ["rublk", "ublksrv"])
    if tuple(int(number) for number in os.uname().release.split(".")[:2]) >= (6, 16):
        bench.zero_copy()
    bench.user_space()
    return 0


if __name__ == "__main__":
    sys.exit(main())
