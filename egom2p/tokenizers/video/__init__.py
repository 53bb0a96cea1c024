"""Video to ids and back: the causal codec and its losses."""
