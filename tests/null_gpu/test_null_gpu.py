"""The CUDA code without a GPU: launches, waits, copies and memory of real steps on a stand-in that computes nothing."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import null_gpu
import pytest

from egom2p.data.modality_info import default_specs
from egom2p.models.egom2p_model import ModelConfig
from egom2p.training.optim import OptimizerConfig
from egom2p.training.planning.training_memory import ClipRows, TrainingMemory, model_without_weights

BASE = {"dim": 768, "encoder_depth": 12, "decoder_depth": 12, "num_heads": 12}

pytestmark = pytest.mark.skipif(null_gpu.why_not() is not None, reason=str(null_gpu.why_not()))

# Kernels a step may launch, products apart: what it takes today and a tenth. A fusion that is lost shows here.
LAUNCHES = {
    "tiny eager": 380,
    "tiny ragged": 380,
    "tiny tokens": 400,
    "tiny fp16": 400,
    "tiny fp32": 450,
    "tiny pixels": 400,
    "tiny pixels tokens": 420,
    "tiny muon": 880,
    "tiny options": 520,
    "tiny recompute": 460,
    "tiny mlp": 420,
    "odd heads": 480,
    "wide heads": 420,
}

OTHERS = {
    "tiny_codec": 5500,
    "tiny_trajectory": 330,
    "global_mlp": 510,
    "st_shuffle": 550,
    "resampler": 670,
    "gated_xattn": 880,
}


# Kernels of a whole generation beside products, and nodes of its graph, products included.
GENERATIONS = {
    "roar": (390, 450),
    "roar, no graph": (390, 0),
    "hot": (265, 320),
    "maskgit": (530, 655),
    "maskgit, rewriting": (540, 680),
    "autoregressive": (2630, 3600),
    "frames": (880, 1180),
    "inpainting": (365, 425),
    "two conditions": (300, 355),
    "four clips": (450, 515),
    "pixels": (420, 480),
    "words": (1370, 0),
    "fp32": (485, 0),
    "second device": (390, 450),
    "second device, words": (1370, 0),
}


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory) -> dict[str, str]:
    return null_gpu.environment(tmp_path_factory.mktemp("null_gpu"))


def run(environment: dict[str, str], script: str, *cases: str) -> dict[str, dict]:
    """What a script found, by case."""
    command = [sys.executable, str(Path(__file__).parent / script), *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["case"] for row in found] == list(cases)
    return {row["case"]: row for row in found}


@pytest.fixture(scope="session")
def small_steps(stand_in) -> dict[str, dict]:
    return run(stand_in, "train_steps.py", *LAUNCHES)


@pytest.mark.parametrize("case", LAUNCHES)
def test_a_step_asks_nothing_of_the_device(small_steps, case):
    found = small_steps[case]
    assert found["step"]["waits"] == found["step"]["d2h"] == 0
    assert not found["where"], "torch saw the host wait"
    assert found["step"]["h2d_pageable"] == 0
    assert found["log_line"]["waits"] == (2 if case == "tiny fp16" else 1)  # the loss's scale is asked for too


@pytest.mark.parametrize("case", LAUNCHES)
def test_a_step_launches_no_more_than_it_did(small_steps, case):
    assert small_steps[case]["step"]["launch"] <= LAUNCHES[case]


@pytest.fixture(scope="session")
def other_steps(stand_in) -> dict[str, dict]:
    return run(stand_in, "other_steps.py", *OTHERS)


@pytest.mark.parametrize("case", OTHERS)
def test_other_trainers_ask_nothing_of_the_device(other_steps, case):
    found = other_steps[case]
    assert found["step"]["waits"] == found["step"]["d2h"] == 0
    assert not found["where"]
    assert found["step"]["h2d_pageable"] <= 1
    assert found["step"]["launch"] <= OTHERS[case]


@pytest.fixture(scope="session")
def generations(stand_in) -> dict[str, dict]:
    return run(stand_in, "generation_steps.py", *GENERATIONS)


@pytest.mark.parametrize("case", GENERATIONS)
def test_a_generation_asks_nothing_of_the_device_before_its_end(generations, case):
    """All steps are sent at once, and one wait brings the tokens of the last; capturing a graph waits once more.

    Words are sent step by step, and come back without a wait.
    """
    found, num_words = generations[case], 8 if "words" in case else 0
    most_launches, most_nodes = GENERATIONS[case]
    for part in ("first", "second", "later"):
        assert found[part]["waits"] == 1 + (part == "second" and most_nodes > 0)
        assert found[part]["d2h"] == 1 + num_words and found[part]["h2d_pageable"] == 0
        num_tables = int(case == "pixels")  # sent once for all steps
        assert found[part]["h2d"] == 1 + num_words + num_tables or case == "fp32", "padded attention sends its plans"
    assert sum(found["where"].values()) == 1, "torch saw the host wait elsewhere"
    assert found["current"] == ["cuda:1" if "second device" in case else "cuda:0"], (
        "graphs and events of another device"
    )
    assert found["first"]["launch"] <= most_launches
    assert found["later"]["graph_kernels"] <= most_nodes
    if most_nodes:
        # What is left beside the graph is the encoder's first pass, which may be known from another target.
        assert found["later"]["graph"] == 1 and found["later"]["launch"] <= (42 if case == "pixels" else 32)


@pytest.mark.slow
def test_generations_of_the_base_model_fit_their_budgets(stand_in):
    """One clip with the published settings: nodes of the graph, gigabytes moved beside products, weights in bf16."""
    found = run(stand_in, "generation_steps.py", "rgb to cam", "rgb to depth")
    for case, (nodes, gigabytes) in {"rgb to cam": (1450, 8.5), "rgb to depth": (2140, 26)}.items():
        later = found[case]["later"]
        assert (later["waits"], later["h2d"], later["h2d_pageable"], later["graph"]) == (1, 1, 0, 1)
        assert later["launch"] <= 110 and later["graph_kernels"] <= nodes
        assert found[case]["gigabytes"] <= gigabytes
        assert found[case]["weights_gb"] < 0.82


@pytest.mark.slow
def test_a_step_of_the_8b_run_fits_what_its_dry_run_says(stand_in):
    """LoRA on random weights of Llama 3 8B's shape, which nothing here could hold: no memory stands behind it."""
    found = run(stand_in, "other_steps.py", "8B_lora")["8B_lora"]
    assert 8.03e9 < found["parameters"] < 8.05e9
    assert found["planned"] / 2**30 == pytest.approx(26.3, abs=0.05), "what 8B_lora.yaml and README_ANYTOANY say"
    assert 0.75 * found["planned"] < found["peak"] <= found["planned"]
    assert found["step"]["waits"] == found["step"]["d2h"] == 0 and not found["where"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["tiny varied", "tiny varied tokens"])
def test_compiled_blocks_keep_their_promises(stand_in, case):
    """Sixteen batches of other lengths, some with clips without inputs: nothing is compiled after the second."""
    found = run(stand_in, "train_steps.py", case)[case]
    assert len(set(found["graphs"][1:])) == 1
    assert found["step"]["waits"] == 0 and not found["where"]
    assert found["step"]["launch"] <= 330
    assert any(name.startswith("triton::") for name, _, _ in found["most"])


@pytest.mark.slow
def test_the_published_step_fits_its_budgets(stand_in):
    """32 full clips of the base model: launches, gigabytes moved beside products, gigabytes of memory."""
    cases = {"b32": {}, "b32 mlp": {"recompute": "mlp"}, "b32 eager": {}}
    found = run(stand_in, "train_steps.py", *cases)
    rows = ClipRows(2048, {"tok_rgb": 1024, "tok_depth": 1024})
    for case, options in cases.items():
        size = ModelConfig(**BASE)
        build = functools.partial(model_without_weights, specs=default_specs())
        plan = TrainingMemory(build, size, rows, OptimizerConfig(), is_compiled=case != "b32 eager")
        assert plan.footprint(32, **options).total / 1e9 == pytest.approx(found[case]["peak_gb"], rel=0.02)
    assert found["b32"]["step"]["launch"] <= 1450
    assert found["b32"]["gigabytes"] <= 285
    assert found["b32"]["peak_gb"] <= 48
    assert found["b32 mlp"]["peak_gb"] <= 34
