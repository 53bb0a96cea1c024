# %% [markdown]
# # Ask the model about a clip
#
# A language model that perceives what EgoM2P's encoder makes of video, gaze and camera: trained from scratch on
# questions about rendered clips, then asked about clips of rooms it has never seen.
# `python docs/EXAMPLES/ask_about_a_clip.py`; about four minutes on two CPU cores. (`make anytoany-quickstart` is the
# whole of it, with a pretrained language model.)
#
# In these clips three toys hover side by side and the eyes choose one of them by chance: the picture does not tell
# which, only the gaze does. So every question is asked three times: with what the encoder perceived, with what it
# perceived of another clip (shuffled), and with nothing (zero).

# %%
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

plt.switch_backend("agg")
PICTURES = Path(__file__).parent / "pictures"
ANY = Path("outputs/anytoany")
CFGS = "cfgs/default/anytoany"


def egom2p(*words: str) -> None:
    """A command of the project, as `egom2p ...` on a command line."""
    subprocess.run([sys.executable, "-m", "egom2p", *words], check=True)


# %% [markdown]
# Clips of rooms to learn from and of others to be asked about, and the states of the pretrained encoder over them.

# %%
for split, first_seed, num_rooms in (("train", 0, 375), ("val", 300_000, 24)):
    clips, features = ANY / "world_data/clips" / split, ANY / "world_data/features" / split
    rooms = (f"source.world.first_seed={first_seed}", f"source.world.num_rooms={num_rooms}")
    egom2p("prepare", "--config", "cfgs/default/data_preparation/gaze_questions.yaml", *rooms, f"output={clips}")
    egom2p("caption-perceive", "--config", f"{CFGS}/world_features.yaml", f"input={clips}", f"output={features}")

# %% [markdown]
# A vocabulary, and a minute of training of a model of a few hundred thousand parameters.
# That is enough for how the camera moves, and not for what is looked at, as the measurements below say.

# %%
egom2p("download", "source=synthetic")
egom2p("caption-train", "--config", f"{CFGS}/world.yaml")

# %% [markdown]
# Questions about clips that it has not seen, under every control.

# %%
egom2p("caption-evaluate", "--config", f"{CFGS}/evaluation/world.yaml")
samples = [json.loads(line) for line in (ANY / "evaluation/world/samples.jsonl").read_text().splitlines()]
results = json.loads((ANY / "evaluation/world/results.json").read_text())
for task in results["tasks"]:
    right = {row["label"]: round(row["values"][task["metrics"][0]["key"]]["mean"], 3) for row in task["rows"]}
    print(f"{task['task']}: {task['metrics'][0]['label']} {right}")

# %% [markdown]
# The first clip of each kind of question: what was shown, the gaze in it, and what was answered.

# %%
shown = []
for kind in ("looked_at", "motion", "captions"):
    for sample in (sample for sample in samples if sample["table"] == kind):
        file = ANY / "evaluation/world/shown" / f"{kind}-{sample['row']}-0.npz"
        if file.is_file():
            shown.append((sample, np.load(file)))
            break
figure, axes = plt.subplots(len(shown), 4, figsize=(11, 2.3 * len(shown)), layout="constrained", squeeze=False)
for line, (sample, media) in zip(axes, shown, strict=True):
    frames = media["frames"]
    for one, frame in zip(line, np.linspace(0, len(frames) - 1, 3).astype(int), strict=False):
        one.imshow(frames[frame])
        if "gaze" in media and media["gaze_is_valid"][frame]:
            u, v = media["gaze"][frame] * frames.shape[2:0:-1] - 0.5
            one.plot(u, v, "o", color="#D55E00", mec="white", ms=9)
    words = [sample["question"].split("}")[-1].strip(), f"right: {sample['reference']}", ""]
    words += [f"{answer['control'] or answer['model']}: {answer['output'].strip()}" for answer in sample["answers"]]
    line[3].text(0, 1, "\n".join(words), va="top", fontsize=9, wrap=True)
for one in axes.flat:
    one.axis("off")
PICTURES.mkdir(exist_ok=True)
figure.savefig(PICTURES / "ask_about_a_clip.jpg", dpi=80)

# %% [markdown]
# The same about a file: `egom2p caption model=outputs/anytoany/world/final 'prompt="Describe {video}"' video=walk.mp4`
# (a picture, gaze and more: README_ANYTOANY.md). The model says so where the input is unlike what it was trained on.
