"""The layout's rules: dependencies point one way, no method imports another, and the kit holds what two methods use."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from pathlib import Path

import outlay

SOURCE = Path(outlay.__file__).parent
LAYERS = [  # each may import those before it
    {
        "errors",
        "budget",
        "about",
        "kernels",
        "python_sources",
        "machine",
        "spread",
        "progress",
        "messages",
        "prompts",
        "pictures",
        "metrics",
        "coupling",
    },
    {"prompt_tree", "batching"},
    {"tables", "problems"},
    {"models"},
    {"constrain"},
    {"tree"},
    {"attend"},
    {"engine"},
    {"speculation", "rewards"},
    {"search"},
    {"decode", "diffuse", "vision", "codec"},
    {
        "drafts",
        "catalog",
        "lm",
        "image_prompts",
        "score",
        "masked_score",
        "prompt_logits",
        "replay",
        "reveal",
        "shared_prefix",
        "testing",
        "transcripts",
    },
    {"subtitles"},
    {"train"},
    {"shrink"},
    {"scaling", "viewer"},
    {"compare"},
    {"serve"},
    {"bench"},
    {"cli"},
]


def modules():
    return {file.relative_to(SOURCE): ast.parse(file.read_text()) for file in sorted(SOURCE.rglob("*.py"))}


MODULES = modules()


def imports(tree):
    """Yields (module, name) for each import of ours; the name is None where a module is imported whole."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "outlay":
            for alias in node.names:
                yield node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "outlay":
                    yield alias.name, None


def part_of(module, name):
    """The part of the package that an import names."""
    pieces = [*module.split("."), *([name] if name else [])][1:]
    return pieces[0] if pieces else None


def method_of(path):
    """The method that a file of `decode/` belongs to: the file itself, or its folder."""
    parts = path.with_suffix("").parts
    return "/".join(parts[:3]) if parts[1:2] in (("draft",), ("search",), ("steer",)) else "/".join(parts[:2])


METHODS = {path: tree for path, tree in MODULES.items() if path.parts[0] == "decode" and path.name != "__init__.py"} | {
    path: tree
    for path, tree in MODULES.items()
    if path.parts[:2] in (("decode", "draft"), ("decode", "search"), ("decode", "steer")) and len(path.parts) > 3
}


def test_dependencies_point_one_way():
    level = {part: depth for depth, parts in enumerate(LAYERS) for part in parts}
    wrong = []
    for path, tree in MODULES.items():
        part = path.parts[0].removesuffix(".py")
        if part in ("__init__", "__main__"):
            continue
        for module, name in imports(tree):
            other = part_of(module, name)
            if other in level and other != part and level[other] > level[part]:
                wrong.append(f"{path} imports {module}")
    assert not wrong


def test_each_file_of_tests_has_a_name_of_its_own():
    """Python imports them by name, so that two of one name can't be collected together."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_method_imports_another():
    wrong = [
        f"{path} imports {module}"
        for path, tree in METHODS.items()
        for module, _ in imports(tree)
        if module.startswith("outlay.decode.")
        and not f"{module}.".startswith("outlay." + method_of(path).replace("/", ".") + ".")
    ]
    assert not wrong


def kit_names():
    """The kit's public names, each with the names of the kit that its definition uses."""
    defined = {}
    for path, tree in MODULES.items():
        if path.parts[0] in ("speculation", "search"):
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    defined[node.name] = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | {
                        n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)
                    }
    return {name: uses & set(defined) - {name} for name, uses in defined.items()}


def test_what_the_kit_holds_serves_two_methods():
    """Each public name is used by two methods, directly or by way of another name that they use.

    What makes the draft of a submission (`outlay.drafts`) counts as one, since any method may be given that draft.
    """
    uses, users = kit_names(), defaultdict(set)
    for path, tree in [*METHODS.items(), (Path("drafts.py"), MODULES[Path("drafts.py")])]:
        reached, fresh = set(), {name for _, name in imports(tree) if name in uses}
        while fresh:
            reached |= fresh
            fresh = {below for name in fresh for below in uses[name]} - reached
        for name in reached:
            users[name].add(method_of(path))
    lonely = {name: users[name] for name in uses if not name.startswith("_") and len(users[name]) < 2}
    assert not lonely
