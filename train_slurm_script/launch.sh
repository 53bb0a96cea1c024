# Starts one process per GPU of a Slurm job and requeues the job when it was interrupted. Sourced by the scripts here.
#
# Before: REPOSITORY, PYTHON, SRUN_ARGS (array) as described in the scripts, and TRAINING_ARGS (array), OUTPUT_DIR.
# A signal (USR1 some minutes before the time limit, TERM at preemption) reaches every process; they finish their step,
# write a checkpoint and end, and the job goes back into the queue. The next start continues from that checkpoint.

signal_seen=""

# srun passes USR1 on to its tasks; at TERM it would kill them.
pass_on() {
    signal_seen="$1"
    echo "$(date '+%F %T') received $1: asking every process for a checkpoint"
    [[ -n "${step_pid:-}" ]] && kill -USR1 "$step_pid" 2>/dev/null
}

# A job that somebody cancelled must not come back.
is_cancelled() {
    scontrol show job --oneliner "$SLURM_JOB_ID" 2>/dev/null | grep -q 'JobState=CANCELLED'
}

launch() {
    cd "$REPOSITORY" || return 1
    if [[ -d "$OUTPUT_DIR/final" ]]; then
        echo "$OUTPUT_DIR/final exists: the run is finished, this job of the chain has nothing to do"
        return 0
    fi
    local first_host
    first_host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    export MASTER_ADDR="$first_host"
    export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    echo "$(date '+%F %T') job $SLURM_JOB_ID, ${SLURM_RESTART_COUNT:-0} restarts, $SLURM_NTASKS processes, first host $first_host"

    trap 'pass_on USR1' USR1
    trap 'pass_on TERM' TERM
    # One process per task; torch reads who it is from these variables.
    srun --kill-on-bad-exit=1 "${SRUN_ARGS[@]}" bash -c '
        export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
        exec "$@"' launch "$PYTHON" "${TRAINING_ARGS[@]}" &
    step_pid=$!
    local code=0
    # A trapped signal ends `wait` early, so wait until srun itself is gone.
    while true; do
        wait "$step_pid"
        code=$?
        kill -0 "$step_pid" 2>/dev/null || break
    done
    trap - USR1 TERM

    # 138 and 143: the processes ended as USR1 and TERM would end them, with a checkpoint.
    if [[ $code -ne 0 ]] && { [[ -n "$signal_seen" ]] || [[ $code -eq 138 || $code -eq 143 ]]; }; then
        if is_cancelled; then
            echo "cancelled: not requeued"
            return "$code"
        fi
        echo "$(date '+%F %T') interrupted (exit code $code): back into the queue"
        scontrol requeue "$SLURM_JOB_ID"
        return 0
    fi
    return "$code"
}
