"""How clips are masked, as configs: mixtures of Dirichlet components and direct tasks, limits, domains."""

from dataclasses import field
from typing import Literal

from egom2p.config import Count, Natural, NotNegative, Share, strict
from egom2p.data.budgets import BudgetPolicy
from egom2p.data.sequence_masking import KeepScheme

GridPositions = Literal["random", "block", "tube"]
TrackPositions = Literal["random", "span"]


@strict
class ModalityAlphas:
    """Dirichlet concentrations of one modality, one per component of the mixture; 0: never drawn there."""

    input_alphas: list[NotNegative]  # of the input tokens
    target_alphas: list[NotNegative]  # of the target tokens

    def __post_init__(self) -> None:
        if not self.input_alphas or len(self.input_alphas) != len(self.target_alphas):
            raise ValueError(
                f"input_alphas and target_alphas have one value per component each, got {len(self.input_alphas)} "
                f"and {len(self.target_alphas)}"
            )


@strict
class TransferConfig:
    """A direct task: all positions of `inputs` -> all positions of `targets`, both disjoint.

    next_frame          modalities on both sides: all frames (samples) before a random one are input, that one is target
    positions_per_input    a random subset of at most this many positions of each input modality; None: all positions
    positions_per_target   the same for each target modality
    """

    weight: NotNegative  # relative to the components of the mixture
    inputs: list[str]
    targets: list[str]
    positions_per_input: Count | None = None
    positions_per_target: Count | None = None
    next_frame: bool = False

    def __post_init__(self) -> None:
        if not self.inputs or not self.targets:
            raise ValueError(f"a transfer needs inputs and targets, got {self.inputs} -> {self.targets}")
        both = sorted(set(self.inputs) & set(self.targets))
        if both and not self.next_frame:
            raise ValueError(f"a transfer's inputs and targets are disjoint, {both} is in both")
        if self.next_frame and not both:
            raise ValueError(f"next_frame needs a modality on both sides, got {self.inputs} -> {self.targets}")


@strict
class AlphasConfig:
    """A mixture of maskings: Dirichlet components with `sampling_weights`, and transfers with their own weights.

    sampling_weights   one per Dirichlet component, on the same scale as the transfers' weights; None: 1 each
    alphas_mixture     modality -> its alphas; a modality without entry takes no part in Dirichlet components
    transfers          name -> direct task
    always_target      modalities that are targets in every clip: at most half of their positions become Dirichlet
                       inputs and all other positions are targets; a transfer that does not read them predicts them too
    """

    alphas_mixture: dict[str, ModalityAlphas] = field(default_factory=dict)
    sampling_weights: list[NotNegative] | None = None
    transfers: dict[str, TransferConfig] = field(default_factory=dict)
    always_target: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        counts = {name: len(alphas.input_alphas) for name, alphas in self.alphas_mixture.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"all modalities need the same number of alphas, got {counts}")
        if self.sampling_weights is not None and len(self.sampling_weights) != self.num_components:
            raise ValueError(f"{len(self.sampling_weights)} sampling_weights for {self.num_components} components")
        if min(self.weights, default=0) < 0 or sum(self.weights) <= 0:
            raise ValueError(f"a mixture of maskings needs positive weights, got {self.weights}")

    @property
    def num_components(self) -> int:
        return len(next(iter(self.alphas_mixture.values())).input_alphas) if self.alphas_mixture else 0

    @property
    def weights(self) -> list[float]:
        """Dirichlet components first, then transfers in their order."""
        components = [1.0] * self.num_components if self.sampling_weights is None else list(self.sampling_weights)
        return components + [transfer.weight for transfer in self.transfers.values()]


@strict
class MaskingConfig:
    """How the clips of one data set are masked.

    alphas                     the mixture of maskings
    in_domains, out_domains    modalities that may be input, that may be target; None: all
    max_input_tokens, max_target_tokens  the request of a clip: so many tokens at most
    min_input_tokens, min_target_tokens  it is drawn evenly between min and max; None: always max
    policy                     `waterfill`: what a full modality cannot take goes to others; `clamp` (published): lost
    input_dropout              share of clips whose inputs are all dropped, so that generation without input is trained
    keep_scheme                sequences as input: `all` the budget allows, a `random` part, `binary`: all or none
    grid_positions, track_positions  how positions are drawn: `random` (published), or connected blocks/tubes and spans
    """

    alphas: AlphasConfig
    max_input_tokens: Natural
    max_target_tokens: Natural
    min_input_tokens: Natural | None = None
    min_target_tokens: Natural | None = None
    in_domains: list[str] | None = None
    out_domains: list[str] | None = None
    policy: BudgetPolicy = "waterfill"
    input_dropout: Share = 0.0
    keep_scheme: KeepScheme = "random"
    grid_positions: GridPositions = "random"
    track_positions: TrackPositions = "random"

    def __post_init__(self) -> None:
        for side in ("input", "target"):
            low, high = getattr(self, f"min_{side}_tokens"), getattr(self, f"max_{side}_tokens")
            if low is not None and low > high:
                raise ValueError(f"min_{side}_tokens <= max_{side}_tokens wanted, got {low} and {high}")

    @property
    def token_budget(self) -> int:
        """Input and target tokens of one clip, filled or not: the published "total tokens"."""
        return self.max_input_tokens + self.max_target_tokens
