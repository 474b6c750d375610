"""Processes that `srun` started without torchrun: what SLURM calls a task becomes what torchrun calls a rank."""

import re

from utils.errors import ConfigError

PORTS = range(15000, 30000)  # below those that systems hand out by themselves
TOLD = ("RANK", "WORLD_SIZE")  # by torchrun, which may have been started by srun itself


def adopt(variables):
    """Set what torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT), if srun
    started several tasks and no launcher has said otherwise; `variables` is os.environ. Whether each task sees one GPU
    of its own.

    The first host of the step keeps the store; the port follows from job and step, so that two jobs of a host differ.
    A variable that is set already (MASTER_PORT, say) stays. Raises ConfigError for a variable that is no number.
    """
    size = tasks(variables)
    if size < 2 or any(name in variables for name in TOLD):
        return False
    rank = number(variables, "SLURM_PROCID")
    step = number(variables, "SLURM_STEP_ID", 0)
    local = number(variables, "SLURM_LOCALID", rank)
    place = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": local,
        "LOCAL_WORLD_SIZE": max(local + 1, tasks_here(variables, size)),
        "MASTER_ADDR": first_host(given(variables, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST") or "127.0.0.1"),
        "MASTER_PORT": PORTS[(number(variables, "SLURM_JOB_ID", 0) + step) % len(PORTS)],
    }
    for name, value in place.items():
        variables.setdefault(name, str(value))
    return variables.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2] == "1"


def tasks(variables):
    """How many tasks srun started, of which this process is one; 1 outside of srun.

    The script of a batch job sees SLURM_NTASKS and SLURM_PROCID too, but is alone: only srun sets SLURM_STEP_NUM_TASKS.
    """
    if "SLURM_PROCID" not in variables:
        return 1
    alone = 1 if variables.get("ENVIRONMENT") == "BATCH" else number(variables, "SLURM_NTASKS", 1)
    return number(variables, "SLURM_STEP_NUM_TASKS", alone)


def tasks_here(variables, size):
    """Tasks on this node, out of SLURM's `2(x3),1`: two on each of three nodes, one on the fourth."""
    text = given(variables, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE") or str(size)
    entries = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    nodes = [int(count) for count, times in entries for _ in range(int(times or 1))]
    node = number(variables, "SLURM_NODEID", 0)
    return nodes[node] if node < len(nodes) else size


def first_host(nodes):
    """`gpu003` of `gpu[003-010,12],login1`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)[0]
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first)


def given(variables, *names):
    """The value of the first of these variables that is set, or ''."""
    return next((variables[name] for name in names if variables.get(name)), "")


def number(variables, name, missing=None):
    """The whole number in a variable, or `missing` where it is not set. Raises ConfigError."""
    text = variables.get(name, missing)
    if not str(text).isdecimal():
        raise ConfigError(f"{name}: {text!r} is not a whole number (environment variable), as srun sets it")
    return int(text)
