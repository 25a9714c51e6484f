"""The demo: a real Airflow runs the example DAGs against a simulated Stability API with too few credits.

Start it with `make demo`, or with `make demo KEEP=1` to leave Airflow's web pages up afterwards.

The demo prints what happens while `example_dags/stability_image_pipeline.py` runs twice:

1. The gate waits. Meanwhile the demo makes a ledger and a daily budget with the provider's commands. The
   simulator gets a top-up that is too small for all images, and the gate opens.
2. Some images are made. Somebody else spends credits, too. So one request is refused, and its task waits, as
   does the task after it.
3. After a second top-up one of them goes on. That uses up the budget, and the other one waits for midnight.
4. The demo makes a time zone in which midnight is near, and gives it to the budget. Until midnight,
   `example_dags/stability_account.py` reads the account and the balance. At midnight the budget renews, and
   the last image is made.
5. In a second run, the demo kills the worker of an image that is paid for but not there yet. Airflow tries
   again. The second try finds the marker of the first, pays nothing, and fails with what a person should do.
6. A command shows who spent what. In the ledger, the lost image is still `held`.

Then the demo checks the tasks, the images, the credits and the ledger, and searches everything that Airflow
has written for the API key. The modules, from the command line inwards:

- `__main__`: the command line, the lock against a second demo, the exit status
- `run`: the order of the steps, and the clean-up
- `story`: the first run of the image pipeline, and what the demo does to the simulator meanwhile
- `ledger`, `time_zone`: the ledger, its budget, and the time zones in which the budget renews
- `killed_worker`: the second run
- `checks`: what must hold at the end
- `scenario`: the prompts, the credits and the budget
- `airflow_setup`, `rest_api`, `task_log`: Airflow's processes, its REST API, and the logs of its tasks
- `terminal`, `signals`, `folders`, `errors`: the output, Ctrl-C, the paths, the demo's own error
"""
