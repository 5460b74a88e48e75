"""The dashboard: pages for browsers, mounted on the service's application."""

from dashboards.app.actions import Actions, FormField, RefusedError
from dashboards.app.mount import mount

__all__ = ["Actions", "FormField", "RefusedError", "mount"]
