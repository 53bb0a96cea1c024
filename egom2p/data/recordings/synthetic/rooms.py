"""The scene that everything else walks, looks and renders in: a procedural furnished room, or any file of trimesh.

World frame: metres, x east, y north, z up, the floor at z = 0.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh

from egom2p.config import Natural, NotNegative, Positive, Range, Share, strict
from egom2p.data.recordings.synthetic.surfaces import (
    CEILING_COLOUR,
    FLOOR_COLOUR,
    FURNITURE_COLOURS,
    WALL_COLOURS,
    Paint,
    plain_paint,
    random_texture,
    textured_paint,
)

_GREY = (0.6, 0.6, 0.6)


@dataclass(frozen=True)
class Thing:
    """A named thing that stands still: what it is called and a point in its middle (3,) metres."""

    name: str
    centre: np.ndarray


@dataclass(frozen=True)
class Scene:
    """Everything that does not move: one mesh with its paint, and the things in it that have names."""

    name: str
    mesh: trimesh.Trimesh
    paint: Paint
    things: tuple[Thing, ...]


@strict
class RoomConfig:
    """Sizes (metres) and looks of the procedural rooms; each pair is a range drawn from uniformly.

    compass_palette: walls have the same hue by compass direction in every room, so that turning the head shows as
    hues that move over the picture. Without it each room draws its four hues anew.
    """

    side_m: Range[Positive] = (7.0, 11.0)  # length of the walls
    height_m: Range[Positive] = (2.6, 3.2)  # of the ceiling
    num_furniture: Range[Natural] = (7, 9)  # pieces in a room
    share_in_the_middle: Share = 0.2  # of the furniture; the rest stands along the walls
    furniture_height_m: Range[Positive] = (0.4, 1.9)  # of each piece
    compass_palette: bool = True
    colour_jitter: NotNegative = 0.04  # standard deviation of colours around the named ones
    texture_strength: NotNegative = 0.16  # how much patterns lighten and darken a surface

    def __post_init__(self) -> None:
        if self.side_m[0] < 4.0:
            raise ValueError(f"side_m must start at 4 m or more to leave room to walk, got {self.side_m}")
        if self.furniture_height_m[1] > 1.95 or self.height_m[0] < 2.4:
            raise ValueError("furniture_height_m must stay below 1.95 m and height_m above 2.4 m")


def build_room(seed: int, config: RoomConfig) -> Scene:
    """The room of this seed: the same mesh on every call."""
    rng = np.random.default_rng((0x526F6F6D, seed))
    east, north = rng.uniform(*config.side_m, size=2)
    height = rng.uniform(*config.height_m)
    parts = _shell(east, north, height, rng, config)
    things = []
    for _ in range(rng.integers(config.num_furniture[0], config.num_furniture[1] + 1)):
        mesh, paint, name = _furniture(east, north, rng, config)
        parts.append((mesh, paint))
        things.append(Thing(name, mesh.bounds.mean(axis=0)))
    mesh = trimesh.util.concatenate([mesh for mesh, _ in parts])
    return Scene(f"room{seed:06d}", mesh, Paint.joined([paint for _, paint in parts]), tuple(things))


def _jittered(colour: tuple[float, float, float], rng: np.random.Generator, amount: float) -> tuple[float, ...]:
    return tuple(np.clip(np.asarray(colour) * (1 + rng.uniform(-amount, amount, size=3)), 0.02, 1.0))


def _shell(
    east: float, north: float, height: float, rng: np.random.Generator, config: RoomConfig
) -> list[tuple[trimesh.Trimesh, Paint]]:
    """Floor, ceiling and four walls as single rectangles, the room's centre at x = y = 0."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (east / 2, north / 2)
    low, high = np.c_[corners, np.zeros(4)], np.c_[corners, np.full(4, height)]
    # Corners go south-west, south-east, north-east, north-west: wall i joins corner i and i + 1.
    walls = {0: (1, 2), 1: (2, 3), 2: (3, 0), 3: (0, 1)}
    hues = WALL_COLOURS if config.compass_palette else [WALL_COLOURS[i] for i in rng.permutation(4)]
    jitter = config.colour_jitter
    tiles = np.array([[1, 0, 0], [0, 1, 0]]) * (2 * np.pi / rng.uniform(1.2, 2.0))
    strength = config.texture_strength
    parts = [
        (low, textured_paint(2, _jittered(FLOOR_COLOUR, rng, jitter), waves=tiles, amplitudes=(0.0, 2.2 * strength))),
        (
            high,
            textured_paint(2, _jittered(CEILING_COLOUR, rng, jitter), waves=tiles, amplitudes=(0.5 * strength, 0.0)),
        ),
    ]
    for side, (first, second) in walls.items():
        along = (low[second] - low[first]) / np.linalg.norm(low[second] - low[first])
        waves = np.stack([along * (2 * np.pi / rng.uniform(0.9, 1.8)), [0, 0, 2 * np.pi / rng.uniform(1.5, 2.5)]])
        amplitudes = ((strength, 0.0), (0.6 * strength, 0.6 * strength))[rng.integers(2)]
        corners_43 = np.stack([low[first], low[second], high[second], high[first]])
        phases = tuple(rng.uniform(0, 2 * np.pi, 2))
        colour = _jittered(hues[side], rng, jitter)
        parts.append((corners_43, textured_paint(2, colour, waves=waves, amplitudes=amplitudes, phases=phases)))
    triangles = np.array([[0, 1, 2], [0, 2, 3]])
    return [(trimesh.Trimesh(corners_43, triangles, process=False), paint) for corners_43, paint in parts]


def _furniture(
    east: float, north: float, rng: np.random.Generator, config: RoomConfig
) -> tuple[trimesh.Trimesh, Paint, str]:
    """One piece of furniture, placed and painted."""
    shape = ("box", "cylinder", "cone", "sphere", "table")[rng.integers(5)]
    height = rng.uniform(*config.furniture_height_m)
    width = rng.uniform(0.4, 1.0, size=2)
    mesh = _shape(shape, width, height)
    half = np.max(mesh.bounds[1, :2])
    side = np.array([east, north]) / 2
    if rng.random() < config.share_in_the_middle:
        position = rng.uniform(-0.5, 0.5, size=2) * side
    else:
        position = rng.uniform(-1, 1, size=2) * (side - half)
        axis = rng.integers(2)
        position[axis] = (side[axis] - half) * rng.choice([-1.0, 1.0])
    turn = rng.uniform(0, 2 * np.pi) if shape in ("box", "table") else 0.0
    matrix = trimesh.transformations.rotation_matrix(turn, [0, 0, 1])
    matrix[:2, 3] = position
    mesh.apply_transform(matrix)
    colour_name = list(FURNITURE_COLOURS)[rng.integers(len(FURNITURE_COLOURS))]
    colour = _jittered(FURNITURE_COLOURS[colour_name], rng, config.colour_jitter)
    strength = 0.8 * config.texture_strength
    paint = random_texture(len(mesh.faces), colour, rng, period_m=(0.5, 1.2), strength=strength)
    return mesh, paint, f"{colour_name} {shape}"


def _shape(shape: str, width: np.ndarray, height: float) -> trimesh.Trimesh:
    """A mesh that stands on z = 0 around the z axis."""
    if shape == "table":
        thickness, height = 0.08, max(0.6, 0.5 * height)
        top = trimesh.creation.box(extents=(1.5 * width[0], 1.5 * width[1], thickness))
        top.apply_translation((0, 0, height - thickness / 2))
        legs = trimesh.creation.box(extents=(0.3 * width[0], 0.3 * width[1], height - thickness))
        legs.apply_translation((0, 0, (height - thickness) / 2))
        return trimesh.util.concatenate([top, legs])
    make = {
        "box": lambda: trimesh.creation.box(extents=(*width, height)),
        "cylinder": lambda: trimesh.creation.cylinder(radius=width[0] / 2, height=height, sections=24),
        "cone": lambda: trimesh.creation.cone(radius=0.6 * width[0], height=height, sections=24),
        "sphere": lambda: trimesh.creation.icosphere(subdivisions=2, radius=0.6 * width[0]),
    }
    mesh = make[shape]()
    mesh.apply_translation((0, 0, -mesh.bounds[0, 2]))
    return mesh


def load_scene(file: str | Path, *, up_axis: str = "z", metres_per_unit: float = 1.0) -> Scene:
    """The scene in a file, turned so that z is up, in metres.

    Colours are those of the triangles (a texture is averaged to one colour per triangle); grey where there are none.
    Raises ValueError naming the file when it cannot be read or holds no triangles.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"{path}: no such scene file; give a file that trimesh can load (glb, ply, obj, stl)")
    try:
        loaded = trimesh.load_scene(path)
    except (ValueError, KeyError, OSError, NotImplementedError) as error:
        raise ValueError(f"{path}: trimesh cannot load this scene ({error})") from error
    from_file = np.diag([metres_per_unit] * 3 + [1.0])
    if up_axis == "y":
        from_file = from_file @ np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=float)
    meshes, paints, things = [], [], []
    for mesh in loaded.dump():
        if not isinstance(mesh, trimesh.Trimesh) or len(mesh.faces) == 0:
            continue
        mesh.apply_transform(from_file)
        paints.append(_paint_of(mesh))
        bare = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
        meshes.append(bare)
        things.append(Thing(str(mesh.metadata.get("name", "thing")), bare.bounds.mean(axis=0)))
    if not meshes:
        raise ValueError(f"{path}: found no triangles, wanted a scene with at least one mesh")
    return Scene(path.stem, trimesh.util.concatenate(meshes), Paint.joined(paints), tuple(things))


def _paint_of(mesh: trimesh.Trimesh) -> Paint:
    paint = plain_paint(len(mesh.faces), _GREY)
    if mesh.visual is None or not mesh.visual.defined:
        return paint
    visual = mesh.visual.to_color() if mesh.visual.kind == "texture" else mesh.visual
    paint.colour[:] = np.asarray(visual.face_colors)[:, :3] / 255.0
    return paint
