"""Tracks to ids and back: the trajectory VQ-VAE."""
