"""Train, evaluate and resume: python main.py --cfg configs/... --data-path ... (see --help).

Alone or under torchrun / torch.distributed.launch; the same command continues a run that was stopped.
"""

import os
import shlex
import sys

import config as configuration
from utils import cli
from utils.errors import Interrupted, RunError


def train(config, world, log, command, config_text):
    """The experiment: build everything, continue where the run folder stands, train, validate, save, summarise."""
    from engine import evaluate, train_one_epoch
    from utils import run, training_state

    data, model = run.build(config, world, log)
    state = training_state.build_state(config, world, model, data.mixing.criterion, data.train.batches_per_epoch)
    with run.Run(config, world, log, data, state) as session:
        if session.start(command, config_text):
            return  # already complete
        settings = training_state.build_settings(config, world.device)
        while len(state.progress.history) < config.TRAIN.EPOCHS:
            epoch = len(state.progress.history)
            loss, rate = train_one_epoch(
                state,
                data.train,
                data.mixing,
                epoch,
                settings=settings,
                world=world,
                log=log,
                wishes=session.wishes,
                epochs=config.TRAIN.EPOCHS,
                save=session.save_last,
            )
            result = evaluate(
                state.evaluator,
                data.val,
                runner=state.eval_runner,
                device=world.device,
                amp_dtype=settings.amp_dtype,
                world=world,
                stop=session.stop,
            )
            session.finish_epoch(epoch, loss, rate, result)
        session.finish()


def evaluate_checkpoint(config, world, log):
    """--eval --resume FILE: exact accuracy of that file, and of no other."""
    from engine import evaluate
    from utils import evaluation, run, training_state
    from utils.amp import amp_dtype
    from utils.signals import StopSignals

    data, model = run.build(config, world, log, training=False)
    world.together(lambda: evaluation.load_for_evaluation(model, data.info, config, log))
    runner = training_state.compiled(model, config)
    with StopSignals() as stop:
        for name, loader in (("val", data.val), ("test", data.test)):
            if loader is not None:
                result = evaluate(
                    model,
                    loader,
                    runner=runner,
                    device=world.device,
                    amp_dtype=amp_dtype(config.AMP.ENABLE, config.AMP.DTYPE, world.device),
                    world=world,
                    stop=stop,
                )
                log.heading(evaluation.result_text(name, result))


def execute(argv):
    """Parse, connect, and do what was asked for."""
    args = cli.parse_args(argv)
    config, origins = configuration.load_config(args.cfg, args.opts, cli.flag_overrides(args))
    configuration.check(config, origins)
    if args.print_config:
        print(configuration.dump_with_origins(config, origins))
        return
    from logger import Logger
    from utils import distributed, failures, throughput

    if config.DETERMINISTIC:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    world = distributed.connect(config.DEVICE, config.DIST_TIMEOUT, args.local_rank)
    try:
        distributed.refuse_different_configurations(world, configuration.to_plain(config))
        log = Logger(world.is_main)
        if args.throughput:
            throughput.measure(config, world, log)
        elif args.eval:
            evaluate_checkpoint(config, world, log)
        else:
            text = configuration.dump_with_origins(config, origins)
            train(config, world, log, shlex.join(["python", "main.py", *argv]), text)
    except RunError as error:
        failures.tell(error, world)
        raise
    except RuntimeError as error:
        explained = failures.explain(error, world)
        if explained is None:
            raise
        raise explained from error
    finally:
        distributed.disconnect(world)


def main(argv=None):
    """Run and return the exit code; a RunError becomes one line, on rank 0 unless only this rank knows of it."""
    rank = os.environ.get("RANK", "0")
    try:
        execute(list(sys.argv[1:] if argv is None else argv))
    except RunError as error:
        if (rank == "0" or not error.everywhere) and not error.printed:
            print(error.line(), file=sys.stderr, flush=True)
        return error.exit_code
    except Interrupted as error:
        return error.exit_code  # the run has said where it stopped
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
