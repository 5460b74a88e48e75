"""Methods that searched schedules are compared with."""
