import shutil
import subprocess
from pathlib import Path

import pytest

from panokit.cli import main

pytest.importorskip("shtab", reason="the extra completion is not installed")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_every_shell_gets_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("panokit", "generate", "guidance_scale", "spotdiffusion"))


# Other shells complete in ways that no script can ask for; Windows has none of them.
@pytest.mark.skipif(not shutil.which("bash"), reason="the script is for bash, which this system does not have")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gen"], ["generate"]),
        (["generate", "--guidance_s"], ["--guidance_scale"]),
        (["generate", "--wrap", "x"], ["x", "xy", "xt", "xyt"]),
        (["plugins", "--kind", "fam"], ["families"]),
    ],
)
def test_bash_completes_words(
    words: list[str], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["completion", "bash"])
    (tmp_path / "completion.bash").write_text(capsys.readouterr().out)
    shown = " ".join(f"'{word}'" for word in ["panokit", *words])
    ask = f"source ./completion.bash; COMP_WORDS=({shown}); COMP_CWORD={len(words)}; _shtab_panokit; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == expected
