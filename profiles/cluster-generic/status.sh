#!/bin/sh
# Says running, success or failed of one SLURM job. While the controller does not answer, the job is
# running: nothing is given up for a restart of the controller. A job that it does not know has failed.
answer=$(squeue --noheader --states=all --jobs="$1" --format=%T 2>&1 | head -n 1)
case "$answer" in
COMPLETED) echo success ;;
BOOT_FAIL | CANCELLED | DEADLINE | FAILED | NODE_FAIL | OUT_OF_MEMORY | PREEMPTED | TIMEOUT) echo failed ;;
*"Invalid job id"*) echo failed ;;
*) echo running ;;
esac
