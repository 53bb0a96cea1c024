"""The any-to-any model in shards: the same arithmetic, one block of the language model whole at a time, plain files.

Everything of two processes shares one launch: starting Python twice costs more than training tiny models.
"""

import pytest
import torch
from test_anytoany_training import LLAMA, config_of, losses, whole_step

from egom2p.anytoany.download import DownloadConfig, download
from egom2p.anytoany.saving import load_anytoany
from egom2p.anytoany.world.synthetic_data import SyntheticDataConfig
from egom2p.storage import load_tensors
from egom2p.training.distributed import Ranks
from egom2p.training.loop import fit
from egom2p.training.parallel import ParallelConfig, is_sharded, shard
from egom2p.training.tasks.anytoany_task import AnyToAnyTask

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")]
GATED = {"model.connector.kind": "gated_xattn", "model.connector.dim": 16, "model.connector.num_heads": 2}
# How the language model trains, beside connector and new tokens.
WAYS = {
    "lora": {},
    "full": {"model.adapt": "full"},
    "gated": GATED,
    "recomputed": {"training.activation_checkpointing": True},
}
SHARDED = {
    "training.batch_size": 4,
    "training.keep_last": 9,
    "training.num_steps": 3,
    "training.ema": "{decay: 0.5}",
    "training.lr": 0.01,
}


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("downloads")
    architecture = LLAMA | {"num_hidden_layers": 4}
    synthetic = SyntheticDataConfig(clips_per_combination=1, vocab_size=600, architecture=architecture)
    download(DownloadConfig(output=str(folder), source="synthetic", synthetic=synthetic))
    return folder


def configs(downloads, folder):
    one = {"training.batch_size": 3, "data.batching": "single"}
    return {way: config_of(downloads, folder / way, **one | more) for way, more in WAYS.items()}


def runs(downloads):
    """Adapters on files, everything, adapters on a base that was drawn."""
    values = ", ".join(f"{key}: {value}" for key, value in LLAMA.items())
    drawn = {
        "model.language_model.pretrained": "null",
        "model.language_model.architecture": f"{{{values}}}",
        "model.language_model.tokenizer": downloads / "base" / "Meta-Llama-3-8B-Instruct",
    }
    half = {"model.language_model.dtype": "bfloat16", "training.dtype": "bf16", "training.ema": "null"}
    return {"adapters": {}, "full": {"model.adapt": "full"}, "drawn": drawn, "half": half}


def run(downloads, folder, ranks, **more):
    more = SHARDED | {"data.batching": "single", "training.log_every": 1, "training.checkpoint_every": 1} | more
    config = config_of(downloads, folder, **more)
    task = AnyToAnyTask(config, ranks)
    fit(task, config.training, output_dir=folder, ranks=ranks, seed=0, settings={})


class Gathered:
    """How many of a model's blocks are whole while one of them computes: their parameters are plain tensors then."""

    def __init__(self, model):
        self.blocks, self.forward, self.backward = model.foreign_blocks(), set(), set()
        for block in self.blocks:  # hooks in the middle of a block
            block.mlp.register_forward_hook(lambda *_: self.forward.add(self.count()))
            block.mlp.register_full_backward_hook(lambda *_: self.backward.add(self.count()))

    def count(self):
        return sum(not is_sharded(next(block.parameters())) for block in self.blocks)


def _one_rank(rank, downloads, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    ranks = Ranks(rank=rank, world_size=2)
    for way, config in configs(downloads, folder).items():
        (folder / way).mkdir(exist_ok=True)
        seen = []

        def spread(model, config=config, seen=seen):
            from torch.distributed.fsdp import FSDPModule

            shard(model, ParallelConfig(kind="fsdp"), ranks=ranks, dtype=torch.float32)
            groups = [module for module in model.modules() if isinstance(module, FSDPModule)]
            assert groups == [model, *model.foreign_blocks()], "one group for each block, and one for the rest"
            seen.append(Gathered(model))
            return model

        whole_step(config, ranks, accumulation=1, folder=folder / way, spread=spread)
        assert seen[0].forward == seen[0].backward == {1}, (way, seen[0].forward, seen[0].backward)
    sharded = {"training.batch_size": 2, "training.accumulation": 1, "training.parallel.kind": "fsdp"}
    for name, more in runs(downloads).items():
        run(downloads, folder / f"{name}2", ranks, **sharded | more)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(downloads, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    for way, config in configs(downloads, folder).items():
        (folder / way).mkdir()
        whole_step(config, Ranks(), accumulation=2, folder=folder / way)
    for name, more in runs(downloads).items():
        run(downloads, folder / f"{name}1", Ranks(), **{"training.accumulation": 1} | more)
    torch.multiprocessing.spawn(_one_rank, args=(downloads, folder), nprocs=2)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_loss_and_gradients_are_those_of_one_process(folder, way):
    one, *two = (load_tensors(folder / way / f"rank{name}.safetensors") for name in ("0of1", "0of2", "1of2"))
    for rank in two:
        assert rank.keys() == one.keys()
        assert rank["loss"].item() == pytest.approx(one["loss"].item(), abs=1e-6)
        for name in one.keys() - {"loss", "own", "all"}:
            assert one[name].abs().max() > 0 or way == "gated", name  # features of one row leave no choice to look
            torch.testing.assert_close(rank[name], one[name], rtol=1e-6, atol=1e-6, msg=lambda text, n=name: n + text)


@pytest.mark.parametrize("name", ["adapters", "full", "drawn"])
def test_a_sharded_run_is_kept_and_loads_as_a_whole_one(folder, name):
    """Frozen weights stay where they came from, averages are offered, no file tells how many ranks there were."""
    for step in (1, 3):
        position = f"checkpoints/step-{step:08d}/training.safetensors"
        whole, sharded = (load_tensors(folder / f"{name}{ranks}" / position) for ranks in (1, 2))
        assert whole.keys() == sharded.keys()
        assert (name != "adapters") == any("embed_tokens" in key for key in whole)
        for key, tensor in whole.items():
            if not key.startswith("unlogged/"):
                torch.testing.assert_close(sharded[key], tensor, atol=1e-4, rtol=0, msg=lambda text, k=key: k + text)
    models = [load_anytoany(folder / f"{name}{ranks}" / "final").state_dict() for ranks in (1, 2)]
    for key, tensor in models[0].items():
        torch.testing.assert_close(models[1][key], tensor, atol=1e-4, rtol=0, msg=lambda text, k=key: k + text)


def test_half_precision_learns_alike(folder):
    """Adapters and their moments are float32, the base and what travels of a block bfloat16."""
    (one, two) = (losses(folder / f"half{ranks}") for ranks in (1, 2))
    assert len(one) == 3 and one[-1][0] < one[0][0]
    for found, wanted in zip(two, one, strict=True):
        assert found == pytest.approx(wanted, rel=0.02)
    kept = load_tensors(folder / "half2" / "checkpoints" / "step-00000003" / "training.safetensors")
    assert {tensor.dtype for name, tensor in kept.items() if "lora_" in name} == {torch.float32}
