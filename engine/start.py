"""From a command line to one start of main.py: parse, connect, do what was asked for, end with the right exit code."""

import contextlib
import gc
import os
import shlex
import sys
from datetime import timedelta

import config as configuration
from engine import command_line
from utils.errors import ConfigError, Interrupted, RunError
from utils.text import prepare_output, require_utf8

STORE_SECONDS = 10  # to connect to the store of torchrun


def main(train, argv=None):
    """Run and return the exit code; a RunError becomes one line, printed by one process.

    train(config, world, log, command, config_text): the experiment.
    """
    if argv is None:
        require_utf8()
    prepare_output()
    try:
        execute(train, list(sys.argv[1:] if argv is None else argv))
    except RunError as error:
        if not error.printed and first_to_say(error.line()):
            print(error.line(), file=sys.stderr, flush=True)
        return error.exit_code
    except Interrupted as error:
        return error.exit_code  # the run has said where it stopped
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def execute(train, argv):
    """Parse, connect, and do what was asked for."""
    args = command_line.parse_args(argv)
    config, origins = configuration.load_config(args.cfg, args.opts, command_line.flag_overrides(args))
    configuration.check(config, origins)
    if args.print_config:
        print(configuration.dump_with_origins(config, origins))
        return
    with importing():  # from here on torch is needed, seconds that the answers above should not cost
        from logger import Logger
        from utils import distributed

    if config.DETERMINISTIC:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    world = distributed.connect(config.DEVICE, config.DIST_TIMEOUT, args.local_rank)
    with importing():
        from engine import failures

    try:
        with importing():
            from engine.evaluate import evaluate_checkpoint
            from engine.throughput import measure
            from models.checks import ArgumentError
            from tasks.backbone import key_of
            from utils.threads import making_way

        refuse_different_configurations(world, configuration.to_plain(config))
        log = Logger(world.is_main)
        with making_way(world.device):
            if args.throughput:
                measure(config, world, log)
            elif args.eval:
                evaluate_checkpoint(config, world, log)
            else:
                text = configuration.dump_with_origins(config, origins)
                train(config, world, log, shlex.join(["python", "main.py", *argv]), text)
    except ArgumentError as error:  # of a forward pass: models know keywords, the user of a YAML file keys
        failure = ConfigError(error.spelled(key_of))
        failures.settle(failure, world)
        raise failure from error
    except Interrupted:  # on all ranks together
        raise
    except Exception as error:
        explained = failures.explain(error, world)
        if isinstance(error, RunError):
            failures.settle(error, world)
        failures.tell(explained or error, world)
        distributed.abort(world)
        if explained is None:
            raise
        raise explained from error
    finally:
        distributed.disconnect(world)


@contextlib.contextmanager
def importing():
    """Around imports: thousands of modules are no garbage. Nobody looks for it among them, neither meanwhile nor when
    Python ends; both together were two of five seconds of a start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def first_to_say(line):
    """Whether no other process of torchrun has said this line, which errors from before the processes have met need;
    without torchrun's store nobody knows: True."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch import distributed

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = distributed.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=STORE_SECONDS))
        return store.add(f"said {os.environ['TORCHELASTIC_RESTART_COUNT']} {line}", 1) == 1
    except distributed.DistError:
        return True


def refuse_different_configurations(world, plain):
    """Raise ConfigError on all ranks, naming the first key, if their configurations (plain dicts) are not the same."""
    everyone = world.gather(plain)
    for rank, other in enumerate(everyone):
        changes = configuration.difference(everyone[0], other)
        if changes:
            key, first, second = changes[0]
            raise ConfigError(
                f"{key}: rank 0 has {first!r}, rank {rank} has {second!r}; start all ranks with the same command"
            )
