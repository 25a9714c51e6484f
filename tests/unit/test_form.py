"""The connection's form: one definition, which fits the connection and what Airflow makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files

import airflow
import jsonschema
import pytest
from airflow.providers_manager import ProvidersManager

from airflow_stability.client.options import API_VERSIONS
from airflow_stability.compat import AIRFLOW_VERSION
from airflow_stability.hooks import form
from airflow_stability.hooks.connection import ConnectionExtra
from airflow_stability.hooks.stability import StabilityHook


def test_the_form_has_the_fields_of_the_extra():
    assert set(form.FIELDS) == set(ConnectionExtra.model_fields)


@pytest.mark.parametrize("name", form.FIELDS)
def test_a_field_has_a_label_a_help_text_and_a_schema(name):
    field = form.FIELDS[name]

    assert field["label"]
    assert field["description"].endswith(".")
    jsonschema.Draft7Validator.check_schema(field["schema"])
    jsonschema.validate(None, {**field["schema"], "enum": [None, *field["schema"].get("enum", [None])]})


@pytest.mark.parametrize("name", form.FIELDS)
def test_what_is_said_of_an_empty_field_is_its_default(name):
    default = ConnectionExtra.model_fields[name].default
    field = form.FIELDS[name]

    if "default" in field["schema"]:
        assert field["schema"]["default"] == default
    elif default is not None and default is not False:
        assert f"Empty: {default:g}." if isinstance(default, float) else f"Empty: {default}." in str(field)


def test_the_api_version_is_a_choice_of_all_there_are():
    assert form.FIELDS["api_version"]["schema"]["enum"] == ["auto", *API_VERSIONS]


def test_what_may_be_a_secret_is_a_password():
    assert form.FIELDS["proxy"]["schema"]["format"] == "password"


def test_the_example_of_the_extra_is_one_that_works():
    example = json.loads(form.EXAMPLE)

    assert example.keys() <= ConnectionExtra.model_fields.keys()
    ConnectionExtra.model_validate(example)


def test_what_the_hook_says_is_as_airflow_wants_it():
    schema = json.loads((files(airflow) / "customized_form_field_behaviours.schema.json").read_text())

    jsonschema.validate(StabilityHook.get_ui_field_behaviour(), schema)


@pytest.mark.skipif(AIRFLOW_VERSION >= (3, 0), reason="the web server of Airflow 2.11 asks in this way")
def test_airflow_2_takes_the_form_from_the_hook():
    behaviour = ProvidersManager().field_behaviours["stability"]

    assert behaviour["hidden_fields"] == ["login"]
    assert behaviour["relabeling"]["password"] == "API key"
    assert behaviour["placeholders"]["extra"] == form.EXAMPLE


@pytest.mark.skipif(
    AIRFLOW_VERSION < (3, 1), reason="Airflow 2.11 has no such service, and 3.0's needs Flask-AppBuilder"
)
def test_airflow_3_shows_the_form():
    # In a process of its own: it puts stand-ins for modules that are not installed into sys.modules.
    script = (
        "from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService\n"
        "(meta,) = [m for m in HookMetaService.hook_meta_data() if m.connection_type == 'stability']\n"
        "print(meta.model_dump_json())"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    standard, extra = (json.loads(shown)[name] for name in ("standard_fields", "extra_fields"))

    assert standard["login"]["hidden"]
    assert standard["password"] == {"hidden": False, "title": "API key", "placeholder": "sk-..."}
    if AIRFLOW_VERSION < (3, 2):
        assert not extra  # the box for JSON
    else:
        assert extra.keys() == form.FIELDS.keys()
        assert extra["api_version"]["schema"]["enum"] == ["auto", "v1alpha", "v1"]
        assert extra["proxy"]["schema"]["format"] == "password"
