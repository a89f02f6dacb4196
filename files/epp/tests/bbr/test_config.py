# SPDX-License-Identifier: GPL-3.0-or-later
"""PayloadProcessorConfig: what loads, and what errors say."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from epp.bbr import config
from epp.bbr.plugins import build
from epp.bbr.settings import PluginText, parse
from epp.config.errors import ConfigError
from epp.flags import FlagError

# As the documentation of the payload processor has it.
CONFIG = """\
apiVersion: llm-d.ai/v1alpha1
kind: PayloadProcessorConfig
plugins:
- type: body-field-to-header
  parameters:
    fieldName: model
    headerName: X-Gateway-Model-Name
- type: base-model-to-header
profiles:
- name: default
  plugins:
    request:
    - pluginRef: body-field-to-header
    - pluginRef: base-model-to-header
    response: []
"""
MODEL = PluginText(
    "body-field-to-header", "body-field-to-header", {"fieldName": "model", "headerName": "X-Gateway-Model-Name"}
)
BASE = PluginText("base-model-to-header", "base-model-to-header", {})


def load(text: str) -> tuple[PluginText, ...]:
    return config.load(text, "c.yaml")


class TestLoads:
    def test_the_documented_one(self) -> None:
        assert load(CONFIG) == (MODEL, BASE)
        assert [each.header for each in build(load(CONFIG), str)] == [
            "X-Gateway-Model-Name",
            "X-Gateway-Base-Model-Name",
        ]

    def test_names_and_order(self) -> None:
        text = CONFIG.replace("- type: base", "- name: mine\n  type: base").replace(
            "    - pluginRef: body-field-to-header\n    - pluginRef: base-model-to-header\n",
            "    - {pluginRef: mine, weight: 1.5}\n    - pluginRef: body-field-to-header\n",
        )
        assert load(text) == (PluginText("base-model-to-header", "mine", {}), MODEL)

    def test_what_no_profile_names_does_nothing(self) -> None:
        assert load(CONFIG.replace("    - pluginRef: base-model-to-header\n", "")) == (MODEL,)

    @pytest.mark.parametrize(
        "more",
        [
            "profilePicker: {pluginRef: single-profile-picker}\n",
            "preProcessing:\npostProcessing: {plugins: []}\n",
            "datalayer: {collectors: [], extractors: [], datasources: []}\n",
        ],
    )
    def test_what_changes_nothing(self, more: str) -> None:
        assert load(CONFIG + more) == (MODEL, BASE)

    def test_a_picker_by_its_own_name(self) -> None:
        text = CONFIG.replace("plugins:\n", "plugins:\n- {type: single-profile-picker, name: one}\n", 1)
        assert load(text + "profilePicker: {pluginRef: one}\n") == (MODEL, BASE)


def changed(old: str, new: str) -> str:
    assert old in CONFIG
    return CONFIG.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "c.yaml:1: apiVersion: is missing; add it"),
        ("- x", "c.yaml:1: must be a map, not a list; write its fields below it"),
        ("a: [", "is not YAML"),
        (changed("kind: Payload", "kind: Other"), "c.yaml:2: kind: must be PayloadProcessorConfig, not 'Other"),
        (changed("llm-d.ai/v1alpha1", "v1"), "c.yaml:1: apiVersion: must be llm-d.ai/v1alpha1, not 'v1'"),
        (CONFIG + "plugin: []\n", "c.yaml:16: plugin: unknown field; did you mean 'plugins'?"),
        (
            changed("fieldName", "field"),
            "c.yaml:6: plugins[0].parameters.field: unknown field; did you mean 'fieldName'?",
        ),
        (changed("    fieldName: model\n", ""), "c.yaml:5: plugins[0].parameters.fieldName: is missing; add it"),
        (changed("fieldName: model", "fieldName: 3"), "c.yaml:6: plugins[0].parameters.fieldName: must be a string"),
        (changed("fieldName: model", 'fieldName: ""'), "c.yaml:5: plugins[0].parameters: fieldName is empty"),
        (changed("X-Gateway-Model-Name", "a b"), "c.yaml:5: plugins[0].parameters: headerName 'a b' is no name"),
        (changed("type: body-field-to", "type: body-to"), "unknown plugin type 'body-to-header'; did you mean"),
        (changed("- type: base-model-to-header", "- type: cost-scorer"), "c.yaml:8: plugins[1].type: the plugin type"),
        (
            changed("- type: base-model-to-header", "- type: base-model-to-header\n  parameters: {a: 1}"),
            "c.yaml:9: plugins[1].parameters.a: unknown field; nothing is allowed here",
        ),
        (
            changed("- type: base-model-to-header", "- type: base-model-to-header\n  name: body-field-to-header"),
            "c.yaml:9: plugins[1].name: there are two plugins named 'body-field-to-header'",
        ),
        (
            changed("pluginRef: body-field-to-header", "pluginRef: body-to-header"),
            "c.yaml:13: profiles[0].plugins.request[0].pluginRef: no plugin is named 'body-to-header'; did you mean",
        ),
        (changed("response: []", "response: [{pluginRef: base-model-to-header}]"), "which is nothing for answers"),
        (CONFIG + "  - name: x\n", "c.yaml:16: is not YAML"),
        (CONFIG + "- name: x\n  plugins: {}\n", "c.yaml:9: profiles: there are 2 profiles"),
        (changed("  plugins:\n    request", "  plugin:\n    request"), "c.yaml:11: profiles[0].plugin: unknown field"),
        (CONFIG.partition("    request:")[0] + "    response: []\n", "c.yaml:11: profiles[0].plugins: has no request"),
        (CONFIG.partition("plugins:")[0] + "plugins: []\nprofiles: []\n", "c.yaml:3: plugins: is empty"),
        (CONFIG + "profilePicker: {pluginRef: x}\n", "c.yaml:16: profilePicker.pluginRef: no plugin is named 'x'"),
        (CONFIG + "profilePicker: {pluginRef: base-model-to-header}\n", "which is nothing for profile picker"),
        (CONFIG + "preProcessing: {plugins: [{pluginRef: base-model-to-header}]}\n", "nothing for preProcessing"),
        (CONFIG + "datalayer: {extractors: [{pluginRef: base-model-to-header}]}\n", "nothing for datalayer"),
        (
            CONFIG + "datalayer: {sources: []}\n",
            "c.yaml:16: datalayer.sources: unknown field; did you mean 'datasources'",
        ),
    ],
)
def test_errors_say_where_and_what(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(text)
    assert told in str(error.value)


@pytest.mark.parametrize("name", sorted(config.UNAVAILABLE))
def test_what_is_not_here_has_a_reason(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is not available: models are not selected here"):
        load(changed("type: base-model-to-header", f"type: {name}"))


def test_flags() -> None:
    settings = parse(["--config-file=a", "--config-text=b"], {})
    assert (settings.config_file, settings.config_text) == ("a", "b")
    for flag in ("--config-file=a", "--config-text=b"):
        with pytest.raises(FlagError, match="exclude each other"):
            parse([flag, "--plugin=base-model-to-header:x"], {})


def test_the_readme_shows_one() -> None:
    readme = Path(__file__).parents[2].joinpath("README.md").read_text()
    shown = readme.partition("kind: PayloadProcessorConfig")[2].partition("```")[0]
    text = "apiVersion: llm-d.ai/v1alpha1\nkind: PayloadProcessorConfig" + shown
    assert [each.name for each in load(textwrap.dedent(text))] == ["model", "user"]
