"""Pictures of screens and conversations about them: `python -m experiments.screens.screen_conversations`.

`interleaved` rows whose media are picture files, animations where something changes.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from egom2p.anytoany.world.synthetic_data import write_tokenizer
from egom2p.config import run_main, strict
from egom2p.data.clip_order import clip_rng
from egom2p.jobs.progress import say
from egom2p.storage import atomic_directory
from experiments.screens.screen_world import FONTS_PX, ICONS, POSITIONS, WORDS, Element, changed, picture, screen

_KINDS = ("button", "field")
Row = dict[str, Any]
Asked = list[tuple[str, str]]


@strict
class ScreenDataConfig:
    """num_train: pictures of screens to train on, about 10 ms each."""

    output: str
    num_train: int = 6000
    vocab_size: int = 768


def build_screens(config: ScreenDataConfig) -> None:
    """Pictures and conversations in `screens/`, and `tokenizer_screens/` trained on what is said in them."""
    files = write_screens(Path(config.output) / "screens", config.num_train)
    tokenizer = write_tokenizer(Path(config.output) / "tokenizer_screens", screen_texts(), config.vocab_size)
    say("\n".join(map(str, (*files, tokenizer))))


def questions(name: str) -> dict[str, Asked]:
    """Questions about a screen and their answers, by what they ask for."""
    elements = screen(name)
    word_at = {element.position: element.word for element in elements}
    worded = [element for element in elements if element.kind != "icon"]
    return {
        "read": [
            (
                "Read the screen.",
                ", ".join(f"{POSITIONS[position]} {word_at[position]}" for position in sorted(word_at)),
            )
        ],
        "text": [(f"What does the {e.kind} {POSITIONS[e.position]} say?", e.word) for e in worded],
        "where": [(f"Where is {e.word}?", POSITIONS[e.position]) for e in elements],
    }


def write_screens(folder: Path, num_train: int, *, num_unseen: int = 100) -> list[Path]:
    """Pictures and rows; media lie below `folder`.

    train.jsonl          a dialogue about each of `num_train` screens: all that is on it, and one question
    change_train.jsonl   what changed, in a third as many animations of two frames
    <asked>_unseen.jsonl, text_<font>px_unseen.jsonl   one question a row about `num_unseen` screens each
    change_unseen.jsonl  the same for twice as many animations
    """
    if not folder.is_dir():
        with atomic_directory(folder) as unfinished:
            (unfinished / "pictures").mkdir()
            for file, rows in _files(unfinished, num_train, num_unseen):
                (unfinished / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return sorted(folder.glob("*.jsonl"))


def screen_texts() -> list[str]:
    """Everything that is said about screens, for a tokenizer."""
    said = [
        f"What does the {kind} {position} say? {position} {position}, {position}"
        for kind in _KINDS
        for position in POSITIONS
    ]
    said += [f"{word} became {word} Where is {word}? {word}, {word} is gone" for word in (*WORDS, *ICONS)]
    said += [f"{word} moved {position}" for word in WORDS for position in POSITIONS]
    return [*said, *POSITIONS, "Read the screen. What changed?"]


def _files(folder: Path, num_train: int, num_unseen: int) -> Iterator[tuple[str, list[Row]]]:
    """File name and rows; the pictures are written on the way."""
    names = [f"screen-train-0-{number}" for number in range(num_train)]
    yield "train.jsonl", [_row(name, _dialogue(name), _write_picture(folder, name), "image") for name in names]
    for split, count in (("train", num_train // 3), ("unseen", 2 * num_unseen)):
        names = [f"change-{split}-0-{number}" for number in range(count)]
        yield f"change_{split}.jsonl", [_change_row(folder, name) for name in names]
    for font_px in (0, *FONTS_PX):
        files: dict[str, list[Row]] = {}
        for name in [f"screen-unseen-{font_px}-{number}" for number in range(num_unseen)]:
            file = _write_picture(folder, name)
            for asked, pairs in questions(name).items():
                found = [_row(f"{name}/{asked}{number}", [pair], file, "image") for number, pair in enumerate(pairs)]
                files.setdefault(asked, []).extend(found)
        if font_px:
            yield f"text_{font_px}px_unseen.jsonl", files["text"]
        else:
            yield from ((f"{asked}_unseen.jsonl", rows) for asked, rows in files.items())


def _dialogue(name: str) -> Asked:
    rng, asked = clip_rng(0, f"dialogue about {name}"), questions(name)
    others = [*asked["text"], *asked["where"]]
    chosen = [*asked["read"], others[int(rng.integers(len(others)))]]
    return [chosen[number] for number in rng.permutation(2)]


def _change_row(folder: Path, name: str) -> Row:
    after, said = changed(name)
    return _row(name, [("What changed?", said)], _write_picture(folder, name, after), "video")


def _row(key: str, asked: Asked, file: str, kind: str) -> Row:
    pairs = [zip(("user", "assistant"), pair, strict=True) for pair in asked]
    turns = [{"role": role, "text": text} for pair in pairs for role, text in pair]
    turns[0]["text"] = f"{{{kind}}}\n{turns[0]['text']}"
    return {"key": key, "turns": turns, "media": [{"kind": kind, "ref": file}]}


def _write_picture(folder: Path, name: str, *later: tuple[Element, ...]) -> str:
    first, *others = [picture(name, elements) for elements in (screen(name), *later)]
    file = f"pictures/{name}.png"
    first.save(folder / file, save_all=bool(others), append_images=others)
    return file


if __name__ == "__main__":
    run_main(
        ScreenDataConfig,
        build_screens,
        default_config="experiments/screens/screen_conversations.yaml",
        description=str(__doc__),
    )
