"""The NixOS module: what it makes of its options, as far as Nix can tell without a package set."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.host.identity import shells
from hutch.spec import loading, lookup, names
from hutch.spec.model import WORKSPACE_KEYS, Incus, Kit, Mount, Network, WorkspaceSpec
from hutch.spec.names import DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, Layout
from hutch.spec.schema import MODELS
from tests.host import nix_eval
from tests.host.nix_eval import CHECKOUT, FILES, Nix, told

pytestmark = pytest.mark.skipif(not nix_eval.is_here(), reason=f"{nix_eval.PROGRAM} is not installed")

CASES = CHECKOUT / "tests/host/nix"
PAGE = CHECKOUT / "docs/nixos.md"
LAYOUT = Layout(Path(DEFAULT_STATE_DIR), Path(DEFAULT_RUN_DIR))
WORKSPACE, MOUNT = "workspaces.<name>.", "workspaces.<name>.extraMounts.<name>."


@pytest.fixture(scope="module")
def nix() -> Iterator[Nix]:
    with nix_eval.open_nix() as nix:
        yield nix


@pytest.fixture(scope="module")
def everything(nix: Nix) -> dict[str, Any]:
    return nix.module("./tests/host/nix/everything.nix")


def options_below(module: dict[str, Any], prefix: str) -> dict[str, dict[str, Any]]:
    """The options right below `prefix`, by name."""
    found = {
        option["name"].removeprefix(prefix): option for option in module["options"] if option["name"].startswith(prefix)
    }
    return {name: option for name, option in found.items() if "." not in name}


def shown_in_docs(language: str) -> str:
    """The page's first block that begins with a workspace or with the module's own name."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return next(str(block) for block in blocks if "workspaces.web" in block)


def render_options(module: dict[str, Any]) -> str:
    """A table of all options, for people. Those of `defaults` are those of a workspace."""
    lines = ["| option | takes | default | |", "|---|---|---|---|"]
    for option in module["options"]:
        name, default = option["name"], option["default"]
        if name.startswith("defaults."):
            continue
        shown = "**required**" if default is None else f"`{default}`"
        if option["nullable"]:
            shown = "" if default == "null" else f"({shown})"
        meaning = " ".join(option["description"].split())
        lines.append(f"| `{name}` | {option['type']} | {shown} | {meaning} |")
    return "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_nix(nix: Nix, path: Path) -> None:
    result = nix.run("--parse", str(path))
    assert result.returncode == 0, result.stderr


# From options to hutch.toml.


def test_every_key_of_hutch_toml(everything: dict[str, Any], tmp_path: Path) -> None:
    """What the module makes of all its options is the file beside them, and hutch takes that."""
    text = (CASES / "everything.toml").read_text()
    golden = tomllib.loads(text)
    assert told(everything) == golden
    assert set(golden["workspaces"]["all"]) == set(WORKSPACE_KEYS)
    assert set(golden["network"]) == set(Network.__dataclass_fields__)
    assert set(golden["engines"]["incus"]) == set(Incus.__dataclass_fields__)
    assert set(golden["kits"]["tools"]) == set(Kit.__dataclass_fields__)
    assert {key for mount in golden["workspaces"]["all"]["mounts"] for key in mount} == set(Mount.__dataclass_fields__)

    file = tmp_path / "hutch.toml"
    file.write_text(text.replace("/srv/", f"{tmp_path}/"))
    file.chmod(0o644)
    config = loading.load(str(file), layout=LAYOUT)  # what hutch has no backend for yet is in there too
    assert list(config.workspaces) == ["all", "ci", "web"]
    assert config.workspaces["ci"].engine == "incus"
    assert dict(config.workspaces["web"].env) == {"LANG": "C.UTF-8", "EDITOR": "vim"}


def test_the_example(nix: Nix, tmp_path: Path) -> None:
    """What nobody said is not written: so [defaults] has a say, and what hutch does by itself stays hutch's to decide.
    The page for users shows both."""
    example, made = shown_in_docs("nix"), shown_in_docs("toml")
    assert example == re.sub("^#.*\n", "", (CHECKOUT / "examples/nixos.nix").read_text(), flags=re.MULTILINE)
    assert told(nix.module("./examples/nixos.nix")) == tomllib.loads(made)
    shop, file = tmp_path / "shop", tmp_path / "hutch.toml"
    shop.mkdir()
    file.write_text(made.replace('"alice"', "1000").replace("/home/alice/src/shop", str(shop)))
    file.chmod(0o644)
    assert list(hutch.load(file).workspaces) == ["agent", "web"]


@pytest.mark.parametrize(
    ("prefix", "model"),
    [
        (WORKSPACE, WorkspaceSpec),
        ("defaults.", WorkspaceSpec),
        ("network.", Network),
        ("engines.incus.", Incus),
        ("kits.<name>.", Kit),
        (MOUNT, Mount),
    ],
)
def test_options_have_hutchs_defaults(nix: Nix, everything: dict[str, Any], prefix: str, model: type) -> None:
    options = options_below(everything, prefix)
    table = next(name for name, known in MODELS.items() if known is model)
    option_of = nix.evaluate(
        f'let keys = import ./nix/keys.nix; in builtins.mapAttrs (key: _: keys.optionOf "{table}" key) '
        f'(keys.keysOf "{table}")'
    )
    shown = nix.evaluate(f"[ {' '.join('({})'.format(option['default'] or 'null') for option in options.values())} ]")
    defaults = dict(zip(options, shown, strict=True))
    fields = {field.name: field for field in dataclasses.fields(model)}
    assert set(option_of) == set(fields)
    for key, field in fields.items():
        hutchs = None if field.default is dataclasses.MISSING else field.default
        assert defaults[option_of[key]] == (None if hutchs in ("", ()) else json.loads(json.dumps(hutchs))), key
    assert set(options) - set(option_of.values()) <= {"config", "hostKey", "shift"}, "no key of hutch's"


def test_names_of_the_module_that_this_one_follows(everything: dict[str, Any]) -> None:
    assert {"type", "config", "ip", "hostKey", "autoStart", "passHostGpu", "cid", "extraMounts"} <= set(
        options_below(everything, WORKSPACE)
    )
    assert {"hostPath", "containerPath", "createHostPath", "shift"} <= set(options_below(everything, MOUNT))


def test_the_page_for_users_has_all_options(everything: dict[str, Any]) -> None:
    text = PAGE.read_text()
    before, begin, rest = text.partition("HUTCH_UPDATE_GOLDEN=1 -->\n")
    _, end, after = rest.partition("<!-- end of options -->\n")
    wanted = before + begin + render_options(everything) + end + after
    if os.environ.get("HUTCH_UPDATE_GOLDEN") == "1":
        PAGE.write_text(wanted)
    assert PAGE.read_text() == wanted


def test_what_a_name_leads_to(nix: Nix) -> None:
    """As hutch works it out, so that a clash is seen when a system is built."""
    known = ("web", "lab", "my-project", "a" * 32)
    found = nix.evaluate(
        "let it = (import ./nix/workspaces.nix).identifiers; in map (name: [ (it.mac { } name) (it.cid { } name) ]) "
        f"[ {' '.join(json.dumps(name) for name in known)} ]"
    )
    assert found == [[names.mac(name), names.cid(name)] for name in known]


# What cannot be built.

CONTAINER = 'type = "container";'


@pytest.mark.parametrize(
    ("workspaces", "told"),
    [
        (f"web = {{ {CONTAINER} }};", []),
        ("web = { };", ["workspaces.web.type is not set"]),
        (f"Web_1 = {{ {CONTAINER} }};", ["workspaces.Web_1: this cannot name a workspace"]),
        (f"{'a' * 33} = {{ {CONTAINER} }};", [f"workspaces.{'a' * 33}: this cannot name a workspace"]),
        (
            f'a = {{ {CONTAINER} ip = "192.168.83.9"; }}; b = {{ {CONTAINER} ip = "192.168.83.9"; }};',
            ["the workspaces a and b have the same ip, 192.168.83.9"],
        ),
        (
            f'web = {{ {CONTAINER} }}; b = {{ {CONTAINER} mac = "02:4B:5E:57:F6:EB"; }};',
            ["the workspaces b and web have the same mac, 02:4b:5e:57:f6:eb"],
        ),
        (
            f"web = {{ {CONTAINER} }}; b = {{ {CONTAINER} cid = 4939451; }};",
            ["the workspaces b and web have the same cid, 4939451"],
        ),
        (f"web = {{ {CONTAINER} config = ./nixos.nix; }};", ["workspaces.web.config: hutch runs no NixOS guests"]),
        (f'web = {{ {CONTAINER} hostKey = "ssh-ed25519 A"; }};', ["workspaces.web.hostKey has no effect"]),
        (
            f'web = {{ {CONTAINER} extraMounts.x = {{ hostPath = "/x"; containerPath = "/x"; shift = false; }}; }};',
            ["workspaces.web.extraMounts.x.shift = false: hutch always maps"],
        ),
    ],
)
def test_what_is_refused_when_a_system_is_built(nix: Nix, workspaces: str, told: list[str]) -> None:
    found = nix.evaluate(
        f"""
        let
          lib = import ./tests/host/nix/lib.nix;
          options = import ./nix/options.nix {{ inherit lib; }};
          cfg = lib.fill options {{ workspaces = {{ {workspaces} }}; }} // {{ settings = {{ }}; }};
          check = import ./nix/workspaces.nix;
        in
        map (item: item.message) (builtins.filter (item: !item.assertion) (check.assertions cfg)) ++ check.warnings cfg
        """
    )
    assert len(found) == len(told)
    assert all(part in text for part, text in zip(told, found, strict=True)), found


# How it fits into NixOS.


def test_places_that_hutch_has_its_own_words_for(everything: dict[str, Any]) -> None:
    config = everything["config"]
    assert set(config["environment"]["etc"]) == {str(lookup.SYSTEM_FILE.relative_to("/etc")), "hosts"}
    assert set(config["networking"]["firewall"]["interfaces"]) == {LAYOUT.uplink_host}
    assert LAYOUT.ssh_config.parent == Path("/etc/ssh/ssh_config.d")
    assert config["programs"]["ssh"]["extraConfig"] == f"Include {LAYOUT.ssh_config.parent}/*.conf"
    assert config["systemd"]["services"]["hutch"]["unitConfig"]["RequiresMountsFor"] == [str(LAYOUT.state)]


def test_aliases_are_those_of_hutch(everything: dict[str, Any]) -> None:
    expected: dict[str, str] = {}
    for name in ("all", "ci", "web"):
        expected |= shells.commands(LAYOUT, name)
    assert everything["config"]["environment"]["shellAliases"] == expected


def test_a_switch_reloads_the_unit(everything: dict[str, Any]) -> None:
    """Stopping it is `hutch down`; a reload is what a start does."""
    unit = everything["config"]["systemd"]["services"]["hutch"]
    assert unit["reloadIfChanged"] is True
    assert unit["reload"] == unit["script"]
    assert unit["preStop"].endswith(" down")
    assert "network-online.target" in unit["after"]
    assert "--prune" in unit["script"]


# With nixpkgs.


@pytest.fixture(scope="module")
def nixpkgs(nix: Nix) -> Nix:
    if nix.run("--find-file", "nixpkgs/lib").returncode:
        pytest.skip("nixpkgs is not on NIX_PATH")
    return nix


def test_the_real_module_system_says_the_same(nixpkgs: Nix, everything: dict[str, Any]) -> None:
    found = nixpkgs.evaluate(with_lib("import ./tests/host/nix/everything.nix"))
    assert found == told(everything)


@pytest.mark.parametrize(
    ("definition", "told"),
    [
        ('workspaces.web.type = "chroot"', "workspaces.web.type"),
        ('workspaces.web.ip = "one"', "workspaces.web.ip"),
        ("workspaces.web.cid = 2", "workspaces.web.cid"),
        ('workspaces.web.memory = "4"', "workspaces.web.memory"),
        ("workspaces.web.authorized_keys = [ ]", "authorized_keys' does not exist"),
        ('workspaces.web.extraMounts.x.hostPath = "/x"', "extraMounts.x.containerPath"),
        ('network.bridge = "a name"', "network.bridge"),
    ],
)
def test_types_refuse_what_hutch_would(nixpkgs: Nix, definition: str, told: str) -> None:
    assert told in nixpkgs.refuse(with_lib(f"{{ sandboxed-workspace.{definition}; }}"))


def with_lib(configuration: str) -> str:
    """What hutch is told by a configuration, by way of nixpkgs' module system."""
    return f"""
        let
          lib = import <nixpkgs/lib>;
          system = lib.evalModules {{
            modules = [
              {{ options.sandboxed-workspace = import ./nix/options.nix {{ inherit lib; }} // {{
                   enable = lib.mkEnableOption "";
                   prune = lib.mkEnableOption "";
                   settings = lib.mkOption {{ type = lib.types.attrs; default = {{ }}; }};
                 }}; }}
              ({configuration})
            ];
          }};
        in (import ./nix/workspaces.nix).settings system.config.sandboxed-workspace
    """


def test_a_whole_system(nixpkgs: Nix) -> None:
    """Every option that the module sets is there in NixOS, and the example can be built as far as evaluation tells."""
    if nixpkgs.run("--find-file", "nixpkgs/nixos").returncode:
        pytest.skip("what is on NIX_PATH as nixpkgs has no nixos/")
    found = nixpkgs.evaluate(
        """
        let
          system = import <nixpkgs/nixos/lib/eval-config.nix> {
            system = "x86_64-linux";
            modules = [
              ./nix/module.nix
              ./examples/nixos.nix
              {
                fileSystems."/".device = "/dev/vda";
                boot.loader.grub.enable = false;
                users.users.alice.isNormalUser = true;
                system.stateVersion = "25.11";
              }
            ];
          };
          inherit (system) config;
        in {
          refused = map (item: item.message) (builtins.filter (item: !item.assertion) config.assertions);
          unit = config.systemd.units."hutch.service".text;
          hosts = config.environment.etc.hosts.mode;
          ssh = config.environment.etc."ssh/ssh_config".text;
          alias = config.environment.shellAliases.workspace_web_start;
          activation = config.system.activationScripts.hutch.text;
          package = config.sandboxed-workspace.package.drvPath;
          whole = config.system.build.toplevel.drvPath;
        }
        """
    )
    assert found["refused"] == []
    assert "ExecReload=" in found["unit"]
    assert "X-ReloadIfChanged=true" in found["unit"]
    assert "Type=oneshot" in found["unit"]
    assert found["hosts"] == "0644"
    assert found["ssh"].index("ssh_config.d") < found["ssh"].index("Host *")
    assert found["alias"] == "hutch start web"
    assert "hutch.service" in found["activation"]
    assert "-hutch-" in found["package"]
    assert "nixos-system" in found["whole"]
