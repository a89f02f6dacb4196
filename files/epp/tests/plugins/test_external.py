# SPDX-License-Identifier: GPL-3.0-or-later
"""Plugins of one's own: the worked example, where plugins come from, and what mistakes look like."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from epp import config
from epp.cli import main
from epp.datalayer import Datastore
from epp.model import BodyError, ParsedBody
from epp.observe import PoolRecorder, Recorder
from epp.plugins import builtin, external, registry
from epp.plugins.external import PluginLoadError
from epp.process import StartError
from epp.requests import Parsers
from epp.scheduling import Scheduler
from epp.serve import _parsers

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_scorer.py"
PARSER = EXAMPLE.with_name("custom_parser.py")
SCORER = """\
from epp.scheduling import Scorer


class Mine(Scorer):
    TYPE = "mine"

    def score(self, request, endpoints):
        return [1.0] * len(endpoints)
"""
# As the documentation of the original charts has it.
CONFIG = """\
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: custom-scorer
  parameters:
    custom-threshold: 64
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: custom-scorer
"""


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    before = set(sys.modules)
    yield
    external._registered.clear()
    external._sources.clear()
    for name in set(sys.modules) - before:
        if name.startswith("epp_plugin_"):
            del sys.modules[name]


class TestTheExample:
    def test_it_is_short(self) -> None:
        lines = EXAMPLE.read_text().splitlines()
        assert sum(1 for line in lines if line.strip() and not line.lstrip().startswith(("#", '"""'))) <= 16

    def test_it_scores(self, kit: Any) -> None:
        external.load_path(str(EXAMPLE))
        pods = [kit.endpoint(number, metrics=kit.read(waiting=queue)) for number, queue in enumerate((64, 63))]
        rig = kit.rig(CONFIG.partition("EndpointPickerConfig\n")[2], pods)
        for _ in range(20):
            assert rig.send(kit.ask()).endpoints == (pods[1],)

    def test_the_readme_shows_it(self) -> None:
        readme = EXAMPLE.parents[1].joinpath("README.md").read_text()
        code = EXAMPLE.read_text().partition("@dataclass")[2]
        assert "@dataclass" + code in readme

    def test_its_parameters_are_checked(self) -> None:
        external.load_path(str(EXAMPLE))
        assert config.load(CONFIG, "c.yaml").plugin("custom-scorer").parameters.custom_threshold == 64
        with pytest.raises(config.ConfigError, match=r"c.yaml:6: .*must be 1 or more"):
            config.load(CONFIG.replace("64", "0"), "c.yaml")
        with pytest.raises(config.ConfigError, match="did you mean 'custom-threshold'"):
            config.load(CONFIG.replace("custom-threshold", "custom-thresh"), "c.yaml")


class TestTheExampleOfAParser:
    """Loaded from its file, and used by the process's own wiring."""

    CONFIG = CONFIG.replace("custom-scorer", "queue-scorer").replace("  parameters:\n    custom-threshold: 64\n", "")
    HANDLER = "requestHandler:\n  parsers: [{pluginRef: custom-parser}, {pluginRef: openai-parser}]\n"

    def parsers(self, own: str = "- type: custom-parser\n", handler: str = HANDLER) -> Parsers:
        cfg = config.load(
            self.CONFIG.replace("plugins:\n", f"plugins:\n{own}- type: openai-parser\n", 1) + handler, "c.yaml"
        )
        return _parsers(cfg, Scheduler.from_config(cfg, registry(), Datastore(), PoolRecorder(Recorder(), "p")))

    def test_it_parses(self) -> None:
        external.load_path(str(PARSER))
        parsers = self.parsers()
        body = b'{"model": "llama"}\nfirst\nsecond\n'
        assert parsers.parse("/v1/translate", "application/jsonl", body) == ParsedBody("llama", b"first\nsecond\n")
        assert parsers.parse("/v1/completions", "", b'{"model": "m"}').model == "m"
        with pytest.raises(BodyError, match="the first line has no model"):
            parsers.parse("/v1/translate", "", b"[]\nfirst\n")

    def test_the_readme_shows_it(self) -> None:
        readme = PARSER.parents[1].joinpath("README.md").read_text()
        assert "class CustomParser" + PARSER.read_text().partition("class CustomParser")[2] in readme

    def test_by_its_name(self) -> None:
        external.load_path(str(PARSER))
        handler = self.HANDLER.replace("custom-parser", "translations")
        parsers = self.parsers("- {type: custom-parser, name: translations}\n", handler)
        with pytest.raises(BodyError, match="configured are translations, openai-parser"):
            parsers.parse("/what", "", b"{}")

    def test_it_is_no_parser(self) -> None:
        external.load_path(str(EXAMPLE))
        handler = self.HANDLER.replace("custom-parser", "custom-scorer")
        with pytest.raises(config.ConfigError, match="'custom-scorer' is of type custom-scorer, which is not a Parser"):
            self.parsers("- type: custom-scorer\n", handler)

    @pytest.mark.parametrize(
        ("old", "new", "told"),
        [
            ('PATHS = ("/v1/translate",)', "PATHS = ()", r"custom-parser \(custom-parser\) has no PATHS"),
            ("CustomParser(BodyParser)", "CustomParser(Parser)", r"'custom-parser' understands; a parser of one's own"),
        ],
    )
    def test_it_understands_nothing(self, tmp_path: Path, old: str, new: str, told: str) -> None:
        file = tmp_path / "mine.py"
        code = PARSER.read_text().replace(old, new).replace("import json\n", "from epp.scheduling.api import Parser\n")
        file.write_text(code)
        external.load_path(str(file))
        with pytest.raises(StartError, match=told):
            self.parsers()

    def test_a_method_is_missing(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.py"
        file.write_text(PARSER.read_text().replace("def parse", "def parses"))
        with pytest.raises(PluginLoadError, match="CustomParser lacks parse; write it"):
            external.load_path(str(file))


class TestCommands:
    def test_check(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "c.yaml"
        file.write_text(CONFIG)
        assert main(["check", f"--plugin-path={EXAMPLE}", str(file)]) == 0
        assert "custom-threshold: 64" in capsys.readouterr().out
        assert main(["check", "--plugin-path", str(EXAMPLE), str(file)]) == 0
        assert main(["check", str(file), "more"]) == 2

    def test_check_without_it(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "c.yaml"
        file.write_text(CONFIG)
        assert main(["check", str(file)]) == 1
        assert "unknown plugin type 'custom-scorer'" in capsys.readouterr().err

    def test_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plugins", f"--plugin-path={EXAMPLE}"]) == 0
        out = capsys.readouterr().out
        assert f"custom-scorer (Scorer), from {EXAMPLE}\n" in out
        assert "custom-threshold int (64)\n          waiting requests; at least 1\n" in out
        for name in builtin():
            assert f"\n{name}" in f"\n{out}"

    def test_arguments_that_make_no_sense(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plugins", "--json"]) == 2
        assert main(["plugins", "--plugin-path=/nowhere"]) == 1
        assert "/nowhere: no such file or folder" in capsys.readouterr().err
        assert main(["--plugin-path="]) == 2

    def test_serving_does_not_begin_with_a_broken_plugin(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "broken.py"
        file.write_text("1 / 0\n")
        assert main(["--pool-name=x", f"--plugin-path={file}", "--zap-encoder=console"]) == 1
        assert "ZeroDivisionError" in "".join(capsys.readouterr())


class TestWhereTheyComeFrom:
    def test_a_folder_like_a_config_map(self, tmp_path: Path) -> None:
        data = tmp_path / "..2026_01_01"
        data.mkdir()
        (data / "mine.py").write_text(SCORER)
        (data / "other.py").write_text(SCORER.replace("mine", "other"))
        (data / "_helper.py").write_text("1 / 0")
        (data / "notes.txt").write_text("not Python")
        (tmp_path / "..data").symlink_to(data)
        for file in data.iterdir():
            (tmp_path / file.name).symlink_to(Path("..data") / file.name)
        external.load_path(str(tmp_path))
        assert set(external.registered()) == {"mine", "other"}
        assert external.source("mine") == str(tmp_path / "mine.py")

    def test_one_file_may_have_several_and_import(self, tmp_path: Path) -> None:
        file = tmp_path / "several.py"
        file.write_text("from __future__ import annotations\nimport math\n" + SCORER + SCORER.replace("ine", "ore"))
        external.load_path(str(file))
        assert set(external.registered()) == {"mine", "more"}

    def test_a_type_that_exists_is_replaced(self, tmp_path: Path) -> None:
        file = tmp_path / "queue.py"
        file.write_text(SCORER.replace('"mine"', '"queue-scorer"'))
        external.load_path(str(file))
        external.load_path(str(file))  # again is not twice
        assert registry()["queue-scorer"].__name__ == "Mine"
        assert builtin()["queue-scorer"].__name__ == "QueueScorer"

    @pytest.mark.parametrize("value", ["entry_plugins:Mine", "entry_plugins"])
    def test_entry_points(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        (tmp_path / "entry_plugins.py").write_text(SCORER)
        info = tmp_path / "mine-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[epp.plugins]\nmine = {value}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "entry_plugins", raising=False)
        external.load_entry_points()
        assert external.source("mine") == f"entry point mine of epp.plugins ({value})"
        assert main(["plugins"]) == 0
        sys.modules.pop("entry_plugins", None)

    def test_a_broken_entry_point(self, monkeypatch: pytest.MonkeyPatch) -> None:
        entry = importlib.metadata.EntryPoint("broken", "no_such_module_at_all", external.GROUP)
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
        with pytest.raises(PluginLoadError, match=r"entry point broken of epp.plugins .*\n[^$]*ModuleNotFoundError"):
            external.load_entry_points()


class TestMistakes:
    def told(self, tmp_path: Path, text: str, name: str = "mine.py") -> str:
        file = tmp_path / name
        file.write_text(text)
        with pytest.raises(PluginLoadError) as error:
            external.load_path(str(file))
        return str(error.value).replace(str(tmp_path), "DIR")

    def test_the_users_own_traceback(self, tmp_path: Path) -> None:
        told = self.told(tmp_path, "def f():\n    return {}['x']\n\nf()\n")
        assert told.startswith("DIR/mine.py: cannot be loaded:\nTraceback (most recent call last):\n")
        assert 'File "DIR/mine.py", line 4, in <module>' in told
        assert 'File "DIR/mine.py", line 2, in f' in told
        assert told.endswith("KeyError: 'x'")
        assert "importlib" not in told
        assert "external.py" not in told

    def test_what_is_no_python(self, tmp_path: Path) -> None:
        told = self.told(tmp_path, "class Mine(:\n")
        assert 'File "DIR/mine.py", line 1' in told
        assert "SyntaxError" in told

    def test_no_plugin(self, tmp_path: Path) -> None:
        told = self.told(tmp_path, "from epp.scheduling import Scorer\n\nclass Mine(Scorer):\n    pass\n")
        assert told.startswith("DIR/mine.py: has no plugin")

    def test_a_method_is_missing(self, tmp_path: Path) -> None:
        told = self.told(tmp_path, SCORER.replace("def score", "def scores"))
        assert told == "DIR/mine.py: Mine lacks score; write it"

    def test_a_type_twice(self, tmp_path: Path) -> None:
        (tmp_path / "first.py").write_text(SCORER)
        external.load_path(str(tmp_path / "first.py"))
        told = self.told(tmp_path, SCORER)
        assert told == "DIR/mine.py: the type 'mine' comes from DIR/first.py, too; rename one"

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(PluginLoadError, match=r"no [.]py file in this folder"):
            external.load_path(str(tmp_path))

    def test_a_plugin_that_fails_at_work(self, tmp_path: Path, kit: Any, caplog: pytest.LogCaptureFixture) -> None:
        file = tmp_path / "mine.py"
        file.write_text(SCORER.replace("return [1.0] * len(endpoints)", "return request.nothing"))
        external.load_path(str(file))
        rig = kit.rig("plugins:\n- type: mine\n- type: queue-scorer\n", kit.endpoints(2))
        assert rig.send(kit.ask()).endpoints
        assert str(file) in caplog.text
        assert "its scores count as 0" in caplog.text

    def test_a_plugin_that_cannot_be_made(self, tmp_path: Path, kit: Any) -> None:
        file = tmp_path / "mine.py"
        file.write_text(SCORER + "\n    def __init__(self, name, parameters, context):\n        raise OSError('no')\n")
        external.load_path(str(file))
        with pytest.raises(ValueError, match=r"plugin mine \(mine\) cannot be made: no\n") as error:
            kit.rig("plugins:\n- type: mine\n", [])
        assert f'File "{file}", line' in str(error.value)
        assert isinstance(error.value.__cause__, OSError)

    def test_the_nearest_name(self, tmp_path: Path, kit: Any) -> None:
        (tmp_path / "mine.py").write_text(SCORER.replace('"mine"', '"my-own-scorer"'))
        external.load_path(str(tmp_path / "mine.py"))
        with pytest.raises(config.ConfigError, match="did you mean 'my-own-scorer'"):
            kit.rig("plugins:\n- type: my-own-scorr\n", [])


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "dangling.py"
    os.symlink(tmp_path / "nowhere", file)
    with pytest.raises(PluginLoadError):
        external.load_path(str(file))
