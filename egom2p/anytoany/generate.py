"""Ask a model: `python -m egom2p.anytoany.generate model=<directory> 'prompt=Describe {video}' video=walk.mp4`.

Without media it generates text alone. Answers go to standard output, speed and memory to standard error. Codes in an
answer are written as an input of EgoM2P's generation, or rendered here: EgoM2P fills the other modalities from them.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from egom2p.anytoany.answers.answer_generation import Answer, AnswerConfig, Question
from egom2p.anytoany.answers.inference import Inference, PerceivedClip, caption_windows, joined, typed_prompt
from egom2p.anytoany.codebooks import CodebookConfig, Codebooks
from egom2p.anytoany.conversations.conversation import PLACEHOLDER
from egom2p.anytoany.language.packaged_model import stand_in_note
from egom2p.anytoany.perception.familiarity import Familiarity
from egom2p.anytoany.saving import is_anytoany, load_anytoany, load_plain
from egom2p.anytoany.types import KINDS
from egom2p.config import Count, Natural, Positive, run_main, strict
from egom2p.contracts import ModalitySpec, TokenClip
from egom2p.data.clips.clip_alignment import RecordingTooShort
from egom2p.jobs.workers import choose_device
from egom2p.models.egom2p_model import EgoM2P
from egom2p.models.generate import Sampler
from egom2p.models.sampling import TargetPlan
from egom2p.storage import atomic_file

_KIND_OF_QUANTITY = {"rgb": "video", "depth": "depth", "gaze": "gaze", "camera": "cam"}
Files = str | tuple[str, ...]


@strict
class GenerateConfig:
    """One prompt.

    model       any-to-any directory; without media also a plain language model of transformers
    prompt      placeholders {video} {image} {audio} {gaze} {cam} {depth} take the files of their kind in order; \\n is
                a line break; text with a comma stands in quotes of its own: 'prompt="First, ..."'
    video ...   files: a video, a picture, a clip's tokens (.npz), vectors (.npy, file.parquet#row), as the model
                perceives them
    windows     a video longer than a clip: caption every window instead of the first clip alone, neighbours that are
                said to show the same joined; one placeholder
    stride_s    seconds from window to window; null: they touch
    predict     gaze, camera ... that a file lacks are predicted from it by EgoM2P first; false: the model goes without
    num_tokens  perception tokens per media item, one of the connector's nested counts; null: all
    answer      max_new_tokens; temperature (0: the likeliest token), top_k; spans: kinds of codes to begin with
    num_answers answers to the prompt, with seeds seed, seed + 1, ...
    tokens_out  .npz for modality codes of the (last) answer, an input of generate.py
    prompts     file with a prompt without media on every line; all are answered, in place of `prompt`
    rows_out    with prompts: .jsonl of questions and answers, rows for a data set of kind `text`. Answers of a base
                model, drawn with answer.temperature=1, among its training data keep it near what it was. One that
                answer.max_new_tokens cuts ends with its last whole sentence; without one it is left out
    """

    model: str
    prompt: str = ""
    video: Files = ()  # file or features for each {video} of the prompt
    image: Files = ()  # for each {image}
    audio: Files = ()  # for each {audio}
    gaze: Files = ()  # for each {gaze}
    cam: Files = ()  # for each {cam}
    depth: Files = ()  # for each {depth}
    windows: bool = False
    stride_s: Positive | None = None
    predict: bool = True
    num_tokens: Count | None = None
    answer: AnswerConfig = AnswerConfig()
    num_answers: Count = 1  # to each prompt
    seed: Natural = 0
    tokens_out: str | None = None
    prompts: str | None = None
    rows_out: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if (self.prompts is None) != (self.rows_out is None):
            raise ValueError("prompts and rows_out go together: questions, and where they go with their answers")
        if self.windows and (self.num_answers > 1 or self.tokens_out is not None):
            raise ValueError("windows=true gives one caption per window: it goes without num_answers and tokens_out")

    @property
    def text(self) -> str:
        return typed_prompt(self.prompt)

    def files(self) -> list[tuple[str, str]]:
        """(kind, file) in the order of the prompt's placeholders; ValueError when they differ in number."""
        given = {kind: getattr(self, kind) for kind in KINDS}
        waiting = {kind: [files] if isinstance(files, str) else list(files) for kind, files in given.items()}
        chosen = []
        for found in PLACEHOLDER.finditer(self.text):
            if not waiting[found.group(1)]:
                raise ValueError(f"prompt: no file is left for {found.group()}; say {found.group(1)}=<file>")
            chosen.append((found.group(1), waiting[found.group(1)].pop(0)))
        left = [(kind, files[0]) for kind, files in waiting.items() if files]
        if left:
            raise ValueError(f"prompt: no placeholder {{{left[0][0]}}} is left for {left[0][1]}")
        return chosen

    def check_paths(self) -> None:
        """What is wrong with model and files, before seconds of loading."""
        files = [] if self.prompts else self.files()
        if self.windows and len(files) != 1:
            raise ValueError(f"windows=true needs a prompt with one placeholder, found {len(files)}")
        for kind, file in files:
            is_pattern = ".tar" in file  # of token shards
            if not is_pattern and not Path(file.partition("#")[0]).exists():
                raise FileNotFoundError(f"{kind}: {file} is not there")
        if not any((Path(self.model) / name).is_file() for name in ("anytoany.json", "config.json")):
            raise ValueError(
                f"model: {self.model} is no directory of an any-to-any model (anytoany.json) or of a plain language "
                "model (config.json)"
            )
        if files and not is_anytoany(self.model):
            raise ValueError(f"model: {self.model} is a plain language model, which perceives no {files[0][0]}")


def question_of_files(inference: Inference, config: GenerateConfig) -> Question:
    """The prompt about the first clip of each file."""
    media = [(kind, _first(_clips(inference, kind, file, config.stride_s), file)) for kind, file in config.files()]
    notes = [inference.note(kind, clip, file) for (kind, clip), (_, file) in zip(media, config.files(), strict=True)]
    sys.stderr.writelines(f"note: {note}\n" for note in dict.fromkeys(notes) if note)
    items = [(kind, clip.features) for kind, clip in media]
    return inference.question(config.text, items, num_tokens=config.num_tokens)


def main(config: GenerateConfig) -> None:
    config.check_paths()
    if config.prompts is not None:
        return _write_replies(config)
    if note := stand_in_note(config.model):
        sys.stderr.write(f"note: {note}\n")
    start_s = time.perf_counter()
    inference = _load(config)
    loaded_s = time.perf_counter()
    if config.windows:
        _write_captions(inference, config)
        done = f"perceived and captioned in {time.perf_counter() - loaded_s:.2f} s"
    else:
        question = question_of_files(inference, config)
        perceived_s = time.perf_counter()
        seeds = list(range(config.seed, config.seed + config.num_answers))
        answers = inference.answer([question] * config.num_answers, config.answer, seeds=seeds)
        num_tokens, answer_s = sum(len(answer.ids) for answer in answers), time.perf_counter() - perceived_s
        _write_answers(inference, config, answers)
        done = f"perceived in {perceived_s - loaded_s:.2f} s, {num_tokens} tokens in {answer_s:.2f} s "
        done += f"({num_tokens / answer_s:.1f} tokens/s)"
    sys.stderr.write(f"loaded in {loaded_s - start_s:.2f} s, {done}; {_memory(inference.model.device)}\n")


def _load(config: GenerateConfig) -> Inference:
    load = load_anytoany if is_anytoany(config.model) else load_plain
    model = load(config.model, device=choose_device(config.device))
    return Inference(model, Familiarity.load(config.model), predict=config.predict)


def _write_replies(config: GenerateConfig) -> None:
    """Every prompt of a file with its answers, `num_answers` of each."""
    assert config.prompts is not None and config.rows_out is not None
    lines = Path(config.prompts).read_text(encoding="utf-8").splitlines()
    asked = [line for line in lines if line.strip() and not line.startswith("#")] * config.num_answers
    if not asked:
        raise ValueError(f"{config.prompts}: holds no prompt")
    inference = _load(config)
    seeds = range(config.seed, config.seed + len(asked))
    answers = inference.answer([inference.question(text) for text in asked], config.answer, seeds=list(seeds))
    # A row that stops inside a sentence would teach to end turns there; one that is empty teaches nothing.
    pairs = [(text, said) for text, answer in zip(asked, answers, strict=True) if (said := answer.whole_sentences)]
    if not pairs:
        limit = config.answer.max_new_tokens
        raise ValueError(
            f"{config.prompts}: no answer ends, or has a whole sentence, within {limit} tokens; allow more"
        )
    turns = [[{"from": "human", "value": text}, {"from": "gpt", "value": said}] for text, said in pairs]
    with atomic_file(config.rows_out) as unfinished:
        unfinished.write_text("".join(json.dumps({"conversations": pair}) + "\n" for pair in turns), encoding="utf-8")
    sys.stderr.write(f"{config.rows_out}: {len(turns)} answers to {len(asked)} questions\n")


def _write_answers(inference: Inference, config: GenerateConfig, answers: Sequence[Answer]) -> None:
    for answer in answers:
        sys.stdout.write(answer.text + "\n")
        for kind, codes in answer.spans:
            sys.stdout.write(f"{kind}: {' '.join(map(str, codes.tolist()))}\n")
    if config.tokens_out is not None:
        clip = token_clip_of(answers[-1], inference.model.codebooks, key=Path(config.tokens_out).stem)
        if not clip.tokens:
            raise ValueError("tokens_out: the answer holds no modality codes; ask for them with answer.spans=[gaze]")
        write_tokens(clip, config.tokens_out)


def _write_captions(inference: Inference, config: GenerateConfig) -> None:
    ((kind, file),) = config.files()
    clips = _with_note(inference, kind, _clips(inference, kind, file, config.stride_s))
    settings = {"prompt": config.text, "kind": kind, "num_tokens": config.num_tokens, "seed": config.seed}
    found = None
    for found in joined(caption_windows(inference, clips, config.answer, **settings)):
        sys.stdout.write(f"{found.start_s:8.2f} {found.end_s:8.2f}  {' '.join(found.text.splitlines())}\n")
        sys.stdout.flush()  # a long video takes long
    if found is None:
        raise _no_clip(file)


def _with_note(inference: Inference, kind: str, clips: Iterator[PerceivedClip]) -> Iterator[PerceivedClip]:
    """The clips themselves; the first one that is not like the training data is told."""
    is_noted = False
    for clip in clips:
        if not is_noted and (note := inference.note(kind, clip, clip.key)):
            sys.stderr.write(f"note: {note}\n")
            is_noted = True
        yield clip


def _clips(inference: Inference, kind: str, file: str, stride_s: float | None) -> Iterator[PerceivedClip]:
    """Perception features of a file; ValueError says what a clip of it would need."""
    try:
        yield from inference.perceive_file(kind, file, stride_s=stride_s)
    except RecordingTooShort as error:
        raise ValueError(str(error).partition(" (")[0]) from None


def _first(clips: Iterator[PerceivedClip], file: str) -> PerceivedClip:
    clip = next(clips, None)
    if clip is None:
        raise _no_clip(file)
    if next(clips, None) is not None:
        part = f"seconds {clip.start_s:g} to {clip.end_s:g}" if clip.end_s else clip.key
        sys.stderr.write(f"{file}: holds several clips, this is about the first ({part}); windows=true takes all\n")
    return clip


def _no_clip(file: str) -> ValueError:
    return ValueError(f"{file}: no segment of it is long enough, with enough frames, for one clip")


def _memory(device: torch.device) -> str:
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    text = f"peak memory {peak_gb:.2f} GB"
    return f"{text}, on the GPU {torch.cuda.max_memory_allocated() / 1e9:.2f} GB" if device.type == "cuda" else text


def codebook_of(spec: ModalitySpec) -> CodebookConfig:
    """The vocabulary's codebook for a modality of EgoM2P."""
    if spec.quantity not in _KIND_OF_QUANTITY:
        raise ValueError(f"{spec.name}: {spec.quantity} is no kind of media of the language model")
    return CodebookConfig(
        kind=_KIND_OF_QUANTITY[spec.quantity],
        modality=spec.name,
        size=spec.vocab_size,
        num_tokens=spec.num_tokens,
        fingerprint=spec.tokenizer_fingerprint,
    )


def token_clip_of(answer: Answer, codebooks: Codebooks, *, key: str) -> TokenClip:
    """Codes of an answer, as tokens of a clip; of several spans of a kind the last counts."""
    configs = {kind: codebooks.configs[kind] for kind, _ in answer.spans}
    return TokenClip(
        key,
        {configs[kind].modality: codes for kind, codes in answer.spans},
        {config.modality: config.fingerprint for config in configs.values()},
    )


def render(
    model: EgoM2P, answers: Sequence[Answer], codebooks: Codebooks, plans: Sequence[TargetPlan], seeds: Sequence[int]
) -> list[TokenClip]:
    """Clips with the codes of the answers, and the targets of the plans generated from them.

    ValueError for an answer without codes: EgoM2P would make a clip out of nothing.
    """
    prompts = [token_clip_of(answer, codebooks, key=f"answer-{number}") for number, answer in enumerate(answers)]
    for number, prompt in enumerate(prompts):
        if not prompt.tokens:
            text = answers[number].text
            raise ValueError(f"answer {number} holds no span of codes ({text!r}); there is nothing to render from")
    return Sampler(model).generate(prompts, plans, seeds)


def write_tokens(clip: TokenClip, file: str | Path) -> None:
    """Codes as an .npz by modality: an input of `generate.py`."""
    with atomic_file(file) as unfinished, unfinished.open("wb") as opened:
        np.savez(opened, **clip.tokens)


if __name__ == "__main__":
    run_main(GenerateConfig, main, default_config="default/anytoany/generate.yaml", description=str(__doc__))
