# nbdsh: every command and flag of the protocol through libnbd, with structured and with simple replies, on devices
# that change under their clients.
# Debian 13's programs, too.
. "$(dirname "$0")/lib.sh"
need_libnbd
serve
for form in structured simple; do
    for script in commands negotiation; do
        three "$form-$script" 128
        DEVICE=$form-$script FORM=$form URI=$(uri "$form-$script") NBD=$NBD \
            nbdsh -n -c - <"$SYSTEM/nbdsh/$script.py"
        blkswitch remove "$form-$script"
    done
done
FORM=structured NBD=$NBD nbdsh -n -c - <"$SYSTEM/nbdsh/changes.py"
