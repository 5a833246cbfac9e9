"""The direction of imports: the kernel never knows the app, and each layer knows only those below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the top to the bottom. A module may import from its own layer and from those after it.
LAYERS = ["app.main", "app.web", "app.chat", "app.engine", "app.tools", "app.store", "app.wire"]
ABOVE = {"app.cli", "app.__main__", "app.main", "app.agents", "app.janitor"}
BELOW = {"app.errors", "app.logs", "app.settings"}
WIRE_MAY_IMPORT = {"__future__", "datetime", "typing", "json", "attrs", "msgspec", "app"}


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, also inside functions and for type checking only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module)
    return found


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer_of(module: str) -> int | None:
    for number, layer in enumerate(LAYERS):
        if module == layer or module.startswith(layer + "."):
            return number
    return None


FILES = sorted([*ROOT.glob("nurseries/**/*.py"), *ROOT.glob("app/**/*.py")])


def test_there_are_files_to_check():
    """The globs find both packages."""
    assert {"nurseries", "app"} == {path.relative_to(ROOT).parts[0] for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_downwards(path):
    """No module imports from a layer above its own."""
    module, imported = module_of(path), imports(path)
    if module.split(".")[0] == "nurseries":
        assert not {name for name in imported if name.split(".")[0] == "app"}, "the kernel knows the app"
        return
    mine = layer_of(module)
    if mine is None:
        return
    upward = {name for name in imported if (layer := layer_of(name)) is not None and layer < mine}
    assert not upward, f"{module} imports from above: {upward}"
    above = {name for name in imported if any(name == top or name.startswith(top + ".") for top in ABOVE)}
    assert module == "app.main" or not above


@pytest.mark.parametrize("path", sorted(ROOT.glob("app/wire/*.py")), ids=module_of)
def test_wire_is_sans_io(path):
    """The wire knows bytes and classes, and no library that does I/O."""
    assert {name.split(".")[0] for name in imports(path)} <= WIRE_MAY_IMPORT
    assert not {name for name in imports(path) if name.startswith("app.") and not name.startswith("app.wire")}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_nothing_in_the_product_uses_asyncio(path):
    """Trio is the only event loop."""
    assert not {name for name in imports(path) if name.split(".")[0] in {"asyncio", "anyio"}}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_the_product_does_not_rest_on_tools_for_tests(path):
    """What is there for tests may use the product, never the other way round."""
    if "testing" not in module_of(path).split(".")[:2]:
        found = {name for name in imports(path) if name.startswith(("nurseries.testing", "app.testing"))}
        assert not found, f"{module_of(path)} imports {found}"
