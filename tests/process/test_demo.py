"""The demo, end to end with a real child and a real SIGKILL; and that it would notice a broken promise."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mmwal
from mmwal.cli.demo.child import Settings
from mmwal.cli.demo.command import code_of
from mmwal.cli.demo.embeddings import Embeddings, load_embeddings
from mmwal.cli.demo.model import Model, differences, wrong_answers
from mmwal.cli.demo.plan import Operation, make_plan
from mmwal.cli.demo.story import STEPS, Outcome, Step, Watcher, tell
from tests.process.conftest import Run

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.DurabilityWarning")


@pytest.fixture(scope="module")
def embeddings() -> Embeddings:
    return load_embeddings()


# ---- the whole of it


def test_demo_holds_and_prints_one_json_object(run: Run, kernel_name: str, tmp_path: Path) -> None:
    done = run("-m", "mmwal", "demo", "--json", "--kernel", kernel_name)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["holds"], found["failures"], found["error"], found["kernel"]) == (True, [], None, kernel_name)
    assert [step["name"] for step in found["steps"]] == list(STEPS)
    assert 0 < found["figures"]["acknowledged"] < found["figures"]["operations"]
    assert found["figures"]["disk_bytes"] <= 32 << 20
    assert found["figures"]["rotations"] > 0
    assert found["figures"]["checkpoints"] > 0
    assert not found["recovery"]["clean_shutdown"]
    assert found["reopening"]["clean_shutdown"]
    assert found["reopening"]["applied_entries"] == 0
    assert len(found["searches"]) == 3
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == [], "it cleans up"


def test_demo_tells_a_person_what_happened(run: Run, tmp_path: Path) -> None:
    done = run("-m", "mmwal", "demo", "--dir", "new/folder", "--seed", "5", "--kill-at", "0.8")
    assert done.returncode == 0, done.stdout + done.stderr
    for step in STEPS:
        assert f"\n  {step}" in done.stdout
    assert "recovery: completed, after an unclean shutdown" in done.stdout
    assert "datetime.date.fromisoformat" in done.stdout
    assert "Everything that was acknowledged came back." in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--kill-at", "0"], id="before-the-first-operation"),
        pytest.param(["--kill-at", "1"], id="after-the-last-operation"),
        pytest.param(["--sync-interval-ms", "5000", "--kill-at", "0.9"], id="hardly-any-sync"),
    ],
)
def test_demo_holds_wherever_the_process_is_killed(run: Run, arguments: list[str]) -> None:
    done = run("-m", "mmwal", "demo", "--json", *arguments)
    assert (done.returncode, json.loads(done.stdout)["failures"]) == (0, []), done.stdout


def test_demo_keeps_the_store_when_asked_to(run: Run, tmp_path: Path) -> None:
    assert run("-m", "mmwal", "demo", "--json", "--keep", "--dir", "kept").returncode == 0
    with mmwal.open(tmp_path / "kept") as store:
        assert len(store) == 6411
        assert store.recovery_stats.clean_shutdown


# ---- it would notice


class Meddler(Watcher):
    """Does something to the directory after the kill."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def step_ended(self, step: Step) -> None:
        if step.name == "kill":
            self._act()


def tell_with(tmp_path: Path, act: Callable[[], None]) -> Outcome:
    settings = Settings(directory=str(tmp_path), sync_interval_ms=1000, seed=0, kernel=None)
    return tell(settings, 0.3, Meddler(act))


def test_an_acknowledged_id_that_is_gone_ends_with_exit_code_1(tmp_path: Path) -> None:
    deleted = []

    def lose_one() -> None:
        with mmwal.open(tmp_path) as store:
            deleted.append(store.ids()[17])
            store.delete(deleted[0])

    outcome = tell_with(tmp_path, lose_one)
    assert any(f"id {deleted[0]!r} is missing" in failure for failure in outcome.failures)
    assert any("clean shutdown" in failure for failure in outcome.failures)
    assert "finish" not in [step.name for step in outcome.steps]
    assert code_of(outcome) == 1


def test_damage_ends_with_exit_code_3(tmp_path: Path) -> None:
    def damage() -> None:
        control = tmp_path / "wal" / "control"
        content = bytearray(control.read_bytes())
        content[16:32] = content[4096 + 16 : 4096 + 32] = b"\xff" * 16
        control.write_bytes(content)

    outcome = tell_with(tmp_path, damage)
    assert isinstance(outcome.error, mmwal.HeaderCorruptionError)
    assert code_of(outcome) == 3


def test_a_child_that_cannot_begin_ends_with_exit_code_1(tmp_path: Path) -> None:
    with mmwal.open(tmp_path, dimension=2, segment_size=1 << 20):  # of another dimension, and locked
        outcome = tell(Settings(directory=str(tmp_path), sync_interval_ms=0, seed=0, kernel=None), 0.0, Watcher())
    assert "could not begin" in outcome.failures[0]
    assert code_of(outcome) == 1


# ---- the plan


@pytest.mark.parametrize("seed", range(5))
def test_plan_leaves_every_embedding_with_its_own_vector_and_summary(embeddings: Embeddings, seed: int) -> None:
    model = Model()
    for operation in make_plan(embeddings, seed):
        model.apply(operation, None)
    assert {id: (expected.row, expected.metadata) for id, expected in model.held.items()} == {
        id: (row, {"summary": embeddings.summaries[row]}) for row, id in enumerate(embeddings.ids)
    }


@pytest.mark.parametrize("half", [0, 1])
def test_plan_replaces_and_deletes_on_both_sides_of_the_kill(embeddings: Embeddings, half: int) -> None:
    plan = make_plan(embeddings, 0)
    part = plan[: len(plan) // 2] if half == 0 else plan[len(plan) // 2 :]
    methods = {operation.method for operation in part}
    assert {"insert", "insert_many", "update", "update_many", "upsert", "delete", "delete_many"} <= methods


def test_model_and_store_agree_on_every_method(embeddings: Embeddings) -> None:
    """A store in memory follows the plan: so the model means what the methods mean."""
    store, model = mmwal.VectorStore(), Model()
    for operation in make_plan(embeddings, 1):
        model.apply(operation, operation.carry_out(store, embeddings.vectors))
    assert differences(store, model, embeddings.vectors) == []
    answers, _ = store.search_batch(embeddings.query_vectors)
    assert wrong_answers(answers, embeddings.ids, embeddings.top10, embeddings.queries) == []


# ---- the comparison, with falsified models


VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def pair() -> tuple[mmwal.VectorStore, Model]:
    store, model = mmwal.VectorStore(), Model()
    for row, id in enumerate(["a", "b", 7]):
        operation = Operation("insert", [id], [row], [{"row": row}])
        model.apply(operation, operation.carry_out(store, VECTORS))
    assert differences(store, model, VECTORS) == []
    return store, model


@pytest.mark.parametrize(
    ("operation", "sentence"),
    [
        (Operation("insert", ["c"], [3]), "id 'c' is missing"),
        (Operation("delete", ["a"]), "id 'a' is there, and must not be"),
        (Operation("update", ["a"], [1]), "id 'a' has another vector"),
        (Operation("update", [7], None, [{"row": 0}]), "id 7 has metadata {'row': 2}"),
    ],
    ids=lambda value: value.method if isinstance(value, Operation) else "",
)
def test_difference_is_found(pair: tuple[mmwal.VectorStore, Model], operation: Operation, sentence: str) -> None:
    store, model = pair
    model.apply(operation, None)
    assert any(sentence in found for found in differences(store, model, VECTORS))


def test_another_lsn_is_a_difference(pair: tuple[mmwal.VectorStore, Model]) -> None:
    store, model = pair
    model.apply(Operation("update", ["b"], [1]), 1 << 40)
    assert any("written at LSN" in found for found in differences(store, model, VECTORS))


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [(["b", "a"], "has 'b' at place 1; it must be 'a'"), (["a"], "has another length; it must be 2 ids")],
)
def test_wrong_answer_is_found(answer: list[str], sentence: str) -> None:
    [found] = wrong_answers([answer], ["a", "b"], np.array([[0, 1]], np.int32), ["which?"])  # type: ignore[list-item]
    assert sentence in found
