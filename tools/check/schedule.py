"""The learning rate that is really used: after scaling with the global batch, over the steps of this dataset."""

from tools.check.finding import failed, ok, warning

WIDTH = 60  # columns of the plot
BARS = " ▁▂▃▄▅▆▇█"


def check_schedule(subject):
    """Warm-up, peak and end in steps and epochs, and the whole course as a line of bars."""
    train, per_epoch = subject.config.TRAIN, subject.steps_per_epoch
    schedule = subject.schedule(subject.config)
    last = schedule.total_steps - 1
    peak = max(schedule(step) for step in sampled(schedule))
    scaling = "" if train.LR_SCALING == "none" else f", scaled ({train.LR_SCALING}) from {train.BASE_LR:g}"
    text = f"{schedule.name}, peak {peak:.3g}{scaling}, {schedule.total_steps:,} steps of {subject.global_batch} images"
    rows = (
        plot(schedule),
        row("first step", 0, schedule, per_epoch),
        *([row("warm-up ends", schedule.warmup_steps, schedule, per_epoch)] if schedule.warmup_steps else []),
        row("half way", schedule.total_steps // 2, schedule, per_epoch),
        row("last step", last, schedule, per_epoch),
    )
    if peak <= 0:
        return [failed(f"{text}: nothing will be learnt", "TRAIN.BASE_LR above 0")]
    if schedule(0) > schedule.base_lr:
        return [warning(f"{text}, but it falls during the warm-up", "TRAIN.WARMUP_LR below BASE_LR", rows)]
    return [ok(text, rows)]


def sampled(schedule):
    """Steps that show the course: evenly spread, with the end of the warm-up."""
    total = schedule.total_steps
    return sorted({*(column * total // WIDTH for column in range(WIDTH)), min(schedule.warmup_steps, total - 1)})


def plot(schedule):
    """One bar for each column, the tallest for the peak."""
    rates = [schedule(column * schedule.total_steps // WIDTH) for column in range(WIDTH)]
    top = max(*rates, schedule.base_lr) or 1.0
    return "|" + "".join(BARS[round(rate / top * (len(BARS) - 1))] for rate in rates) + "|"


def row(name, step, schedule, per_epoch):
    """`last step     5.00e-06  step 38,999, epoch 300.0`."""
    return f"{name:<13} {schedule(step):.2e}  step {step:,}, after {step / per_epoch:.1f} epochs"
