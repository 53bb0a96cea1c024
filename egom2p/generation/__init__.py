"""Everything that generate.py and egom2p.load_model do: inputs, windows, stitching, partial prompts, outputs."""
