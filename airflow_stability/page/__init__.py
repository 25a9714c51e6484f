"""The Credits page in Airflow's navigation, on Airflow 3.1 and later.

The modules, each of which imports only those above it:

    burn_rate      readings of a balance, and the rate at which it falls (no Airflow)
    plot           readings as an SVG path (no Airflow)
    balance_cache  the latest balances, requested in the background and rarely (no Airflow)
    background     each user's page, made in threads of its own (no Airflow)
    queries        what Airflow's database knows: waiting tasks, and balances that tasks have read
    permissions    which connections and DAGs a user may see
    app            the page itself, a FastAPI app that Airflow mounts
"""
