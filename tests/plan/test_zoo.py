"""Lists of models: what they may contain, where an error is said to be, and how turns are taken."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.plan import specification
from pipeline.plan.quotas import Plan, quotas, shares
from pipeline.plan.rounds import by_model, pinned_source, shard_name
from pipeline.plan.specification import DiffusersSpec, ZooSpec
from pipeline.plan.zoo import turns

COMMIT, OTHER = "0" * 40, "1" * 40


def source(**changes: Any) -> dict[str, Any]:
    return {
        "title": "Zoo",
        "licence": "see each model",
        "kind": "zoo",
        "models": "zoo.csv",
        "each": {"pipeline": "sd", "steps": 4, "guidance_scale": 5.0},
        "images_per_model": {"train": 3, "test": 1},
        "splits": {"train": {"width": 64, "height": 64}, "test": {"width": 96, "height": 64}},
    } | changes


def load(folder: Path, listed: str, name: str = "zoo.csv", **changes: Any) -> ZooSpec:
    (folder / name).write_text(listed)
    whole = {
        "name": "z", "title": "Z", "licence": "l",
        "sources": {"zoo": source(**{"models": name, **changes})},
    }  # fmt: skip
    (folder / "z.yaml").write_text(yaml.safe_dump(whole))
    found = specification.load(str(folder / "z.yaml")).sources["zoo"]
    assert isinstance(found, ZooSpec)
    return found


CSV = f"""model,revision,steps,scheduler,train,licence
org/one,{COMMIT},,,,
org/two,v1,6,"{{name: euler, use_karras_sigmas: true}}",5,MIT

org/three,,,,0,
"""
YAML = f"""
- model: org/one
  revision: '{COMMIT}'
- {{model: org/two, revision: v1, steps: 6, train: 5, licence: MIT,
   scheduler: {{name: euler, use_karras_sigmas: true}}}}
- {{model: org/three, train: 0}}
"""


def test_a_list_is_the_same_as_csv_and_as_yaml(tmp_path: Path) -> None:
    one, other = load(tmp_path, CSV), load(tmp_path, YAML, "zoo.yaml")
    assert one.model_dump(mode="json") == other.model_dump(mode="json")
    assert [member.model for member in one.members] == ["org/one", "org/two", "org/three"]
    assert [member.revision for member in one.members] == [COMMIT, "v1", "main"]
    assert [member.steps for member in one.members] == [4, 6, 4]
    assert one.members[1].scheduler == 'euler {"use_karras_sigmas":true}'
    assert [member.licence for member in one.members] == ["see each model", "MIT", "see each model"]
    assert [member.splits["train"].count for member in one.members] == [3, 5, 0]
    assert {split: size.count for split, size in one.splits.items()} == {"train": 8, "test": 3}
    inline = load(tmp_path, CSV, models=yaml.safe_load(YAML))
    assert inline.model_dump(mode="json") == one.model_dump(mode="json")
    again = ZooSpec.model_validate(json.loads(json.dumps(one.model_dump(mode="json"))))
    assert again == one and again.members == one.members


def test_a_plain_yaml_list_of_hub_ids_is_enough(tmp_path: Path) -> None:
    found = load(tmp_path, "- a/b\n- c/d\n", "zoo.yml")
    assert [member.model for member in found.members] == ["a/b", "c/d"]


WRONG = {
    "model,stepz\na/b,3\nc/d,4\n": r'zoo\.csv:2: stepz: no such field of a model; did you mean "st',
    "model,revision\na/b,v1\nc/d,../x\n": r"zoo\.csv:3: revision: .*a commit, tag or branch",
    "model,steps\na/b,x\nc/d,-1\n": r"zoo\.csv:2: steps: .*\n +zoo\.csv:3: steps: expected 1",
    "model,steps\na/b\n": r"zoo\.csv:2: 1 fields, the header has 2",
    "model,model\na/b,c/d\n": r"zoo\.csv:1: the column 'model' is there twice",
    'model,scheduler\na/b,"{x"\n': r"zoo\.csv:2: scheduler: not readable as YAML",
    "model,scheduler\na/b,eulr\n": r'zoo\.csv:2: scheduler: no "eulr"; did you mean "euler"',
    "model\na/b\nc/d\na/b\n": r"zoo\.csv:4: a/b: the same model with the same settings as in .*:2",
    "model,revision\na/b,v1\na/b,main\n": r"zoo\.csv:3: a/b: the same model with the same settings",
    "revision\nv1\n": r"zoo\.csv:2: model: needed, but not given",
    "model,train\na/b,-1\n": r"zoo\.csv:2: splits\.train\.count: expected 0 or more",
    "model\n": r"models: expected 1 or more",
    "": r"models: expected 1 or more",
    "model\n\"a\n": r"zoo\.csv:2: not readable as CSV",
    "model,kind\na/b,import\n": r"zoo\.csv:2: kind: no such field of a model",
}  # fmt: skip


@pytest.mark.parametrize("listed", WRONG)
def test_an_error_has_file_and_line(tmp_path: Path, listed: str) -> None:
    with pytest.raises(AigiError, match=WRONG[listed]) as caught:
        load(tmp_path, listed)
    assert str(caught.value).startswith(f"{tmp_path}/z.yaml: sources.zoo")


def test_errors_of_yaml_have_lines_too(tmp_path: Path) -> None:
    with pytest.raises(AigiError, match=r"zoo\.yaml:3: steps: expected a whole number"):
        load(tmp_path, "- model: a/b\n  steps: 3\n- model: c/d\n  steps: many\n", "zoo.yaml")
    with pytest.raises(AigiError, match=r"zoo\.yaml:3: not readable as YAML: expected"):
        load(tmp_path, "- model: a/b\n  steps: [3\n", "zoo.yaml")
    with pytest.raises(AigiError, match=r"zoo\.yaml:1: a key is given twice"):
        load(tmp_path, "- {model: a/b, model: c/d}\n", "zoo.yaml")
    with pytest.raises(AigiError, match=r"zoo\.yaml: expected a list of models"):
        load(tmp_path, "model: a/b\n", "zoo.yaml")
    with pytest.raises(AigiError, match=r"zoo\.txt: a list of models is a \.csv or \.yaml file"):
        load(tmp_path, "a/b\n", "zoo.txt")
    (tmp_path / "none.csv").unlink(missing_ok=True)
    with pytest.raises(AigiError, match=r"none\.csv: no such file"):
        load(tmp_path, "x", models="none.csv")


def test_what_all_share_is_checked_and_counts_are_sums(tmp_path: Path) -> None:
    with pytest.raises(AigiError, match=r"each: stepz: no such field of a model"):
        load(tmp_path, "model\na/b\n", each={"stepz": 3})
    with pytest.raises(AigiError, match=r"zoo\.csv:2: pipeline: needed"):
        load(tmp_path, "model\na/b\n", each={"steps": 3, "guidance_scale": 1})
    with pytest.raises(AigiError, match=r"zoo\.csv:2: test: needed, or images_per_model\.test"):
        load(tmp_path, "model\na/b\n", images_per_model={"train": 3})
    wrong = {"train": {"count": 9, "width": 64, "height": 64}}
    with pytest.raises(AigiError, match=r"splits\.train\.count: the models make 3 together, not 9"):
        load(tmp_path, "model\na/b\n", splits=wrong)


def test_a_manifest_has_the_list_and_names_no_file(tmp_path: Path) -> None:
    context = {"base": tmp_path, "recorded": True}
    (tmp_path / "zoo.csv").write_text(CSV)
    with pytest.raises(ValueError, match="a manifest names no file"):
        ZooSpec.model_validate(source(), context=context)


def test_rows_find_their_model_and_branches_become_commits(tmp_path: Path) -> None:
    found = load(tmp_path, CSV)

    def row(member: DiffusersSpec, **changes: Any) -> dict[str, Any]:
        columns = {name: getattr(member, name) for name in specification.STATED}
        return {**columns, "options": member.row_options, **changes}

    for number, member in enumerate(found.members):
        assert found.number_of(row(member)) == number
    assert found.number_of(row(found.members[1], revision=OTHER)) == 1
    assert found.number_of(row(found.members[0], revision=OTHER)) is None
    assert found.number_of(row(found.members[0], model="org/none")) is None
    assert found.number_of(row(found.members[0], options='{"a":1}')) is None
    pinned = pinned_source("zoo", found, {"zoo/1": OTHER, "zoo/2": COMMIT, "other": COMMIT})
    assert isinstance(pinned, ZooSpec)
    assert [member.revision for member in pinned.members] == [COMMIT, OTHER, COMMIT]
    assert found.members[1].revision == "v1"
    two = load(tmp_path, f"model,revision\na/b,{COMMIT}\na/b,main\n")
    with pytest.raises(AigiError, match=r"sources\.zoo: with the commits of today, models\.1: a/b"):
        pinned_source("zoo", two, {"zoo/1": COMMIT})


@given(counts=st.lists(st.integers(0, 6), max_size=8), some=st.integers(0, 60))
def test_every_first_part_is_shared_as_fairly_as_can_be(counts: list[int], some: int) -> None:
    order = turns(counts)
    assert Counter(order) == Counter({n: count for n, count in enumerate(counts) if count})
    made = Counter(order[:some])
    for one, count in enumerate(counts):
        for other, more in enumerate(counts):
            if made[one] < min(count, made[other] - 1):
                raise AssertionError(f"{one} has {made[one]}, {other} has {made[other]} of {more}")


def test_quotas_count_over_the_source_and_shards_have_one_model(tmp_path: Path) -> None:
    found = load(tmp_path, CSV)
    dataset = specification.load(str(tmp_path / "z.yaml"))
    plan = Plan(dataset=str(tmp_path / "z.yaml"), margin=0.5)
    train, test = quotas(dataset, plan)
    assert (train.generations, train.planned, train.shards) == (8, 12, 2)
    assert (test.generations, test.planned, test.shards) == (3, 5, 3)
    assert shares(found, "train", 12) == [5, 7, 0]
    limited = quotas(dataset, Plan(dataset=str(tmp_path / "z.yaml"), limit=2))
    assert [quota.generations for quota in limited] == [2, 2]


def test_shards_of_one_model_come_one_after_another() -> None:
    names = [
        shard_name("zoo", split, number, shard, model)
        for split in ("train", "test")
        for number in (0, 1)
        for model in (0, 11)
        for shard in (0, 1)
    ]
    others = ["a-test-00000", "a-train-00000", "zoo2-train-00000"]
    ordered = by_model([*names, *others])
    assert [name for name in ordered if name in others] == others
    models = [name.split("m00")[1][:2] for name in ordered if name not in others]
    assert models == ["00"] * 8 + ["11"] * 8
    assert by_model(others) == others


def test_variants_and_loras_are_columns_and_tell_models_apart(tmp_path: Path) -> None:
    from pipeline.images.diffusion.source import DiffusersSource
    from pipeline.images.models import of_member

    lora = f"[{{name: ink, model: a/ink, revision: v1, sha256: {'ab' * 32}, scale: 0.5}}]"
    listed = f'model,revision,variant,loras\na/b,v1,,\na/b,v1,fp16,\na/b,v1,,"{lora}"\n'
    found = load(tmp_path, listed)
    options = [member.row_options for member in found.members]
    assert options[0] is None and options[1] == '{"variant":"fp16"}'
    assert json.loads(options[2] or "")["loras"][0]["scale"] == 0.5
    again = ZooSpec.model_validate(found.model_dump(mode="json"))
    assert [member.row_options for member in again.members] == options
    local = DiffusersSource(folder="/models", loras={"ink": "/l/ink.safetensors"})
    plain, _, drawn = (of_member(local, member) for member in found.members)
    assert (plain.folder, plain.loras) == ("/models/a/b", {})
    assert drawn.loras == {"ink": "/l/ink.safetensors"}
    with pytest.raises(AigiError, match=r"zoo\.csv:3: loras\.0\.sha256: needed"):
        load(tmp_path, 'model,loras\na/b,\nc/d,"[{name: ink}]"\n')


def test_a_model_does_not_lead_out_of_the_folder_of_models(tmp_path: Path) -> None:
    from pipeline.images.models import copy_in

    for name in ("../x", "/etc", "a/../../b"):
        with pytest.raises(AigiError, match="no name of a model"):
            copy_in(str(tmp_path), name)
