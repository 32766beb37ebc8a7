"""What `init` writes: valid as it stands, in the right places, over nothing that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmreconcile.core.resolve import resolve
from vmreconcile.core.validate import validate
from vmreconcile.effects.examples import ExampleError, example_texts, write_examples
from vmreconcile.effects.inventory import read_inventory
from vmreconcile.effects.load import load_models
from vmreconcile.effects.schemas import read_schemas
from vmreconcile.vllm.catalogue import catalogue_for


def test_the_examples_are_valid_and_want_servers(tmp_path: Path) -> None:
    """`init` and then `validate` finds nothing to say."""
    written, kept = write_examples(tmp_path / "new")
    assert sorted(str(path.relative_to(tmp_path / "new")) for path in written) == sorted(example_texts())
    assert kept == ()
    inventory = read_inventory([str(tmp_path / "new" / "inventory")], environ={})
    documents = load_models(tmp_path / "new" / "models.d")
    assert validate(documents, inventory, schemas=read_schemas(), catalogue=catalogue_for(None)) == ()
    fleet = resolve(documents, inventory, catalogue=catalogue_for(None))
    assert [str(server.id) for server in fleet.servers] == ["qwen2.5-7b@gpu1", "qwen2.5-7b@gpu2"]


def test_uncommented_choices_are_valid_too(tmp_path: Path) -> None:
    """The choices that the example shows in comments can be taken out of them."""
    write_examples(tmp_path)
    path = tmp_path / "models.d" / "qwen2.5-7b.yaml"
    head, _, rest = path.read_text().partition("\nname:")
    opened = "\n".join(line.removeprefix("# ") for line in ("name:" + rest).splitlines())
    path.write_text(head + "\n" + opened)
    inventory = read_inventory([str(tmp_path / "inventory")], environ={})
    assert "overrides:" in opened
    assert validate(load_models(path), inventory, schemas=read_schemas(), catalogue=catalogue_for(None)) == ()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A second run writes nothing, and a folder with an inventory or models of its own gets no example there."""
    write_examples(tmp_path)
    (tmp_path / "models.d" / "qwen2.5-7b.yaml").write_text("mine")
    assert write_examples(tmp_path)[0] == ()
    assert (tmp_path / "models.d" / "qwen2.5-7b.yaml").read_text() == "mine"
    (tmp_path / "other" / "models.d").mkdir(parents=True)
    (tmp_path / "other" / "models.d" / "own.yaml").write_text("mine")
    _, kept = write_examples(tmp_path / "other")
    assert [path.name for path in kept] == ["qwen2.5-7b.yaml"]


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    """One line that names it."""
    (tmp_path / "inventory").write_text("gpu1\n")
    with pytest.raises(ExampleError, match="inventory"):
        write_examples(tmp_path)
