"""Guest instructions of the kernel's own switch target and of the module, side by side.

Runs in a guest whose clock counts instructions (`cargo xtask bench-kernel`): a nanosecond is an instruction. Everything
is measured several times and the least is taken: what is above it is the timer's interrupt. Prints Markdown.
"""

import os
import random
import sys
import time

import dm

READS = 200
ROUNDS = 9
ENTRIES = 400_000
TARGETS = ("switch", "blkswitch")


def least(function, rounds=ROUNDS):
    """The fewest instructions `function` took."""
    best = None
    for _ in range(rounds):
        start = time.monotonic_ns()
        function()
        spent = time.monotonic_ns() - start
        best = spent if best is None else min(best, spent)
    return best


class Bench:
    def __init__(self):
        self.dm = dm.Dm()
        dm.run("modprobe null_blk nr_devices=1 gb=16 queue_mode=0; modprobe dm-zero; modprobe dm-switch; modprobe dm-mod")
        self.sectors = int(dm.run("blockdev --getsz /dev/nullb0")[1])
        rng = random.Random(5)
        self.places = [rng.randrange(self.sectors) * dm.SECTOR for _ in range(READS)]

    def read(self, node):
        """Instructions of a read of 512 bytes, the loop around it and the system call included."""
        fd = os.open(node, os.O_RDONLY | os.O_DIRECT)
        buffers = [memoryview(dm.mmap.mmap(-1, 4096))[:512]]

        def reads():
            for place in self.places:
                os.preadv(fd, buffers, place)

        spent = least(reads) / READS
        os.close(fd)
        return spent

    def reads(self):
        print("## A 512 B read, less that of the null_blk device under it\n")
        base = self.read("/dev/nullb0")
        self.dm.make("b", f"0 {self.sectors} linear /dev/nullb0 0")
        linear = self.read("/dev/mapper/b") - base
        self.dm.remove("b")
        print(f"dm-linear: {linear:.0f}\n")
        print("| region size, paths | C | blkswitch |  |\n|---|---|---|---|")
        worse = 0
        for region_size in (128, 100, 30720):
            for paths in (3, 5, 16):
                spent = []
                for target in TARGETS:
                    table = f"0 {self.sectors} {target} {paths} {region_size} 0" + " /dev/nullb0 0" * paths
                    self.dm.make("b", table)
                    spent.append(self.read("/dev/mapper/b") - base)
                    self.dm.remove("b")
                worse += round(spent[1] - spent[0]) > 0
                print(f"| {region_size}, {paths} | {spent[0]:.0f} | {spent[1]:.0f} | {spent[1] - spent[0]:+.0f} |", flush=True)
        return worse

    def message(self, text):
        """Instructions of a message, of the system call alone."""
        return least(lambda: self.dm.message("b", 0, text), 5)

    def messages(self):
        print("\n## Messages, a million regions, 16 paths (millions of instructions)\n")
        print("Common is what the same text costs as an unknown message: copying and word splitting, the core's for both.\n")
        print("| message | common | C | blkswitch | C's own | blkswitch's own |  |\n|---|---|---|---|---|---|---|")
        rng = random.Random(6)
        regions = 1_000_000
        next_paths = " ".join(f":{rng.randrange(16):x}" for _ in range(ENTRIES))
        each = " ".join(f"{rng.randrange(regions):x}:{rng.randrange(16):x}" for _ in range(ENTRIES))
        in_order = " ".join(f"{region:x}:{rng.randrange(16):x}" for region in range(ENTRIES))
        texts = {
            "400,000 `:p`": "0:0 " + next_paths,
            "400,000 `idx:p`, random": each,
            "400,000 `idx:p`, ascending": in_order,
            "`0:0 :1 :2 R3,f423d`, over all": f"0:0 :1 :2 R3,{regions - 3:x}",
        }
        for name, arguments in texts.items():
            spent = []
            for target in TARGETS:
                self.dm.make("b", f"0 {regions} {target} 16 1 0" + " /dev/nullb0 0" * 16)
                common = self.message("set_region_mappingz " + arguments)
                spent.append(self.message("set_region_mappings " + arguments))
                self.dm.remove("b")
            own = [value - common for value in spent]
            figures = [f"{value / 1e6:.2f}" for value in (common, *spent, *own)]
            print(f"| {name} | " + " | ".join(figures) + f" | {own[1] / own[0]:.2f} |", flush=True)

    def loads(self):
        print("\n## Loading a table (millions of instructions)\n\n| regions, paths | C | blkswitch |\n|---|---|---|")
        for regions, paths in ((1000, 3), (1_000_000, 3), (16_000_000, 16)):
            spent = []
            for target in TARGETS:
                self.dm.create("b")
                table = f"0 {regions} {target} {paths} 1 0" + " /dev/nullb0 0" * paths
                spent.append(least(lambda: self.dm.load("b", table), 3))
                self.dm.remove("b")
            print(f"| {regions}, {paths} | {spent[0] / 1e6:.2f} | {spent[1] / 1e6:.2f} |", flush=True)


def main():
    dm.run("modprobe dm-mod")
    dm.run(f"insmod {sys.argv[1]} name=blkswitch")
    bench = Bench()
    print(f"Kernel {os.uname().release}, {os.uname().version}\n")
    worse = bench.reads()
    bench.messages()
    bench.loads()
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
