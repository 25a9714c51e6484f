"""The Credits page in Airflow's navigation, on Airflow 3.1 and later.

The modules, each of which imports only those above it:

    burn_rate      readings of a balance, and the rate at which it falls (no Airflow)
    plot           readings as an SVG path (no Airflow)
    balance_cache  the latest balances, requested in the background and rarely (no Airflow)
    shared_read    a result that is read in the background, rarely, for all users (no Airflow)
    waiting_tasks  tasks that wait, and which of them a user sees (no Airflow)
    background     each user's page, made in threads of its own (no Airflow)
    queries        what Airflow's database knows: waiting tasks, and balances that tasks have read
    ledgers        what ledgers say: who spent what, budgets, and what somebody else spent
    permissions    which connections and DAGs a user may see
    app            the page itself, a FastAPI app that Airflow mounts
"""
