"""The model: loss of the labelled positions only, packed or not, and what is trained."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from model_toys import BOOKS, VECTORS, renderer_of, talks, toy_batch, toy_config, toy_features, toy_model

from egom2p.anytoany.connectors import ConnectorConfig
from egom2p.anytoany.conversations.packing import collate
from egom2p.anytoany.language.language_model import LanguageModelConfig, next_token_loss
from egom2p.anytoany.language.size_of_model import LanguageFlops
from egom2p.anytoany.perception.source import VectorsConfig
from egom2p.anytoany.types import Conversation, Media, PerceptionFeatures, Turn
from egom2p.layers.lora import LoraConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("codebooks", [(), BOOKS], ids=["text", "codes"])
@pytest.mark.parametrize("adapt", ["full", "lora"])
def test_loss_and_gradients_are_those_of_all_logits(folder, adapt, codebooks):
    model = toy_model(folder, adapt=adapt, codebooks=codebooks)
    batch = toy_batch(model)
    output = model(batch)
    assert output.counts == (batch.num_targets,) == (int((batch.labels >= 0).sum()),)
    ours = gradients(model, output.sums.sum())
    logits = model.logits(model.hidden(batch))
    assert logits.shape[-1] == model.vocab_size
    naive = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100, reduction="sum")
    theirs = gradients(model, naive)
    assert abs(output.sums.item() - naive.item()) < 1e-4
    assert ours.keys() == theirs.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, gradient in ours.items():
        assert torch.allclose(gradient, theirs[name], atol=1e-4), name


def test_chunks_change_nothing_and_z_loss_adds_its_term():
    hidden, table = torch.randn(11, 6, requires_grad=True), torch.randn(9, 6, requires_grad=True)
    targets = torch.randint(0, 9, (11,))

    def loss(chunk, z):
        return next_token_loss(
            hidden, targets, lambda rows: rows @ table.T, (table,), vocab_size=9, z_loss=z, chunk_elements=chunk
        )

    logits = hidden @ table.T
    wanted = F.cross_entropy(logits, targets, reduction="sum") + 0.1 * logits.logsumexp(-1).square().sum()
    reference = torch.autograd.grad(wanted, (hidden, table))
    for chunk in (1, 20, 27, 10_000):
        assert torch.allclose(loss(chunk, 0.1), wanted, atol=1e-4)
        for ours, theirs in zip(torch.autograd.grad(loss(chunk, 0.1), (hidden, table)), reference, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)
    assert loss(20, 0.0) < loss(20, 0.1)


def test_what_is_trained(folder):
    lora = toy_model(folder, adapt="lora", codebooks=BOOKS)
    trained = {name for name, parameter in lora.named_parameters() if parameter.requires_grad}
    of_lm = {name for name in trained if name.startswith("lm.")}
    assert of_lm and all("lora_" in name and (".q_proj." in name or ".v_proj." in name) for name in of_lm)
    assert {"new_tokens.rows", "new_tokens.head_rows"} <= trained
    frozen = toy_model(folder, adapt="frozen")
    assert not any(p.requires_grad for name, p in frozen.named_parameters() if name.startswith("lm."))
    dora = toy_model(folder, adapt="lora", lora=LoraConfig(rank=2, use_dora=True, target_modules="all-linear"))
    assert any("magnitude" in name for name, p in dora.named_parameters() if p.requires_grad)
    scaled = toy_model(folder, adapt="lora", connector_lr=5.0, new_token_lr=2.0)
    factors = scaled.lr_multipliers()
    assert {name.split(".")[0]: factor for name, factor in factors.items()} == {"connector": 5.0, "new_tokens": 2.0}
    assert not any(name.startswith("lm.") for name in factors)
    with pytest.raises(ValueError, match="float32"):
        settings = LanguageModelConfig(pretrained="x", dtype="bfloat16")
        toy_config(folder, language_model=settings, adapt="full")


def test_a_step_moves_every_part_and_lowers_the_loss(folder):
    model = toy_model(folder, adapt="lora", noise=0.0)
    batch = toy_batch(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    losses = []
    model.train()
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(batch).sums.sum() / batch.num_targets
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name.startswith("connector"):
            assert not torch.equal(before[name], parameter.detach()), name


def test_batches_without_media_or_without_targets(folder):
    model = toy_model(folder)
    text_only = toy_batch(model, rows=((0,),))
    assert text_only.kinds == () and torch.isfinite(model(text_only).sums).all()
    asked = renderer_of(model).render_question(Conversation("q", (Turn("user", ("hi",)),)))
    nothing = collate([[asked]], lambda media: toy_features(0), pad_id=0)
    output = model(nothing)
    output.sums.sum().backward()
    assert output.counts == (0,) and output.sums.item() == 0


def test_half_precision_and_recomputed_activations(folder):
    exact = toy_model(folder)
    batch = toy_batch(exact)
    settings = replace(toy_config(folder).language_model, gradient_checkpointing=True)
    again = toy_model(folder, language_model=settings)
    assert again.lm.model.gradient_checkpointing
    ours, theirs = (gradients(m.train(), m(batch).sums.sum()) for m in (exact, again))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = exact(batch).sums
    half.sum().backward()
    assert abs(half.item() / exact(batch).sums.item() - 1) < 0.02
    settings = replace(toy_config(folder).language_model, dtype="bfloat16")
    frozen = toy_model(folder, adapt="lora", language_model=settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = frozen(batch).sums
    assert all(torch.isfinite(gradient).all() for gradient in gradients(frozen, loss.sum()).values())
    adapters = [p for name, p in frozen.named_parameters() if p.requires_grad]
    assert all(parameter.dtype == torch.float32 for parameter in adapters)


def test_several_sources_each_serve_their_kinds(folder):
    video = VectorsConfig(width=6, kinds=("video",))
    audio = VectorsConfig(width=4, kinds=("audio",))
    model = toy_model(folder, perception=(video, audio), connector=ConnectorConfig(num_tokens=2, dim=24, num_heads=2))
    shown = {"v": padded(1, 6), "a": padded(2, 4), "w": padded(3, 6)}
    media = (Media("video", "v"), Media("audio", "a"), Media("video", "w"))
    rendered = renderer_of(model, lambda item: shown[item.ref]).render(
        Conversation("c", (Turn("user", media), Turn("assistant", ("mug",))))
    )
    together = model.perceive(collate([[rendered]], lambda item: shown[item.ref], pad_id=0)).split(2)
    for item, tokens in zip(media, together, strict=True):
        talk = Conversation("c", (Turn("user", (item,)), Turn("assistant", ("mug",))))
        alone = renderer_of(model, lambda item: shown[item.ref]).render(talk)
        batch = collate([[alone]], lambda item: shown[item.ref], pad_id=0)
        assert torch.allclose(model.perceive(batch), tokens, atol=1e-5)
    with pytest.raises(ValueError, match="gaze need exactly one"):
        renderer = renderer_of(model, lambda item: shown["v"])
        talk = Conversation("c", (Turn("user", (Media("gaze", "v"),)), Turn("assistant", ("mug",))))
        model(collate([[renderer.render(talk)]], lambda item: shown["v"], pad_id=0))
    with pytest.raises(ValueError, match="rows of 6 numbers, this model perceives 10"):
        narrow = toy_model(folder, perception=(VECTORS,))
        talk = Conversation("c", (Turn("user", (Media("video", "v"),)), Turn("assistant", ("mug",))))
        rendered = renderer_of(narrow, lambda item: shown["v"]).render(talk)
        narrow(collate([[rendered]], lambda item: shown["v"], pad_id=0))


def padded(seed, width):
    """All perception features of a batch have one width; what a source does not use is 0."""
    item = toy_features(seed, width=width)
    features = torch.nn.functional.pad(torch.from_numpy(item.features), (0, 6 - width)).numpy()
    return PerceptionFeatures(features, item.position, item.source)


def test_rows_do_not_depend_on_given_lengths(folder):
    """`row_lengths` only saves a wait: without it they are read from the segments."""
    model = toy_model(folder)
    rendered = [renderer_of(model).render(talk) for talk in talks(3)]
    batch = toy_batch(model)
    lengths = ((len(rendered[0].ids), len(rendered[1].ids)), (len(rendered[2].ids),))
    told, found = (replace(batch, row_lengths=value) for value in (lengths, None))
    assert torch.equal(model.token_losses(told), model.token_losses(found))


@pytest.mark.parametrize("adapt", ["full", "lora", "frozen"])
def test_arithmetic_of_a_step_counted_by_hand(folder, adapt):
    """Two blocks of width 48 with 4 heads, 2 of keys; adapters of rank 2 on queries. What is frozen has no gradient."""
    model = toy_model(folder, adapt=adapt, lora=LoraConfig(rank=2, target_modules=("q_proj",)))
    batch = toy_batch(model)
    block = 48 * 48 * 2 + 48 * 24 * 2 + 3 * 48 * 64  # queries and output, keys and values, MLP
    base = batch.num_tokens * 2 * block + batch.num_targets * 48 * model.vocab_size
    pairs = sum(length**2 for row in batch.row_lengths for length in row)
    wanted = (6 if adapt == "full" else 4) * base + 2 * 3 * 2 * 2 * 48 * pairs
    if adapt == "lora":
        wanted += 6 * batch.num_tokens * 2 * (2 * 48 + 48 * 2)
    assert LanguageFlops(model).training(batch) == wanted
