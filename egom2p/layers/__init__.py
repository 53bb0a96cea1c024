"""Layers for models and tokenizers alike."""
