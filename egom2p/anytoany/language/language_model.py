"""Any causal language model of transformers: made from a description without downloads, or read from a folder or Hub.

Its logits, and the cross entropy of next tokens without ever holding all of them. D width, V vocabulary, M target
positions, C positions of a chunk.

Each rank reads pretrained weights straight onto its own device: the files are mapped, a tensor passes through memory
one at a time, and no rank holds the whole model on the CPU (unless the CPU is its device).
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from egom2p.anytoany.language import packed_attention
from egom2p.anytoany.language.language_tokenizer import Template
from egom2p.config import Natural, strict
from egom2p.layers.attention import AttentionLayout

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

# Logits in memory at once: about half a gigabyte with their gradients.
CHUNK_ELEMENTS = 2**25
Head = Callable[[Tensor], Tensor]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# Transformers' settings that are sizes of a network; with 0 its classes build one that cannot run.
_SIZES = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings",
}  # fmt: skip


@strict
class LanguageModelConfig:
    """Where the language model comes from. Exactly one of `pretrained` and `architecture`.

    pretrained     local folder or Hub id of a causal language model
    architecture   transformers' settings for random weights: `model_type` (llama, qwen3, ...) and any of its settings;
                   the vocabulary and the marks follow from the tokenizer
    tokenizer      folder or Hub id; None: that of `pretrained`
    chat_template  see language_tokenizer
    sizes          what `config.json` of `pretrained` says, as in architecture: for dry_run where the model is not here
    dtype          of weights that are not trained, and of all when nothing of the language model is trained in full
    gradient_checkpointing   keep no activations of the blocks, compute them twice
    seed           of random weights
    """

    pretrained: str | None = None
    architecture: dict[str, Any] | None = None
    tokenizer: str | None = None
    sizes: dict[str, Any] | None = None
    chat_template: Template = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    revision: str | None = None
    seed: Natural = 0

    def __post_init__(self) -> None:
        if (self.pretrained is None) == (self.architecture is None):
            raise ValueError("say either pretrained (a folder or Hub id) or architecture (settings for random weights)")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError("architecture needs a model_type, for example llama or qwen3")
        if self.sizes is not None and (self.pretrained is None or "model_type" not in self.sizes):
            raise ValueError("sizes describes a pretrained model, with its model_type")
        for name in ("architecture", "sizes"):
            for key, value in (getattr(self, name) or {}).items():
                if key in _SIZES and value is not None and (not isinstance(value, int) or value < 1):
                    raise ValueError(f"{name}.{key} must be a number of at least 1, got {value!r}")
        if self.architecture is not None and self.tokenizer is None:
            raise ValueError("a model from architecture has no tokenizer of its own; name a folder in tokenizer")

    @property
    def tokenizer_path(self) -> str:
        return self.tokenizer or str(self.pretrained)


def load_language_model(
    config: LanguageModelConfig, tokenizer: "PreTrainedTokenizerFast", *, device: torch.device | str = "cpu"
) -> "PreTrainedModel":
    """The model on a device, in evaluation mode, checked: conversations packed into a row do not see each other."""
    from transformers import AutoModelForCausalLM

    device = torch.device(device)
    attention = packed_attention.register()
    dtype = _DTYPES[config.dtype]
    if config.pretrained is not None:
        model = AutoModelForCausalLM.from_pretrained(
            config.pretrained,
            dtype=dtype,
            attn_implementation=attention,
            device_map=None if device.type == "cpu" else {"": device},
            revision=config.revision or "main",
            trust_remote_code=False,
            use_safetensors=True,
        )
    else:
        settings = model_settings(config.architecture or {}, tokenizer)
        with _random_state(config.seed, device), device:
            model = AutoModelForCausalLM.from_config(
                settings, dtype=dtype, attn_implementation=attention, trust_remote_code=False
            )
    if config.gradient_checkpointing:
        # Renamed in transformers 5.2x; the older name warns there.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    model.eval()
    check_language_model(model)
    return model


def model_settings(architecture: Mapping[str, Any], tokenizer: "PreTrainedTokenizerFast") -> "PretrainedConfig":
    """transformers' config of a description, with the tokenizer's vocabulary and marks. Unknown settings are errors."""
    from transformers import AutoConfig

    given = dict(architecture)
    model_type = given.pop("model_type")
    try:
        known = AutoConfig.for_model(model_type).to_dict()
    except ValueError:
        raise ValueError(f"architecture.model_type: transformers knows no {model_type!r}") from None
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean `{nearest[0]}`?" if nearest else ""
            raise ValueError(f"architecture.{name}: {model_type} has no such setting{hint}")
    marks = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return AutoConfig.for_model(model_type, **{**marks, **given})


def head_logits(
    model: "PreTrainedModel", hidden: Tensor, *, new_rows: Tensor | None = None, first_new: int = 0
) -> Tensor:
    """Logits (..., V) of hidden states (..., D), with what some families do to them.

    new_rows   (n, D) of tokens behind the base vocabulary, whose ids begin at `first_new`
    """
    logits = model.get_output_embeddings()(hidden)
    if new_rows is not None:
        logits = torch.cat([logits[..., :first_new], F.linear(hidden, new_rows.to(hidden.dtype))], dim=-1)
    settings = model.config
    if (scale := getattr(settings, "logit_scale", None)) is not None:
        logits = logits * scale
    if (divisor := getattr(settings, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(settings, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


@torch.no_grad()
def check_language_model(model: "PreTrainedModel") -> None:
    """ValueError when this model, packed, would not compute what it computes for one conversation at a time.

    A family that ignores the layout, or treats its logits in a way not known here, is found before any training.
    """
    ids_T = torch.arange(1, 6, device=model.device) % model.get_input_embeddings().weight.shape[0]
    positions_T = torch.tensor([0, 1, 2, 0, 1], device=model.device)
    offsets = torch.tensor([0, 3, 5], dtype=torch.int32, device=model.device)
    layout = AttentionLayout.within(offsets, (3, 2), is_causal=True)
    embeddings = model.get_input_embeddings()(ids_T[None])
    with torch.autocast(model.device.type, enabled=False):
        packed = packed_attention.packed_hidden(model.base_model, embeddings, positions_T[None], layout)
        ours = head_logits(model, packed).float()
        alone = [model(input_ids=ids_T[None, part], use_cache=False).logits for part in (slice(0, 3), slice(3, 5))]
    error = (ours - torch.cat(alone, dim=1).float()).abs().max().item()
    allowed = 1e-4 if model.dtype == torch.float32 else 0.05
    size = max(1.0, ours.abs().max().item())
    if not error <= allowed * size:
        raise ValueError(
            f"{type(model).__name__}: packed conversations differ from single ones by {error:.3g} in the logits "
            f"(allowed {allowed * size:.3g}); this family is not supported"
        )


@contextmanager
def _random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Draw inside the block from a seed, leaving torch's default generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def next_token_loss(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    parameters: tuple[Tensor, ...],
    *,
    vocab_size: int,
    z_loss: float = 0.0,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """Summed cross entropy (scalar, float32) of targets (M,) from hidden states (M, D).

    head        (C, D) -> logits (C, V); its trainable `parameters` must be named, frozen ones cost nothing
    z_loss      weight of log(sum exp logits)^2, which keeps logits from growing
    Gradients are made in the same pass over the chunks, so that no logits are kept or made twice.
    """
    wants_grad = torch.is_grad_enabled()
    trained = tuple(parameter for parameter in parameters if parameter.requires_grad)
    step = max(1, chunk_elements // vocab_size)
    return _ChunkedLoss.apply(hidden, targets, head, z_loss, step, wants_grad, *trained)


@torch.no_grad()
def next_token_losses(
    hidden: Tensor, targets: Tensor, head: Head, *, vocab_size: int, chunk_elements: int = CHUNK_ELEMENTS
) -> Tensor:
    """Cross entropy (M,) float32 of every target."""
    step = max(1, chunk_elements // vocab_size)
    parts = zip(hidden.split(step), targets.split(step), strict=True)
    losses = [F.cross_entropy(head(part).float(), wanted, reduction="none") for part, wanted in parts]
    return torch.cat(losses) if losses else hidden.new_zeros(0, dtype=torch.float32)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        head: Head,
        z_loss: float,
        step: int,
        wants_grad: bool,
        *parameters: Tensor,
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.zeros_like(hidden)
        # Only what trains: a frozen head of 128k rows has no gradient to hold.
        grads = [torch.zeros_like(parameter) for parameter in parameters]
        for start in range(0, hidden.shape[0], step):
            rows = slice(start, start + step)
            with torch.set_grad_enabled(wants_grad):
                # A graph of this chunk alone: it is gone, logits and all, before the next one is made.
                part = hidden[rows].detach().requires_grad_(wants_grad)
                loss = _summed_loss(head(part), targets[rows], z_loss)
            total += loss.detach()
            if wants_grad:
                found = torch.autograd.grad(loss, (part, *parameters))
                grad_hidden[rows] = found[0]
                for grad, more in zip(grads, found[1:], strict=True):
                    grad += more
        ctx.grads = (grad_hidden, *grads) if wants_grad else None
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the loss of a batch can be differentiated once")
        # In place: the gradients are as large as the head, and nobody needs them unscaled.
        grad_hidden, *grads = (grad.mul_(grad_total) for grad in ctx.grads)
        ctx.grads = None
        return grad_hidden, None, None, None, None, None, *grads


def _summed_loss(logits: Tensor, targets: Tensor, z_loss: float) -> Tensor:
    # Sums of exponentials over a vocabulary lose the small ones in half precision.
    logits = logits.float()
    loss = F.cross_entropy(logits, targets, reduction="sum")
    if z_loss > 0:
        loss = loss + z_loss * logits.logsumexp(-1).square().sum()
    return loss
