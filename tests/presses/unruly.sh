#!/bin/sh
# A press that says it is warm and answers every request with what is no answer. Which, the name
# of the templates folder that it is started with says.
frame() {
    printf "\\0\\0\\0\\$(printf %o $((${#1} + ${#2})))%s%s" "$1" "$2"
}
frame R '{"Warm":{"templates":{"letter":{"version":"1.0.0","digest":"0"}}}}'
# Until something comes.
head -c 1 >/dev/null
case "$2" in
*garbage) head -c 100000 /dev/zero | tr '\0' 'x' ;;
*too-long) printf '\377\377\377\377P' ;;
*unknown-kind) frame '?' '' ;;
*half-a-frame) printf '\0\0\1\0Phalf' ;;
*wrong-verdict) frame V '{"Set": 7}' ;;
*out-of-order) frame I '{}' ;;
esac
