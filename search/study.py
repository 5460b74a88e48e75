"""A study for notebooks: its trials, what it came to, and its figures."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go

from dashboards import ReportData, figures
from dashboards.analysis.trials import Found
from dashboards.report.summary import key_figures, summary_sentences
from search.config.run_config import DEFAULT_STORAGE
from search.reports import report_data
from studies import LoadedStudy, StudyStore


class Study(LoadedStudy):
    """A study in a database, read anew with every call, so that a running search can be watched.

    Figures are Plotly's: a notebook shows them, and `write_html` and `write_image` save them.

    Args:
        store: Store that it is in.
        name: Name of the study.

    Raises:
        StudyNotFoundError: There is no such study.

    Example:
        >>> import search
        >>> study = search.load("demo", "sqlite:///ftp-studies.db")
        >>> study.verdict[:70]
        'The selected schedule is better than a prompt shortened by 30% at abou'
        >>> study.best().number
        154
        >>> len(study.trials())
        200
        >>> study.plot_front(x="overall_sparsity").write_html("front.html")
        >>> study.plot_schedules().layout.title.text
        'Schedules on the front'
    """

    def __repr__(self) -> str:
        return f"Study({self.name!r}, {str(self._store)!r})"

    def _repr_html_(self) -> str:
        """A summary, which notebooks show: the verdict, or what there is before one, and the key figures."""
        data = self._data()
        said = [data.verdict] if data.verdict else summary_sentences(data)
        rows = (
            f"<tr><td><b>{escape(one.value)}</b></td><td>{escape(one.label)}</td><td>{escape(one.detail)}</td></tr>"
            for one in key_figures(data)
        )
        words = "".join(f"<p>{escape(sentence, quote=False)}</p>" for sentence in said)
        return f"<h4>{escape(data.title, quote=False)}: {data.state}</h4>{words}<table>{''.join(rows)}</table>"

    @property
    def verdict(self) -> str:
        """The result of the study, in a sentence; empty where nothing is known yet."""
        return self._data().verdict

    def plot_front(self, x: str | None = None, y: str | None = None) -> go.Figure:
        """Draws the trials and their front against two quantities, and what was measured of them and of other methods.

        Args:
            x: Name of the quantity across, such as "latency_ms" or "overall_sparsity"; None for the cost that was
                searched.
            y: Name of the quantity upwards, such as "kl" or "accuracy"; None for KL.
        """
        tested = [m for m in self._store.results.measurements(self.name) if m.split == "test"]
        return figures.front_figure(
            self._found(),
            x,
            y,
            selected=self.record.chosen_trial,
            measurements=tested,
            compared=self._store.comparisons.of(self.name),
            standalone=True,
        )

    def plot_schedules(self) -> go.Figure:
        """Draws the schedules of the front, block by block; the selected one is marked."""
        return figures.schedules_figure(self._found(), self.record.chosen_trial)

    def plot_growth(self, by_seconds: bool = False) -> go.Figure:
        """Draws the hypervolume of the front over the trials, or over the seconds since the first one began."""
        return figures.growth_figure(self._found(), by_seconds)

    def plot_proposers(self) -> go.Figure:
        """Draws each proposer's share of the trials, and the hypervolume that its trials added."""
        return figures.proposers_figure(self._found())

    def plot_sensitivities(self) -> go.Figure:
        """Draws the KL that each block causes by itself, or by a fit over all trials where that was not evaluated."""
        return figures.sensitivities_figure(self._found())

    def plot_workers(self) -> go.Figure:
        """Draws when each worker was busy."""
        return figures.workers_figure(self._found())

    def plot_measurements(self) -> go.Figure:
        """Draws quality against cost of every point that was measured on test items."""
        data = self._data()
        return figures.measurements_figure(
            data.results, data.selected, data.cost.name, data.titles, data.chance, data.compared
        )

    def plot_comparison(self) -> go.Figure:
        """Draws KL, accuracy and latency of dense, uniform, static, dynamic and refined on test items."""
        data = self._data()
        return figures.comparison_figure(data.results, data.selected, data.titles, data.chance)

    def plot_training(self, router: int = -1) -> go.Figure:
        """Draws the training curves of a router.

        Args:
            router: Place among the study's routers, oldest first; the last one by default.

        Raises:
            IndexError: There is no such router.
        """
        return figures.training_figure(self._store.routers.of(self.name)[router], self.record.facts.selection)

    def _found(self) -> Found:
        return Found.of_study(self.record, self._store.columns.of(self.name))

    def _data(self) -> ReportData:
        return report_data(self._store, self.name)


def load(name: str, storage: str | StudyStore = DEFAULT_STORAGE) -> Study:
    """Opens a study to look at it.

    Args:
        name: Name of the study.
        storage: URL of its database, or a store that is open already.

    Returns:
        The study, with its trials, front, figures and selected point.

    Raises:
        StorageError: The database cannot be opened.
        StudyNotFoundError: There is no such study.

    Example:
        >>> import search
        >>> search.load("demo", "sqlite:///ftp-studies.db")
        Study('demo', 'sqlite:///ftp-studies.db')
    """
    return Study(storage if isinstance(storage, StudyStore) else StudyStore(storage, create=False), name)
