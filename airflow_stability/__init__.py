"""Apache Airflow provider for the Stability AI API: wait for credit, read the account, spend."""

__version__ = "0.1.0"
