"""Conversations about the synthetic worlds."""
