"""How long the synthetic world takes per clip of 2 s, on one core. Prints JSON.

    python benchmarks/world.py [--rooms 10] [--size 64] [--output world.json]

`ms_per_clip` is processor time of everything (room, simulation, pictures, depth) over the number of clips;
`ms_per_room` is what building a room and its walk map takes, once per room. The goal is 100 ms per clip at 64 x 64.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from environment import environment

from egom2p.data.recordings.synthetic import CameraConfig, RoomConfig, SyntheticReader, SyntheticWorldConfig
from egom2p.data.recordings.synthetic.casting import Caster
from egom2p.data.recordings.synthetic.rooms import build_room
from egom2p.data.recordings.synthetic.walking import build_walk_map

CLIP_S = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=10)
    parser.add_argument("--size", type=int, default=64, help="pixels per side")
    parser.add_argument("--output", type=Path, default=None, help="also write the JSON here")
    arguments = parser.parse_args()
    result = {**environment(), **measure(arguments.rooms, arguments.size)}
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n")


def measure(num_rooms: int, size: int) -> dict[str, float]:
    """Processor and wall time per clip over recordings of new rooms."""
    config = SyntheticWorldConfig(num_rooms=num_rooms + 1, camera=CameraConfig(height=size, width=size))
    reader = SyntheticReader(config)
    reader.read(num_rooms)  # imports and first allocations
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    for index in range(num_rooms):
        reader.read(index)
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    num_clips = num_rooms * config.duration_s / CLIP_S
    room_s = time.process_time()
    for seed in range(num_rooms):
        scene = build_room(seed, RoomConfig())
        build_walk_map(scene, Caster(scene.mesh))
    room_s = time.process_time() - room_s
    return {
        "clips": num_clips,
        "frames_per_clip": CLIP_S * config.video_rate_hz,
        "pixels_per_side": size,
        "ms_per_clip": round(1e3 * cpu_s / num_clips, 2),
        "wall_ms_per_clip": round(1e3 * wall_s / num_clips, 2),
        "ms_per_room": round(1e3 * room_s / num_rooms, 2),
    }


if __name__ == "__main__":
    main()
