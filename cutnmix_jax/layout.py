"""The names of the files and folders in the folder of a run; `docs/runs.md` describes them."""

CONFIG, ENVIRONMENT, RESULTS = "config.json", "environment.json", "results.json"
FORCED, EXTENDED = "forced.json", "extended.json"
ROWS, EVENTS = "metrics.jsonl", "tensorboard"
CHECKPOINTS, STUDENT = "checkpoints", "student"
DAMAGED = f"{CHECKPOINTS}-damaged"
SAMPLES, CURVES = "samples.png", "curves.png"
