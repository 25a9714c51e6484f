"""A client for the Stability API, built on requests and tenacity. It knows nothing of Airflow."""

from airflow_stability.client.client import DEFAULT_BASE_URL, StabilityClient
from airflow_stability.client.foreign_responses import check_response
from airflow_stability.client.models import Account, Balance, OrganizationMembership

__all__ = [
    "DEFAULT_BASE_URL",
    "Account",
    "Balance",
    "OrganizationMembership",
    "StabilityClient",
    "check_response",
]
