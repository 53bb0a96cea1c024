# Starts one process per GPU of a Slurm job and requeues the job when it was interrupted. Sourced by the scripts here.
#
# Before: REPOSITORY, PYTHON, SRUN_ARGS (array) as described in the scripts, and TRAINING_ARGS (array), OUTPUT_DIR.
# A signal (USR1 some minutes before the time limit, TERM at preemption) reaches every process; they finish their step,
# write a checkpoint and end, and the job goes back into the queue. The next start continues from that checkpoint.

signal_seen=""

# What each task does. torch reads who it is from these variables. Where the site shows every task its own GPU only, that
# one is number 0. 138 and 143 mean that the training ended by USR1 or TERM, with a checkpoint; an error must be a larger
# number, because srun ends the other tasks by TERM and tells us the largest.
RUN_TASK='
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
    [[ "${CUDA_VISIBLE_DEVICES:-}" =~ ^[^,]+$ ]] && LOCAL_RANK=0
    trap "kill -USR1 \$training" USR1
    trap "kill -TERM \$training" TERM
    "$@" &
    training=$!
    # A trapped signal ends `wait` early.
    until wait $training; code=$?; ! kill -0 $training 2>/dev/null; do :; done
    case $code in
    0 | 138 | 143) exit $code ;;
    *) echo "process $RANK on $(hostname): exit code $code"; exit $((code < 50 ? 200 + code : 255)) ;;
    esac'

say() {
    echo "$(date '+%F %T') $*"
}

# srun passes USR1 on to its tasks; at TERM it would kill them.
pass_on() {
    signal_seen="$1"
    say "received $1: asking every process for a checkpoint"
    [[ -n "${step_pid:-}" ]] && kill -USR1 "$step_pid" 2>/dev/null
}

# Back into the queue, unless Slurm itself is ending this job: then it was cancelled and must not come back, or Slurm has
# requeued it already (preemption, `scontrol requeue`).
requeue() {
    local code=$1 shown
    shown=$(scontrol show job --oneliner "$SLURM_JOB_ID")
    if [[ "$shown" != *JobState=RUNNING* && "$shown" != *Reason=TimeLimit* ]]; then
        say "interrupted (exit code $code): Slurm has ended or requeued this job"
        return "$code"
    fi
    say "interrupted (exit code $code): back into the queue"
    if ! scontrol requeue "$SLURM_JOB_ID"; then
        say "the job cannot be requeued; sbatch the same script again to continue"
        return "$code"
    fi
}

launch() {
    cd "$REPOSITORY" || return 1
    if [[ -d "$OUTPUT_DIR/final" ]]; then
        echo "$OUTPUT_DIR/final exists: the run is finished, this job of the chain has nothing to do"
        return 0
    fi
    # Asked here and not by the tasks: a container has no scontrol.
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    if [[ -z "$MASTER_ADDR" ]]; then
        say "scontrol names no host of $SLURM_JOB_NODELIST"
        return 1
    fi
    export MASTER_ADDR
    export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    # Since Slurm 22.05 srun no longer takes this from sbatch, and every process would share one core with its workers.
    if [[ -n "${SLURM_CPUS_PER_TASK:-}" ]]; then
        export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
    fi
    say "job $SLURM_JOB_ID, ${SLURM_RESTART_COUNT:-0} restarts, hosts $SLURM_JOB_NODELIST, first $MASTER_ADDR:$MASTER_PORT"

    trap 'pass_on USR1' USR1
    trap 'pass_on TERM' TERM
    srun --kill-on-bad-exit=1 "${SRUN_ARGS[@]}" bash -c "$RUN_TASK" launch "$PYTHON" "${TRAINING_ARGS[@]}" &
    step_pid=$!
    local code=0
    # A trapped signal ends `wait` early, so wait until srun itself is gone.
    while true; do
        wait "$step_pid"
        code=$?
        kill -0 "$step_pid" 2>/dev/null || break
    done
    trap - USR1 TERM

    if [[ $code -ne 0 ]] && { [[ -n "$signal_seen" ]] || [[ $code -eq 138 || $code -eq 143 ]]; }; then
        requeue "$code"
        return
    fi
    [[ $code -ge 200 ]] && code=$((code - 200))
    return "$code"
}
