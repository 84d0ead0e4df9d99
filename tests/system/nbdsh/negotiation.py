# The handshake step by step.
import errno, os

structured = os.environ["FORM"] == "structured"


def options():
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.set_request_structured_replies(structured)
    h.connect_unix(os.environ["NBD"])
    assert h.get_protocol() == "newstyle-fixed"
    return h


def fails(error, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as e:
        assert e.errnum == error, (e, arguments)
    else:
        raise AssertionError(("did not fail", call, arguments))


device = os.environ["DEVICE"]
h = options()
exports = []
h.opt_list(lambda name, description: exports.append(name))
assert exports == [device], exports

h.set_export_name("none")
fails(errno.ENOENT, h.opt_info)
h.set_export_name("x" * 4096)
fails(errno.ENOENT, h.opt_info)
h.set_export_name("")  # the only one
h.opt_info()
assert h.get_size() == 8 << 20
h.set_full_info(True)
h.set_export_name(device)
h.opt_info()
assert h.get_canonical_export_name() == device
assert h.get_export_description()

if structured:
    contexts = []
    h.opt_list_meta_context(lambda name: contexts.append(name))
    assert contexts == ["base:allocation", "blkswitch:path"], contexts
    for wanted in ("blkswitch:", "other:thing", "blkswitch:paths"):
        h.add_meta_context(wanted)
    contexts = []
    h.opt_list_meta_context(lambda name: contexts.append(name))
    assert contexts == ["blkswitch:path"], contexts
    h.clear_meta_contexts()
    # One there is, and one there is not: the session has the one.
    h.add_meta_context("other:thing")
    h.add_meta_context("blkswitch:path")
h.opt_go()
assert len(h.pread(512, 0)) == 512
if structured:
    assert h.can_meta_context("blkswitch:path") and not h.can_meta_context("base:allocation")
h.shutdown()

# Given up in the middle; a wrong name, and then the right one.
options().opt_abort()
h = options()
h.set_export_name("none")
fails(errno.ENOENT, h.opt_go)
h.set_export_name(device)
h.opt_go()  # the negotiation went on
h.shutdown()

# TLS is not spoken, and a client that insists is told so.
h = nbd.NBD()
if h.supports_tls():
    h.set_tls(nbd.TLS_REQUIRE)
    try:
        h.connect_unix(os.environ["NBD"])
    except nbd.Error:
        pass
    else:
        raise AssertionError("TLS where there is none")

# The oldest form of the handshake: the export by EXPORT_NAME, no flags of the client's own.
h = nbd.NBD()
h.set_handshake_flags(0)
h.set_export_name(device)
h.connect_unix(os.environ["NBD"])
assert h.get_protocol() == "newstyle" and h.get_size() == 8 << 20
h.pwrite(bytes([9]) * 512, 1024)
assert h.pread(512, 1024) == bytes([9]) * 512
h.shutdown()
