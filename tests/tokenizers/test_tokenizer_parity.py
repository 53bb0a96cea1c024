"""Numbers of the published tokenizers: same weights, same ids, same reconstruction (benchmarks/parity_checks)."""

import torch
from parity_checks.check import failures, matched, read_tensors
from parity_checks.misc_folder import name_checks
from parity_checks.tokenizer_folders import cosmos_checks, load_track, tokenizer_checks

from egom2p.tokenizers.reference_weights import load_reference_trajectory


def test_tracks(parity_dir):
    assert not failures(tokenizer_checks(parity_dir / "tokenizer"), at_least=40)


def test_video_codec(parity_dir):
    assert not failures(cosmos_checks(parity_dir / "cosmos"), at_least=20)


@torch.no_grad()
def test_codebook_rows_that_are_not_of_unit_length(parity_dir):
    """Rows decide by direction and are decoded with their length."""
    folder = parity_dir / "tokenizer" / "cam"
    network = load_track(folder, "camera", ([0.0] * 9, [1.0] * 9))
    outputs, reference = (read_tensors(folder / f"{name}.safetensors") for name in ("outputs", "state_dict"))
    lengths = torch.linspace(0.5, 1.0, network.config.num_codes)
    rows = reference["quantize._codebook.embed"] * lengths[:, None]
    load_reference_trajectory(network, reference | {"quantize._codebook.embed": rows})
    ids = network.lookup(outputs["quant_proj_out"].mT)
    margin = outputs["top2_cosine"][..., 0] - outputs["top2_cosine"][..., 1]
    assert ((ids == outputs["tokens"]) | (margin < 1e-4)).all()
    assert matched("", network.codes(ids), rows[ids]).is_met


def test_names_of_the_full_size_networks(parity_dir):
    """Every published weight has a place in ours, at the published sizes."""
    assert not failures(name_checks(parity_dir), at_least=2)
