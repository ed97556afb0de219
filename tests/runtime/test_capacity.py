"""How many processes a machine holds: by its cores, its memory and the limits that it is under."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panokit import SettingError
from panokit.runtime.capacity import Machine, _left_of_limits

GB = 10**9


@pytest.mark.parametrize(
    ("machine", "weights", "on_cpu", "most"),
    [
        (Machine(2, 64 * GB, GB), 0, True, 4),  # two a core
        (Machine(1, 64 * GB, GB), 0, True, 2),
        (Machine(64, 8 * GB, GB), 0, True, 9),  # itself, and eight more
        (Machine(64, 8 * GB, GB), 1 * GB, True, 4),  # its own weights, and three times two
        (Machine(64, 8 * GB, GB), 7 * GB, True, 1),
        (Machine(64, 0, GB), 0, True, 1),
        (Machine(2, 64 * GB, GB), 0, False, 65),  # devices of other kinds share no cores, and hold their weights themselves
        (Machine(2, 8 * GB, GB), 7 * GB, False, 9),
    ],
)
def test_a_machine_holds_so_many_processes_and_no_more(machine: Machine, weights: int, on_cpu: bool, most: int) -> None:
    machine.require(most, weights, on_cpu=on_cpu)
    with pytest.raises(SettingError, match=rf"{most + 1} devices are more than this machine holds, {most}: .*at most$"):
        machine.require(most + 1, weights, on_cpu=on_cpu)


@given(st.integers(1, 512), st.integers(0, 1 << 45), st.integers(1, 1 << 36), st.integers(0, 1 << 42), st.booleans())
def test_the_number_that_a_refusal_names_is_not_refused(
    cores: int, memory: int, process: int, weights: int, on_cpu: bool
) -> None:
    machine = Machine(cores, memory, process)
    machine.require(1, weights, on_cpu=on_cpu)  # one is never refused here
    with pytest.raises(SettingError) as refusal:
        machine.require(1 << 50, weights, on_cpu=on_cpu)
    most = int(str(refusal.value).rpartition(" set devices to ")[2].split()[0])
    machine.require(most, weights, on_cpu=on_cpu)
    assert str(refusal.value).count("\n") == 0


def test_this_machine_holds_this_process_and_more_within_its_limits() -> None:
    machine = Machine.this()
    assert machine.cores >= 1
    assert machine.process > 0
    assert all(machine.memory <= left for left in _left_of_limits())
    machine.require(2, 0, on_cpu=True)


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/a/b\n", {"a/memory.max": "900", "a/memory.current": "500", "a/b/memory.max": "max", "a/b/memory.current": "400"}),
        (
            "4:memory:/host/of/it\n0::/\n",  # the path of the host, which a container does not see
            {"memory/memory.limit_in_bytes": "900", "memory/memory.usage_in_bytes": "500"},
        ),
    ],
)
def test_a_control_group_or_one_above_it_limits_the_memory(tmp_path: Path, groups: str, files: dict[str, str]) -> None:
    """The kernel gives cached files back, so they count as free."""
    (tmp_path / "cgroup").write_text(groups)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(content)
        (tmp_path / name).with_name("memory.stat").write_text("anon 300\ninactive_file 100\n")
    assert _left_of_limits(tmp_path / "cgroup", tmp_path) == [500]
