"""Connectors and the splice: what perception costs beside the text."""

from dataclasses import replace

import torch

from anytoany_parts.setting import FEATURE_WIDTH, Setting, conversation, item
from egom2p.anytoany.connectors import ConnectorConfig, build_connector
from egom2p.anytoany.conversations.packing import collate
from egom2p.anytoany.perception.source import rows_of
from egom2p.anytoany.splice import splice

_COUNTS = (1, 2, 4, 8, 16, 32, 64)
_ROWS = 64  # rows of an item
_ITEMS = 8
_TIMED = 60_000_000  # parameters; larger connectors are counted only


def connectors(setting: Setting) -> dict:
    """Parameters and milliseconds per item of all kinds of connectors."""
    items = rows_of([item(number, _ROWS) for number in range(_ITEMS)], setting.device)
    table: dict[str, dict] = {}
    for count in _COUNTS:
        made = {
            "global_mlp": ConnectorConfig(kind="global_mlp", num_tokens=count),
            "resampler": ConnectorConfig(kind="resampler", num_tokens=count),
            "st_shuffle": ConnectorConfig(kind="st_shuffle", cell=(_ROWS // count, 1, 1), dim=64),
        }
        row: dict[str, dict] = {}
        ways = {}
        for name, config in made.items():
            wide = {"width": FEATURE_WIDTH, "num_sources": 1}
            with torch.device("meta"):
                sizes = [_count(build_connector(config, out_width=width, **wide)) for width in (setting.width, 4096)]
            row[name] = {"parameters": sizes[0], "parameters_at_width_4096": sizes[1]}
            if sizes[0] <= _TIMED:
                connector = build_connector(config, out_width=setting.width, **wide).to(setting.device).eval()
                ways[name] = lambda connector=connector, count=count: connector(items, [count] * _ITEMS)
        with torch.inference_mode():
            for name, seconds in setting.seconds(**ways).items():
                row[name]["ms_per_item"] = 1e3 * seconds / _ITEMS
        table[f"P = {count}"] = row
    return {"rows_of_an_item": _ROWS, "width": setting.width, **table}


def splicing(setting: Setting) -> dict:
    """Putting perception tokens into their positions against looking up the text's embeddings."""
    model = setting.model().eval()
    talks = [conversation(128, media_id=model.media_id, number=n) for n in range(16)]
    batch = collate([[talk] for talk in talks], lambda media: item(int(media.ref)), pad_id=0).to(setting.device)
    with torch.inference_mode():
        text, tokens = model.embed_ids(batch.ids), model.perceive(batch)
        positions = {name: getattr(batch, name) for name in ("media_rows", "media_starts", "media_lengths")}
        seconds = setting.seconds(
            lookup=lambda: model.embed_ids(batch.ids),
            splice=lambda: splice(text, tokens, ids=batch.ids, media_id=model.media_id, **positions),
            forward=lambda: model.hidden(replace(batch)),
        )
    return {
        "ms": {name: 1e3 * found for name, found in seconds.items()},
        "splice_against_lookup": seconds["splice"] / seconds["lookup"],
        "splice_share_of_forward": seconds["splice"] / seconds["forward"],
    }


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
