"""The notebook reads a run and is committed without outputs."""

import sys
from pathlib import Path

import ipykernel.kernelspec
import nbformat
import pytest
from conftest import PROJECT
from in_process import fit
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

NOTEBOOK = PROJECT / "notebooks" / "read_a_run.ipynb"


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use the tests' interpreter as the kernel python3, whichever kernels are installed; disable W&B."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    ipykernel.kernelspec.install(prefix=str(tmp_path))


def figures(cell: NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def test_the_notebook_reads_a_run(inside: Path, project: Path, kernel: None) -> None:
    weak = ("--trainer.max_epochs=1", "--trainer.log_every_n_steps=5", "--model.learning_rate=1e-4")
    fit("-c", "configs/experiment/mnist_mlp.yaml", *weak)
    (project / "notebooks").mkdir()

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    questions = ["import sys; sys.executable", "str(run.path)", "int(confusion.to_numpy().sum())", "len(wrong)"]
    perfect = "validation['prediction'] = validation.target"
    sources = [*questions, perfect, notebook.cells[-1].source]
    notebook.cells += [new_code_cell(source) for source in sources]
    from_notebooks = {"metadata": {"path": str(project / "notebooks")}}  # Jupyter starts a kernel in this folder
    NotebookClient(notebook, kernel_name="python3", timeout=60, resources=from_notebooks).execute()

    cells = {cell.id: cell for cell in notebook.cells}
    assert figures(cells["curves"]) == 1 and figures(cells["mistakes"]) == 1
    answers = [eval(cell.outputs[0].data["text/plain"]) for cell in notebook.cells[-6:-2]]
    mistakes = answers.pop()
    assert answers == [sys.executable, str((project / "runs" / "latest").resolve()), 100]
    assert 0 < mistakes < 100
    assert f"{mistakes} of 100 predictions are wrong" in cells["mistakes"].outputs[0].text
    without_mistakes = notebook.cells[-1]
    assert "no mistakes" in without_mistakes.outputs[0].text and not figures(without_mistakes)


@pytest.mark.parametrize("experiment", ["bert_cls", "t5_sum"])
def test_the_notebook_shows_the_texts_of_a_run(
    experiment: str, inside: Path, project: Path, kernel: None, tiny_bert: Path
) -> None:
    texts = [
        f"the {color} {animal} in house {number}"
        for color in ("red", "blue")
        for animal in ("cat", "dog")
        for number in range(20)
    ]
    lines = [f"{text},{'ab'['red' in text]},{text[:8]}" for text in texts]
    (project / "texts.csv").write_text("\n".join(["text,label,summary", *lines]) + "\n")
    model = {
        "bert_cls": (f"--model.pretrained={tiny_bert}", "--data.max_length=null", "--model.learning_rate=1e-9"),
        "t5_sum": (
            "--model.pretrained=null",
            "--model.risk_samples=0",
            "--model.d_model=32",
            "--model.d_ff=64",
            "--model.num_layers=1",
            "--model.num_heads=2",
        ),
    }
    options = (
        "--data.source=texts.csv",
        "--trainer.max_epochs=1",
        "--trainer.log_every_n_steps=1",
        "--trainer.logger=false",
    )
    fit("-c", f"configs/experiment/{experiment}.yaml", *options, *model[experiment])

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(project)}}
    NotebookClient(notebook, kernel_name="python3", timeout=60, resources=resources).execute()
    cells = {cell.id: cell for cell in notebook.cells}
    assert figures(cells["curves"]) == 1
    shown = "".join(output.get("data", {}).get("text/plain", "") for output in cells["mistakes"].outputs)
    assert any(text in shown for text in texts)


def test_committed_notebooks_have_no_outputs() -> None:
    for path in (PROJECT / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert notebook.metadata.kernelspec.name == "python3"
        for cell in notebook.cells:
            if cell.cell_type == "code":
                assert not cell.outputs and cell.execution_count is None, f"{path.name}: cell {cell.id} was run"
