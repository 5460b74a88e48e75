"""The problem that is searched: the space of schedules, objectives, costs, fidelities."""
