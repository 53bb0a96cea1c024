"""An image tower that learns to read screens before a language model sees them.

`python -m experiments.screens.screen_reader output=DIR perception.image_size=48`: a readout names what stands at each
of the nine positions, from the tower's cells there; what it gets right on unseen layouts is printed by font size, and
the tower is written for `tower_weights`. B screens of a step, N rows, D width of the tower, K things to name.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from egom2p.anytoany.perception.source import PerceptionConfig, rows_of
from egom2p.anytoany.perception.timm_frames import TimmTower, picture_grid, plain_tower_state
from egom2p.anytoany.types import PerceptionFeatures
from egom2p.config import run_main, strict
from egom2p.data.clip_order import clip_rng
from egom2p.storage import save_json, save_tensors
from experiments.screens.screen_world import FONTS_PX, ICONS, POSITIONS, WORDS, picture, screen

_NAMES = (*WORDS, *ICONS, "nothing")
_SIDE = 3


@strict
class ScreenReaderConfig:
    """perception: a live timm_frames whose cells, of all tiles, divide by three along each side.

    num_seen      screens shown in training, drawn from `num_train`      num_unseen   screens of each font size
    """

    output: str
    perception: PerceptionConfig
    num_seen: int = 20_000
    num_train: int = 6_000
    num_unseen: int = 100  # screens of each font size
    batch_size: int = 32
    lr: float = 3.0e-3  # learning rate
    seed: int = 0


class ScreenReader(nn.Module):
    """Logits (B, 9, K) of what stands at each position."""

    def __init__(self, config: PerceptionConfig) -> None:
        super().__init__()
        self.tower = TimmTower(config)
        grid = self.tower.grid
        sides = tuple(cells * tiles for cells, tiles in zip(grid.cells, grid.tiles, strict=True))
        if sides[0] % _SIDE or sides[1] % _SIDE:
            raise ValueError(f"a screen has {sides} cells; wanted a multiple of {_SIDE} along each side")
        self._sides = sides
        width = self.tower.width * sides[0] * sides[1] // _SIDE**2
        self.readout = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128), nn.GELU(), nn.Linear(128, len(_NAMES)))

    def forward(self, items: Sequence[PerceptionFeatures]) -> Tensor:
        rows = rows_of(items)
        # Rows are ordered by tile; their positions say where they lie on the whole screen.
        order_N = torch.from_numpy(reading_order(items, self._sides))
        features_ND = self.tower(rows)[order_N]
        pattern = "(b y i x j d1) d -> b (y x) (i j d1 d)"
        sizes = {"y": _SIDE, "x": _SIDE, "i": self._sides[0] // _SIDE, "j": self._sides[1] // _SIDE, "d1": 1}
        return self.readout(rearrange(features_ND, pattern, **sizes))


def teach(config: ScreenReaderConfig) -> dict[str, float]:
    """Share of words (by font) and icons that are named right on unseen layouts; writes tower.safetensors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        reader = ScreenReader(config.perception).train()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=config.lr, weight_decay=0.01)
    rng = clip_rng(config.seed, "screens to read")
    num_steps = config.num_seen // config.batch_size
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.03, total_iters=min(30, num_steps))
    for _ in range(num_steps):
        names = [f"screen-train-0-{number}" for number in rng.integers(0, config.num_train, config.batch_size)]
        items, wanted_B9 = _batch(config.perception, names)
        loss = F.cross_entropy(reader(items).flatten(0, 1), wanted_B9.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    results = read_unseen(reader.eval(), config)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    save_tensors(output / "tower.safetensors", plain_tower_state(reader.tower.state_dict()))
    save_json(output / "results.json", results)
    return results


@torch.no_grad()
def read_unseen(reader: ScreenReader, config: ScreenReaderConfig) -> dict[str, float]:
    """What a reader in evaluation mode names right."""
    results, icons = {}, []
    for font_px in FONTS_PX:
        names = [f"screen-unseen-{font_px}-{number}" for number in range(config.num_unseen)]
        words = []
        for start in range(0, len(names), config.batch_size):
            items, wanted_B9 = _batch(config.perception, names[start : start + config.batch_size])
            is_right_B9 = reader(items).argmax(-1) == wanted_B9
            words.append(is_right_B9[wanted_B9 < len(WORDS)])
            icons.append(is_right_B9[(wanted_B9 >= len(WORDS)) & (wanted_B9 < len(_NAMES) - 1)])
        results[f"words of {font_px} px"] = float(torch.cat(words).float().mean())
    return results | {"icons": float(torch.cat(icons).float().mean())}


def _batch(config: PerceptionConfig, names: Sequence[str]) -> tuple[list[PerceptionFeatures], Tensor]:
    """Perception features of screens, and the numbers (B, 9) of what is at their positions."""
    grid, items, wanted = picture_grid(config), [], []
    for name in names:
        elements = screen(name)
        rows, position = grid.rows(np.asarray(picture(name, elements))[None])
        items.append(PerceptionFeatures(rows, position, np.zeros(len(rows), np.int16)))
        word_at = {element.position: element.word for element in elements}
        wanted.append([_NAMES.index(word_at.get(number, "nothing")) for number in range(len(POSITIONS))])
    return items, torch.tensor(wanted)


def reading_order(items: Sequence[PerceptionFeatures], sides: tuple[int, int]) -> np.ndarray:
    """Numbers (N,) of the rows, screen by screen, each from left to right and from top to bottom."""
    starts = np.arange(len(items)) * sides[0] * sides[1]
    orders = [np.lexsort((item.position[:, 2], item.position[:, 1])) for item in items]
    return np.concatenate([start + order for start, order in zip(starts, orders, strict=True)])


def main(config: ScreenReaderConfig) -> None:
    for name, share in teach(config).items():
        sys.stdout.write(f"{name}: {100 * share:.1f} %\n")


if __name__ == "__main__":
    run_main(
        ScreenReaderConfig,
        main,
        default_config="experiments/screens/screen_reader.yaml",
        description=str(__doc__),
    )
