#!/bin/sh
# The guest's end of Vm.run, Vm.put and Vm.get: runs commands that come by a serial port.
#
# Host to guest                               guest to host
#                                             ready 1
# run ID SECONDS SCRIPT-BYTES INPUT-BYTES
#   the script, then its input, by parts      more           (after each part: the next, please)
#                                             done ID STATUS EXPIRED OUT-BYTES ERR-BYTES
#                                               what it wrote to stdout, then to stderr
#
# A part has at most 32768 bytes: the kernel's buffer for a serial port takes no more than 65536
# while nobody reads, and drops the rest. What is read with dd is read to the last byte and no
# further; `read` takes a byte at a time. Works with busybox alone. Needs /proc and a writable /tmp.

port=$1
dir=/tmp/pyvmm-agent
part=32768

exec <"$port" >"$port" 2>/dev/null
stty raw -echo
mkdir -p $dir

# receive BYTES FILE
receive() {
    left=$1
    : >"$2"
    while [ "$left" -gt 0 ]; do
        now=$left
        [ "$now" -le $part ] || now=$part
        dd bs="$now" count=1 iflag=fullblock >>"$2"
        left=$((left - now))
        echo more
    done
}

size() {
    wc -c <"$1"
}

echo ready 1
while read -r verb id seconds script_bytes input_bytes; do
    [ "$verb" = run ] || continue
    # Files of its own: what an earlier command left running may still write to those of that.
    this=$dir/$id
    receive "$script_bytes" $this.script
    receive "$input_bytes" $this.input
    # A session of its own, so that all that it starts can be ended with it.
    setsid sh $this.script <$this.input >$this.out 2>$this.err &
    command=$!
    # Its sleep must not hold the port open, nor outlive the command.
    setsid sh -c "sleep $seconds; : >$this.expired; kill -KILL -$command" </dev/null >/dev/null &
    watch=$!
    wait $command
    status=$?
    # Alone first: it may not have begun its session yet.
    kill -KILL $watch
    kill -KILL -$watch
    wait $watch
    expired=0
    [ ! -e $this.expired ] || expired=1
    # Fixed now: what the command left running may still write.
    out_bytes=$(size $this.out)
    err_bytes=$(size $this.err)
    echo done "$id" $status $expired $out_bytes $err_bytes
    head -c "$out_bytes" $this.out
    head -c "$err_bytes" $this.err
    rm -f $this.*
done
