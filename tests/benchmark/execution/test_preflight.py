"""What a suite, its interpreters' options and the output folder say is checked before anything is computed."""

from dataclasses import replace
from pathlib import Path

import pytest

from attacks.errors import UserError
from benchmark import datasets, models, sections, suite
from benchmark.execution import compute
from benchmark.execution.preflight import check, check_normalisation
from benchmark.run import Run, create_interpreter
from benchmark.store import writable


def smoke(tmp_path, *edits) -> sections.Suite:
    text = (suite.HERE / "smoke.toml").read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    (tmp_path / "mine.toml").write_text(text)
    return suite.load(tmp_path / "mine.toml")


SIZE = "train = 64"
OPTION = "interpreters.smooth_grad = { samples = 2 }"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (SIZE, "train = 100000000000000000000", r"dataset\.train: .*less than or equal to 2147483647 \(got 1000"),
        (SIZE, f"train = 1{'0' * 5000}", r"mine\.toml is not TOML: "),
        ("input_size = 32", "input_size = 1000000", r"dataset\.input_size: .*less than or equal to 4096"),
        (
            "input_size = 32",
            "input_size = 33",
            r"input_size must be a multiple of 16.*'compact_vgg' \(got 33; nearest: 32",
        ),
        (
            OPTION,
            "interpreters.smooth_grad = { samples = -2 }",
            r"samples of smooth_grad must be 1\.\.2147483647 \(got -2\)",
        ),
        (
            OPTION,
            "interpreters.smooth_grad = { samples = true }",
            r"interpreters\.smooth_grad\.samples: .*\(got True\)",
        ),
        (OPTION, "interpreters.smooth_grad = { samples = '2' }", r"interpreters\.smooth_grad\.samples: .*\(got '2'\)"),
        (
            OPTION,
            "interpreters.smooth_grad = { sigma = inf }",
            r"sigma of smooth_grad must be finite, at least 0 \(got inf\)",
        ),
        (
            OPTION,
            "interpreters.smooth_grad = { sigma = nan }",
            r"sigma of smooth_grad must be finite, at least 0 \(got nan\)",
        ),
        (OPTION, "interpreters.integrated_gradients = { steps = 0 }", r"steps of integrated_gradients must be 1\.\."),
        (OPTION, "interpreters.random = { seed = -1 }", r"seed of random must be 0\.\."),
        ('name = "smoke"', 'nam = "smoke"', r"unknown key of suite .*'nam': did you mean 'name'\?"),
        (
            OPTION,
            "interpreters.smooth_grad = { samples = 2_000_000 }",
            r"samples: must be at most 1000000 \(got 2000000\)",
        ),
        (OPTION, "interpreters.lrp = { name = 'x' }", r"unknown option of lrp 'name': allowed: "),
        (OPTION, "interpreters.grad_cam = { layer = '' }", r"interpreters\.grad_cam\.layer: must not be empty"),
        (OPTION, "interpreters.aggregate = { members = ['lrpp'] }", r"unknown interpreter 'lrpp': did you mean 'lrp'"),
        (OPTION, "interpreters.aggregate = { members = [3] }", r"aggregate\.members\.0: .*string \(got 3\)"),
        (OPTION, "interpreters.adversarial_explanation = { rho = 1e308 }", r"rho of .* must be finite"),
        (OPTION, "interpreters.lrp = { composite = 'none' }", r"unknown composite 'none'"),
        ("steps = 3", "steps = '3'", r"recipes\.0\.steps: .*integer \(got '3'\)"),
        ("steps = 3", "steps = 3.0", r"recipes\.0\.steps: .*integer \(got 3\.0\)"),
        ("steps = 3", "steps = true", r"recipes\.0\.steps: .*integer \(got True\)"),
        ("steps = 3", "steps = 1_000_000_000", r"recipes\.0\.steps: .*less than or equal to 100000000"),
        ("lambda = 1.0", "lambda = '1'", r"recipes\.0\.lambda: .*number \(got '1'\)"),
        ("lambda = 1.0", "lambda = 1e10", r"recipes\.0\.lambda: .*less than or equal to 1000000000"),
        ("batch_size = 8", "batch_size = 100_000", r"recipes\.0\.batch_size: .*less than or equal to 65536"),
        ("epochs = 1", "epochs = 1_000_000", r"models\.compact_vgg\.epochs: .*less than or equal to 100000"),
        ("epochs = 1", "learning_rate = 2e3", r"models\.compact_vgg\.learning_rate: .*less than or equal to 1000"),
        ("epochs = 1", "adversary = { epsilon = 8 }", r"adversary\.epsilon: .*less than or equal to 1 \(got 8"),
        (SIZE, "train = 64\naugment = 1", r"dataset\.augment: .*boolean \(got 1\)"),
        (SIZE, "train = 64\nclass_pair = [1, '2']", r"dataset\.class_pair\.1: .*integer \(got '2'\)"),
        ('name = "smoke"', 'name = "/../../../escaped"', r"suite .*name: .*pattern.*\(got '/\.\./\.\./\.\./escaped'\)"),
        ('name = "smoke"', 'name = ".hidden"', r"name: .*pattern.*\(got '\.hidden'\)"),
        ('name = "smoke"', "name = 'a\\b'", r"name: .*pattern"),
        ('name = "smoke"', 'name = "a\\n"', r"name: .*pattern"),
        ('name = "shapes"', 'name = "../shapes"', r"unknown dataset '\.\./shapes'"),
        ('evaluated = ["grad_cam"', 'evaluated = ["../lrp"', r"unknown interpreter '\.\./lrp'"),
        ("models.compact_vgg = {", 'models."../m" = { architecture = "compact_vgg",', r"models\.\.\./m.*pattern"),
        ('name = "smoke"', 'name = "../up"', r"name: .*pattern.*\(got '\.\./up'\)"),
        ("models.compact_vgg = {", 'models."_a$b" = { architecture = "compact_vgg",', r"models\._a\$b"),
    ],
)
def test_what_a_suite_says_is_checked_when_it_is_loaded(tmp_path, old, new, message):
    with pytest.raises(UserError, match=message) as caught:
        smoke(tmp_path, (old, new))
    assert "\n" not in str(caught.value)


def test_whole_numbers_are_numbers_and_lists_are_pairs_and_members(tmp_path):
    option = "interpreters.aggregate = { members = ['lrp', 'grad_cam'] }"
    edits = [("lambda = 1.0", "lambda = 1"), (SIZE, "train = 64\nclass_pair = [1, 2]"), (OPTION, option)]
    loaded = smoke(tmp_path, *edits)
    assert loaded.recipes == suite.load("smoke").recipes
    assert loaded.dataset.class_pair == (1, 2)
    made = create_interpreter(Run(loaded, ""), "aggregate")
    assert [part.name for part in made.parts] == ["lrp", "grad_cam"]


def test_a_packages_name_that_is_no_files_is_refused_when_the_suite_is_read(tmp_path, monkeypatch):
    from benchmark import interpreters

    monkeypatch.setitem(interpreters.INTERPRETERS, "../lrp", interpreters.INTERPRETERS["lrp"])
    with pytest.raises(UserError, match=r"an interpreter's name must be letters, .* \(got '\.\./lrp'\)"):
        smoke(tmp_path, ('evaluated = ["grad_cam"', 'evaluated = ["../lrp"'))


@pytest.mark.parametrize("prefix", [b"\xef\xbb\xbf", b"# \xc3\xa9\r\n"], ids=["mark", "accent"])
def test_a_suite_is_utf8_with_or_without_a_mark_in_any_locale(tmp_path, monkeypatch, prefix):
    import locale

    monkeypatch.setattr(locale, "getpreferredencoding", lambda *_: "ascii")
    text = (suite.HERE / "smoke.toml").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "mine.toml").write_bytes(prefix + text)
    assert suite.load(tmp_path / "mine.toml") == suite.load("smoke")


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            [(OPTION, 'interpreters.grad_cam = { layer = "features.99" }')],
            r"interpreters\.grad_cam, on model compact_vgg: unknown layer .features\.99.: did you mean",
        ),
        (
            [("models.compact_vgg", "models.vgg11"), ("input_size = 32", "input_size = 16")],
            r"models\.vgg11: vgg11 takes no images of 16 × 16: ",
        ),
    ],
)
def test_what_a_model_cannot_do_is_found_before_the_first_unit(tmp_path, edits, message):
    run = Run(smoke(tmp_path, *edits), str(tmp_path / "store"))
    with pytest.raises(UserError, match=message):
        check(run)
    with pytest.raises(UserError, match=message):
        compute.run_suite(run, tmp_path / "out", jobs=1)
    assert not list((tmp_path / "store").glob("*/*/receipt.json"))


def test_cells_finer_than_the_images(tmp_path):
    given = smoke(
        tmp_path,
        (OPTION, "interpreters.occlusion = { cells = 40 }"),
        ('evaluated = ["grad_cam"', 'evaluated = ["occlusion"'),
    )
    with pytest.raises(
        UserError, match=r"interpreters\.occlusion: cells must be at most the images' side, 32 \(got 40\)"
    ):
        check(Run(given, str(tmp_path / "store")))


def test_an_out_that_is_a_file_is_found_before_the_store_is_made(finished, tmp_path):
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "folder"):
        (tmp_path / "file").touch()
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / "results").touch()
        with pytest.raises(UserError, match=r"cannot write into .*: .*(file|results) is a file"):
            compute.run_suite(replace(finished.run, store=str(tmp_path / "store")), out, jobs=1)
        assert not (tmp_path / "store").exists()


def test_what_can_be_made_is_writable_and_is_not_made(tmp_path, monkeypatch):
    writable(tmp_path / "a" / "b", "results")
    assert not (tmp_path / "a").exists()
    monkeypatch.chdir(tmp_path)
    writable(Path("a"))
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    with pytest.raises(UserError, match="link is a broken link"):
        writable(tmp_path / "link" / "a")


def test_more_images_than_the_memory_holds(tmp_path):
    with pytest.raises(
        UserError, match=r"dataset 'shapes': 2000000000 images of 4096 × 4096 need .* GiB, this machine has"
    ):
        datasets.create("shapes", size=2_000_000_000, input_size=4096)


def test_weights_that_want_another_normalisation_than_the_data_are_refused(tmp_path):
    """The two of torchvision's that do; on the normalisation of ImageNet and of its other weights nothing is said."""
    data = datasets.create("shapes", "dev", 0, size=4)
    data.mean, data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    with pytest.raises(
        UserError, match=r"models\.mine: weights 'IMAGENET1K_V1' want images of mean \[0\.5, 0\.5, 0\.5\]"
    ):
        check_normalisation("mine", "efficientnet_v2_l", "IMAGENET1K_V1", data)
    for architecture in ("resnet50", "inception_v3", "vit_h_14"):
        for weights in models.zoo.get_model_weights(architecture).__members__:
            check_normalisation("mine", architecture, weights, data)
    check_normalisation("mine", "efficientnet_v2_l", "some/checkpoint.pth", data)
    check_normalisation("mine", "compact_vit", None, data)


def test_a_transformer_is_made_for_the_size_of_the_data(tmp_path):
    check(Run(smoke(tmp_path, ("models.compact_vgg", "models.compact_vit")), str(tmp_path), None, "cpu"))
