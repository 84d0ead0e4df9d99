"""client.py SOCKET: a device's life by a client that was generated from the OpenAPI document.

The client parses every answer into the types of the document. So an answer that the document does not
describe is an exception here."""

import sys

import httpx
from blkswitch_client import Client
from blkswitch_client.api.devices import create, list_, remove, remove_all, rename, show
from blkswitch_client.api.disks import attach
from blkswitch_client.api.events import events
from blkswitch_client.api.map_ import picture, runs
from blkswitch_client.api.message import message
from blkswitch_client.api.meta import targets, version
from blkswitch_client.api.state import list_ as kept
from blkswitch_client.api.stats import metrics, stats
from blkswitch_client.api.tables import clear, load, resume, suspend
from blkswitch_client.models import (
    AttachUblk,
    CreateDevice,
    Errno,
    ErrorBody,
    LoadTable,
    MapForm,
    RemoveAll,
    RenameType0,
    Suspend,
)
from blkswitch_client.types import File

TABLE = "0 2048 switch 2 128 0 mem:1M:a 0 mem:1M:b 0"

client = Client(
    base_url="http://localhost",
    raise_on_unexpected_status=True,
    httpx_args={"transport": httpx.HTTPTransport(uds=sys.argv[1])},
)


def done(response, status=204):
    assert response.status_code == status, response
    return response.parsed


def refused(response, status, errno, *words):
    body = done(response, status)
    assert isinstance(body, ErrorBody) and body.errno == errno, body
    for word in words:
        assert word in body.reason, (word, body.reason)
    return body


def send(text, **query):
    return message.sync_detailed("disk", client=client, body=File(payload=text.encode()), **query)


# It makes a device and describes it.
assert version.sync(client=client).nbd
assert "switch" in [target.name for target in targets.sync(client=client).targets]
made = done(create.sync_detailed(client=client, body=CreateDevice(name="disk", table=TABLE)), 201)
assert (made.name, made.suspended, made.live.segments[0].target) == ("disk", False, "switch")
assert [device.name for device in list_.sync(client=client).devices] == ["disk"]
assert show.sync("disk", client=client).live.deps

# It uses it.
assert done(send("set_region_mappings 0:1 :1 :1", atomic=True), 200).arguments == 3
table = runs.sync("disk", client=client)
assert (table.regions, table.runs[0].start, table.runs[0].count, table.runs[0].path) == (16, 0, 4, 1), table
assert done(runs.sync_detailed("disk", client=client, form=MapForm.RUNS, from_=2, to=3), 200).runs[0].count == 2
assert picture.sync("disk", client=client, cells=4).totals == [6, 10]
assert stats.sync("disk", client=client).total.errors == 0
assert "blkswitch_requests_total" in metrics.sync(client=client)
done(suspend.sync_detailed("disk", client=client))
done(suspend.sync_detailed("disk", client=client, body=Suspend(noflush=True)))
done(resume.sync_detailed("disk", client=client))
done(load.sync_detailed("disk", client=client, body=LoadTable(table="0 8 zero")))
done(clear.sync_detailed("disk", client=client))
number = show.sync("disk", client=client).event_nr
done(rename.sync_detailed("disk", client=client, body=RenameType0(name="other")))
assert events.sync("other", client=client, after=number).changed
done(rename.sync_detailed("other", client=client, body=RenameType0(name="disk")))
assert kept.sync(client=client).keeps_all is False
with client.get_httpx_client().stream("GET", "/v1/monitor") as lines:
    assert lines.headers["content-type"] == "application/x-ndjson"

# Each kind of failure is one that the document has.
refused(show.sync_detailed("nobody", client=client), 404, Errno.ENXIO, "'nobody'")
refused(create.sync_detailed(client=client, body=CreateDevice(name="disk")), 409, Errno.EBUSY, "'disk'")
refused(create.sync_detailed(client=client, body=CreateDevice(name="a/b")), 400, Errno.EINVAL, "'a/b'")
refused(
    create.sync_detailed(client=client, body=CreateDevice(name="x" * 128)), 400, Errno.ENAMETOOLONG, "127"
)
wrong = CreateDevice(name="x", table="0 8 switch 1 0 0 mem:1M 0")
assert refused(create.sync_detailed(client=client, body=wrong), 400, Errno.EINVAL, "'0'").ioctl == "reload"
wrong = CreateDevice(name="x", table="0 8 linear /nowhere 0")
refused(create.sync_detailed(client=client, body=wrong), 404, Errno.ENOENT, "/nowhere")
refused(send("set_region_mappings 16:0"), 400, Errno.EINVAL, "16")
refused(attach.sync_detailed("disk", client=client, body=AttachUblk(queues=5000)), 400, Errno.EINVAL, "4096")

# It removes it.
done(remove.sync_detailed("disk", client=client))
refused(remove.sync_detailed("disk", client=client), 404, Errno.ENXIO)
assert done(remove_all.sync_detailed(client=client), 200).removed == []
done(create.sync_detailed(client=client, body=CreateDevice(name="disk", table=TABLE)), 201)
assert done(remove_all.sync_detailed(client=client, body=RemoveAll(force=True)), 200).removed == ["disk"]
