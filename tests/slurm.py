"""A stand-in for Slurm on one machine: its commands as far as submitit and the program use them; scripts really run.

The state is a folder, $STANDIN_SLURM: for each job a folder with a file `K.state` for each place K of its array.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ.get("STANDIN_SLURM", "."))
COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "srun")
GOING_ON = ("PENDING", "RUNNING")


def install(folder):
    """Writes the commands into a folder that is to come first on PATH, and returns the environment that means it."""
    (folder / "bin").mkdir(parents=True)
    (folder / "state").mkdir()
    for name in COMMANDS:
        path = folder / "bin" / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        path.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "STANDIN_SLURM": str(folder / "state")}


def options(arguments):
    """The options of a command line or a script, by name, and what follows them."""
    found = {}
    while arguments and arguments[0].startswith("-"):
        name, _, value = arguments[0].lstrip("-").partition("=")
        arguments = arguments[1:]
        if name in ("output", "error", "j") and not value:
            value, *arguments = arguments
        found[name] = value.strip("'")
    return found, arguments


def jobs():
    """(number, place, name, state) of all."""
    for folder in sorted(STATE.iterdir(), key=lambda path: int(path.name)):
        for path in sorted(folder.glob("*.state")):
            yield folder.name, path.stem, (folder / "name").read_text(), path.read_text()


def write(path, text):
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").replace(path)


def places(asked):
    """The numbers of `--array`; `None` where it is not given."""
    first, last = re.match(r"(\d+)-(\d+)", asked).groups()
    return [str(number) for number in range(int(first), int(last) + 1)]


def sbatch(script):
    """Submits a script, unless its partition is one that is full."""
    text = Path(script).read_text()
    asked, _ = options(re.findall(r"^#SBATCH (\S+)", text, re.MULTILINE))
    if asked.get("partition") == "full":
        print("sbatch: error: QOSMaxSubmitJobPerUserLimit", file=sys.stderr)
        return 1
    folder = STATE / str(1 + max((int(path.name) for path in STATE.iterdir()), default=100))
    folder.mkdir()
    (folder / "name").write_text(asked["job-name"])
    (folder / "script").write_text(text)
    for place in places(asked["array"]) if "array" in asked else ["alone"]:
        write(folder / f"{place}.state", "PENDING")
    subprocess.Popen([sys.executable, __file__, "run", folder.name], start_new_session=True, close_fds=True,
                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    print(f"Submitted batch job {folder.name}")
    return 0


def run(number):
    """What the controller does for a job, in a process of its own: starts its tasks, and notes how they end."""
    folder = STATE / number
    limit = int((re.search(r"--array=\S+%(\d+)", (folder / "script").read_text()) or [0, 1])[1])
    tasks = {}
    while tasks or any(path.read_text() in GOING_ON for path in folder.glob("*.state")):
        for path in sorted(folder.glob("*.state")):
            if len(tasks) < limit and path.stem not in tasks and path.read_text() == "PENDING":
                write(path, "RUNNING")
                tasks[path.stem] = start(folder, path.stem)
        for place, process in list(tasks.items()):
            if process.poll() is not None:
                del tasks[place]
                write(folder / f"{place}.state", how(folder, place, process.returncode))
        time.sleep(0.05)


def start(folder, place):
    """Starts a task, with what Slurm tells it."""
    told = {"SLURM_JOB_ID": folder.name, "SLURM_CPUS_PER_TASK": "1"}
    if place != "alone":
        told |= {"SLURM_ARRAY_JOB_ID": folder.name, "SLURM_ARRAY_TASK_ID": place}
    log = (folder / f"{place}.log").open("a")
    return subprocess.Popen(["bash", str(folder / "script")], env=os.environ | told | {"STANDIN_TASK": place},
                            stdout=log, stderr=log, start_new_session=True)  # fmt: skip


def how(folder, place, code):
    """The state of a task whose script has ended."""
    for flag, state in (("requeue", "PENDING"), ("cancel", "CANCELLED by 0"), ("lost", "NODE_FAIL")):
        if (folder / f"{place}.{flag}").exists():
            (folder / f"{place}.{flag}").unlink()
            return state
    return "FAILED" if code else "COMPLETED"


def srun(*arguments):
    """Becomes the command, whose signals a task gets."""
    asked, command = options(list(arguments))
    folder = STATE / os.environ["SLURM_JOB_ID"]
    name, place = folder.name, os.environ["STANDIN_TASK"]
    (folder / f"{place}.step").write_text(str(os.getpid()))
    replaced = asked["output"].replace("%A", name).replace("%a", place).replace("%j", name).replace("%t", "0")
    log = os.open(replaced, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.execvp(command[0], command)


def squeue(*arguments):
    """Lines as `--format='%j %K'` has them, of what waits or runs."""
    asked, _ = options(list(arguments))
    for _number, place, name, state in jobs():
        if name in asked["name"].split(",") and state in GOING_ON:
            print(name, "N/A" if place == "alone" else place)
    return 0


def sacct(*arguments):
    """Lines as `--format=JobID,State` has them."""
    asked, _ = options(list(arguments))
    for number, place, name, state in jobs():
        if name in asked["name"].split(","):
            print(number + ("" if place == "alone" else f"_{place}"), state, sep="|")
    return 0


def signalled(number, place, with_what, flag=None):
    """Sends a signal to a task's step, after a flag that says what becomes of the task."""
    folder = STATE / number
    if flag:
        (folder / f"{place}.{flag}").touch()
    if (folder / f"{place}.step").exists():
        os.kill(int((folder / f"{place}.step").read_text()), with_what)


def scancel(*arguments):
    """Of all jobs of some names."""
    asked, _ = options(list(arguments))
    for number, place, name, state in list(jobs()):
        if name in asked["name"].split(",") and state == "RUNNING":
            signalled(number, place, signal.SIGTERM, "cancel")
        elif name in asked["name"].split(",") and state == "PENDING":
            write(STATE / number / f"{place}.state", "CANCELLED by 0")
    return 0


def scontrol(what, job):
    """`requeue` alone, which stops the task."""
    number, _, place = job.partition("_")
    signalled(number, place or "alone", signal.SIGTERM, {"requeue": "requeue"}[what])
    return 0


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](*sys.argv[2:]))
