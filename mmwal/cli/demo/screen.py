"""The story as a person reads it: a bar while something is counted, a line for each step, then the report and some
answers."""

from __future__ import annotations

from textwrap import indent, wrap

from rich.console import Console, Group
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from mmwal.cli.demo.story import Outcome, Step, Watcher
from mmwal.entry import Hit

FAILURES_SHOWN = 20

_DOING = {
    "load": "a process writes",
    "kill": "killing it",
    "recover": "opening the directory",
    "check": "comparing with the model",
    "finish": "writing the rest",
    "search": "asking",
    "close": "closing",
    "reopen": "opening again",
}


class Screen(Watcher):
    """Shows the steps as they come."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def introduce(self, directory: str, kernel: str, sync_interval_ms: int) -> None:
        """Says what is about to happen."""
        durable = "each write durable on return" if sync_interval_ms == 0 else f"a sync every {sync_interval_ms} ms"
        self._console.print(f"[bold]mmwal demo[/]  kernel {kernel}, {durable}, in [cyan]{escape(directory)}[/]\n")

    def step_began(self, name: str, total: int) -> None:
        if total:
            self._task = self._progress.add_task(_DOING[name], total=total)

    def step_moved(self, done: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done)

    def step_ended(self, step: Step) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        head = f"  {step.name:<8} {_duration(step.seconds):>6}  "
        width = max(self._console.width - len(head), 20)
        first, *rest = wrap(step.what, width)
        self._console.print(Text.assemble((head[:10], "bold"), (head[10:], "dim"), first))
        for more in rest:
            self._console.print(Text(" " * len(head) + more))

    def noticed(self, sentence: str) -> None:
        self._console.print(Text(f"  note: {sentence}", style="yellow"), soft_wrap=True)

    # -- the end

    def conclude(self, outcome: Outcome) -> None:
        """Shows the report, some answers, the figures, and whether all held."""
        self._console.print()
        if outcome.recovery is not None:
            self._console.print(indent(str(outcome.recovery), "  ") + "\n", soft_wrap=True, markup=False)
        for query, hits in outcome.searches:
            self._console.print(Text(f"  search: {query}", style="bold"))
            for hit in hits:
                self._console.print(self._line(hit))
            self._console.print()
        self._console.print(_verdict(outcome))

    def _line(self, hit: Hit) -> Text:
        summary = (hit.metadata or {}).get("summary", "")
        line = Text.assemble((f"{hit.score:9.3f}  ", "dim"), (f"{hit.id}  ", "cyan"), str(summary))
        line.truncate(self._console.width, overflow="ellipsis")
        return line


def _verdict(outcome: Outcome) -> Group:
    figures = outcome.figures
    lines = []
    if "disk_bytes" in figures:
        lines.append(
            f"{figures['log_bytes'] / 1e6:.1f} MB went through the log; since the recovery: {figures['rotations']} "
            f"rotations, {figures['checkpoints']} checkpoints, {figures['syncs']:,} syncs. The directory takes "
            f"{figures['disk_bytes'] / 1e6:.1f} MB."
        )
    if outcome.holds:
        seconds = sum(step.seconds for step in outcome.steps)
        lines.append(f"[bold green]Everything that was acknowledged came back.[/] {seconds:.1f} s in all.")
        return Group(*(Text.from_markup(line) for line in lines))
    lines.append("[bold red]This did not hold:[/]")
    problems = [*outcome.failures, *([] if outcome.error is None else [str(outcome.error)])]
    lines += [f"  - {escape(problem)}" for problem in problems[:FAILURES_SHOWN]]
    if len(problems) > FAILURES_SHOWN:
        lines.append(f"  … and {len(problems) - FAILURES_SHOWN:,} more; --json lists all")
    return Group(*(Text.from_markup(line) for line in lines))


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
