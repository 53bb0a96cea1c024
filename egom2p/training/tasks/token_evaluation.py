"""Token losses on held-out clips, each beside what a model that ignores its input can reach.

L positions of one modality, V vocabulary, K modalities, N target rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import nn

from egom2p.config import Count, Natural, strict
from egom2p.contracts import ModalitySpec, PackedBatch
from egom2p.data.masking import TransferMasking
from egom2p.data.shards.folder_set import FolderSet, open_clips
from egom2p.data.shards.shard_set import ShardSet
from egom2p.data.unified_datasets import DataConfig, DatasetConfig, EvalLoader
from egom2p.data.unigram_baseline import position_counts, unigram_nats
from egom2p.training.distributed import Ranks
from egom2p.training.task import Measurement


@strict
class TransferTaskConfig:
    """A fixed task: all positions of the inputs -> all positions of the targets."""

    inputs: tuple[str, ...]  # modalities that are shown
    targets: tuple[str, ...]  # modalities that are predicted


@strict
class TokenEvaluationConfig:
    """Losses measured during training on `data.validation`: its own maskings, and these tasks on the same clips."""

    tasks: dict[str, TransferTaskConfig] = field(default_factory=dict)
    num_clips: Count | None = None  # of each set and task; null: data.num_validation_clips
    batch_size: Count | None = None  # null: that of training
    baseline_clips: Natural = 4096  # training clips, spread evenly, whose tokens make the unigram baseline


class TokenEvaluation:
    """Every validation set with its own masking and with every task; clips and maskings are the same every time.

    A group is named after the masking (`mix` for the set's own), and after the set where there are several.
    """

    def __init__(
        self,
        config: TokenEvaluationConfig,
        data: DataConfig,
        specs: Sequence[ModalitySpec],
        *,
        batch_size: int,
        num_registers: int,
        seed: int,
        ranks: Ranks,
    ) -> None:
        self._specs, self._ranks, self._data = tuple(specs), ranks, data
        self._baseline_clips = config.baseline_clips
        self._baseline_nats: dict[str, tuple[float | None, ...]] = {}
        self._training_counts: dict[tuple[str, ...], csr_array] = {}
        self._training_clips: dict[str, ShardSet | FolderSet] = {}
        self._loaders: dict[str, tuple[str, EvalLoader]] = {}
        for set_name, dataset in (data.validation or {}).items():
            maskings = {"mix": dataset}
            for name, task in config.tasks.items():
                maskings[name] = TransferMasking(specs, task.inputs, task.targets)
            for name, masking in maskings.items():
                group = name if len(data.validation) == 1 else f"{set_name}/{name}"
                loader = EvalLoader(
                    dataset.shards,
                    specs,
                    masking,
                    batch_size=config.batch_size or batch_size,
                    num_clips=config.num_clips or data.num_validation_clips,
                    seed=seed,
                    rank=ranks.rank,
                    world_size=ranks.world_size,
                    num_registers=num_registers,
                    folder_names=dataset.folder_names,
                    index_cache=data.index_cache,
                )
                self._loaders[group] = (set_name, loader)
        self._check_tasks(config.tasks)

    def check_name(self, name: str) -> None:
        """ValueError unless this is the name of a group, or of a modality measured in it (`group/modality`)."""
        group, modality = (name, None) if name in self._loaders else name.rpartition("/")[::2]
        if group not in self._loaders or modality not in (None, *(spec.name for spec in self._specs)):
            modalities = [spec.name for spec in self._specs]
            raise ValueError(f"keep_best is {name!r}; wanted one of {list(self._loaders)}, or with one of {modalities}")

    def _check_tasks(self, tasks: Mapping[str, TransferTaskConfig]) -> None:
        """A task that no validation set can measure would be left out of every table without a word."""
        held = {set_name: set(loader.modalities) for set_name, loader in self._loaders.values()}
        for name, task in tasks.items():
            if held and not any(
                present & set(task.inputs) and present & set(task.targets) for present in held.values()
            ):
                raise ValueError(
                    f"evaluation.tasks.{name}: wanted one of {list(task.inputs)} and one of {list(task.targets)}, the "
                    f"validation sets have { ({set_name: sorted(present) for set_name, present in held.items()}) }"
                )

    def measure(self, model: nn.Module) -> Iterator[Measurement]:
        """Mean loss (nats) per modality of every group, over all ranks' clips."""
        for group, (set_name, loader) in self._loaders.items():
            sums = torch.zeros(len(self._specs), dtype=torch.float64, device=self._ranks.device)
            counts = [0] * len(self._specs)
            is_cuda = self._ranks.device.type == "cuda"
            for batch in loader.batches(num_threads=int(is_cuda), pin_memory=is_cuda):
                output = model(batch.to(self._ranks.device))
                sums += output.sums
                counts = [a + b for a, b in zip(counts, output.counts, strict=True)]
            sums_K = self._ranks.sum_tensor(sums).tolist()
            counts_K = self._ranks.sum_ints(counts)
            baselines_K = self._baselines(group, set_name, loader, counts_K)
            for spec, total, count, baseline in zip(self._specs, sums_K, counts_K, baselines_K, strict=True):
                if count:
                    yield Measurement(group, spec.name, total / count, baseline)

    def _baselines(
        self, group: str, set_name: str, loader: EvalLoader, counts: Sequence[int]
    ) -> tuple[float | None, ...]:
        """Unigram-baseline cross entropy of the same target rows; computed once, the rows never change."""
        if group not in self._baseline_nats:
            # Statistics of the training set of that name, else of all training sets.
            sources = self._data.datasets
            sources = {set_name: sources[set_name]} if set_name in sources else sources
            values: list[float | None] = []
            for index, (spec, count) in enumerate(zip(self._specs, counts, strict=True)):
                # In hidden spans the position of a word is another one than in the text.
                is_in_spans = spec.kind == "sequence" and not loader.takes_whole_texts
                if is_in_spans or not count:
                    values.append(None)
                    continue
                ids_N, positions_N = target_rows(loader, index)
                table = self._counts_in_training(sources, spec)
                nats = self._ranks.sum_floats(unigram_nats(table, ids_N, positions_N).tolist())
                values.append(min(nats) / count)
            self._baseline_nats[group] = tuple(values)
        return self._baseline_nats[group]

    def _counts_in_training(self, sources: Mapping[str, DatasetConfig], spec: ModalitySpec) -> csr_array:
        """Counts (L, V) of a modality in those training sets that have it; kept, as several groups ask for them."""
        name = (spec.name, *sources)
        if name not in self._training_counts:
            counts = csr_array((spec.num_tokens, spec.vocab_size), dtype=np.int64)
            for set_name, dataset in sources.items():
                folder = (dataset.folder_names or {}).get(spec.name, spec.folder)
                if set_name not in self._training_clips:  # opening reads the headers of all shards
                    self._training_clips[set_name] = open_clips(dataset.shards, index_cache=self._data.index_cache)
                clips = self._training_clips[set_name]
                if folder in clips.folders:
                    counts = counts + position_counts(clips, replace(spec, folder=folder), self._baseline_clips)
            self._training_counts[name] = counts
        return self._training_counts[name]


def target_rows(batches: Sequence[PackedBatch] | EvalLoader, modality: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and positions (N,) of all target rows of one modality."""
    ids, positions = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for batch in batches:
        belongs = batch.target_modality.numpy() == modality
        ids.append(batch.target_ids.numpy()[belongs].astype(np.int64))
        positions.append(batch.target_position.numpy()[belongs].astype(np.int64))
    return np.concatenate(ids), np.concatenate(positions)
