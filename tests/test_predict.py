"""What is said of pictures, whatever their names are; and trained networks that teach, or that a run begins as."""

import csv
import functools
import io
import json
import os
import shutil
import types
import warnings
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from cutnmix_jax import data, main, own_code, predict, stack, training
from cutnmix_jax.engine import assemble
from cutnmix_jax.errors import UsageError
from cutnmix_jax.settings import command_line
from cutnmix_jax.student import exported, start
from tests.runs import leaves
from tests.test_evaluation import data_set
from tests.test_exports import drawn
from tests.test_formats import described
from tests.test_student import CHOSEN, DIGITS, SMALL, own, peer_says, saved_in, trained_in

pytestmark = pytest.mark.usefixtures("programs_kept")

TINY = "--config.backbone.name=tests.tiny:Tiny"


class Flat(nn.Module):
    """A network whose weights have another shape for images of another size."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes)(images.reshape(images.shape[0], -1))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_in(tmp_path_factory.mktemp("run") / "run", "dml", ":Tiny", *CHOSEN)


@pytest.fixture(scope="module")
def taken(run, tmp_path_factory):
    """An export of its peer 0."""
    folder = tmp_path_factory.mktemp("exports") / "taken"
    exported.write(own(run, peer=0), folder)
    return folder


@pytest.fixture(scope="module")
def shares(run):
    """The probabilities of the digits, by numpy."""
    logits = peer_says(saved_in(run), DIGITS, 0)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def pictures(folder, names, first=0):
    """Writes digits under some names; returns the paths in this order."""
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:  # noqa: PTH123 - a name of any bytes
            Image.fromarray(DIGITS[first + i]).save(file, "PNG")
    return [os.fsdecode(os.fsencode(folder) + b"/" + name) for name in names]


def said(capfd, *arguments, code=0):
    """The lines of stdout as text, and of stderr."""
    capfd.readouterr()
    assert predict.main([*map(str, arguments)]) == code
    assert not any("PIL" in str(one) for one in warnings.filters)  # of whoever calls it
    streams = capfd.readouterr()
    return streams.out, streams.err.splitlines()


def test_text_json_csv_and_a_sheet(taken, shares, tmp_path, capfd):
    paths = pictures(tmp_path, [b"2.png", b"0.png", b"1.png"])
    orders = [np.argsort(-share) for share in shares[:3]]
    text, _ = said(capfd, taken, *paths)
    for line, path, order, share in zip(text.splitlines(), paths, orders, shares[:3], strict=True):
        assert line == f"{path}: " + ", ".join(f"{k} {100 * share[k]:.1f} %" for k in order[:3])
    text, _ = said(capfd, taken, *paths, "--json", "--top=10")
    for line, path, order, share in zip(map(json.loads, text.splitlines()), paths, orders, shares[:3], strict=True):
        assert (line["file"], line["class"]) == (path, str(order[0]))
        assert line["probabilities"] == pytest.approx({str(k): share[k] for k in range(10)}, rel=1e-5)
        assert list(line["probabilities"]) == [str(k) for k in order]
    for top in (1, 99):
        text, _ = said(capfd, taken, *paths, "--csv", f"--top={top}", f"--sheet={tmp_path / 'sheet.png'}")
        header, *rows = csv.reader(io.StringIO(text))
        assert header[:3] == ["file", "class_1", "probability_1"]
        for row, path, order, share in zip(rows, paths, orders, shares[:3], strict=True):
            best = order[:top]
            assert len(row) == len(header) == 1 + 2 * len(best) and row[0] == path
            assert row[1::2] == [str(k) for k in best]
            np.testing.assert_allclose([float(cell) for cell in row[2::2]], share[best], rtol=1e-5)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
    nowhere = f"--sheet={tmp_path / 'no' / 'sheet.png'}"
    for wrong in (["--top=0"], ["--top=-1"], ["--top=x"], [nowhere], ["nowhere.png"], ["--json", "--csv"]):
        assert len(said(capfd, taken, *paths, *wrong, code=2)[1]) == 1


def test_pictures_of_another_size_become_what_the_data_set_has_made_of_its_own(taken, shares, tmp_path, capfd):
    """The digits were scanned as 8x8, and each of their pixels is 4x4 of ours: nothing is smoothed."""
    paths = []
    for i in range(5):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(DIGITS[i, ::4, ::4]).save(paths[-1])
    text, _ = said(capfd, taken, *paths, "--json", "--top=10")
    for line, share in zip(map(json.loads, text.splitlines()), shares[:5], strict=True):
        assert line["probabilities"] == pytest.approx({str(k): share[k] for k in range(10)}, rel=1e-5)


def test_pictures_get_the_height_and_the_width_of_a_student_that_sees_no_squares(tmp_path):
    path, seen = tmp_path / "wide.png", []
    picture = np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    Image.fromarray(picture).save(path)

    def predicts(images):
        seen.append(images)
        return types.SimpleNamespace(probabilities=np.array([[0.2, 0.8]]))

    about = types.SimpleNamespace(image_shape=(10, 16, 3), resampling="nearest")
    student = types.SimpleNamespace(description=about, class_names=("a", "b"), predict=predicts)
    [answer] = predict.answers(student, [path], 1)
    np.testing.assert_array_equal(seen[0], picture[None, :, 2:18])  # cut in the middle
    assert answer.classes == [("b", 0.8)]


def test_bad_files_are_a_line_each_and_the_rest_goes_on(taken, shares, tmp_path, capfd):
    one, other = tmp_path / "one", tmp_path / "other"
    paths = pictures(one, [b"a.png", b"c.png", b"e.png"]) + pictures(other, [b"a.png"], first=3)
    bad = [one / "b.png", one / "d.jpg", one / "f.gif", other / "b.png"]
    for path, content in zip(bad, (b"", b"\xff\xd8\xff", b"GIF89a", Path(paths[0]).read_bytes()[:60]), strict=True):
        path.write_bytes(content)
    (one / "notes.txt").write_text("no picture, and not looked at")
    text, errors = said(capfd, taken, one, other, one / "a.png", "--json", code=3)
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["file"] for line in lines] == [*paths, paths[0]]
    assert [line["class"] for line in lines] == [str(share.argmax()) for share in [*shares[:4], shares[0]]]
    *each, last = errors
    assert last == "error: 4 of 9 pictures cannot be read"
    assert all(error.startswith(f"error: {path}: ") for error, path in zip(each, bad, strict=True))
    sheet = tmp_path / "sheet.png"
    text, errors = said(capfd, taken, *bad, f"--sheet={sheet}", code=3)
    assert not text and errors[-1] == "error: 4 of 4 pictures cannot be read" and not sheet.exists()
    (tmp_path / "empty").mkdir()
    assert len(said(capfd, taken, tmp_path / "empty", code=2)[1]) == 1


def test_names_of_any_bytes(taken, tmp_path, capfd):
    """A line each in text, a record each in CSV and in JSON, in which a name with a new line is as it is."""
    names = [b"a\nb.png", b'c,"d".png', b"\xff\xfe.png", "ä 1.png".encode(), b"\x1b[2Jx.png", b"-z.png", b"{x}.png"]
    paths = pictures(tmp_path / "any", names)
    text, errors = said(capfd, taken, *paths, f"--sheet={tmp_path / 'sheet.png'}")
    assert len(text.splitlines()) == len(names) and not errors and "\x1b" not in text and "ä 1.png: " in text
    written = [path.encode("utf-8", "backslashreplace").decode() for path in paths]
    text, _ = said(capfd, taken, *paths, "--json")
    assert [json.loads(line)["file"] for line in text.splitlines()] == written
    text, _ = said(capfd, taken, *paths, "--csv")
    assert [row[0] for row in csv.reader(io.StringIO(text, newline=""))] == ["file", *written]
    (tmp_path / "any" / "x\ny.png").write_bytes(b"")
    assert len(said(capfd, taken, tmp_path / "any", code=3)[1]) == 2


def test_more_pictures_than_are_shown_at_once(taken, shares, tmp_path, capfd):
    """With some in between that cannot be read."""
    names = [f"{i:03}.png".encode() for i in range(290)]
    pictures(tmp_path / "many", names)
    for i in (0, 100, 256, 289):
        (tmp_path / "many" / f"{i:03}.png").write_bytes(b"")
    text, errors = said(capfd, taken, tmp_path / "many", "--csv", "--top=1", code=3)
    rows = list(csv.reader(io.StringIO(text)))[1:]
    left = [i for i in range(290) if i not in (0, 100, 256, 289)]
    assert [Path(row[0]).name for row in rows] == [f"{i:03}.png" for i in left] and len(errors) == 5
    np.testing.assert_allclose([float(row[2]) for row in rows], shares[left].max(axis=1), rtol=1e-5)


# Teachers.


def taught(folder, teacher, *flags):
    trained_in(folder, "kd", ":Tiny", "--config.epochs=1", f"--config.teacher={teacher}", *flags)
    return json.loads((folder / "results.json").read_text())


def test_an_export_teaches_as_its_run_does(run, taken, tmp_path, monkeypatch, capsys):
    results = [taught(tmp_path / str(i), teacher) for i, teacher in enumerate((run, taken))]
    for name in ("weights_sha256", "teacher_sha256", "last"):
        assert results[0][name] == results[1][name]
    exported.write(own(run, ensemble=True), tmp_path / "both")
    asked, load = [], own_code.named
    monkeypatch.setattr(own_code, "named", lambda what, name: (asked.append(name), load(what, name))[1])
    of_its_kind = "--config.backbone.name=resnet8"
    for teacher, flags, says in (
        (tmp_path / "both", [TINY], "ensemble of 2"),
        (taken, [of_its_kind], "students of its"),
        (taken, [TINY, "--config.teacher_which=best"], "is an export, which is of one epoch; leave it out"),
    ):
        command = ["--config=configs/quickstart.py:digits,kd", *flags, *SMALL, f"--config.teacher={teacher}"]
        capsys.readouterr()
        assert main.main([*command, f"--workdir={tmp_path / 'never'}"]) == 2
        [error] = capsys.readouterr().err.splitlines()
        assert says in error and not (tmp_path / "never").exists()
    assert "tests.tiny:Tiny" not in asked  # nothing was run because a folder names it


def test_the_best_epoch_teaches(run, tmp_path):
    """A student that has ended needs it no more."""
    teacher = shutil.copytree(run, tmp_path / "teacher")
    exported.write(own(run, which="best", peer=0), tmp_path / "best")
    best = "--config.teacher_which=best"
    results = [taught(tmp_path / "0", teacher, best), taught(tmp_path / "1", tmp_path / "best")]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    assert results[0]["teacher_sha256"] != json.loads((run / "results.json").read_text())["weights_sha256"]
    shutil.rmtree(teacher / "checkpoints" / str(json.loads((run / "results.json").read_text())["best"]["step"]))
    assert taught(tmp_path / "0", teacher, best) == results[0]
    with pytest.raises(AssertionError):  # a new one does
        taught(tmp_path / "2", teacher, best)


# What a run begins as.


def begun(row, source, *flags):
    """The first state of a run, and the one of the same run that begins at random."""
    states = []
    for more in ([f"--config.init_from={source}"], []):
        settings = command_line.from_flags(f"configs/quickstart.py:{row}", [TINY, *SMALL, *flags, *more])
        dataset = data.load(settings.dataset, None, 64, 30)
        networks = training.plan(settings)
        load = functools.partial(start.load, settings, dataset, networks.backbones)
        states.append(assemble.engine(settings, dataset, networks, load_start=load if more else None).init().state)
    return jax.device_get(states)


def assert_are(tree, arrays, prefix):
    """All leaves are those arrays of a state."""
    for name, leaf in leaves(tree).items():
        name = prefix + name.replace("']['", ".").replace("['", ".").replace("']", "")
        np.testing.assert_array_equal(leaf, arrays[name], err_msg=name)


@pytest.mark.parametrize("mapping", ["unroll", "vmap"])
def test_peers_begin_as_other_networks(mapping, run, taken):
    """As one export all of them, as a run each as the one of its number; and what follows from them likewise."""
    arrays = saved_in(run)
    for source, first in ((run, 1), (taken, 0)):
        flags = f"--config.mapping={mapping}", "--config.average=0.9", "--config.share_trunk=false"
        state, random = begun("digits,pcl", source, *flags, "--config.num_peers=2")
        for j, of in ((0, 0), (1, first)):
            for part, found in (("params.peers", state.params["peers"]), ("batch_stats", state.batch_stats)):
                assert_are(stack.apart(found)[j], arrays, f"state.{part}.{of}")
            for kind in ("mean", "average"):
                own_params = stack.apart(state.teachers[kind]["params"])[j]
                assert_are(own_params, arrays, f"state.params.peers.{of}")
        for name, leaf in leaves(state.opt_state).items():
            np.testing.assert_array_equal(leaf, leaves(random.opt_state)[name])


def test_branches_begin_as_one_network(run, taken):
    """Of several a branch would be the tail of one on the trunk of another."""
    with pytest.raises(UsageError, match="its networks 0 and 1 have trunks of their own"):
        begun("digits,one", run)
    arrays = saved_in(run)
    state, _ = begun("digits,pcl", taken)
    assert [set(tree) for tree in state.params["peers"]][1:] == [{"Dense_0"}] * 2
    for tree in state.params["peers"]:
        assert_are(tree, arrays, "state.params.peers.0")


def test_the_head_begins_at_random_for_other_classes(run, taken, tmp_path, monkeypatch):
    arrays = saved_in(run)
    data_set("letters", tmp_path / "data", monkeypatch, tuple("abcdefghij"))
    state, random = begun("letters,dml", taken)
    for j in (0, 1):
        found = dict(state.params["peers"][j])
        np.testing.assert_equal(found.pop("Dense_0"), random.params["peers"][j]["Dense_0"])
        assert_are(found, arrays, "state.params.peers.0")


@pytest.mark.parametrize(("name", "size"), [("resnet18_imagenet", 224), ("vgg16", 64), ("resnet8", 32)])
def test_the_head_is_what_the_number_of_classes_decides(name, size):
    found = start.head_of(described(name, image_shape=(size, size, 3)), 0)
    assert {array.rpartition(".")[2] for array in found} == {"kernel", "bias"} and len(found) == 2


@pytest.mark.parametrize(("precision", "has_halves"), [("float32", False), ("bfloat16", True)])
def test_a_student_computes_in_the_precision_of_its_run(precision, has_halves):
    """Its outputs are float32 all the same, and were taken for those of the run."""
    [network] = described("resnet8", precision=precision).make()
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    variables = jax.eval_shape(network.init, jax.eval_shape(jax.random.key, 0))
    traced = jax.make_jaxpr(lambda variables, images: network.apply(variables, images, False)[0])(variables, images)
    assert ("bf16[2,32,32,16]" in str(traced)) == has_halves


def test_what_no_run_begins_as(run, taken, tmp_path, monkeypatch, capsys):
    """Before its folder is made; a run that has begun does not look there again."""
    exported.write(drawn(exported.read_description(taken), f"{__name__}:Flat"), tmp_path / "flat")
    data_set("small", tmp_path / "data", monkeypatch, size=16)
    with pytest.raises(UsageError, match="its images have another size"):
        begun("small,dml", tmp_path / "flat", f"--config.backbone.name={__name__}:Flat")
    cases = {run: "--config.num_peers=3", taken: "--config.backbone.name=tests.tiny:wide"}
    cases |= dict.fromkeys((tmp_path / "nowhere", tmp_path, ""), TINY)
    command = ["--config=configs/quickstart.py:digits,dml", TINY, *SMALL]
    for source, flag in cases.items():
        capsys.readouterr()
        arguments = [*command, flag, f"--config.init_from={source}", f"--workdir={tmp_path / 'never'}"]
        assert main.main(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "never").exists()
    moved = shutil.copytree(taken, tmp_path / "moved")
    command += [f"--config.init_from={moved}", f"--workdir={tmp_path / 'run'}", "--config.views=per_peer"]
    assert main.main([*command, "--config.epochs=1"]) == 0
    shutil.rmtree(moved)
    assert main.main([*command, "--config.epochs=2", "--extend"]) == 0
    assert main.main([*command, "--config.epochs=2"]) == 0
