"""Screens: pictures of buttons and text fields with words, and an icon, at some of nine positions.

A screen is a function of its name. In training a word stands at some of the positions only; `unseen` screens show it at
the others. Font sizes are pixels of a screen of 240 x 240; a model may see it smaller.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from egom2p.data.clip_order import clip_rng

Split = Literal["train", "unseen"]
Kind = Literal["button", "field", "icon"]
WORDS = tuple(
    "save open close send play stop back next copy paste undo home menu help edit find login share print sort mute "
    "zoom lock reset".split()
)
ICONS = ("star", "circle", "triangle", "cross")
# One word each, as on a map.
POSITIONS = ("northwest", "north", "northeast", "west", "middle", "east", "southwest", "south", "southeast")
FONTS_PX = (8, 12, 16, 24)
_KINDS: tuple[Kind, ...] = ("button", "button", "field", "field", "icon")
_POSITION_PX, _MARGIN_PX = 80, 3
_UNSEEN_EVERY = 5


@dataclass(frozen=True)
class Element:
    """One thing on a screen. word: what it says, or the icon's name; position: index of POSITIONS; shift: x, y."""

    kind: Kind
    word: str
    position: int
    font_px: int
    shift: tuple[int, int]


@lru_cache
def positions_of(word: str, split: Split) -> tuple[int, ...]:
    """Where a word may stand in a split; an icon may stand anywhere."""
    if word in ICONS:
        return tuple(range(len(POSITIONS)))
    unseen = set(clip_rng(0, f"positions of {word}").permutation(len(POSITIONS))[::_UNSEEN_EVERY].tolist())
    return tuple(position for position in range(len(POSITIONS)) if (position in unseen) == (split == "unseen"))


def screen(name: str) -> tuple[Element, ...]:
    """What is on a screen `<task>-<split>-<font>-<number>`; a font of 0 is drawn for each element."""
    _, split, font_px, _ = name.split("-")
    rng = clip_rng(0, name)
    while True:
        words = [*rng.choice(WORDS, len(_KINDS) - 1, replace=False).tolist(), str(rng.choice(ICONS))]
        positions = [int(rng.choice(positions_of(word, split))) for word in words]
        if len(set(positions)) == len(positions):
            break
    fonts = [int(font_px) or int(rng.choice(FONTS_PX)) for _ in words]
    shifts = [tuple(rng.integers(-_MARGIN_PX, _MARGIN_PX + 1, 2).tolist()) for _ in words]
    return tuple(Element(*found) for found in zip(_KINDS, words, positions, fonts, shifts, strict=True))


def changed(name: str) -> tuple[tuple[Element, ...], str]:
    """The screen after one thing changed on it, and what that is in words."""
    before, split = screen(name), name.split("-")[1]
    used, taken = {element.word for element in before}, {element.position for element in before}
    others = {"icon": ICONS, "button": WORDS, "field": WORDS}
    other_words = [
        (old, [replace(old, word=word)], f"{old.word} became {word}")
        for old in before
        for word in others[old.kind]
        if word not in used and old.position in positions_of(word, split)
    ]
    other_positions = [
        (old, [replace(old, position=position)], f"{old.word} moved {POSITIONS[position]}")
        for old in before
        for position in positions_of(old.word, split)
        if position not in taken
    ]
    gone: list[tuple[Element, list[Element], str]] = [(old, [], f"{old.word} is gone") for old in before]
    kinds = [found for found in (other_words, other_positions, gone) if found]
    rng = clip_rng(0, f"change of {name}")
    kind = kinds[int(rng.integers(len(kinds)))]
    old, new, said = kind[int(rng.integers(len(kind)))]
    return (*(element for element in before if element is not old), *new), said


def picture(name: str, elements: tuple[Element, ...]) -> Image.Image:
    """The screen as people see it, in the colours of its name."""
    rng = clip_rng(0, f"colours of {name}")
    ground, accent = (tuple(rng.integers(*span, 3).tolist()) for span in ((215, 250), (40, 120)))
    image = Image.new("RGB", (3 * _POSITION_PX, 3 * _POSITION_PX), ground)
    draw = ImageDraw.Draw(image)
    for element in elements:
        _draw(draw, element, accent)
    return image


def _draw(draw: ImageDraw.ImageDraw, element: Element, accent: tuple[int, ...]) -> None:
    row, column = divmod(element.position, 3)
    x, y = ((part + 0.5) * _POSITION_PX + by for part, by in zip((column, row), element.shift, strict=True))
    if element.kind == "icon":
        _draw_icon(draw, element.word, x, y, accent)
        return
    half_width, half_height = _POSITION_PX / 2 - _MARGIN_PX - 1, element.font_px * 0.75 + 3
    box = (x - half_width, y - half_height, x + half_width, y + half_height)
    if element.kind == "button":
        draw.rounded_rectangle(box, radius=6, fill=accent)
    else:
        draw.rectangle(box, outline="black", fill="white", width=2)
    ink = "white" if element.kind == "button" else "black"
    draw.text((x, y), element.word, fill=ink, font=_font(element.font_px), anchor="mm")


@lru_cache
def _font(font_px: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(font_px)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def _draw_icon(draw: ImageDraw.ImageDraw, icon: str, x: float, y: float, fill: tuple[int, ...]) -> None:
    size = 18
    box = (x - size, y - size, x + size, y + size)
    if icon == "circle":
        draw.ellipse(box, fill=fill)
    elif icon == "cross":
        draw.line(box, fill=fill, width=8)
        draw.line((box[0], box[3], box[2], box[1]), fill=fill, width=8)
    elif icon == "triangle":
        draw.regular_polygon((x, y, size), 3, fill=fill)
    else:
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        radii = np.where(np.arange(10) % 2, 0.4 * size, 1.1 * size)
        corners = zip((x + radii * np.cos(angles)).tolist(), (y + radii * np.sin(angles)).tolist(), strict=True)
        draw.polygon(list(corners), fill=fill)
