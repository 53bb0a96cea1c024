"""Recordings, clips, shards and what becomes of them before the model sees them."""
