# The clients of blocking.sh.
import sys, time

from nbdwire import READ, STATUS, TRIM, Client

ESHUTDOWN = 108

mode, path = sys.argv[1:3]


# Reads of another device while a file system takes its time to look for holes.
def holes():
    slow, quick = Client(path, "slow", ["base:allocation"]), Client(path, "quick")
    began = time.monotonic()
    slow.send(STATUS, 0, 1 << 20)
    longest = 0
    while time.monotonic() - began < 2:
        at = time.monotonic()
        assert quick.call(READ, 0, 4096)[0] == 0
        longest = max(longest, time.monotonic() - at)
    _, error, data = slow.reply()
    took = time.monotonic() - began
    assert error == 0 and len(data) == 8, (error, data)
    assert took > 2, f"the seek was not slow: {took}"
    print(f"longest read beside a seek of 2.5 s: {longest * 1000:.1f} ms")
    assert longest < 1


# Trims of a file that hangs, many at once, do not hold up those of another file.
def hung():
    clients = [Client(path, "frozen") for _ in range(3)]
    for client in clients:
        for number in range(256):
            client.send(TRIM, number * 4096, 4096)
    quick = Client(path, "quick", timeout=20)
    began = time.monotonic()
    for number in range(16):
        assert quick.call(TRIM, number * 4096, 4096)[0] == 0
    print(f"16 trims beside a file that hangs: {(time.monotonic() - began) * 1000:.0f} ms", flush=True)
    sys.stdin.readline()
    for client in clients:
        for _ in range(256):
            assert client.reply()[1] == 0


# The daemon is stopped: what has not begun is refused, and what hangs is never answered.
def left():
    client = Client(path, "frozen", timeout=60)
    for number in range(256):
        client.send(TRIM, number * 4096, 4096)
    print("sent", flush=True)
    refused = 0
    try:
        while True:
            _, error, _ = client.reply()
            assert error == ESHUTDOWN, f"answered: {error}"
            refused += 1
    except (ConnectionError, EOFError):
        print(f"{refused} refused, {256 - refused} without an answer")
    assert refused < 256


{"holes": holes, "hung": hung, "left": left}[mode]()
