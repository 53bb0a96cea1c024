"""Push a trained model to the Hub.

EgoM2P: `upload_ckpt_hf.py directory=outputs/<run>/final repo_id=owner/name`; any-to-any language model:
`upload_ckpt_hf.py --ckpt_dir outputs/<run> --epoch 0 --hf_repo_id owner/name [--dry_run]`.
"""

import sys

from egom2p.anytoany.push import upload
from egom2p.config import run_main
from egom2p.models.push import PushModelConfig, push_model

if __name__ == "__main__":
    if any(word.split("=")[0] in ("--ckpt_dir", "--hf_repo_id") for word in sys.argv[1:]):
        upload(sys.argv[1:])
    else:
        run_main(
            PushModelConfig,
            push_model,
            default_config="default/egom2p/push.yaml",
            description="Push an EgoM2P model with its tokenizers and a model card to the Hugging Face Hub.",
        )
