"""Photographs of natural rooms: lamps and windows with shadows, and a camera with its faults.

A frame is the mean of several exposures, each at its own time while the shutter is open and through its own position
in every pixel: moving things blur as they move, edges are smooth. Depth is cast once more, at the frame's time through
the middle of the pixels, and is exact. Every exposure asks one light in turn whether it is hidden, from a random point
of the lamp: shadows are soft and cost one ray. E exposures, P pixels, L lights.
"""

import io
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
import trimesh
from PIL import Image
from pydantic import Field
from scipy import ndimage

from egom2p.config import Count, NotNegative, Positive, Range, Share, strict
from egom2p.contracts import Intrinsics
from egom2p.data.recordings.synthetic.casting import Caster
from egom2p.data.recordings.synthetic.furnishing import NaturalScene
from egom2p.data.recordings.synthetic.rendering import Fov, near_rays, pixel_rays
from egom2p.data.recordings.synthetic.textures import Skin

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@strict
class LightsConfig:
    """Lamps and windows; pairs are ranges drawn from uniformly.

    reach_m     where a lamp's light has fallen to a half
    ambient     light from everywhere, as a share of all light; more of it from above
    """

    num_lamps: Range[Count] = (1, 3)  # beside the windows
    reach_m: Range[Positive] = (1.5, 5.0)
    ambient: Range[Share] = (0.25, 0.7)
    size_m: Range[Positive] = (0.05, 0.35)  # of a lamp


@strict
class LensConfig:
    """The camera's faults; pairs are ranges drawn from uniformly, once for a recording.

    exposures    of a frame, spread over `shutter_s`
    brightness   median of the pictures' grey, 0 to 1, as far as the curve reaches
    black        what the darkest hundredth becomes, as far as the curve need not stretch by more than 4
    bright       what the lightest hundredth becomes, as far as the same curve reaches
    colour       factor of saturation
    white        factors of red and of blue against green
    noise        standard deviation at half brightness, in display values of 1
    blur_px      of the lens
    sharpening   how much of what a blur of a pixel would take is added
    quality      of JPEG
    """

    fov_deg: Range[Fov] = (50.0, 110.0)  # horizontal
    exposures: Count = 4
    shutter_s: Range[NotNegative] = (0.002, 0.035)  # how long a frame is exposed
    brightness: Range[Share] = (0.3, 0.55)
    black: Range[Share] = (0.0, 0.08)
    bright: Range[Share] = (0.8, 1.0)
    colour: Range[NotNegative] = (0.8, 1.7)
    white: Range[Positive] = (0.85, 1.18)
    vignette: Range[Share] = (0.0, 0.45)  # share of the light that the corners lose
    noise: Range[NotNegative] = (0.002, 0.015)
    blur_px: Range[NotNegative] = (0.0, 0.4)
    sharpening: Range[NotNegative] = (0.0, 1.0)
    quality: Range[Annotated[int, Field(ge=1, le=100)]] = (60, 97)

    def __post_init__(self) -> None:
        if not (self.black[1] < self.brightness[0] and self.brightness[1] < self.bright[0]):
            raise ValueError(
                "brightness must lie above black and below bright, found brightness "
                f"{self.brightness}, black {self.black}, bright {self.bright}"
            )


@dataclass(frozen=True)
class Lights:
    """positions (L, 3) metres, colours (L, 3), reach (L,) and half widths (L, 3) along the
    axes, metres, and light from above and below (2, 3)."""

    positions: np.ndarray
    colours: np.ndarray
    reach: np.ndarray
    spread: np.ndarray
    ambient: np.ndarray


@dataclass(frozen=True)
class Body:
    """Something that moves as a whole, and its poses (F, E + 1, 4, 4)."""

    mesh: trimesh.Trimesh
    skin: Skin
    world_from_body: np.ndarray

    @cached_property
    def caster(self) -> Caster:
        return Caster(self.mesh)

    @cached_property
    def radius_m(self) -> float:
        """Of a sphere around its origin."""
        return float(np.linalg.norm(self.mesh.vertices, axis=1).max())


def put_lights(scene: NaturalScene, rng: np.random.Generator, config: LightsConfig) -> Lights:
    """Lamps below the ceiling or on stands, and a large light inside each of up to two bright windows."""
    low, high = scene.mesh.bounds
    positions, colours, spreads, reaches = [], [], [], []
    for _ in range(rng.integers(config.num_lamps[0], config.num_lamps[1] + 1)):
        spot = np.append(rng.uniform(low[:2], high[:2]), scene.floor_m + 1.0)
        above = scene.caster.first_hits(spot, np.array([0.0, 0.0, 1.0]))[1][0]
        height = above - 0.12 if np.isfinite(above) else 1.5
        if rng.random() < 0.25:
            height = rng.uniform(0.1, 0.7) * height
        positions.append(spot + (0, 0, max(height, 0.05)))
        warmth = rng.uniform(-0.1, 0.35)
        colours.append(rng.uniform(0.4, 1.0) * np.array([1 + warmth, 1.0, 1 - warmth]))
        spreads.append(rng.uniform(*config.size_m) * np.array([1, 1, 0.1]))
        reaches.append(rng.uniform(*config.reach_m))
    for window in rng.permutation(len(scene.windows))[:2]:
        positions.append(scene.windows[window])
        colours.append(rng.uniform(0.6, 2.0) * np.array([0.92, 1.0, 1.12]))
        spreads.append(0.5 * (1 - np.abs(scene.inwards[window])))
        reaches.append(rng.uniform(2.0, 5.0))
    ambient = rng.uniform(*config.ambient)
    tint = 1 + rng.uniform(-0.12, 0.12, size=(2, 3))
    total = np.sum(colours, axis=0).mean()
    colours = np.array(colours) * 2 * (1 - ambient) / total
    return Lights(
        np.array(positions), colours, np.array(reaches), np.array(spreads), 0.6 * ambient * tint * [[1.0], [0.55]]
    )


def photograph(
    scene: NaturalScene,
    bodies: list[Body],
    lights: Lights,
    world_from_cam: np.ndarray,
    intrinsics: Intrinsics,
    rng: np.random.Generator,
    config: LensConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """rgb (F, H, W, 3) uint8 and depth (F, H, W) float32 metres along z, 0 where nothing is.

    world_from_cam (F, E + 1, 4, 4): at the times of the E exposures, the last at the time of the frame; so are the
    poses of the bodies.
    """
    shape = (intrinsics.height, intrinsics.width)
    light, depth = [], []
    count, side = config.exposures, int(np.ceil(np.sqrt(config.exposures)))
    for frame, poses in enumerate(world_from_cam):
        # Exposures take turns in the parts of a pixel, so that together they cover it; the last is its middle.
        part = (np.arange(count)[:, None, None] + rng.integers(count, size=shape)) % count
        offsets = np.stack([part % side, part // side], axis=-1) + rng.random((count, *shape, 2), dtype=np.float32)
        offsets = offsets / (side, -(-count // side)) - 0.5
        rays = pixel_rays(intrinsics, np.concatenate([offsets, np.zeros((1, *shape, 2))]))
        light_P3, depth_P = _expose(scene, bodies, lights, frame, poses, rays, shape, rng)
        light.append(light_P3.reshape(*shape, 3))
        depth.append(np.where(np.isfinite(depth_P), depth_P, 0.0).astype(np.float32).reshape(shape))
    return _develop(np.stack(light), rng, config), np.stack(depth)


def shutter_times(frames_s: np.ndarray, open_s: float, config: LensConfig) -> np.ndarray:
    """Times (F, E + 1) of the exposures around each frame's time, which is the last."""
    parts = (np.arange(config.exposures) + 0.5) / config.exposures - 0.5
    return frames_s[:, None] + np.append(parts * open_s, 0.0)


def _hits(
    caster: Caster, bodies: list[Body], frame: int, poses: np.ndarray, rays: np.ndarray, world_EP3: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What rays (E, P, 3) of the camera, the same in the world, hit: depth, triangle, and number of the body, -1 for
    what stands still, (E, P) each. The bodies stand as at the E times of the frame.
    """
    shape = world_EP3.shape[:2]
    eyes_EP3 = np.broadcast_to(poses[:, None, :3, 3], world_EP3.shape)
    triangle, depth = caster.first_hits(eyes_EP3.reshape(-1, 3), world_EP3.reshape(-1, 3))
    depth, triangle, body = depth.reshape(shape), triangle.reshape(shape), np.full(shape, -1)
    for number, moving in enumerate(bodies):
        for exposure, pose in enumerate(moving.world_from_body[frame]):
            body_from_cam = np.linalg.inv(pose) @ poses[exposure]
            centre = -body_from_cam[:3, :3].T @ body_from_cam[:3, 3]
            near = near_rays(rays[exposure], centre, moving.radius_m)
            if not len(near):
                continue
            directions = rays[exposure, near] @ body_from_cam[:3, :3].T
            its_triangle, its_depth = moving.caster.first_hits(body_from_cam[:3, 3], directions)
            is_nearer = its_depth < depth[exposure, near]
            near = near[is_nearer]
            depth[exposure, near] = its_depth[is_nearer]
            triangle[exposure, near] = its_triangle[is_nearer]
            body[exposure, near] = number
    return depth, triangle, body


def _expose(
    scene: NaturalScene,
    bodies: list[Body],
    lights: Lights,
    frame: int,
    poses: np.ndarray,
    rays: np.ndarray,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Light (P, 3) that arrives through the pixels in the first E of E + 1 exposures, and depth (P,) of the last.

    size: rows and columns, P = rows * columns.
    """
    world_EP3 = rays @ poses[:, :3, :3].swapaxes(1, 2)
    hits = _hits(scene.caster, bodies, frame, poses, rays, world_EP3)
    shape = (len(rays) - 1, rays.shape[1])
    ray, depth, triangle, body = (each[:-1] for each in (world_EP3, *hits))
    is_hit = np.isfinite(depth)
    depth = np.where(is_hit, depth, 1.0)
    point = poses[:-1, None, :3, 3] + depth[..., None] * ray
    # A pixel's width on a surface that it sees straight on.
    pixel_m = (depth * abs(rays[-1, 1, 0] - rays[-1, 0, 0])).astype(np.float32)
    flat = point.reshape(-1, 3)
    albedo, shine = scene.skin.look(np.where(body < 0, triangle, 0).ravel(), flat, pixel_m.ravel())
    normal = scene.caster.unit_normals[np.where(body < 0, triangle, 0).ravel()].astype(np.float32)
    for number, moving in enumerate(bodies):
        chosen = np.flatnonzero(body == number)
        turn = moving.world_from_body[frame, chosen // shape[1], :3, :3]
        local = flat[chosen] - moving.world_from_body[frame, chosen // shape[1], :3, 3]
        its = triangle.ravel()[chosen]
        local = np.einsum("pji,pj->pi", turn, local)
        albedo[chosen], shine[chosen] = moving.skin.look(its, local, pixel_m.ravel()[chosen])
        normal[chosen] = np.einsum("pij,pj->pi", turn, moving.caster.unit_normals[its])
    # Components first from here on: sums over them are then sums of whole planes.
    albedo, normal, point = (
        np.ascontiguousarray(each.T, np.float32).reshape(3, *shape) for each in (albedo, normal, flat)
    )
    albedo *= is_hit
    to_eye = -np.moveaxis(ray / np.linalg.norm(ray, axis=2, keepdims=True), -1, 0).astype(np.float32)
    normal *= np.sign((normal * to_eye).sum(axis=0))
    lifted = point + np.float32(2e-3) * normal
    upward = 0.5 + 0.5 * normal[2]
    dark, bright = lights.ambient[1].astype(np.float32), lights.ambient[0].astype(np.float32)
    glow, gloss = shine.T.reshape(2, *shape) * is_hit
    # Corners see less of the room than open places do: rays of 0.8 m that go out evenly over the half space.
    asked = np.arange(0, shape[0], 2)
    outward = _scattered(len(asked), size, rng)
    outward = outward / np.linalg.norm(outward, axis=1, keepdims=True) + normal[:, asked].reshape(3, -1).T
    sees_room_P = _share_open(scene.caster, lifted[:, asked], 0.8 * outward, size)
    around = [dark[k] + upward * (bright[k] - dark[k]) for k in range(3)]
    total_3P = np.stack([(albedo[k] * around[k]).mean(axis=0) for k in range(3)]) * (0.25 + 0.75 * sees_room_P)
    total_3P += (albedo * glow).mean(axis=1)
    for number, position in enumerate(lights.positions.astype(np.float32)):
        to_light = position[:, None, None] - point
        square = (to_light * to_light).sum(axis=0)
        to_light *= 1 / np.sqrt(square + np.float32(1e-6))
        facing = np.maximum((to_light * normal).sum(axis=0), 0.0)
        mirrored = np.maximum(2 * facing * (normal * to_eye).sum(axis=0) - (to_light * to_eye).sum(axis=0), 0.0)
        fall = 1 / (1 + square / np.float32(lights.reach[number] ** 2))
        asked = np.arange(number % shape[0], shape[0], len(lights.positions))
        lamp = position + lights.spread[number].astype(np.float32) * _scattered(len(asked), size, rng)
        origins = lifted[:, asked]
        share_P = _share_open(scene.caster, origins, lamp - origins.reshape(3, -1).T, size)
        arriving_3P = ((albedo * facing + gloss * mirrored**16) * fall).mean(axis=1)
        total_3P += arriving_3P * share_P * lights.colours[number].astype(np.float32)[:, None]
    return total_3P.T, hits[0][-1]


def _share_open(caster: Caster, origins: np.ndarray, directions: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(P,) share of the ways origin + direction that nothing crosses; origins (3, E, P), directions (E * P, 3)."""
    is_open = ~caster.is_blocked(origins.reshape(3, -1).T, directions).reshape(-1, *size)
    # Every other pixel of a row and of a column asks another way: this mean has all of them alike.
    share = is_open.mean(axis=0, dtype=np.float32)
    for axis in (0, 1):
        share = ndimage.correlate1d(share, (0.25, 0.5, 0.25), axis=axis, mode="nearest")
    return share.ravel()


def _scattered(count: int, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Positions (count * P, 3) in a cube of half width 1: 4 * count of them, in turns over squares of 2 x 2 pixels."""
    order = np.stack([rng.permutation(4 * count) for _ in range(3)], axis=1)
    parts = ((order + rng.random(order.shape)) / (2 * count) - 1).astype(np.float32).reshape(count, 2, 2, 3)
    rows, columns = (-(-side // 2) for side in size)
    return np.tile(parts, (1, rows, columns, 1))[:, : size[0], : size[1]].reshape(-1, 3)


def _develop(light: np.ndarray, rng: np.random.Generator, config: LensConfig) -> np.ndarray:
    """uint8 pictures (F, H, W, 3) of light: lens, exposure, white, curve, noise and compression."""
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, size) for size in light.shape[1:3]), indexing="ij")
    corner = 1 - rng.uniform(*config.vignette) * (rows**2 + columns**2) / 2
    light = light * corner[None, :, :, None]
    light = ndimage.gaussian_filter(light, (0, *[rng.uniform(*config.blur_px)] * 2, 0), mode="nearest")
    white = np.array([rng.uniform(*config.white), 1.0, rng.uniform(*config.white)])
    # The exposure follows the picture a little, as a camera's does: half of what frames differ from the recording.
    level_F = light.mean(axis=(1, 2, 3)) + 1e-4
    level_F = np.sqrt(ndimage.gaussian_filter1d(level_F, 4, mode="nearest") * level_F.mean())
    shown = np.power(np.maximum(light * white / level_F[:, None, None, None], 0), 1 / 2.2)
    # The display curve, as cameras choose it: dark to dark, light to light, and the median where it is wanted.
    low, middle, high = (*np.quantile(shown @ _LUMA, (0.01, 0.5)).tolist(), float(np.quantile(shown, 0.99)))
    black, bright, wanted = (rng.uniform(*pair) for pair in (config.black, config.bright, config.brightness))
    span = max(high - low, (bright - black) / 4)
    curve = np.log((wanted - black) / (bright - black)) / np.log(np.clip((middle - low) / span, 0.05, 0.95))
    shown = black + (bright - black) * np.power(np.maximum((shown - low) / span, 1e-4), np.clip(curve, 0.6, 1.7))
    sharpening = rng.uniform(*config.sharpening)
    shown += sharpening * (shown - ndimage.gaussian_filter(shown, (0, 1, 1, 0), mode="nearest"))
    grey = (shown @ _LUMA)[..., None]
    shown = grey + rng.uniform(*config.colour) * (shown - grey)
    strength = rng.uniform(*config.noise)
    grain = rng.normal(size=shown.shape) * [1.2, 0.9, 1.4] + rng.normal(size=(*shown.shape[:3], 1))
    shown += strength / 1.45 * np.sqrt(0.3 + 1.4 * np.clip(grey, 0, 1)) * grain
    pictures = np.clip(shown * 255 + 0.5, 0, 255).astype(np.uint8)
    quality = int(rng.integers(config.quality[0], config.quality[1] + 1))
    return np.stack([_compressed(picture, quality) for picture in pictures])


def _compressed(picture: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(buffer))
