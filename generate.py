"""Generate: `python generate.py input=walk.mp4 'targets=[depth,cam,gaze]' output=... [checkpoint=...]`."""

from egom2p.config import run_main
from egom2p.generation.generation import GenerationConfig, run_generation
from egom2p.jobs.progress import say
from egom2p.viewing.generation_page import write_generation_page


def main(config: GenerationConfig) -> None:
    manifest = run_generation(config)
    say(f"page: {write_generation_page(manifest.parent)}")


if __name__ == "__main__":
    run_main(
        GenerationConfig,
        main,
        default_config="default/egom2p/generation/any2any.yaml",
        description="Generate depth, camera, gaze or rgb from a video, recordings or tokens.",
    )
