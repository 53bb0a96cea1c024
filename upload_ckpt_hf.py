"""Push a trained model to the Hub: `upload_ckpt_hf.py directory=outputs/<run>/final repo_id=owner/name`."""

from egom2p.config import run_main
from egom2p.models.push import PushModelConfig, push_model

if __name__ == "__main__":
    run_main(
        PushModelConfig,
        push_model,
        default_config="default/egom2p/push.yaml",
        description="Push an EgoM2P model with its tokenizers and a model card to the Hugging Face Hub.",
    )
