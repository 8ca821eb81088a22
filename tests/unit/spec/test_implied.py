"""What `hutch run` means: directories, files and options in, a workspace and its file out."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from typing import Any

import pytest

from hutch.errors import HutchError, UsageError
from hutch.spec import loading
from hutch.spec.implied import (
    Choice,
    Declared,
    Request,
    Step,
    Surroundings,
    decide,
    distinct_name,
    file_of,
    is_implied,
    plain_name,
    remember,
)
from tests.unit.facts import LAYOUT

HOME, CONFIG = "/home/alice", "/home/alice/.config/hutch"
OWN = {"/var/lib/hutch": "hutch's own state", "/run/hutch": "hutch's own runtime directory"}
SHOP = "/home/alice/src/shop"


def around(
    *steps: Step | str,
    files: Iterable[Choice] = (),
    taken: Iterable[str] = (),
    removed: Iterable[str] = (),
    **more: Any,
) -> Surroundings:
    """Surroundings; `files` are those that earlier runs have written, and there are their workspaces, but for those
    that are `removed`."""
    written = {each.name: remember(each.name, each.file, each.text or "", HOME) for each in files}
    given = (Step(step) if isinstance(step, str) else step for step in steps)
    return Surroundings(
        home=HOME,
        config=CONFIG,
        steps=tuple(given),
        remembered=written,
        is_taken=frozenset(taken).__contains__,
        is_made=(written.keys() - frozenset(removed)).__contains__,
        own=OWN,
        **more,
    )


def checkout(path: str, **more: Any) -> Step:
    return Step(path, is_checkout=True, **more)


def config_of(choice: Choice) -> Any:
    """The one workspace of a new file, read as any hutch.toml is."""
    config = loading.config_of(choice.file, choice.text or "", layout=LAYOUT)
    assert list(config.workspaces) == [choice.name]
    return config.workspaces[choice.name]


# Which directory.


def test_a_directory_is_shared_at_the_same_path() -> None:
    choice = decide(around(SHOP, "/home/alice/src"), Request())
    assert (choice.name, choice.file, choice.directory) == ("shop", f"{HOME}/.config/hutch/run/shop.toml", SHOP)
    assert choice.before is None
    workspace = config_of(choice)
    assert workspace.type == "container"
    assert [(mount.source, mount.target, mount.readonly) for mount in workspace.mounts] == [(SHOP, SHOP, False)]


def test_in_a_checkout_its_top_is_meant() -> None:
    inner, top = checkout(f"{SHOP}/vendor/lib"), checkout(SHOP)
    assert decide(around(f"{SHOP}/a/b", f"{SHOP}/a", top, "/home/alice/src"), Request()).directory == SHOP
    assert decide(around(inner, f"{SHOP}/vendor", top), Request()).directory == inner.path


def test_a_directory_that_has_a_workspace_is_found_from_below() -> None:
    first = decide(around("/srv/data", "/srv"), Request())
    again = decide(around("/srv/data/in/it", "/srv/data/in", "/srv/data", "/srv", files=[first]), Request())
    assert (again.name, again.text) == ("data", again.before)
    assert decide(around(checkout("/srv/data/repo"), "/srv/data", files=[first]), Request()).name == "repo"


def test_the_file_of_a_removed_workspace_has_no_say_below_its_directory() -> None:
    first = decide(around("/srv/data", "/srv"), Request())
    below = decide(around("/srv/data/in", "/srv/data", "/srv", files=[first], removed=["data"]), Request())
    assert (below.name, below.directory, below.before) == ("in", "/srv/data/in", None)
    again = decide(around("/srv/data", "/srv", files=[first], removed=["data"]), Request())
    assert (again.name, again.text) == ("data", again.before)
    outer = decide(around("/srv"), Request())
    own = decide(around("/srv/data", "/srv", files=[first, outer], removed=["data"]), Request())
    assert own.name == "data"


def test_a_worktree_brings_its_common_directory() -> None:
    common = ("/home/alice/src/shop/.git", "/home/alice/src/shop/.git")
    workspace = config_of(decide(around(checkout("/home/alice/src/shop-fix", common=common)), Request()))
    assert [mount.source for mount in workspace.mounts] == ["/home/alice/src/shop-fix", common[0]]
    choice = decide(around(checkout(SHOP, note="git does not work inside")), Request())
    assert choice.notes == ("git does not work inside",)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (HOME, "is your home directory"),
        ("/home", "holds your home directory /home/alice"),
        ("/", "holds your home directory /home/alice"),
        (f"{HOME}/.config", "holds /home/alice/.config/hutch/run"),
        (f"{HOME}/.config/hutch/run", "holds /home/alice/.config/hutch/run"),
        ("/var/lib/hutch/images", "is in hutch's own state"),
        ("/var/lib/hutch", "is hutch's own state"),
        ("/var/lib", "holds hutch's own state"),
        ("/run/user/1000/x", "is a directory of the guest's own system"),
        ("/etc", "is a directory of the guest's own system"),
        ("/srv/a:b", "holds :"),
        ("/srv/a\nb", "holds a line break"),
        ("/srv/\udcff", "holds a line break or another character that cannot be printed"),
    ],
)
def test_what_is_more_than_a_project_is_refused(path: str, why: str) -> None:
    with pytest.raises(UsageError) as error:
        decide(around(path), Request())
    assert why in error.value.brief
    assert error.value.resolution


# Which name.


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("/srv/My_Project.js", "my-project-js"),
        ("/srv/Müller & Söhne", "muller-sohne"),
        ("/srv/日本", "workspace"),
        ("/srv/-x-", "x"),
        (f"/srv/{'long-' * 10}", "long-long-long-long-long-long-lo"),
    ],
)
def test_a_name_is_made_fit(directory: str, name: str) -> None:
    assert plain_name(directory) == name
    assert decide(around(directory), Request()).name == name
    assert len(distinct_name(directory)) <= 32


def test_another_directory_of_that_name_gets_six_digits() -> None:
    first = decide(around("/srv/a/shop"), Request())
    second = decide(around("/srv/b/shop", files=[first]), Request())
    assert (first.name, second.name) == ("shop", distinct_name("/srv/b/shop"))
    assert second.name.startswith("shop-") and len(second.name) == len("shop-") + 6
    for here in ("/srv/a/shop", "/srv/b/shop"):
        again = decide(around(here, files=[first, second]), Request())
        assert again.directory == here
        assert again.text == again.before


def test_a_workspace_of_another_file_keeps_its_name() -> None:
    assert decide(around(SHOP, taken=["shop"]), Request()).name == distinct_name(SHOP)
    with pytest.raises(UsageError, match="other workspaces are called shop and shop-"):
        decide(around(SHOP, taken=["shop", distinct_name(SHOP)]), Request())
    with pytest.raises(UsageError, match="a workspace web is there already"):
        decide(around(SHOP, taken=["web"]), Request(name="web"))


def test_a_directory_may_have_several() -> None:
    one = decide(around(SHOP), Request(name="one"))
    assert decide(around(SHOP, files=[one]), Request()).name == "one"
    two = decide(around(SHOP, files=[one]), Request(name="two"))
    with pytest.raises(UsageError) as error:
        decide(around(SHOP, files=[one, two]), Request())
    assert error.value.brief == f"{SHOP} has several workspaces: one, two"
    shop = decide(around(SHOP), Request(name="shop"))
    assert decide(around(SHOP, files=[one, two, shop]), Request()).name == "shop"
    assert decide(around(SHOP, files=[one, two]), Request(name="two")).name == "two"
    with pytest.raises(UsageError, match=f"one is the workspace of {SHOP}"):
        decide(around("/srv/other", files=[one]), Request(name="one"))
    with pytest.raises(UsageError, match="'-x' is not a name"):
        decide(around(SHOP), Request(name="-x"))


# Its file.


def test_what_is_edited_stays() -> None:
    first = decide(around(SHOP), Request())
    assert first.text is not None
    edited = Choice(
        "shop",
        first.file,
        text=first.text.replace('target = "/home/alice/src/shop"', 'target = "/src"') + "vcpus = 2\n",
    )
    again = decide(around(SHOP, files=[edited]), Request())
    assert (again.name, again.text, again.before) == ("shop", edited.text, edited.text)
    relative = Choice("shop", first.file, text=first.text.replace(f'source = "{SHOP}"', 'source = "~/src/shop"'))
    assert decide(around(SHOP, files=[relative]), Request()).name == "shop"


def test_an_option_changes_its_line_alone() -> None:
    first = decide(around(SHOP), Request())
    assert first.text is not None
    machine = decide(around(SHOP, files=[first]), Request(is_machine=True))
    assert machine.text == first.text.replace('type = "container"', 'type = "vm"')
    assert decide(around(SHOP, files=[machine]), Request(is_machine=True)).text == machine.text
    assert decide(around(SHOP, files=[machine]), Request()).text == machine.text
    assert config_of(decide(around(SHOP), Request(is_machine=True))).type == "vm"


def test_kits_are_added_to_those_that_are_used() -> None:
    first = decide(around(SHOP), Request(kits=("node", "claude", "node")))
    assert config_of(first).use == ("node", "claude")
    assert decide(around(SHOP, files=[first]), Request(kits=("claude",))).text == first.text
    more = decide(around(SHOP, files=[first]), Request(kits=("python",)))
    assert config_of(more).use == ("node", "claude", "python")
    assert decide(around(SHOP, files=[more]), Request()).text == more.text
    plain = decide(around(SHOP), Request())
    both = decide(around(SHOP, files=[plain]), Request(is_machine=True, kits=("node",)))
    assert (config_of(both).use, config_of(both).type) == (("node",), "vm")
    usual = decide(around(SHOP, template='use = ["python"]'), Request(kits=("node",)))
    assert config_of(usual).use == ("python", "node")
    with pytest.raises(UsageError, match="'No' is not a name for a kit"):
        decide(around(SHOP), Request(kits=("No",)))
    with pytest.raises(UsageError, match=r"the kits of web are those that .* says"):
        decide(around(checkout(SHOP, declared=declared("web"))), Request(kits=("node",)))


def test_a_broken_file_is_reported_and_not_replaced_by_a_second_workspace() -> None:
    broken = Choice("shop", file_of(CONFIG, "shop"), text="[workspaces.shop\n")
    for request in (Request(), Request(is_machine=True), Request(name="shop")):
        choice = decide(around(SHOP, files=[broken]), request)
        assert (choice.name, choice.text, choice.before) == ("shop", broken.text, broken.text)


def test_a_file_that_shares_nothing_is_nobodys() -> None:
    empty = Choice("shop", file_of(CONFIG, "shop"), text='[workspaces.shop]\ntype = "vm"\n')
    assert decide(around(SHOP, files=[empty]), Request()).name == distinct_name(SHOP)
    with pytest.raises(UsageError, match=r"shop is declared by /home/alice/\.config"):
        decide(around(SHOP, files=[empty]), Request(name="shop"))


def test_a_template_gives_further_keys() -> None:
    template = (
        "packages = ['git']\nmemory = \"2GiB\"\nenv = { A = 'b' }\nmounts = [{ source = '/srv/cache', target = '/c' }]"
    )
    choice = decide(around(SHOP, template=template, owner=1234), Request())
    workspace = config_of(choice)
    assert (workspace.packages, workspace.memory, workspace.env) == (("git",), 2 << 30, (("A", "b"),))
    assert ([mount.target for mount in workspace.mounts], workspace.owner) == ([SHOP, "/c"], 1234)
    assert config_of(decide(around(SHOP, template='type = "vm"'), Request())).type == "vm"
    for wrong, why in (("[idle]\nx = 1", "has tables"), ("a =", "is not valid TOML"), ("mounts = 1", "must be a list")):
        with pytest.raises(HutchError, match=why):
            decide(around(SHOP, template=wrong), Request())


def test_a_path_with_awkward_characters_is_written_as_it_is() -> None:
    path = "/srv/a b/[x] = ü # $HOME"
    choice = decide(around(path), Request())
    assert tomllib.loads(choice.text or "")["workspaces"][choice.name]["mounts"] == [{"source": path, "target": path}]


def test_implied_files_are_known_by_their_place() -> None:
    assert is_implied(file_of(CONFIG, "shop"))
    for other in ("/srv/hutch.toml", "/home/alice/.config/hutch/run/Shop.toml", "/home/alice/.config/hutch/run.toml"):
        assert not is_implied(other)


# A hutch.toml of somebody's own.


def declared(*names: str, kind: str = "container", stranger: int | None = None) -> Declared:
    return Declared(f"{SHOP}/hutch.toml", dict.fromkeys(names, kind), stranger)


def test_a_hutch_toml_comes_first() -> None:
    top = checkout(SHOP, declared=declared("web"))
    choice = decide(around(f"{SHOP}/a", top), Request())
    assert choice == Choice("web", f"{SHOP}/hutch.toml")
    assert decide(around(f"{SHOP}/a", top), Request(ignores_file=True)).name == "shop"
    above = Step("/home/alice/src", declared=Declared("/home/alice/src/hutch.toml", {"all": "vm"}))
    assert decide(around(checkout(SHOP), above), Request()).name == "shop"
    nearer = Step(f"{SHOP}/a", declared=Declared(f"{SHOP}/a/hutch.toml", {"part": "vm"}))
    assert decide(around(nearer, top), Request()).name == "part"
    assert decide(around(nearer, top, named=Declared("/srv/hutch.toml", {"x": "vm"})), Request()).name == "x"
    assert decide(around(Step(HOME, declared=declared("web"))), Request()).name == "web"


def test_several_are_chosen_by_name() -> None:
    here = around(checkout(SHOP, declared=declared("web", "lab")))
    with pytest.raises(UsageError) as error:
        decide(here, Request())
    assert error.value.brief == f"{SHOP}/hutch.toml declares several workspaces: web, lab"
    assert decide(here, Request(name="lab")).name == "lab"
    with pytest.raises(UsageError, match="declares no workspace db"):
        decide(here, Request(name="db"))


def test_its_type_is_its_own() -> None:
    with pytest.raises(UsageError, match=r"web is a container by .*, which --vm does not change"):
        decide(around(checkout(SHOP, declared=declared("web"))), Request(is_machine=True))
    assert decide(around(checkout(SHOP, declared=declared("web", kind="vm"))), Request(is_machine=True)).name == "web"


def test_a_strangers_file_is_not_believed() -> None:
    with pytest.raises(UsageError, match="belongs to uid 4242, who is neither root nor you"):
        decide(around(Step("/srv/x", declared=declared("web", stranger=4242))), Request())


def test_a_file_in_which_nothing_is_seen_has_to_be_read() -> None:
    assert decide(around(checkout(SHOP, declared=declared())), Request()).name == ""
    assert decide(around(checkout(SHOP, declared=declared())), Request(name="web")).name == "web"


# Clones.


def test_a_clone_shares_nothing_of_its_checkout() -> None:
    common = ("/home/alice/src/shop/.git", "/home/alice/src/shop/.git")
    choice = decide(around(checkout("/srv/a-ü", common=common)), Request(is_clone=True))
    assert (choice.name, choice.directory, choice.is_clone) == ("a-u", "/srv/a-ü", True)
    assert config_of(choice).mounts == ()
    again = decide(around(checkout("/srv/a-ü"), files=[choice]), Request())
    assert (again.name, again.is_clone, again.text) == ("a-u", True, again.before)


def test_clones_of_one_checkout_lie_beside_each_other_and_the_shared_one() -> None:
    shared = decide(around(checkout(SHOP)), Request())
    first = decide(around(checkout(SHOP), files=[shared]), Request(is_clone=True))
    assert (shared.name, first.name) == ("shop", distinct_name(SHOP))
    second = decide(around(checkout(SHOP), files=[shared, first]), Request("second", is_clone=True))
    every = around(checkout(SHOP), files=[shared, first, second])
    assert decide(every, Request()).name == "shop"
    assert decide(every, Request("second")).is_clone
    with pytest.raises(UsageError, match="several workspaces"):
        decide(around(checkout(SHOP), files=[first, second]), Request())
    with pytest.raises(UsageError, match="not a clone of it"):
        decide(every, Request("shop", is_clone=True))


def test_a_clone_is_of_a_checkout() -> None:
    with pytest.raises(UsageError, match="is in no checkout"):
        decide(around(SHOP), Request(is_clone=True))


@pytest.mark.parametrize("line", ["", "# The workspace of a clone of [1], made", "# The workspace of a clone of"])
def test_a_file_that_does_not_say_of_what_it_has_a_clone(line: str) -> None:
    assert not remember("a", file_of(HOME, "a"), f"{line}\n[workspaces.a]\ntype = 'vm'\n", HOME).is_clone
