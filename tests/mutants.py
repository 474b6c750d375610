"""Whether the tests can fail: faults made by hand, put into a copy of the tree one at a time.

python -m tests.mutants [NAME ...]

One line a fault: which test caught it, or that it survived; exit code 1 if one did. A survivor needs a test.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.shared.command import exit_code, parser
from utils.errors import ConfigError, RunError, listing, nearest

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "output", "__pycache__")

FAULTS = {  # file: (its tests in this folder, {name of the fault: (what stands there once, what stands there then)})
    "lr_scheduler.py": (
        "test_lr_scheduler.py",
        {
            "warm-up a step ahead": ("* step / self.warmup_steps", "* (step + 1) / self.warmup_steps"),
            "cosine as long as the run": ("self.total_steps - self.warmup_steps)", "self.total_steps)"),
            "schedule forgets lr_scale": ('rate * group.get("lr_scale", 1.0)', "rate"),
            "sqrt scaling is linear": ("math.sqrt(factor)", "factor"),
        },
    ),
    "optimizer.py": (
        "test_optimizer.py test_finetune.py::test_each_layer_steps_at_its_own_rate_and_all_are_listed",
        {
            "all layers at one rate": ("decay ** (last - inside", "1.0 ** (last - inside"),
            "biases decay": ("parameter.ndim <= 1", "parameter.ndim < 1"),
            "the exempt decay": ("(exempt, 0.0)", "(exempt, weight_decay)"),
            "betas forgotten": ("tuple(settings.BETAS)", "(0.9, 0.999)"),
            "momentum forgotten": ("settings.MOMENTUM", "0.9"),
            "frozen weights trained": ("if parameter.requires_grad:", "if True:"),
        },
    ),
    "models/weights/pretrained.py": (
        "test_finetune.py",
        {
            "rows of the head in their order": ("given[there]", "given[: len(there)]"),
            "classes of the file forgotten": ('facts.get("classes", ())', "()"),
        },
    ),
    "data/datasets/imagenet22k.py": (
        "test_imagenet22k.py",
        {
            "labels of val/ by its own classes": ("[place[name] for name in own]", "range(len(own))"),
            "the last image held out": ("len(members) - 1", "len(members)"),
            "nothing is excluded": ("if name not in excluded", "if True"),
        },
    ),
    "engine/freeze.py": (
        "test_finetune.py",
        {
            "frozen parts are trained": ("parameter.requires_grad_(not frozen[name])", "pass"),
            "frozen parts in training mode": ("return frozen_parts(model) if patterns else []", "return []"),
            "what is trained again is not": ('not pattern.startswith("-")', "True"),
            "nothing to train is fine": ("if patterns and all(frozen.values()):", "if False:"),
        },
    ),
    "data/datasets/tar.py": (
        "test_data_tar.py",
        {
            "images of a tar in its own order": (
                "sorted(range(len(members)), key=lambda index: (labels[index], members[index]))",
                "list(range(len(members)))",
            ),
            "an index of other tars": ("if stored == facts and", "if"),
            "links are read": ("if not member.isreg():", "if False:"),
            "a tar may end anywhere": (
                "if tar.offset >= end or file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):",
                "if False:",
            ),
        },
    ),
    "data/datasets/shards.py": (
        "test_data_tar.py test_pack.py",
        {
            "label of another file": ("file.seek(offset)", "file.seek(0)"),
            "keys come twice": ("if key in seen:", "if False:"),
            "an unfinished folder": ("if sum(noted.values()) != images:", "if False:"),
            "the test set is trained": ('files = parts["train"] + parts[part]', 'files = parts[part] + parts["train"]'),
        },
    ),
    "tools/pack.py": (
        "test_pack.py",
        {
            "a damaged file is kept": ("facts_of(target, len(indices)) == noted[name]", "True"),
            "labels by place": ('("cls", str(images.labels[index]).encode())', '("cls", str(index).encode())'),
            "all is packed anew": ("if whole:", "if False:"),
        },
    ),
    "utils/slurm.py": (
        "test_nodes.py",
        {
            "the batch script waits for ranks": ('1 if variables.get("ENVIRONMENT") == "BATCH" else ', ""),
            "one port for all jobs": ('number(variables, "SLURM_JOB_ID", 0) + step', "step"),
            "torchrun is overruled": ("or any(name in variables for name in TOLD)", ""),
        },
    ),
    "engine/halving.py": (
        "test_nodes.py",
        {
            "pieces weigh as the whole": ("share = (self.end - self.first) / self.size", "share = 1.0"),
            "gradients are summed": (".div_(world.size)", ""),
            "an image is left out": ("size * piece // count for", "(size - 1) * piece // count for"),
        },
    ),
    "utils/pulse.py": (
        "test_failures.py test_nodes.py",
        {
            "silence is not measured": ("if now - self.seen[other][1] >= seconds]", "]"),
            "nobody is behind": ("if step < self.step or (", "if False and ("),
            "the first second is dark": ("            self.look()  # who", "            pass  # who"),
        },
    ),
    "tools/check/scaling.py": (
        "test_scaling.py",
        {
            "bytes of a star": ("2 * (processes - 1) / processes * summed", "2 * (processes - 1) * summed"),
            "all is hidden": ("max(0.0, sending - BACKWARD * computing)", "max(0.0, sending - 9 * computing)"),
        },
    ),
    "data/samplers.py": (
        "test_data_samplers.py test_data_loaders.py",
        {
            "one order for all epochs": ('"order", int(epoch)', '"order", 0'),
            "one order for all seeds": ("random_state(int(seed),", "random_state(0,"),
            "ranks see the same images": ("together[self.rank * self.batch_size :", "together[:"),
            "copies on one process": ("together[self.rank :: self.world_size]", "together[:: self.world_size]"),
            "copies augmented alike": ("np.arange(len(order)) % self.repeats", "0"),
            "a resumed epoch starts over": ("range(max(0, start - passed * self.per_pass), self", "range(0, self"),
            "evaluation loses an image": ("size * (rank + 1) // world_size)", "size * (rank + 1) // world_size - 1)"),
            "held-out images not drawn": (
                "random_state(*keys, int(label)).permutation(members)[:count]",
                "members[:count]",
            ),
            "remainders not held out": ("[:left]] += 1", "[:left]] += 0"),
        },
    ),
    "data/mixing.py": (
        "test_data_mixing.py",
        {
            "mixing forgets to smooth": ("share, self.smoothing)", "share, 0.0)"),
            "mixing forgets its key": ("with seeded(*key):", "with seeded(0):"),
            "a pair in two shares": ("[values, values[::-1]]", "[values, values]"),
            "targets ignore the box": (
                "box, share = self.draw_box(shape, share)",
                "box, _ = self.draw_box(shape, share)",
            ),
            "loss smooths as timm does": ("LabelSmoothingCrossEntropy(smoothing)", "LabelSmoothingCrossEntropy()"),
            "box reaches a pixel further": ("(rows < bottom)", "(rows <= bottom)"),
        },
    ),
    "models/dense.py": (
        "test_dense.py test_segmentation_weights.py",
        {
            "every map has a LayerNorm": ('getattr(body, "map_norm", nn.LayerNorm)', "nn.LayerNorm"),
            "windows of the classifier": ('arguments["dense"] = True', 'arguments["dense"] = False'),
            "the first level of a stride": ("i for i, level in enumerate(info)}", "0 for i, level in enumerate(info)}"),
            "the norm of the classifier stays": ("prune_norm=True", "prune_norm=False"),
        },
    ),
    "tasks/segmentation/heads.py": (
        "test_segmentation_model.py",
        {
            "top-down path cut": (" + resized(levels[i], levels[i - 1].shape[2:])", ""),
            "corners aligned": ("align_corners=False", "align_corners=True"),
            "auxiliary head on another map": ("level = 2", "level = 1"),
            "initial weights by fan-in": ('mode="fan_out"', 'mode="fan_in"'),
        },
    ),
    "tasks/segmentation/losses.py": (
        "test_segmentation_model.py",
        {
            "ignored pixels not in the divisor": ('self.divide_by == "all"', "False"),
            "weights not in the divisor": ("counted = counted if weights is None", "counted = counted if True"),
            "a batch without counted pixels": (".clamp(min=torch.finfo(logits.dtype).tiny)", ""),
        },
    ),
    "tasks/segmentation/inference.py": (
        "test_segmentation_model.py",
        {
            "windows leave the image": ("min(k * stride, last)", "k * stride"),
            "overlaps counted twice": ("return total / count", "return total"),
            "mirrored scores stay mirrored": ("(logits.flip(3) if flipped else logits)", "logits"),
        },
    ),
    "tasks/detection/roi_head.py": (
        "test_detection_model.py",
        {
            "objects' own boxes stay": ("[~one.true]", ""),
            "stages weigh the same": ("part + name: weight * loss", "part + name: loss"),
            "background moves as background": ("torch.where(labels == self.num_classes, ", "torch.where(labels < 0, "),
            "boxes in resized pixels": ("self.best(box / factor, score)", "self.best(box, score)"),
        },
    ),
    "tasks/detection/matching.py": (
        "test_detection_primitives.py",
        {
            "the first object has the anchor": ('"amax")', '"amin")'),
            "bad matches forced": ("(most >= low_quality)", "(most >= 0)"),
            "objects not among proposals": ("torch.cat([truth, proposals])", "torch.cat([truth + 1e4, proposals])"),
        },
    ),
    "utils/checkpoint.py": (
        "test_checkpoint.py",
        {
            "damage unseen": ("!= stored:", "== None:"),
            "step of the seal": ('sha256=" % place', 'sha256=" % place._replace(step=0)'),
            "the oldest is chosen": ("reverse=True", "reverse=False"),
            "the newest are removed": ("[:-keep]", "[keep:]"),
            "best.pth is never taken": ("if (folder / BEST).is_file():", "if False:"),
        },
    ),
    "models/shortcut.py": (
        "test_shortcut.py test_models.py",
        {
            "no GELU before the shortcut": ("to_image(F.gelu(x), grid)", "to_image(x, grid)"),
            "kernels do not add up": ("result = result + part", "result = part"),
            "class token last": ("(0, 0, prefix_tokens, 0)", "(0, 0, 0, prefix_tokens)"),
            "shortcuts from the first block": (
                "x = x_in = self.shortcuts[group].add(",
                "x = self.shortcuts[group].add(",
            ),
            "groups end a block early": ("(i + 1) % span == 0", "(i + 2) % span == 0"),
            "learned scale unused": ("else result * self.scale", "else result"),
            "never recomputed": ("again = self.use_checkpoint and self.training", "again = False"),
        },
    ),
    "data/loaders.py": (
        "test_data_loaders.py",
        {"a resumed epoch reads from its start": ("batches(epoch, start), where", "batches(epoch), where")},
    ),
    "data/datasets/arrow.py": (
        "test_data_parquet.py",
        {
            "a changed file keeps its copy": ("self.column, *self.state(file)]", "self.column]"),
            "names of the file before": ('(self.first, index, side="right")', '(self.first, index, side="left")'),
            "compressed Arrow is read into memory": ("> sum(array.nbytes for array in found) / 2", "< 0"),
        },
    ),
    "data/datasets/parquet.py": (
        "test_data_parquet.py",
        {
            "other class names are taken": ("!= class_names(first, columns[1])", "== ()"),
            "several sets are one": ("if len(folders) > 1:", "if False:"),
        },
    ),
    "data/datasets/classes.py": (
        "test_data_lists.py test_data_parquet.py",
        {
            "numbers sorted as text": ("label.isdecimal()", "False"),
            "test before validation": ('for part in ("val", "test") if', 'for part in ("test", "val") if'),
        },
    ),
    "data/datasets/arrays.py": (
        "test_data_arrays.py",
        {"pixels are not identified": ("digest.update(np.ascontiguousarray(self.pixels[index]).tobytes())", "pass")},
    ),
    "engine/train.py": (
        "test_engine.py test_tasks.py",
        {
            "accumulated losses add up": ("loss = loss / len(group)", "loss = loss / 1"),
            "gradients of the last step stay": ("zero_grad(set_to_none=True)", "zero_grad"),
            "a refused step is applied": ("elif known(finite, settings.world):", "else:"),
            "statistics of a refused step stay": ("statistics.keep_if(finite, before)", "statistics.snapshot()"),
            "gradients never clipped": ("if settings.clip_grad:", "if False:"),
            "average always at its start": (
                "update(state.model, step=state.progress.step)",
                "update(state.model, step=0)",
            ),
            "loss scale never lowered": ("state.scaler.update()", "state.scaler.get_scale()"),
            "clips scaled gradients": ("state.scaler.unscale_(state.optimizer)", "state.scaler.get_scale()"),
            "micro-batches drop the same": ('"step", *place, world.rank', '"step", place[0], world.rank'),
            "refusals in a row never end": ("self.skipped = 0", "self.skipped += 0"),
            "mean loss over twice the steps": ("self.loss_count += 1", "self.loss_count += 2"),
            "sums of the last epoch stay": ("self.loss_sum, self.loss_count, self.part", "_, _, self.part"),
            "partial losses not averaged": ("part.detach() / len(group)", "part.detach()"),
            "ranks drop the same": ('"step", *place, world.rank', '"step", *place'),
            "the last short group is lost": ("-(-batches // accumulation)", "batches // accumulation"),
            "goes on at another batch": ("start=first * accumulation", "start=first"),
            "a wish to save is forgotten": ("self.save or record.wishes.save", "False"),
            "images of one rank counted": ("images * self.settings.world.size", "images"),
        },
    ),
    "engine/sync.py": (
        "test_engine.py test_tasks.py test_main.py",
        {
            "loss summed over ranks": ("packet[: losses.numel()] /= self.world.size", "packet[: losses.numel()] /= 1"),
            "statistics summed over ranks": ("torch.div(total, self.world.size", "torch.div(total, 1"),
            "statistics of a refused step stay": ("torch.where(good, flat, before)", "flat"),
            "buffers lie anywhere": ("-(-buffer.numel() // step) * step", "buffer.numel()"),
        },
    ),
    "engine/evaluate.py": (
        "test_engine.py test_tasks.py test_main.py",
        {
            "evaluates in training mode": ("    model.eval()", "    model.train()"),
            "a missed image unseen": ("if total != loader.size:", "if False:"),
            "compiled for the last batch": ("and size == whole else", "else"),
        },
    ),
    "engine/resume.py": (
        "test_tasks.py test_resume_rules.py test_main.py test_faults.py::test_resume_with_another_number_of_ranks",
        {
            "average not restored": ('payload["ema"] or payload["model"]', 'payload["model"]'),
            "optimizer not restored": ('continue_from(state.optimizer, payload["optimizer"], path)', "pass"),
            "sums of the epoch not restored": (
                '(**payload["progress"])',
                '(**{**payload["progress"], "loss_sum": 0.0})',
            ),
            "other numbers of ranks accepted": ('if payload["world_size"] != world.size:', "if False:"),
            "the average is never evaluated": ('which = "ema" if', 'which = "model" if'),
        },
    ),
    "engine/run.py": (
        "test_engine.py test_tasks.py test_main.py test_faults.py::test_kill_and_start_again test_detection_runs.py",
        {
            "every epoch is the best": ("if self.best() is row:", "if True:"),
            "found by every epoch": ("if best is row:", "if True:"),
            "last.pth before best.pth lost": ("self._save(checkpoint.BEST)", "pass"),
            "test set with the last weights": ("load_exact(self.state.model, weights, checkpoint.BEST)", "pass"),
            "saves a step late": (
                "(self.state.progress.step + 1) % save.STEPS",
                "self.state.progress.step % save.STEPS",
            ),
        },
    ),
    "tasks/classification/__init__.py": (
        "test_engine.py test_main.py",
        {
            "second guesses count": ("[first[:, 0].sum(), first.sum()]", "[first.sum(), first.sum()]"),
            "loss of batches averaged": ('reduction="sum"', 'reduction="mean"'),
            "counts of one rank": (
                "world.sum([*self.counts.tolist(), self.seen, float(self.loss)])",
                "[*self.counts.tolist(), self.seen, float(self.loss)]",
            ),
            "all batches mix the same": ('(seed, "mix", *place)', '(seed, "mix")'),
        },
    ),
    "tasks/base.py": (
        "test_bad_inputs.py::test_other_classes_are_refused_on_resume",
        {"other classes accepted": ("if stored and stored != here:", "if False:")},
    ),
    "tools/shared/spread.py": (
        "test_table.py",
        {
            "interval of one seed more": ("LEVEL) / 2, found.n - 1)", "LEVEL) / 2, found.n)"),
            "seeds for unpaired runs": ("size * math.sqrt(n) / std", "size * math.sqrt(n / 2) / std"),
            "deviation taken as known": ("chi2.ppf(1 - CAUTION, degrees)", "chi2.ppf(0.5, degrees)"),
        },
    ),
    "tools/shared/published.py": (
        "test_published.py",
        {
            "epochs taken for passes": ('* config.get("TRAIN.PASSES_PER_EPOCH", 1)', ""),
            "fewest passes, not nearest": ("abs(math.log(ours / theirs))", "math.log(theirs / ours)"),
            "weights from before ignored": ('"start": start_of(config["MODEL.PRETRAINED"])', '"start": ""'),
        },
    ),
    "tools/shared/pareto.py": (
        "test_plot.py",
        {
            "beaten points on the front": ("if not best or sign", "if not best or True or sign"),
            "other passes not said": ("if len({row.conditions[key] for row in measured}) > 1", "if False"),
        },
    ),
}


def faulty(file, old, new):
    """The text of a file with a fault. Raises RunError unless `old` stands there once."""
    text = (ROOT / file).read_text()
    if text.count(old) != 1:
        raise RunError(f"{file}: has {text.count(old)} times {old!r}; the fault is out of date")
    return text.replace(old, new)


def failed_test(tree, tests):
    """The first of the tests (files, with a blank between them) that fails in a copy of the tree, None if all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += [f"tests/{test}" for test in tests.split()]
    # No module from a cache: a fault may leave size and second of its file as they were.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else f"pytest, which ended with {done.returncode}"


def run(argv):
    """Put the faults in; 1 if one survives."""
    table = {name: (file, *fault, tests) for file, (tests, faults) in FAULTS.items() for name, fault in faults.items()}
    arguments = parser("mutants", __doc__, package="tests")
    arguments.add_argument("names", nargs="*", metavar="NAME", help=f"of: {'; '.join(table)}")
    names = arguments.parse_args(argv).names or list(table)
    for name in names:
        if name not in table:
            raise ConfigError(f"{name}: is none of {listing(table)}{nearest(name, table)}")
    texts = {name: faulty(*table[name][:3]) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
        if found := failed_test(tree, " ".join(dict.fromkeys(table[name][-1] for name in names))):
            raise RunError(f"{found} fails without any fault")
        survivors = 0
        for name in names:
            file, *_, tests = table[name]
            (tree / file).write_text(texts[name])
            found = failed_test(tree, tests)
            shutil.copyfile(ROOT / file, tree / file)
            survivors += found is None
            print(f"{name}: {f'caught by {found}' if found else 'SURVIVED'}", flush=True)
    print(f"{survivors} of {len(names)} survived")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(exit_code(run))
