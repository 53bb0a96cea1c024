"""Text in the model, against plain code written from the description: one clip at a time, dense masks, no packing."""

import math

import numpy as np
import pytest
import torch
from packing import TINY_SPECS, pack

from egom2p.contracts import ModalitySpec, TokenClip, TokenGrid
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.generate import Sampler
from egom2p.models.sampling import TargetPlan

TEXT = ModalitySpec(
    "tok_words", "sequence", "text", TokenGrid((9,)), 17, "words", pad_id=0, eos_id=1, sentinel_ids=(2, 3, 4)
)
SPECS = (*TINY_SPECS, TEXT)


def tiny_model(**options) -> EgoM2P:
    torch.manual_seed(0)
    sizes = {"dim": 32, "num_heads": 4, "encoder_depth": 2, "decoder_depth": 2, "embedding_std": 0.5}
    return EgoM2P(ModelConfig(**sizes | options), SPECS).eval()


def clip_of(rng: np.random.Generator, *, words: bool = True, motion: bool = True) -> tuple[dict, dict]:
    """Input `a S0 d S1`, target `b c S1 e eos` fed with `S0 b c S1 e`; some positions of the other modalities."""
    inputs = {"tok_smell": (rng.integers(0, 13, 5), np.array([1, 4, 9, 16, 23]))}
    targets = {"tok_smell": (rng.integers(0, 13, 3), np.array([0, 7, 20]))}
    if motion:
        targets["tok_motion"] = (rng.integers(0, 7, 4), np.array([0, 2, 3, 5]))
    if words:
        a, b, c, d, e = rng.integers(5, 17, 5)
        inputs["tok_words"] = ([a, 2, d, 3], np.arange(4))
        targets["tok_words"] = ([b, c, 3, e, 1], np.arange(5), [2, b, c, 3, e])
    return inputs, targets


# The plain implementation: weights of the state dict, one clip, loops over heads.


def plain_linear(state, name, rows):
    bias = state.get(f"{name}.bias")
    return rows @ state[f"{name}.weight"].T + (0 if bias is None else bias)


def plain_norm(state, name, rows):
    centred = rows - rows.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * state[f"{name}.weight"]
    return scaled + state.get(f"{name}.bias", 0)


def plain_attention(state, name, queries, keys, values, may_see, config):
    """may_see (queries, keys) bool; a query that may see nothing gets 0."""
    size, heads = config.dim // config.num_heads, []
    for head in range(config.num_heads):
        part = slice(head * size, (head + 1) * size)
        q, k = queries[:, part], keys[:, part]
        if config.qk_norm:
            q, k = plain_norm(state, f"{name}.q_norm", q), plain_norm(state, f"{name}.k_norm", k)
        rows = []
        for row in range(len(q)):
            seen = [column for column in range(len(k)) if may_see[row, column]]
            if not seen:
                rows.append(torch.zeros(size))
                continue
            share = torch.softmax((k[seen] @ q[row]) / math.sqrt(size), dim=0)
            rows.append(share @ values[seen][:, part])
        heads.append(torch.stack(rows))
    return plain_linear(state, f"{name}.proj", torch.cat(heads, dim=1))


def plain_mlp(state, name, rows, config):
    first = plain_linear(state, f"{name}.fc1", rows)
    if config.activation == "gelu":
        hidden = first * 0.5 * (1 + torch.erf(first / math.sqrt(2)))
    else:
        hidden = first * torch.sigmoid(first) * plain_linear(state, f"{name}.fc3", rows)
    return plain_linear(state, f"{name}.fc2", hidden)


def plain_self_attention(state, name, rows, may_see, config):
    q, k, v = plain_linear(state, f"{name}.qkv", rows).chunk(3, dim=1)
    return plain_attention(state, name, q, k, v, may_see, config)


def plain_position(position, length, config, grid):
    """The sin-cos code of one position of a text or track, and of a (t, h, w) grid."""
    period, scale, dim = config.position_period, config.position_scale, config.dim
    code = torch.zeros(dim)
    if len(grid) == 1:
        half = dim // 2
        for i in range(half):
            angle = position * scale / period ** (i / half)
            code[i], code[half + i] = math.sin(angle), math.cos(angle)
        return code
    position_of = (position // (grid[1] * grid[2]), position // grid[2] % grid[1], position % grid[2])
    part = dim // 6
    for axis in range(3):
        for i in range(part):
            angle = position_of[axis] * scale / period ** (i / part)
            code[2 * (axis * part + i)], code[2 * (axis * part + i) + 1] = math.sin(angle), math.cos(angle)
    return code


def plain_losses(model: EgoM2P, clip: tuple[dict, dict]) -> dict[str, float]:
    """Summed cross entropy of one clip by modality."""
    config, state = model.config, {name: tensor.detach() for name, tensor in model.state_dict().items()}
    first_id = dict(zip(model.modalities, np.cumsum([0, *[spec.vocab_size for spec in SPECS]]), strict=False))
    of_modality = dict(zip(model.modalities, state["positions.modality_table"], strict=True))
    head = state["decoder_embeddings.head_table"]
    fed_table = state.get("decoder_embeddings.token_table", head)
    inputs, targets = clip
    hidden, where = [], []
    for spec in SPECS:
        for ident, position in zip(*inputs.get(spec.name, ((), ())), strict=True):
            where.append(plain_position(int(position), 0, config, spec.grid.shape) + of_modality[spec.name])
            hidden.append(state["encoder_embeddings.token_table"][first_id[spec.name] + int(ident)] + where[-1])
    where, hidden = torch.stack(where), torch.stack(hidden)
    everything = np.ones((len(hidden), len(hidden)), bool)
    for n in range(config.encoder_depth):
        name = f"encoder.{n}"
        rows = plain_norm(state, f"{name}.norm1", hidden)
        hidden = hidden + plain_self_attention(state, f"{name}.attn", rows, everything, config)
        hidden = hidden + plain_mlp(state, f"{name}.mlp", plain_norm(state, f"{name}.norm2", hidden), config)
    context = plain_linear(state, "decoder_proj_context", plain_norm(state, "encoder_norm", hidden)) + where
    hidden, rows_of, truth = [], [], []
    for spec in SPECS:
        ids, positions, *fed = targets.get(spec.name, ((), ()))
        queries = fed[0] if fed else [None] * len(ids)
        for ident, position, query in zip(ids, positions, queries, strict=True):
            asked = state["decoder_embeddings.mask_token"][0]
            if query is not None:
                asked = fed_table[first_id[spec.name] + int(query)]
            hidden.append(asked + plain_position(int(position), 0, config, spec.grid.shape) + of_modality[spec.name])
            rows_of.append((spec, int(position)))
            truth.append(int(ident))
    hidden = torch.stack(hidden)
    may_see = np.array(
        [[a.name == b.name and (a.kind != "sequence" or q <= p) for b, q in rows_of] for a, p in rows_of]
    )
    for n in range(config.decoder_depth):
        name = f"decoder.{n}"
        rows = plain_norm(state, f"{name}.norm1", hidden)
        hidden = hidden + plain_self_attention(state, f"{name}.self_attn", rows, may_see, config)
        k, v = plain_linear(state, f"{name}.cross_attn.kv", plain_norm(state, f"{name}.context_norm", context)).chunk(
            2, 1
        )
        q = plain_linear(state, f"{name}.cross_attn.q", plain_norm(state, f"{name}.query_norm", hidden))
        all_seen = np.ones((len(q), len(k)), bool)
        hidden = hidden + plain_attention(state, f"{name}.cross_attn", q, k, v, all_seen, config)
        hidden = hidden + plain_mlp(state, f"{name}.mlp", plain_norm(state, f"{name}.norm2", hidden), config)
    hidden = plain_norm(state, "decoder_norm", hidden)
    sums = dict.fromkeys(model.modalities, 0.0)
    for row, (spec, _), ident in zip(hidden, rows_of, truth, strict=True):
        logits = head[first_id[spec.name] : first_id[spec.name] + spec.vocab_size] @ row
        sums[spec.name] += (torch.logsumexp(logits, 0) - logits[ident]).item()
    return sums


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "gelu", "use_bias": True},
        {"qk_norm": True, "position_period": 20.0, "position_scale": 0.5},
        {"share_embeddings": False},
    ],
    ids=["swiglu", "gelu", "qk-norm", "untied"],
)
def test_the_packed_model_equals_the_plain_one(options, rng):
    model = tiny_model(**options)
    clips = [clip_of(rng), clip_of(rng, words=False), clip_of(rng, motion=False)]
    output = model(pack(clips, SPECS))
    plain = [plain_losses(model, clip) for clip in clips]
    for name, found in zip(output.names, output.sums.tolist(), strict=True):
        wanted = sum(losses[name] for losses in plain)
        assert abs(found - wanted) <= 1e-5 * max(1.0, wanted), name
    assert output.counts == (8, 9, 10)


# Generation is the same model, one word at a time.


def words_of(rng: np.random.Generator, length: int) -> np.ndarray:
    ids = np.concatenate([rng.integers(5, 17, length), [TEXT.eos_id]]).astype(np.int32)
    return TEXT.padded(ids)


def test_likelihood_of_a_text_is_that_of_training(rng):
    model = tiny_model()
    text = words_of(rng, 5)
    smell = rng.integers(0, 13, 24).astype(np.int32)
    found, is_right = Sampler(model).log_likelihood(
        [TokenClip("a", {"tok_smell": smell})], TargetPlan(target="tok_words"), [text]
    )[0]
    assert len(found) == len(is_right) == 6, "padding is not part of a text"
    targets = {"tok_words": (text[:6], np.arange(6), [TEXT.sentinel_ids[0], *text[:5]])}
    wanted = -plain_losses(model, ({"tok_smell": (smell, np.arange(24))}, targets))["tok_words"]
    assert found.sum() == pytest.approx(wanted, rel=1e-5)


def test_a_text_is_written_word_by_word_from_its_own_likelihood(rng):
    """Greedy words are the argmax under everything before them, computed from scratch each time."""
    model = tiny_model()
    prompt = TokenClip("a", {"tok_smell": rng.integers(0, 13, 24).astype(np.int32)})
    made = Sampler(model).generate([prompt], [TargetPlan(target="tok_words")], [0])[0].tokens["tok_words"]
    before = np.zeros(0, np.int32)
    for word in made:
        fed = np.concatenate([[TEXT.sentinel_ids[0]], before])
        targets = {"tok_words": (np.zeros(len(fed)), np.arange(len(fed)), fed)}
        batch = pack([({"tok_smell": (prompt.tokens["tok_smell"], np.arange(24))}, targets)], SPECS)
        hidden = model.decode(batch, model.encode(batch))
        assert model.logits(hidden[-1], SPECS.index(TEXT)).argmax().item() == word
        before = np.concatenate([before, [word]]).astype(np.int32)


def test_padding_and_end_of_a_condition_are_not_shown(rng):
    """Training never shows them, whoever pads."""
    model, sampler = tiny_model(), None
    text, plan = words_of(rng, 4), TargetPlan(target="tok_motion", num_steps=2)
    answers = []
    for ids in (text, text[:5], text[:4]):
        sampler = Sampler(model)
        answers.append(sampler.logits([TokenClip("a", {"tok_words": ids})], plan, [np.arange(6)])[0])
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


def test_the_beginning_of_a_text_is_continued_and_a_whole_one_stays(rng):
    model, plan = tiny_model(), TargetPlan(target="tok_words")
    start = np.array([7, 9, -1, -1, -1], np.int32)
    made = Sampler(model).generate([TokenClip("a", {"tok_words": start})], [plan], [0])[0].tokens["tok_words"]
    assert made[:2].tolist() == [7, 9] and len(made) > 2
    whole = words_of(rng, 4)
    kept = Sampler(model).generate([TokenClip("a", {"tok_words": whole})], [plan], [0])[0].tokens["tok_words"]
    assert np.array_equal(TEXT.padded(kept), whole)
