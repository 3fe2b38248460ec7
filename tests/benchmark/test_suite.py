"""Suites: every packaged one loads; an impossible value is answered with its key and what is allowed."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from attacks import Recipe
from attacks.errors import UserError
from benchmark import interpreters, sections, suite
from benchmark.cells import plan

SMOKE = """
name = "smoke"
foolings = ["location", "active"]
attacked = ["grad_cam", "lrp_t"]
evaluated = ["grad_cam", "lrp", "lrp_t", "smooth_grad"]
recipes = [{ learning_rate = 1e-3, lambda = 1.0, steps = 3, batch_size = 8 }]

[dataset]
name = "shapes"
input_size = 32
train = 64
dev = 16
test = 24
pairs_train = 16
pairs_dev = 8
pairs_test = 16

[models.compact_vgg]
epochs = 1

[interpreters.smooth_grad]
samples = 2

[scoring]
batch_size = 10
aopc_images = 12
aopc_cells = 3
"""


def load(folder: Path, *changes: tuple[str, str]) -> sections.Suite:
    """The suite above with parts of its text replaced."""
    text = SMOKE
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    path = folder / "changed.toml"
    path.write_text(text)
    return suite.load(path)


@pytest.mark.parametrize("name", suite.names())
def test_every_packaged_suite_loads_and_has_a_recipe_for_each_manipulation(name: str):
    loaded = suite.load(name)
    assert loaded.name == name
    cells = plan(loaded)
    assert len(cells) == len(loaded.models) * len(loaded.foolings) * len(loaded.attacked) * len(loaded.seeds)
    for cell in cells:
        recipe = loaded.search or loaded.recipe(cell.model, cell.fooling, cell.attacked)
        assert loaded.search or isinstance(recipe, Recipe)


def test_the_plan_lists_each_manipulation_once_in_order(tmp_path):
    cells = plan(load(tmp_path, ('name = "smoke"', 'name = "smoke"\nseeds = [0, 7]')))
    found = [(cell.model, cell.fooling, cell.attacked, cell.seed) for cell in cells]
    vgg = "compact_vgg"
    assert found[:3] == [
        (vgg, "location", "grad_cam", 0),
        (vgg, "location", "grad_cam", 7),
        (vgg, "location", "lrp_t", 0),
    ]
    assert len(set(found)) == len(found) == 8


def test_the_last_rule_that_fits_wins_key_by_key(tmp_path):
    rules = """batch_size = 8 },
    { fooling = "active", steps = 5, lambda = 0.5 },
    { attacked = "lrp_t", lambda = 9 },
    { model = "compact_vgg", fooling = "active", attacked = "lrp_t", batch_size = 2 },
]"""
    loaded = load(tmp_path, ("batch_size = 8 }]", rules))
    base = Recipe(learning_rate=1e-3, weight=1.0, steps=3, batch_size=8)
    assert loaded.recipe("compact_vgg", "location", "grad_cam") == base
    assert loaded.recipe("compact_vgg", "location", "lrp_t") == replace(base, weight=9)
    assert loaded.recipe("compact_vgg", "active", "grad_cam") == replace(base, steps=5, weight=0.5)
    assert loaded.recipe("compact_vgg", "active", "lrp_t") == replace(base, steps=5, weight=9, batch_size=2)


def test_a_suite_with_the_default_suites_recipe_has_it():
    own, default = suite.load("digits"), suite.load("default")
    places = list(product(own.models, own.foolings, own.attacked))
    assert [own.recipe(*place) for place in places] == [default.recipe(*place) for place in places]


def test_a_suite_is_loaded_by_its_name_or_by_its_path():
    assert suite.load(suite.HERE / "smoke.toml") == suite.load("smoke")


def test_on_another_split_than_its_own_a_suite_scores_all_images():
    own = suite.load("smoke")
    assert (own.scoring.split, own.scoring.images) == ("test", 24)
    assert suite.load("smoke", "test") == own
    other = suite.load("smoke", "dev").scoring
    assert other == own.scoring.model_copy(update={"split": "dev", "images": None})


def test_weights_are_taken_from_the_folder_of_the_data_where_they_are_not_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = suite.load("cifar10")
    (tmp_path / "data").mkdir()
    assert suite.placed(own, "data") == suite.placed(own, None) == own
    (tmp_path / "data/resnet20-12fca82f.th").touch()
    there = suite.placed(own, "data")
    assert there.models["resnet20"].weights == "data/resnet20-12fca82f.th"
    assert there.model_copy(update={"models": own.models}) == own
    (tmp_path / "resnet20-12fca82f.th").touch()
    assert suite.placed(own, "data") == own
    assert suite.placed(suite.load("imagenet_mini"), "data") == suite.load("imagenet_mini")


@pytest.mark.parametrize("name", ["cifar10", "photographs"])
def test_the_boards_of_real_networks_attack_twelve_methods_themselves(name):
    own = suite.load(name)
    made = {interpreter: interpreters.create(interpreter) for interpreter in own.evaluated}
    attacked = [i for i, interpreter in made.items() if interpreter.differentiable and not interpreter.control]
    assert len(attacked) >= 12
    assert {"lrp_contrast", "lrp_t_contrast", "grad_cam_contrast", "simple_grad_contrast"} <= set(attacked)
    assert own.ensemble == ["gradient", "head_shift"]
    assert own.gate is not None
    assert "lrp_t" in own.attacked


def test_unknown_and_missing_suites_are_named(tmp_path):
    with pytest.raises(UserError, match=r"unknown suite 'smok': did you mean 'smoke'\? allowed: .*default"):
        suite.load("smok")
    with pytest.raises(UserError, match=f"suite file not found: {tmp_path / 'absent.toml'}"):
        suite.load(tmp_path / "absent.toml")


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", b"[[["])
def test_a_file_that_is_not_toml_is_named(tmp_path, content):
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.toml is not TOML: "):
        suite.load(tmp_path / "bad.toml")


NAME = 'name = "smoke"'
RULE = "recipes = [{ "
OPTION = "[interpreters.smooth_grad]\nsamples = 2"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # values out of range: the key, what is allowed, what was got
        ("train = 64", "train = 0", r"dataset\.train: .* greater than or equal to 1 \(got 0\)"),
        ("train = 64", 'train = "many"', r"dataset\.train: .*valid integer.*\(got 'many'\)"),
        ("epochs = 1", "epochs = -1", r"models\.compact_vgg\.epochs: .*equal to 0 \(got -1\)"),
        ("epochs = 1", "learning_rate = 0", r"models\.compact_vgg\.learning_rate: .* greater than 0 \(got 0\)"),
        ("lambda = 1.0", "lambda = -1", r"recipes\.0\.lambda: .*equal to 0 \(got -1\)"),
        ("learning_rate = 1e-3", "learning_rate = inf", r"recipes\.0\.learning_rate: .*finite number \(got inf\)"),
        ("learning_rate = 1e-3", "learning_rate = 1e4", r"recipes\.0\.learning_rate: .* equal to 1000 \(got 10000"),
        ('foolings = ["location"', 'foolings = ["target_map:a\\u0000b"', r"foolings\.0: .* should match pattern"),
        ('attacked = ["grad_cam"', 'attacked = ["grad_cam:"', "unknown strategy '': allowed: "),
        ("lambda = 1.0", "lambda = nan", r"recipes\.0\.lambda: .*\(got nan\)"),
        ("aopc_cells = 3", "aopc_cells = 101", r"scoring\.aopc_cells: .*less than or equal to 100 \(got 101\)"),
        ("[scoring]", "[scoring]\nimages = 0", r"scoring\.images: .*greater than or equal to 1 \(got 0\)"),
        ("[scoring]", '[scoring]\nsplit = "train"', r"scoring\.split: .*'test' or 'dev' \(got 'train'\)"),
        (NAME, f"{NAME}\nthreads = 0", r"threads: .*equal to 1 \(got 0\)"),
        (NAME, f"{NAME}\nseeds = []", r"seeds: .*must name at least one"),
        (NAME, f"{NAME}\nseeds = [1, 1]", r"seeds: .*must not name one twice \(got \[1, 1\]\)"),
        (NAME, f"{NAME}\nseeds = [-1]", r"seeds\.0: .*equal to 0 \(got -1\)"),
        (NAME, f"{NAME}\nseeds = [4294967296]", r"seeds\.0: .*less than 2147483648"),
        ('["location", "active"]', "[]", r"foolings: .*must name at least one"),
        ("[models.compact_vgg]\nepochs = 1", "[models]", r"models: .*must name at least one"),
        # missing keys
        (NAME, "", "name: Field required"),
        ("steps = 3, ", "", "recipes leave 'steps' open for compact_vgg/location/grad_cam"),
        (RULE, f"{RULE}fooling = 'active', ", "recipes leave '.*' open for compact_vgg/location"),
        # unknown keys and names: the nearest one, and all of them
        (NAME, f"{NAME}\nthread = 1", r"unknown key of suite .*'thread': did you mean 'threads'\? allowed: attacked"),
        ("train = 64", "trian = 64", r"in dataset of suite .*'trian': did you mean 'train'\? allowed: augment"),
        ("epochs = 1", "epoch = 1", r"in models\.compact_vgg of suite .*did you mean 'epochs'\? allowed: adversary"),
        ("lambda = 1.0", "lamda = 1.0", r"in recipes\.0 of suite .*did you mean 'lambda'\?"),
        ("aopc_cells = 3", "aopc_cell = 3", r"in scoring of suite .*did you mean 'aopc_cells'\?"),
        ('name = "shapes"', 'name = "shape"', r"unknown dataset 'shape': did you mean 'shapes'\? allowed: cifar10"),
        ("models.compact_vgg", "models.compact_vg", r"unknown model 'compact_vg': did you mean 'compact_vgg'\?"),
        ('"location"', '"locate"', r"unknown fooling 'locate': did you mean 'location'\?"),
        (
            'evaluated = ["grad_cam"',
            'evaluated = ["gradcam"',
            r"unknown interpreter 'gradcam': did you mean 'grad_cam'\?",
        ),
        (OPTION, "[interpreters.smoothgrad]", r"unknown interpreter 'smoothgrad': did you mean 'smooth_grad'\?"),
        (OPTION, "[interpreters.smooth_grad]\nsample = 2", r"option of smooth_grad 'sample': did you mean 'samples'\?"),
        (OPTION, "[interpreters.simple_grad_t]\nlayr = 'x'", r"option of simple_grad_t 'layr'"),  # not evaluated
        (
            OPTION,
            "[interpreters.smooth_grad]\nsamples = 'x'",
            r"interpreters\.smooth_grad\.samples: .*integer.*\(got 'x'\)",
        ),
        (OPTION, "[interpreters.lrp]\ncomposite = 'zplus'", r"unknown composite 'zplus': did you mean 'z_plus'\?"),
        (RULE, f"{RULE}model = 'vgg19', ", r"unknown model in recipes of suite 'smoke' 'vgg19': allowed: compact_vgg"),
        (RULE, f"{RULE}fooling = 'top_k', ", r"unknown fooling in recipes .*'top_k': allowed: active, location"),
        (RULE, f"search.rungs = [20, 10]\n{RULE}", r"search\.rungs: .*ascending"),
        (RULE, f"search.budget = 2\n{RULE}", r"unknown key in search of suite .*did you mean 'budgets'\?"),
        (RULE, f"gate.cells = 0\n{RULE}", r"gate\.cells: .*greater than or equal to 1"),
        (
            'attacked = ["grad_cam"',
            'attacked = ["grad_cam:suspace"',
            "unknown strategy 'suspace': did you mean 'subspace'",
        ),
        # what cannot be attacked
        ('attacked = ["grad_cam"', 'attacked = ["captum_lrp"', "attacked: 'captum_lrp' is not differentiable"),
        (
            'attacked = ["grad_cam"',
            'attacked = ["captum_lrp:head_shift"',
            "'captum_lrp' is not differentiable, .*, or attacked as 'captum_lrp:subspace'",
        ),
    ],
)
def test_an_impossible_suite_is_one_line_that_names_the_key(tmp_path, old, new, message):
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, (old, new))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("pgb = {}", "unknown attack in dissection of suite 'smoke' 'pgb': did you mean 'pgd'"),
        ("fgsm = { epsilo = 1 }", "in dissection.attacks.fgsm of suite 'smoke' 'epsilo': did you mean 'epsilon'"),
        ("fgsm = { epsilon = 1, targeted = false }", "'targeted': allowed: epsilon$"),
        ("pgd = { epsilon = 1 }", "suite 'smoke': dissection.attacks.pgd must say step, steps$"),
        ("fgsm = { epsilon = 'a' }", r"dissection\.attacks\.fgsm\.epsilon: .*number \(got 'a'\)"),
        ("fgsm = { epsilon = inf }", r"dissection\.attacks\.fgsm\.epsilon: .*finite number \(got inf\)"),
        ("fgsm = { epsilon = 0 }", r"dissection\.attacks\.fgsm: epsilon must be greater than 0 \(got 0\)"),
        ("elastic_net = { steps = 1e3 }", r"dissection\.attacks\.elastic_net\.steps: .*integer \(got 1000\.0\)"),
        ("carlini_wagner = { steps = 0 }", r"dissection\.attacks\.carlini_wagner: steps must be at least 1 \(got 0\)"),
        ("pgd = { epsilon = 1, step = 1, steps = 9, norm = 'L1' }", "pgd: unknown norm 'L1': allowed: L2, Linf"),
        ("pgd = { epsilon = 1, step = 1, steps = 9, seed = 4000000000 }", "pgd.seed must be 2147483647 at most"),
        (
            "structured = { cell = 33, steps = 9, gamma = 1, tau = 1, c = 1, rho = 1, epsilon = 1 }",
            "cell must be 1 to 32",
        ),
    ],
)
def test_what_an_attack_of_the_dissection_cannot_be_is_told_as_the_suite_is_read(tmp_path, attack, message):
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, (RULE, f"dissection.attacks.{attack}\n{RULE}"))
    assert "\n" not in str(caught.value)


def test_many_steps_are_as_soon_read_as_few(tmp_path):
    attacks = ("carlini_wagner = { steps = 2147483647 }", "elastic_net = { steps = 2147483647, beta = 0 }")
    for attack in attacks:
        assert load(tmp_path, (RULE, f"dissection.attacks.{attack}\n{RULE}")).dissection.cell == 8


@pytest.mark.parametrize("name", ["smooth_grad", "var_grad", "integrated_gradients", "gradient_shap"])
def test_gradients_at_several_points_may_be_attacked(tmp_path, name):
    assert load(tmp_path, ('attacked = ["grad_cam"', f'attacked = ["{name}"')).attacked == [name, "lrp_t"]
