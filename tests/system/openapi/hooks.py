"""Of schemathesis: requests that name a device find one, whatever the requests before did to it."""

import http.client
import json
import os

import schemathesis

SOCKET_PORT = int(os.environ["RELAY_PORT"])
TABLE = "0 2048 switch 2 128 0 mem:1M:a 0 mem:1M:b 0"


@schemathesis.hook
def before_call(context, case, kwargs):
    if "{name}" not in case.operation.path:
        return
    connection = http.client.HTTPConnection("127.0.0.1", SOCKET_PORT, timeout=30)
    connection.request("POST", "/v1/devices", json.dumps({"name": "disk", "table": TABLE}))
    status = connection.getresponse().status
    connection.close()
    # It is there already, as such or as what `rename` made of it.
    assert status in (201, 409), status
