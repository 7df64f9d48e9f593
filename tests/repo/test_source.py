"""Rules of the house that a parser can check: nothing that runs code from data, sizes, configuration that is read."""

from __future__ import annotations

import ast

import pytest
from repo.sources import imports_of, sources

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    "torch.load": "reads pickles",
    "torch.save": "writes pickles",
    "torch.hub.load": "runs code from a repository",
    "yaml.load": "use yaml.safe_load",
    "yaml.full_load": "use yaml.safe_load",
    "yaml.unsafe_load": "use yaml.safe_load",
    "eval": "runs code",
    "exec": "runs code",
    "__import__": "an import path must not come from data",
    "importlib.import_module": "an import path must not come from data",
    "os.system": "runs a shell",
    "torch.nan_to_num": "hides a non-finite value",
    "torch.manual_seed": "touches the global generator",
    "torch.cuda.manual_seed": "touches the global generator",
    "torch.cuda.manual_seed_all": "touches the global generator",
    "np.random.seed": "touches the global generator",
    "numpy.random.seed": "touches the global generator",
    "random.seed": "touches the global generator",
}
ALLOWED = {
    # imports a recipe lazily, out of a table of literals in the same file
    ("fewstep.core.recipes", "importlib.import_module"),
}
FORBIDDEN_KEYWORDS = {"trust_remote_code", "allow_pickle", "shell"}  # harmless only as the literal False
DRAWS = {f"torch.{name}" for name in ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial")}
DRAWS_WITHOUT_GENERATOR = {"torch.rand_like", "torch.randn_like", "torch.randint_like"}


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of a chain of attributes, or an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(dotted(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def dangers(tree: ast.AST, module: str = "") -> list[tuple[int, str]]:
    """Lines that could run code from data, hide a non-finite number, or draw from the global generator."""
    found = [(line, f"imports {name}") for line, name in imports_of(tree) if set(name.split(".")) & FORBIDDEN_MODULES]
    for name, call in calls(tree):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if name in FORBIDDEN_CALLS and (module, name) not in ALLOWED:
            found.append((call.lineno, f"{name}: {FORBIDDEN_CALLS[name]}"))
        if name in DRAWS_WITHOUT_GENERATOR or (name in DRAWS and "generator" not in given):
            found.append((call.lineno, f"{name}: draws from the global generator"))
        for keyword in FORBIDDEN_KEYWORDS & given.keys():
            value = given[keyword]
            if not (isinstance(value, ast.Constant) and value.value is False):
                found.append((call.lineno, f"{keyword} must be False"))
    return found


def is_dataclass(node: ast.ClassDef) -> bool:
    names = [dotted(item.func if isinstance(item, ast.Call) else item) for item in node.decorator_list]
    return any(name.split(".")[-1] == "dataclass" for name in names)


def unread_fields(trees: list[ast.Module]) -> list[str]:
    """Fields of dataclasses named ``*Config`` that no code reads; a check in ``__post_init__`` is not a use."""
    read: set[str] = set()
    fields: list[tuple[str, str]] = []
    for tree in trees:
        validators = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config") and is_dataclass(node):
                fields += [
                    (node.name, item.target.id)
                    for item in node.body
                    if isinstance(item, ast.AnnAssign)
                    and isinstance(item.target, ast.Name)
                    and "ClassVar" not in ast.dump(item.annotation)
                ]
                for item in node.body:
                    if isinstance(item, ast.FunctionDef) and item.name == "__post_init__":
                        validators |= set(ast.walk(item))
        read |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node not in validators
        }
    return [f"{name}.{field}" for name, field in fields if field not in read]


def test_no_source_runs_code_from_data_or_touches_the_global_generator():
    assert [f"{s.path}:{line} {what}" for s in sources() for line, what in dangers(s.tree, s.module)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "yaml.load(text, Loader=loader)",
        "Model.from_pretrained(name, trust_remote_code=flag)",
        "np.load(path, allow_pickle=True)",
        "importlib.import_module(name)",
        "eval(text)",
        "torch.manual_seed(0)",
        "torch.randn(3)",
        "torch.randn_like(x)",
    ],
)
def test_each_danger_is_seen(code):
    assert len(dangers(ast.parse(code))) == 1


@pytest.mark.parametrize(
    "code", ["model.eval()", "torch.compile(f)", "yaml.safe_load(t)", "torch.randn(3, generator=g)", "f(shell=False)"]
)
def test_what_is_harmless_is_not_reported(code):
    assert dangers(ast.parse(code)) == []


def test_files_and_functions_are_short():
    long = [f"{s.path}: {s.text.count(chr(10))} lines" for s in sources() if s.text.count("\n") > MAX_FILE_LINES]
    for source in sources():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{source.path}:{node.lineno} {node.name}: {lines} lines")
    assert long == []


def test_modules_are_named_by_what_they_hold():
    vague = {"utils", "util", "helpers", "misc", "common"}
    assert [s.path for s in sources() if vague & set(s.module.split("."))] == []


def test_no_global_statement():
    assert [
        f"{s.path}:{node.lineno}" for s in sources() for node in ast.walk(s.tree) if isinstance(node, ast.Global)
    ] == []


def test_every_config_field_is_read():
    assert unread_fields([source.tree for source in sources()]) == []


def test_an_unread_field_is_seen():
    config = ast.parse(
        "@dataclass\nclass ModelConfig:\n    width: int = 1\n    depth: int = 1\n"
        "    def __post_init__(self):\n        check(self.depth > 0)\n"
    )
    assert unread_fields([config, ast.parse("config.width")]) == ["ModelConfig.depth"]
