"""The matrix: rows in a mapped file that grows, and its twin in memory."""

import errno
from typing import Any

import numpy as np
import pytest

from mmwal.disk.posix import PosixDisk
from mmwal.errors import ConsistencyError, ForeignDirectoryError, WalFullError
from mmwal.state.matrix import Matrix, MemoryMatrix
from mmwal.testing.simulator import SimulatedDisk


@pytest.fixture
def path(tmp_path: Any) -> str:
    return str(tmp_path / "matrix")


@pytest.fixture(params=["mapped", "memory"])
def matrix(request: pytest.FixtureRequest, path: str) -> Any:
    made: Any = MemoryMatrix(100, 1) if request.param == "memory" else Matrix.create(PosixDisk(), path, 100, 1)
    yield made
    made.close()


def test_row_has_a_stride_of_whole_cache_lines(matrix: Any) -> None:
    assert (matrix.row_bytes, matrix.stride) == (400, 448)
    matrix.ensure(3)
    assert matrix.array.strides == (448, 4)
    assert matrix.array.shape == (matrix.capacity, 100)


def test_new_rows_are_zero_and_what_is_stored_stays(matrix: Any) -> None:
    matrix.ensure(2)
    assert not matrix.array.any()
    matrix.array[1] = 7
    matrix.ensure(5000)
    assert matrix.array[1].tolist() == [7.0] * 100
    assert not matrix.array[2:].any()


def test_growing_moves_the_generation_and_keeps_old_views(matrix: Any) -> None:
    matrix.ensure(1)
    generation, old = matrix.generation, matrix.array
    matrix.array[0] = 3
    matrix.ensure(matrix.capacity + 1)
    assert matrix.generation > generation
    assert old[0, 0] == 3
    assert len(matrix.view) == matrix.capacity * matrix.stride


def test_ensure_answers_how_far_the_rows_reach(matrix: Any) -> None:
    ready = matrix.ensure(10)
    assert 10 <= ready <= matrix.capacity


@pytest.mark.parametrize(("code", "dtype"), [(1, np.float32), (2, np.float16), (3, np.int8)])
def test_each_dtype_has_its_own_rows(path: str, code: int, dtype: Any) -> None:
    matrix = Matrix.create(PosixDisk(), path, 3, code)
    matrix.ensure(1)
    assert matrix.array.dtype == dtype
    assert matrix.stride == 64
    matrix.close()


def test_rows_come_back_after_reopening(path: str) -> None:
    disk = PosixDisk()
    matrix = Matrix.create(disk, path, 100, 1)
    matrix.ensure(5)
    matrix.array[4] = np.arange(100)
    matrix.sync()
    matrix.close()
    for writable in (False, True):
        again = Matrix.open(disk, path, 100, 1, 5, writable=writable)
        assert again.array[4].tolist() == list(range(100))
        assert again.array.flags.writeable == writable
        again.close()


def test_small_store_takes_little_space(path: str) -> None:
    disk = PosixDisk()
    matrix = Matrix.create(disk, path, 4, 1)
    matrix.ensure(1)
    matrix.close()
    assert disk.open(path, writable=False).size() == 4096


def test_reserve_that_runs_out_is_mapped_anew(path: str) -> None:
    matrix = Matrix.create(PosixDisk(), path, 16, 1, reserve_bytes=1 << 16)
    matrix.ensure(1)
    old = matrix.array
    old[0] = 5
    matrix.ensure(10_000)
    matrix.array[9_999] = 6
    old[0] = 7  # both mappings show the same file
    assert matrix.array[0].tolist() == [7.0] * 16
    matrix.close()


def test_refused_reserve_is_made_smaller(path: str) -> None:
    matrix = Matrix.create(PosixDisk(), path, 16, 1, reserve_bytes=1 << 62)
    matrix.ensure(1)
    matrix.array[0] = 1
    matrix.close()


def test_file_shorter_than_its_rows_is_refused(path: str) -> None:
    disk = PosixDisk()
    matrix = Matrix.create(disk, path, 100, 1)
    matrix.ensure(5)
    high = matrix.capacity + 100
    matrix.close()
    with pytest.raises(ConsistencyError, match="restore it"):
        Matrix.open(disk, path, 100, 1, high)
    with pytest.raises(ConsistencyError, match="missing"):
        Matrix.open(disk, path + "x", 100, 1, 0)


def test_creating_over_rows_is_refused_and_over_an_empty_file_is_not(path: str) -> None:
    disk = PosixDisk()
    Matrix.create(disk, path, 100, 1).close()
    matrix = Matrix.create(disk, path, 100, 1)
    matrix.ensure(1)
    matrix.close()
    with pytest.raises(ForeignDirectoryError):
        Matrix.create(disk, path, 100, 1)


def test_full_disk_is_an_error_that_changes_nothing() -> None:
    disk = SimulatedDisk()
    disk.make_directory("/data")
    matrix = Matrix.create(disk, "/data/matrix", 4, 1)
    matrix.ensure(1)
    capacity, generation = matrix.capacity, matrix.generation
    disk.fail("allocate", forever=True)
    with pytest.raises(WalFullError) as raised:
        matrix.ensure(capacity + 1)
    assert raised.value.errno == errno.ENOSPC
    assert (matrix.capacity, matrix.generation) == (capacity, generation)
    disk.faults.clear()
    matrix.ensure(capacity + 1)
    assert matrix.capacity > capacity


def test_too_little_space_for_a_step_gives_what_was_asked_for() -> None:
    disk = SimulatedDisk()
    disk.make_directory("/data")
    matrix = Matrix.create(disk, "/data/matrix", 4, 1)
    matrix.ensure(64 * 16)
    disk.fail("allocate")
    capacity = matrix.capacity
    matrix.ensure(capacity + 1)
    assert matrix.capacity == capacity + 64  # one page


def test_worker_grows_ahead_of_use() -> None:
    disk = SimulatedDisk()
    disk.make_directory("/data")
    matrix = Matrix.create(disk, "/data/matrix", 4, 1)
    matrix.ensure(64)
    capacity = matrix.capacity
    disk.run_workers()
    assert matrix.capacity > capacity
    disk.fail("allocate", forever=True)  # the worker keeps it to itself
    matrix.ensure(matrix.capacity)
    disk.run_workers()


def test_name_of_a_new_matrix_survives_a_power_cut() -> None:
    disk = SimulatedDisk()
    disk.make_directory("/data")
    Matrix.create(disk, "/data/matrix", 4, 1)
    import random

    for choice in disk.images(random.Random(1), 20):
        assert disk.image(choice).exists("/data/matrix")
