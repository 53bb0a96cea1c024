"""The published way of computing EgoM2P, written plainly, to hold our own way against. Same weights, same numbers.

All positions of all modalities are embedded on both sides, sorted by whether they are used and gathered to a fixed
number of slots; attention multiplies out every score and masks it with a dense mask; heads pick their rows with boolean
masks and make all logits at once; every step asks the device for every loss. Generation copies its whole state for each
guidance pass, runs the passes one after the other and sorts every row of logits. Nothing here is meant to be fast, and
nothing is slowed down: these are the costs of the published design (arXiv:2506.07886, 4M), not of its code.

B clips, L positions of all modalities, N encoder slots, M decoder slots, H heads, E width of a head, D width, V ids.
Masks are the published ones: True = ignored. `benchmarks/parity.py --only reference_like` compares it with fixtures.
"""

import copy
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egom2p.contracts import MaskedClip, ModalitySpec
from egom2p.data.budgets import draw_budgets
from egom2p.data.masking_config import MaskingConfig
from egom2p.data.token_set import TokenSet
from egom2p.layers.blocks import sincos_positions
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.losses import LossType
from egom2p.models.weights import to_reference_state_dict

DenseBatch = Mapping[str, Mapping[str, Tensor]]
"""Modality -> tensor (B, ...) int64 ids of all positions; input_mask, target_mask (B, L) bool; decoder_attention_mask
(B, L) int: at the first target the number of targets of the modality, else 0."""

_REFERENCE_VOCAB_SIZE = 256


@dataclass
class Slots:
    """One side: a fixed number of slots, used ones first. modality is -1 and values are 0 where ignored."""

    tokens: Tensor  # (B, N, D)
    positions: Tensor  # (B, N, D): position and modality embedding
    ids: Tensor  # (B, N)
    modality: Tensor  # (B, N): index in the order of the model
    is_ignored: Tensor  # (B, N)
    may_not_attend: Tensor  # (B, N, N) of the decoder, (B, 1, N) of the encoder


class ReferenceLike(nn.Module):
    """Parameters carry the published names. `separated`: decoder attention within a modality only."""

    def __init__(self, config: ModelConfig, specs: Sequence[ModalitySpec], *, separated: bool = True) -> None:
        super().__init__()
        self.config, self.specs, self.separated = config, tuple(specs), separated
        self.names = [spec.name for spec in specs]
        self.encoder_embeddings = nn.ModuleDict({spec.name: _Embedding(spec, config) for spec in specs})
        self.decoder_embeddings = nn.ModuleDict({spec.name: _Embedding(spec, config) for spec in specs})
        for name, embedding in self.decoder_embeddings.items():
            embedding.mod_emb = self.encoder_embeddings[name].mod_emb
            embedding.to_logits = nn.Linear(config.dim, embedding.token_emb.num_embeddings, bias=False)
            if config.share_embeddings:
                embedding.to_logits.weight = embedding.token_emb.weight
        self.encoder = nn.ModuleList(_Block(config, has_context=False) for _ in range(config.encoder_depth))
        self.encoder_norm = _norm(config.dim, config)
        self.decoder_proj_context = nn.Linear(config.dim, config.dim)
        self.decoder = nn.ModuleList(_Block(config, has_context=True) for _ in range(config.decoder_depth))
        self.decoder_norm = _norm(config.dim, config)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.register_tokens = (
            nn.Parameter(torch.zeros(1, config.num_registers, config.dim)) if config.num_registers else None
        )

    @classmethod
    def of(cls, model: EgoM2P) -> "ReferenceLike":
        """With a copy of the weights of one of our models."""
        reference = cls(model.config, model.specs)
        reference.load(to_reference_state_dict(model))
        return reference

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Weights under the published names; fixed tables among them are ignored."""
        missing = self.load_state_dict(dict(weights), strict=False).missing_keys
        if missing:
            raise ValueError(f"the weights have no {missing[0]}")

    def forward(
        self,
        batch: DenseBatch,
        *,
        num_inputs: int,
        num_targets: int,
        order: Sequence[str] | None = None,
        loss_type: LossType = "mod",
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its term for each modality. order: of the modalities in the decoder; None: drawn, as published."""
        inputs = self.encoder_slots(batch, num_inputs)
        targets = self.decoder_slots(batch, num_targets, order or random.sample(self.names, len(self.names)))
        hidden_BMD = self.decode(targets, self.context(inputs), inputs.may_not_attend)
        terms, weights = {}, {}
        for number, name in enumerate(self.names):
            logits_RV = self.logits(hidden_BMD[targets.modality == number], name)
            ids_R = targets.ids[targets.modality == number]
            terms[name] = F.cross_entropy(logits_RV, ids_R) if len(ids_R) else hidden_BMD.sum() * 0
            weights[name] = logits_RV.numel()
            if loss_type == "weighted_mod":
                terms[name] = terms[name] * (math.log(_REFERENCE_VOCAB_SIZE) / math.log(logits_RV.shape[1]))
        if loss_type == "token":
            return sum(terms[name] * weights[name] for name in terms) / sum(weights.values()), terms
        return sum(terms.values()) / len(terms), terms

    def encoder_slots(self, batch: DenseBatch, num_slots: int) -> Slots:
        slots = self._gathered(batch, self.encoder_embeddings, "input_mask", num_slots, self.names)
        if self.register_tokens is not None:
            count = self.register_tokens.shape[1]
            slots.tokens = torch.cat([self.register_tokens.expand(len(slots.tokens), -1, -1), slots.tokens], dim=1)
            slots.positions = F.pad(slots.positions, (0, 0, count, 0))
            slots.is_ignored = F.pad(slots.is_ignored, (count, 0), value=False)
        slots.may_not_attend = slots.is_ignored[:, None]
        return slots

    def decoder_slots(self, batch: DenseBatch, num_slots: int, order: Sequence[str]) -> Slots:
        slots = self._gathered(batch, self.decoder_embeddings, "target_mask", num_slots, order)
        slots.tokens = torch.where(slots.is_ignored[..., None], 0.0, self.mask_token)
        return slots

    def _gathered(
        self, batch: DenseBatch, embeddings: nn.ModuleDict, mask: str, num_slots: int, order: Sequence[str]
    ) -> Slots:
        """Everything is embedded and laid side by side; then used slots are sorted to the front and gathered."""
        present = [name for name in order if name in batch]
        parts = {name: batch[name]["tensor"].flatten(1) for name in present}
        tokens_BLD = torch.cat([embeddings[name].token_emb(ids) for name, ids in parts.items()], dim=1)
        coded = [(embeddings[name].pos_emb + embeddings[name].mod_emb).expand(len(ids), -1, -1)
                 for name, ids in parts.items()]  # fmt: skip
        positions_BLD = torch.cat(coded, dim=1)
        modality_BL = torch.cat([torch.full_like(ids, self.names.index(name)) for name, ids in parts.items()], dim=1)
        is_ignored_BL = torch.cat([batch[name][mask] for name in present], dim=1)
        kept_BN = is_ignored_BL.int().argsort(dim=1, stable=True)[:, :num_slots]
        wide_BND = kept_BN[..., None].expand(-1, -1, tokens_BLD.shape[-1])
        is_ignored_BN = is_ignored_BL.gather(1, kept_BN)
        tokens_BND, positions_BND = tokens_BLD.gather(1, wide_BND), positions_BLD.gather(1, wide_BND)
        tokens_BND[is_ignored_BN], positions_BND[is_ignored_BN] = 0.0, 0.0
        ids_BN = torch.cat(list(parts.values()), dim=1).gather(1, kept_BN).masked_fill(is_ignored_BN, 0)
        modality_BN = modality_BL.gather(1, kept_BN)
        may_not_attend_BNN = is_ignored_BN[:, None]
        if mask == "target_mask":
            counts_BL = torch.cat([batch[name]["decoder_attention_mask"] for name in present], dim=1)
            may_not_attend_BNN = self._decoder_mask(counts_BL.gather(1, kept_BN), modality_BN)
        modality_BN = modality_BN.masked_fill(is_ignored_BN, -1)
        return Slots(tokens_BND, positions_BND, ids_BN, modality_BN, is_ignored_BN, may_not_attend_BNN)

    def _decoder_mask(self, counts_BM: Tensor, modality_BM: Tensor) -> Tensor:
        """(B, M, M): slots see those of their own modality (and without `separated` of the modalities before it)."""
        size = counts_BM.shape[1]
        number_BMM = torch.arange(size, device=counts_BM.device).repeat(len(counts_BM), size, 1)
        visible_BM1 = counts_BM.cumsum(1)[..., None]
        if self.config.causal_decoder:
            visible_BM1 = torch.arange(1, size + 1, device=counts_BM.device)[None, :, None]
        may_not_attend_BMM = number_BMM >= visible_BM1
        if self.separated:
            may_not_attend_BMM |= modality_BM[:, :, None] != modality_BM[:, None, :]
        return may_not_attend_BMM

    def encode(self, inputs: Slots) -> Tensor:
        """(B, N, D) after the final norm."""
        hidden_BND = inputs.tokens + inputs.positions
        for block in self.encoder:
            hidden_BND = block(hidden_BND, inputs.may_not_attend)
        return self.encoder_norm(hidden_BND)

    def context(self, inputs: Slots) -> Tensor:
        return self.decoder_proj_context(self.encode(inputs)) + inputs.positions

    def decode(self, targets: Slots, context: Tensor, context_mask: Tensor) -> Tensor:
        """(B, M, D) after the final norm."""
        hidden_BMD = targets.tokens + targets.positions
        for block in self.decoder:
            hidden_BMD = block(hidden_BMD, targets.may_not_attend, context, context_mask)
        return self.decoder_norm(hidden_BMD)

    def logits(self, hidden: Tensor, name: str) -> Tensor:
        return self.decoder_embeddings[name].to_logits(hidden)

    def step_logits(self, batch: DenseBatch, target: str, positions: Tensor) -> Tensor:
        """(B, n, V) of positions (B, n) of the target, from all that the batch holds as input."""
        num_inputs = int(sum((~part["input_mask"]).sum(1) for part in batch.values()).max())
        inputs = self.encoder_slots(batch, num_inputs)
        embedding = self.decoder_embeddings[target]
        coded_BLD = (embedding.pos_emb + embedding.mod_emb).expand(len(positions), -1, -1)
        coded_BnD = coded_BLD.gather(1, positions[..., None].expand(-1, -1, coded_BLD.shape[-1]))
        is_ignored_Bn = torch.zeros_like(positions, dtype=torch.bool)
        targets = Slots(self.mask_token, coded_BnD, positions, positions, is_ignored_Bn, is_ignored_Bn[:, None])
        return self.logits(self.decode(targets, self.context(inputs), inputs.may_not_attend), target)

    @torch.no_grad()
    def generate(
        self,
        prompt: Mapping[str, Tensor],
        target: str,
        *,
        num_steps: int,
        guidance: float = 1.0,
        top_p: float = 0.8,
        temperature: float = 0.01,
        generator: torch.Generator | None = None,
        positions: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """ROAR: ids (B, L) of the target, from whole modalities (B, L); random positions unless steps' are given."""
        batch = {name: _state(ids, is_known=True) for name, ids in prompt.items()}
        num_clips, length = len(next(iter(prompt.values()))), self.decoder_embeddings[target].pos_emb.shape[1]
        empty_BL = torch.zeros(num_clips, length, dtype=torch.int64, device=self.mask_token.device)
        batch[target] = _state(empty_BL, is_known=False)
        if positions is None:
            order_BL = torch.rand(num_clips, length, generator=generator).to(empty_BL.device).argsort(dim=1)
            positions = order_BL.tensor_split(num_steps, dim=1)
        for positions_Bn in positions:
            logits_BnV = self.step_logits(copy.deepcopy(batch), target, positions_Bn)
            if guidance != 1.0:
                alone = {target: copy.deepcopy(batch[target])}
                base_BnV = self.step_logits(alone, target, positions_Bn)
                logits_BnV = base_BnV + (logits_BnV - base_BnV) * guidance
            ids_Bn = _drawn(logits_BnV, top_p, temperature, generator)
            batch[target]["tensor"].scatter_(1, positions_Bn, ids_Bn)
            batch[target]["input_mask"].scatter_(1, positions_Bn, False)
        return batch[target]["tensor"]


class _Embedding(nn.Module):
    def __init__(self, spec: ModalitySpec, config: ModelConfig) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(spec.vocab_size, config.dim)
        self.mod_emb = nn.Parameter(torch.zeros(1, 1, config.dim))
        codes_LD = sincos_positions(spec.grid, config.dim, period=config.position_period, scale=config.position_scale)
        self.register_buffer("pos_emb", codes_LD[None], persistent=False)


class _Attention(nn.Module):
    """Every score of every pair, kept for the backward pass. With a context keys and values come from there."""

    def __init__(self, config: ModelConfig, *, has_context: bool) -> None:
        super().__init__()
        dim, use_bias = config.dim, config.use_bias
        self.num_heads = config.num_heads
        if has_context:
            self.q, self.kv = nn.Linear(dim, dim, bias=use_bias), nn.Linear(dim, 2 * dim, bias=use_bias)
        else:
            self.qkv = nn.Linear(dim, 3 * dim, bias=use_bias)
        head_dim = dim // config.num_heads
        self.q_norm, self.k_norm = (_norm(head_dim, config) if config.qk_norm else nn.Identity() for _ in range(2))
        self.proj = nn.Linear(dim, dim, bias=use_bias)

    def forward(self, hidden: Tensor, may_not_attend: Tensor, context: Tensor | None = None) -> Tensor:
        rows = self.qkv(hidden).chunk(3, -1) if context is None else (self.q(hidden), *self.kv(context).chunk(2, -1))
        query, key, value = (row.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for row in rows)
        query_BHNE, key_BHPE = self.q_norm(query), self.k_norm(key)
        scores_BHNP = (query_BHNE @ key_BHPE.transpose(-2, -1)) * query_BHNE.shape[-1] ** -0.5
        # Not minus infinity: a row that may attend to nothing averages everything.
        scores_BHNP = scores_BHNP.masked_fill(may_not_attend[:, None], torch.finfo(scores_BHNP.dtype).min)
        return self.proj((scores_BHNP.softmax(-1) @ value).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.mlp_dim, bias=config.use_bias)
        self.fc2 = nn.Linear(config.mlp_dim, config.dim, bias=config.use_bias)
        is_gated = config.activation == "swiglu"
        self.fc3 = nn.Linear(config.dim, config.mlp_dim, bias=config.use_bias) if is_gated else None

    def forward(self, hidden: Tensor) -> Tensor:
        if self.fc3 is None:
            return self.fc2(F.gelu(self.fc1(hidden)))
        return self.fc2(F.silu(self.fc1(hidden)) * self.fc3(hidden))


class _Block(nn.Module):
    def __init__(self, config: ModelConfig, *, has_context: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(config.dim, config), _norm(config.dim, config)
        if has_context:
            self.self_attn = _Attention(config, has_context=False)
            self.query_norm, self.context_norm = _norm(config.dim, config), _norm(config.dim, config)
            self.cross_attn = _Attention(config, has_context=True)
        else:
            self.attn = _Attention(config, has_context=False)
        self.mlp = _Mlp(config)

    def forward(
        self, hidden: Tensor, may_not_attend: Tensor, context: Tensor | None = None, context_mask: Tensor | None = None
    ) -> Tensor:
        attention = self.attn if context is None else self.self_attn
        hidden = hidden + attention(self.norm1(hidden), may_not_attend)
        if context is not None:
            hidden = hidden + self.cross_attn(self.query_norm(hidden), context_mask, self.context_norm(context))
        return hidden + self.mlp(self.norm2(hidden))


def _norm(dim: int, config: ModelConfig) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-6, bias=config.use_bias)


def _state(ids: Tensor, *, is_known: bool) -> dict[str, Tensor]:
    return {"tensor": ids.clone(), "input_mask": torch.full(ids.shape, not is_known, device=ids.device)}


def _drawn(logits_BnV: Tensor, top_p: float, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Ids (B, n), drawn from the most likely ones that together have `top_p`: every row is sorted whole. At temperature
    0 the best ones."""
    if temperature == 0:
        return logits_BnV.argmax(-1)
    sorted_BnV, order_BnV = (logits_BnV / temperature).sort(dim=-1, descending=True)
    share_BnV = sorted_BnV.softmax(-1)
    sorted_BnV[share_BnV.cumsum(-1) - share_BnV > top_p] = -math.inf
    kept_BnV = torch.full_like(logits_BnV, -math.inf).scatter(-1, order_BnV, sorted_BnV)
    return kept_BnV.softmax(-1).flatten(0, 1).multinomial(1, generator=generator).view(logits_BnV.shape[:2])


def dense_batch(clips: Sequence[MaskedClip], specs: Sequence[ModalitySpec]) -> DenseBatch:
    """Masked clips as the published loader ships them: every position of every modality, used or not."""
    batch = {}
    for spec in specs:
        size = len(clips), spec.num_tokens
        ids_BL, counts_BL = torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int32)
        is_unused = {side: torch.ones(size, dtype=torch.bool) for side in ("input", "target")}
        for number, clip in enumerate(clips):
            for side in ("input", "target"):
                positions = getattr(clip, f"{side}_positions").get(spec.name)
                if positions is not None and len(positions):
                    rows = torch.as_tensor(positions, dtype=torch.int64)
                    ids_BL[number, rows] = torch.as_tensor(getattr(clip, f"{side}_ids")[spec.name]).long()
                    is_unused[side][number, rows] = False
                    if side == "target":
                        counts_BL[number, rows.min()] = len(rows)
        masks = {"input_mask": is_unused["input"], "target_mask": is_unused["target"]}
        batch[spec.name] = {"tensor": ids_BL, **masks, "decoder_attention_mask": counts_BL}
    return batch


def plain_dense_clips(
    tokens: TokenSet, specs: Sequence[ModalitySpec], masking: MaskingConfig, *, batch_size: int, seed: int
) -> Iterator[DenseBatch]:
    """Endless batches as published: masks over all positions of every modality, by sorting noise; then stacked."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    alphas = masking.alphas.alphas_mixture
    index = 0
    while True:
        clips = []
        for _ in range(batch_size):
            clip = tokens[index % len(tokens)]
            index += 1
            component = rng.integers(masking.alphas.num_components)
            limits = [spec.num_tokens for spec in specs]
            inputs = draw_budgets(
                masking.max_input_tokens, [alphas[spec.name].input_alphas[component] for spec in specs], limits,
                policy=masking.policy, rng=rng,
            )  # fmt: skip
            room = [limit - count for limit, count in zip(limits, inputs, strict=True)]
            targets = draw_budgets(
                masking.max_target_tokens, [alphas[spec.name].target_alphas[component] for spec in specs], room,
                policy=masking.policy, rng=rng,
            )  # fmt: skip
            counts = zip(specs, inputs, targets, strict=True)
            clips.append({spec.name: _masked_modality(clip.tokens[spec.name], *numbers, generator)
                          for spec, *numbers in counts})  # fmt: skip
        yield {spec.name: {key: torch.stack([clip[spec.name][key] for clip in clips]) for key in clips[0][spec.name]}
               for spec in specs}  # fmt: skip


def _masked_modality(
    ids: np.ndarray, num_inputs: int, num_targets: int, generator: torch.Generator
) -> dict[str, Tensor]:
    order_L = torch.rand(len(ids), generator=generator).argsort()
    is_unused = torch.ones(2, len(ids), dtype=torch.bool)
    is_unused[0, order_L[:num_inputs]] = False
    is_unused[1, order_L[num_inputs : num_inputs + num_targets]] = False
    counts_L = torch.zeros(len(ids), dtype=torch.int32)
    counts_L[is_unused[1].int().argmin()] = num_targets
    masks = {"input_mask": is_unused[0], "target_mask": is_unused[1]}
    return {"tensor": torch.tensor(ids, dtype=torch.int64), **masks, "decoder_attention_mask": counts_L}


def train_step(
    model: ReferenceLike,
    optimizer: torch.optim.Optimizer,
    batch: DenseBatch,
    *,
    num_inputs: int,
    num_targets: int,
    dtype: torch.dtype = torch.float32,
) -> dict[str, float]:
    """One step as published: gradients clipped at norm 1, and the host waits for every number it logs."""
    optimizer.zero_grad()
    device = model.mask_token.device.type
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        loss, terms = model(batch, num_inputs=num_inputs, num_targets=num_targets)
    logged = {"loss": loss.item(), **{name: term.item() for name, term in terms.items()}}
    loss.backward()
    logged["grad_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
    optimizer.step()
    return logged


def published_adamw(model: ReferenceLike, lr: float) -> torch.optim.AdamW:
    """Decay on everything with two axes or more."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8)
