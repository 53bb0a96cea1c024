"""The clocks of a run, with a clock that is moved by hand."""

from dataclasses import replace

from egom2p.config import from_plain
from egom2p.training.schedule import Length, Progress
from egom2p.training.task import BatchSize
from egom2p.training.throughput import Throughput
from egom2p.training.training_config import TrainingConfig


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def made(clock: Clock, **values) -> Throughput:
    config = from_plain(TrainingConfig, {"num_steps": 10, "lr": 1e-3} | values)
    return Throughput(config, Length("steps", 10), world_size=2, peak_flops=8e12, clock=clock)


def test_waiting_for_the_device_is_training_and_a_pause_is_not():
    clock = Clock()
    throughput, progress, size = made(clock), Progress(), BatchSize(clips=4, tokens=80, flops=int(32e12))
    throughput.begin(progress)
    for _ in range(2):
        clock.now += 0.5  # the host hands out work
        progress = throughput.counted(progress.advanced(clips=4, tokens=80, token_budget=90), size)
    clock.now += 3.0  # and waits for it
    progress = throughput.counted(progress)
    assert progress.seconds == 4.0, "the wait was lost"
    values, seconds_left = throughput.since_last_line(progress)
    assert values == {
        "tokens_per_s": 40.0, "clips_per_s": 2.0, "model_tflops_per_s": 8.0, "mfu": 1.0,
    }  # fmt: skip
    assert seconds_left == 8 * 2.0
    with throughput.paused():
        clock.now += 50.0
    clock.now += 1.0
    progress = throughput.counted(
        progress.advanced(clips=4, tokens=80, token_budget=90), replace(size, rows=100, trimmed=20)
    )
    values, seconds_left = throughput.since_last_line(progress)
    assert progress.seconds == 5.0 and seconds_left == 7.0
    assert values["tokens_per_s"] == 80.0 and values["fill"] == 0.8 and values["trimmed"] == 0.2


def test_what_is_due():
    clock = Clock()
    throughput = made(clock, log_every=4, evaluate_every=5, checkpoint_every=2, checkpoint_minutes=1.0)
    steps = [Progress(step=step) for step in range(1, 11)]
    assert [one.step for one in steps if throughput.is_log_due(one)] == [4, 8, 10]
    assert [one.step for one in steps if throughput.is_evaluation_due(one)] == [5]
    assert [one.step for one in steps if throughput.is_checkpoint_due(one)] == [2, 4, 6, 8]
    throughput.begin(Progress())
    for seconds, is_time in ((60.0, False), (1.0, True)):
        clock.now += seconds
        assert throughput.is_save_time() == is_time
    throughput.saved()
    assert not throughput.is_save_time()
    assert not made(clock, evaluate_every=None, checkpoint_minutes=None).is_save_time()
