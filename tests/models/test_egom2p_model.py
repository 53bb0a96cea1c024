"""What the model promises, at the tiniest sizes and with an invented modality."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from packing import TINY_SPECS, pack, random_clips
from torch.utils._python_dispatch import TorchDispatchMode

from egom2p.config import load_config
from egom2p.contracts import ModalitySpec, TokenGrid
from egom2p.models.egom2p_model import EgoM2P, ModelConfig, load_model
from egom2p.models.losses import combine_losses
from egom2p.models.weights import save_model, tokenizer_locations
from egom2p.storage import load_tensors, save_tensors

TEXT = ModalitySpec("tok_words", "sequence", "text", TokenGrid((5,)), 9, "words", pad_id=0, eos_id=1, sentinel_ids=(2,))


def tiny_model(specs=TINY_SPECS, **options):
    torch.manual_seed(0)
    settings = {"dim": 32, "num_heads": 4, "encoder_depth": 2, "decoder_depth": 2, "embedding_std": 0.5, **options}
    return EgoM2P(ModelConfig(**settings), specs)


def loss_and_gradients(model, batch):
    model.zero_grad()
    output = model(batch)
    loss = combine_losses(output.sums, output.counts)
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("specs", [TINY_SPECS, (*TINY_SPECS, TEXT)], ids=["grids", "with a sequence"])
def test_backends_agree(specs, rng):
    batch = pack(random_clips(rng, specs, 4), specs)
    results = [loss_and_gradients(tiny_model(specs, attention_backend=b), batch) for b in ("padded", "plain")]
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_registers", [0, 2])
def test_a_clip_alone_equals_the_clip_in_a_batch(rng, num_registers):
    model, clips = tiny_model(num_registers=num_registers), random_clips(rng, TINY_SPECS, 4)
    batch = pack(clips, TINY_SPECS, num_registers=num_registers)
    hidden, losses = model.decode(batch, model.encode(batch)), model.row_losses(batch)
    for number, clip in enumerate(clips):
        alone = pack([clip], TINY_SPECS, num_registers=num_registers)
        own = slice(*batch.target_offsets[number : number + 2].tolist())
        torch.testing.assert_close(model.decode(alone, model.encode(alone)), hidden[own], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.row_losses(alone), losses[own], rtol=1e-5, atol=1e-5)
    output = model(batch)
    assert losses.sum().item() == pytest.approx(output.sums.sum().item(), rel=1e-5)
    assert output.names == batch.modalities and sum(output.counts) == len(losses)


def test_the_order_of_modalities_changes_nothing(rng):
    clips = random_clips(rng, TINY_SPECS, 3)
    model, turned = tiny_model(), tiny_model(TINY_SPECS[::-1])
    sizes, state = [spec.vocab_size for spec in TINY_SPECS], model.state_dict()
    for name in state:
        if name.endswith("_table"):
            parts = state[name].split([1, 1] if name.startswith("positions") else sizes)
            state[name] = torch.cat(parts[::-1])
    turned.load_state_dict(state)
    sums = model(pack(clips, TINY_SPECS)).sums
    torch.testing.assert_close(sums, turned(pack(clips, TINY_SPECS[::-1])).sums.flip(0), rtol=1e-5, atol=1e-5)


def test_targets_see_only_their_own_modality_and_clip(rng):
    model, clips = tiny_model(), random_clips(rng, TINY_SPECS, 2)
    batch = pack(clips, TINY_SPECS)
    moved = batch.target_position.clone()
    is_changed = (batch.target_modality == 1) & (torch.arange(len(moved)) < batch.target_offsets[1])
    moved[is_changed] = (moved[is_changed] + 1) % TINY_SPECS[1].num_tokens
    context = model.encode(batch)
    before, after = model.decode(batch, context), model.decode(replace(batch, target_position=moved), context)
    assert torch.equal(before[~is_changed], after[~is_changed])
    assert not torch.isclose(before[is_changed], after[is_changed]).all(-1).any()


def test_a_sequence_looks_back_only_and_is_fed_tokens(rng):
    specs = (*TINY_SPECS, TEXT)
    model = tiny_model(specs)
    ids = rng.integers(0, 9, 5)
    fed = np.array([2, *ids[:-1]])
    hidden = []
    for last in (3, 4):
        fed[4] = last
        batch = pack([({}, {"tok_words": (ids, np.arange(5), fed), "tok_smell": ([1], [3])})], specs)
        hidden.append(model.decode(batch, model.encode(batch)))
    assert torch.equal(hidden[0][:5], hidden[1][:5]) and not torch.isclose(hidden[0][5], hidden[1][5]).all()


EMPTY: dict = {}
SMELL = {"tok_smell": ([1, 2], [3, 7])}


@pytest.mark.parametrize(
    "clips, has_loss",
    [
        ([(EMPTY, SMELL)], True),
        ([(SMELL, EMPTY)], False),
        ([(EMPTY, EMPTY)], False),
        ([(EMPTY, SMELL), (SMELL, EMPTY), (SMELL, SMELL)], True),
    ],
)
@pytest.mark.parametrize("num_registers", [0, 2])
def test_clips_without_inputs_or_targets_are_legal(clips, has_loss, num_registers):
    model = tiny_model(num_registers=num_registers, qk_norm=True)
    loss, gradients = loss_and_gradients(model, pack(clips, TINY_SPECS, num_registers=num_registers))
    assert (loss > 0) == has_loss
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert torch.isfinite(gradient).all() and (has_loss or not gradient.any())


class Spy(TorchDispatchMode):
    """Lists operations that wait for the device or make shapes depend on values."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found, self.largest = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if any(word in name for word in self.FORBIDDEN):
            self.found.append(name)
        if "aten.index.Tensor" in name or "index_put" in name:
            if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
                self.found.append(f"{name} with bool")
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize("specs", [TINY_SPECS, (*TINY_SPECS, TEXT)], ids=["grids", "with a sequence"])
@pytest.mark.parametrize("options", [{}, {"num_registers": 2, "drop_path": 0.5, "qk_norm": True}], ids=["plain", "all"])
def test_a_step_never_waits_for_the_device(specs, options, rng):
    model = tiny_model(specs, **options)
    batch = pack(random_clips(rng, specs, 4), specs, num_registers=options.get("num_registers", 0))
    with Spy() as spy:
        output = model(batch)
        combine_losses(output.sums, output.counts).backward()
    assert spy.found == []
    weights = max(parameter.numel() for parameter in model.parameters())
    rows = max(len(batch.input_ids), len(batch.target_ids))
    assert spy.largest <= max(weights, 2 * rows * 4 * model.config.dim)


def test_stochastic_depth_follows_the_generator(rng):
    model, batch = tiny_model(drop_path=0.5), pack(random_clips(rng, TINY_SPECS, 3), TINY_SPECS)
    draws = [model(batch, generator=torch.Generator().manual_seed(seed)).sums for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    model.eval()
    assert torch.equal(model(batch).sums, model(batch).sums)


def test_untied_heads(rng):
    specs = (*TINY_SPECS, TEXT)
    batch = pack(random_clips(rng, specs, 2), specs)
    _, gradients = loss_and_gradients(tiny_model(specs, share_embeddings=False), batch)
    assert all(gradient is not None for gradient in gradients.values())
    assert "decoder_embeddings.token_table" in gradients
    assert "decoder_embeddings.token_table" not in dict(tiny_model(share_embeddings=False).named_parameters())


def test_it_learns_a_tiny_set_by_heart(rng):
    model, batch = tiny_model(dim=48), pack(random_clips(rng, TINY_SPECS, 4), TINY_SPECS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        output = model(batch)
        loss = combine_losses(output.sums, output.counts)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < 1 < losses[0]


def test_saved_models_load_alone(rng, tmp_path):
    specs = (TINY_SPECS[0].with_fingerprint("sha256:1"), TINY_SPECS[1])
    model = tiny_model(specs, num_registers=1)
    (tmp_path / "tokenizer").mkdir()
    save_model(model, tmp_path / "model", {"tok_smell": "../tokenizer", "tok_motion": "someone/motion"})
    loaded = load_model(tmp_path / "model")
    assert loaded.specs == specs and loaded.config == model.config
    batch = pack(random_clips(rng, specs, 2), specs, num_registers=1)
    assert torch.equal(loaded(batch).sums, model.eval()(batch).sums)
    wanted = {"tok_smell": str(tmp_path / "tokenizer"), "tok_motion": "someone/motion"}
    assert tokenizer_locations(tmp_path / "model") == wanted


def test_broken_models_are_named(tmp_path, rng):
    save_model(tiny_model(), tmp_path / "model")
    card = tmp_path / "model" / "model.json"
    card.write_text(card.read_text().replace('"dim": 32', '"dim": 64'))
    with pytest.raises(ValueError, match="model.safetensors: .* should be"):
        load_model(tmp_path / "model")
    card.write_text(card.read_text().replace('"dim"', '"dmi"'))
    with pytest.raises(ValueError, match="did you mean `dim`"):
        load_model(tmp_path / "model")
    with pytest.raises(ValueError, match="the batch holds modalities"):
        tiny_model()(pack(random_clips(rng, TINY_SPECS[::-1], 1), TINY_SPECS[::-1]))


@pytest.mark.parametrize("size, dim", [("tiny", 384), ("small", 512), ("base", 768), ("large", 1024), ("xlarge", 2048)])
def test_sizes_of_the_configs(size, dim):
    config = load_config(ModelConfig, f"default/egom2p/models/size/{size}.yaml")
    assert config.dim == dim and config.dim % config.num_heads == 0


def test_base_has_the_published_number_of_parameters():
    shapes = (("tok_cam", (30,), 256), ("tok_depth", (5, 32, 32), 64000), ("tok_gaze", (30,), 256))
    shapes = (*shapes, ("tok_rgb", (5, 32, 32), 64000))
    kinds = {1: "track", 3: "grid"}
    specs = tuple(ModalitySpec(n, kinds[len(s)], "generic", TokenGrid(s), v, n) for n, s, v in shapes)
    with torch.device("meta"):
        model = EgoM2P(load_config(ModelConfig, "default/egom2p/models/size/base.yaml"), specs)
    assert sum(parameter.numel() for parameter in model.parameters()) == 396_226_560


def test_the_input_side_may_start_with_its_own_scale():
    model = tiny_model(embedding_std=0.02, input_embedding_std=0.5)
    assert model.encoder_embeddings.token_table.std().item() == pytest.approx(0.5, rel=0.1)
    assert model.decoder_embeddings.head_table.std().item() == pytest.approx(0.02, rel=0.1)
    published = tiny_model(embedding_std=0.02)
    assert published.encoder_embeddings.token_table.std().item() == pytest.approx(0.02, rel=0.1)


def test_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path):
    model = tiny_model()
    save_model(model, tmp_path / "good")
    weights = load_tensors(tmp_path / "good" / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] = float("nan")
    save_tensors(tmp_path / "good" / "model.safetensors", weights)
    with pytest.raises(ValueError, match=f"model.safetensors: {name} holds 1 of"):
        load_model(tmp_path / "good")
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = float("inf")
    with pytest.raises(ValueError, match="model.safetensors is not written: .* not finite"):
        save_model(model, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
