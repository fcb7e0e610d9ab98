"""README's code runs as written."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_code_blocks_run_in_order(monkeypatch, tmp_path):
    text = README.read_text().replace("/tmp/flow", str(tmp_path / "flow"))
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["draws"].samples["x"].shape == (128, 1000, 2)
    assert names["flow"](names["context"]).batch_shape == (5, 4)
