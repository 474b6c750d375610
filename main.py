"""Train, evaluate and resume: python main.py --cfg configs/... --data-path ... (see --help).

Alone or under torchrun / torch.distributed.launch; the same command continues a run that was stopped.
"""

import sys

from engine import start


def train(config, world, log, command, config_text):
    """The experiment: build everything, continue where the run folder stands, train, validate, save, summarise."""
    from engine.build import build, build_state  # torch: not for --help and wrong flags
    from engine.evaluate import evaluate
    from engine.run import Run
    from engine.train import train_one_epoch

    task, model = build(config, world, log)
    state = build_state(config, world, task, model)
    with Run(task, state, config, world, log) as run:
        if run.start(command, config_text):
            return  # already complete
        for epoch in run.epochs():
            losses, rate = train_one_epoch(state, task, task.data.train, epoch, run.settings, run)
            result = evaluate(task, task.data.val, state.evaluator, run.settings, run.stop, state.eval_runner)
            run.finish_epoch(epoch, losses, rate, result)
        run.finish()


def main(argv=None):
    """The exit code of a command line (default: the process's own)."""
    return start.main(train, argv)


if __name__ == "__main__":
    sys.exit(main())
