"""tools.features and its probes, against one image at a time, a loop in NumPy, and scikit-learn itself."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression

from data.samplers import stratified_split
from tests.trained import folder_run
from tools import features
from tools.shared.trained import load_model
from utils.errors import DataError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return folder_run(tmp_path_factory.mktemp("features"))


def slowly(run, files):
    """(N, D): the input of the last layer, caught there, one image after the other."""
    loaded = load_model(run / "checkpoints" / "best.pth", "cpu")
    caught = []
    loaded.model.head.register_forward_hook(lambda module, inputs, output: caught.append(inputs[0][0]))
    for file in files:
        with Image.open(file) as image, torch.no_grad():
            loaded.model(loaded.transform(image.convert("RGB"))[None])
    return torch.stack(caught).numpy()


def test_embeddings_of_a_folder(trained, tmp_path, capsys):
    run, data = trained
    files = [*sorted((data / "val").rglob("*.png")), tmp_path / "other.png"]
    Image.open(files[5]).save(files[-1])
    result = tmp_path / "embeddings.npz"
    arguments = [run, data / "val", files[-1], "--output", result, "--batch-size", 5, "--device", "cpu"]
    assert features.main(list(map(str, arguments))) == 0
    with np.load(result) as found:  # without pickles
        assert found["names"].tolist() == list(map(str, files))
        assert found["labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [-1]
        assert found["class_names"].tolist() == ["ant", "bee", "cat"]
        assert found["features"].dtype == np.float32
        np.testing.assert_allclose(found["features"], slowly(run, files), atol=1e-5)
    assert "12 of 13 images have a label" in capsys.readouterr().err


def test_parts_of_the_dataset_as_safetensors(trained, tmp_path):
    run, data = trained
    result = tmp_path / "embeddings.safetensors"
    arguments = [run, "--part", "val", "train", "--data-path", data, "--output", result, "--device", "cpu"]
    assert features.main(list(map(str, arguments))) == 0
    files = [*sorted((data / "val").rglob("*.png")), *sorted((data / "train").rglob("*.png"))]
    with safe_open(result, "np") as found:
        assert json.loads(found.metadata()["names"]) == list(map(str, files))
        assert json.loads(found.metadata()["class_names"]) == ["ant", "bee", "cat"]
        assert found.get_tensor("labels").tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2] * 2
        np.testing.assert_allclose(found.get_tensor("features"), slowly(run, files), atol=1e-5)


def blobs(count, seed, classes=4, width=6):
    """Overlapping Gaussians, so that no probe is perfect."""
    generator = np.random.RandomState(seed)
    centres = np.random.RandomState(0).normal(size=(classes, width))
    labels = np.arange(count) % classes
    values = centres[labels] + generator.normal(scale=0.8, size=(count, width))
    return torch.tensor(values * 10 ** np.arange(width), dtype=torch.float32), torch.from_numpy(labels)


def test_knn_votes_as_a_slow_loop():
    (train, labels), (held, truth) = blobs(200, 1), blobs(60, 2)
    train, held = train / 10 ** torch.arange(6), held / 10 ** torch.arange(6)
    found, how = features.knn(train, labels, held)
    expected = []
    for row in held.double().numpy():
        near = [(row @ other / np.linalg.norm(row) / np.linalg.norm(other), i) for i, other in enumerate(train.numpy())]
        votes = np.zeros(4)
        for similarity, i in sorted(near, reverse=True)[:20]:
            votes[labels[i]] += np.exp(similarity / 0.07)
        expected.append(votes.argmax())
    assert found.tolist() == expected
    assert 0.5 < (found == truth).float().mean() < 1
    assert how == "20 neighbours, temperature 0.07"


def test_knn_with_fewer_images_than_neighbours():
    train, labels = blobs(7, 1)
    found, how = features.knn(train, labels, train)
    assert len(found) == 7
    assert how.startswith("7 neighbours")


def test_linear_probe_is_scikit_learn_with_the_best_c():
    (train, labels), (held, truth) = blobs(200, 1), blobs(60, 2)
    kept, apart = stratified_split(labels.numpy(), 0.2, "probe")

    def predict(rows, c, wanted):
        mean, std = train[rows].double().mean(0), train[rows].double().std(0, unbiased=False)
        model = LogisticRegression(C=c, max_iter=1000)
        model.fit(((train[rows] - mean) / std).numpy(), labels[rows])
        return model.predict(((wanted - mean) / std).numpy())

    rights = [int((predict(kept, c, train[apart]) == labels[apart].numpy()).sum()) for c in features.STRENGTHS]
    best = features.STRENGTHS[rights.index(max(rights))]
    found, how = features.linear(train, labels, held)
    assert found.tolist() == predict(np.arange(200), best, held).tolist()
    assert how == f"C {best:g} chosen with {max(rights)}/40 of them held out"
    assert (found == truth).float().mean() > 0.6
    assert features.linear(train, labels, held)[0].equal(found)


def test_a_class_of_one_image_is_trained_on():
    labels = np.array([0, 1, 0, 0, 2, 1, 1, 0])
    kept, held = features.held_out(labels)
    assert sorted([*kept, *held]) == list(range(8))
    assert 4 in kept
    assert set(labels[held]) == {0, 1}
    with pytest.raises(DataError, match="one training image"):
        features.held_out(np.arange(3))


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_probe_counts_on_the_validation_images(trained, tmp_path, capsys, kind):
    run, data = trained
    parts = {}
    for part in ("train", "val"):
        arguments = [run, "--part", part, "--data-path", data, "--output", tmp_path / f"{part}.npz", "--device", "cpu"]
        assert features.main(list(map(str, arguments))) == 0
        with np.load(tmp_path / f"{part}.npz") as found:
            parts[part] = torch.from_numpy(found["features"]), torch.from_numpy(found["labels"])
    predicted, _ = features.PROBES[kind](*parts["train"], parts["val"][0])
    right = int((predicted == parts["val"][1]).sum())
    capsys.readouterr()
    assert features.main([str(run), "--probe", kind, "--data-path", str(data), "--device", "cpu"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"tiny/default, imagefolder: {kind} probe on val: {100 * right / 12:.2f} % ({right}/12)"
    assert second.startswith("12 training images, 16 features, ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a.png"], 64, "--output: missing"),
        (["a.png", "--output", "x.csv"], 64, "must end in .npz or .safetensors"),
        (["--probe", "knn", "--output", "x.npz"], 64, "writes no file"),
        (["--probe", "forest"], 64, "invalid choice: 'forest'"),
        (["--probe", "knn", "--on", "test"], 64, "the run has no test images"),
        (["--probe", "knn", "--data-path", "no/such"], 66, "no/such: not found"),
    ],
)
def test_mistakes_are_one_line(trained, capsys, arguments, code, message):
    assert features.main([str(trained[0]), *arguments]) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error[")]
    assert len(errors) == 1
    assert message in errors[0]
