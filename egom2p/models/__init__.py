"""The EgoM2P model, its losses and weights, and generation with it."""
