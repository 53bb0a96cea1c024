"""Materials of natural rooms: pictures of many kinds, drawn once, laid over surfaces at any size and in any colours.

An atlas holds tileable pictures with their half, quarter, ... sizes. A point reads the size whose texels are about as
large as what its pixel covers, so that nothing flickers at a distance. K pictures, N materials, A triangles, P points.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

_SIDE = 128
_NUM_LEVELS = 8  # 128, 64, ... 1
_PICTURES_OF_A_KIND = 12


@dataclass(frozen=True)
class Atlas:
    """texels (K * S, 3) float32 in [0, 1], S texels of all sizes of a picture; kinds: name -> its pictures."""

    texels: np.ndarray
    kinds: dict[str, tuple[int, ...]]

    def read(
        self, picture_P: np.ndarray, tile_P2: np.ndarray, level_P: np.ndarray, *, is_smooth: bool = True
    ) -> np.ndarray:
        """Values (P, 3) at positions in tiles (one tile is one picture), size _SIDE / 2^level; bilinear or nearest."""
        level_P = np.clip(level_P, 0, _NUM_LEVELS - 1).astype(np.int64)
        side_P = _SIDE >> level_P
        start_P = picture_P * _SIZES.sum() + _STARTS[level_P]
        at_P2 = (tile_P2 - np.floor(tile_P2)) * side_P[:, None].astype(np.float32) - np.float32(0.5)
        if not is_smooth:
            column_P, row_P = np.round(at_P2.T).astype(np.int64) & (side_P - 1)
            return self.texels[start_P + row_P * side_P + column_P]
        low_P2 = np.floor(at_P2).astype(np.int64)
        share_P2 = at_P2 - low_P2.astype(np.float32)
        columns = [(low_P2[:, 0] + k) & (side_P - 1) for k in (0, 1)]
        rows = [start_P + ((low_P2[:, 1] + k) & (side_P - 1)) * side_P for k in (0, 1)]
        u_P1, v_P1 = share_P2[:, :1], share_P2[:, 1:]
        upper_P3, lower_P3 = (
            self.texels[row] * (1 - u_P1) + self.texels[after] * u_P1
            for row, after in (
                (rows[0] + columns[0], rows[0] + columns[1]),
                (rows[1] + columns[0], rows[1] + columns[1]),
            )
        )
        return upper_P3 * (1 - v_P1) + lower_P3 * v_P1


_SIZES = np.array([(_SIDE >> level) ** 2 for level in range(_NUM_LEVELS)])
_STARTS = np.r_[0, np.cumsum(_SIZES)[:-1]]


@lru_cache(maxsize=1)
def the_atlas() -> Atlas:
    """The same in every process: about half a second."""
    rng = np.random.default_rng(0x41746C61)
    texels, kinds = [], {}
    for name, draw in _KINDS.items():
        kinds[name] = tuple(range(len(texels), len(texels) + _PICTURES_OF_A_KIND))
        texels.extend(_all_sizes(np.clip(draw(rng), 0, 1)) for _ in range(_PICTURES_OF_A_KIND))
    return Atlas(np.concatenate(texels).astype(np.float32), kinds)


def _all_sizes(picture: np.ndarray) -> np.ndarray:
    sizes = [picture]
    while len(sizes[-1]) > 1:
        last = sizes[-1]
        sizes.append((last[::2, ::2] + last[1::2, ::2] + last[::2, 1::2] + last[1::2, 1::2]) / 4)
    return np.concatenate([size.reshape(-1, 3) for size in sizes])


# Structures: of their three channels the first two blend three colours of a material, the third is fine grain.


def _noise(
    rng: np.random.Generator, power: float | None = None, stretch: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """(S, S) in [0, 1], all octaves, amplitude falling with this power of the frequency."""
    power = rng.uniform(0.8, 2.2) if power is None else power
    rows, columns = np.meshgrid(np.fft.fftfreq(_SIDE) * _SIDE * stretch[0], np.fft.fftfreq(_SIDE) * _SIDE * stretch[1])
    radius = np.hypot(rows, columns)
    radius[0, 0] = np.inf
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(_SIDE, _SIDE))) / radius**power).real
    return np.clip(0.5 + noise / (4 * noise.std()), 0, 1)


def _channels(first: np.ndarray, second: np.ndarray | float, rng: np.random.Generator) -> np.ndarray:
    return np.stack([first, np.broadcast_to(second, first.shape), _noise(rng, 0.6)], axis=-1)


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (S, S) in [0, 1)."""
    return np.mgrid[:_SIDE, :_SIDE] / _SIDE


def _clouds(rng: np.random.Generator) -> np.ndarray:
    noise = _noise(rng)
    if rng.random() < 0.5:  # with edges: marble, rust, stains
        noise = 1 / (1 + np.exp(-rng.uniform(8, 30) * (np.abs(noise - 0.5) * 2 - rng.uniform(0.1, 0.4))))
    return _channels(noise, _noise(rng, 2.0) * 0.5, rng)


def _stripes(rng: np.random.Generator) -> np.ndarray:
    rows, columns = _grid()
    edges = np.sort(rng.random(2 * rng.integers(1, 6)))
    wave = np.searchsorted(edges, (columns + 0.01 * _noise(rng, 2.0)) % 1) % 2
    across = (np.searchsorted(np.sort(rng.random(2)), rows) % 2) * (rng.random() < 0.4)
    return _channels(wave.astype(float), 0.7 * across, rng)


def _bricks(rng: np.random.Generator) -> np.ndarray:
    rows, columns = _grid()
    num_rows, num_columns = 2 * rng.integers(2, 5), rng.integers(2, 5)
    row = np.floor(rows * num_rows)
    shifted = (columns + (row % 2) * 0.5 / num_columns) % 1
    column = np.floor(shifted * num_columns)
    gap = rng.uniform(0.03, 0.09)
    is_mortar = ((rows * num_rows) % 1 < gap * 2) | ((shifted * num_columns) % 1 < gap)
    shade = rng.random((num_rows, num_columns))[row.astype(int), column.astype(int)]
    return _channels(is_mortar.astype(float), shade * (1 - is_mortar), rng)


def _tiles(rng: np.random.Generator) -> np.ndarray:
    rows, columns = _grid()
    count, gap = 2 * rng.integers(1, 4), rng.uniform(0.02, 0.07)
    is_gap = ((rows * count) % 1 < gap) | ((columns * count) % 1 < gap)
    row, column = np.floor(rows * count).astype(int), np.floor(columns * count).astype(int)
    chess = (row + column) % 2 if rng.random() < 0.4 else 0.4 * rng.random((count, count))[row, column]
    return _channels(is_gap.astype(float), chess * (1 - is_gap), rng)


def _wood(rng: np.random.Generator) -> np.ndarray:
    rows, columns = _grid()
    planks = rng.integers(1, 6)
    plank = np.floor(columns * planks).astype(int)
    grain = np.sin(2 * np.pi * (rng.integers(2, 6) * columns + rng.uniform(1, 4) * _noise(rng, 1.8, (1.0, 0.15)))) / 2
    is_gap = ((columns * planks) % 1 < 0.03) & (planks > 1)
    tone = 0.5 + 0.5 * grain * rng.uniform(0.3, 1.0)
    return _channels(tone * (1 - is_gap) + is_gap, 0.6 * rng.random(planks)[plank], rng)


def _cloth(rng: np.random.Generator) -> np.ndarray:
    rows, columns = _grid()
    count = 2 ** rng.integers(3, 6)
    weave = 0.5 + 0.25 * np.sin(2 * np.pi * count * rows) + 0.25 * np.sin(2 * np.pi * count * columns)
    bands = np.sort(rng.random((2, 4)), axis=1)
    plaid = (np.searchsorted(bands[0], rows) % 2 + np.searchsorted(bands[1], columns) % 2) / 2
    folds = _noise(rng, 2.0, (1.0, 0.3))
    return _channels(0.4 * weave + 0.6 * folds, plaid * (rng.random() < 0.6), rng)


def _spots(rng: np.random.Generator) -> np.ndarray:
    rows, columns = _grid()
    value = np.zeros((2, _SIDE, _SIDE))
    for row, column, radius in rng.random((rng.integers(5, 40), 3)) * (1, 1, 0.1) + (0, 0, 0.02):
        offsets = [(axis - centre + 0.5) % 1 - 0.5 for axis, centre in ((rows, row), (columns, column))]
        value[rng.integers(2)][np.hypot(*offsets) < radius] = 1
    return _channels(value[0], value[1], rng)


def _picture(rng: np.random.Generator) -> np.ndarray:
    """A poster: gradients, clouds, discs and rectangles in its own colours."""
    rows, columns = _grid()
    sky = rng.random((2, 3))
    picture = sky[0] + (rows + 0.3 * _noise(rng))[..., None] * (sky[1] - sky[0])
    for _ in range(rng.integers(3, 14)):
        row, column, height, width = rng.random(4) * (1, 1, 0.4, 0.4)
        away = np.abs(rows - row) / (height + 0.02), np.abs(columns - column) / (width + 0.02)
        is_inside = (np.hypot(*away) < 1) if rng.random() < 0.5 else (np.maximum(*away) < 1)
        shaded = random_colour(rng, saturation=0.6) * (0.6 + 0.8 * _noise(rng)[..., None])
        picture = np.where(is_inside[..., None], shaded, picture)
    return picture


def _photograph(rng: np.random.Generator) -> np.ndarray:
    """A part of a photograph that matplotlib carries; a poster where it does not."""
    package = find_spec("matplotlib")
    name = ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png")[rng.integers(2)]
    path = Path(package.origin).parent / "mpl-data/sample_data" / name if package else Path()
    if not path.is_file():
        return _picture(rng)
    with Image.open(path) as file:
        width, height = file.size
        side = rng.uniform(0.3, 1.0) * min(width, height)
        left, top = rng.random(2) * (width - side, height - side)
        part = file.convert("RGB").resize((_SIDE, _SIDE), box=(left, top, left + side, top + side))
    return np.asarray(part)[:, :: rng.choice([-1, 1])] / 255


def _spines(rng: np.random.Generator) -> np.ndarray:
    """Books in two rows, or goods on a shelf."""
    picture = np.zeros((_SIDE, _SIDE, 3))
    for top, bottom in ((0, _SIDE // 2), (_SIDE // 2, _SIDE)):
        column = 0
        while column < _SIDE:
            width, height = rng.integers(4, 16), rng.integers(30, 60)
            colour = random_colour(rng, saturation=0.5)
            picture[bottom - height : bottom, column : column + width] = colour
            picture[bottom - height : bottom, column : column + 1] = 0.4 * colour
            if width > 5:
                label = bottom - height + rng.integers(4, 16)
                picture[label : label + rng.integers(3, 9), column + 2 : column + width - 1] = random_colour(rng)
            column += width
        picture[top : top + 3] = 0.3
    return picture


def _print(rng: np.random.Generator) -> np.ndarray:
    """Paper or a label with lines of text."""
    paper, ink = 0.75 + 0.25 * rng.random(3), random_colour(rng, saturation=0.4) * 0.5
    picture = np.tile(paper, (_SIDE, _SIDE, 1))
    row = rng.integers(4, 20)
    while row < _SIDE - 10:
        height, column = rng.integers(2, 7), 8
        while column < _SIDE - rng.integers(8, 60):
            width = rng.integers(3, 14)
            picture[row : row + height, column : column + width] = ink
            column += width + 3
        row += 2 * height + rng.integers(1, 4)
    if rng.random() < 0.5:
        row, column = rng.integers(10, 60, size=2)
        picture[row : row + 50, column : column + 50] = _picture(rng)[:50, :50]
    return picture


def _panes(rng: np.random.Generator) -> np.ndarray:
    """A window: sky, trees and house fronts behind a frame."""
    rows, columns = _grid()
    sky, ground = np.array([0.75, 0.85, 1.0]), random_colour(rng, saturation=0.5) * 0.7
    horizon = rng.uniform(0.3, 0.9) + 0.3 * (_noise(rng, 1.4)[:1] - 0.5)
    picture = np.where((rows > horizon)[..., None], ground * (0.5 + _noise(rng, 1.0)[..., None]), sky)
    count = rng.integers(1, 4)
    is_frame = ((columns * count) % 1 < 0.08) | ((columns * count) % 1 > 0.92) | (rows < 0.05) | (rows > 0.95)
    return np.where(is_frame[..., None], 0.45 + 0.15 * rng.random(), picture)


def _door(rng: np.random.Generator) -> np.ndarray:
    rows, columns = _grid()
    relief = np.zeros((_SIDE, _SIDE))
    for top, bottom in ((0.08, 0.45), (0.52, 0.92))[: rng.integers(0, 3)]:
        away = np.maximum(np.abs(rows - (top + bottom) / 2) / (bottom - top) * 2, np.abs(columns - 0.5) / 0.36)
        relief += (np.abs(away - 1) < 0.06) * 0.7
    knob = np.hypot((rows - 0.5) * 2.2, columns - 0.9) < 0.04
    is_frame = (columns < 0.04) | (columns > 0.96) | (rows < 0.03)
    return _channels(np.clip(relief + 0.5 * is_frame, 0, 1), knob * 1.0, rng)


_KINDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "clouds": _clouds, "stripes": _stripes, "bricks": _bricks, "tiles": _tiles, "wood": _wood, "cloth": _cloth,
    "spots": _spots, "door": _door, "picture": _picture, "photo": _photograph,
    "spines": _spines, "print": _print, "window": _panes,
}  # fmt: skip
_IN_OWN_COLOURS = ("picture", "photo", "spines", "print", "window")


def random_colour(
    rng: np.random.Generator, *, saturation: float = 0.35, value: tuple[float, float] = (0.02, 0.92)
) -> np.ndarray:
    """An albedo (3,): mostly dull, half of them of the hues of wood, skin and stone; saturation is its mean."""
    hue = rng.random() if rng.random() < 0.5 else rng.normal(0.08, 0.05)
    wheel = 1 - np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    share = rng.beta(1.2, 1.2 * (1 - saturation) / saturation)
    # Even in what the eye sees, not in light: half of all things are dark.
    return np.square(rng.uniform(*np.sqrt(value))) * (1 - share * wheel)


@dataclass(frozen=True)
class Material:
    """How a surface looks.

    tile_m      side of the picture on the surface; (width, height) where it lies on it once
    colour      (3,) and to_colour (3, 3): albedo = colour + picture @ to_colour
    detail      strength of a second, finer picture that multiplies it
    glow        what it shines with by itself; gloss: how much of a light it mirrors
    """

    picture: int
    tile_m: tuple[float, float]
    colour: np.ndarray
    to_colour: np.ndarray
    detail: float = 0.0
    glow: float = 0.0
    gloss: float = 0.0


def random_material(
    rng: np.random.Generator,
    kinds: tuple[str, ...],
    *,
    tile_m: tuple[float, float] = (0.15, 1.5),
    value: tuple[float, float] = (0.02, 0.92),
    saturation: float = 0.35,
    contrast: float = 1.0,
    once_m: tuple[float, float] | None = None,
    glow: float = 0.0,
) -> Material:
    """A material of one of these kinds with colours of its own; once_m: its picture lies once on a face so large."""
    atlas = the_atlas()
    kind = kinds[rng.integers(len(kinds))]
    picture = atlas.kinds[kind][rng.integers(_PICTURES_OF_A_KIND)]
    size = tuple(np.exp(rng.uniform(*np.log(tile_m))) * np.exp(rng.normal(scale=0.15, size=2)))
    size = once_m or size
    gloss = rng.uniform(0.1, 1.0) ** 2 if rng.random() < 0.35 else 0.0
    if kind in _IN_OWN_COLOURS:
        mixing = np.eye(3) * rng.uniform(0.6, 1.0) + rng.uniform(-0.1, 0.1, (3, 3))
        return Material(picture, size, np.zeros(3), mixing, rng.uniform(0, 0.1), glow, gloss)
    colours = [random_colour(rng, saturation=saturation, value=value) for _ in range(3)]
    # Most things have a colour and little pattern; a few have much.
    spread, grain = contrast * rng.uniform(0.1, 1.0) ** 2, rng.uniform(0, 0.5) ** 2 * contrast * colours[0]
    to_colour = np.stack([spread * (colours[1] - colours[0]), spread * (colours[2] - colours[0]), grain])
    return Material(picture, size, colours[0] - grain / 2, to_colour, rng.uniform(0, 0.5) ** 2 * contrast, glow, gloss)


@dataclass(frozen=True)
class Skin:
    """Materials of the triangles of a mesh.

    material    (A,) number of the material
    tiles       (A, 2, 3) and offsets (A, 2): position in tiles = tiles @ x + offset, x metres in the mesh's frame
    tint        (A, 3) multiplies the colour
    """

    materials: tuple[Material, ...]
    material: np.ndarray
    tiles: np.ndarray
    offsets: np.ndarray
    tint: np.ndarray

    @classmethod
    def wrapped(
        cls, triangles: np.ndarray, material: Material, rng: np.random.Generator, *, tint: np.ndarray | None = None
    ) -> "Skin":
        """One material around a body: each triangle (A, 3, 3) sees it along the axis that it faces most."""
        along, across = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
        # Of small bodies np.cross would take most of the time of a room.
        normals = along[:, [1, 2, 0]] * across[:, [2, 0, 1]] - along[:, [2, 0, 1]] * across[:, [1, 2, 0]]
        axis_A = np.abs(normals).argmax(axis=1)
        # Upright faces have the picture's rows along z, downwards.
        axes = np.array([[[0, 1, 0], [0, 0, -1]], [[1, 0, 0], [0, 0, -1]], [[1, 0, 0], [0, 1, 0]]], dtype=np.float64)
        tiles = axes[axis_A] / np.array(material.tile_m)[:, None]
        offsets = np.broadcast_to(rng.random(2), (len(triangles), 2))
        white = np.ones((len(triangles), 3), np.float32)
        return cls((material,), np.zeros(len(triangles), int), tiles, offsets, white if tint is None else tint)

    def moved(self, rotation: np.ndarray, shift: np.ndarray) -> "Skin":
        """The same skin on the mesh at rotation @ x + shift."""
        tiles = self.tiles @ rotation.T
        return Skin(self.materials, self.material, tiles, self.offsets - tiles @ shift, self.tint)

    @classmethod
    def joined(cls, skins: list["Skin"]) -> "Skin":
        first = np.cumsum([0] + [len(skin.materials) for skin in skins])
        return cls(
            tuple(material for skin in skins for material in skin.materials),
            np.concatenate([skin.material + start for skin, start in zip(skins, first, strict=False)]),
            *(np.concatenate([getattr(skin, name) for skin in skins]) for name in ("tiles", "offsets", "tint")),
        )

    @cached_property
    def _tables(self) -> dict[str, np.ndarray]:
        names = ("picture", "colour", "to_colour", "detail", "glow", "gloss", "tile_m")
        return {
            name: np.array([getattr(material, name) for material in self.materials], np.float32) for name in names
        } | {"tiles": self.tiles.astype(np.float32), "offsets": self.offsets.astype(np.float32)}

    def look(
        self, triangle_P: np.ndarray, point_P3: np.ndarray, pixel_m_P: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Albedo (P, 3), and glow and gloss (P, 2), at points in the mesh's frame; pixel_m_P: a pixel's width there."""
        atlas, tables = the_atlas(), self._tables
        material_P = self.material[triangle_P]
        tile_P2 = np.einsum("pij,pj->pi", tables["tiles"][triangle_P], point_P3.astype(np.float32))
        tile_P2 += tables["offsets"][triangle_P]
        texels_P = pixel_m_P / tables["tile_m"].min(axis=1)[material_P] * _SIDE
        level_P = np.round(np.log2(np.maximum(texels_P, 1.0)))
        value_P3 = atlas.read(tables["picture"].astype(np.int64)[material_P], tile_P2, level_P)
        colour_P3 = tables["colour"][material_P] + np.einsum("pi,pij->pj", value_P3, tables["to_colour"][material_P])
        # The grain is two and a half times as fine and leans, so that the pattern does not repeat with the tile.
        grain_P2 = tile_P2 @ np.array([[2.3, 1.1], [-1.1, 2.3]], np.float32)
        clouds = np.array(atlas.kinds["clouds"])
        grain_P = atlas.read(clouds[material_P % len(clouds)], grain_P2, level_P + 1, is_smooth=False)[:, 2]
        colour_P3 *= 1 + 2 * tables["detail"][material_P, None] * (grain_P[:, None] - 0.5)
        shine_P2 = np.stack([tables["glow"], tables["gloss"]], axis=1)[material_P]
        return np.clip(colour_P3 * self.tint[triangle_P], 0.01, 1.0).astype(np.float32), shine_P2
