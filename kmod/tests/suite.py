"""All guest tests of the module, one after the other: `suite.py MODULE [TEST]...`."""

import glob
import os
import platform
import sys
import time

import behaviour
import differential
import dm
import golden
import golden_io
import stress
import tools

SEEDS = (1, 20240607)


def main():
    module, only = sys.argv[1], sys.argv[2:]
    kernel = platform.release()
    dm.run("modprobe dm-mod")
    golden.set_up()
    recorded_here = kernel.startswith("6.12.")
    tests = {
        "golden": lambda: with_module(module, "", lambda: golden.replay(False, recorded_here)),
        "golden-strict": lambda: with_module(module, "strict=1", lambda: golden.replay(True, recorded_here)),
        "io": lambda: with_module(module, "", on_one_processor(lambda: golden_io.run(False, recorded_here))),
        "io-strict": lambda: with_module(module, "strict=1", on_one_processor(lambda: golden_io.run(True, recorded_here))),
        "differential": lambda: beside(module, lambda: sum(differential.run(seed) for seed in SEEDS)),
        "behaviour": lambda: with_module(module, "", on_one_processor(lambda: behaviour.run(False))),
        "behaviour-strict": lambda: with_module(module, "strict=1", on_one_processor(lambda: behaviour.run(True))),
        "tools": lambda: with_module(module, "", no_zero(lambda: tools.run(recorded_here))),
        "hierarchy": lambda: with_module(module, "counters=1", hierarchy),
        "stress": lambda: with_module(module, "counters=1", stress.run),
        "loading": lambda: behaviour.loading(module),
    }
    if not set(only) <= set(tests):
        raise SystemExit(f"unknown test among {only}: there are {', '.join(tests)}")
    failures = passed = 0
    for name, test in tests.items():
        if not only or name in only:
            started = time.monotonic()
            begin(name)
            found = test()
            failures += found
            passed += not found
            print(f"  {name}: {time.monotonic() - started:.1f} s", flush=True)
    print(f"vm-test: {passed} passed, {len(only or tests) - passed} failed")
    return min(failures, 1)


def begin(name):
    """Says which test begins, here and on the console: whatever crashes a guest takes the last output along."""
    print(f"  {name} ...", flush=True)
    with open("/dev/kmsg", "w") as log:
        log.write(f"<4>vm-test: {name} begins")


def hierarchy():
    code, out, err = dm.run(os.path.join(os.path.dirname(os.path.abspath(__file__)), "hierarchy.sh"), check=False)
    print(out + err, end="", flush=True)
    return code


def on_one_processor(test):
    """For tests that switch tracepoints on and off: QEMU before 8.1 does not stand that on several (docs/kernel-laboratory.md)."""

    def alone():
        switches = glob.glob("/sys/devices/system/cpu/cpu[0-9]*/online")
        for to in "01":
            for switch in switches:
                with open(switch, "w") as file:
                    file.write(to)
            if to == "0":
                failures = test()
        return failures

    return alone


def no_zero(test):
    """The transcripts want to see their own devices alone."""

    def alone():
        dm.run("dmsetup remove zero")
        failures = test()
        golden.make_zero()
        return failures

    return alone


def beside(module, test):
    """Runs a test with the kernel's own target as `switch` and the module as `blkswitch`."""
    dm.run("modprobe dm-switch")
    failures = with_module(module, "name=blkswitch", test)
    dm.run("rmmod dm-switch")
    return failures


def with_module(module, options, test):
    """Runs a test with the module loaded, and unloads it."""
    dm.run(f"insmod {module} {options}")
    failures = test()
    dm.run("rmmod blkswitch")
    return failures


if __name__ == "__main__":
    sys.exit(main())
