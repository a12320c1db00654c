from pathlib import Path

import pandas as pd
import pytest

from phenoscale.maps.relationships import (
    PUBLIC_DATABASES,
    load_databases,
    load_relationships,
    unordered_pairs,
)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "database.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_pairs_are_unordered_unique_and_without_self_pairs(tmp_path: Path) -> None:
    path = write(tmp_path, "entity1,entity2\nC,A\nA,C\nB,B\nA,B\nA,B\n")
    pairs = load_relationships(path)
    assert pairs.columns.tolist() == ["entity1", "entity2"]
    assert pairs.to_numpy().tolist() == [["A", "B"], ["A", "C"]]


def test_a_gene_called_na_is_a_gene(tmp_path: Path) -> None:
    pairs = load_relationships(write(tmp_path, "entity1,entity2\nNA,NAN\nnull,1\n"))
    assert pairs.to_numpy().tolist() == [["1", "null"], ["NA", "NAN"]]


def test_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    assert len(load_relationships(write(tmp_path, "\ufeffentity1,entity2\nA,B\n"))) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gene1,gene2\nA,B\n", r"columns \['gene1', 'gene2'\].*exactly"),
        ("entity1,entity2,score\nA,B,1\n", "exactly"),
        ("entity2,entity1\nA,B\n", "exactly"),
        ("A,B\nA,C\n", "exactly"),
        ("entity1,entity2\nA,B\nA,\n", r"1 relationships have an empty cell \(rows 1,"),
        ("entity1,entity2\nA,A\n", "no pair of two different genes"),
        ("entity1,entity2\n", "no pair of two different genes"),
        ("", "no CSV of relationships"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_relationships(write(tmp_path, text))


def test_missing_file_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file of relationships at .*entity1,entity2"):
        load_relationships(tmp_path / "absent.csv")


def test_unordered_pairs_needs_both_columns() -> None:
    with pytest.raises(ValueError, match=r"lack \['entity2'\]"):
        unordered_pairs(pd.DataFrame({"entity1": ["A"]}))


@pytest.mark.parametrize(
    ("database", "expected"),
    [
        ("CORUM", 37_649),
        ("HuMAP", 58_538),
        ("Reactome", 18_565),
        ("SIGNOR", 11_617),
        ("StringDB", 58_059),
    ],
)
def test_real_databases(real_data: Path, database: str, expected: int) -> None:
    pairs = load_relationships(real_data / "relationships" / f"{database}.txt")
    assert len(pairs) == expected
    assert (pairs.entity1 < pairs.entity2).all()


# ---- several of them


def test_databases_by_path(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.csv").write_text(f"entity1,entity2\nA,{name}\n")
    paths = [tmp_path / "one.csv", str(tmp_path / "two.csv")]
    found = load_databases(paths)
    assert {k: v.to_numpy().tolist() for k, v in found.items()} == {
        "one": [["A", "one"]],
        "two": [["A", "two"]],
    }
    with pytest.raises(ValueError, match="Two databases are called one"):
        load_databases([*paths, tmp_path / "one.csv"])


def test_public_databases_out_of_the_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sys.path", [str(tmp_path)])
        with pytest.raises(ValueError, match="pip install --no-deps efaar-benchmarking==1.0"):
            load_databases(["CORUM"])
    folder = tmp_path / "efaar_benchmarking" / "benchmark_annotations"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('it is not imported')")
    for name in PUBLIC_DATABASES:
        (folder / f"{name}.txt").write_text(f"entity1,entity2\nA,{name}\n")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert load_databases(["public"])["SIGNOR"].to_numpy().tolist() == [["A", "SIGNOR"]]
    assert list(load_databases(["HuMAP"])) == ["HuMAP"]
