"""What the language model answers: decoding, grammar of token spans, windows of long videos."""
