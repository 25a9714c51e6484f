"""Airflow decorators."""
