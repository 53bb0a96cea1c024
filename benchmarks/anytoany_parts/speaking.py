"""Generation: batched with a cache against reading everything again, and against looking at every token on the host."""

from collections.abc import Sequence

import numpy as np
import torch

from anytoany_parts.setting import Setting, conversation, item
from egom2p.anytoany.answers.answer_generation import AnswerConfig, Question, answer, right_aligned
from egom2p.anytoany.language.language_tokenizer import stop_ids
from egom2p.anytoany.language.packed_attention import packed_hidden, packed_layout
from egom2p.anytoany.model import AnyToAny
from egom2p.anytoany.types import Rendered
from egom2p.layers.lora import merge_lora


def generation(setting: Setting, *, batch_size: int = 32, num_new: int = 16, prompt: int = 64) -> dict:
    """Tokens per second of greedy answers to questions of one length, and how many times the host waits."""
    model = setting.model().eval()
    questions = _questions(model, [prompt] * batch_size)
    config = AnswerConfig(max_new_tokens=num_new, batch_size=batch_size)
    ways = {
        "batched, cached": lambda: [said.ids for said in answer(model, questions, config)],
        "batched, cached, host looks at every token": lambda: _looking_at_every_token(model, questions, num_new),
        "one by one, cached": lambda: [answer(model, [question], config)[0].ids for question in questions],
        "batched, nothing cached": lambda: _reading_again(model, questions, num_new),
    }
    with setting.autocast(), torch.inference_mode():
        said = {name: way() for name, way in ways.items()}
        seconds = setting.seconds(**ways)
    num_tokens = batch_size * num_new
    first = seconds["batched, cached"]
    table = {name: {"tokens_per_s": num_tokens / t, "ours_is_faster_by": t / first} for name, t in seconds.items()}
    for name, ids in said.items():
        pairs = zip(ids, said["batched, cached"], strict=True)
        table[name]["answers_alike"] = float(np.mean([_alike(one, other) for one, other in pairs]))
    return {"batch_size": batch_size, "prompt": prompt, "new_tokens": num_new, **table}


def prompts(setting: Setting, *, num_new: int = 4) -> dict:
    """One prompt answered many times, and prompts of many lengths."""
    model = setting.model().eval()
    (one,) = _questions(model, [192])
    copies = [Question(one.rendered, one.features) for _ in range(16)]
    few, eights = (AnswerConfig(max_new_tokens=num_new, batch_size=size) for size in (16, 8))
    lengths = np.random.default_rng(0).permutation(np.linspace(24, 256, 32).astype(int)).tolist()
    mixed = _questions(model, lengths)
    in_turn = [mixed[start : start + 8] for start in range(0, len(mixed), 8)]
    with setting.autocast(), torch.inference_mode():
        seconds = setting.seconds(
            read_once=lambda: answer(model, [one] * 16, few),
            read_sixteen_times=lambda: answer(model, copies, few),
            sorted=lambda: answer(model, mixed, eights),
            as_they_come=lambda: [answer(model, part, eights) for part in in_turn],
        )
    waste = {name: 1 - sum(lengths) / sum(8 * max(order[s : s + 8]) for s in range(0, 32, 8))
             for name, order in (("sorted", sorted(lengths)), ("as they come", lengths))}  # fmt: skip
    return {
        "one prompt of 192 tokens, 16 answers": {"faster_by": seconds["read_sixteen_times"] / seconds["read_once"]},
        "32 prompts of 24 ... 256 tokens": {"waste": waste, "faster_by": seconds["as_they_come"] / seconds["sorted"]},
    }


def merged(setting: Setting, *, batch_size: int = 8, num_new: int = 32) -> dict:
    """Adapters beside the weights against adapters folded into them."""
    beside, folded = setting.model().eval(), setting.model().eval()
    merge_lora(folded.lm)
    config = AnswerConfig(max_new_tokens=num_new, batch_size=batch_size)
    asked = {model: _questions(model, [64] * batch_size) for model in (beside, folded)}
    with setting.autocast(), torch.inference_mode():
        seconds = setting.seconds(
            beside=lambda: answer(beside, asked[beside], config), folded=lambda: answer(folded, asked[folded], config)
        )
    return {"tokens_per_s": {name: batch_size * num_new / t for name, t in seconds.items()},
            "folded_is_faster_by": seconds["beside"] / seconds["folded"]}  # fmt: skip


def _questions(model: AnyToAny, lengths: Sequence[int]) -> list[Question]:
    talks = [conversation(length, media_id=model.media_id, number=n) for n, length in enumerate(lengths)]
    silent = [Rendered(talk.ids, np.zeros(len(talk.ids), bool), talk.spans) for talk in talks]
    return [Question(talk, (item(n),)) for n, talk in enumerate(silent)]


def _reading_again(model: AnyToAny, questions: Sequence[Question], num_new: int) -> list[list[int]]:
    """Everything is read for every token; questions of one length."""
    batch = right_aligned(questions, pad_id=0).to(model.device)
    embeddings, said = model.embed(batch), []
    for _ in range(num_new):
        rows, positions = embeddings.shape[:2]
        own = right_aligned([_plain(positions)] * rows, pad_id=0).to(model.device)
        hidden = packed_hidden(model.lm.base_model, embeddings, own.positions, packed_layout(own))
        ids = _text_only(model, model.logits(hidden[:, -1])).argmax(-1)
        said.append(ids)
        embeddings = torch.cat([embeddings, model.embed_ids(ids[:, None]).to(embeddings.dtype)], dim=1)
    return torch.stack(said, 1).tolist()


def _looking_at_every_token(model: AnyToAny, questions: Sequence[Question], num_new: int) -> list[list[int]]:
    """A cache, but logits of all positions, all logits to probabilities, and a set that is asked about every token."""
    from transformers import DynamicCache

    batch = right_aligned(questions, pad_id=0).to(model.device)
    stops, cache = set(stop_ids(model.tokenizer)), DynamicCache()
    embeddings, positions = model.embed(batch), batch.positions
    said: list[list[int]] = [[] for _ in questions]
    is_done = [False] * len(questions)
    for _ in range(num_new):
        hidden = model.lm.base_model(
            inputs_embeds=embeddings, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        shares = _text_only(model, model.logits(hidden))[:, -1].float().softmax(-1)
        chosen = shares.argmax(-1)
        for row in range(len(questions)):
            token = int(chosen[row].item())
            is_done[row] = is_done[row] or token in stops
            said[row].append(token)
        if all(is_done):
            break
        embeddings, positions = model.embed_ids(chosen[:, None]), positions[:, -1:] + 1
    return said


def _text_only(model: AnyToAny, logits: torch.Tensor) -> torch.Tensor:
    logits[..., model.media_id :] = float("-inf")
    return logits


def _plain(length: int) -> Question:
    return Question(Rendered(np.zeros(length, np.int32), np.zeros(length, bool)))


def _alike(one: Sequence[int], other: Sequence[int]) -> bool:
    count = min(len(one), len(other))
    return list(one)[:count] == list(other)[:count]
