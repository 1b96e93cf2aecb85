"""Worker processes of scripts as people write them."""

import subprocess
import sys
from pathlib import Path

USES = """
from segcore.data.pool import worker_pool

print("here")
"""
OWN = """
def double(number):
    return 2 * number
"""
GUARD = 'if __name__ == "__main__":\n    '


def ran(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """A script as a process of its own."""
    file = folder / "script.py"
    file.write_text(script)
    return subprocess.run([sys.executable, str(file)], capture_output=True, text=True)


def doubling(task: str) -> str:
    return f"with worker_pool(2, {task}) as pool: print(list(pool.map({task}, [-1, 2])))\n"


def test_a_script_without_a_guard_is_not_run_again(tmp_path: Path) -> None:
    done = ran(tmp_path, USES + doubling("abs"))
    assert done.stdout == "here\n[1, 2]\n", done.stderr


def test_a_task_of_the_script_is_found_by_running_it(tmp_path: Path) -> None:
    done = ran(tmp_path, USES + OWN + GUARD + doubling("double"))
    assert done.stdout.splitlines().count("[-2, 4]") == 1, done.stderr


def test_a_task_of_a_script_without_a_guard_says_what_to_do(tmp_path: Path) -> None:
    done = ran(tmp_path, USES + OWN + doubling("double"))
    assert done.returncode == 1
    assert 'put what the script does under `if __name__ == "__main__":`' in done.stderr
