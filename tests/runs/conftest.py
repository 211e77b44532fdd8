"""A process that is killed, without a process."""

import os

import pytest


class Killed(BaseException):
    pass


@pytest.fixture
def kill(monkeypatch):
    """`kill(call, job)`: the process ends when it asks for the file system the `call`-th time."""

    def kill(call, job):
        left = [call]

        def counted(function):
            def counting(*arguments, **options):
                left[0] -= 1
                if left[0] < 0:  # and nothing that it would do then is done
                    raise Killed
                return function(*arguments, **options)

            return counting

        with monkeypatch.context() as patch:
            for name in ("replace", "fsync", "mkdir", "unlink", "rmdir", "chmod"):
                patch.setattr(os, name, counted(getattr(os, name)))
            try:
                job()
            except Killed:
                return True
        return False

    return kill
