"""The README's tree and links name what is there, and all of it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def named_in_tree():
    """Paths of the README's tree, from its indentation."""
    block = README.split("```")[1].strip("\n")
    folders: list[str] = []
    for line in block.splitlines():
        name = line.split("  #")[0].rstrip()
        depth = (len(name) - len(name.lstrip())) // 2
        folders = [*folders[:depth], name.strip()]
        yield "".join(folders)


def test_every_path_of_the_tree_exists():
    missing = [path for path in named_in_tree() if not (ROOT / path).exists()]
    assert not missing


def test_every_module_stands_in_the_tree():
    listed = set(named_in_tree())
    modules = [
        str(path.relative_to(ROOT))
        for folder in ("phenoscale", "experiments", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    ]
    assert not [path for path in modules if path not in listed]


def test_links_lead_somewhere():
    pages = [
        ROOT / "README.md",
        *ROOT.glob("experiments/*.md"),
        *ROOT.glob("cluster/*.md"),
        *ROOT.glob("docs/*.md"),
    ]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_commands_exist():
    from typer.testing import CliRunner

    from phenoscale.cli import app

    known = {command.callback.__name__ for command in app.registered_commands} | {"index", "map"}
    named = set(re.findall(r"`?phenoscale ([a-z]+)[ `]", README))
    assert named and named <= known
    for command in named:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
