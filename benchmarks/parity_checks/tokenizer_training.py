"""Training steps of the track tokenizers: `train` of `tokenizer/<name>/info.json` and `train_*` of its outputs.

The first step must be equal: losses, gradients, what the codebook counted. After it the codebooks part ways by
design: ours averages latents over their uses and keeps unit rows, the reference moves every used row by a fixed share
and lets its length drift. So the steps that follow may only stay near.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from egom2p.tokenizers.protocol import TokenizerBatch
from egom2p.tokenizers.reference_weights import our_name
from egom2p.tokenizers.trajectory.trajectory_vqvae import TrajectoryVqVae
from parity_checks.check import Check, Finding, matched, near, read_json, read_tensors

_LATER_STEPS = 0.03  # relative; measured 1.8 %


def training_checks(folder: Path, network: TrajectoryVqVae) -> Iterator[Finding]:
    """Steps of AdamW on one batch, from the reference's weights; `network` is trained on the way."""
    info, outputs = read_json(folder / "info.json"), read_tensors(folder / "outputs.safetensors")
    if "train" not in info:
        return
    wanted, channels = info["train"], network.config.channels
    samples = outputs["input"][..., :channels] * network.std + network.mean
    has_validity = outputs["input"].shape[-1] > channels
    is_valid = outputs["input"][..., -1] > 0 if has_validity else torch.ones(samples.shape[:2], dtype=torch.bool)
    values_per_row = 1 if info["loss_fn"] == "mse_mask" else channels  # that mean runs over samples, not values
    num_latents = samples.shape[0] * network.config.num_tokens * network.config.latent_dim
    counts = (int(is_valid.sum()) * values_per_row, num_latents)
    batch = TokenizerBatch({"samples": samples, "is_valid": is_valid}, counts, len(samples))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=wanted["lr"], betas=wanted["betas"], weight_decay=wanted["weight_decay"]
    )
    network.train().quantizer._codebook.threshold_ema_dead_code = wanted["dead_code_threshold"]
    for step in range(len(wanted["loss"])):
        with torch.enable_grad():
            output = network(batch)
            reconstruction, commitment = (output.sums / torch.tensor(output.counts)).unbind()
            optimizer.zero_grad()
            (reconstruction + commitment).backward()
        if step == 0:
            yield from _first_step(network, wanted, outputs)
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), wanted["clip_grad"])
        optimizer.step()
        name, tolerance = f"train step {step + 1}", 1e-5 if step == 0 else _LATER_STEPS
        yield near(f"{name} reconstruction loss", reconstruction.item(), wanted["reconst_loss"][step], tolerance)
        yield near(f"{name} code loss", commitment.item(), wanted["code_loss"][step], tolerance)
        yield near(f"{name} gradient norm", norm.item(), wanted["grad_norm"][step], tolerance)


def _first_step(network: TrajectoryVqVae, wanted: dict, outputs: dict) -> Iterator[Check]:
    found = {name: parameter.grad.norm().item() for name, parameter in network.named_parameters()}
    norms = wanted["first_step_grad_norms"]
    largest = max(norms.values())
    errors = [abs(found[our_name(name)] - norm) / largest for name, norm in norms.items()]
    yield Check("train step 1 gradients", max(errors))
    cluster_size = network.quantizer._codebook.cluster_size[0]
    yield matched("train step 1 uses of codes", cluster_size, outputs["train_step1.cluster_size"])
