"""StabilityHook: the way from an Airflow connection to a client of the Stability API."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from airflow_stability.compat import BaseHook, mask_secret
from airflow_stability.errors import StabilityConfigurationError, StabilityError
from airflow_stability.validation import format_number

if TYPE_CHECKING:
    # At run time the client is loaded with the first connection: a DAG file that imports the hook must not
    # load an HTTP library at each parse.
    from airflow_stability.client import Account, Balance, StabilityClient
    from airflow_stability.compat import Connection


class StabilityHook(BaseHook):
    """A hook that calls the Stability API with the API key of an Airflow connection.

    :param stability_conn_id: a connection of type ``stability``; its password is the API key.
    :param retry_deadline: seconds that one call may spend on retries, 0 for a single attempt; None for the
        connection's ``retry_deadline``, which is 120 by default.
    """

    conn_name_attr = "stability_conn_id"
    default_conn_name = "stability_default"
    conn_type = "stability"
    hook_name = "Stability AI"

    def __init__(
        self, stability_conn_id: str = default_conn_name, *, retry_deadline: float | None = None
    ) -> None:
        super().__init__()
        self.stability_conn_id = stability_conn_id
        self.retry_deadline = retry_deadline
        self._client: StabilityClient | None = None
        self._connection: Connection | None = None

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return labels and hidden fields of the connection's form, for Airflow up to 3.1."""
        from airflow_stability.hooks import form

        return form.behaviour()

    def get_conn(self) -> StabilityClient:
        """Return the client. The connection is read at the first call.

        :raises StabilityConnectionNotFoundError: there is no such connection.
        :raises StabilityConfigurationError: a field of the connection is unusable.
        :raises StabilityTransientError: the connection could not be read just now.
        """
        if self._client is None:
            if self._connection is None:
                self._read_connection()
            self._client = self._make_client()
        return self._client

    def get_account(self) -> Account:
        """Return the account that the API key belongs to. Costs no credits.

        :raises StabilityError: see :meth:`StabilityClient.get_account`.
        """
        return self.get_conn().get_account()

    def get_balance(self, organization: str | None = None) -> Balance:
        """Return the credit balance of an organization. Costs no credits.

        :param organization: id such as ``org-123456``; None for the connection's, else the key's default.
        :raises StabilityError: see :meth:`StabilityClient.get_balance`.
        """
        return self.get_conn().get_balance(organization)

    @property
    def key_id(self) -> bytes:
        """A hash that tells one API key from another in this process. It reveals nothing of the key."""
        from airflow_stability.client.api_key import fingerprint

        return fingerprint(self._connection and self._connection.password)

    def with_retry_deadline(self, retry_deadline: float | None) -> StabilityHook:
        """Return a hook of the same connection with another deadline. The connection is not read again.

        :param retry_deadline: as in the constructor.
        """
        hook = copy.copy(self)  # which may be of a subclass
        hook.retry_deadline, hook._client = retry_deadline, None
        return hook

    def reload(self) -> bool:
        """Read the connection again, and use it from the next call on if it has changed.

        A key may be rotated while a task waits. A connection from an environment variable cannot change
        inside a running process. One from the database or a secrets backend can.

        :returns: whether it has changed.
        """
        from airflow_stability.hooks.connection import connection_settings

        before = self._connection and connection_settings(self._connection)
        self._read_connection()
        if self._connection and connection_settings(self._connection) == before:
            return False
        self.close()
        return True

    def close(self) -> None:
        """Close the client's HTTP connections. The next call makes a new client."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def test_connection(self) -> tuple[bool, str]:
        """Request account and balance, for the Test button of Airflow's connection form. Costs no credits.

        :returns: whether the connection works, and a text: the account, its organizations, the balance, and
            the API version that answered; or what is wrong.
        """
        hook = self.with_retry_deadline(0)  # a user waits for the result
        try:
            return True, hook._describe()
        except StabilityError as error:
            return False, str(error)
        finally:
            hook.close()

    def _describe(self) -> str:
        from airflow_stability.hooks.connection import unknown_fields

        client = self.get_conn()
        account = client.get_account()
        known = {membership.id: membership for membership in account.organizations}
        listed = ", ".join(
            f"{membership.name} ({membership.id}{', default' if membership.is_default else ''})"
            for membership in account.organizations
        )
        if client.organization and client.organization not in known:
            raise StabilityConfigurationError(
                f"The account {account.id} is not a member of the organization {client.organization} that "
                f"the connection names. Its organizations: {listed or 'none'}."
            )
        balance = client.get_balance()
        default = account.default_organization
        whose = client.organization or (default.id if default else "the default organization")
        sentences = [
            f"Account {account.id} ({account.email}).",
            f"Organizations: {listed or 'none'}.",
            f"Balance of {whose}: {format_number(balance.credits)} credits.",
            f"API version {client.answered_version} answered.",
        ]
        if client.api_version == "auto" and client.answered_version == "v1":
            sentences.append(
                "Set extra.api_version to v1: without it each process, and so each poll of a rescheduled "
                "sensor, requests v1alpha first."
            )
        if client.organization and default and client.organization != default.id:
            sentences.append(
                f"Warning: image generation bills the key's default organization {default.id}, but this "
                f"connection watches {client.organization}: use a key whose default it is."
            )
        if self._connection and (unknown := unknown_fields(self._connection)):
            sentences.append(f"Warning: extra has fields that have no meaning here: {', '.join(unknown)}.")
        return " ".join(sentences)

    def _read_connection(self) -> None:
        from airflow_stability.hooks.connection import reading_failure

        try:
            self._connection = self.get_connection(self.stability_conn_id)
            return
        except Exception as error:
            failure = reading_failure(self.stability_conn_id, error)
        raise failure

    def _make_client(self) -> StabilityClient:
        from airflow_stability.hooks.connection import client_from_connection, unknown_fields

        assert self._connection is not None  # not in a variable: see client_from_connection
        if self._connection.password:
            mask_secret(self._connection.password)
        client = client_from_connection(self._connection, retry_deadline=self.retry_deadline)
        for secret in client.secrets:
            mask_secret(secret)
        if unknown := unknown_fields(self._connection):
            self.log.warning(
                "Connection %r: extra has fields that have no meaning here: %s.",
                self.stability_conn_id,
                ", ".join(unknown),
            )
        return client
