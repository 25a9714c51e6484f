"""The Credits page in Airflow's navigation, on Airflow 3.1 and later.

How the modules stand on each other:

    readings   a balance at a time, and what many of them say: the rate at which credits go (no Airflow)
    plot       readings as points of a picture (no Airflow)
    balances   asks for balances off the request, and seldom enough (no Airflow)
    records    what Airflow's database knows: who waits, and which balances tasks have seen
    rights     what a user may see
    app        the page itself, a FastAPI app that Airflow mounts
"""
