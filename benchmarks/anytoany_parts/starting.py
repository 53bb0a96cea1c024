"""Start-up of the commands, and the loader of conversations."""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from anytoany_parts.setting import NUM_TOKENS, Setting, item
from egom2p.anytoany.conversations.chat import ChatRenderer
from egom2p.anytoany.conversations.conversation_loader import LanguageDataConfig, LanguageLoader
from egom2p.anytoany.language.language_tokenizer import load_text_tokenizer
from egom2p.config import from_plain

_ROOT = Path(__file__).resolve().parents[2]
_COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import egom2p": ["-c", "import egom2p"],
    "run_training_anytoany.py --help": ["run_training_anytoany.py", "--help"],
    "egom2p.anytoany.generate --help": ["-m", "egom2p.anytoany.generate", "--help"],
}


def start_up(setting: Setting) -> dict:
    """Seconds of processor time until a command has said what it takes."""
    times: dict[str, list[float]] = {name: [] for name in _COMMANDS}
    for _ in range(setting.repeats):
        for name, words in _COMMANDS.items():
            times[name].append(_seconds_of(words))
    return {name: statistics.median(found) for name, found in times.items()}


def loader(setting: Setting, *, num_conversations: int = 2048) -> dict:
    """Conversations per second of rendering, packing and collating, and what the training process does of it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "captions.jsonl"
        words = "the wearer turns left and looks at the red mug on the table while walking".split()
        rows = [{"clip": str(n), "description": " ".join(words * (1 + n % 7))} for n in range(num_conversations)]
        file.write_text("\n".join(map(json.dumps, rows)))
        table = {}
        for num_workers in (0, 1, 2):
            batches, num_clips = _loader(setting, str(file), num_workers).batches(0), 0
            started, cpu_s = time.perf_counter(), time.process_time()
            while num_clips < num_conversations:  # several whole windows
                num_clips += next(batches).num_clips
            seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
            table[f"{num_workers} workers"] = {
                "conversations_per_s": num_clips / seconds,
                "training_process_s_per_1000": 1e3 * cpu_s / num_clips,
            }
            batches.close()
        return table


def _loader(setting: Setting, file: str, num_workers: int) -> LanguageLoader:
    values = {
        "datasets": {"captions": {"kind": "captions", "files": [file], "ref": "clip"}},
        "row_tokens": 2048,
        "window": 256,
        "num_workers": num_workers,
    }
    config = from_plain(LanguageDataConfig, values)
    tokenizer = load_text_tokenizer(setting.tokenizer_folder)
    renderer = ChatRenderer(tokenizer, lambda media: NUM_TOKENS, config.chat)
    return LanguageLoader(config, renderer, lambda media: item(int(media.ref)), batch_size=2, seed=0)


def _seconds_of(words: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, *words], cwd=_ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
