"""Settings of a trajectory tokenizer; the defaults are the published design."""

from typing import Literal

from egom2p.config import strict
from egom2p.tokenizers.trajectory.camera_channels import CAMERA_CHANNELS, CameraChannels
from egom2p.tokenizers.trajectory.track_quantizers import FsqConfig, QuantizerConfig, VqConfig
from egom2p.tokenizers.trajectory.track_representations import Fill


@strict
class TrajectoryVqVaeConfig:
    """One track of fixed length; defaults are the published sizes."""

    architecture: Literal["trajectory_vqvae"] = "trajectory_vqvae"
    modality: str  # name of the modality it makes, e.g. tok_gaze
    quantity: Literal["gaze", "camera", "generic"]
    folder: str
    stream: str | None = None  # stream it reads; None: named like the quantity
    num_samples: int = 60
    rate_hz: float = 30.0
    num_channels: int | None = None  # only for generic tracks
    samples_per_token: int = 2
    dim: int = 768
    encoder_depth: int = 12
    decoder_depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    has_local_encoder: bool = False  # True: a code describes its own samples only, the same way at every position
    latent_dim: int = 32
    num_codes: int = 256  # of each stream
    quantizer: QuantizerConfig = VqConfig()
    code_noise: float = 0.0  # share of codes replaced at random before the decoder, in training only
    ema_decay: float = 0.99
    dead_code_threshold: float = 2.0  # codes with fewer (averaged) uses per step are replaced; 0 keeps all
    kmeans_init: bool = False
    reconstruction_weight: float = 1.0  # published gaze: 2, its mean runs over samples instead of values
    motion_weight: float = 0.0  # of the squared error of the motion between neighbouring samples
    camera_channels: CameraChannels = "pose"  # motion: from sample to sample, added up when decoded
    path_weight: float = 0.0  # of the squared error of motions added up from the first sample (camera_channels=motion)
    commitment_weight: float = 1.0
    reconstructs_validity: bool = True  # published gaze tokenizer: False, decoded samples are all valid
    validity_weight: float = 0.1
    fill: Fill = "interpolate"  # published: zero
    mean: tuple[float, ...] | None = None  # normalisation; None: fitted from training data
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.quantity == "generic") != (self.num_channels is not None):
            raise ValueError(f"num_channels is for generic tracks only; quantity is {self.quantity!r}")
        if self.quantity == "generic" and self.stream is None:
            raise ValueError("a generic track needs the name of its stream")
        if self.num_samples % self.samples_per_token:
            raise ValueError(
                f"num_samples {self.num_samples} must be a multiple of samples_per_token {self.samples_per_token}"
            )
        if isinstance(self.quantizer, FsqConfig) and self.quantizer.num_codes != self.num_codes:
            raise ValueError(
                f"num_codes must be the product of the levels {list(self.quantizer.levels)}, "
                f"{self.quantizer.num_codes}, got {self.num_codes}"
            )
        if not 0 <= self.code_noise < 1:
            raise ValueError(f"code_noise must be in [0, 1), got {self.code_noise}")
        self._check_camera()
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} must be a multiple of num_heads {self.num_heads}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{name} needs {self.channels} numbers, got {len(values)}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither (then they are fitted)")

    def _check_camera(self) -> None:
        if self.camera_channels != "pose" and self.quantity != "camera":
            raise ValueError(f"camera_channels is for cameras only; quantity is {self.quantity!r}")
        if self.path_weight and self.camera_channels != "motion":
            raise ValueError("path_weight adds motions up; it needs camera_channels=motion")

    @property
    def channels(self) -> int:
        if self.quantity == "camera":
            return CAMERA_CHANNELS[self.camera_channels]
        return 2 if self.quantity == "gaze" else self.num_channels or 0

    @property
    def num_steps(self) -> int:
        """T: time steps of the network."""
        return self.num_samples // self.samples_per_token

    @property
    def num_tokens(self) -> int:
        """L: all streams of a time step, then those of the next."""
        return self.num_steps * self.quantizer.num_streams
