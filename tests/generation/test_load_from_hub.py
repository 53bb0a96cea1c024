"""A model by its id on the Hub is the model of the folder that was pushed."""

import numpy as np
from fake_hub import answers, hub_with

from egom2p import load_model
from egom2p.contracts import TokenClip
from egom2p.generation.checkpoints import pretrained_checkpoint

IMPORTS = "from egom2p import load_model; from egom2p.contracts import TokenClip"
MADE = "{}.generate(TokenClip('x', {{}}), ['cam', 'gaze'], conditions=[], seed=3)"


def test_a_model_of_the_hub_generates_what_the_folder_does(tmp_path):
    folder = pretrained_checkpoint("world_small")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    local = load_model(folder, device="cpu").generate(TokenClip("x", {}), ["cam", "gaze"], conditions=[], seed=3)
    calls = [
        "globals().update(model=load_model('me/small', device='cpu')) or model.fingerprint",
        f"globals().update(clip={MADE.format('model')}) or clip.world_from_cam.shape",
        "clip.world_from_cam[-1, :3, 3].tolist() + clip.gaze[-1].tolist()",
        "load_model('me/absent')",
    ]
    with hub_with(files | {"optimizer.pth": b"pickle"}) as (address, log):
        found = answers(IMPORTS, calls, tmp_path, HF_ENDPOINT=address)
    assert found[0] == f"-> {load_model(folder, device='cpu').fingerprint}"
    wanted = [*local.world_from_cam[-1, :3, 3].tolist(), *local.gaze[-1].tolist()]
    np.testing.assert_allclose(eval(found[2].removeprefix("-> ")), wanted, rtol=1e-6, atol=1e-9)
    assert found[3].startswith("FileNotFoundError me/absent") and "no repository" in found[3]
    asked = [path for path, *_ in log]
    assert any("tokenizers/" in path for path in asked) and not any("optimizer" in path for path in asked)
