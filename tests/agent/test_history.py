"""What a server ran before, kept by the real agent: a private file, no secret in it, damage borne."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from tests.agent.conftest import SLUG, World
from tests.agent.driver import Refused

pytestmark = pytest.mark.slow  # starts many processes, or waits

SECRET = 'a "quoted" s3cret'  # made up
HUB = "hf_SentinelTokenThatMustShowNowhere0000"  # made up


def keep(*words: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON values
    """The step that keeps a revision with these arguments."""
    launch = {"argv": ["/v", "serve", "m", *words], "env": []}
    return {"step": "keep-revision", "slug": SLUG, "revision": {"good": True, "launch": launch, **fields}}


def path_of(world: World) -> Path:
    """The file."""
    return Path(world.path(f"state/history/{SLUG}.json"))


def row_of(world: World) -> dict[str, Any]:
    """What the agent says of the server."""
    found: dict[str, Any] = world.agent.ask("revisions", slugs=[SLUG])[0]["servers"][0]
    return found


def test_only_its_owner_can_read_it(world: World) -> None:
    """Mode 0600 in a folder of ours; the answer has its number."""
    (done,) = world.agent.steps(keep())
    assert (done["changed"], done["number"]) == (True, 1)
    assert stat.S_IMODE(path_of(world).stat().st_mode) == 0o600
    assert stat.S_IMODE(path_of(world).parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["HF_TOKEN", "MY_API_KEY"])
def test_a_secret_of_the_server_is_refused(world: World, name: str) -> None:
    """Wherever it stands, and however JSON writes it; a plain variable may stand there."""
    world.agent.steps(world.write_env(**{name: SECRET, "PLAIN": "a plain long value"}))
    for step in (keep("--x", SECRET), keep("--x", f"before{SECRET}after"), keep(note=SECRET)):
        with pytest.raises(Refused, match=name) as caught:
            world.agent.steps(step)
        assert caught.value.kind == "bad-request"
        assert SECRET not in str(caught.value)
    assert not path_of(world).exists()
    world.agent.steps(keep("--x", "a plain long value"))


def test_a_token_beside_the_env_file_is_refused(world: World) -> None:
    """As systemd hands it over."""
    world.agent.steps({**world.write_env(HF_TOKEN=HUB), "credential": "only"})
    with pytest.raises(Refused, match="HF_TOKEN"):
        world.agent.steps(keep("--x", HUB))


@pytest.mark.parametrize("text", ["", "[]", '{"revisions": [1]}', '{"revisions": [{"number": "1"}]}', "[" * 100_000])
def test_a_damaged_history_is_told_and_begun_anew(world: World, text: str) -> None:
    """It names the file; the next good revision is kept all the same."""
    world.agent.steps(keep())
    path_of(world).write_text(text)
    assert "damaged" in row_of(world)["problem"]
    world.agent.steps(keep("--y"))
    assert [each["number"] for each in row_of(world)["revisions"]] == [1]


def test_a_history_that_others_may_write_is_not_believed(world: World) -> None:
    """What is in it would be started."""
    world.agent.steps(keep())
    path_of(world).chmod(0o666)
    row = row_of(world)
    assert (row["revisions"], "written by others" in row["problem"]) == ([], True)


def test_a_link_in_its_place_is_not_followed(world: World, tmp_path: Path) -> None:
    """Neither read nor written through."""
    world.agent.steps(keep())
    path_of(world).unlink()
    path_of(world).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text('{"revisions": []}')
    assert row_of(world)["problem"]
    with pytest.raises(Refused):
        world.agent.steps(keep())
    assert (tmp_path / "elsewhere").read_text() == '{"revisions": []}'


@pytest.mark.parametrize("slugs", [["../x"], "m", [1]])
def test_only_names_of_servers_are_asked_for(world: World, slugs: object) -> None:
    """No path comes from the wire."""
    with pytest.raises(Refused) as caught:
        world.agent.ask("revisions", slugs=slugs)
    assert caught.value.kind == "bad-request"


def test_nothing_is_left_after_the_last_server(world: World) -> None:
    """The folder goes with it."""
    world.agent.steps(world.write_env(A="1"), keep())
    world.agent.steps({"step": "remove-server", "slug": SLUG})
    assert not path_of(world).parent.exists()
