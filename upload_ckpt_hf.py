"""Push trained weights to the Hub: an EgoM2P model, a tokenizer, or an any-to-any language model.

`upload_ckpt_hf.py --ckpt_dir outputs/<run> --hf_repo_id owner/name [--epoch 0] [--dry_run]`; `--help` lists the rest.
"""

import sys

from egom2p.pipelines.publish import upload

if __name__ == "__main__":
    upload(sys.argv[1:])
