"""The rules, pure: no HTTP, no Airflow, the clock is passed in."""
