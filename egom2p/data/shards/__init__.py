"""Folders and tars of tokens: reading, writing, numbering."""
