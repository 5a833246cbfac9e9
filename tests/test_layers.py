"""The direction of imports: the kernel never knows the app, and each layer knows only those below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the top to the bottom. A part imports from itself and from what is below it; those of one layer do not know each other.
LAYERS = [
    {"app.__main__"},
    {"app.cli", "app.testing"},
    {"app.main"},
    {"app.isolation"},
    {"app.database", "app.encryption", "app.janitor", "app.sources", "app.web"},
    {"app.leaks", "app.settings"},
    {"app.agents", "app.chat"},
    {"app.accounts", "app.engine"},
    {"app.audit", "app.tools"},
    {"app.store"},
    {"app.errors", "app.logs", "app.tenancy", "app.wire"},
]
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


def part_of(module: str) -> str:
    """Return `app.web` for `app.web.socket`."""
    return ".".join(module.split(".")[:2])


def layer_of(part: str) -> int:
    """Return the number of its layer: every part has one."""
    (number,) = [number for number, layer in enumerate(LAYERS) if part in layer]
    return number


FILES = sorted([*ROOT.glob("nurseries/**/*.py"), *ROOT.glob("app/**/*.py")])


def test_there_are_files_to_check():
    """The globs find both packages."""
    assert {"nurseries", "app"} == {path.relative_to(ROOT).parts[0] for path in FILES}


@pytest.mark.parametrize("path", sorted(ROOT.glob("nurseries/**/*.py")), ids=module_of)
def test_the_kernel_does_not_know_the_app(path):
    """It is given what it needs."""
    assert not {name for name in imports(path) if name.split(".")[0] == "app"}


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("app/*/**/*.py")) + sorted(ROOT.glob("app/[!_]*.py")), ids=module_of
)
def test_imports_point_downwards(path):
    """No module imports from a layer above its own, nor from another part of it."""
    part = part_of(module_of(path))
    own = layer_of(part)
    others = {part_of(name) for name in imports(path) if name.startswith("app.")} - {part}
    upward = {other for other in others if layer_of(other) <= own}
    assert not upward, f"{module_of(path)} imports from {upward}"


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
