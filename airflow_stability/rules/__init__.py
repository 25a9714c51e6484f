"""The rules, as pure functions and classes: no HTTP, no Airflow, and the clock is passed in."""
