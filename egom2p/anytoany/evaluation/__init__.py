"""Captions and answers scored with controls."""
