#!/bin/bash
# In the guest: the ublk export's own tests, which need a driver and root.
set -euo pipefail
modprobe ublk_drv
"$1" --test-threads=1 --nocapture
