# The load of faults.py and its oracle: a daemon, what is asked of it, and every content that each block may have by
# what was answered. A write that was answered well leaves one content; one that was refused, or not answered, may
# have happened.
import http.client, json, os, random, signal, socket, subprocess, time, urllib.parse

from nbdwire import FLUSH, FUA, READ, STATUS, TRIM, WRITE, ZEROES, Client

BLOCK, REGION, SIZE = 4096, 64 << 10, 512 << 10
BLOCKS, REGIONS, PATHS = SIZE // BLOCK, SIZE // REGION, 3
ZERO = bytes(BLOCK)
# Seconds that a step may take: far above what any takes, the leaf's own pauses included.
STEP, STOP = 30, 60
# How often a step is tried that was refused.
TRIES = 8


class Failure(Exception):
    """The daemon broke a promise."""


class Lost(Exception):
    """The daemon has ended, or is about to."""


class Control(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("blkswitch", timeout=STEP)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Daemon:
    """A daemon in a folder, below these words of a command line (a tracer's)."""

    def __init__(self, program, folder, below=()):
        self.folder, self.control, self.nbd = folder, f"{folder}/control.sock", f"{folder}/nbd.sock"
        self.log = f"{folder}/log"
        with open(self.log, "ab") as log:
            words = ["serve", "--socket", self.control, "--nbd", f"unix:{self.nbd}", "--state", f"{folder}/state"]
            self.process = subprocess.Popen([*below, program, *words, "--queues", "2"], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, start_new_session=True)

    def log_text(self):
        with open(self.log, errors="replace") as log:
            return log.read()

    def has_ended(self, wait=0.0):
        try:
            self.process.wait(wait)
            return True
        except subprocess.TimeoutExpired:
            return False

    def wait_ready(self):
        end = time.monotonic() + STEP
        while time.monotonic() < end:
            if self.has_ended():
                raise Lost("at its start")
            try:
                # Whether it could say so does not matter.
                if self.ask("GET", "/v1/version")[0] == 200:
                    return
            except (OSError, http.client.HTTPException):
                time.sleep(0.01)
        raise Failure("the daemon neither became ready nor ended")

    # (status, text) of a control request.
    def ask(self, method, route, body=None):
        control = Control(self.control)
        try:
            control.request(method, route, json.dumps(body) if isinstance(body, dict) else body)
            answer = control.getresponse()
            return answer.status, answer.read().decode()
        except TimeoutError:
            raise Failure(f"no answer to {method} {route}")
        finally:
            control.close()

    def stop(self, dropped=lambda: 0):
        sent, end = 0, time.monotonic() + STOP
        while time.monotonic() < end and not self.has_ended(0.02):
            if sent == dropped():
                self.process.send_signal(signal.SIGTERM)
                sent += 1
        if not self.has_ended():
            raise Failure("the daemon does not end")
        return self.process.returncode

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Load:
    """What is asked of the daemon, and what must be there after it."""

    def __init__(self, daemon, remote, seed, injected):
        self.daemon, self.rng, self.injected = daemon, random.Random(seed), injected
        folder = daemon.folder
        self.leaves = [f"{folder}/a", f"{folder}/b", remote[0]]
        # Others, which are removed again.
        other, many = f"{folder}/c", remote[0] + ".many"
        paths = " ".join(f"{remote[1].replace('?', '.many?')}{option} 1" for option in ("", "&timeout=29"))
        self.others = {"memory": f"linear mem:{SIZE} 0", "gone": f"linear {other} 0",
                       "many": f"multipath 0 0 1 1 round-robin 0 2 1 {paths}"}
        for leaf in *self.leaves, other, many:
            with open(leaf, "wb") as file:
                file.truncate(SIZE)
        self.table = " ".join([f"0 {SIZE >> 9} switch {PATHS} {REGION >> 9} 0", f"{folder}/a 0", f"{folder}/b 0",
                               f"{remote[1]} 0"])
        self.content = [[{ZERO} for _ in range(BLOCKS)] for _ in range(PATHS)]
        self.map = [{region % PATHS} for region in range(REGIONS)]
        # Devices by name: must be there (True), must not (False), either (None).
        self.there = {}
        self.suspended = False
        # What went wrong and was said.
        self.refusals, self.clients, self.generation = [], {}, 0

    # ---- control

    # Asks until it is granted. `effect` takes the outcome of each try: True, False (refused) or None (not known).
    # `is_done` says after a refusal whether that is as good. None at the end: refused for good, which only an injection
    # into every try explains.
    def ask(self, method, route, body=None, effect=lambda outcome: None, is_done=lambda reason: False):
        for attempt in range(TRIES):
            before = self.injected()
            try:
                status, text = self.daemon.ask(method, route, body)
            except (OSError, http.client.HTTPException) as error:
                effect(None)
                self.went_wrong(f"{method} {route}: {error!r}")
                continue
            if 200 <= status < 300:
                effect(True)
                return text
            saved = "done, but not saved" not in text
            effect(False if saved else None)
            reason = json.loads(text).get("reason", "") if text.startswith("{") else text
            if not reason:
                raise Failure(f"{method} {route} is refused with {status} and no reason: {text}")
            self.went_wrong(f"{method} {route}: {status} {reason}")
            time.sleep(0.05 * attempt)
            if is_done(reason):
                return text
        self.give_up(before, f"{method} {route} stays refused")
        return None

    # What was tried that often may fail in the end if there was a fault each time, or if the daemon is ending.
    def give_up(self, faults_before, what):
        if self.injected() == faults_before:
            raise Lost(what) if self.daemon.has_ended(15) else Failure(f"{what}: {self.refusals[-1]}")

    def went_wrong(self, text):
        self.refusals.append(text)
        if len(self.refusals) > 200:
            raise Failure(f"too much goes wrong: {text}")
        if self.daemon.has_ended(0.1):
            raise Lost(text)

    def create(self, name, table):
        def effect(outcome):
            # A refused one may be the second of two, whose first was not answered.
            self.there[name] = True if outcome else None if outcome is None else self.there.get(name, False)

        def start_again(reason):
            if "another device" in reason and self.there[name] is None:
                self.ask("DELETE", f"/v1/devices/{name}", is_done=lambda reason: "there is no device" in reason)
        body = {"name": name, "table": table}
        return self.ask("POST", "/v1/devices", body, effect, start_again) is not None

    def remove(self, name):
        def effect(outcome):
            self.there[name] = False if outcome else None if outcome is None else self.there[name]

        def is_done(reason):
            return self.there[name] is None and "there is no device" in reason
        if self.ask("DELETE", f"/v1/devices/{name}", None, effect, is_done) is not None:
            self.there[name] = False

    def message(self):
        region, count = self.rng.randrange(REGIONS - 2), 3
        paths = [self.rng.randrange(PATHS) for _ in range(count)]
        text = f"set_region_mappings {region:x}:{paths[0]} :{paths[1]} :{paths[2]}"
        def effect(outcome):
            for at, path in enumerate(paths):
                if outcome is None:
                    self.map[region + at] |= {path}
                elif outcome:
                    self.map[region + at] = {path}
        self.ask("POST", "/v1/devices/disk/message?sector=0", text, effect)
        self.learn_map()

    # The map as the daemon says it, which must be one that it may be.
    def learn_map(self):
        text = self.ask("GET", "/v1/devices/disk/map")
        if text is None:
            raise Failure(f"the map cannot be read: {self.refusals[-1]}")
        told = [run["path"] for run in json.loads(text)["runs"] for _ in range(run["count"])]
        for region, (path, allowed) in enumerate(zip(told, self.map)):
            if path not in allowed:
                raise Failure(f"region {region} is on path {path} in place of {allowed}")
        self.map = [{path} for path in told]

    def suspend(self):
        def effect(outcome):
            self.suspended = True if outcome else None
        self.ask("POST", "/v1/devices/disk/suspend", {}, effect)

    def resume(self):
        def effect(outcome):
            self.suspended = False if outcome else None
        return self.ask("POST", "/v1/devices/disk/resume", effect=effect)

    # ---- data

    def client(self, key):
        for attempt in range(TRIES):
            before = self.injected()
            if key in self.clients:
                return self.clients[key]
            try:
                export, contexts = key[0], ["base:allocation"] if key[1] % 2 else []
                self.clients[key] = Client(self.daemon.nbd, export, contexts, timeout=STEP)
            except TimeoutError:
                raise Failure("a client hangs in its handshake")
            except (EOFError, OSError) as error:
                self.went_wrong(f"connect: {error!r}")
                time.sleep(0.05 * attempt)
        self.give_up(before, "no client comes in")
        return None

    # Sends requests of one kind, (offset, length, data), and returns (error or None if it was lost, data) of each.
    def batch(self, key, command, requests, flags=0):
        client, answers = self.client(key), {}
        cookies = []
        try:
            if client:
                for offset, length, data in requests:
                    cookies.append(client.send(command, offset, length, flags, data))
                for _ in requests:
                    cookie, error, data = client.reply(requests[0][1] if command == READ else 0)
                    if cookie not in cookies or cookie in answers:
                        raise Failure(f"an answer to no request: {cookie} of {cookies}")
                    answers[cookie] = error, data
        except TimeoutError:
            raise Failure(f"requests of kind {command} are not answered: {len(answers)} of {len(requests)}")
        except (EOFError, OSError) as error:
            del self.clients[key]
            self.went_wrong(f"connection: {error!r}")
        failed = [error for error, _ in answers.values() if error]
        if failed:
            self.went_wrong(f"requests of kind {command}: {[os.strerror(error) for error in failed]}")
        cookies += [None] * (len(requests) - len(cookies))
        return [answers.get(cookie, (None, b"")) for cookie in cookies]

    def at(self, block):
        paths = self.map[block * BLOCK // REGION]
        assert len(paths) == 1, "the map is known while there is I/O"
        return self.content[next(iter(paths))]

    # Notes a change of blocks: `contents` are what it may leave.
    def note(self, block, contents, is_sure):
        old = self.at(block)
        old[block] = set(contents) if is_sure else old[block] | set(contents)

    def fresh(self):
        self.generation += 1
        return self.generation.to_bytes(8, "little") * (BLOCK // 8)

    def write(self, key, count, length=1, flags=0):
        starts = self.rng.sample(range(0, BLOCKS - length, length), count)
        data = [[self.fresh() for _ in range(length)] for _ in starts]
        requests = [(at * BLOCK, length * BLOCK, b"".join(blocks)) for at, blocks in zip(starts, data)]
        # Noted before, for the daemon may end meanwhile.
        for at, blocks in zip(starts, data):
            for number, block in enumerate(blocks):
                self.note(at + number, {block}, False)
        for at, blocks, (error, _) in zip(starts, data, self.batch(key, WRITE, requests, flags)):
            for number, block in enumerate(blocks):
                if error == 0:
                    self.note(at + number, {block}, True)

    def clear(self, key, command):
        block = self.rng.randrange(BLOCKS - 2)
        for at in block, block + 1:
            self.note(at, {ZERO}, False)
        (error, _), = self.batch(key, command, [(block * BLOCK, 2 * BLOCK, b"")])
        # A discard promises nothing.
        for at in (block, block + 1) if error == 0 and command == ZEROES else ():
            self.note(at, {ZERO}, True)

    # Reads until it is answered: the fault is over.
    def read(self, key, start, length):
        for attempt in range(TRIES):
            before = self.injected()
            (error, data), = self.batch(key, READ, [(start * BLOCK, length * BLOCK, b"")])
            if error == 0:
                return self.compare(start, data)
            time.sleep(0.1 * attempt)
        self.give_up(before, "a read stays refused")

    def compare(self, start, data):
        for block in range(start, start + len(data) // BLOCK):
            held = data[(block - start) * BLOCK:][:BLOCK]
            if held not in self.at(block)[block]:
                raise Failure(f"a read of block {block} is wrong: {held[:16].hex()} in place of "
                              f"{[content[:16].hex() for content in self.at(block)[block]]}")

    def io(self):
        one, two = ("disk", 0), ("disk", 1)
        self.write(one, 6)
        self.write(two, 2, length=12)
        self.batch(one, FLUSH, [(0, 0, b"")])
        self.write(two, 2, flags=FUA)
        self.clear(one, TRIM)
        self.clear(two, ZEROES)
        self.batch(two, STATUS, [(0, SIZE, b"")])
        for key in one, two:
            self.read(key, self.rng.randrange(BLOCKS - 32), 32)
        self.batch(two, FLUSH, [(0, 0, b"")])

    # A new table under a write that waits for it.
    def reload(self):
        self.ask("PUT", "/v1/devices/disk/table", {"table": self.table})
        self.suspend()
        client = self.client(("disk", 0))
        block, data, error = self.rng.randrange(BLOCKS), self.fresh(), None
        for path in self.content:
            path[block] = path[block] | {data}
        try:
            cookie = client and client.send(WRITE, block * BLOCK, BLOCK, data=data)
        except OSError:
            cookie = None
        # A new table is a new map, unless nothing was loaded.
        self.map = [paths | {region % PATHS} for region, paths in enumerate(self.map)]
        resumed = self.resume()
        if resumed is not None:
            self.learn_map()
        try:
            if cookie and resumed is not None:
                error = client.reply()[1]
        except TimeoutError:
            raise Failure("a write that waited for a resume is not answered")
        except (EOFError, OSError) as lost:
            self.clients.pop(("disk", 0))
            self.went_wrong(f"connection: {lost!r}")
        if error == 0:
            self.note(block, {data}, True)

    def run(self):
        if not self.create("disk", self.table):
            return
        self.io()
        self.message()
        self.io()
        for name, target in self.others.items():
            if self.create(name, f"0 {SIZE >> 9} {target}"):
                self.elsewhere(name)
                self.remove(name)
        self.reload()
        self.message()
        self.io()
        for route in "/v1/devices", "/metrics", "/v1/devices/disk/stats", "/v1/state":
            self.ask("GET", route)

    # A write that is read back, of another device than the model is of.
    def elsewhere(self, name):
        key, data = (name, 0), self.fresh()
        (error, _), = self.batch(key, WRITE, [(BLOCK, BLOCK, data)])
        (wrong, got), = self.batch(key, READ, [(BLOCK, BLOCK, b"")])
        if error == 0 and wrong == 0 and got != data:
            raise Failure(f"a read of '{name}' is wrong: {got[:16].hex()}")
        client = self.clients.pop(key, None)
        if client:
            client.socket.close()
            # The device counts as open until the daemon has seen the end of the connection.
            time.sleep(0.05)

    def leave(self):
        for client in self.clients.values():
            client.socket.close()
        self.clients.clear()

    # After a restart without faults: what must be there.
    def check_after_restart(self):
        devices = {device["name"]: device for device in json.loads(self.ask("GET", "/v1/devices"))["devices"]}
        for name, there in self.there.items():
            # Memory is not kept.
            if name == "memory":
                continue
            if there is not None and there != (name in devices):
                raise Failure(f"'{name}' is {'not ' if there else ''}there after a restart")
        if "disk" not in devices:
            return
        disk = devices["disk"]
        if disk.get("away"):
            raise Failure(f"the device is away after a restart: {disk['away']}")
        if self.suspended is not None and disk["suspended"] != self.suspended:
            raise Failure(f"suspended is {disk['suspended']} after a restart")
        if disk["suspended"]:
            self.resume()
        self.learn_map()
        for block in range(0, BLOCKS, 32):
            self.read(("disk", 0), block, 32)

    def check_files(self):
        for path, leaf in enumerate(self.leaves):
            with open(leaf, "rb") as file:
                held = file.read()
            for block, allowed in enumerate(self.content[path]):
                if held[block * BLOCK:][:BLOCK] not in allowed:
                    raise Failure(f"block {block} of path {path} is wrong in its file: "
                                  f"{held[block * BLOCK:][:16].hex()}")
