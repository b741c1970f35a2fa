"""The command `causal_order`: a table in, an order and its evidence out."""

import csv

import numpy as np
import pytest
from small_runs import quickly

from hos_jax.cli.causal_order import read_table
from hos_jax.errors import UserError


@pytest.fixture
def run(tmp_path, environment):
    def run(*arguments):
        return quickly(["causal_order", *map(str, arguments)], tmp_path, environment)

    return run


def test_a_table_with_names_gives_an_order_and_its_evidence(run, tmp_path):
    rng = np.random.default_rng(0)
    cause = rng.standard_normal(500)
    effect = np.sin(2.0 * cause) + 0.5 * rng.standard_normal(500)
    lines = [f"{b},{a}" for b, a in zip(effect, cause, strict=True)]
    (tmp_path / "table.csv").write_text("\n".join(['"effect, late",cause', *lines, ""]))
    done = run("table.csv", "--steps=300", "--output=evidence.csv")
    assert done.returncode == 0, done.stderr
    assert "500 rows, 2 columns\n" in done.stdout
    assert 'order, causes first: cause "effect, late"\n' in done.stdout
    with (tmp_path / "evidence.csv").open(newline="") as file:
        header, first, second = csv.reader(file)
    assert header == ["step", "leaf", "effect, late", "cause"]
    assert first[:2] == ["1", "effect, late"] and float(first[2]) < float(first[3])
    assert second[:3] == ["2", "cause", ""]
    # Four digits are shown, and all are kept.
    assert f"{float(first[2]):.4g}" in done.stdout and first[2] not in done.stdout


def test_an_array_of_complex_numbers_is_no_table(tmp_path):
    np.save(tmp_path / "table.npy", np.ones((3, 2)) + 1j)
    with pytest.raises(UserError, match="holds complex128"):
        read_table(tmp_path / "table.npy")


def test_tables_are_read_as_text_or_as_an_array(tmp_path):
    table = np.arange(6.0).reshape(3, 2)
    np.save(tmp_path / "table.npy", table)
    np.savetxt(tmp_path / "plain.csv", table, delimiter=",")
    np.savetxt(tmp_path / "named.csv", table, delimiter=",", header="a, b", comments="")
    for name, names in (
        ("table.npy", ["0", "1"]),
        ("plain.csv", ["0", "1"]),
        ("named.csv", list("ab")),
    ):
        found, numbers = read_table(tmp_path / name)
        assert found == names
        np.testing.assert_array_equal(numbers, table)


def test_numbers_of_columns_are_names(tmp_path, caplog):
    """As pandas writes a table of an array."""
    (tmp_path / "table.csv").write_text("0,1\n5,6\n7,8\n")
    names, numbers = read_table(tmp_path / "table.csv")
    assert names == ["0", "1"] and numbers.tolist() == [[5, 6], [7, 8]]
    assert "the first row, 0 to 1, is taken for names" in caplog.text


@pytest.mark.parametrize(
    ("text", "rows", "said"),
    [
        ("2019,2020\n0.5,-1.5\n2.5,3.5\n", 3, "2019, 2020, is taken for numbers of the table"),
        ("0.1,low,0.3\n1,2,3\n", 1, "0.1, low, 0.3, is taken for names of the columns"),
        ("1,2\n2,3\n4,5\n", 3, "1, 2, is taken for numbers of the table"),
        ("2019,2020\n2,3\n4,5\n", 3, ""),
        ("low,high\n2,3\n4,5\n", 2, ""),
    ],
)
def test_a_first_row_that_may_be_something_else_is_named(tmp_path, caplog, text, rows, said):
    (tmp_path / "table.csv").write_text(text)
    _, table = read_table(tmp_path / "table.csv")
    assert len(table) == rows
    assert said in caplog.text and bool(said) == bool(caplog.text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty"),
        (b"0.1,NA,0.3\n1,2,3\n", "the first row has 'NA' among numbers: leave such lines out"),
        (b"0,0,#N/A\n1,2,3\n", "the first row has '#N/A' among numbers"),
        (b"0.1,,0.3\n1,2,3\n", "the first row has '' among numbers"),
        (b"a,b\n1,2\n3\n", "line 3 has 1 values for 2 columns"),
        (b"1,2\n3,high\n", "line 2, column '1': 'high' is no number"),
        (b"a,b\n1,2\n\n1,nan\n", "line 4 has 'nan', not finite"),
        (b"a;b\n1;2\n", r"parted by semicolons.*sep=';'"),
        (b"1,5;2,5\n1,5;3,5\n", r"parted by semicolons.*decimal=','"),
        (b"a;b\n1,5;2,5\n", r"parted by semicolons.*decimal=','"),
        (b'"load; kg"\nhigh\n', "line 2, column 'load; kg': 'high' is no number"),
        (b"a\tb\n1\t2\n", r"parted by tabs.*sep='\\t'"),
        (b"a,b\n1,\n", "line 2, column 'b' is empty: leave such lines out"),
        (b"a,b\n1,1_000\n", "line 2, column 'b': '1_000' is no number"),
        (b",a,b\n0,1,2\n1,2,3\n", "column 1 has no name: leave it out if it numbers the rows"),
        (b"x,y,x\n1,2,3\n3,4,5\n", "several columns are called 'x'"),
        (b"\xff\xfe\x00", "is no text in UTF-8: save it as CSV in UTF-8, or an array as .npy"),
        (b"size,h\xf6he\n1,2\n", "is no text in UTF-8"),
        (b"a b\n1 2\n", r"parted by blanks.*sep=' '"),
        (b"my height\nhigh\n", "line 2, column 'my height': 'high' is no number"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, text, message):
    (tmp_path / "table.csv").write_bytes(text)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / "table.csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs the path of one table"),
        (("none.csv",), "none.csv cannot be read: No such file or directory"),
        (("table.csv", "--steps=0"), "--steps must be positive"),
        (("table.csv", "--sigma=1e-30"), "--sigma must be between 0.001 and 1000"),
        (("table.csv", "--output=nowhere/e.csv"), "there is no folder nowhere"),
        (("table.csv", "--output=table.csv"), "must be another file that ends in .csv"),
        (("table.csv", "--output=constant.csv"), "is another file, no earlier evidence"),
        (("table.csv", "--output=folder.csv"), "folder.csv is no file"),
        (("table.csv", "--output=/proc/e.csv"), "nothing can be written in /proc"),
        (("constant.csv",), "constant.csv: column 'b' has one value alone"),
        (("copy.csv",), "copy.csv: columns 'a' and 'c' are one, or nearly so"),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, arguments, message):
    (tmp_path / "table.csv").write_text("1,2\n3,4\n")
    (tmp_path / "constant.csv").write_text("a,b\n1,2\n3,2\n4,2\n")
    (tmp_path / "copy.csv").write_text("a,b,c\n1,2,3\n3,5,7\n4,4,9\n")
    (tmp_path / "folder.csv").mkdir()
    done = run(*arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_table_is_not_written_over_by_another_name_of_it(run, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("1,2\n3,4\n")
    (tmp_path / "link.csv").symlink_to(table)
    (tmp_path / "folder").mkdir()
    for name in ("folder/../table.csv", "link.csv"):
        done = run("table.csv", f"--output={name}")
        assert done.returncode == 2 and "must be another file" in done.stderr
        assert table.read_text() == "1,2\n3,4\n"


def test_the_output_may_be_in_the_home_of_the_user(run, environment, tmp_path, monkeypatch):
    monkeypatch.setitem(environment, "HOME", str(tmp_path))
    np.savetxt(tmp_path / "table.csv", np.random.default_rng(0).normal(size=(9, 2)), delimiter=",")
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("id,a,flag\n" + "".join(f"{i + 1},{i**2},{i % 2}\n" for i in range(9)))
    done = run("numbers.csv", "--steps=1")
    assert "column 'id' numbers the rows: leave it out if it measures nothing" in done.stderr
    assert "column 'flag' has two values" in done.stderr and "column 'a'" not in done.stderr
    (tmp_path / "evidence.csv").touch()
    for _ in range(2):  # an empty file, and the evidence of an earlier order make room
        done = run("~/table.csv", "--steps=1", "--output=~/evidence.csv")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "evidence.csv").read_text().startswith("step,leaf,")
    assert "an order of 9 rows may be one of chance" in done.stderr
