"""Everything that run_evaluation.py does: tasks, baselines, scores per quantity, drift, linear probe."""
