"""The causal language model: loading, attention over packed rows, its tokenizer, its memory."""
