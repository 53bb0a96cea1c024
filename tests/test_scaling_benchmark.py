"""benchmarks/scaling.py: what the model of a step says at its ends, and that its check runs."""

import pytest
import scaling

FAST, _, SLOW = scaling.NETWORKS


def test_a_ring_moves_every_byte_but_a_rank_s_own_twice():
    assert scaling.ring_s(8e9, 1, 1e9, 1.0) == 0
    assert scaling.ring_s(8e9, 2, 1e9, 0.0) == pytest.approx(8.0)
    assert scaling.ring_s(8e9, 8, 1e9, 0.0) == pytest.approx(14.0)
    assert scaling.ring_s(0.0, 8, 1e9, 0.5) == pytest.approx(7.0)


def test_nodes_exchange_only_each_gpu_s_part():
    network = scaling.Network("made up", 8, inside_gb_per_s=100.0, between_gb_per_s=10.0, hop_us=0.0)
    inside = 1e3 * 2 * 7 / 8 / 100
    assert scaling.all_reduce_ms(1e9, 8, network) == pytest.approx(inside)
    assert scaling.all_reduce_ms(1e9, 16, network) == pytest.approx(inside + 1e3 * (1 / 8) / 10)


def test_a_step_follows_the_table_of_one_gpu():
    for clips, table_ms in scaling.STEP_MS.items():
        assert scaling.compute_ms(clips) == pytest.approx(table_ms, rel=0.02)
    assert scaling.compute_ms(64) == pytest.approx(2 * scaling.compute_ms(32)), "accumulated"
    assert scaling.compute_ms(1, share=0.39) == scaling.HOST_MS
    assert scaling.step(1, 32, FAST).exposed_ms == 0


def test_more_gpus_are_faster_and_less_efficient():
    steps = [scaling.step(count, 16, FAST) for count in (1, 8, 64, 256)]
    rates = [found.clips_per_s / found.num_gpus for found in steps]
    assert rates == sorted(rates, reverse=True) and rates[-1] > 0.9 * rates[0]
    assert scaling.step(64, 16, SLOW).clips_per_s < 0.6 * steps[2].clips_per_s
    # At least the tail cannot hide.
    tail_ms = scaling.all_reduce_ms(4 * scaling.TAIL_PARAMETERS, 64, FAST)
    assert steps[2].exposed_ms == pytest.approx(tail_ms)


def test_a_slow_loader_sets_the_pace():
    found = scaling.step(8, 32, FAST, workers=1, clips_per_worker_s=10.0)
    assert found.clips_per_s == pytest.approx(80.0)


def test_the_tables_name_every_network_and_both_sizes_of_data():
    text = scaling.tables(2685.0, 3.0)
    assert all(text.count(network.name) == 9 for network in scaling.NETWORKS)
    assert "5,150,000" in text


def test_few_clips_a_rank_wait_for_the_largest():
    """The published arithmetic of a full clip; and a sum of many clips hardly differs from rank to rank."""
    assert scaling.clip_gflop(2048, 2048) == pytest.approx(1402, rel=0.02)
    one, many = scaling.slowest_rank(64, 1), scaling.slowest_rank(8, 128)
    assert 2.0 < one < 1402 / 500 and 1.0 < many < 1.2


@pytest.mark.slow
def test_two_processes_answer():
    found = scaling.check(turns=2, megabytes=(1, 2, 4), width=32)
    assert list(found["sum_ms"]) == ["1 MB", "2 MB", "4 MB"]
    assert all(len(pair) == 2 and min(pair) > 0 for pair in found["sum_ms"].values())
    assert found["gradient_mb"] == pytest.approx(24 * (32 * 32 + 32) * 4 / 1e6)
