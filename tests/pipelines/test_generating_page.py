"""The examples of docs/generating.md run as they are written there, one after the other."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

PAGE = (Path(__file__).parents[2] / "docs/generating.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_the_examples_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for example in EXAMPLES:
        exec(compile(example, "docs/generating.md", "exec"), names)
    assert [len(names[name]) for name in ("pairs", "one_cell", "mixed", "frames")] == [3, 2, 3, 6]
    assert names["out"].trajectory.shape == (13, 3, 3, 48, 48)
    assert names["fast"].unet.dtype == torch.bfloat16
    for name, count in (("taxol_to_AZ138.gif", 6), ("taxol.webp", 13)):
        with Image.open(tmp_path / name) as animation:
            assert animation.n_frames == count


def test_every_argument_of_a_call_is_on_the_page() -> None:
    import inspect

    from cellfluxrl import CellFluxPipeline

    arguments = set(inspect.signature(CellFluxPipeline.__call__).parameters) - {"self", "return_dict"}
    missing = {name for name in arguments if name not in PAGE and name not in ("control_images", "generator")}
    assert not missing - {"callback_on_step_end_tensor_inputs"}
