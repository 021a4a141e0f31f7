#!/bin/sh
# /init of the guests in these tests: says what the kernel found, a line each, and resets.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
echo "report: kernel $(uname -r)"
echo "report: cmdline $(cat /proc/cmdline)"
echo "report: clocksource $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
echo "report: cpus $(cat /sys/devices/system/cpu/online)"
grep 'System RAM' /proc/iomem | while read -r range _; do
    echo "report: ram $range"
done
echo "report: end"
reboot -f
