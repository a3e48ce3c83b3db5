"""The arrows between packages, what is imported when, and the public names."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import glotlift

SOURCE = Path(glotlift.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
FOUNDATION = ("errors", "languages", "names", "text", "strict_json", "schema", "fields", "runs", "progress",
              "processes", "measures", "intervals")  # fmt: skip


def module_name(path: Path) -> str:
    parts = ["glotlift", *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Return all modules of glotlift that a file imports, also inside functions; `from a import b` counts as both."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] == "glotlift"}


def imports_of(package: str) -> set[str]:
    """Return what the files of a package import from other packages of glotlift."""
    inside = [path for path in FILES if path.is_relative_to(SOURCE / package)]
    assert inside, package
    return {name for path in inside for name in imported(path) if not name.startswith(f"glotlift.{package}")}


WINGS = ("evaluation", "explanation", "reporting", "training")
ROOMS = (*WINGS, "models", "data", "tasks")
FORBIDDEN = [
    *((a, b) for a in WINGS[:3] for b in WINGS[:3] if a != b),
    *(("training", b) for b in WINGS[:3]),
    *(("models", b) for b in (*WINGS, "data")),  # the ground floor
    *(("data", b) for b in (*WINGS, "models")),
    *(("tasks", b) for b in (*WINGS, "models", "data")),
]


@pytest.mark.parametrize(("package", "other"), FORBIDDEN)
def test_wings_exchange_files_not_imports(package, other):
    assert not [name for name in imports_of(package) if name.startswith(f"glotlift.{other}")]


@pytest.mark.parametrize("package", ROOMS)
def test_nothing_below_knows_the_stages_a_recipe_or_the_command_line(package):
    above = ("glotlift.stages", "glotlift.recipe", "glotlift.cli")
    assert not [name for name in imports_of(package) if name == "glotlift" or name.startswith(above)]


def test_every_folder_is_a_room_that_these_arrows_know():
    folders = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    assert folders == {*ROOMS, "stages", "cli"}


def test_the_foundation_knows_nothing_above_it():
    for name in FOUNDATION:
        above = {found.split(".")[1] for found in imported(SOURCE / f"{name}.py") if "." in found} - set(FOUNDATION)
        assert not above, name


def test_settings_are_made_of_the_foundation_and_of_settings_of_rooms_below():
    for path in SOURCE.glob("*/settings.py"):
        for name in imported(path):
            parts = name.split(".")
            assert parts[1] in FOUNDATION or parts[2] == "settings", f"{path}: {name}"


def test_a_recipe_is_made_of_settings():
    found = {name.split(".", 1)[1] for name in imported(SOURCE / "recipe.py")}
    assert all(name.split(".")[0] in FOUNDATION or ".settings" in name for name in found), found


def test_only_stages_see_a_recipe_and_only_the_command_line_knows_all_stages():
    users = {module_name(path) for path in FILES if any("glotlift.recipe" in name for name in imported(path))}
    outside = {"glotlift", "glotlift.sweeps"}  # a sweep is several recipes
    assert all(user in outside or user.startswith("glotlift.stages.") for user in users), users
    users = {module_name(path) for path in FILES if any("glotlift.stages" in name for name in imported(path))}
    assert all(user == "glotlift" or user.startswith(("glotlift.stages", "glotlift.cli")) for user in users), users


def test_every_stage_is_walked_once_in_the_order_of_its_inputs():
    from glotlift.stages.run import STAGES

    for position, stage in enumerate(STAGES):
        assert set(stage.inputs) <= set(STAGES[:position]), stage.name
        assert stage.outputs, stage.name
    assert len({stage.name for stage in STAGES}) == len(STAGES)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_has_one_idea(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that are loaded in a new process after some code has run."""
    script = (
        f"{code}\nimport json, sys\nsys.stderr.write(json.dumps([name for name in sys.modules if '.' not in name]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr))


HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets", "pandas", "sklearn", "altair"}
COMMAND = "from glotlift.cli import main\ntry: main({})\nexcept SystemExit as end: assert not end.code"
LIGHT = {
    "glotlift": "import glotlift; dir(glotlift)",
    "foundation": "import " + ", ".join(f"glotlift.{name}" for name in FOUNDATION),
    "settings": "import glotlift.recipe, glotlift.models.settings",
    "light public names": "from glotlift import GlotliftError, LANGUAGES, Recipe, load_recipe, load_task, Task, Item",
    "faults of test data": "from glotlift.evaluation.test_sets import read_test_sets\n"
    "from glotlift.recipe import load_recipe\nfrom glotlift.stages.subjects import explained\n"
    "from glotlift.stages.run import DEMO\nrecipe = load_recipe(DEMO)\nexplained(recipe, read_test_sets(recipe.eval))",
    "help": COMMAND.format(["--help"]),
    "tasks list": COMMAND.format(["tasks", "list"]),
    "languages": COMMAND.format(["languages"]),
}


@pytest.mark.parametrize("name", LIGHT)
def test_torch_is_loaded_only_when_a_model_is_needed(name):
    assert modules_after(LIGHT[name]).isdisjoint(HEAVY)


def test_that_test_can_fail():
    assert "torch" in modules_after("from glotlift import load_model")


def test_public_names():
    assert glotlift.__all__ == [
        "GlotliftError",
        "Item",
        "LANGUAGES",
        "Recipe",
        "Task",
        "audit_data",
        "build_data",
        "builtin_tasks",
        "check_task",
        "compare",
        "demo",
        "describe_model",
        "diagnose",
        "evaluate",
        "explain",
        "explain_text",
        "export_data",
        "export_tasks",
        "inspect_training",
        "load_model",
        "load_recipe",
        "load_task",
        "merge",
        "read_explanation",
        "read_predictions",
        "report",
        "run",
        "show_task",
        "sweep",
        "train",
        "train_tuned_lens",
    ]
    assert set(glotlift._HOME) == set(glotlift.__all__)
    assert {name for name in dir(glotlift) if not name.startswith("__")} == set(glotlift.__all__)


@pytest.mark.parametrize("name", glotlift.__all__)
def test_every_public_name_resolves_and_is_documented(name):
    found = getattr(glotlift, name)
    assert name == "LANGUAGES" or found.__doc__
    assert name == "LANGUAGES" or found.__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'glotlift' has no attribute 'evalute'"):
        _ = glotlift.evalute


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_house_rules_of_a_file(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")
    assert ast.get_docstring(tree), "a file opens with what it is for"
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert "print" not in calls
    assert "breakpoint" not in calls
