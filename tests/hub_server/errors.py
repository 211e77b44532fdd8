"""What the Hub answers when it does not do what it was asked."""


class HubError(Exception):
    """An answer with an HTTP status and a message; `code` is what huggingface_hub tells apart."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.body = {"error": message, **body}

    @property
    def headers(self) -> dict[str, str]:
        line = " ".join(self.message.split()).encode("ascii", "replace").decode()
        headers = {"X-Error-Message": line}
        return headers if self.code is None else {"X-Error-Code": self.code, **headers}


class RevisionNotFound(HubError):
    def __init__(self, revision: str) -> None:
        super().__init__(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class EntryNotFound(HubError):
    def __init__(self, message: str = "Entry not found") -> None:
        super().__init__(404, message, "EntryNotFound")
