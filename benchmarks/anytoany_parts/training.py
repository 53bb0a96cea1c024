"""Training: packed rows against padded ones, the loss in chunks against all logits, and arithmetic per second."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from anytoany_parts.setting import Setting, conversation, item, lengths_like_captions
from egom2p.anytoany.conversations.packing import best_fit_decreasing, collate, even_order, padding_share
from egom2p.anytoany.language.language_model import next_token_loss
from egom2p.anytoany.language.size_of_model import LanguageFlops
from egom2p.anytoany.model import AnyToAny
from egom2p.anytoany.types import LanguageBatch, Rendered

_ROW_TOKENS = 2048
_WINDOW = 1024
_EVEN_WINDOW = 36  # conversations that the published batcher sorts at once


def packing(setting: Setting) -> dict:
    """Share of positions without a token, and target tokens per second of training steps, of four batchings."""
    model = setting.model().train()
    lengths = lengths_like_captions(_WINDOW)
    talks = [conversation(length, media_id=model.media_id, number=n) for n, length in enumerate(lengths)]
    packed = [[talks[n] for n in row] for row in best_fit_decreasing(lengths, _ROW_TOKENS)]
    single = range(len(lengths))
    even = [start + n for start in range(0, _WINDOW, _EVEN_WINDOW)
            for n in even_order(lengths[start : start + _EVEN_WINDOW], 4)]  # fmt: skip
    orders = {"as they come": single, "even, window 36": even, "even, window 1024": even_order(lengths, 4)}
    table = {"packed, window 1024": {"waste": padding_share(packed, _ROW_TOKENS)}}
    table |= {name: {"waste": _padded_waste(lengths, order)} for name, order in orders.items()}
    num_rows = 1 if setting.device.type == "cpu" else 8
    batches = {"packed, window 1024": [_batch(packed[len(packed) // 2 :][:num_rows], setting, _ROW_TOKENS)]}
    for name, order in orders.items():
        # As many positions' worth of conversations, from the middle of the order.
        chosen = list(order)[_WINDOW // 2 :][: 4 * max(1, num_rows * _ROW_TOKENS // (4 * 115))]
        groups = [chosen[start : start + 4] for start in range(0, len(chosen), 4)]
        batches[name] = [_batch([[talks[n]] for n in group], setting) for group in groups]

    def steps(own: Sequence[LanguageBatch]):
        return lambda: [_step(model, batch, setting) for batch in own]

    seconds = setting.seconds(**{name: steps(own) for name, own in batches.items()})
    for name, row in table.items():
        row["target_tokens_per_s"] = sum(batch.num_targets for batch in batches[name]) / seconds[name]
    best = table["packed, window 1024"]["target_tokens_per_s"]
    for row in table.values():
        row["packed_is_faster_by"] = best / row["target_tokens_per_s"]
    return table


def loss(setting: Setting, *, vocab_size: int = 128_256, width: int = 384, num_positions: int = 384) -> dict:
    """Gathered positions in chunks against logits of all positions: seconds and bytes, forward and backward."""
    torch.manual_seed(0)
    kind = torch.bfloat16 if setting.dtype == "bfloat16" else torch.float32
    head = torch.randn(vocab_size, width, device=setting.device, dtype=kind) * 0.02
    hidden = torch.randn(num_positions, width, device=setting.device, dtype=kind)
    labels = torch.randint(vocab_size, (num_positions,), device=setting.device)
    labels[: round(0.6 * num_positions)] = -100
    positions = (labels >= 0).nonzero()[:, 0]
    table = {}
    for trains in (False, True):
        weight = head.clone().requires_grad_(trains)

        def gathered(weight: torch.Tensor = weight) -> torch.Tensor:
            states = hidden.clone().requires_grad_()
            total = next_token_loss(
                states[positions],
                labels[positions],
                lambda rows: F.linear(rows, weight),
                (weight,),
                vocab_size=vocab_size,
            )
            total.backward()
            return total.detach()

        def full(weight: torch.Tensor = weight) -> torch.Tensor:
            states = hidden.clone().requires_grad_()
            total = F.cross_entropy(F.linear(states, weight).float(), labels, reduction="sum")
            total.backward()
            return total.detach()

        seconds = setting.seconds(gathered=gathered, full=full)
        weight.grad = torch.zeros_like(weight) if trains else None
        bytes_ = {name: setting.peak_bytes(way) for name, way in (("gathered", gathered), ("full", full))}
        table["head trains" if trains else "head is frozen"] = {
            "seconds": seconds,
            "faster_by": seconds["full"] / seconds["gathered"],
            "peak_bytes": bytes_,
            "smaller_by": bytes_["full"] / bytes_["gathered"],
            "difference_of_loss": abs(float(gathered() - full())) / abs(float(full())),
        }
    return {"vocab_size": vocab_size, "width": width, "positions": num_positions, "targets": len(positions), **table}


def utilisation(setting: Setting, *, peak_flops: float | None) -> dict:
    """Arithmetic per second of whole training steps, against one large product of matrices in the same run."""
    model = setting.model(adapt="lora").train()
    lengths = lengths_like_captions(256)
    talks = [conversation(length, media_id=model.media_id, number=n) for n, length in enumerate(lengths)]
    rows = [[talks[n] for n in row] for row in best_fit_decreasing(lengths, _ROW_TOKENS)][:-1]
    batch = _batch(rows[: 1 if setting.device.type == "cpu" else 8], setting, _ROW_TOKENS)
    flops = LanguageFlops(model).training(batch)
    size = 2048 if setting.device.type == "cpu" else 8192
    kind = torch.bfloat16 if setting.dtype == "bfloat16" else torch.float32
    square = torch.randn(size, size, device=setting.device, dtype=kind)
    seconds = setting.seconds(step=lambda: _step(model, batch, setting), product=lambda: square @ square)
    found = {"tflop_per_step": flops / 1e12, "tflops_per_s": flops / seconds["step"] / 1e12}
    found["share_of_one_product"] = found["tflops_per_s"] * 1e12 / (2 * size**3 / seconds["product"])
    found["tokens_per_s"] = batch.num_tokens / seconds["step"]
    if peak_flops is not None:
        found["mfu"] = flops / seconds["step"] / peak_flops
    return found


def _step(model: AnyToAny, batch: LanguageBatch, setting: Setting) -> None:
    with setting.autocast():
        total = model(batch).sums.sum()
    total.backward()
    model.zero_grad(set_to_none=True)


def _batch(rows: Sequence[Sequence[Rendered]], setting: Setting, num_positions: int | None = None) -> LanguageBatch:
    made = collate(rows, lambda media: item(int(media.ref)), pad_id=0, num_positions=num_positions)
    return made.to(setting.device)


def _padded_waste(lengths: Sequence[int], order: Sequence[int], batch_size: int = 4) -> float:
    """Share of the positions of batches padded to their longest."""
    groups = [[lengths[n] for n in list(order)[s : s + batch_size]] for s in range(0, len(order), batch_size)]
    return 1 - sum(lengths) / sum(len(group) * max(group) for group in groups)
