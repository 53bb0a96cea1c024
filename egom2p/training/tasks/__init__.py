"""One task and root schema per trainer, and what evaluates token losses."""
