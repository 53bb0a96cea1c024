"""The any-to-any language model: perception tokens into a causal language model, text and modality tokens out of it.

Nothing is imported here: transformers takes seconds to load and is only needed by those who run a language model.
"""
