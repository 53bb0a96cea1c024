"""EgoM2P: masked multimodal pretraining and any-to-any generation for egocentric data."""

__version__ = "0.1.0"
