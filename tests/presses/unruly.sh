#!/bin/sh
# A press that does what no press does on its control socket, which is its stdin. What, the name of
# the templates folder that it is started with says. Each printf is a packet.
exec 3<&0
ready='{"Ready":{"count":1,"name":"letter","version":{"version":"1.0.0","digest":"0"},"level":"Seccomp"}}'
case "$2" in
garbage) printf 'xxxx' >&3 ;;
too-long) head -c 100000 /dev/zero | tr '\0' 'x' | dd bs=100000 iflag=fullblock status=none >&3 ;;
out-of-order) printf '{"Forked":{"run":1,"pid":1}}' >&3 ;;
ends) exit 0 ;;
forks-nothing)
    printf '%s' "$ready" >&3
    # To take the command is to let go of the run's pipes.
    run=$(dd bs=65536 count=1 status=none <&0 | tr -dc '0-9,' | cut -d, -f1)
    printf '{"NotForked":{"run":%s,"errno":11}}' "$run" >&3
    ;;
esac
# Until the function closes its end.
dd bs=65536 count=1 status=none <&0 >/dev/null
