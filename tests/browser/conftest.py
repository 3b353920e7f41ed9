"""Fixtures of the tests of the workflow, for reports of real runs."""

from tests.workflow.conftest import models, project

__all__ = ["models", "project"]
