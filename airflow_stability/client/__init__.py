"""The Stability API over requests and tenacity. Knows no Airflow; usable on its own."""

from airflow_stability.client.client import DEFAULT_BASE_URL, StabilityClient, check_response
from airflow_stability.client.models import Account, Balance, OrganizationMembership

__all__ = [
    "DEFAULT_BASE_URL",
    "Account",
    "Balance",
    "OrganizationMembership",
    "StabilityClient",
    "check_response",
]
