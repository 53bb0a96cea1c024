# The Slurm scripts on a real Slurm of two hosts, started for the test and stopped after it. Included by the Makefile.

.PHONY: slurm-test
slurm-test: $(ENV)  ## the Slurm scripts on a real Slurm on this machine (apt install slurm-wlm munge), ~4 minutes
	OMP_NUM_THREADS=1 $(PY) -m pytest -rs tests/test_slurm_scripts.py tests/training/test_slurm_cluster.py
