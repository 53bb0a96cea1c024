"""The vocabulary of a text tokenizer from captions: `python -m egom2p.training.tasks.text_tokenizer --config FILE`.

Pieces are counted; there is no gradient and no training loop.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from rich.console import Console

from egom2p.config import run_main, strict, to_plain
from egom2p.tokenizers.text import TextTokenizer, WordPieceConfig, train_wordpiece
from egom2p.training.tasks.tokenizer_config import ClipSequence, ClipSourceConfig


@strict
class TextTokenizerTrainingConfig:
    """Where the captions are, what the vocabulary is like, where it goes.

    train        clips whose captions are read; nothing else of them is touched
    text_files   further texts, one per line, UTF-8
    validation   clips whose captions are encoded and decoded for the card; null: those of training
    """

    output_dir: str
    network: WordPieceConfig
    train: ClipSourceConfig | None = None
    text_files: tuple[str, ...] = ()
    validation: ClipSourceConfig | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        if self.train is None and not self.text_files:
            raise ValueError("a vocabulary needs texts: give train (clips with captions) or text_files")


def train_text_tokenizer(config: TextTokenizerTrainingConfig) -> TextTokenizer:
    """Train, measure and write `<output_dir>/final`."""
    stream = config.network.stream
    texts = list(chain(_captions(config.train, stream), _lines(config.text_files)))
    tokenizer = train_wordpiece(config.network, texts)
    metrics = tokenizer.measure(list(_captions(config.validation, stream)) or texts)
    kept = ("train", "text_files", "validation")
    data = {name: to_plain(getattr(config, name)) for name in kept} | {"num_texts": len(texts)}
    tokenizer.save(Path(config.output_dir, "final"), training_data=data, metrics=metrics, licence=config.licence)
    return tokenizer


def _captions(source: ClipSourceConfig | None, stream: str) -> Iterator[str]:
    if source is not None:
        yield from (str(clip.streams[stream].values[0]) for clip in ClipSequence(source, stream))


def _lines(files: tuple[str, ...]) -> Iterator[str]:
    for file in files:
        yield from (line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip())


def main(config: TextTokenizerTrainingConfig) -> None:
    """Train and tell in a line what came out."""
    tokenizer = train_text_tokenizer(config)
    measured = ", ".join(f"{name} {value:.4g}" for name, value in tokenizer.card["metrics"].items())
    say = Console(stderr=True, soft_wrap=True)
    say.print(f"{config.output_dir}/final: {tokenizer.spec.vocab_size} ids; {measured}", markup=False, highlight=False)


if __name__ == "__main__":
    run_main(
        TextTokenizerTrainingConfig,
        main,
        default_config="default/tokenization/text/captions.yaml",
        description="Vocabulary of a text tokenizer (WordPiece) from captions.",
    )
