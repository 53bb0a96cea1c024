"""Rows of texts and media become rows of tokens: chat templates, data sets, mixing, packing."""
