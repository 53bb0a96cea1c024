"""Training: one loop, and one task file (with its root schema) per trainer."""
