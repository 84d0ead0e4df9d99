#!/bin/sh
# In the guest: a program that needs the ublk driver.
modprobe ublk_drv && exec "$@"
