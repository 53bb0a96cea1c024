"""Adapters change nothing when attached, train alone, and fold into weights that compute the same."""

import json
import sys

import pytest
import torch
from torch import nn

from egom2p.config import ConfigError, from_plain
from egom2p.layers.lora import (
    LoraConfig,
    adapter_settings,
    attach_lora,
    has_lora,
    load_lora_state,
    lora_state,
    merge_lora,
    merged_state,
)
from egom2p.storage import save_json, save_tensors

pytest.importorskip("peft", reason="adapters need peft: pip install 'egom2p[anytoany]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of peft and transformers while they are imported


class Small(nn.Module):
    """A linear layer, two more in a list, and a table that no adapter fits."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.rest = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(2))
        self.table = nn.Parameter(torch.randn(3, 6))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs)
        for layer in self.rest:
            hidden = torch.tanh(layer(hidden))
        return hidden @ self.table.T


def small() -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small()


def attached(config: LoraConfig) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return attach_lora(small(), config)


def trained(config: LoraConfig) -> tuple[Small, torch.Tensor]:
    """An adapted module after some steps, and inputs."""
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    model = attached(config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.5)
    for _ in range(5):
        model(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, inputs


CONFIGS = [
    LoraConfig(rank=2, alpha=8.0),
    LoraConfig(rank=2, alpha=8.0, use_dora=True),
    LoraConfig(rank=2, alpha=8.0, use_rslora=True, target_modules=("first", "1")),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_attaching_changes_nothing_and_merging_keeps_the_function(config):
    inputs = torch.randn(8, 4)
    torch.testing.assert_close(attached(config)(inputs), small()(inputs), atol=1e-6, rtol=1e-6)
    model, inputs = trained(config)
    wanted = model(inputs)
    assert (wanted - small()(inputs)).abs().max() > 0.1
    merged = small()
    merged.load_state_dict(merged_state(model))
    torch.testing.assert_close(merged(inputs), wanted, atol=1e-5, rtol=1e-5)
    assert has_lora(model)
    torch.testing.assert_close(merge_lora(model)(inputs), wanted, atol=1e-5, rtol=1e-5)
    assert not has_lora(model) and list(model.state_dict()) == list(small().state_dict())


def test_the_base_does_not_move():
    model, _ = trained(CONFIGS[0])
    found = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in small().state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_only_named_layers_and_parameters_train():
    model = attached(LoraConfig(rank=2, target_modules=("rest.0",), also_train=("tab*",)))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names == ["table", "rest.0.lora_A.default.weight", "rest.0.lora_B.default.weight"]


def test_adapters_of_a_half_precision_base_are_float32():
    model = attach_lora(small().bfloat16(), LoraConfig(rank=2))
    assert {t.dtype for t in lora_state(model).values()} == {torch.float32}
    assert model.first.base_layer.weight.dtype == torch.bfloat16


def test_state_goes_into_another_module_and_names_what_does_not_fit():
    model, inputs = trained(CONFIGS[0])
    other = attached(CONFIGS[0])
    load_lora_state(other, lora_state(model))
    torch.testing.assert_close(other(inputs), model(inputs))
    with pytest.raises(ValueError, match=r"first\.lora_A\.weight should be \(3, 4\), found \(2, 4\)"):
        load_lora_state(attached(LoraConfig(rank=3)), lora_state(model))


@pytest.mark.parametrize("config", CONFIGS[:2])
def test_peft_reads_the_files(tmp_path, config):
    from peft import PeftModel

    model, inputs = trained(config)
    save_tensors(tmp_path / "adapter_model.safetensors", lora_state(model))
    save_json(tmp_path / "adapter_config.json", adapter_settings(model))
    theirs = PeftModel.from_pretrained(small(), str(tmp_path))
    torch.testing.assert_close(theirs(inputs), model(inputs))


def test_what_fits_nothing_is_an_error():
    for values, message in (
        ({"target_modules": ["q_proj"]}, "no linear layer ends in 'q_proj'; layers end in 0, 1, first"),
        ({"also_train": ["nothing*"]}, "no parameter is called 'nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            attach_lora(small(), from_plain(LoraConfig, values))
    with pytest.raises(ValueError, match="merge them first"):
        attach_lora(attached(CONFIGS[0]), CONFIGS[0])
    for values, message in (({"rank": 0}, "rank"), ({"dropout": 1.0}, "dropout"), ({"target_modules": []}, "empty")):
        with pytest.raises(ConfigError, match=message):
            from_plain(LoraConfig, values)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'egom2p\[anytoany\]'"):
        attach_lora(small(), LoraConfig())


def test_settings_are_plain_json():
    assert json.loads(json.dumps(adapter_settings(attached(CONFIGS[0]))))["r"] == 2
