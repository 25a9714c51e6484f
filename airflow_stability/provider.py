"""The provider's metadata, which Airflow reads to discover this package. It imports nothing heavy."""

from __future__ import annotations

from typing import Any

from airflow_stability.hooks import form

#: The modules that DAG authors and Airflow name, by kind.
MODULES = {
    "hooks": ("stability",),
    "sensors": ("stability",),
    "triggers": ("stability", "jobs"),
    "operators": ("stability", "spend"),
}


def get_provider_info() -> dict[str, Any]:
    """Return the metadata, for the entry point ``apache_airflow_provider``."""
    integration = "Stability AI"
    return {
        "package-name": "airflow-provider-stability",
        "name": integration,
        "description": "Pauses pipelines when Stability AI credits run out, and resumes them after a top-up.",
        "integrations": [
            {
                "integration-name": integration,
                "external-doc-url": "https://platform.stability.ai/docs/api-reference",
                "tags": ["service"],
            }
        ],
        **{
            kind: [
                {
                    "integration-name": integration,
                    "python-modules": [f"airflow_stability.{kind}.{module}" for module in modules],
                }
            ]
            for kind, modules in MODULES.items()
        },
        "task-decorators": [
            {"name": "stability", "class-name": "airflow_stability.decorators.stability.stability_task"}
        ],
        "cli": ["airflow_stability.cli.get_cli_commands"],
        "connection-types": [
            {
                "connection-type": "stability",
                "hook-class-name": "airflow_stability.hooks.stability.StabilityHook",
                "hook-name": integration,
                **form.metadata(),
            }
        ],
    }
