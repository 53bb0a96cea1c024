"""Evaluation of any-to-any models: controls, intervals, texts, files, and the public harnesses by contract."""

import csv
import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from egom2p.anytoany.connectors import ConnectorConfig
from egom2p.anytoany.conversations.datasets import trained_on
from egom2p.anytoany.evaluation.anytoany_evaluation import (
    MediaFrames,
    evaluate_anytoany,
    load_evaluated,
    question_text,
)
from egom2p.anytoany.evaluation.controls import UNSEEN
from egom2p.anytoany.evaluation.harness import answer_config, lmms_adapter, run_lm_eval, run_lmms_eval
from egom2p.anytoany.evaluation.questions import letters_of, without_media
from egom2p.anytoany.evaluation.report import glance, model_and_control, provenance
from egom2p.anytoany.evaluation.settings import AnyToAnyEvaluationConfig, EvaluatedModelConfig, HarnessConfig
from egom2p.anytoany.language.language_model import LanguageModelConfig
from egom2p.anytoany.language.language_tokenizer import train_tokenizer
from egom2p.anytoany.language.likelihood import continuation, likelihoods, own_embedding
from egom2p.anytoany.language.packaged_model import Origin, save_origin
from egom2p.anytoany.model import AnyToAnyConfig, build_anytoany
from egom2p.anytoany.perception.feature_store import FeatureStore, FeatureWriter, select_modalities
from egom2p.anytoany.perception.source import CodesConfig
from egom2p.anytoany.perception.token_features import TokenSource
from egom2p.anytoany.saving import load_anytoany, save_anytoany, save_merged
from egom2p.anytoany.types import Conversation, Media, Turn
from egom2p.anytoany.world.factor_world import factor_clip, factor_rows, factor_specs
from egom2p.config import from_plain, to_plain
from egom2p.contracts import AlignedClip, Provenance, Stream
from egom2p.data.clips.clip_store import write_clips
from egom2p.metrics.result_table import Results
from egom2p.storage import save_json
from egom2p.viewing.anytoany_page import AnyToAnyPageConfig, write_anytoany_page

SPECS = [spec.to_dict() for spec in factor_specs()]
TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data of the world of codes, and two untrained models of it: with and without the gaze."""
    root = tmp_path_factory.mktemp("world")
    rows = factor_rows("looked_at", "unseen", 1)[:12]
    (root / "looked_at_unseen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = TokenSource(CodesConfig(width=1, modality_specs=SPECS))
    card = {"source": "codes", "names": list(source.names), "width": 1, "fingerprint": source.fingerprint}
    card["perception"] = to_plain(CodesConfig(width=1, modality_specs=SPECS))
    clips = [row["clip"] for row in rows]
    FeatureWriter(root / "features", card).write(clips, source.perceive([factor_clip(clip) for clip in clips]))
    train_tokenizer([row["description"] for row in rows], 300).save_pretrained(root / "tokenizer")
    for name, modalities in (("rgb", ("code_rgb",)), ("gaze", ("code_rgb", "code_gaze"))):
        perception = CodesConfig(width=8, modalities=modalities, modality_specs=SPECS)
        config = AnyToAnyConfig(
            language_model=LanguageModelConfig(architecture=TINY, tokenizer=str(root / "tokenizer")),
            connector=ConnectorConfig(kind="st_shuffle", cell=(4, 1, 1), dim=8, num_heads=2),
            perception=(perception,),
            adapt="full",
        )
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = build_anytoany(config)
            model.lm.lm_head.weight.data *= 20  # answers that differ
        save_anytoany(model, root / name)
    return root


def config_of(world: Path, output: Path, **changes) -> AnyToAnyEvaluationConfig:
    rows = [{"prompt": "red", "completion": "mug"}, {"prompt": "one two", "completion": "three"}]
    (world / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"question": "red or", "choices": ["blue", "a mug"], "answer": 0}]
    (world / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (world / "passages.jsonl").write_text(json.dumps({"text": "the wearer picks up the red mug"}) + "\n")
    plain = {
        "output": str(output),
        "models": {
            "rgb": {"directory": str(world / "rgb"), "features": [str(world / "features")]},
            "rgb+gaze": {
                "directory": str(world / "gaze"),
                "features": [str(world / "features")],
                "controls": ["true", "shuffled code_gaze", "without code_gaze"],
            },
        },
        "questions": {
            "looked_at": {
                "dataset": {
                    "kind": "captions",
                    "files": [str(world / "looked_at_unseen.jsonl")],
                    "ref": "clip",
                    "templates": {"file": "looked_at"},
                },
                "max_conversations": 6,
                "group": r"(looked_at-unseen-\d)-.*",
            }
        },
        "texts": {
            name: {"kind": kind, "files": [str(world / f"{name}.jsonl")]}
            for name, kind in (("passages", "perplexity"), ("choices", "choices"), ("completions", "completion"))
        },
        "answer": {"max_new_tokens": 6},
        "embedding": "own",
        "device": "cpu",
    }
    return from_plain(AnyToAnyEvaluationConfig, plain | changes, where="test")


def test_nothing_is_written_or_removed_through_a_link(world, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "years.npz").write_text("of work")
    few = {"questions": {}, "models": {"rgb": {"directory": str(world / "rgb")}}}
    for links in (("results.json", "results.md", "per_sample.csv", "samples.jsonl"), ("shown",)):
        output = tmp_path / links[0]
        output.mkdir()
        for name in links:
            (output / name).symlink_to(theirs / "years.npz" if "." in name else theirs)
        if links == ("shown",):
            with pytest.raises(ValueError, match="shown: leads out of"):
                evaluate_anytoany(config_of(world, output, **few))
        else:
            evaluate_anytoany(config_of(world, output, **few))
            assert not any((output / name).is_symlink() for name in links)
        assert [(file.name, file.read_text()) for file in theirs.iterdir()] == [("years.npz", "of work")]


@pytest.mark.filterwarnings("ignore:.*:UserWarning:torch")
def test_a_report_has_every_control_interval_difference_and_file(world, tmp_path):
    results = evaluate_anytoany(config_of(world, tmp_path / "out"))
    tables = {table.task: table for table in results.tables}
    assert set(tables) == {"looked_at", "passages", "choices", "completions"}
    rows = {model_and_control(row): row.values for row in tables["looked_at"].rows}
    assert set(rows) == {
        *(("rgb", control) for control in ("true", "shuffled", "zero")),
        *(("rgb+gaze", control) for control in ("true", "shuffled code_gaze", "without code_gaze")),
        ("commonest answer", ""),
    }
    assert set(rows["rgb", "true"]) > {"exact_match", "cider_d", "embedding_cosine"}
    assert tables["looked_at"].num_clips == 6 and 1 < tables["looked_at"].num_recordings < 6
    differences = {(row.minuend, row.subtrahend) for row in tables["looked_at"].differences}
    assert ("rgb, true", "rgb, zero") in differences and ("rgb+gaze, true", "rgb, true") in differences
    assert ("rgb+gaze, shuffled code_gaze", "rgb, true") in differences
    passages = tables["passages"].rows[0]
    assert passages.of_the_set["perplexity"] == pytest.approx(np.exp(passages.values["nats_per_token"].mean))

    assert Results.read(tmp_path / "out").tables == results.tables
    text = (tmp_path / "out/results.md").read_text()
    assert "- rgb: what it was trained on is not known here" in text
    assert "| rgb+gaze | shuffled code_gaze |" in text and "| rgb+gaze, true minus rgb, true |" in text
    with (tmp_path / "out/per_sample.csv").open() as opened:
        samples = [row for row in csv.DictReader(opened) if row["table"] == "looked_at" and row["model"] == "rgb"]
    own = [row for row in samples if row["control"] == "true" and row["metric"] == "exact_match"]
    assert len(own) == 6 and all(row["reference"].startswith("the ") for row in own)
    mean = np.mean([float(row["value"]) for row in own])
    assert rows["rgb", "true"]["exact_match"].mean == pytest.approx(mean)
    assert all((row["output"] == row["reference"]) == (float(row["value"]) == 1) for row in own)
    told = glance(results.tables)
    assert "looked_at: exact match, 6 in" in told and "true minus this +" in told
    assert max(len(line) for line in told.splitlines()) < 160, "wide tables are for results.md"


def test_training_rows_and_stand_ins_are_named(world, tmp_path):
    """By the files that the run's patterns found, not by how they are written; in results.md too (test above)."""
    config = config_of(world, tmp_path / "out", models={"it": {"directory": str(tmp_path / "run/checkpoints/step-1")}})
    assert provenance(config) == ["it: what it was trained on is not known here"]
    (tmp_path / "run/checkpoints/step-1").mkdir(parents=True)
    (tmp_path / "run/log.jsonl").write_text("")
    save_origin(tmp_path / "run/checkpoints/step-1", Origin("none", "none", stand_in=True))
    trained = {"captions": {"files": [f"{world}/../{world.name}/looked_at_*.jsonl"]}}
    save_json(tmp_path / "run/config.json", {"data": {"datasets": trained}})
    stand_in, seen, unseen = provenance(config)
    assert "it: " in stand_in and "STAND-IN with random weights" in stand_in
    assert seen == "it: TRAINING ROWS in looked_at, which show progress, not generalisation"
    assert "its training read no file of passages, choices, completions" in unseen


def test_clips_are_training_rows_by_their_folder():
    run = {"data": {"datasets": {"world": {"root": "clips", "datasets": ["a", "b"]}}}}
    sets = {"same": {"root": "./clips", "datasets": ["b"]}, "other": {"root": "clips", "datasets": ["c"]}}
    assert trained_on(run, sets) == {"same"}


@pytest.mark.filterwarnings("ignore:.*:UserWarning:torch")
def test_what_the_page_shows_is_kept(world, tmp_path):
    config = config_of(world, tmp_path / "out", texts={}, embedding=None, num_shown=2, controls=["true"])
    config = replace(config, models={name: replace(m, controls=("true",)) for name, m in config.models.items()})
    evaluate_anytoany(config)
    samples = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert [sample["row"] for sample in samples] == list(range(6))
    rows = [json.loads(line) for line in (world / "looked_at_unseen.jsonl").read_text().splitlines()]
    for sample in samples:
        row = rows[sample["row"] * len(rows) // 6]
        assert sample["reference"] == row["description"] and sample["media"] == [{"kind": "video", "ref": row["clip"]}]
        assert "{video}" in sample["question"]
        who = [(said["model"], said["control"]) for said in sample["answers"]]
        assert who == [("rgb", "true"), ("rgb+gaze", "true"), ("commonest answer", "")]
    shown = sorted(path.name for path in (tmp_path / "out/shown").iterdir())
    assert shown == ["looked_at-0-0.npz", "looked_at-3-0.npz"], "spread over the set"
    kept = np.load(tmp_path / "out/shown/looked_at-3-0.npz")
    store = FeatureStore(world / "features")
    wanted = select_modalities(store[samples[3]["media"][0]["ref"]], store.card["names"], kept["names"].tolist())
    assert (
        kept["ids"].tolist() == wanted.features[:, 0].tolist() and kept["position"].tolist() == wanted.position.tolist()
    )


def test_sights_are_stored_clips_files_or_nothing(tmp_path, rng):
    streams = {
        "rgb": Stream(rng.integers(0, 255, (16, 256, 256, 3), np.uint8), np.ones(16, bool), np.arange(16) / 8, "uint8"),
        "gaze": Stream(rng.random((60, 2)).astype(np.float32), np.arange(60) % 7 > 0, np.arange(60) / 30, "image"),
    }
    clip = AlignedClip("walk_000000", streams, None, Provenance(dataset="d", recording="walk", source="test"))
    write_clips(tmp_path / "clips", "d", [clip])
    found = MediaFrames({}).of(Media("video", "walk_000000"), [str(tmp_path / "clips")])
    assert found["frames"].shape == (6, 128, 128, 3) and found["gaze"].shape == (6, 2)
    at = [0, 3, 6, 9, 12, 15]
    assert np.allclose(found["frames"][2].mean(), streams["rgb"].values[at[2]].mean(), atol=1)
    for number, frame in enumerate(at):
        nearest = np.abs(np.arange(60) / 30 - frame / 8).argmin()
        assert np.allclose(found["gaze"][number], streams["gaze"].values[nearest])
    for ref in ("vectors.parquet#3", "elsewhere.mp4"):
        assert MediaFrames({}).of(Media("video", ref), [str(tmp_path / "clips")]) == {}


def test_likelihoods_do_not_depend_on_the_batch_and_match_a_plain_forward(world):
    model = load_evaluated(EvaluatedModelConfig(directory=str(world / "rgb")), device=torch.device("cpu"))
    rows = [continuation(model, "the wearer", text) for text in (" picks up", " looks at the red mug", " a")]
    together = likelihoods(model, rows, batch_size=3)
    alone = [likelihoods(model, [row], batch_size=1)[0] for row in rows]
    for one, other, row in zip(together, alone, rows, strict=True):
        assert one.nats == pytest.approx(other.nats, abs=1e-4) and one.num_tokens == other.num_tokens
        ids = torch.from_numpy(row.ids).long()[None]
        with torch.no_grad():
            logits = model.lm(inputs_embeds=model.embed_ids(ids), use_cache=False).logits[0]
        plain = -logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
        asked = torch.from_numpy(row.is_target[1:])
        assert one.nats == pytest.approx(float(plain[asked].sum()), abs=1e-4)
        assert one.num_tokens == int(asked.sum())
        assert one.is_greedy == bool((logits[:-1].argmax(-1) == ids[0, 1:])[asked].all())


def test_the_targets_of_a_continuation_are_its_own_tokens(world):
    model = load_evaluated(EvaluatedModelConfig(directory=str(world / "rgb")), device=torch.device("cpu"))
    row = continuation(model, "the wearer", " picks up")
    assert model.tokenizer.decode(row.ids[row.is_target].tolist()) == " picks up"
    whole = continuation(model, "", "the wearer")
    assert whole.is_target[1:].all() and not whole.is_target[0]
    with pytest.raises(ValueError, match="the first of which nothing predicts"):
        continuation(model, "", "")


def test_a_model_of_plain_transformers_answers_texts_and_the_words_of_questions(world, tmp_path):
    save_merged(load_anytoany(world / "rgb"), tmp_path / "plain")
    models = {"base": {"directory": str(tmp_path / "plain")}, "rgb": {"directory": str(world / "rgb")}}
    config = config_of(world, tmp_path / "out", models=models, questions={}, embedding=None)
    tables = {table.task: table for table in evaluate_anytoany(config).tables}
    base, own = (row.values["nats_per_token"].mean for row in tables["passages"].rows)
    assert base == pytest.approx(own, abs=1e-4), "merging changes no text"
    models["rgb"]["features"] = [str(world / "features")]
    asked = config_of(world, tmp_path / "asked", models=models, texts={}, embedding=None)
    (table, *_) = evaluate_anytoany(asked).tables
    assert [(row.checkpoint, row.label) for row in table.rows][:2] == [("base", UNSEEN), ("rgb", "true")]
    html = write_anytoany_page(AnyToAnyPageConfig(evaluation=str(tmp_path / "asked"))).read_text("utf-8")
    assert f"base {UNSEEN}" in html


def test_a_question_without_its_media_keeps_its_words():
    conversation = Conversation("k", (Turn("user", (Media("video", "c"), "What is it?")), Turn("assistant", ("mug",))))
    assert without_media(conversation).media == () and question_text(without_media(conversation)) == "What is it?"


def test_choices_are_letters_that_the_question_offers():
    def asked(text, answer):
        return Conversation("k", (Turn("user", (Media("video", "c"), text)), Turn("assistant", (answer,))))

    assert letters_of(asked("What is it? A) a mug B) a bowl", "B")) == ["A", "B"]
    for text, answer in (("What is it?", "B"), ("A) a mug A) a bowl", "A"), ("A) a mug B) a bowl", "C")):
        with pytest.raises(ValueError, match="offers the answers"):
            letters_of(asked(text, answer))


def test_settings_are_checked(world, tmp_path):
    with pytest.raises(ValueError, match="'true' beside them"):
        config_of(world, tmp_path, controls=["zero"])
    with pytest.raises(ValueError, match="nothing to evaluate"):
        config_of(world, tmp_path, questions={}, texts={})
    with pytest.raises(ValueError, match="at least one model"):
        config_of(world, tmp_path, models={})


def test_own_embeddings_do_not_depend_on_padding(world):
    model = load_evaluated(EvaluatedModelConfig(directory=str(world / "rgb")), device=torch.device("cpu"))
    embed = own_embedding(model)
    together, alone = embed(["a red mug", "the wearer looks at it for long"]), embed(["a red mug"])
    assert np.allclose(together[0], alone[0], atol=1e-5) and not np.allclose(together[0], together[1], atol=1e-3)


class FakeHarness(types.ModuleType):
    """What is used of the interface of lm_eval and lmms_eval."""

    def __init__(self, name):
        super().__init__(name)
        self.asked = []

    def simple_evaluate(self, **given):
        self.asked.append(given)
        return {"results": {task: {"acc,none": 0.5} for task in given["tasks"]}}


def test_lm_eval_gets_the_merged_model_as_a_folder(world, monkeypatch):
    def evaluate(**given):
        folder = Path(given["model_args"].removeprefix("pretrained="))
        assert (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file()
        return FakeHarness("x").simple_evaluate(**given)

    fake = FakeHarness("lm_eval")
    fake.simple_evaluate = evaluate
    monkeypatch.setitem(sys.modules, "lm_eval", fake)
    model = load_evaluated(EvaluatedModelConfig(directory=str(world / "rgb")), device=torch.device("cpu"))
    found = run_lm_eval(model, HarnessConfig(tasks=("piqa",), limit=3), batch_size=2)
    assert found == {"piqa": {"acc,none": 0.5}}


def test_own_arguments_of_a_harness_win_and_only_unknown_tasks_are_told_as_such(world, monkeypatch):
    fake = FakeHarness("lm_eval")
    monkeypatch.setitem(sys.modules, "lm_eval", fake)
    about = EvaluatedModelConfig(directory=str(world / "rgb"))

    def run():
        model = load_evaluated(about, device=torch.device("cpu"))
        run_lm_eval(model, HarnessConfig(tasks=("piqa",), arguments={"device": "cuda:1"}), batch_size=2)

    run()
    assert fake.asked[0]["device"] == "cuda:1"
    for message, told in (("piqa", ValueError), ("own mistake", KeyError)):

        def evaluate(message=message, **given):
            raise KeyError(message)

        fake.simple_evaluate = evaluate
        with pytest.raises(told, match=message):
            run()


def test_lmms_eval_asks_through_the_adapter(world, monkeypatch):
    class Base:
        def __init__(self):
            self.task_dict = {"t": {"test": [{"media": ["clip.mp4"]}, {"media": []}]}}

    fake, api = FakeHarness("lmms_eval"), types.ModuleType("lmms_eval.api.model")
    api.lmms = Base
    for name, module in (("lmms_eval", fake), ("lmms_eval.api", types.ModuleType("a")), ("lmms_eval.api.model", api)):
        monkeypatch.setitem(sys.modules, name, module)
    model = load_evaluated(EvaluatedModelConfig(directory=str(world / "gaze")), device=torch.device("cpu"))
    seen = []

    def perceive(kind, shown):
        seen.append((kind, shown))
        store = FeatureStore(world / "features")
        return select_modalities(store[store.refs[-1]], store.card["names"], ["code_gaze", "code_rgb"])

    assert run_lmms_eval(model, HarnessConfig(tasks=("t",)), perceive, batch_size=2) == {"t": {"acc,none": 0.5}}
    adapter = fake.asked[0]["model"]
    assert isinstance(adapter, Base)

    def request(number):
        given = {"max_new_tokens": 4, "until": ["\n\n"], "do_sample": False}
        arguments = ("What is {this}? <image>", given, lambda row: row["media"], number, "t", "test")
        return types.SimpleNamespace(args=arguments)

    answers = adapter.generate_until([request(0), request(1)])
    assert len(answers) == 2 and all(isinstance(text, str) for text in answers)
    assert seen == [("video", "clip.mp4")]
    with pytest.raises(NotImplementedError, match="generating"):
        adapter.loglikelihood([])
    assert answer_config({"temperature": 0.7, "do_sample": True}, batch_size=1).temperature == 0.7
    assert answer_config({"temperature": 0.7, "do_sample": False}, batch_size=1).temperature == 0.0
    assert lmms_adapter(Base, model, perceive, batch_size=1).task_dict


@pytest.mark.parametrize("package", ["lm_eval", "lmms_eval"])
def test_a_missing_harness_is_named_with_the_way_to_get_it(world, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    model = load_evaluated(EvaluatedModelConfig(directory=str(world / "rgb")), device=torch.device("cpu"))
    with pytest.raises(ValueError, match=f"pip install {package}"):
        if package == "lm_eval":
            run_lm_eval(model, HarnessConfig(tasks=("piqa",)), batch_size=1)
        else:
            run_lmms_eval(model, HarnessConfig(tasks=("t",)), lambda kind, shown: None, batch_size=1)
