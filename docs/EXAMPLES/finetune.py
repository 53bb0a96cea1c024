# %% [markdown]
# # Fine-tune on my recordings
#
# A model that was trained with one camera meets recordings of another: here rooms seen through a lens of 115 degrees
# instead of 84, under a lamp that reaches twice as far. What it makes of them before and after some minutes of training
# on them, on rooms that neither has seen. `python docs/EXAMPLES/finetune.py`; about five minutes on two CPU cores.
#
# Every step is a command of the project. With recordings of your own, the first becomes
# `egom2p prepare source.root=DOWNLOAD dataset=world clip.height=64 clip.width=64 output=clips/train` (64 is what the
# small pretrained model reads), and the rest stays as it is.

# %%
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt

plt.switch_backend("agg")
PICTURES = Path(__file__).parent / "pictures"
PRETRAINED = "checkpoints/world_small"  # found wherever the project is installed


def egom2p(*words: str) -> None:
    """A command of the project, as `egom2p ...` on a command line."""
    subprocess.run([sys.executable, "-m", "egom2p", *words], check=True)


# %% [markdown]
# Recordings become clips of two seconds, and clips become tokens by the tokenizers inside the pretrained model. Rooms
# to train on and rooms to measure in are kept apart by their seeds.

# %%
other_camera = ["source.world.camera.fov_deg=115", "source.world.lamp.reach_m=3.0"]
for split, first_seed, num_rooms in (("train", 500_000, 40), ("val", 600_000, 10)):
    rooms = [f"source.world.first_seed={first_seed}", f"source.world.num_rooms={num_rooms}"]
    egom2p(
        *("prepare", "--config", "cfgs/default/data_preparation/synthetic.yaml"),
        *(*other_camera, *rooms, f"output=clips/{split}", "dataset=world"),
    )
    egom2p(
        *("tokenize", "--config", "cfgs/default/tokenize/own_video.yaml"),
        *(f"clips=clips/{split}", f"output=tokens/{split}"),
    )

# %% [markdown]
# Training goes on from the pretrained weights. `dry_run=true` would say first what it needs.

# %%
egom2p(
    *("train", "--config", "cfgs/default/egom2p/models/main/world_small.yaml", f"finetune={PRETRAINED}"),
    *(f"tokenizers_root={PRETRAINED}/tokenizers", "data.tokens_root=tokens", "output_dir=finetuned"),
    *(f"tokenizers.{name}={name}" for name in ("tok_rgb", "tok_depth", "tok_gaze", "tok_cam")),
    *("training.num_steps=150", "training.warmup=10", "training.lr=1e-3", "training.wandb.mode=disabled"),
    *("training.log_every=5", "training.evaluate_every=150", "training.checkpoint_every=150"),
)

# %% [markdown]
# Both on the same held-out clips, with baselines, the tokenizers' ceiling and intervals: `evaluation/index.html`.

# %%
egom2p(
    *("evaluate", "--config", "cfgs/default/egom2p/evaluation/post_training.yaml"),
    *(f"checkpoints={{before: {PRETRAINED}, after: finetuned/final}}", "output=evaluation"),
    *("clips={root: clips/val, dataset: world}", "train_clips={root: clips/train, dataset: world}"),
    *("tasks=[rgb2depth,rgb2cam]", "training_runs={fine-tuning: finetuned}", "num_clips=40", "num_shown_clips=1"),
    *("train_tokens=tokens/train/[rgb,depth,gaze,cam]/world/shard-*.tar", "title=Before and after", "page=null"),
)

# %%
results = json.loads(Path("evaluation/results.json").read_text())
log = [json.loads(line) for line in Path("finetuned/log.jsonl").read_text().splitlines()]
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
steps = [entry for entry in log if entry["kind"] == "train"]
axes[0].plot([entry["step"] for entry in steps], [entry["loss"] for entry in steps], color="#0072B2")
axes[0].set(title="training loss (nats per token)", xlabel="steps")
for one, task in zip(axes[1:], results["tasks"], strict=True):
    metric = next(metric for metric in task["metrics"] if metric["is_primary"])
    shown = {}
    for row in task["rows"]:
        value = row["values"].get(metric["key"])
        name = row["checkpoint"] or row["label"]
        if (
            value
            and row["kind"] in ("baseline", "model")
            and (name not in shown or value["mean"] < shown[name]["mean"])
        ):
            shown[name] = value
    for line, (name, value) in enumerate(shown.items()):
        colour = {"before": "#0072B2", "after": "#D55E00"}.get(name, "#8a94a0")
        one.plot([value["low"], value["high"]], [line, line], color=colour, lw=3, alpha=0.4)
        one.plot(value["mean"], line, "o", color=colour)
    one.set_yticks(range(len(shown)), shown)
    one.set(title=f"{task['task']}: {metric['label']} {metric['unit']}".strip(), xlim=(0, None))
    print(task["task"], {name: round(value["mean"], 3) for name, value in shown.items()})
PICTURES.mkdir(exist_ok=True)
figure.savefig(PICTURES / "finetune.jpg", dpi=80)
