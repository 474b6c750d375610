"""The table of `make demo`, by hand."""

from tests.run_folders import write_run
from tools.demo import table
from tools.shared.runs import parse_groups


def test_table(tmp_path):
    for seed, accuracies in enumerate(([10.0, 50.0, 40.0], [20.0, 30.0, 50.0])):
        write_run(tmp_path, "vit", seed, accuracies)
    groups = parse_groups([f"ViT={tmp_path / 'vit'}", f"one={tmp_path / 'vit' / 'seed0'}"])
    assert table(groups).splitlines()[2:] == [
        "| ViT | 45.00 ± 7.07 % (2) | 180/400 | 1,234 | 9 s a run |",
        "| one | 40.00 % (1) | 80/200 | 1,234 | 9 s a run |",
    ]
