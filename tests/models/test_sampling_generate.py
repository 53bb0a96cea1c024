"""The sampler on tiny invented modalities: schemes, seeds, batches, guidance, chains."""

import numpy as np
import pytest
import torch
from spy import BlockingCopies, Spy
from torch import nn

from egom2p.contracts import ModalitySpec, TokenClip, TokenGrid
from egom2p.models import generate, prompt_answers
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.generate import Sampler
from egom2p.models.sampling import TargetPlan
from egom2p.models.written_tokens import WrittenTokens

_SPECS = (
    ModalitySpec("tok_smell", "grid", "generic", TokenGrid((3, 2, 4)), 13, "smell"),
    ModalitySpec("tok_sound", "track", "generic", TokenGrid((6,)), 7, "sound"),
    ModalitySpec("tok_touch", "track", "generic", TokenGrid((5,)), 11, "touch"),
    ModalitySpec("tok_words", "sequence", "text", TokenGrid((8,)), 9, "words", pad_id=0, eos_id=1),
)


class _MeanModel(nn.Module):
    """Answers depend on everything seen, the position, and what else is asked; nothing learned. Counts its work."""

    def __init__(self, num_registers: int = 0) -> None:
        super().__init__()
        self.specs = _SPECS
        self.config = type("Config", (), {"num_registers": num_registers})()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.token = nn.ModuleList([nn.Embedding(spec.vocab_size + 1, 16) for spec in _SPECS])
            self.position, self.kind = nn.Embedding(32, 16), nn.Embedding(5, 16)
            self.head = nn.ModuleList([nn.Linear(16, spec.vocab_size) for spec in _SPECS])
        self.num_encoded = self.num_decoded = 0

    def encode(self, batch):
        self.num_encoded += batch.num_clips
        rows = [
            torch.tanh(
                (self.token[kind](ident.long()) if kind < len(_SPECS) else 0)
                + self.position(position.long())
                + self.kind(kind.long())
            )
            for ident, position, kind in zip(batch.input_ids, batch.input_position, batch.input_modality, strict=True)
        ]
        return torch.stack(rows) if rows else torch.zeros(0, 16)

    def decode(self, batch, context_ND):
        self.num_decoded += batch.num_clips
        answers = []
        for clip in range(batch.num_clips):
            seen = context_ND[batch.input_offsets[clip] : batch.input_offsets[clip + 1]]
            start, end = batch.target_offsets[clip], batch.target_offsets[clip + 1]
            position, kind = batch.target_position[start:end].long(), batch.target_modality[start:end].long()
            fed = [
                self.token[k](q.long()) if q >= 0 else torch.zeros(16)
                for k, q in zip(kind, batch.query_ids[start:end], strict=True)
            ]
            own = self.position(position) + self.kind(kind) + (torch.stack(fed) if fed else 0)
            mean = seen.mean(0) if len(seen) else torch.zeros(16)
            answers.append(torch.tanh(own + 3 * mean + 0.3 * own.mean(0)))
        return torch.cat(answers)

    def logits(self, hidden, modality):
        return 4 * self.head[modality](hidden)


@pytest.fixture
def model():
    return _MeanModel()


def _prompt(key: str, rng: np.random.Generator, names: tuple[str, ...] = ("tok_smell",)) -> TokenClip:
    tokens = {
        spec.name: rng.integers(0, spec.vocab_size, spec.num_tokens).astype(np.int32)
        for spec in _SPECS
        if spec.name in names
    }
    return TokenClip(key, tokens)


_PLANS = [
    TargetPlan(target="tok_sound", scheme="roar", num_steps=3, temperature=0.8),
    TargetPlan(target="tok_sound", scheme="maskgit", num_steps=3, temperature=1.0, guidance=2.0),
    TargetPlan(target="tok_sound", scheme="maskgit", num_steps=4, temperature=1.0, rewrite_fraction=0.4),
    TargetPlan(target="tok_sound", scheme="autoregressive", temperature=1.0, top_p=0.9),
    TargetPlan(target="tok_sound", num_steps=2, temperature=1.0, token_schedule="cosine", top_k=3, guidance=0.5),
    TargetPlan(target="tok_sound", num_steps=2, temperature=1.0, max_condition_tokens=5),
    TargetPlan(target="tok_words", temperature=1.0),
]


@pytest.mark.parametrize("plan", _PLANS)
def test_a_clip_alone_equals_the_same_clip_in_a_batch(model, rng, plan):
    prompts = [_prompt("a", rng), _prompt("b", rng, ("tok_smell", "tok_touch")), _prompt("c", rng, ())]
    plans = [plan, TargetPlan(target="tok_touch", temperature=1.0)]
    together = Sampler(model).generate([*prompts, prompts[0]], plans, [3, 4, 5, 9])
    for number, seed in enumerate((3, 4, 5)):
        alone = Sampler(model).generate([prompts[number]], plans, [seed])[0]
        assert set(alone.tokens) == set(together[number].tokens)
        for name, ids in alone.tokens.items():
            assert np.array_equal(ids, together[number].tokens[name]), name


@pytest.mark.parametrize("plan", _PLANS)
def test_a_host_that_looks_at_no_step_gets_the_same_tokens(model, rng, plan):
    """As on a GPU: handles stand for what only the device knows, positions of MaskGIT included."""
    prompts = [_prompt("a", rng), _prompt("b", rng, ("tok_smell", "tok_touch")), _prompt("c", rng, ("tok_sound",))]
    prompts[1].tokens["tok_sound"] = np.array([3, -1, 2, -1, -1, -1], np.int32)
    plans = [plan, TargetPlan(target="tok_touch", temperature=1.0, top_p=0.99, num_steps=2)]
    wanted = Sampler(model).generate(prompts + prompts[:1], plans, [3, 4, 5, 9])
    found = Sampler(model, asks=False).generate(prompts + prompts[:1], plans, [3, 4, 5, 9])
    for one, other in zip(found, wanted, strict=True):
        assert {name: ids.tolist() for name, ids in one.tokens.items()} == {
            name: ids.tolist() for name, ids in other.tokens.items()
        }


@pytest.mark.parametrize("scheme", ["roar", "maskgit", "autoregressive", "frames"])
def test_a_generation_planned_ahead_asks_for_nothing_but_its_tokens(rng, scheme):
    """As on a GPU, with a real model: one answer is waited for, at the end, and every copy goes without waiting."""
    specs = _SPECS[:3]
    model = EgoM2P(ModelConfig(dim=24, encoder_depth=1, decoder_depth=1, num_heads=2), specs)
    tokens = {"tok_smell": rng.integers(0, 13, 24).astype(np.int32)}
    plan = TargetPlan(target="tok_sound", scheme=scheme, num_steps=3, temperature=0.5, top_p=0.8, guidance=2.0)
    sampler = Sampler(model, asks=False)
    with BlockingCopies() as copies, Spy() as spy:
        sampler.generate([TokenClip("a", tokens)], [plan], [0])
    assert not spy.waiting
    assert copies.blocking == ["cpu", "numpy"]


@pytest.mark.parametrize("ahead", [0, 2])
def test_many_steps_are_planned_one_by_one_and_too_few_candidates_are_drawn_again(model, rng, monkeypatch, ahead):
    plan = TargetPlan(target="tok_smell", scheme="autoregressive", temperature=3.0, top_p=0.95)
    prompts = [_prompt(key, rng, ("tok_touch",)) for key in "ab"]
    wanted = Sampler(model).generate(prompts, [plan], [1, 2])
    monkeypatch.setattr(generate, "_MOST_STEPS_AHEAD", ahead or 64)
    monkeypatch.setattr(generate, "FEWEST_CANDIDATES", 2)
    monkeypatch.setattr(prompt_answers, "_FEW_LOGITS", 0)
    found = Sampler(model, asks=False).generate(prompts, [plan], [1, 2])
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one.tokens["tok_smell"], other.tokens["tok_smell"])


@pytest.mark.parametrize("plan", _PLANS[:-1])
def test_every_position_is_written_once_and_in_range(model, rng, plan):
    prompt = _prompt("a", rng)
    steps = list(Sampler(model).iterate([prompt], [plan], [0]))
    positions = np.concatenate([step.positions[0] for step in steps])
    if plan.rewrite_fraction == 0:
        assert np.array_equal(np.sort(positions), np.arange(6))
    final = steps[-1].tokens[0]
    assert final.min() >= 0 and final.max() < 7
    assert steps[-1].num_steps == len(steps)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("scheme", ["roar", "maskgit", "autoregressive"])
def test_a_replayed_graph_writes_the_tokens_of_plain_steps(rng, scheme):
    with torch.device("cuda"):
        model = EgoM2P(ModelConfig(dim=64, encoder_depth=2, decoder_depth=2, num_heads=2), _SPECS[:3])
    model.to(torch.bfloat16)
    plan = TargetPlan(target="tok_sound", scheme=scheme, num_steps=3, temperature=1.0, top_p=0.8, guidance=2.0)
    replays, plain, looking = Sampler(model), Sampler(model, graphs=False), Sampler(model, asks=True)
    for seed in range(5):
        prompt = _prompt("a", rng)
        wanted = plain.generate([prompt], [plan], [seed])[0].tokens["tok_sound"]
        for sampler in (replays, looking):
            assert np.array_equal(sampler.generate([prompt], [plan], [seed])[0].tokens["tok_sound"], wanted)


def test_what_is_given_stays(model, rng):
    prompt = _prompt("a", rng, ("tok_smell", "tok_sound"))
    prompt.tokens["tok_sound"][2:] = -1
    given = prompt.tokens["tok_sound"][:2].copy()
    made = Sampler(model).generate([prompt], [TargetPlan(target="tok_sound", num_steps=2)], [0])[0]
    assert np.array_equal(made.tokens["tok_sound"][:2], given) and made.tokens["tok_sound"].min() >= 0
    assert (prompt.tokens["tok_sound"][2:] == -1).all(), "the prompt was written into"


def test_samples_of_one_prompt_are_run_once(model, rng):
    prompt = _prompt("a", rng)
    plan = TargetPlan(target="tok_sound", temperature=1.0, guidance=2.0)
    made = Sampler(model).generate([prompt] * 8, [plan], list(range(8)))
    assert model.num_encoded == model.num_decoded == 2
    assert len({clip.tokens["tok_sound"].tobytes() for clip in made}) > 1


def test_a_constant_condition_is_encoded_once_for_all_targets(model, rng):
    plans = [TargetPlan(target="tok_sound"), TargetPlan(target="tok_touch", grow_conditioning=False)]
    Sampler(model).generate([_prompt("a", rng)], plans[:1], [0])
    assert model.num_encoded == 1


@pytest.mark.parametrize(("guidance", "num_passes"), [(1.0, 1), (2.0, 2), (-1.0, 2)])
def test_what_the_encoder_sees_of_a_sequence_never_changes_so_it_sees_it_once(model, rng, guidance, num_passes):
    """Words go to the decoder; eight steps need one encoder pass per guidance pass."""
    plan = TargetPlan(target="tok_words", temperature=3.0, guidance=guidance)
    for seed in range(20):  # until it does not begin with the end
        model.num_encoded = model.num_decoded = 0
        steps = list(Sampler(model).iterate([_prompt("a", rng)], [plan], [seed]))
        if len(steps) > 1:
            break
    assert len(steps) > 1 and model.num_encoded == num_passes and model.num_decoded == num_passes * len(steps)


def test_guided_passes_are_one_batch_and_contexts_outlive_a_call(model, rng, monkeypatch):
    calls = []
    encode, decode = model.encode, model.decode
    monkeypatch.setattr(model, "encode", lambda batch: calls.append(("encode", batch.num_clips)) or encode(batch))
    monkeypatch.setattr(
        model, "decode", lambda batch, context: calls.append(("decode", batch.num_clips)) or decode(batch, context)
    )
    prompts = [_prompt("a", rng, ("tok_smell", "tok_touch")), _prompt("b", rng, ("tok_smell", "tok_touch"))]
    weights = {"tok_smell": 2.0, "tok_touch": -0.5}
    sampler = Sampler(model, context_bytes=1 << 20)
    sampler.generate(prompts, [TargetPlan(target="tok_sound", guidance_weights=weights)], [0, 1])
    # Two clips seen by each condition, and nothing, which both share.
    assert calls == [("encode", 5), ("decode", 5)]
    sampler.generate(prompts, [TargetPlan(target="tok_sound", guidance_weights=weights)], [2, 3])
    assert calls[2:] == [("decode", 5)]


@pytest.mark.parametrize("budget", [1, 5, 7, 31])
def test_long_conditions_are_cut_to_the_budget_exactly(model, rng, budget, monkeypatch):
    shown = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda batch: shown.append(batch.input_lengths) or encode(batch))
    prompt = _prompt("a", rng, ("tok_smell", "tok_touch"))
    prompt.tokens["tok_words"] = np.array([5, 3, 4, 1, 0, 0, 0, 0], np.int32)  # three words, their end, padding
    Sampler(model).generate([prompt], [TargetPlan(target="tok_sound", max_condition_tokens=budget)], [4])
    assert shown == [(budget,)]


def test_hot_draws_differ_by_seed_and_cold_ones_do_not(model, rng):
    prompt = _prompt("a", rng)
    for temperature, num_different in ((0.0, 1), (1.0, 4)):
        plan = TargetPlan(target="tok_smell", temperature=temperature)
        clip = TokenClip("x", {"tok_sound": np.arange(6, dtype=np.int32)})
        made = Sampler(model).generate([clip] * 4, [plan], [0, 1, 2, 3])
        assert len({item.tokens["tok_smell"].tobytes() for item in made}) == num_different
    assert prompt.key == "a"


def test_guidance_mixes_what_is_seen_with_nothing(model, rng):
    prompt, positions = _prompt("a", rng), np.arange(6)
    sampler = Sampler(model)
    seen = sampler.logits([prompt], TargetPlan(target="tok_sound"), [positions])[0]
    unseen = sampler.logits([TokenClip("b", {})], TargetPlan(target="tok_sound"), [positions])[0]
    guided = sampler.logits([prompt], TargetPlan(target="tok_sound", guidance=3.0), [positions])[0]
    torch.testing.assert_close(guided, unseen + 3 * (seen - unseen), atol=1e-5, rtol=1e-5)


def test_each_condition_may_have_its_own_weight(model, rng):
    both, positions = _prompt("a", rng, ("tok_smell", "tok_touch")), np.arange(6)
    sampler, plain = Sampler(model), TargetPlan(target="tok_sound")
    one = [
        sampler.logits([TokenClip("x", {name: both.tokens[name]})], plain, [positions])[0]
        for name in ("tok_smell", "tok_touch")
    ]
    nothing = sampler.logits([TokenClip("x", {})], plain, [positions])[0]
    plan = TargetPlan(target="tok_sound", guidance_weights={"tok_smell": 2.0, "tok_touch": -0.5})
    found = sampler.logits([both], plan, [positions])[0]
    wanted = nothing + 2 * (one[0] - nothing) - 0.5 * (one[1] - nothing)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_registers_stand_first(rng):
    model = _MeanModel(num_registers=2)
    made = Sampler(model).generate([_prompt("a", rng)], [TargetPlan(target="tok_sound")], [0])
    assert made[0].tokens["tok_sound"].shape == (6,)


@pytest.mark.parametrize("asks", [True, False])
def test_words_end_at_the_end_token_or_the_limit(model, rng, asks):
    plan = TargetPlan(target="tok_words", temperature=1.0, max_new_tokens=5)
    for clip in Sampler(model, asks=asks).generate([_prompt(str(n), rng) for n in range(6)], [plan], list(range(6))):
        words = clip.tokens["tok_words"]
        assert 1 <= len(words) <= 5 and (1 not in words[:-1].tolist())
        assert len(words) == 5 or words[-1] == 1


def test_what_is_forgotten_is_the_least_certain_that_was_written():
    """Never what was given, and nothing that is unknown already counts."""
    tokens = WrittenTokens(torch.tensor([[-1, -1, -1, -1, 7]], dtype=torch.int32), by_certainty=True)
    wanted = torch.arange(4, dtype=torch.int32)
    tokens.write(wanted, wanted, torch.tensor([-1.0, -2.0, -3.0, -4.0]), torch.tensor([3]))
    tokens.forget(torch.tensor([1]))
    assert tokens.ids.tolist() == [[0, 1, -1, -1, 7]]
    tokens.write(wanted[2:], wanted[2:], torch.tensor([-9.0, -0.5]), torch.tensor([1]))
    assert tokens.ids.tolist() == [[0, 1, -1, 3, 7]]
    tokens.forget(torch.tensor([1]))
    assert tokens.ids.tolist() == [[0, -1, -1, 3, 7]]
    tokens.forget(torch.tensor([2]))
    assert tokens.ids.tolist() == [[-1, -1, -1, -1, 7]]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"tok_taste": np.zeros(3, np.int32)}, "tok_taste.*not a modality"),
        ({"tok_sound": np.zeros(4, np.int32)}, "wanted \\(6,\\)"),
        ({"tok_sound": np.full(6, 7, np.int32)}, "wanted 0..6"),
    ],
)
def test_bad_prompts_name_clip_and_modality(model, tokens, message):
    with pytest.raises(ValueError, match=message):
        Sampler(model).generate([TokenClip("bad", tokens)], [TargetPlan(target="tok_touch")], [0])


def test_a_likelihood_is_not_asked_of_who_sees_the_answer(model, rng):
    told = _prompt("told", rng, ("tok_smell", "tok_sound"))
    with pytest.raises(ValueError, match="clip told: the prompt holds tok_sound"):
        Sampler(model).log_likelihood([told], TargetPlan(target="tok_sound"), [told.tokens["tok_sound"]])


def test_bad_plans_are_refused(model, rng):
    with pytest.raises(ValueError, match="num_steps"):
        TargetPlan(target="tok_sound", num_steps=0)
    with pytest.raises(ValueError, match="one seed per prompt"):
        Sampler(model).generate([_prompt("a", rng)], [], [])
    positions = {"tok_sound": [[np.arange(4)]]}
    with pytest.raises(ValueError, match="each once"):
        Sampler(model).generate([_prompt("a", rng)], [TargetPlan(target="tok_sound")], [0], positions=positions)
