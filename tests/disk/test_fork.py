"""What a forked child is told, and what its workers do there: nothing."""

from tests.disk.conftest import Script

IN_CHILD = """
def in_child(action):
    "Run something in a forked child and print what it returned."
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        print(action(), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_callbacks_run_in_the_child_only(script: Script) -> None:
    printed = script(
        IN_CHILD
        + """
told = []
disk.on_fork(lambda: told.append("told"))
in_child(lambda: told)
print(told)
"""
    )
    assert printed == ["['told']", "[]"]


def test_ended_callback_and_that_of_a_dead_object_do_not_run(script: Script) -> None:
    printed = script(
        IN_CHILD
        + """
told = []
class Log:
    def __init__(self, name): self.name = name
    def forked(self): told.append(self.name)
ended, dead, alive = Log("ended"), Log("dead"), Log("alive")
end = disk.on_fork(ended.forked)
disk.on_fork(dead.forked)
disk.on_fork(alive.forked)
end()
del dead
in_child(lambda: told)
"""
    )
    assert printed == ["['alive']"]


def test_callback_that_fails_does_not_keep_others_from_running(script: Script) -> None:
    printed = script(
        IN_CHILD
        + """
import logging
logging.basicConfig(stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")
told = []
def fail():
    raise LookupError("on purpose")
ends = [disk.on_fork(fail), disk.on_fork(lambda: told.append("told"))]
in_child(lambda: told)
"""
    )
    assert printed[0] == "mmwal ERROR a callback in a forked child failed"
    assert printed[-2:] == ["LookupError: on purpose", "['told']"]


def test_worker_does_nothing_in_a_child(script: Script) -> None:
    printed = script(
        """
import threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)     # 3.12 and later: fork beside threads, which is the point
"""
        + IN_CHILD
        + """
began = threading.Event()
worker = disk.start_worker("test", began.set)
began.wait()
def use():
    worker.wake()
    worker.stop()
    return threading.active_count()
in_child(use)
worker.stop()
print(threading.active_count())
"""
    )
    assert printed == ["1", "1"]
