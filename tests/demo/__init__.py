"""The demo: a real Airflow runs the example DAGs against a simulated Stability API with too few credits.

Start it with `make demo`, or with `make demo KEEP=1` to leave Airflow's web pages up afterwards.

The demo prints what happens while `example_dags/stability_image_pipeline.py` runs twice:

1. The gate waits. The simulator gets a top-up that is too small for all images, and the gate opens.
2. Some images are made. One request is refused, and its task waits, as do the tasks after it.
3. After a second top-up the remaining images are made.
4. In a second run, the demo kills the worker of an image that is paid for but not there yet. Airflow tries
   again. The second try finds the marker of the first, pays nothing, and fails with what a person should do.
5. `example_dags/stability_account.py` reads the account and the balance.

Then the demo checks the tasks, the images and the credits, and searches everything that Airflow has written
for the API key. The modules, from the command line inwards:

- `__main__`: the command line, the lock against a second demo, the exit status
- `run`: the order of the steps, and the clean-up
- `story`: the first run of the image pipeline, and what the demo does to the simulator meanwhile
- `killed_worker`: the second run
- `checks`: what must hold at the end
- `scenario`: the prompts and the credits
- `airflow_setup`, `rest_api`, `task_log`: Airflow's processes, its REST API, and the logs of its tasks
- `terminal`, `signals`, `folders`, `errors`: the output, Ctrl-C, the paths, the demo's own error
"""
