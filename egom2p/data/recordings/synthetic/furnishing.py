"""Natural rooms: furniture in layouts, clutter of many shapes, walls with windows, doors and pictures, and hands.

World frame as in `rooms`: metres, z up, the floor at z = 0, the room's centre at x = y = 0. V vertices, A triangles.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import trimesh

from egom2p.config import Natural, Positive, Range, Share, strict
from egom2p.data.recordings.synthetic.casting import Caster
from egom2p.data.recordings.synthetic.rooms import Scene, Thing
from egom2p.data.recordings.synthetic.textures import Material, Skin, random_material

Shape = tuple[np.ndarray, np.ndarray]  # vertices (V, 3) and triangles (A, 3)
Pair = tuple[float, float]
_ANY = ("clouds", "clouds", "stripes", "bricks", "tiles", "wood", "cloth", "spots", "picture", "photo", "print")
_FURNITURE = ("wood", "wood", "clouds", "cloth", "tiles", "stripes")
_WALL = ("clouds", "clouds", "clouds", "stripes", "bricks", "tiles", "wood", "cloth", "spots")
_FLOOR = ("wood", "wood", "tiles", "clouds", "cloth", "bricks")


@strict
class FurnishingConfig:
    """Sizes (metres) and counts of natural rooms; each pair is a range drawn from uniformly.

    num_clutter    small things, most of them on what has a top, some on the floor
    blocks         parts of the room walled off, so that few rooms are plain boxes
    """

    side_m: Range[Positive] = (2.6, 8.5)  # length of the walls
    height_m: Range[Positive] = (2.2, 3.4)  # of the ceiling
    num_furniture: Range[Natural] = (5, 14)  # pieces
    num_clutter: Range[Natural] = (25, 90)
    num_on_walls: Range[Natural] = (3, 10)  # pictures and the like
    blocks: Range[Natural] = (0, 2)
    plain_share: Share = 0.6  # of walls and ceilings: light and with little pattern

    def __post_init__(self) -> None:
        if self.side_m[0] < 2 or self.height_m[0] < 2:
            raise ValueError(f"side_m and height_m must start at 2 m or more, got {self.side_m}, {self.height_m}")


@dataclass(frozen=True)
class NaturalScene:
    """What stands still, where bright windows are (W, 3) and how they look into the room (W, 3)."""

    name: str
    mesh: trimesh.Trimesh
    skin: Skin
    things: tuple[Thing, ...]
    floor_m: float = 0.0
    windows: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    inwards: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))

    @cached_property
    def caster(self) -> Caster:
        return Caster(self.mesh)


class _Builder:
    """Collects bodies: vertices, triangles and skins."""

    def __init__(self) -> None:
        self._vertices: list[np.ndarray] = []
        self._faces: list[np.ndarray] = []
        self._skins: list[Skin] = []
        self._count = 0

    def add(
        self,
        shape: Shape,
        material: Material,
        rng: np.random.Generator,
        *,
        rotation: np.ndarray | None = None,
        shift: tuple[float, float, float] | np.ndarray = (0.0, 0.0, 0.0),
        once: bool = False,
    ) -> None:
        """once: the picture begins at the corner of the body, instead of anywhere."""
        vertices, faces = shape
        rotation, shift = np.eye(3) if rotation is None else rotation, np.asarray(shift, dtype=np.float64)
        skin = Skin.wrapped(vertices[faces], material, rng)
        if once:
            low = np.einsum("aij,avj->iav", skin.tiles, vertices[faces]).min(axis=(1, 2))
            skin = replace(skin, offsets=np.broadcast_to(-low, skin.offsets.shape))
        self._skins.append(skin.moved(rotation, shift))
        self._vertices.append(vertices @ rotation.T + shift)
        self._faces.append(faces + self._count)
        self._count += len(vertices)

    def built(self) -> tuple[trimesh.Trimesh, Skin]:
        mesh = trimesh.Trimesh(np.concatenate(self._vertices), np.concatenate(self._faces), process=False)
        return mesh, Skin.joined(self._skins)


# Shapes: vertices (V, 3) and triangles (A, 3), outside facing out, standing on z = 0.


@lru_cache
def _unit(shape: str) -> Shape:
    makers = {
        "box": lambda: trimesh.creation.box(extents=(1, 1, 1)),
        "ball": lambda: trimesh.creation.icosphere(subdivisions=2, radius=0.5),
        "cone": lambda: trimesh.creation.cone(radius=0.5, height=1, sections=20),
        "pipe": lambda: trimesh.creation.cylinder(radius=0.5, height=1, sections=18),
        "ring": lambda: trimesh.creation.torus(0.36, 0.14, major_sections=18, minor_sections=9),
        "lathe": lambda: trimesh.creation.revolve([[k % 6 > 0, k] for k in range(7)], sections=14),
        "capsule": lambda: trimesh.creation.capsule(height=1, radius=0.25, count=(8, 10)),
    }
    mesh = makers[shape]()
    vertices = np.array(mesh.vertices - [0, 0, mesh.bounds[0, 2]])
    return vertices, np.array(mesh.faces)


def _box(width: float, depth: float, height: float) -> Shape:
    vertices, faces = _unit("box")
    return vertices * (width, depth, height), faces


def _scaled(shape: str, *size: float) -> Shape:
    vertices, faces = _unit(shape)
    return vertices * np.array(size) / np.maximum(np.ptp(vertices, axis=0), 1e-9), faces


def _turned(rng: np.random.Generator, width: float, height: float) -> Shape:
    """A body turned on a lathe: bottles, bowls, vases, lamp shades."""
    vertices, faces = _unit("lathe")
    ring = np.round(vertices[:, 2]).astype(int)
    radii = np.r_[0, rng.uniform(0.25, 1, 5), 0] * width / 2
    heights = np.r_[0, 0, np.sort(rng.random(3)), 1, 1] * height
    return np.c_[vertices[:, :2] * radii[ring, None], heights[ring]], faces


def _blob(rng: np.random.Generator, *size: float) -> Shape:
    """A lump: cushions, fruit, crumpled cloth, leaves."""
    vertices, faces = _unit("ball")
    centred = vertices - vertices.mean(axis=0)
    waves, phases = rng.normal(scale=5, size=(4, 3)), rng.uniform(0, 2 * np.pi, 4)
    centred = centred * (1 + 0.12 * np.sin(centred @ waves.T + phases).sum(axis=1, keepdims=True))
    centred = centred - centred.min(axis=0)
    return (centred / np.ptp(centred, axis=0) - (0.5, 0.5, 0.0)) * size, faces


def _about_z(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def furnish(seed: int, config: FurnishingConfig) -> NaturalScene:
    """The natural room of this seed: the same on every call."""
    rng = np.random.default_rng((0x4E617475, seed))
    size = np.array([*rng.uniform(*config.side_m, size=2), rng.uniform(*config.height_m)])
    builder = _Builder()
    _shell(builder, size, rng, config)
    windows, inwards = _hang(builder, size, rng, config)
    things, tops = [], []
    for _ in range(rng.integers(config.num_furniture[0], config.num_furniture[1] + 1)):
        new_things, new_tops = _stand(builder, size, rng)
        things.extend(new_things)
        tops.extend(new_tops)
    for _ in range(rng.integers(config.num_clutter[0], config.num_clutter[1] + 1)):
        things.append(_drop(builder, size, tops, rng))
    mesh, skin = builder.built()
    return NaturalScene(
        f"natural{seed:06d}", mesh, skin, tuple(things), windows=np.array(windows), inwards=np.array(inwards)
    )


def _plain_or(rng: np.random.Generator, kinds: tuple[str, ...], plain_share: float) -> Material:
    if rng.random() < plain_share:
        return random_material(rng, ("clouds",), value=(0.5, 0.95), saturation=0.12, contrast=0.3, tile_m=(0.7, 3.0))
    return random_material(rng, kinds, tile_m=(0.4, 2.5), saturation=0.22, contrast=0.8)


def _shell(builder: _Builder, size: np.ndarray, rng: np.random.Generator, config: FurnishingConfig) -> None:
    """Floor, ceiling, walls (often all alike) and walled-off blocks."""
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0], [-1, -1, 2], [1, -1, 2], [1, 1, 2], [-1, 1, 2]])
    corners = corners * size / 2
    walls = _plain_or(rng, _WALL, config.plain_share)
    faces = {"floor": (0, 1, 2, 3), "ceiling": (7, 6, 5, 4)}
    faces |= {k: side for k, side in enumerate([(1, 0, 4, 5), (2, 1, 5, 6), (3, 2, 6, 7), (0, 3, 7, 4)])}
    for where, corner_numbers in faces.items():
        if where == "floor":
            material = random_material(rng, _FLOOR, tile_m=(0.4, 2.0), value=(0.08, 0.8), contrast=0.8)
        elif where == "ceiling":
            material = _plain_or(rng, ("wood", "clouds", "tiles"), max(config.plain_share, 0.8))
        else:
            material = walls if rng.random() < 0.7 else _plain_or(rng, _WALL, config.plain_share)
        quad = corners[list(corner_numbers)], np.array([[0, 1, 2], [0, 2, 3]])
        builder.add(quad, material, rng)
    for _ in range(rng.integers(config.blocks[0], config.blocks[1] + 1)):
        wide, deep = rng.uniform(0.2, 0.35, size=2) * size[:2]
        corner = rng.choice([-1.0, 1.0], size=2) * (size[:2] - (wide, deep)) / 2
        builder.add(_box(wide, deep, size[2]), walls, rng, shift=(*corner, 0.0))
    if rng.random() < 0.4:  # a carpet
        width, depth = rng.uniform(0.3, 0.7, size=2) * size[:2]
        shift = (*(rng.uniform(-0.25, 0.25, 2) * size[:2]), 0.0)
        carpet = random_material(rng, ("cloth", "stripes", "clouds", "spots"), tile_m=(0.3, 1.5), saturation=0.4)
        builder.add(_box(width, depth, 0.012), carpet, rng, rotation=_about_z(rng.normal(scale=0.1)), shift=shift)


def _hang(
    builder: _Builder, size: np.ndarray, rng: np.random.Generator, config: FurnishingConfig
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Windows, doors, pictures, cupboards, shelves and skirting on the walls; bright windows and where they look."""
    windows, inwards = [], []
    skirting = random_material(rng, ("wood", "clouds"), contrast=0.3)
    for side in range(4):
        along, out = size[side % 2], _about_z(side * np.pi / 2)
        builder.add(_box(along, 0.02, 0.08), skirting, rng, rotation=out, shift=out @ (0, size[1 - side % 2] / 2, 0))
    for number in range(rng.integers(config.num_on_walls[0], config.num_on_walls[1] + 1)):
        side = rng.integers(4)
        rotation = _about_z(side * np.pi / 2)
        along, away = size[side % 2], size[1 - side % 2] / 2
        kind = ("window", "door", "picture", "photo", "cupboard", "shelf", "print")[rng.integers(7)]
        width, height = rng.uniform(0.25, 1.0, size=2) * (1.2, 0.9)
        bottom, thickness = rng.uniform(1.0, 1.5), 0.03 + 0.004 * number  # no two faces lie in one plane
        if kind == "window":
            width, height, bottom = rng.uniform(0.6, 2.0), rng.uniform(0.7, 1.4), rng.uniform(0.6, 1.0)
        elif kind == "door":
            width, height, bottom = rng.uniform(0.7, 1.0), min(rng.uniform(1.95, 2.1), size[2] - 0.02), 0.0
        elif kind == "cupboard":
            thickness = rng.uniform(0.25, 0.4)
        elif kind == "shelf":
            width, height, thickness = rng.uniform(0.5, 1.5), rng.uniform(0.25, 0.4), 0.2
        width, height = min(width, along - 0.1), min(height, size[2] - bottom - 0.01)
        shift = rotation @ (rng.uniform(-1, 1) * (along - width) / 2, away - thickness / 2, bottom)
        once = kind in ("window", "door", "picture", "photo", "print")
        kinds = {"cupboard": _FURNITURE, "shelf": ("spines",)}.get(kind, (kind,))
        glow = rng.uniform(1.0, 6.0) * (kind == "window") * (rng.random() < 0.7)
        fitting = (width, height) if once else (0.5, 0.6) if kind == "shelf" else None
        material = random_material(rng, kinds, once_m=fitting, glow=glow)
        if kind in ("picture", "photo", "print", "window"):
            frame = random_material(rng, ("wood", "clouds"), contrast=0.4)
            frame_shift = shift - rotation @ (0, -0.006, 0.03)
            builder.add(_box(width + 0.06, thickness, height + 0.06), frame, rng, rotation=rotation, shift=frame_shift)
        builder.add(_box(width, thickness, height), material, rng, rotation=rotation, shift=shift, once=once)
        if glow:
            inwards.append(rotation @ (0, -1, 0))
            windows.append(shift + (0, 0, height / 2) + 0.15 * inwards[-1])
        if kind == "window" and rng.random() < 0.5:
            curtain = random_material(rng, ("cloth", "stripes", "clouds"), tile_m=(0.15, 0.8))
            for edge in (-1, 1):
                at = shift + rotation @ (edge * (width / 2 + 0.1), -0.05, -rng.uniform(0, bottom))
                builder.add(_box(0.25, 0.08, height + 0.2), curtain, rng, rotation=rotation, shift=at)
    return windows, inwards


class _Plan(NamedTuple):
    """A kind of furniture: ranges of its width, depth and height (metres), on what its top rests, and what is on it.

    base      legs, a post, two sides, or solid with doors
    levels    boards below the top; back: how far it rises above the top; wall: how often it stands at one
    chairs    at most so many around it; weight: how many times as often as others it is drawn
    """

    width: Pair
    depth: Pair
    height: Pair
    base: str
    wall: float
    levels: tuple[int, int] = (0, 0)
    back: Pair = (0.0, 0.0)
    cushions: int = 0
    chairs: int = 0
    weight: int = 1


_PLANS = {
    "table": _Plan((0.7, 2.0), (0.5, 1.0), (0.68, 0.95), "legs", 0.4, chairs=4, weight=3),
    "low table": _Plan((0.5, 1.2), (0.4, 0.7), (0.3, 0.5), "legs", 0.3, levels=(0, 1)),
    "round table": _Plan((0.5, 1.3), (0.5, 1.3), (0.68, 0.95), "post", 0.3, chairs=4),
    "desk": _Plan((0.9, 1.8), (0.55, 0.8), (0.68, 0.8), "sides", 0.8, levels=(0, 1), chairs=1),
    "chair": _Plan((0.38, 0.5), (0.38, 0.5), (0.42, 0.5), "legs", 0.3, back=(0.3, 0.55), weight=2),
    "stool": _Plan((0.28, 0.42), (0.28, 0.42), (0.42, 0.75), "post", 0.3),
    "shelf": _Plan((0.5, 1.4), (0.25, 0.4), (0.8, 2.1), "sides", 0.9, levels=(1, 5), weight=2),
    "cabinet": _Plan((0.4, 2.2), (0.4, 0.65), (0.5, 1.1), "solid", 0.85, weight=2),
    "counter": _Plan((1.5, 3.5), (0.55, 0.65), (0.85, 0.95), "solid", 0.95),
    "wardrobe": _Plan((0.5, 1.3), (0.45, 0.65), (1.5, 2.1), "solid", 0.95),
    "sofa": _Plan((1.1, 2.2), (0.7, 0.95), (0.35, 0.5), "solid", 0.5, back=(0.3, 0.5), cushions=4),
    "bed": _Plan((0.9, 1.7), (1.8, 2.1), (0.35, 0.55), "solid", 0.8, back=(0.1, 0.6), cushions=2),
    "lamp": _Plan((0.35, 0.5), (0.35, 0.5), (1.2, 1.8), "post", 0.7),
    "plant": _Plan((0.3, 0.5), (0.3, 0.5), (0.6, 1.6), "pot", 0.7),
}
_DRAWN = [kind for kind, plan in _PLANS.items() for _ in range(plan.weight)]
Parts = list[tuple[Shape, Material, tuple[float, float, float]]]
Tops = list[tuple[np.ndarray, np.ndarray, float, float]]  # middle (3,), rotation, width, depth


def _stand(builder: _Builder, size: np.ndarray, rng: np.random.Generator) -> tuple[list[Thing], Tops]:
    """One piece of furniture, a table often with chairs: the things, and the tops that others can stand on."""
    kind = _DRAWN[rng.integers(len(_DRAWN))]
    plan = _PLANS[kind]
    piece, (width, depth), its_tops = _build(kind, rng)
    half = size[:2] / 2
    if rng.random() < plan.wall:  # its back to a wall
        side = rng.integers(4)
        rotation = _about_z(side * np.pi / 2)
        along, away = half[side % 2] - width / 2, half[1 - side % 2] - depth / 2 - 0.03
        shift = rotation @ (rng.uniform(-1, 1) * max(along, 0.0), max(away, 0.0), 0)
    else:
        rotation = _about_z(rng.uniform(0, 2 * np.pi))
        shift = np.r_[rng.uniform(-0.7, 0.7, 2) * np.maximum(half - 0.4, 0.2), 0.0]
    pieces = [(kind, piece, rotation, shift)]
    if plan.chairs and rng.random() < 0.6:
        chair, _, _ = _build("chair", rng)
        for number in range(rng.integers(1, plan.chairs + 1)):
            turn = rotation @ _about_z((number + 2) * np.pi / 2 + rng.normal(scale=0.15))
            away = (depth if number % 2 == 0 else width) / 2 + rng.uniform(-0.05, 0.35)
            pieces.append(("chair", chair, turn, shift + turn @ (rng.normal(scale=0.05), away, 0.0)))
    for _, parts, turn, at in pieces:
        for shape, material, spot in parts:
            builder.add(shape, material, rng, rotation=turn, shift=turn @ np.asarray(spot, float) + at)
    tops = [(rotation @ np.asarray(at, float) + shift, rotation, wide, deep) for at, wide, deep in its_tops]
    return [Thing(name, at + (0, 0, 0.6)) for name, _, _, at in pieces], tops


def _build(kind: str, rng: np.random.Generator) -> tuple[Parts, tuple[float, float], list]:
    """A piece of furniture around the origin, its back to +y: parts, width and depth, tops (position, width, depth)."""
    plan = _PLANS[kind]
    main = random_material(rng, _FURNITURE, tile_m=(0.25, 1.5), value=(0.08, 0.92))
    other = random_material(rng, _FURNITURE, tile_m=(0.25, 1.5)) if rng.random() < 0.4 else main
    width, depth, height = rng.uniform(*plan.width), rng.uniform(*plan.depth), rng.uniform(*plan.height)
    depth = width if plan.base == "post" else depth
    thick = rng.uniform(0.02, 0.06)
    parts = _rest(plan.base, (width, depth, height - thick), (main, other), rng)
    levels, tops = rng.integers(plan.levels[0], plan.levels[1] + 1), []
    gap = height / (levels + 1)
    for level in range(levels + 1):
        top = (level + 1) * gap
        if plan.base != "pot":
            board = _scaled("pipe" if plan.base == "post" else "box", width, depth, thick)
            parts.append((board, main, (0, 0, top - thick)))
        room = min(0.35, gap - thick) if level < levels else 0.0
        if room > 0.12 and rng.random() < 0.5:
            goods = random_material(rng, ("spines",), once_m=(0.5, 2 * room))
            parts.append((_box(rng.uniform(0.3, 0.95) * width, 0.6 * depth, room), goods, (0, 0.1 * depth, top)))
        elif kind not in ("lamp", "plant"):
            tops.extend([((0, -0.1 * depth, top), width, 0.7 * depth)] * (3 if 0.3 < top < 1.2 else 1))
    if back := rng.uniform(*plan.back):
        parts.append((_box(width, 0.05 + 0.2 * depth * (plan.cushions > 2), back), main, (0, 0.45 * depth, height)))
    for k in range(plan.cushions):
        wide = width / plan.cushions
        at = ((k + 0.5) * wide - width / 2, 0.3 * depth, height - 0.02)
        parts.append((_blob(rng, 0.9 * wide, 0.3, rng.uniform(0.15, 0.4)), other, at))
    if kind == "lamp":
        shade = random_material(rng, ("cloth", "clouds"), value=(0.6, 0.9), glow=rng.uniform(0, 1.5), saturation=0.2)
        parts[-1] = (_turned(rng, width, 0.3), shade, (0, 0, height - 0.1))
    return parts, (width, depth), tops


def _rest(
    base: str, size: tuple[float, float, float], materials: tuple[Material, Material], rng: np.random.Generator
) -> Parts:
    """What carries a top of this width and depth at this height; of a plant, all of it."""
    (width, depth, height), (main, other) = size, materials
    thick = rng.uniform(0.02, 0.07)
    if base == "legs":
        leg = _scaled("pipe", thick, thick, height) if rng.random() < 0.4 else _box(thick, thick, height)
        x, y = (width - thick) / 2, (depth - thick) / 2
        return [(leg, other, (i * x, j * y, 0)) for i in (-1, 1) for j in (-1, 1)]
    if base == "post":
        foot = _scaled("cone", 0.7 * width, 0.7 * width, 0.08)
        return [(_scaled("pipe", thick, thick, height), other, (0, 0, 0)), (foot, other, (0, 0, 0))]
    if base == "sides":
        parts = [(_box(0.03, depth, height), main, (i * (width - 0.03) / 2, 0, 0)) for i in (-1, 1)]
        return parts + [(_box(width, 0.02, height), other, (0, depth / 2, 0))] * (rng.random() < 0.6)
    if base == "pot":
        green = np.array([0.5, 1.0, 0.4]) * rng.uniform(0.15, 0.6)
        leaf = Material(0, (0.2, 0.2), green * 0.4, np.outer([1, 0.4, 0.3], green), 0.4)
        spots = rng.normal(scale=0.4 * width, size=(rng.integers(6, 16), 3)) * (1, 1, 0)
        stem = (_scaled("pipe", 0.03, 0.03, height), leaf, (0, 0, 0))
        leaves = [(_blob(rng, *rng.uniform(0.08, 0.3, 3)), leaf, at + (0, 0, rng.uniform(0.3, height))) for at in spots]
        return [(_turned(rng, width, 0.35), main, (0, 0, 0)), stem, *leaves]
    count = rng.integers(1, 5)
    wide, parts = width / count, [(_box(width, depth, height), main, (0, 0, 0))]
    for k in range(count):  # doors or drawers, and their knobs
        x = (k + 0.5) * wide - width / 2
        parts.append((_box(wide - 0.02, 0.03, 0.9 * height), other, (x, -depth / 2, 0.05 * height)))
        parts.append((_scaled("ball", 0.03, 0.03, 0.03), other, (x + 0.3 * wide, -depth / 2 - 0.03, 0.7 * height)))
    return parts


def clutter(rng: np.random.Generator) -> tuple[str, Shape, Material]:
    """A small thing: name, shape and material."""
    kind = ("book", "box", "can", "ball", "cone", "ring", "jar", "jar", "jar", "lump", "lump", "bar", "sheet")
    kind = kind[rng.integers(len(kind))]
    width, depth, height = np.exp(rng.normal(np.log(0.11), 0.45, size=3))
    material = random_material(rng, _ANY, tile_m=(0.05, 0.4), saturation=0.45, value=(0.03, 0.95))
    if kind in ("jar", "lump"):
        shape = _turned(rng, width, 1.4 * height) if kind == "jar" else _blob(rng, width, depth, height)
    elif kind in ("book", "sheet"):
        width, depth = rng.uniform(0.15, 0.3, size=2)
        material = random_material(rng, ("print", "picture", "photo", "clouds"), once_m=(width, depth))
        shape = _box(width, depth, rng.uniform(0.01, 0.05) if kind == "book" else 0.004)
    elif kind == "bar":
        shape = _scaled("capsule", 0.03, 0.03, rng.uniform(0.1, 0.4))
    else:
        name = {"box": "box", "can": "pipe", "ball": "ball", "cone": "cone", "ring": "ring"}[kind]
        shape = _scaled(name, width, width if kind != "box" else depth, height if kind != "ball" else width)
    return kind, shape, material


def _drop(builder: _Builder, size: np.ndarray, tops: Tops, rng: np.random.Generator) -> Thing:
    """A small thing on a top, or on the floor."""
    kind, shape, material = clutter(rng)
    rotation = _about_z(rng.uniform(0, 2 * np.pi))
    if kind == "bar" or rng.random() < 0.15:  # lying
        tilt = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0.0]])
        rotation = rotation @ tilt
    low = (shape[0] @ rotation.T)[:, 2].min()
    if tops and rng.random() < 0.85:
        middle, turn, width, depth = tops[rng.integers(len(tops))]
        spot = middle + turn @ (*(rng.uniform(-0.42, 0.42, 2) * (width, depth)), 0.0)
    else:
        spot = np.r_[rng.uniform(-0.47, 0.47, 2) * size[:2], 0.0]
        if rng.random() < 0.5:  # on the floor things are larger
            shape = shape[0] * rng.uniform(1.5, 3), shape[1]
            low = (shape[0] @ rotation.T)[:, 2].min()
    shift = spot - (0, 0, low)
    builder.add(shape, material, rng, rotation=rotation, shift=shift)
    return Thing(kind, (shape[0] @ rotation.T + shift).mean(axis=0))


def dress_arms(rng: np.random.Generator) -> tuple[Material, Material]:
    """Skin and sleeve of a wearer; bare arms in half of all cases."""
    tone = np.array([0.78, 0.52, 0.38]) * np.array([1, 0.97, 0.93]) ** rng.uniform(-2, 6) * rng.uniform(0.25, 1.1)
    skin = Material(int(rng.integers(8)), (0.1, 0.1), tone * 0.9, np.outer([0.15, 0.05, 0.05], tone), 0.1)
    return skin, skin if rng.random() < 0.5 else random_material(
        rng, ("cloth", "clouds", "stripes"), tile_m=(0.05, 0.3)
    )


def build_hand(
    rng: np.random.Generator, materials: tuple[Material, Material], *, is_left: bool
) -> tuple[trimesh.Trimesh, Skin]:
    """A hand and its forearm: the palm at the origin, fingers along -z, the elbow towards +z; it may hold a thing."""
    builder = _Builder()
    skin, sleeve = materials
    arm = _scaled("capsule", 0.075, 0.065, 0.42)
    builder.add(arm, sleeve, rng, shift=(0, 0, 0.05 if sleeve is skin else 0.09))
    builder.add(_scaled("capsule", 0.055, 0.045, 0.2), skin, rng, shift=(0, 0, 0.0))
    builder.add(_blob(rng, 0.09, 0.035, 0.1), skin, rng, shift=(0, 0, -0.06))
    curl, side = rng.uniform(0, 1.2), -1 if is_left else 1
    for k in range(5):
        is_thumb = k == 4
        root = np.array([side * 0.045, 0, 0.0] if is_thumb else [(k - 1.5) * 0.021, 0, -0.05])
        lean = side * 0.8 if is_thumb else (k - 1.5) * 0.06
        bend = rng.normal(curl, 0.15) * (0.4 if is_thumb else 1.0)
        for length, more in ((0.045, 0.0), (0.05, 0.7 * bend)):
            angle = 0.5 * bend + more
            along = np.array([np.sin(lean), np.sin(angle) * np.cos(lean), -np.cos(angle) * np.cos(lean)])
            across = np.cross(along, [0.3, 1.0, 0.2])
            across /= np.linalg.norm(across)
            rotation = np.stack([across, np.cross(along, across), along], axis=1)
            builder.add(_scaled("capsule", 0.019, 0.019, length + 0.015), skin, rng, rotation=rotation, shift=root)
            root = root + length * along
    if rng.random() < 0.5:
        _, shape, material = clutter(rng)
        builder.add(shape, material, rng, rotation=_about_z(rng.uniform(0, 6)), shift=(0, 0.05, -0.12))
    return builder.built()


def dress(scene: Scene, floor_m: float, rng: np.random.Generator) -> NaturalScene:
    """A scene from a file in a natural material, tinted by its own colours."""
    grey = random_material(rng, ("clouds", "cloth", "wood"), value=(0.8, 0.95), saturation=0.05, contrast=0.5)
    skin = Skin.wrapped(np.asarray(scene.mesh.triangles), grey, rng, tint=scene.paint.colour)
    return NaturalScene(scene.name, scene.mesh, skin, scene.things, floor_m)
