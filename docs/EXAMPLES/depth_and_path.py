# %% [markdown]
# # Depth and path of my video
#
# From a video file to depth in metres, the camera's path and where the wearer looks, in one call. Run it as it is
# (`python docs/EXAMPLES/depth_and_path.py`), with a video of your own (`... depth_and_path.py walk.mp4`), or cell by
# cell in an editor that knows `# %%`. One CPU core, under a minute.
#
# The models that come with the project have seen nothing but rendered rooms, and their metres are to be believed in
# such rooms only; so the video of this page is one, in which the truth is known. For it the model of such rooms is
# taken, for a video of yours the one that does better on real clips.

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

import egom2p
from egom2p.data.clips.video_files import write_video
from egom2p.data.recordings.synthetic.reader import SyntheticReader, SyntheticWorldConfig
from egom2p.geometry import canonicalise
from egom2p.metrics.camera import camera_errors
from egom2p.metrics.depth import depth_errors

plt.switch_backend("agg")
PICTURES = Path(__file__).parent / "pictures"

# %% [markdown]
# A room that the model was not trained on, walked through for eight seconds, as a file like any other.

# %%
video, truth = next((word for word in sys.argv[1:] if word.endswith(".mp4")), None), None
if video is None:
    truth = SyntheticReader(SyntheticWorldConfig(num_rooms=1, first_seed=400_005)).read(0).streams
    video = str(write_video("walk.mp4", truth["rgb"].values, 8.0))

# %% [markdown]
# The one call. Windows of two seconds that overlap are generated and joined, so a video may have any length.

# %%
model = egom2p.load_model("checkpoints/world_small" if truth is not None else None)
made = model.generate(video, targets=["depth", "cam", "gaze"])
print(f"{len(made.rgb)} frames with depth, {len(made.world_from_cam)} poses, {len(made.gaze)} gaze samples")

# %% [markdown]
# Depth is metres per pixel, 0 where nothing is known; poses are `world_from_cam`, and the first is the world; gaze is
# in [0, 1] of the picture. All on the clock of the video: `made.streams["gaze"].times_s`.

# %%
rows = {"video and gaze": made.rgb, "depth, generated": made.depth_m}
if truth is not None:
    rows["depth, truth"] = truth["depth"].values[: len(made.depth_m)]
scale = {"cmap": "cividis", "norm": LogNorm(*np.quantile(made.depth_m[made.depth_m > 0], [0.01, 0.99]))}
frames = np.linspace(0, len(made.rgb) - 1, 5).astype(int)
figure, axes = plt.subplots(len(rows), 5, figsize=(10, 2.1 * len(rows)), layout="constrained", squeeze=False)
for line, (title, values) in enumerate(rows.items()):
    axes[line, 0].set_ylabel(title)
    for one, frame in zip(axes[line], frames, strict=True):
        drawn = one.imshow(values[frame], **(scale if values.ndim == 3 else {}))
        one.set(xticks=[], yticks=[])
for one, frame in zip(axes[0], frames, strict=True):
    time_s = made.streams["rgb"].times_s[frame]
    u, v = made.gaze[np.abs(made.streams["gaze"].times_s - time_s).argmin()]
    one.plot(u * made.rgb.shape[2] - 0.5, v * made.rgb.shape[1] - 0.5, "o", color="#D55E00", mec="white")
    one.set_title(f"{time_s:.1f} s", fontsize=10)
figure.colorbar(drawn, ax=axes[1:], label="depth (m)")
PICTURES.mkdir(exist_ok=True)
figure.savefig(PICTURES / "depth.jpg", dpi=80)

# %%
figure, one = plt.subplots(figsize=(4.5, 4.5), layout="constrained")
one.plot(made.world_from_cam[:, 0, 3], made.world_from_cam[:, 2, 3], color="#D55E00", label="generated")
if truth is not None:
    path = canonicalise(truth["camera"].values)[: len(made.world_from_cam)]
    one.plot(path[:, 0, 3], path[:, 2, 3], color="black", label="truth")
one.set(xlabel="right of the start (m)", ylabel="ahead of the start (m)", aspect="equal")
one.legend()
figure.savefig(PICTURES / "path.jpg", dpi=80)

# %% [markdown]
# How far off is it? Without any alignment: the metres as they come.

# %%
if truth is not None:
    depth = depth_errors(made.depth_m, truth["depth"].values[: len(made.depth_m)])
    camera = camera_errors(made.world_from_cam, path, alignment="first_pose")
    print(f"depth: AbsRel {depth['abs_rel']:.3f}; path: ATE {camera['ate_m']:.2f} m")

# %% [markdown]
# The same with files and a page to look at: `python generate.py input=walk.mp4 'targets=[depth,cam,gaze]' output=walk`.
