# Each system call that the daemon makes fails once, under load, with an error that its manual page allows. Whatever it
# is: every answered write is there, nothing hangs, whatever is refused has a reason, a daemon that ends says why with
# a status above 0, and the next one with the same state folder has all that was answered.
#
# BLKSWITCH_FAULTS: `sample` (each call in turn, with an error that it had not, until BLKSWITCH_FAULTS_SECONDS are over:
# 80), `all` (every error of every call), `all*N` (N times), CALL[:ERROR[:N]]. BLKSWITCH_FAULTS_SEED repeats a run;
# BLKSWITCH_FAULTS_KEEP keeps the folders of failures.
. "$(dirname "$0")/lib.sh"
need strace strace
need nbdkit nbdkit
python3 "$SYSTEM/faults.py"
