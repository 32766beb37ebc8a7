"""tmp"""

from __future__ import annotations

from vmreconcile.core.fingerprints import digest
from vmreconcile.model.desired import DesiredServer


def memory_key(server: DesiredServer) -> str:
    """Tmp"""
    skip = {"gpu_memory_utilization", "max_model_len"}
    return digest(
        repr(
            (
                server.model,
                server.revision,
                sorted((k, repr(v.value)) for k, v in server.settings.items() if k not in skip),
            )
        )
    )
