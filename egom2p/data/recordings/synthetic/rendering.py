"""Pictures and metric depth of the world.

The only light is a lamp on the wearer's head, at the camera: a surface at distance d is lit by 1 / (1 + (d / reach)^2),
and a display exponent turns light into pixel values. So brightness falls with distance, in every picture in the same
way: it is a visible cue to depth, by design. Things that glow keep their colour. There are no shadows (the lamp
sits at the camera). F frames, P pixels of one frame.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from egom2p.config import Count, Positive, Share, strict
from egom2p.contracts import Intrinsics
from egom2p.data.recordings.synthetic.casting import Caster
from egom2p.data.recordings.synthetic.movers import Mover
from egom2p.data.recordings.synthetic.surfaces import Paint

Fov = Annotated[float, Field(ge=20, le=120)]  # degrees


@strict
class CameraConfig:
    """A pinhole camera; the field of view is the horizontal one."""

    height: Count = 64
    width: Count = 64
    fov_deg: Fov = 84.0  # horizontal

    def intrinsics(self) -> Intrinsics:
        focal = 0.5 * self.width / np.tan(np.radians(self.fov_deg) / 2)
        return Intrinsics(
            self.width, self.height, float(focal), float(focal), (self.width - 1) / 2, (self.height - 1) / 2
        )


@strict
class LampConfig:
    """The head lamp. reach_m: metres to where its light has fallen to one half. gamma: the display exponent.
    exposure: how much brighter than its colour a surface right at the lamp is shown."""

    reach_m: Positive = 1.5
    gamma: Positive = 2.0
    exposure: Positive = 1.3
    facing_share: Share = 0.3  # how much darker a surface is that the light only grazes


@dataclass(frozen=True)
class _Picture:
    """Nearest hit so far of every pixel of all frames: depth, albedo, light factor and glow."""

    depth: np.ndarray
    colour: np.ndarray
    facing: np.ndarray
    glow: np.ndarray


def render(
    static: tuple[Caster, Paint],
    movers: list[Mover],
    world_from_cam: np.ndarray,
    intrinsics: Intrinsics,
    config: LampConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """rgb (F, H, W, 3) uint8 and depth (F, H, W) float32 metres along z, 0 where nothing is.

    world_from_cam (F, 4, 4); the positions and turns of the movers are those at the F times of the frames.
    """
    cam_P3 = pixel_rays(intrinsics)
    num_frames, num_pixels = len(world_from_cam), len(cam_P3)
    picture = _Picture(
        np.full((num_frames, num_pixels), np.inf),
        np.zeros((num_frames, num_pixels, 3), np.float32),
        np.ones((num_frames, num_pixels), np.float32),
        np.zeros((num_frames, num_pixels), np.float32),
    )
    caster, paint = static
    for frame in range(num_frames):
        rotation, eye = world_from_cam[frame, :3, :3], world_from_cam[frame, :3, 3]
        world_P3 = cam_P3 @ rotation.T
        _cast(picture, frame, slice(None), caster, paint, eye, world_P3)
    for mover in movers:
        mover_caster = Caster(mover.mesh)
        for frame in range(num_frames):
            _cast_mover(picture, frame, mover, mover_caster, world_from_cam[frame], cam_P3)
    return _develop(picture, np.linalg.norm(cam_P3, axis=1), intrinsics, config)


def pixel_rays(intrinsics: Intrinsics, offsets: np.ndarray | None = None) -> np.ndarray:
    """Directions (P, 3) through the pixel centres with z = 1, so that a ray's distance is the depth.

    offsets (E, H, W, 2) move them, right and down, by parts of a pixel: directions (E, P, 3).
    """
    rows, columns = np.mgrid[: intrinsics.height, : intrinsics.width]
    right, down = (0, 0) if offsets is None else np.moveaxis(offsets, -1, 0)
    x = (columns + right - intrinsics.cx) / intrinsics.fx
    y = (rows + down - intrinsics.cy) / intrinsics.fy
    rays = np.stack([x, y, np.ones_like(x)], axis=-1)
    return rays.reshape(*rays.shape[:-3], -1, 3)


def near_rays(rays_P3: np.ndarray, centre: np.ndarray, radius_m: float) -> np.ndarray:
    """Numbers of the rays from the origin that meet a sphere; all of them from inside of it."""
    along_P = np.maximum(rays_P3 @ centre / np.linalg.norm(rays_P3, axis=1), 0)
    return np.flatnonzero(centre @ centre - along_P**2 <= radius_m**2)


def _cast_mover(
    picture: _Picture, frame: int, mover: Mover, caster: Caster, world_from_cam: np.ndarray, cam_P3: np.ndarray
) -> None:
    """Cast the rays that pass near a mover, in the frame of its mesh."""
    rotation, eye = world_from_cam[:3, :3], world_from_cam[:3, 3]
    centre = rotation.T @ (mover.positions[frame] - eye)
    near = near_rays(cam_P3, centre, mover.radius_m)
    if not len(near):
        return
    cos, sin = np.cos(mover.turns[frame]), np.sin(mover.turns[frame])
    mover_from_world = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    rays_P3 = cam_P3[near] @ (mover_from_world @ rotation).T
    origin = mover_from_world @ (eye - mover.positions[frame])
    _cast(picture, frame, near, caster, mover.paint, origin, rays_P3)


def _cast(
    picture: _Picture,
    frame: int,
    pixels: slice | np.ndarray,
    caster: Caster,
    paint: Paint,
    origin: np.ndarray,
    rays_P3: np.ndarray,
) -> None:
    """Write what these rays hit into the picture where it is nearer than what is there."""
    triangle_P, depth_P = caster.first_hits(origin, rays_P3)
    is_nearer_P = depth_P < picture.depth[frame, pixels]
    if not is_nearer_P.any():
        return
    index = np.arange(picture.depth.shape[1])[pixels][is_nearer_P]
    triangle_P, depth_P, rays_P3 = triangle_P[is_nearer_P], depth_P[is_nearer_P], rays_P3[is_nearer_P]
    cosine_P = np.abs(np.einsum("pc,pc->p", caster.unit_normals[triangle_P], rays_P3)) / np.linalg.norm(rays_P3, axis=1)
    picture.depth[frame, index] = depth_P
    picture.colour[frame, index] = paint.albedo(triangle_P, origin + depth_P[:, None] * rays_P3)
    picture.facing[frame, index] = cosine_P
    picture.glow[frame, index] = paint.glow[triangle_P]


def _develop(
    picture: _Picture, ray_length_P: np.ndarray, intrinsics: Intrinsics, config: LampConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Light the hits with the lamp and round to pixel values."""
    depth_FP = np.where(np.isfinite(picture.depth), picture.depth, 0.0).astype(np.float32)
    distance_FP = depth_FP * ray_length_P.astype(np.float32)
    facing_FP = 1 - config.facing_share + config.facing_share * picture.facing
    light_FP = config.exposure * (facing_FP / (1 + (distance_FP / config.reach_m) ** 2)) ** (1 / config.gamma)
    # A glowing thing is shaded a little towards its edge, so that it looks round.
    light_FP = np.where(picture.glow > 0, 0.7 + 0.3 * picture.facing, light_FP)
    rgb = np.clip(picture.colour * light_FP[..., None] * 255.0 + 0.5, 0, 255).astype(np.uint8)
    size = (len(depth_FP), intrinsics.height, intrinsics.width)
    return rgb.reshape(*size, 3), depth_FP.reshape(size)
