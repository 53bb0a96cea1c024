"""Colours and soft textures of surfaces.

A surface is painted per triangle: a base colour times two long waves through space. The waves are far longer than
a pixel at the sizes the world is rendered at, so nothing aliases, and they move over the picture when the wearer
does. P points, A triangles.
"""

from dataclasses import dataclass

import numpy as np

# Shades of similar brightness: what differs is hue, so that brightness can stand for distance (see `rendering`).
FURNITURE_COLOURS = {
    "grey": (0.56, 0.57, 0.60),
    "brown": (0.60, 0.45, 0.34),
    "beige": (0.70, 0.62, 0.50),
    "teal": (0.38, 0.60, 0.60),
    "olive": (0.54, 0.58, 0.36),
    "slate": (0.45, 0.52, 0.66),
}
FLOOR_COLOUR = (0.62, 0.49, 0.40)
CEILING_COLOUR = (0.66, 0.68, 0.72)
# The compass palette: which hue the walls in the east (+x), north (+y), west (-x) and south (-y) have.
WALL_COLOURS = ((0.30, 0.72, 0.34), (0.33, 0.48, 0.95), (0.70, 0.40, 0.88), (0.80, 0.70, 0.24))
# Moving things are the only saturated warm surfaces and glow by themselves.
MOVER_COLOURS = {"red": (1.0, 0.08, 0.08), "orange": (1.0, 0.42, 0.04), "pink": (1.0, 0.12, 0.62)}


@dataclass(frozen=True)
class Paint:
    """How each triangle looks, in the frame of its mesh.

    colour      (A, 3) float32, display values in [0, 1] under full light
    waves       (A, 2, 3) float32, two wave vectors in radians per metre
    phases      (A, 2) float32
    amplitudes  (A, 2) float32: of the first wave, and of the product of both
    glow        (A,) float32: 0 lit by the lamp only, 1 shines with its own colour
    """

    colour: np.ndarray
    waves: np.ndarray
    phases: np.ndarray
    amplitudes: np.ndarray
    glow: np.ndarray

    @classmethod
    def joined(cls, paints: list["Paint"]) -> "Paint":
        names = ("colour", "waves", "phases", "amplitudes", "glow")
        return cls(**{name: np.concatenate([getattr(paint, name) for paint in paints]) for name in names})

    def albedo(self, triangles: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Display colour under full light (P, 3) of points (P, 3) metres on triangles (P,)."""
        points_P3 = points.astype(np.float32)
        first_P, second_P = (
            np.sin(np.einsum("pc,pc->p", points_P3, self.waves[triangles, i]) + self.phases[triangles, i])
            for i in range(2)
        )
        wave_P = self.amplitudes[triangles, 0] * first_P + self.amplitudes[triangles, 1] * first_P * second_P
        return self.colour[triangles] * (1.0 + wave_P[:, None])


def plain_paint(num_triangles: int, colour: tuple[float, float, float], *, glow: float = 0.0) -> Paint:
    """One colour everywhere."""
    return textured_paint(num_triangles, colour, waves=np.zeros((2, 3)), amplitudes=(0.0, 0.0), glow=glow)


def textured_paint(
    num_triangles: int,
    colour: tuple[float, float, float],
    *,
    waves: np.ndarray,
    amplitudes: tuple[float, float],
    phases: tuple[float, float] = (0.0, 0.0),
    glow: float = 0.0,
) -> Paint:
    """The same colour and waves (2, 3) on every triangle of a mesh."""

    def repeated(values: object) -> np.ndarray:
        array = np.asarray(values, dtype=np.float32)
        return np.broadcast_to(array, (num_triangles, *array.shape)).copy()

    return Paint(repeated(colour), repeated(waves), repeated(phases), repeated(amplitudes), repeated(glow))


def random_texture(
    num_triangles: int,
    colour: tuple[float, float, float],
    rng: np.random.Generator,
    *,
    period_m: tuple[float, float],
    strength: float,
) -> Paint:
    """Stripes or a soft checker board with a random period, oblique to all axes so that every side shows it."""
    kind = rng.integers(3)
    directions = rng.normal(size=(2, 3)) * 0.35 + np.eye(3)[rng.permutation(3)[:2]]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    waves = directions * (2 * np.pi / rng.uniform(*period_m, size=(2, 1)))
    amplitudes = ((strength, 0.0), (0.0, strength), (0.5 * strength, 0.5 * strength))[kind]
    return textured_paint(
        num_triangles, colour, waves=waves, amplitudes=amplitudes, phases=tuple(rng.uniform(0, 2 * np.pi, 2))
    )
