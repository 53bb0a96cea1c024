"""The dry run: sizes, memory, checks, before anything is started."""
