# Each system call of the daemon fails once, with each error that its manual page allows, under load: see faults.sh.
#
# An injection counts per thread: `when=N` fails the Nth call of every thread that comes so far. What is drawn is a
# thread of a run without faults and one of its calls. If the loader of the main thread would have it, `when=N@ready`
# counts from when the daemon is ready.
import collections, concurrent.futures, errno, os, random, re, shutil, subprocess, sys, threading, time, traceback

from faultload import Daemon, Failure, Load, Lost

PROGRAM = shutil.which("blkswitch")
TRACER = ["strace", "-f", "-qq", "-e", "signal=none"]
# Seconds for a sample.
BUDGET = float(os.environ.get("BLKSWITCH_FAULTS_SECONDS", "80"))

NO_DESCRIPTOR, NO_ROOM = "EMFILE ENFILE ENOMEM", "ENOSPC EDQUOT EIO"
SEND = "EPIPE ECONNRESET ENOBUFS ENOMEM EINTR"
ERRORS = {
    "accept4": f"{NO_DESCRIPTOR} ENOBUFS ECONNABORTED EPROTO EPERM EINTR",
    "bind": "EADDRINUSE EACCES ENOMEM EROFS",
    "clone3": "EAGAIN ENOMEM",
    "connect": "ECONNREFUSED EACCES EAGAIN ENOENT",
    "epoll_create1": NO_DESCRIPTOR,
    "epoll_ctl": "ENOMEM ENOSPC",
    "epoll_wait": "EINTR",
    "eventfd2": f"{NO_DESCRIPTOR} ENODEV",
    "fallocate": f"{NO_ROOM} EINTR EOPNOTSUPP",
    "fcntl": "ENOLCK EAGAIN EMFILE EINTR",
    "fdatasync": f"{NO_ROOM} EINTR",
    "flock": "ENOLCK EINTR ENOMEM",
    "fstatfs": "EIO ENOMEM ENOSYS EINTR",
    "fsync": f"{NO_ROOM} EINTR",
    "getdents64": "EIO ENOMEM",
    "getpeername": "ENOTCONN ENOBUFS",
    "getrandom": "EINTR ENOSYS",
    "getsockname": "ENOBUFS",
    "getsockopt": "ENOPROTOOPT ENOMEM",
    "io_uring_enter": "EAGAIN EBUSY EINTR ENOMEM EBADR EIO",
    "io_uring_register": "ENOMEM EBUSY EINVAL",
    "io_uring_setup": f"{NO_DESCRIPTOR} EPERM ENOSYS",
    "ioctl": "ENOTTY EIO",
    "listen": "EADDRINUSE",
    "lseek": "EIO EINVAL",
    "madvise": "ENOMEM EAGAIN",
    "mkdir": "EDQUOT ENOSPC EROFS EACCES ENOMEM",
    "mmap": "ENOMEM EAGAIN",
    "mprotect": "ENOMEM",
    "munmap": "ENOMEM",
    "newfstatat": "EACCES ENOMEM",
    "openat": f"{NO_DESCRIPTOR} {NO_ROOM} EACCES EROFS EINTR",
    "poll": "EINTR ENOMEM",
    "prctl": "EPERM EINVAL",
    "pread64": "EIO EINTR",
    "prlimit64": "EPERM",
    "pwrite64": f"{NO_ROOM} EFBIG EINTR",
    "read": "EIO EINTR",
    "readlink": "EIO EACCES ENOMEM",
    "recvfrom": "ECONNRESET ENOMEM EINTR",
    "rename": f"{NO_ROOM} EROFS EACCES ENOMEM",
    "sched_getaffinity": "EPERM",
    "sendmsg": SEND,
    "sendto": SEND,
    "setsockopt": "ENOPROTOOPT ENOMEM",
    "shutdown": "ENOTCONN",
    "socket": f"{NO_DESCRIPTOR} ENOBUFS EACCES",
    "socketpair": "EMFILE ENFILE",
    "statx": "EACCES ENOMEM EIO",
    "unlink": "EIO EACCES EROFS ENOMEM EBUSY",
    "write": f"{NO_ROOM} EINTR EAGAIN",
    "writev": SEND,
}
# Calls that are left out, and why.
NEVER_FAIL = "has no error for valid arguments"
LEFT_OUT = {
    "brk": "the system call has no error: it returns the old end, which an injection cannot",
    "close": "the kernel closes the descriptor whatever it answers; an injection leaves it open",
    "execve": "is the tracer's",
    "exit": NEVER_FAIL,
    "exit_group": NEVER_FAIL,
    "futex": "an injection drops a wake, which no error of the kernel does",
    **dict.fromkeys("geteuid gettid rseq rt_sigaction rt_sigprocmask rt_sigreturn sched_yield set_robust_list "
                    "sigaltstack umask restart_syscall clock_nanosleep getpid".split(), NEVER_FAIL),
}
# Calls whose faults are only for these files: to an eventfd, write cannot fail, and an injection drops a wake.
ONLY = {"write": ["state/devices.json.new", "log"]}
# Errors that the C library or the standard library turns into others, with the text that is seen then. Errors that
# would be no error of the kernel are not here at all: EAGAIN where something was ready is never reported again.
ALIASES = {
    ("clone3", "ENOMEM"): "Resource temporarily unavailable",
    ("mmap", "ENOMEM"): "Resource temporarily unavailable",
    ("mmap", "EAGAIN"): "Cannot allocate memory|memory allocation of",
    ("mprotect", "ENOMEM"): "Resource temporarily unavailable",
    ("connect", "EAGAIN"): "timed out",
}
# Errors that say that a peer has gone: it need not be told, nor the log.
GONE = {"EPIPE", "ECONNRESET", "ENOTCONN", "ECONNABORTED"}
# Panics that may be, by what they say, and why.
PANICS = {
    "allocate an alternative stack": "the standard library's, in a new thread: the process aborts",
    "set up alternative stack guard": "the standard library's, in a new thread: the process aborts",
    "failed to create UnixStream": "tokio's, at the start: the status is 101",
    "Bad read on self-pipe": "tokio's, of a pair of sockets that nobody else has: it is never reset",
    "OS can't spawn worker thread": "tokio's, at the start and in no request: after it there is always a thread",
}
# Faults that nothing need name, and why.
SILENT = {
    ("recvfrom", "ENOMEM"): "hyper takes it for the client's leaving, before anything is done",
    ("recvfrom", "EINTR"): "hyper takes it for the client's leaving, before anything is done",
}


class Lab:
    """What all runs share: a folder, and the server of the leaf that is an NBD export."""

    def __init__(self, folder):
        self.folder, self.exports, self.socket = folder, f"{folder}/exports", f"{folder}/leaf.sock"
        os.mkdir(self.exports)
        self.number, self.lock, self.server = 0, threading.Lock(), None
        self.has_server()

    # Whether the server lives; if not, there is another now. (nbdkit 1.32 has an assertion that fails when a connection
    # is lost while threads answer requests of it: so only one does.)
    def has_server(self):
        with self.lock:
            if self.server and self.server.poll() is None:
                return True
            if os.path.exists(self.socket):
                os.remove(self.socket)
            self.server = subprocess.Popen(["nbdkit", "--foreground", "--exit-with-parent", "--unix", self.socket,
                                            "--filter=noparallel", "file", f"dir={self.exports}", "serialize=requests"],
                                           stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            end = time.monotonic() + 30
            while not os.path.exists(self.socket) and time.monotonic() < end:
                time.sleep(0.01)
            return False

    def new(self):
        with self.lock:
            self.number += 1
            name = f"run{self.number}"
        folder = f"{self.folder}/{name}"
        os.mkdir(folder)
        return folder, (f"{self.exports}/{name}", f"nbd+unix:///{name}?socket={self.socket}")

    def remove(self, folder):
        shutil.rmtree(folder)
        name = os.path.basename(folder)
        for leaf in name, f"{name}.many":
            if os.path.exists(f"{self.exports}/{leaf}"):
                os.remove(f"{self.exports}/{leaf}")


def says(text, call, name):
    """Whether a log or a refusal names an error."""
    words = [name, os.strerror(getattr(errno, name)), *ALIASES.get((call, name), name).split("|")]
    if name == "ENOMEM":
        words += ["out of memory", "memory allocation of", "there is no memory"]
    return any(word.lower() in text.lower() for word in words)


class Run:
    """One daemon under load, with a fault; then another one without, which must have all that was answered."""

    def __init__(self, lab, seed, case=None):
        self.lab, self.case, self.known = lab, case, []
        self.folder, remote = lab.new()
        self.trace = f"{self.folder}/trace"
        words = [*TRACER, "-o", self.trace]
        self.late = None
        if case:
            call, error, when = case
            when, _, is_late = when.partition("@")
            words += ["-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}"]
            for path in ONLY.get(call, ()):
                words += ["-P", f"{self.folder}/{path}"]
            if is_late:
                self.late, words = words, []
            else:
                words += ["-D", "--seccomp-bpf"]
        else:
            words += ["-D", "-y"]
        self.daemon = Daemon(PROGRAM, self.folder, words)
        self.load = Load(self.daemon, remote, seed, self.injected)

    # A tracer for a daemon that runs; it ends with it.
    def trace_now(self):
        process = self.daemon.process.pid
        tracer = subprocess.Popen([*self.late, "-p", str(process)], stdin=subprocess.DEVNULL)

        def is_traced(task):
            try:
                with open(f"/proc/{process}/task/{task}/status") as status:
                    return f"TracerPid:\t{tracer.pid}\n" in status.read()
            except OSError:
                return True  # It has ended.
        end = time.monotonic() + 30
        while not all(is_traced(task) for task in os.listdir(f"/proc/{process}/task")):
            if time.monotonic() > end:
                raise Failure("the tracer does not attach")
            time.sleep(0.01)
        return tracer

    def injected(self):
        if not os.path.exists(self.trace):
            return 0
        with open(self.trace, errors="replace") as trace:
            return trace.read().count("(INJECTED)")

    # How many signals were dropped: a fault in their handler is as if they had not come. Each thread has one.
    def dropped_signals(self):
        if not os.path.exists(self.trace):
            return 0
        with open(self.trace, errors="replace") as trace:
            return len(re.findall(r'sendto\(\d+, "\\1", 1, .*INJECTED', trace.read()))

    # Runs it and returns how often the fault was injected.
    def __call__(self):
        began, tracer = time.monotonic(), None
        try:
            try:
                self.daemon.wait_ready()
                tracer = self.late and self.trace_now()
                self.load.run()
                self.load.leave()
            except Lost as lost:
                self.load.refusals.append(f"the daemon ended: {lost}")
            has_ended = self.daemon.has_ended()
            self.judge(self.daemon.stop(self.dropped_signals), has_ended)
            self.restart()
        finally:
            self.daemon.kill()
            if tracer:
                tracer.wait()
        if time.monotonic() - began > 60:
            raise Failure(f"it took {time.monotonic() - began:.0f} s")
        return self.injected() if self.case else 0

    def judge(self, status, has_ended):
        log, refusals = self.daemon.log_text(), self.load.refusals
        if has_ended and status == 0:
            raise Failure("the daemon ended by itself with status 0")
        for panic in re.findall(r"panicked at .*\n(.*)", log):
            reasons = [reason for text, reason in PANICS.items() if text in panic]
            # The last one must have cost no request its answer.
            if not reasons or "worker thread" in panic and refusals:
                raise Failure(f"a panic: {panic}")
            self.known.append(f"{panic}: {reasons[0]}")
        wrong = [*refusals, *([f"status {status}"] if status else [])]
        if wrong and not self.case:
            raise Failure(f"without a fault: {wrong}")
        # The loss of a connection is seen by both sides.
        told = status == 0 and self.case and self.case[1] in GONE
        if wrong and not told and not says("\n".join([log, *refusals]), *self.case[:2]):
            if status or self.case[:2] not in SILENT:
                raise Failure(f"nothing names {self.case[1]}: {wrong[:4]}")
            self.known.append(SILENT[self.case[:2]])

    def restart(self):
        os.rename(f"{self.folder}/log", f"{self.folder}/log.fault")
        self.load.daemon = self.daemon = Daemon(PROGRAM, self.folder)
        self.load.clients.clear()
        refusals = len(self.load.refusals)
        try:
            self.daemon.wait_ready()
        except Lost:
            raise Failure("the next daemon does not start")
        self.load.check_after_restart()
        self.load.leave()
        if self.load.refusals[refusals:]:
            raise Failure(f"after a restart: {self.load.refusals[refusals:][:3]}")
        if self.daemon.stop() != 0:
            raise Failure("the next daemon ends badly")
        self.load.check_files()

    # The end of every log, for a report.
    def logs(self):
        for name in "trace", "log.fault", "log":
            path = f"{self.folder}/{name}"
            if os.path.exists(path):
                with open(path, errors="replace") as text:
                    lines = text.read().splitlines()
                if name == "trace":
                    lines = [line for line in lines if "INJECTED" in line]
                yield from (f"    {name}: {line[:240]}" for line in lines[-8:])


# The calls of each thread in a run without faults: [{call: (first, last)}], from where main begins.
def calls_of(trace):
    threads = collections.OrderedDict()
    with open(trace, errors="replace") as lines:
        for line in lines:
            found = re.match(r"(\d+) +(\w+)\((?:\d+<([^>]*)>)?", line)
            if found and (found[2] not in ONLY or (found[3] or "").endswith(tuple(ONLY[found[2]]))):
                threads.setdefault(found[1], []).append(found[2])
    spans = []
    for number, calls in enumerate(threads.values()):
        # Before that, it is the loader.
        begin = calls.index("poll") if number == 0 and "poll" in calls else 0
        before, counts = collections.Counter(calls[:begin]), collections.Counter(calls)
        spans.append({call: (before[call] + 1, count) for call, count in counts.items() if count > before[call]})
    return spans


def survey(lab, seed):
    run = Run(lab, seed)
    run()
    spans = calls_of(run.trace)
    lab.remove(run.folder)
    return spans


def draw(rng, spans, call):
    first, last = rng.choice([span[call] for span in spans if call in span])
    when = rng.randint(first, last)
    # What the main thread has had when it begins.
    return f"{when}@ready" if when < spans[0].get(call, (1, 0))[0] else str(when)


# Every pair once, in an order from the seed that has each call before it has one twice.
def sample(rng, spans, rounds):
    calls = sorted({call for span in spans for call in span})
    for call in calls:
        if call not in ERRORS and call not in LEFT_OUT:
            print(f"'{call}' is in neither table of faults.py")
    queues = {call: ERRORS[call].split() * rounds for call in calls if call in ERRORS}
    for errors in queues.values():
        rng.shuffle(errors)
    while queues:
        turn = sorted(queues)
        rng.shuffle(turn)
        for call in turn:
            yield call, queues[call].pop(), draw(rng, spans, call)
            if not queues[call]:
                del queues[call]


class Report:
    def __init__(self, seed):
        self.seed, self.lock, self.ended = seed, threading.Lock(), collections.Counter()

    def case(self, lab, case):
        for _ in range(3):
            run, failure, times = None, None, 0
            try:
                run = Run(lab, self.seed, case)
                times = run()
            except Failure as error:
                failure = str(error)
            except Exception:
                failure = traceback.format_exc()
            if not failure or lab.has_server():
                break
            print("again: the server of the leaf has ended")
        with self.lock:
            self.tell(run, case, failure, times)
        if run and (not failure or not os.environ.get("BLKSWITCH_FAULTS_KEEP")):
            lab.remove(run.folder)

    def tell(self, run, case, failure, times):
        call, error, when = case
        if not failure:
            outcome = "refused" if run.load.refusals else "unnoticed" if times else "not reached"
            self.ended["known" if run.known else outcome] += 1
            for known in run.known:
                print(f"known: {call} {error} when={when}: {known}")
            return
        self.ended["FAILED"] += 1
        print(f"FAILED: {call} {error} when={when}: {failure}")
        for line in run.logs() if run else ():
            print(line)
        print(f"    again: BLKSWITCH_FAULTS={call}:{error}:{when} BLKSWITCH_FAULTS_SEED={self.seed} "
              "cargo xtask system-test --verbose faults", flush=True)


def main():
    wanted = os.environ.get("BLKSWITCH_FAULTS", "sample")
    # The same sample each time: CI is for what was right before. `all` looks for more.
    seed = int(os.environ.get("BLKSWITCH_FAULTS_SEED") or (1 if wanted == "sample" else random.randrange(1 << 32)))
    print(f"seed {seed}", flush=True)
    rng, lab, report = random.Random(seed), Lab(os.getcwd()), Report(seed)
    end = None
    try:
        spans = survey(lab, seed)
        if wanted == "sample":
            cases, end = sample(rng, spans, 1), time.monotonic() + BUDGET
        elif wanted.startswith("all"):
            cases = sample(rng, spans, int(wanted.partition("*")[2] or 1))
        else:
            words = wanted.split(":")
            call = words[0]
            errors = [words[1]] if len(words) > 1 else ERRORS[call].split()
            cases = [(call, error, words[2] if len(words) > 2 else draw(rng, spans, call)) for error in errors]
        lock, cases = threading.Lock(), iter(cases)

        def work():
            while end is None or time.monotonic() < end:
                with lock:
                    case = next(cases, None)
                if case is None:
                    return
                report.case(lab, case)

        with concurrent.futures.ThreadPoolExecutor() as workers:
            for work_done in [workers.submit(work) for _ in range(min(4, os.cpu_count() or 1))]:
                work_done.result()
    finally:
        lab.server.kill()
        lab.server.wait()
    print(f"{sum(report.ended.values())} faults: "
          + ", ".join(f"{count} {outcome}" for outcome, count in sorted(report.ended.items())))
    sys.exit(1 if report.ended["FAILED"] else 0)


if __name__ == "__main__":
    main()
