"""Any scene that trimesh can load, in place of a procedural room."""

from pathlib import Path

import numpy as np
import trimesh

from egom2p.data.recordings.synthetic.rooms import Scene, Thing
from egom2p.data.recordings.synthetic.surfaces import Paint, plain_paint

_GREY = (0.6, 0.6, 0.6)


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
