"""Every command of the project by name, with or without a checkout: `egom2p COMMAND ...`, or `python -m egom2p`.

Nothing of a command is imported before it is chosen, so that the list is there at once.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from runpy import run_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command of the list.

    task             where it lies: `module:name`; or a module that is a program itself
    schema           of its config, `module:name`; None: the task takes the arguments itself
    default_config   YAML used without --config
    program          as headers of YAML files name it: theirs are offered where a config is asked for
    """

    purpose: str
    task: str
    schema: str | None = None
    default_config: str | None = None
    program: str | None = None


_TASKS, _ANY = "egom2p.training.tasks", "egom2p.anytoany"
COMMANDS = {
    "prepare": Command(
        "recordings -> aligned clips on disk",
        "egom2p.pipelines.prepare:prepare",
        "egom2p.pipelines.prepare:PrepareConfig",
        "default/data_preparation/recordings.yaml",
    ),
    "tokenize-train": Command(
        "train a tokenizer on aligned clips",
        f"{_TASKS}.tokenizer_task:train_tokenizer",
        f"{_TASKS}.tokenizer_config:TokenizerTrainingConfig",
        program="run_training_tokenizer.py",
    ),
    "tokenize": Command(
        "aligned clips -> shards of tokens",
        "egom2p.pipelines.tokenization:tokenize",
        "egom2p.pipelines.tokenization:TokenizeConfig",
        "default/tokenize/clips.yaml",
    ),
    "train": Command(
        "pretrain EgoM2P on token shards",
        f"{_TASKS}.pretrain_task:pretrain",
        f"{_TASKS}.pretrain_config:PretrainConfig",
        program="run_training_egom2p.py",
    ),
    "generate": Command(
        "depth, camera, gaze or rgb of a video, recordings or tokens",
        "egom2p.__main__:_generate",
        "egom2p.generation.generation:GenerationConfig",
        "default/egom2p/generation/any2any.yaml",
    ),
    "evaluate": Command(
        "checkpoints against baselines and ceilings on held-out clips",
        "egom2p.__main__:_evaluate",
        "egom2p.evaluation.evaluation_config:EvaluationConfig",
        "default/egom2p/evaluation/quickstart.yaml",
    ),
    "download": Command(
        "base model and data sets of the any-to-any model",
        f"{_ANY}.download:main",
        f"{_ANY}.download:DownloadConfig",
        "default/anytoany/download.yaml",
    ),
    "caption-train": Command(
        "train a language model on what cameras and eyes perceive",
        f"{_TASKS}.anytoany_task:train_anytoany",
        f"{_TASKS}.anytoany_task:AnyToAnyTrainingConfig",
        program="run_training_anytoany.py",
    ),
    "caption": Command(
        "ask a trained any-to-any model about a video or picture",
        f"{_ANY}.generate:main",
        f"{_ANY}.generate:GenerateConfig",
        "default/anytoany/generate.yaml",
    ),
    "caption-evaluate": Command(
        "any-to-any models on held-out questions and texts",
        f"{_ANY}.evaluation.anytoany_evaluation:main",
        f"{_ANY}.evaluation.settings:AnyToAnyEvaluationConfig",
        program=f"{_ANY}.evaluation.anytoany_evaluation",
    ),
    "caption-perceive": Command("what a perception source makes of clips, once", f"{_ANY}.perception.export_features"),
    "caption-serve": Command("an any-to-any model behind HTTP", f"{_ANY}.serve"),
    "probe": Command("linear probes of the encoder's features", "egom2p.evaluation.probe"),
    "view": Command("what was generated or evaluated, in 3-D (rerun)", "egom2p.viewing.rerun_folders"),
    "score-camera": Command("a trajectory file against another", "egom2p.metrics.camera"),
    "convert": Command("published weights -> a checkpoint of ours", "egom2p.models.convert_model"),
    "publish": Command("push trained weights to the Hub", "egom2p.pipelines.publish:upload"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names; exit code 2 for one that there is not."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        raise SystemExit(0 if given else 2)
    name, rest = given[0], given[1:]
    if name not in COMMANDS:
        # Not at the top: this file is to be there at once.
        from difflib import get_close_matches

        nearest = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(COMMANDS)}"
        sys.stderr.write(f"error: there is no command {name!r}; {hint}\n")
        raise SystemExit(2)
    command = COMMANDS[name]
    sys.argv = [f"egom2p {name}", *rest]
    if ":" not in command.task:
        run_module(command.task, run_name="__main__")
        return
    task = _found(command.task)
    if command.schema is None:
        task(rest)
        return
    from egom2p.config import run_main

    run_main(
        _found(command.schema),
        task,
        default_config=command.default_config,
        description=command.purpose,
        arguments=rest,
        program=command.program,
    )


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.purpose}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: egom2p COMMAND [--config FILE] [key=value ...]", "", *lines, "", _MORE, ""])


_MORE = "`egom2p COMMAND --help` explains its keys. Several processes: torchrun --nproc_per_node=4 -m egom2p train ..."


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


# As generate.py and run_evaluation.py, which an installed package does not have.
def _generate(config: Any) -> None:
    from egom2p.generation.generation import run_generation
    from egom2p.jobs.progress import say
    from egom2p.viewing.generation_page import write_generation_page

    say(f"page: {write_generation_page(run_generation(config).parent)}")


def _evaluate(config: Any) -> None:
    from egom2p.evaluation.evaluation import run_evaluation
    from egom2p.jobs.progress import say
    from egom2p.viewing.report import ReportConfig, write_report

    say(f"page: {write_report(ReportConfig(evaluation=str(run_evaluation(config).folder)))}")


if __name__ == "__main__":
    main()
