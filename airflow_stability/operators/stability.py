"""Operators that push the account and the balance to XCom.

The operator that spends is in :mod:`airflow_stability.operators.spend`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_stability import errors, metrics
from airflow_stability.compat import AirflowFailException, BaseOperator, Context
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.rules.wording import organization_label
from airflow_stability.validation import check_conn_id, check_organization, format_number, is_template

if TYPE_CHECKING:
    from airflow_stability.client import StabilityClient
    from airflow_stability.operators.spend import StabilitySpendOperator as StabilitySpendOperator

#: What XCom holds instead of an e-mail address.
REDACTED = "***"


class StabilityAccountOperator(BaseOperator):
    """An operator that pushes the account that the API key belongs to.

    The XCom is a dict of ``id``, ``email``, ``profile_picture`` (None if there is none) and
    ``organizations``, a list of dicts of ``id``, ``name``, ``role`` and ``is_default``. The e-mail address is
    personal data: XCom is kept in Airflow's database and shown in its pages.

    :param stability_conn_id: a connection of type ``stability`` (templated).
    :param redact_email: push ``***`` instead of the e-mail address.
    :raises ValueError: the connection's id is not one; for a template, when the task runs.
    """

    template_fields: Sequence[str] = ("stability_conn_id",)
    ui_color = "#d9d2f2"

    def __init__(
        self,
        *,
        stability_conn_id: str = StabilityHook.default_conn_name,
        redact_email: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not is_template(stability_conn_id):
            check_conn_id(stability_conn_id)
        self.stability_conn_id = stability_conn_id
        self.redact_email = redact_email

    def execute(self, context: Context) -> dict[str, Any]:
        """Return the account as a dict of plain JSON types.

        :raises ValueError: the rendered id of the connection is not one.
        :raises AirflowFailException: a permanent failure; Airflow's retries are not used.
        :raises StabilityConnectionNotFoundError: there is no such connection; Airflow's retries apply.
        :raises StabilityTransientError: a failure that may pass; Airflow's retries apply.
        """
        with _client(self.stability_conn_id) as client:
            account = client.get_account()
        self.log.info("Account %s is in %d organizations.", account.id, len(account.organizations))
        pushed = account.model_dump(mode="json")
        if self.redact_email:
            pushed["email"] = REDACTED
        return pushed


class StabilityBalanceOperator(BaseOperator):
    """An operator that pushes the balance of an organization.

    The XCom is ``{"credits": float, "organization": str | None}``. None is the key's default organization.

    :param organization: id such as ``org-123456``; None for the connection's organization, else the key's
        default (templated).
    :param stability_conn_id: a connection of type ``stability`` (templated).
    :raises ValueError: an argument is not an id; for a template, when the task runs.
    """

    template_fields: Sequence[str] = ("organization", "stability_conn_id")
    ui_color = "#d9d2f2"

    def __init__(
        self,
        *,
        organization: str | None = None,
        stability_conn_id: str = StabilityHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not is_template(organization):
            check_organization(organization)
        if not is_template(stability_conn_id):
            check_conn_id(stability_conn_id)
        self.organization = organization
        self.stability_conn_id = stability_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Return the balance and the organization that it belongs to.

        :raises ValueError: a rendered argument is not an id.
        :raises AirflowFailException: a permanent failure; Airflow's retries are not used.
        :raises StabilityConnectionNotFoundError: there is no such connection; Airflow's retries apply.
        :raises StabilityTransientError: a failure that may pass; Airflow's retries apply.
        """
        organization = check_organization(self.organization)
        with _client(self.stability_conn_id) as client:
            organization = organization or client.organization
            wallet = (self.stability_conn_id, organization)
            try:
                with metrics.timed_call(*wallet):
                    credits = client.get_balance(organization).credits
            except errors.StabilityError as error:
                metrics.polled(*wallet, error)
                raise
        metrics.polled(*wallet, credits)
        self.log.info("Balance of %s: %s credits.", organization_label(organization), format_number(credits))
        return {"credits": credits, "organization": organization}


@contextmanager
def _client(stability_conn_id: str) -> Iterator[StabilityClient]:
    """Open the connection's client, and end the task without retries after a permanent failure."""
    hook = StabilityHook(check_conn_id(stability_conn_id))
    try:
        yield hook.get_conn()
    except errors.StabilityConnectionNotFoundError:
        raise  # a secrets backend may be out of order: Airflow's retries apply
    except errors.StabilityPermanentError as error:
        raise AirflowFailException(str(error)) from None
    finally:
        hook.close()


def __getattr__(name: str) -> Any:
    # An alias, loaded on demand: it loads Airflow's PythonOperator.
    if name == "StabilitySpendOperator":
        from airflow_stability.operators.spend import StabilitySpendOperator

        return StabilitySpendOperator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
